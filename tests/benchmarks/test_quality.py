"""Retrieval and answers on XQuAD-es and FaQuAD, through the command line and the public names only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lince_rag import ChatLince, Index, create_rag_chain

from .conftest import table
from .squad import Dataset, load, measure_answers, measure_retrieval

FILES = {"XQuAD-es": "xquad.es.json", "FaQuAD": "faquad.json"}

# recall@5 and MRR@10 of paragraphs that the embedded default must reach.
BARS = {"XQuAD-es": (0.985, 0.955), "FaQuAD": (0.975, 0.89)}


@pytest.fixture(scope="module")
def corpora(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Dataset, Path]]:
    """Each data set, and an index of its paragraphs that `lince-rag ingest` made."""
    folder = tmp_path_factory.mktemp("quality")
    corpora = {}
    for name, file in FILES.items():
        dataset = load(data / file)
        index = folder / f"{file}.index"
        command = ["ingest", str(dataset.write(folder / file)), "--index", str(index)]
        subprocess.run([sys.executable, "-m", "lince_rag.cli", *command], check=True, env=os.environ)
        corpora[name] = (dataset, index)
    return corpora


def test_retrieval(corpora: dict[str, tuple[Dataset, Path]], results: list[str]) -> None:
    rows: list[list[object]] = []
    reached = {}
    for name, (dataset, folder) in corpora.items():
        with Index.open(folder, create=False) as index:
            for label, weight in (("default", None), ("BM25 only", 1.0), ("vectors only", 0.0)):
                found = measure_retrieval(index.as_retriever(lexical_weight=weight), dataset.questions)
                rows.append([name, label, found["recall"], found["mrr"], f"{found['milliseconds']:.1f}"])
                reached[name, label] = (found["recall"], found["mrr"])
    header = ["data", "retriever", "recall@5", "MRR@10", "median ms"]
    results.append("## Retrieval: paragraphs, embedded embedder\n\n" + table(header, rows))
    for name, (recall, reciprocal) in BARS.items():
        assert reached[name, "default"][0] >= recall
        assert reached[name, "default"][1] >= reciprocal


def test_answers(corpora: dict[str, tuple[Dataset, Path]], results: list[str]) -> None:
    rows: list[list[object]] = []
    for name, (dataset, folder) in corpora.items():
        with Index.open(folder, create=False) as index:
            found = measure_answers(create_rag_chain(ChatLince(), index.as_retriever()), dataset.questions)
        shares = [found["contains"], found["cites"], found["abstains"]]
        rows.append([name, *shares, f"{found['characters']:.0f}", f"{found['milliseconds']:.1f}"])
    header = [
        "data",
        "contains a gold answer",
        "cites the gold paragraph",
        "wrongly abstains",
        "characters",
        "median ms",
    ]
    results.append("## Answers: the whole chain, extractive engine\n\n" + table(header, rows))


def test_abstention(data: Path, tmp_path_factory: pytest.TempPathFactory, results: list[str]) -> None:
    """Every other article is indexed; the questions about the others have no answer there."""
    rows: list[list[object]] = []
    for name, file in FILES.items():
        dataset = load(data / file)
        for half in (0, 1):
            folder = tmp_path_factory.mktemp("abstention")
            kept = [number for number, article in enumerate(dataset.articles) if article % 2 == half]
            for number in kept:
                (folder / f"{number}.txt").write_text(dataset.paragraphs[number], encoding="utf-8")
            answerable = [question for question in dataset.questions if question.paragraph in set(kept)]
            foreign = [question for question in dataset.questions if question.article % 2 != half]
            with Index.open(folder / "index") as index:
                index.ingest(folder)
                chain = create_rag_chain(ChatLince(), index.as_retriever())
                wrong = measure_answers(chain, answerable)["abstains"]
                right = measure_answers(chain, foreign)["abstains"]
            rows.append([f"{name}, {'even' if half == 0 else 'odd'} articles", wrong, right])
    header = ["index", "abstains on answerable questions", "abstains on questions about the other articles"]
    results.append("## Abstention\n\n" + table(header, rows))
