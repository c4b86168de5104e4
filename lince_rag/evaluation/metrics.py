"""The metrics of an evaluation, computed from its records: rankings, answers, abstention and times.

First the metrics by subject, then how an answer is compared with the accepted ones, then the estimates with their
95% bootstrap intervals.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lince_rag.evaluation.records import Passage, Record
from lince_rag.text.language import Language

# The ranks that are always reported, whatever number of chunks the chain reads.
RECALL_DEPTH: Final = 5
RANKING_DEPTH: Final = 10

# Bins of the expected calibration error.
CALIBRATION_BINS: Final = 10

# The metrics of each type of question.
TYPE_METRICS: Final = (
    "contains_answer", "list_recall", "citation_recall", "false_abstention", "abstention_recall"
)  # fmt: skip

# Words that are ignored in a comparison, as in the evaluation of SQuAD.
ARTICLES: Final[Mapping[Language, frozenset[str]]] = {
    "es": frozenset({"el", "la", "los", "las", "lo", "un", "una", "unos", "unas"}),
    "pt": frozenset({"o", "a", "os", "as", "um", "uma", "uns", "umas"}),
    "en": frozenset({"a", "an", "the"}),
}

# The bootstrap: level of the intervals, resamples, seed, and numbers that it holds in memory at a time.
CONFIDENCE_LEVEL: Final = 0.95
RESAMPLES: Final = 1000
SEED: Final = 7
_BATCH_NUMBERS: Final = 5_000_000


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95% interval, measured on ``count`` questions; ``None`` if there is nothing to measure."""

    value: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class AbstentionCurve:
    """The errors of abstaining below a threshold of confidence, for every threshold.

    ``threshold`` is the best one by Youden's J; the chain answers if the confidence is at least that.
    """

    threshold: float
    # Share of the answerable questions on which it abstains, and of the unanswerable ones that it answers.
    false_abstention: float
    false_answer: float
    # (threshold, false abstention, false answer), highest threshold first.
    points: tuple[tuple[float, float, float], ...]


def measure(records: Sequence[Record], k: int) -> dict[str, Estimate]:
    """Compute every metric of a run whose chain reads ``k`` chunks; the times have no interval.

    ``ranking_metrics``, ``answer_metrics``, ``abstention_metrics`` and ``calibration_metrics`` define the others.
    """
    times = [record.milliseconds for record in records]
    return {
        **ranking_metrics(records, k),
        **answer_metrics(records),
        **abstention_metrics(records),
        **calibration_metrics(records),
        "latency_p50_ms": quantile_estimate(times, 0.5),
        "latency_p95_ms": quantile_estimate(times, 0.95),
    }


def ranking_metrics(records: Sequence[Record], k: int) -> dict[str, Estimate]:
    """Measure the rankings: ``recall@5``, ``recall@k``, ``mrr@10`` and ``ndcg@10``.

    Only questions whose answer has a known place in the index count. Places are ranked, not chunks: all chunks
    of one paragraph (or document, if the question names documents) count once, at the rank of the first. Recall
    is the share of the places with the answer among the first chunks (5, and the number that the chain reads).
    """
    import ir_measures

    located = [record for record in records if record.located]
    judged = {record.id: dict.fromkeys(record.units, 1) for record in located}

    def estimate(measure: Any, depth: int | None) -> Estimate:
        # The library leaves out questions without results: they score 0.
        scores = dict.fromkeys(judged, 0.0)
        run = {record.id: _scored(record.retrieved[:depth]) for record in located}
        for score in ir_measures.iter_calc([measure], judged, run) if judged else ():
            scores[score.query_id] = float(score.value)
        return mean_estimate(list(scores.values()))

    return {
        "recall@5": estimate(ir_measures.R @ RECALL_DEPTH, RECALL_DEPTH),
        "recall@k": estimate(ir_measures.R @ k, k),
        "mrr@10": estimate(ir_measures.RR @ RANKING_DEPTH, None),
        "ndcg@10": estimate(ir_measures.nDCG @ RANKING_DEPTH, None),
    }


