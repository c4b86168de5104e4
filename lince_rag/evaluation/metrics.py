"""The metrics of an evaluation, calculated from its records, with confidence intervals."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lince_rag.evaluation.extras import load
from lince_rag.evaluation.records import Passage, Record
from lince_rag.text.language import Language

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 1000
SEED: Final = 7

# Numbers that a bootstrap holds in memory at a time.
_BATCH_NUMBERS: Final = 5_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure and how sure it is.

    Attributes:
        value: The figure; ``None`` where there was nothing to measure.
        low: Lower end of the 95% interval; ``None`` where there is none.
        high: Upper end.
        count: Questions it was measured on.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Estimate a mean, with a percentile bootstrap over the questions.

    Args:
        values: One number a question.

    Returns:
        The mean. Where all numbers are the same, the interval is that number.
    """
    import numpy as np

    if not values:
        return Estimate(None, None, None, 0)
    mean = float(np.mean(values))
    if len(set(values)) == 1:
        return Estimate(values[0], values[0], values[0], len(values))
    low, high = _interval((np.asarray(values, dtype=float),), np.mean)
    return Estimate(mean, low, high, len(values))


def quantile_estimate(values: Sequence[float], share: float) -> Estimate:
    """Return a quantile of numbers, without an interval: times depend on the machine, not on the questions."""
    import numpy as np

    value = float(np.quantile(values, share)) if values else None
    return Estimate(value, None, None, len(values))


def area_estimate(positive: Sequence[float], negative: Sequence[float]) -> Estimate:
    """Estimate the area under the ROC curve of a score, with a bootstrap that resamples both classes.

    Args:
        positive: Scores of those that should be high.
        negative: Scores of those that should be low.

    Returns:
        The area (0.5 is chance), without a value when a class is absent.
    """
    import numpy as np

    count = len(positive) + len(negative)
    if not positive or not negative:
        return Estimate(None, None, None, count)
    labels = [1] * len(positive) + [0] * len(negative)
    area = float(load("sklearn.metrics").roc_auc_score(labels, [*positive, *negative]))
    if min(len(positive), len(negative)) < 2:
        return Estimate(area, None, None, count)
    samples = (np.asarray(positive, dtype=float), np.asarray(negative, dtype=float))
    return Estimate(area, *_interval(samples, _areas), count)


def _areas(positive: Any, negative: Any, axis: int = -1) -> Any:
    """Areas of many resamples at once: the share of pairs in the right order, from the sum of ranks."""
    import numpy as np

    wins, losses = positive.shape[axis], negative.shape[axis]
    ranks = load("scipy.stats").rankdata(np.concatenate([positive, negative], axis=axis), axis=axis)
    total = np.take(ranks, np.arange(wins), axis=axis).sum(axis=axis)
    return (total - wins * (wins + 1) / 2) / (wins * losses)


