"""Reading SQuAD-format files, and measuring answers over other packages' retrievers on them."""

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from langchain_core.documents import Document

from lince_rag.chain.rag import RagChain
from lince_rag.evaluation.metrics import contains_answer, token_f1
from lince_rag.text.language import Language

# Paragraphs of a file that ``write_folder`` writes; each file gives about four chunks of 1,200 characters.
PARAGRAPHS_OF_A_FILE: Final = 5


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


def rank_of(chunks: Sequence[Document], paragraph: int) -> int:
    """The rank of a paragraph, or of one with its text, among those of chunks, each counted once; 0 if missing."""
    copies = {chunk.metadata["source"]: chunk.metadata.get("also_in", []) for chunk in reversed(chunks)}
    ranked = dict.fromkeys(chunk.metadata["source"] for chunk in chunks)
    found = [{paragraph_of(source) for source in (each, *copies[each])} for each in ranked]
    return next((rank for rank, numbers in enumerate(found, 1) if paragraph in numbers), 0)


def measure_answers(chain: RagChain, questions: Sequence[Question], language: Language) -> dict[str, float]:
    """Shares of answers that hold a gold answer, cite its paragraph, abstain; F1, length and time."""
    sums = dict.fromkeys(("contains", "f1", "precision", "cites", "abstains", "characters"), 0.0)
    times = []
    for question in questions:
        started = time.perf_counter()
        answer = chain.invoke(question.text)
        times.append(time.perf_counter() - started)
        sums["abstains"] += answer.abstained
        if answer.abstained:
            continue
        right = [paragraph_of(citation.source) == question.paragraph for citation in answer.citations]
        sums["contains"] += contains_answer(answer.text, question.gold, language)
        sums["f1"] += token_f1(answer.short or answer.text, question.gold, language)
        sums["precision"] += sum(right) / max(len(right), 1)
        sums["cites"] += any(right)
        sums["characters"] += len(answer.text)
    total, answered = len(questions), max(len(questions) - sums["abstains"], 1)
    over_answers = {name: sums[name] / answered for name in ("precision", "characters")}
    return {
        **{name: value / total for name, value in sums.items()},
        **over_answers,
        "milliseconds": 1000 * median(times),
    }


def write_folder(data: Path, folder: Path, files: int) -> int:
    """Write files of paragraphs of both data sets, each with words of its own; return their characters."""
    generator = random.Random(files)
    paragraphs = [text for name in ("xquad.es.json", "faquad.json") for text in load(data / name).paragraphs]
    folder.mkdir()
    size = 0
    for number in range(files):
        chosen = generator.choices([text for text in paragraphs if text.strip()], k=PARAGRAPHS_OF_A_FILE)
        text = "\n\n".join(f"{paragraph} (Nota {generator.getrandbits(40):x}.)" for paragraph in chosen)
        (folder / f"{number:05}.md").write_text(text, encoding="utf-8")
        size += len(text)
    return size
