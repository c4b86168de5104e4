"""Make the archives of this folder: an index by the code of each of some commits, from the same small documents.

    python tests/integration_tests/old_indexes/make.py [COMMIT ...]

It needs the history of the repository. The libraries are those that are installed, the code is the commit's.
"""

import io
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent

# Where the documents are while the indexes are made: their names are in the indexes.
DOCUMENTS = Path("/tmp/lince-rag-old-documents")

FILES = {
    "contrato.md": (
        "# Contrato de alquiler\n\nLa fianza es de 815 euros.\n\n## Plazo\n\nVence el 30 de junio de 2027.\n"
    ),
    "ata.txt": "O elevador custa 1.100 euros.\n",
}

COMMITS = ["58734d5", "5b28542", "aedf4ba", "8d35e27", "ffb788a", "a534c17", "1c03121"]

CODE = """
import sys
try:
    from lince_rag import Index
except ImportError:
    from lince_rag.index import Index
from langchain_core.documents import Document
with Index.open(sys.argv[1], embeddings="embedded") as index:
    index.ingest(sys.argv[2])
    index.ingest([Document("La caldera tiene 1,5 bar.", metadata={"source": "manual", "autor": "Ana"})])
"""


def make(commit: str, folder: Path) -> None:
    code = subprocess.run(["git", "archive", commit], capture_output=True, check=True, cwd=HERE.parents[2]).stdout
    with tarfile.open(fileobj=io.BytesIO(code)) as archive:
        archive.extractall(folder / "code", filter="data")
    if not (prompts := folder / "code" / "lince_rag" / "prompts").exists():
        # Where the installation put them at that time.
        prompts.symlink_to(folder / "code" / "prompts")
    DOCUMENTS.mkdir()
    try:
        for name, text in FILES.items():
            (DOCUMENTS / name).write_text(text, encoding="utf-8")
        command = [sys.executable, "-c", CODE, str(folder / "index"), str(DOCUMENTS)]
        environment = {"PYTHONPATH": str(folder / "code"), "HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "False"}
        subprocess.run(command, check=True, cwd=folder, env=environment)
    finally:
        shutil.rmtree(DOCUMENTS)
    file_name, preset = HERE / f"{commit}.tar.xz", 9 | lzma.PRESET_EXTREME
    with lzma.open(file_name, "w", preset=preset) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for file in sorted((folder / "index").rglob("*")):
            if file.is_file() and file.suffix != ".lock":
                archive.add(file, file.relative_to(folder / "index"), filter=_anonymous)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    for commit in sys.argv[1:] or COMMITS:
        with tempfile.TemporaryDirectory() as folder:
            make(commit, Path(folder))