def _interval(samples: tuple[Any, ...], statistic: Any) -> tuple[float, float]:
    import numpy as np

    found = (
        load("scipy.stats")
        .bootstrap(
            samples,
            statistic,
            n_resamples=RESAMPLES,
            batch=max(1, _BATCH_NUMBERS // sum(map(len, samples))),
            vectorized=True,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(SEED),
        )
        .confidence_interval
    )
    return float(found.low), float(found.high)


# Words that do not count, as in the evaluation of SQuAD.
ARTICLES: Final[Mapping[Language, frozenset[str]]] = {
    "es": frozenset({"el", "la", "los", "las", "lo", "un", "una", "unos", "unas"}),
    "pt": frozenset({"o", "a", "os", "as", "um", "uma", "uns", "umas"}),
    "en": frozenset({"a", "an", "the"}),
}


def normalise_answer(text: str, language: Language) -> str:
    """Put a text into lower case, without punctuation, symbols and articles, with single spaces.

    Args:
        text: An answer.
        language: The language whose articles are left out.

    Returns:
        The words that count; accents stay.
    """
    kept = "".join(character for character in text.lower() if unicodedata.category(character)[0] not in "PS")
    composed = unicodedata.normalize("NFC", kept)
    return " ".join(word for word in composed.split() if word not in ARTICLES[language])


def exact_match(prediction: str, answers: Iterable[str], language: Language) -> float:
    """Return 1 if a prediction is one of the answers that count, normalised, else 0."""
    said = normalise_answer(prediction, language)
    return float(any(said == normalise_answer(answer, language) for answer in answers))


def token_f1(prediction: str, answers: Iterable[str], language: Language) -> float:
    """Return the harmonic mean of word precision and word recall (0 to 1), against the answer that fits best."""
    said = normalise_answer(prediction, language).split()
    return max((_f1(said, normalise_answer(answer, language).split()) for answer in answers), default=0.0)


def contains_answer(text: str, answers: Iterable[str], language: Language) -> float:
    """Return 1 if one of the answers that count stands in a text, whole words and normalised, else 0."""
    said = f" {normalise_answer(text, language)} "
    wanted = [normalise_answer(answer, language) for answer in answers]
    return float(any(f" {answer} " in said for answer in wanted if answer))


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


# The ranks that are always reported, whatever the chain reads.
RECALL_DEPTH: Final = 5
RANKING_DEPTH: Final = 10


@dataclass(frozen=True)
class AbstentionCurve:
    """What abstaining below a threshold of support would cost, for every threshold.

    Attributes:
        threshold: The best one by Youden's J: answer where support is at least this.
        false_abstention: Share of answerable questions that it would abstain on.
        false_answer: Share of unanswerable questions that it would answer.
        points: (threshold, false abstention, false answer), highest threshold first.
    """

    threshold: float
    false_abstention: float
    false_answer: float
    points: tuple[tuple[float, float, float], ...]


def measure(records: Sequence[Record], k: int) -> dict[str, Estimate]:
    """Calculate every metric of a run.

    Args:
        records: The questions asked.
        k: Chunks that the chain reads.

    Returns:
        The metrics by name, each with a 95% interval but the times. What each one is, the functions say that they
        come from: ``ranking_metrics``, ``answer_metrics`` and ``abstention_metrics``.

    Raises:
        MissingExtraError: A package of the extra ``evaluation`` is not installed.
    """
    times = [record.milliseconds for record in records]
    return {
        **ranking_metrics(records, k),
        **answer_metrics(records),
        **abstention_metrics(records),
        "latency_p50_ms": quantile_estimate(times, 0.5),
        "latency_p95_ms": quantile_estimate(times, 0.95),
    }


def ranking_metrics(records: Sequence[Record], k: int) -> dict[str, Estimate]:
    """Judge the rankings, over the questions whose answer has a known place in the index.

    What is ranked are places, not chunks: all chunks of one paragraph (or document, where a question names
    documents) count once, at the rank of the first. Recall is the share of the places with the answer among
    those of the first chunks (5, and as many as the chain reads).

    Args:
        records: The questions asked.
        k: Chunks that the chain reads.

    Returns:
        ``recall@5``, ``recall@k``, ``mrr@10`` and ``ndcg@10``.
    """
    measures = load("ir_measures")
    located = [record for record in records if record.located]
    judged = {record.id: dict.fromkeys(record.units, 1) for record in located}

    def estimate(measure: Any, depth: int | None) -> Estimate:
        # A question without any result is not in the library's output: it scores 0.
        scores = dict.fromkeys(judged, 0.0)
        run = {record.id: _scored(record.retrieved[:depth]) for record in located}
        for score in measures.iter_calc([measure], judged, run) if judged else ():
            scores[score.query_id] = float(score.value)
        return mean_estimate(list(scores.values()))

    return {
        "recall@5": estimate(measures.R @ RECALL_DEPTH, RECALL_DEPTH),
        "recall@k": estimate(measures.R @ k, k),
        "mrr@10": estimate(measures.RR @ RANKING_DEPTH, None),
        "ndcg@10": estimate(measures.nDCG @ RANKING_DEPTH, None),
    }


def _scored(retrieved: Iterable[Passage]) -> dict[str, float]:
    """A ranking of places as falling scores, which is what the library takes."""
    places = list(dict.fromkeys(passage.unit for passage in retrieved))
    return {place: float(len(places) - rank) for rank, place in enumerate(places)}


def answer_metrics(records: Sequence[Record]) -> dict[str, Estimate]:
    """Judge the texts of the answers and what they rest on.

    Args:
        records: The questions asked.

    Returns:
        - ``exact_match``, ``f1`` (of ``short``, or the whole answer where there is none) and
          ``contains_answer`` (of the whole answer), over the answerable questions; an abstention scores 0.
        - ``citation_precision``: share of the citations of an answer that lie in a place with the answer, over
          the answers to questions with a known place; an answer without citations scores 0.
        - ``citation_recall``: share of those questions, answered or not, with at least one such citation.
        - ``groundedness``: share of all answers of which every sentence has a citation.
        - ``language_match``: share of all answers in the language of their question.
    """
    answerable = [record for record in records if record.answerable]
    located = [record for record in records if record.located]
    answered = [record for record in records if not record.abstained]
    cited = [record for record in located if not record.abstained]
    return {
        "exact_match": mean_estimate([_matching(exact_match, record) for record in answerable]),
        "f1": mean_estimate([_matching(token_f1, record) for record in answerable]),
        "contains_answer": mean_estimate([holds_answer(record) for record in answerable]),
        "citation_precision": mean_estimate([_precision(record) for record in cited]),
        "citation_recall": mean_estimate([float(cites_gold(record)) for record in located]),
        "groundedness": mean_estimate([float(record.grounded) for record in answered]),
        "language_match": mean_estimate([float(r.answer_language == r.language) for r in answered]),
    }


def holds_answer(record: Record) -> float:
    """Return 1 if the whole answer has one of the answers that count in it, else 0."""
    if record.abstained:
        return 0.0
    return contains_answer(record.answer, record.answers, record.language)


def word_overlap(record: Record) -> float:
    """Return the token F1 of an answer, 0 for an abstention."""
    return _matching(token_f1, record)


def cites_gold(record: Record) -> bool:
    """Tell whether an answer cites a place that holds the answer."""
    return any(citation.gold for citation in record.citations)


def _matching(score: Callable[..., float], record: Record) -> float:
    if record.abstained:
        return 0.0
    return score(record.short or record.answer, record.answers, record.language)


def _precision(record: Record) -> float:
    return sum(citation.gold for citation in record.citations) / max(1, len(record.citations))


def abstention_metrics(records: Sequence[Record]) -> dict[str, Estimate]:
    """Judge when the chain says that the documents do not hold the answer.

    Args:
        records: The questions asked.

    Returns:
        - ``abstention_precision``: share of the abstentions that were right.
        - ``abstention_recall``: share of the unanswerable questions that were abstained on.
        - ``false_abstention``: share of the answerable questions that were abstained on.
        - ``confidence_auroc``: how well ``confidence`` tells answerable questions from unanswerable ones: the area
          under the ROC curve, over the questions that have it.
    """
    abstained = [record for record in records if record.abstained]
    return {
        "abstention_precision": mean_estimate([float(not record.answerable) for record in abstained]),
        "abstention_recall": mean_estimate([float(r.abstained) for r in records if not r.answerable]),
        "false_abstention": mean_estimate([float(r.abstained) for r in records if r.answerable]),
        "confidence_auroc": area_estimate(*confidences(records)),
    }


def confidences(records: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Return the supports of the answerable and of the unanswerable questions, where the chain gives them."""
    answerable = [r.confidence for r in records if r.answerable and r.confidence is not None]
    unanswerable = [r.confidence for r in records if not r.answerable and r.confidence is not None]
    return answerable, unanswerable


def abstention_curve(records: Sequence[Record]) -> AbstentionCurve | None:
    """Weigh every threshold of support; ``None`` where there are no answerable or no unanswerable questions."""
    answerable, unanswerable = confidences(records)
    if not answerable or not unanswerable:
        return None
    labels = [1] * len(answerable) + [0] * len(unanswerable)
    curve = load("sklearn.metrics").roc_curve(labels, [*answerable, *unanswerable], drop_intermediate=False)
    # The first threshold is infinite: abstain always.
    points = tuple(
        (float(threshold), 1.0 - float(answered), float(wrongly))
        for wrongly, answered, threshold in zip(*curve, strict=True)
    )[1:]
    best = min(points, key=lambda point: point[1] + point[2])
    return AbstentionCurve(*best, points=points)
