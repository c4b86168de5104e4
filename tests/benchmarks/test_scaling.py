"""How an index grows: generated text, the hashed embedder, an index in a folder and one on servers beside it.

The sizes are those up to the number in the environment variable ``LINCE_BENCH_CHUNKS`` (300,000 if it is not set;
1,000,000 takes hours). Each form has a process of its own, whose memory is measured; the servers are apart.
"""

import json
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import pytest

from lince_rag.index.lexical import LexicalIndex
from lince_rag.index.storage import folder_bytes
from lince_rag.text.words import terms, terms_line
from tests.benchmarks.tables import table
from tests.database_servers import database_servers, postgresql, postgresql_programs

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


def write_files(folder: Path, sizes: Sequence[int] = SIZES) -> None:
    """Write text that makes the next size with each folder, and questions about facts of the first one."""
    source = random.Random(7)
    words = vocabulary(source)
    source.shuffle(words)
    # Few words are frequent, as in any language.
    weights = [1 / (rank + 10) for rank in range(len(words))]
    questions, done = [], 0
    for number, size in enumerate(sizes):
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


TERMS: Final = 30_000

# BM25 over rows of (term, chunk, count), which the database adds up.
ROWS_QUERY: Final = """
SELECT p.chunk, sum(w.idf * p.count * 2.2 / (p.count + 1.2 * (0.25 + 0.75 * c.length / %(average)s))) AS score
FROM unnest(%(terms)s::text[], %(idfs)s::float8[]) AS w(term, idf)
JOIN postings p USING (term) JOIN lengths c USING (chunk) GROUP BY p.chunk ORDER BY score DESC LIMIT 50
"""
GIN_QUERY: Final = (
    "SELECT chunk FROM vectors, to_tsquery('simple', %(query)s) q WHERE terms @@ q"
    " ORDER BY ts_rank(terms, q) DESC LIMIT 50"
)


@pytest.mark.skipif(postgresql_programs() is None, reason="PostgreSQL's server is not installed")
def test_terms_in_postgresql_and_in_a_copy(tmp_path: Path, results: list[str]) -> None:
    """Three places for the terms of a shared index: what a question costs, and how much they take."""
    import psycopg

    write_files(tmp_path / "texts", [TERMS])
    questions = [each["question"] for each in json.loads((tmp_path / "texts" / "questions.json").read_text())[:30]]
    files = sorted((tmp_path / "texts").rglob("*.txt"))
    found = [terms_line(text, "es") for path in files for text in path.read_text().split("\n\n")]
    copy = LexicalIndex(tmp_path / "lexical")
    copy.write((str(number), line) for number, line in enumerate(found))
    rows = [["tantivy, on each machine", *spans(lambda question: copy.search(question, "es", 50), questions)]]
    rows[0].append(f"{folder_bytes(copy.folder) / 2**20:,.0f}")
    with postgresql() as address, psycopg.connect(address, autocommit=True) as connection:
        connection.execute("CREATE TABLE postings (term TEXT, chunk INT, count INT)")
        connection.execute("CREATE TABLE lengths (chunk INT PRIMARY KEY, length INT)")
        connection.execute("CREATE TABLE vectors (chunk INT, terms TSVECTOR)")
        cursor = connection.cursor()
        with cursor.copy("COPY postings FROM STDIN") as into:
            for number, line in enumerate(found):
                for term, count in Counter(line.split()).items():
                    into.write_row((term, number, count))
        with cursor.copy("COPY lengths FROM STDIN") as into:
            for number, line in enumerate(found):
                into.write_row((number, len(line.split())))
        cursor.executemany(
            "INSERT INTO vectors VALUES (%s, array_to_tsvector(%s))",
            [(number, sorted(set(line.split()))) for number, line in enumerate(found)],
        )
        for statement in (
            "CREATE INDEX ON postings (term) INCLUDE (chunk, count)",
            "CREATE INDEX ON vectors USING GIN (terms)",
            "VACUUM ANALYZE",
        ):
            connection.execute(statement)
        average = sum(len(line.split()) for line in found) / len(found)

        def by_rows(question: str) -> None:
            wanted = sorted(set(terms(question, "es")))
            idfs = copy.idf(wanted)
            values = {"terms": wanted, "idfs": [idfs[term] for term in wanted], "average": average}
            assert connection.execute(ROWS_QUERY, values).fetchall()

        def by_gin(question: str) -> None:
            query = " | ".join(f"'{term}'" for term in sorted(set(terms(question, "es"))))
            assert connection.execute(GIN_QUERY, {"query": query}).fetchall()

        for name, ask, tables in (
            ("PostgreSQL, a row for each term, BM25 in SQL", by_rows, ("postings", "lengths")),
            ("PostgreSQL, GIN and ts_rank (no BM25)", by_gin, ("vectors",)),
        ):
            size = sum(
                connection.execute("SELECT pg_total_relation_size(%s::regclass)", [each]).fetchone()[0]  # type: ignore[index]
                for each in tables
            )
            rows.append([name, *spans(ask, questions), f"{size / 2**20:,.0f}"])
    results.append(
        f"## Where the terms of a shared index are\n\n{TERMS:,} chunks of about 270 characters, {len(questions)}"
        " questions, 50 hits.\n\n" + table(["place", "p50 (ms)", "p95 (ms)", "MiB"], rows)
    )


def spans(ask: Callable[[str], object], questions: list[str]) -> list[str]:
    """The median and the 95th percentile of the milliseconds of some questions, asked once before."""
    times = []
    for question in questions:
        ask(question)
        started = time.perf_counter()
        ask(question)
        times.append(1000 * (time.perf_counter() - started))
    return [f"{median(times):.1f}", f"{quantiles(times, n=20)[-1]:.1f}"]


def test_answers_of_many_shards(results: list[str]) -> None:
    """A question that asks every shard waits for the slowest: simulated with the times of one shard."""
    source = random.Random(3)
    # Of one shard: a log-normal time with the median 20 ms and the 95th percentile 60 ms.
    spread = math.log(60 / 20) / 1.645

    def shard() -> float:
        return 20 * math.exp(source.gauss(0, spread))

    rows = []
    for shards in (1, 3, 10, 30, 100, 300):
        plain = sorted(max(shard() for _ in range(shards)) for _ in range(2_000))
        # Asked a second time after 60 ms, the first answer counts.
        hedged = sorted(
            max(min(first, 60 + shard()) if (first := shard()) > 60 else first for _ in range(shards))
            for _ in range(2_000)
        )
        rows.append([shards, *(f"{each[place]:.0f}" for each in (plain, hedged) for place in (1_000, 1_980))])
    results.append(
        "## Questions to many shards\n\nSimulated: each shard answers in 20 ms (median), 60 ms (95th percentile),"
        " independently of the others.\n\n"
        + table(["shards", "p50 (ms)", "p99 (ms)", "p50, asked again after 60 ms", "p99, asked again"], rows)
    )
