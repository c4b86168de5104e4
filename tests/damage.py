"""Damages of an index: each file cut to half, zeroed, overwritten in the middle or deleted; what happens then."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice, product
from pathlib import Path

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from lince_rag import Index, LinceEmbeddings, LinceError

# Chroma writes its graph to files after a thousand vectors; the rest stays in its database.
DOCUMENTS = 1_150
KINDS = ("cut to half", "zeroed", "overwritten", "deleted")
QUESTIONS = ("¿Cuántos olivos tiene la finca 7?", "¿Quién riega el pozo de la finca 1101?", "lunes cabras 640")

Answers = list[list[tuple[str, str]]]

_WORDS = [
    "olivos",
    "pozo",
    "alquiler",
    "contrato",
    "lunes",
    "marzo",
    "ascensor",
    "caldera",
    "agua",
    "gato",
    "cabras",
    "tomate",
    "obra",
    "acta",
]


class SmallEmbeddings(Embeddings):
    """The embedded embedder folded to 32 numbers, so that building an index again takes little time."""

    model = "small"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return _embed(text)


@cache
def _embed(text: str) -> list[float]:
    vector = np.asarray(LinceEmbeddings().embed_query(text)).reshape(32, 32).sum(axis=0)
    # A text without terms has no length.
    return (vector / (np.linalg.norm(vector) or 1.0)).tolist()


@dataclass
class Outcome:
    """What happened to a damaged index."""

    file: str
    damage: str
    # The same answers as before, "other answers", or the message of the error.
    asking: str
    # "ok", what is wrong, or the message of the error.
    status: str
    # Whether the repaired index has the same chunks and answers; empty if there was nothing to repair.
    repaired: str


def make_index(folder: Path) -> None:
    """Make an index with files of every kind, also those that tantivy writes for deleted chunks."""
    documents = [
        Document(
            f"La finca {number} tiene {_WORDS[number % 14]} y {_WORDS[number * 5 % 13]}, {_WORDS[number % 11]}.",
            metadata={"source": f"finca-{number:04}"},
        )
        for number in range(DOCUMENTS)
    ]
    with Index.open(folder, embeddings=SmallEmbeddings()) as index:
        index.ingest(documents)
        index.delete("finca-0003")


def answers(index: Index) -> Answers:
    """What both sides and their fusion find for every question, in order.

    Without the scores: Chroma adds the vectors that are only in its database to the graph each time it opens it,
    not always in the same way; and tantivy's scores count a deleted chunk, which a new index never had.
    """
    return [
        [(str(chunk.id), chunk.page_content) for chunk in found]
        for weight in (0.0, 0.5, 1.0)
        for found in map(index.as_retriever(k=5, lexical_weight=weight).invoke, QUESTIONS)
    ]


def files_of(folder: Path) -> dict[str, Path]:
    """One file of each kind in an index, by a name without numbers; lock files hold nothing."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.stat().st_size:
            relative = file.relative_to(folder)
            name = f"*{relative.suffix}" if len(relative.name) > 30 else relative.name
            parent = "chroma/graph" if len(relative.parts) == 3 else str(relative.parent)
            found[f"{parent}/{name}".removeprefix("./")] = relative
    return found


def damage(file: Path, kind: str) -> None:
    content = bytearray(file.read_bytes())
    if kind == "deleted":
        file.unlink()
    elif kind == "cut to half":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "zeroed":
        file.write_bytes(bytes(len(content)))
    else:
        length = max(min(len(content) // 3, 6_000), 1)
        first = (len(content) - length) // 2
        content[first : first + length] = (b"garbage " * 1_000)[:length]
        file.write_bytes(content)


def outcomes(sound: Path, scratch: Path, step: int = 1) -> Iterator[Outcome]:
    """Damage a copy of an index in every way, or in every ``step``-th, ask it, check it and repair it."""
    with Index.open(sound, embeddings=SmallEmbeddings()) as index:
        expected, ids = answers(index), index.ledger.chunk_ids()
        assert index.verify().ok
    for (name, relative), kind in islice(product(files_of(sound).items(), KINDS), 0, None, step):
        copy = scratch / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(sound, copy)
        damage(copy / relative, kind)
        asking = _ask(copy, expected)
        status, repaired = _check(copy, expected, ids)
        yield Outcome(name, kind, *(text.replace(str(copy), "INDEX") for text in (asking, status, repaired)))


def assert_true(outcome: Outcome) -> None:
    """Assert what must hold after any damage."""
    if outcome.status == "ok":
        assert outcome.asking == "same answers", outcome
    elif outcome.file.startswith("ledger"):
        assert outcome.repaired == "no", outcome
        assert "restore it from a backup" in outcome.status or outcome.status.startswith("ledger: "), outcome
    else:
        assert outcome.repaired == "exactly", outcome


def _ask(folder: Path, expected: Answers) -> str:
    try:
        with Index.open(folder, embeddings=SmallEmbeddings()) as index:
            return "same answers" if answers(index) == expected else "other answers"
    except LinceError as error:
        return str(error)


def _check(folder: Path, expected: Answers, ids: set[str]) -> tuple[str, str]:
    try:
        with Index.open(folder, embeddings=SmallEmbeddings()) as index:
            report = index.verify()
            if report.ok:
                return "ok", ""
            status = report.damaged_ledger or report.damaged_terms or report.damaged_vectors or "chunks missing"
            repaired = index.verify(repair=True)
            if report.damaged_ledger:
                return f"ledger: {status}", "no" if not repaired.repaired else "changed"
            same = repaired.repaired and answers(index) == expected and index.ledger.chunk_ids() == ids
            return status, "exactly" if same else "not exactly"
    except LinceError as error:
        return str(error), "no"
