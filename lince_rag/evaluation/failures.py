"""What went wrong with a question, and the questions with which it went most wrong."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from lince_rag.evaluation.metrics import cites_gold, holds_answer, word_overlap
from lince_rag.evaluation.records import Record

Failure = Literal["not_retrieved", "wrongly_abstained", "not_cited", "wrong_sentence", "answered_unanswerable"]

FAILURES: Final[tuple[Failure, ...]] = (
    "not_retrieved",
    "wrongly_abstained",
    "not_cited",
    "wrong_sentence",
    "answered_unanswerable",
)


def failure_of(record: Record, k: int) -> Failure | None:
    """Tell what went wrong with a question: the first thing that did, in the order of the chain.

    Args:
        record: The question.
        k: Chunks that the chain reads.

    Returns:
        - ``not_retrieved``: the place with the answer is not among the chunks that the chain reads;
        - ``wrongly_abstained``: it is, and the answer says that the documents do not hold it;
        - ``not_cited``: it is, and the answer lacks the right text and cites other places;
        - ``wrong_sentence``: the answer cites the right place (or nobody says which that is) and lacks the text;
        - ``answered_unanswerable``: the documents do not hold the answer, and there is one;
        - ``None``: an answer with the right text, or a right abstention.
    """
    if not record.answerable:
        return None if record.abstained else "answered_unanswerable"
    if holds_answer(record):
        return None
    if record.located and not any(passage.gold for passage in record.retrieved[:k]):
        return "not_retrieved"
    if record.abstained:
        return "wrongly_abstained"
    return "wrong_sentence" if cites_gold(record) or not record.located else "not_cited"


def count_failures(records: Iterable[Record], k: int) -> dict[Failure, int]:
    """Count the questions of each kind of failure.

    Args:
        records: The questions.
        k: Chunks that the chain reads.
    """
    counts = Counter(failure_of(record, k) for record in records)
    return {failure: counts[failure] for failure in FAILURES}


def worst_failures(records: Sequence[Record], k: int, limit: int) -> list[tuple[Failure, list[Record]]]:
    """Return the worst questions of each kind of failure.

    The worst answers have the fewest words of the right one, and of those the most support: wrong and sure of it.
    The worst abstentions have the least support: furthest from being answered.

    Args:
        records: The questions.
        k: Chunks that the chain reads.
        limit: Questions of each kind at most.

    Returns:
        The kinds that occur, each with its questions, worst first.
    """
    kinds: dict[Failure, list[Record]] = {failure: [] for failure in FAILURES}
    for record in records:
        if failure := failure_of(record, k):
            kinds[failure].append(record)

    def badness(record: Record) -> tuple[float, float]:
        confidence = record.confidence or 0.0
        return word_overlap(record), confidence if record.abstained else -confidence

    return [(kind, sorted(found, key=badness)[:limit]) for kind, found in kinds.items() if found]
