"""What judges candidate answers: reward models and documents, which rank them, and guardrails, which drop them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from langchain_core.documents import Document

from lince_rag.chain.citations import attribute
from lince_rag.text.language import Language
from lince_rag.text.sentences import sentence_spans

logger = logging.getLogger(__name__)


@runtime_checkable
class PairScorer(Protocol):
    """What ranks answers: a reward model, or any LangChain cross-encoder."""

    def score(self, pairs: list[tuple[str, str]], /) -> list[float]:
        """Score (instruction, answer) pairs; more is better."""


@runtime_checkable
class TextScorer(Protocol):
    """What keeps answers back; one with a ``boundary`` says from which score on an answer may pass."""

    def score(self, texts: list[str], /) -> list[float]:
        """Score answers; more is better."""


Ranking = Literal["grounding"] | PairScorer


@dataclass(frozen=True)
class Task:
    """What answers are judged by.

    Attributes:
        question: The question or instruction.
        documents: What the answers should rest on.
        language: The language they should be in.
    """

    question: str
    documents: Sequence[Document]
    language: Language


def guard(guardrail: TextScorer, threshold: float | None, answers: list[str]) -> tuple[list[float], list[int]]:
    """Score answers and tell which of them pass.

    Args:
        guardrail: What scores them.
        threshold: The least score that passes; ``None`` takes the guardrail's ``boundary``, or 0.
        answers: The answers.

    Returns:
        Their scores, and the positions of those that pass.
    """
    least = getattr(guardrail, "boundary", 0.0) if threshold is None else threshold
    scores = [float(score) for score in guardrail.score(answers)]
    return scores, [at for at, score in enumerate(scores) if score >= least]


def rank(ranking: Ranking, task: Task, answers: list[str]) -> list[tuple[float, int]]:
    """Score answers.

    Args:
        ranking: ``"grounding"``, or a reward model.
        task: What they are judged by.
        answers: The answers.

    Returns:
        The score of each, and what counts between equal scores; more is better.
    """
    if not answers:
        return []
    if ranking == "grounding":
        if not task.documents and len(answers) > 1:
            logger.warning(
                "There are no documents to rank %d answers by: the first is as good as any.", len(answers)
            )
        return [_grounding(answer, task) for answer in answers]
    return [(float(score), 0) for score in ranking.score([(task.question, answer) for answer in answers])]


def _grounding(answer: str, task: Task) -> tuple[float, int]:
    """Return the share of an answer's sentences that the documents support, and how many citations that makes."""
    citations, _ = attribute(answer, task.documents, task.language)
    sentences = len(sentence_spans(answer, task.language))
    return (len(citations) / sentences if sentences else 0.0), len(citations)
