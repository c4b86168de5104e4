"""What a server costs an embedder: the same model here and behind HTTP, in batches and one by one."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from lince_rag import LinceEmbeddings
from tests.benchmarks.tables import installed, table
from tests.integration_tests.embedder_samples import save_tiny_embedder
from tests.scoring_servers import scoring_server

PASSAGES: Final = 256
ROUNDS: Final = 7
PACKAGES: Final = ["sentence-transformers", "torch", "httpx"]


def test_overhead_for_a_passage(tmp_path: Path, results: list[str]) -> None:
    folder = save_tiny_embedder(tmp_path / "multilingual-e5-tiny")
    texts = [f"El contrato {number} de alquiler vence en mayo, o en {number}." for number in range(PASSAGES)]
    local = LinceEmbeddings(folder, device="cpu")
    rows: list[list[object]] = []
    with scoring_server("tei", embedder=folder) as tei, scoring_server("vllm", embedder=folder) as vllm:
        calls: dict[str, Callable[[], Any]] = {
            "in this process, batches of 32": partial(local.embed_documents, texts),
            "in this process, one by one": partial(_one_by_one, local, texts),
        }
        for name, server in (("TEI (8 in a request)", tei), ("vLLM (32 in a request)", vllm)):
            remote = LinceEmbeddings(folder, base_url=server.base_url)
            kept = LinceEmbeddings(folder, base_url=server.base_url, cache=tmp_path / f"{name}.db")
            calls[f"as {name}, batches"] = partial(remote.embed_documents, texts)
            calls[f"as {name}, one by one"] = partial(_one_by_one, remote, texts)
            calls[f"as {name}, all in the cache"] = partial(kept.embed_documents, texts)
        clock: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(ROUNDS + 1):
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                if number:
                    clock[name].append(1000 * (time.perf_counter() - started) / PASSAGES)
    for name, times in clock.items():
        base = clock["in this process, " + ("one by one" if "one by one" in name else "batches of 32")]
        added = median(mine - theirs for mine, theirs in zip(times, base, strict=True))
        rows.append([name, median(times), min(times), "" if "process" in name else f"{added:+.3f}"])
    note = (
        f"{PASSAGES} short passages, a BERT of two layers of 32, one thread, {ROUNDS} rounds in turns; added is"
        " the median of each round's difference. The model takes next to nothing, so it is what HTTP, JSON and the"
        " checks cost. The server is the tests' own, in the same process; 4 requests at once. Load"
        f" {os.getloadavg()[0]:.1f}. {installed(PACKAGES)}."
    )
    header = ["embedder", "ms for a passage", "fastest ms", "added ms"]
    results.append(f"## Embedding on a server: overhead\n\n{table(header, rows)}\n\n{note}")


def _one_by_one(embeddings: LinceEmbeddings, texts: list[str]) -> None:
    for text in texts:
        embeddings.embed_documents([text])
