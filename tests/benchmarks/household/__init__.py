"""Documents of households and small firms, and questions about them: see the README."""

import json
from pathlib import Path

HOUSEHOLD = Path(__file__).parent


def write_household(folder: Path) -> Path:
    """Write the documents as files."""
    for line in (HOUSEHOLD / "documents.jsonl").read_text(encoding="utf-8").splitlines():
        document = json.loads(line)
        path = folder / document["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document["text"], encoding="utf-8")
    return folder
