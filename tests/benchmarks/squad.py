"""Reading SQuAD-format files, and measuring retrieval and answers on them."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lince_rag.rag import RagChain
from lince_rag.retrievers import HybridRetriever


@dataclass(frozen=True)
class Question:
    """A question, the number of its article and of its paragraph, and the answers that count."""

    text: str
    article: int
    paragraph: int
    gold: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Paragraphs, each with the number of its article, and questions about them."""

    paragraphs: list[str]
    articles: list[int]
    questions: list[Question]

    def write(self, folder: Path) -> Path:
        """Write every paragraph as a text file of its own, named by its number."""
        folder.mkdir(parents=True)
        for number, text in enumerate(self.paragraphs):
            (folder / f"{number}.txt").write_text(text, encoding="utf-8")
        return folder


def load(path: Path) -> Dataset:
    """Read a SQuAD-format file; equal paragraphs count once."""
    paragraphs: dict[str, int] = {}
    articles: list[int] = []
    questions = []
    for article, entry in enumerate(json.loads(path.read_text(encoding="utf-8"))["data"]):
        for paragraph in entry["paragraphs"]:
            number = paragraphs.setdefault(paragraph["context"], len(paragraphs))
            if number == len(articles):
                articles.append(article)
            for asked in paragraph["qas"]:
                gold = tuple(answer["text"].strip() for answer in asked["answers"])
                questions.append(Question(asked["question"], article, number, gold))
    return Dataset(list(paragraphs), articles, questions)


def paragraph_of(source: str) -> int:
    """The paragraph that a file of ``Dataset.write`` holds."""
    return int(Path(source).stem)


def measure_retrieval(retriever: HybridRetriever, questions: Sequence[Question]) -> dict[str, float]:
    """Recall@5 and MRR@10 of paragraphs, and the median milliseconds of a question."""
    recall = reciprocal = 0.0
    times = []
    for question in questions:
        started = time.perf_counter()
        found = retriever.invoke(question.text, k=10)
        times.append(time.perf_counter() - started)
        ranks = [paragraph_of(chunk.metadata["source"]) for chunk in found]
        recall += question.paragraph in ranks[:5]
        distinct = list(dict.fromkeys(ranks))
        reciprocal += 1 / (distinct.index(question.paragraph) + 1) if question.paragraph in distinct else 0
    total = len(questions)
    return {"recall": recall / total, "mrr": reciprocal / total, "milliseconds": 1000 * median(times)}


def measure_answers(chain: RagChain, questions: Sequence[Question]) -> dict[str, float]:
    """Shares of answers that hold a gold answer, cite its paragraph, abstain; their length and time."""
    contains = cites = abstains = characters = 0
    times = []
    for question in questions:
        started = time.perf_counter()
        answer = chain.invoke(question.text)
        times.append(time.perf_counter() - started)
        contains += any(gold in answer.text for gold in question.gold)
        cites += any(paragraph_of(citation.source) == question.paragraph for citation in answer.citations)
        abstains += answer.abstained
        characters += len(answer.text)
    total = len(questions)
    return {
        "contains": contains / total,
        "cites": cites / total,
        "abstains": abstains / total,
        "characters": characters / total,
        "milliseconds": 1000 * median(times),
    }
