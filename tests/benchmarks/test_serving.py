"""What a server of ours bears: many clients for a minute, its memory, and `lince-rag ask` with and without it."""

import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import httpx
import pytest

from tests.benchmarks.household import write_household
from tests.benchmarks.tables import installed, table
from tests.servers import lince_server

CLIENTS: Final = 200
SECONDS: Final = 60
ROUNDS: Final = 7
QUESTIONS: Final = (
    "¿Cuánto se paga al mes de alquiler en Olmo 14?",
    "pq o iptu aumentou tanto",
    "¿Qué sueldo cobra el administrador?",
    "Dá pra limpar a cafeteira com vinagre?",
)
PACKAGES: Final = ["fastapi", "uvicorn", "starlette", "mcp", "limits"]


@pytest.mark.parametrize("embedder", ["multilingual-e5-small", "embedded"])
def test_many_clients(tmp_path: Path, results: list[str], embedder: str) -> None:
    index = _ingest(tmp_path, embedder)
    memory: list[int] = []
    with lince_server(index, "--rate", "1000000/minute") as url:
        process = _process_of(url)
        _ask(url, QUESTIONS[0])
        memory.append(_memory(process))
        until = time.monotonic() + SECONDS
        with ThreadPoolExecutor(CLIENTS) as pool:
            jobs = [pool.submit(_client, url, until, number) for number in range(CLIENTS)]
            for _ in range(3):
                time.sleep(SECONDS / 3)
                memory.append(_memory(process))
            seen = [each for job in jobs for each in job.result()]
        started = time.monotonic()
        assert _ask(url, QUESTIONS[1])[0] == 200
        after = 1000 * (time.monotonic() - started)
    statuses = Counter(status for status, _ in seen)
    answered = [milliseconds for status, milliseconds in seen if status == 200]
    refused = [milliseconds for status, milliseconds in seen if status != 200]
    assert set(statuses) <= {200, 429, 503}
    rows: list[list[object]] = [
        ["answers a second", f"{len(answered) / SECONDS:.0f}"],
        ["answers, refusals by status", ", ".join(f"{n} × {status}" for status, n in sorted(statuses.items()))],
        ["answer, p50 and p95, ms", f"{median(answered):.0f} / {quantiles(answered, n=20)[-1]:.0f}"],
        ["refusal, p50, ms", f"{median(refused):.0f}" if refused else "–"],
        ["next answer afterwards, ms", f"{after:.0f}"],
        ["memory at the beginning, after 20, 40, 60 s, MiB", ", ".join(map(str, memory))],
    ]
    note = (
        f"{CLIENTS} clients ask one question after another for {SECONDS} s (a refused one waits as long as it is "
        f"told), over 95 documents, {embedder}; clients and server share {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}. {installed(PACKAGES)}."
    )
    results.append(f"## Serving: {CLIENTS} clients, {embedder}\n\n{table(['', ''], rows)}\n\n{note}")


def test_cold_questions(tmp_path: Path, results: list[str]) -> None:
    rows: list[list[object]] = []
    for embedder in ("multilingual-e5-small", "embedded"):
        index = _ingest(tmp_path / embedder, embedder)
        alone = [_command(index) for _ in range(ROUNDS)]
        with lince_server(index):
            through = [_command(index) for _ in range(ROUNDS)]
        rows.append([embedder, median(alone), median(through), median(alone) / median(through)])
    header = ["embedder", "`lince-rag ask`, s", "with a server that runs, s", "ratio"]
    note = (
        f"A whole process, from its start to its end; medians of {ROUNDS}, 95 documents, load "
        f"{os.getloadavg()[0]:.1f}."
    )
    results.append(f"## Serving: a question from the command line\n\n{table(header, rows)}\n\n{note}")


def _ingest(folder: Path, embedder: str) -> Path:
    documents, index = folder / "documents", folder / "index"
    documents.mkdir(parents=True)
    write_household(documents)
    command = [sys.executable, "-m", "lince_rag.cli.app", "ingest", str(documents), "--index", str(index)]
    subprocess.run([*command, "--embeddings", embedder], check=True, capture_output=True)
    return index


def _client(url: str, until: float, number: int) -> list[tuple[int, float]]:
    seen: list[tuple[int, float]] = []
    with httpx.Client(timeout=120) as client:
        while time.monotonic() < until:
            started = time.monotonic()
            body = {"question": QUESTIONS[(number + len(seen)) % len(QUESTIONS)]}
            response = client.post(f"{url}/v1/ask", json=body)
            seen.append((response.status_code, 1000 * (time.monotonic() - started)))
            if response.status_code != 200:
                time.sleep(float(response.headers["retry-after"]))
    return seen


def _ask(url: str, question: str) -> tuple[int, str]:
    response = httpx.post(f"{url}/v1/ask", json={"question": question}, timeout=120)
    return response.status_code, response.text


def _command(index: Path) -> float:
    command = [sys.executable, "-m", "lince_rag.cli.app", "ask", QUESTIONS[0], "--index", str(index)]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def _process_of(url: str) -> int:
    port = url.rpartition(":")[2]
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                arguments = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"serve" in arguments and port.encode() in arguments:
                return int(folder.name)
    raise RuntimeError(f"No process serves {url}.")


def _memory(process: int) -> int:
    """Resident MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) // 1024
