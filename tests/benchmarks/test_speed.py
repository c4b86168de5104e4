"""Times against named peers, interleaved in one process; medians and ratios."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager
from langchain_core.indexing import index as langchain_index

import lince_rag
from lince_rag import Index, LinceEmbeddings
from lince_rag.index.storage import open_vector_store
from tests.benchmarks.squad import load
from tests.benchmarks.tables import table

ROUNDS = 5


def interleave(ours: Callable[[], Any], peer: Callable[[], Any]) -> tuple[float, float]:
    """Median seconds of each, taken in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, kept in zip((ours, peer), times, strict=True):
            started = time.perf_counter()
            call()
            kept.append(time.perf_counter() - started)
    return median(times[0]), median(times[1])


def test_ingestion_against_langchain_indexing(data: Path, tmp_path: Path, results: list[str]) -> None:
    """The same paragraphs, embedder and store: first time, and again unchanged."""
    documents = [
        Document(text, metadata={"source": f"{number}"})
        for number, text in enumerate(load(data / "xquad.es.json").paragraphs)
    ]
    embeddings = LinceEmbeddings()

    def ours_first() -> None:
        shutil.rmtree(tmp_path / "ours", ignore_errors=True)
        with Index.open(tmp_path / "ours") as index:
            index.ingest(documents)

    count = 0

    def peer_first() -> None:
        nonlocal count
        count += 1
        manager = InMemoryRecordManager(namespace="x")
        manager.create_schema()
        peer_index(open_vector_store(embeddings, tmp_path / f"peer{count}"), manager)

    def peer_index(store: Any, manager: InMemoryRecordManager) -> None:
        langchain_index(
            documents, manager, store, cleanup="incremental", source_id_key="source", key_encoder="blake2b"
        )

    first = interleave(ours_first, peer_first)
    manager = InMemoryRecordManager(namespace="y")
    manager.create_schema()
    store = open_vector_store(embeddings, tmp_path / "peer")
    peer_index(store, manager)
    with Index.open(tmp_path / "ours") as index:
        again = interleave(lambda: index.ingest(documents), lambda: peer_index(store, manager))
    rows: list[list[object]] = [
        [f"{len(documents)} paragraphs, first time", *first, f"{first[0] / first[1]:.2f}"],
        ["again, nothing changed", *again, f"{again[0] / again[1]:.3f}"],
    ]
    header = ["ingestion", "lince_rag s", "langchain_core.indexing + Chroma s", "ratio"]
    note = "Ours also writes BM25 terms and a ledger on disk; the peer's record manager is in memory."
    results.append(f"## Ingestion\n\n{table(header, rows)}\n\n{note}")


def test_start(results: list[str]) -> None:
    """Whole processes, against an empty Python."""
    rows: list[list[object]] = []
    documents = Path(lince_rag.__file__).parent / "cli" / "demo_documents"
    bare = [sys.executable, "-c", "pass"]
    for arguments in (["--help"], ["models"], ["demo"]):
        command = [sys.executable, "-m", "lince_rag.cli.app", *arguments]
        ours, python = interleave(lambda command=command: _run(command), lambda: _run(bare))
        rows.append([f"lince-rag {arguments[0]}", ours, python])
    assert documents.is_dir()
    results.append("## Start\n\n" + table(["command", "seconds", "empty Python"], rows))


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)