def _scored(retrieved: Iterable[Passage]) -> dict[str, float]:
    """Give the places of a ranking decreasing scores, which the library takes."""
    places = list(dict.fromkeys(passage.unit for passage in retrieved))
    return {place: float(len(places) - rank) for rank, place in enumerate(places)}


def answer_metrics(records: Sequence[Record]) -> dict[str, Estimate]:
    """Measure the texts of the answers and their citations.

    - ``exact_match``, ``f1`` (of ``short``, or of the whole answer if there is none) and ``contains_answer`` (of
      the whole answer), over the answerable questions; an abstention scores 0.
    - ``list_recall``: share of the items of a list that its answer contains, over the answerable questions whose
      file lists them; an abstention scores 0.
    - ``citation_precision``: share of the citations of an answer that lie in a place with the answer, over the
      answers to questions with a known place; an answer without citations scores 0.
    - ``citation_recall``: share of the questions with a known place, answered or not, with at least one such
      citation.
    - ``groundedness``: share of all answers in which every sentence has a citation.
    - ``language_match``: share of all answers in the language of their question.
    """
    answerable = [record for record in records if record.answerable]
    located = [record for record in records if record.located]
    answered = [record for record in records if not record.abstained]
    cited = [record for record in located if not record.abstained]
    return {
        "exact_match": mean_estimate([_matching(exact_match, record) for record in answerable]),
        "f1": mean_estimate([word_overlap(record) for record in answerable]),
        "contains_answer": mean_estimate([holds_answer(record) for record in answerable]),
        "list_recall": mean_estimate([_list_recall(record) for record in answerable if record.all_of]),
        "citation_precision": mean_estimate([_precision(record) for record in cited]),
        "citation_recall": mean_estimate([float(cites_gold(record)) for record in located]),
        "groundedness": mean_estimate([float(record.grounded) for record in answered]),
        "language_match": mean_estimate([float(r.answer_language == r.language) for r in answered]),
    }


def holds_answer(record: Record) -> float:
    """Return 1 if the whole answer contains an accepted answer, else 0; an abstention scores 0."""
    if record.abstained:
        return 0.0
    return contains_answer(record.answer, record.answers, record.language)


def is_right(record: Record) -> bool:
    """Return whether an answer contains an accepted answer, or an abstention is right."""
    return bool(holds_answer(record)) if record.answerable else record.abstained


def _list_recall(record: Record) -> float:
    if record.abstained:
        return 0.0
    found = [contains_answer(record.answer, [item], record.language) for item in record.all_of]
    return sum(found) / len(found)


def word_overlap(record: Record) -> float:
    """Return the token F1 of an answer; an abstention scores 0."""
    return _matching(token_f1, record)


def cites_gold(record: Record) -> bool:
    """Return whether an answer cites a place that holds the answer."""
    return any(citation.gold for citation in record.citations)


def _matching(score: Callable[..., float], record: Record) -> float:
    if record.abstained:
        return 0.0
    return score(record.short or record.answer, record.answers, record.language)


def _precision(record: Record) -> float:
    return sum(citation.gold for citation in record.citations) / max(1, len(record.citations))


def abstention_metrics(records: Sequence[Record]) -> dict[str, Estimate]:
    """Measure when the chain abstains.

    - ``abstention_precision``: share of the abstentions that were right.
    - ``abstention_recall``: share of the unanswerable questions on which it abstained.
    - ``false_abstention``: share of the answerable questions on which it abstained.
    - ``confidence_auroc``: area under the ROC curve of the confidence, for telling answerable questions from
      unanswerable ones; over the questions that have a confidence.
    """
    abstained = [record for record in records if record.abstained]
    return {
        "abstention_precision": mean_estimate([float(not record.answerable) for record in abstained]),
        "abstention_recall": mean_estimate([float(r.abstained) for r in records if not r.answerable]),
        "false_abstention": mean_estimate([float(r.abstained) for r in records if r.answerable]),
        "confidence_auroc": area_estimate(*confidences(records)),
    }


