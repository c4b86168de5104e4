"""How an index grows: generated text, the hashed embedder, an index in a folder and one on servers beside it.

The sizes are those up to the number in the environment variable ``LINCE_BENCH_CHUNKS`` (300,000 if it is not set;
1,000,000 takes hours). Each form has a process of its own, whose memory is measured; the servers are apart.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.benchmarks.tables import table
from tests.database_servers import database_servers, postgresql_programs

SIZES: Final = [
    size
    for size in (10_000, 30_000, 100_000, 300_000, 1_000_000)
    if size <= int(os.environ.get("LINCE_BENCH_CHUNKS", "300000"))
]
CHUNK_CHARACTERS: Final = 400
CHUNKS_PER_FILE: Final = 20

SYLLABLES: Final = [
    "ca",
    "lo",
    "mi",
    "ter",
    "ra",
    "so",
    "pen",
    "du",
    "gra",
    "fil",
    "no",
    "ve",
    "cu",
    "bra",
    "tin",
    "ol",
]

FORM: Final = """
import json, resource, sys, time
from pathlib import Path
from statistics import median, quantiles
from lince_rag import Index
from lince_rag.documents.chunking import ChunkingSettings

index, folder, characters = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
questions = json.loads((folder / "questions.json").read_text())
with Index.open(index, embeddings="embedded", chunking=ChunkingSettings(max_characters=characters)) as opened:
    total = 0
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        begun = time.perf_counter()
        chunks = opened.ingest(part).chunks
        seconds = time.perf_counter() - begun
        total += chunks
        retriever = opened.as_retriever(k=5)
        begun = time.perf_counter()
        retriever.invoke(questions[0]["question"])
        first, times, right = time.perf_counter() - begun, [], 0
        for each in questions[:60]:
            begun = time.perf_counter()
            found = retriever.invoke(each["question"])
            times.append(time.perf_counter() - begun)
            right += any(each["answer"] in chunk.page_content for chunk in found)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({
            "chunks": total, "rate": chunks / seconds, "first": first, "p50": median(times),
            "p95": quantiles(times, n=20)[-1], "right": right / 60, "memory": memory,
            "bytes": opened.summary()["bytes"] / 2**20,
        }), flush=True)
"""

COPY: Final = """
import json, sys, time
from lince_rag import Index
with Index.open(sys.argv[1]) as opened:
    begun = time.perf_counter()
    opened.as_retriever().invoke("¿Dónde está la casa?")
    print(json.dumps(time.perf_counter() - begun))
"""


def vocabulary(source: random.Random) -> list[str]:
    return sorted({"".join(source.choices(SYLLABLES, k=source.randint(2, 4))) for _ in range(20_000)})


def write_files(folder: Path) -> None:
    """Write text that makes the next size with each folder, and questions about facts of the first one."""
    source = random.Random(7)
    words = vocabulary(source)
    source.shuffle(words)
    # Few words are frequent, as in any language.
    weights = [1 / (rank + 10) for rank in range(len(words))]
    questions, done = [], 0
    for number, size in enumerate(SIZES):
        part = folder / f"part{number}"
        part.mkdir(parents=True)
        for file in range((size - done) // CHUNKS_PER_FILE):
            paragraphs = []
            for place in range(CHUNKS_PER_FILE):
                fact = f"finca{number}x{file}x{place}"
                sentences = [" ".join(source.choices(words, weights, k=11)).capitalize() + "." for _ in range(3)]
                paragraphs.append(f"La {fact} tiene {source.randint(10, 9999)} olivos. " + " ".join(sentences))
            (part / f"{file}.txt").write_text("\n\n".join(paragraphs))
            if number == 0 and len(questions) < 80:
                place = source.randrange(CHUNKS_PER_FILE)
                name = f"finca0x{file}x{place}"
                questions.append({"question": f"¿Cuántos olivos tiene la {name}?", "answer": f"{name} tiene"})
        done = size
    (folder / "questions.json").write_text(json.dumps(questions))


def run(code: str, *options: object) -> list[Any]:
    command = [sys.executable, "-c", code, *map(str, options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(postgresql_programs() is None, reason="PostgreSQL's server is not installed")
def test_growth_in_a_folder_and_on_servers(tmp_path: Path, results: list[str]) -> None:
    write_files(tmp_path / "texts")
    rows = []
    with database_servers(tmp_path / "servers") as servers:
        address = servers.index("growth", tmp_path / "replica")
        for form, index in (("folder", tmp_path / "index"), ("servers", address)):
            for found in run(FORM, index, tmp_path / "texts", CHUNK_CHARACTERS):
                assert found["right"] > 0.5
                rows.append(
                    [
                        f"{found['chunks']:,}", form, f"{found['rate']:,.0f}", f"{1000 * found['p50']:.0f}",
                        f"{1000 * found['p95']:.0f}", f"{1000 * found['first']:.0f}", f"{found['memory']:,.0f}",
                        f"{found['bytes']:,.0f}", f"{found['right']:.2f}",
                    ]
                )  # fmt: skip
        (copying,) = run(COPY, servers.index("growth", tmp_path / "another"))
    rows.sort(key=lambda row: int(row[0].replace(",", "")))
    header = [
        "chunks", "form", "ingested a second", "question p50 (ms)", "p95", "first after (ms)", "memory (MiB)",
        "disk (MiB)", "passage in the top five",
    ]  # fmt: skip
    results.append(
        "## Growth\n\nGenerated text, chunks of up to 400 characters, hashed embedder, 60 questions."
        " Memory is that of the process that ingests and asks, without its reading workers and without PostgreSQL"
        " and Chroma. On servers, the disk is that of PostgreSQL and of the copy of the terms.\n\n"
        + table(header, rows)
        + f"\n\nAnother machine's first question at the last size copies the terms: {copying:.0f} s."
    )
