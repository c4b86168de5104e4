"""Many mutated files, and many kills of writers and workers: nothing is lost, and nothing else fails."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from lince_rag import Index
from lince_rag.documents import workers
from lince_rag.documents.workers import ReadingLimits
from tests.benchmarks.tables import table
from tests.hostile_files import mutate
from tests.unit_tests.file_samples import HTML, MARKDOWN, docx_bytes, pdf_bytes

MUTATED: Final = 2_000
KILLS: Final = 200

FILES: Final = {
    ".txt": b"El olivo se riega en mayo. Lo riega Marta, de lunes a viernes.\n" * 40,
    ".md": MARKDOWN.encode(),
    ".html": HTML.encode(),
    ".pdf": pdf_bytes(["El olivo se riega en mayo. " * 60, "Marta lo riega."]),
    ".docx": docx_bytes(),
}

# What a killed process was doing: argv is the index, the documents and a document to delete, or "".
WRITER: Final = """
import sys
from lince_rag import Index
with Index.open(sys.argv[1]) as index:
    print("open", flush=True)
    if sys.argv[3] and sys.argv[3] in {source.source for source in index.sources()}:
        index.delete(sys.argv[3])
    index.ingest(sys.argv[2])
"""


def test_mutated_files(tmp_path: Path, results: list[str]) -> None:
    generator = random.Random(12)
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(MUTATED):
        suffix = generator.choice(sorted(FILES))
        (folder / f"{number:04}{suffix}").write_bytes(mutate(FILES[suffix], generator))
    with Index.open(tmp_path / "index") as index:
        report = index.ingest(folder, limits=ReadingLimits(seconds=10))
        assert len(report.added) + len(report.failed) == MUTATED
        assert index.verify().ok
        for source in index.sources():
            text = index.text(source.source)
            for chunk in index.ledger.chunks(index.ledger.chunk_ids(source.source)).values():
                assert text[chunk.metadata["start"] : chunk.metadata["end"]] == chunk.page_content
    given = Counter(path.suffix for path in folder.iterdir())
    read = Counter(Path(source).suffix for source in report.added)
    rows: list[list[object]] = [
        [suffix, given[suffix], read[suffix], given[suffix] - read[suffix]] for suffix in FILES
    ]
    text = f"Ingested together in {report.seconds:.0f} s; every chunk is its piece of its document's text."
    results.append(f"## Mutated files\n\n{table(['kind', 'files', 'read', 'reported'], rows)}\n\n{text}")


def write_version(folder: Path, version: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(60):
        text = f"# Finca {number}\n\n" + f"La finca {number} tiene olivos, versión {version}, y un pozo. " * 40
        (folder / f"finca-{number:02}.md").write_text(text)


def kill_somewhere(generator: random.Random, process: "subprocess.Popen[str]") -> str:
    """Kill the writer, or one of its workers, at a random moment; return which."""
    assert process.stdout
    process.stdout.readline()
    time.sleep(generator.uniform(0, 1.5))
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    children = [
        int(line.split()[0])
        for line in listed.splitlines()
        if workers.__name__ in line and line.split()[1] == str(process.pid)
    ]
    if children and generator.random() < 0.4:
        os.kill(generator.choice(children), signal.SIGKILL)
        process.wait(timeout=120)
        assert process.returncode == 0
        return "worker"
    process.kill()
    process.wait(timeout=60)
    return "writer"


def test_kills(tmp_path: Path, results: list[str]) -> None:
    generator = random.Random(3)
    folder, path = tmp_path / "documents", tmp_path / "index"
    write_version(folder, 0)
    expected: dict[int, set[str]] = {}
    for version in (0, 1):
        write_version(folder, version)
        with Index.open(tmp_path / f"undisturbed-{version}") as index:
            index.ingest(folder)
            expected[version] = index.ledger.chunk_ids()
    killed: Counter[str] = Counter()
    for kill in range(KILLS):
        version = kill % 2
        write_version(folder, version)
        doomed = str(folder / f"finca-{generator.randrange(60):02}.md") if generator.random() < 0.3 else ""
        command = [sys.executable, "-c", WRITER, str(path), str(folder), doomed]
        killed[kill_somewhere(generator, subprocess.Popen(command, stdout=subprocess.PIPE, text=True))] += 1
        with Index.open(path) as index:
            for source in index.sources():
                assert index.ledger.chunk_ids(source.source) <= expected[0] | expected[1]
            index.ingest(folder)
            assert index.ledger.chunk_ids() == expected[version]
            report = index.verify()
            assert report.ok, report
            assert not index.ledger.uncommitted()
    rows: list[list[object]] = [
        ["writer", killed["writer"]],
        ["worker", killed["worker"]],
        ["indexes that differ", 0],
    ]
    text = "Each kill is in an update of 60 files, three in ten after a deletion; then the ingestion is run again."
    results.append(f"## Kills at random moments\n\n{table(['what', 'times'], rows)}\n\n{text}")