def calibration_metrics(records: Sequence[Record]) -> dict[str, Estimate]:
    """Measure whether the confidence says how likely an answer is to be right.

    - ``right_auroc``: area under the ROC curve of the confidence, for telling the right answers from everything
      else (wrong ones, abstentions, answers to unanswerable questions).
    - ``calibration_error``: the expected calibration error of the answers given: the mean distance between
      confidence and share of right ones in bins a tenth wide, weighted by their sizes.
    - ``brier``: the mean squared distance between the confidence of an answer and 1 if it is right, else 0.
    """
    measured = [(r.confidence, bool(holds_answer(r)), r) for r in records if r.confidence is not None]
    answered = [(confidence, right) for confidence, right, record in measured if not record.abstained]
    distances = [0.0] * (CALIBRATION_BINS + 1)
    for confidence, right in answered:
        distances[int(confidence * CALIBRATION_BINS)] += confidence - right
    error = sum(map(abs, distances)) / len(answered) if answered else None
    return {
        "right_auroc": area_estimate(
            [confidence for confidence, right, _ in measured if right],
            [confidence for confidence, right, _ in measured if not right],
        ),
        "calibration_error": Estimate(error, None, None, len(answered)),
        "brier": mean_estimate([(confidence - right) ** 2 for confidence, right in answered]),
    }


def risk_coverage(records: Sequence[Record]) -> list[tuple[float, float]]:
    """Return (coverage, risk) if only the most confident answers are given, for each possible number of them.

    Coverage is their share of all questions; risk is the share of them that are not right.
    """
    answered = sorted(
        (record for record in records if not record.abstained and record.confidence is not None),
        key=lambda record: -(record.confidence or 0.0),
    )
    points, wrong = [], 0
    for number, record in enumerate(answered, 1):
        wrong += not is_right(record)
        points.append((number / len(records), wrong / number))
    return points


def measure_types(records: Sequence[Record]) -> dict[str, dict[str, Estimate]]:
    """Measure the answers to each type of question, the most frequent type first; empty if the file names none.

    Each type has the metrics ``TYPE_METRICS``.
    """
    counts = Counter(record.type for record in records if record.type)
    found = {}
    for kind, _ in counts.most_common():
        some = [record for record in records if record.type == kind]
        metrics = answer_metrics(some) | abstention_metrics(some)
        found[kind] = {name: metrics[name] for name in TYPE_METRICS}
    return found


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same questions, question by question.

    ``fixed`` and ``broken`` hold the ids of the questions that only the second or only the first run answers
    rightly; ``p_value`` is that of McNemar's exact test, 1 if the runs differ nowhere. ``unlike`` holds those that
    are not compared, because the documents hold the answer in only one of the runs.
    """

    fixed: tuple[str, ...]
    broken: tuple[str, ...]
    count: int
    p_value: float
    unlike: tuple[str, ...]


def compare_runs(first: Sequence[Record], second: Sequence[Record]) -> Comparison:
    """Compare the questions that two runs share: an answer is right as ``is_right`` says."""
    from scipy.stats import binomtest

    before = {record.id: record for record in first}
    pairs = [(before[record.id], record) for record in second if record.id in before]
    unlike = tuple(now.id for then, now in pairs if then.answerable != now.answerable)
    shared = [(now.id, is_right(then), is_right(now)) for then, now in pairs if then.answerable == now.answerable]
    fixed = tuple(identity for identity, was_right, right in shared if right and not was_right)
    broken = tuple(identity for identity, was_right, right in shared if not right and was_right)
    changed = len(fixed) + len(broken)
    p_value = float(binomtest(len(fixed), changed).pvalue) if changed else 1.0
    return Comparison(fixed, broken, len(shared), p_value, unlike)


def confidences(records: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Return the confidence of the answerable and of the unanswerable questions that have one."""
    answerable = [r.confidence for r in records if r.answerable and r.confidence is not None]
    unanswerable = [r.confidence for r in records if not r.answerable and r.confidence is not None]
    return answerable, unanswerable


