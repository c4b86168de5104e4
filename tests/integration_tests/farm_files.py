"""A folder of many small files of a few chunks each, in versions."""

from pathlib import Path
from typing import Final

# Chunks of a file.
CHUNKS: Final = 4


def write_files(folder: Path, version: str, count: int) -> None:
    """Write the files, or replace them by those of another version."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        sections = [
            f"# Sección {part}\n\nLa finca {number} tiene olivos, versión {version} parte {part}, y un pozo hondo."
            for part in range(CHUNKS)
        ]
        (folder / f"finca-{number:03}.md").write_text("\n\n".join(sections))