def abstention_curve(records: Sequence[Record]) -> AbstentionCurve | None:
    """Compute the errors at every threshold; ``None`` without both answerable and unanswerable questions."""
    from sklearn.metrics import roc_curve

    answerable, unanswerable = confidences(records)
    if not answerable or not unanswerable:
        return None
    labels = [1] * len(answerable) + [0] * len(unanswerable)
    curve = roc_curve(labels, [*answerable, *unanswerable], drop_intermediate=False)
    # The first threshold is infinite: abstain always.
    points = tuple(
        (float(threshold), 1.0 - float(answered), float(wrongly))
        for wrongly, answered, threshold in zip(*curve, strict=True)
    )[1:]
    best = min(points, key=lambda point: point[1] + point[2])
    return AbstentionCurve(*best, points=points)


def normalise_answer(text: str, language: Language) -> str:
    """Return the words that are compared: lower case, accents kept, without punctuation, symbols and articles."""
    kept = "".join(character for character in text.lower() if unicodedata.category(character)[0] not in "PS")
    composed = unicodedata.normalize("NFC", kept)
    return " ".join(word for word in composed.split() if word not in ARTICLES[language])


def exact_match(prediction: str, answers: Iterable[str], language: Language) -> float:
    """Return 1 if a prediction equals an accepted answer after normalisation, else 0."""
    said = normalise_answer(prediction, language)
    return float(any(said == normalise_answer(answer, language) for answer in answers))


def token_f1(prediction: str, answers: Iterable[str], language: Language) -> float:
    """Return the harmonic mean of word precision and recall (0 to 1), for the accepted answer that fits best."""
    said = normalise_answer(prediction, language).split()
    return max((_f1(said, normalise_answer(answer, language).split()) for answer in answers), default=0.0)


def contains_answer(text: str, answers: Iterable[str], language: Language) -> float:
    """Return 1 if a text contains an accepted answer as whole words after normalisation, else 0."""
    said = f" {normalise_answer(text, language)} "
    wanted = [normalise_answer(answer, language) for answer in answers]
    return float(any(f" {answer} " in said for answer in wanted if answer))


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Estimate a mean, with a percentile bootstrap over the questions."""
    import numpy as np

    if not values:
        return Estimate(None, None, None, 0)
    mean = float(np.mean(values))
    if len(set(values)) == 1:
        return Estimate(values[0], values[0], values[0], len(values))
    low, high = _interval((np.asarray(values, dtype=float),), np.mean)
    return Estimate(mean, low, high, len(values))


def quantile_estimate(values: Sequence[float], share: float) -> Estimate:
    """Return a quantile without an interval: times depend on the machine more than on the questions."""
    import numpy as np

    value = float(np.quantile(values, share)) if values else None
    return Estimate(value, None, None, len(values))


def area_estimate(positive: Sequence[float], negative: Sequence[float]) -> Estimate:
    """Estimate the area under the ROC curve (0.5 is chance), with a bootstrap that resamples both classes."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    count = len(positive) + len(negative)
    if not positive or not negative:
        return Estimate(None, None, None, count)
    labels = [1] * len(positive) + [0] * len(negative)
    area = float(roc_auc_score(labels, [*positive, *negative]))
    if min(len(positive), len(negative)) < 2:
        return Estimate(area, None, None, count)
    samples = (np.asarray(positive, dtype=float), np.asarray(negative, dtype=float))
    return Estimate(area, *_interval(samples, _areas), count)


def _areas(positive: Any, negative: Any, axis: int = -1) -> Any:
    """Return the areas of many resamples at once: the share of pairs in the right order, by the sum of ranks."""
    import numpy as np
    from scipy.stats import rankdata

    wins, losses = positive.shape[axis], negative.shape[axis]
    ranks = rankdata(np.concatenate([positive, negative], axis=axis), axis=axis)
    total = np.take(ranks, np.arange(wins), axis=axis).sum(axis=axis)
    return (total - wins * (wins + 1) / 2) / (wins * losses)


def _interval(samples: tuple[Any, ...], statistic: Any) -> tuple[float, float]:
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_NUMBERS // sum(map(len, samples))),
        vectorized=True,
        confidence_level=CONFIDENCE_LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)
