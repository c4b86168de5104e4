import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lince_rag.evaluation.metrics import (
    abstention_curve,
    abstention_metrics,
    answer_metrics,
    area_estimate,
    calibration_metrics,
    compare_runs,
    contains_answer,
    exact_match,
    is_right,
    mean_estimate,
    measure,
    measure_types,
    normalise_answer,
    quantile_estimate,
    ranking_metrics,
    risk_coverage,
    token_f1,
)
from lince_rag.evaluation.records import Cited, Passage, Record
from lince_rag.evaluation.report import count_failures, failure_of, worst_failures
from lince_rag.text.language import LANGUAGES

LANGUAGE = st.sampled_from(LANGUAGES)
VOCABULARY = ["el", "la", "o", "a", "the", "gato", "perro", "12", "¿?", "año", "ção"]
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=6).map(" ".join)
ANSWERS = st.lists(WORDS | st.text(max_size=20), min_size=1, max_size=3)


def passage(unit: str, gold: bool = False) -> Passage:
    return Passage(unit, unit, 0, 10, "texto", unit, gold)


def cited(gold: bool) -> Cited:
    return Cited("a", None, "texto", gold)


def record(number: int = 0, **fields: Any) -> Record:
    """An answerable question whose answer is at "gold", found first, cited and right, unless told otherwise."""
    values: dict[str, Any] = {
        "id": str(number), "question": "¿Qué es?", "language": "es", "answers": ("el gato negro",),
        "answerable": True, "missing": False, "units": ("gold",),
        "retrieved": (passage("gold", True), passage("other")),
        "answer": "Es un gato negro.", "short": None, "answer_language": "es",
        "abstained": False, "grounded": True, "confidence": None, "citations": (cited(True),),
        "corrections": (), "milliseconds": 10.0,
    }  # fmt: skip
    return Record(**{**values, **fields})


def unanswerable(number: int, **fields: Any) -> Record:
    return record(number, **{"answers": (), "answerable": False, "units": (), "citations": (), **fields})


ABSTAINED: dict[str, Any] = {"abstained": True, "citations": (), "grounded": False, "answer": "No lo encuentro."}


# Comparing texts.


@pytest.mark.parametrize(
    ("text", "language", "normalised"),
    [
        ("¡El Gato, «negro»!", "es", "gato negro"),
        ("Lo de los unos y las unas", "es", "de y"),
        ("A Maria e o João", "pt", "maria e joão"),
        ("a casa de la abuela", "es", "a casa de abuela"),
        ("An apple—the best", "en", "applethe best"),
        ("1.100 euros (€)", "es", "1100 euros"),
        ("canción", "es", "canción"),
        ("el", "es", ""),
    ],
)
def test_normalised(text: str, language: Any, normalised: str) -> None:
    assert normalise_answer(text, language) == normalised


def test_exact_match_takes_the_best_answer() -> None:
    assert exact_match("El gato.", ["un perro", "gato"], "es") == 1
    assert exact_match("El gato negro", ["un perro", "gato"], "es") == 0


def test_f1_by_hand() -> None:
    # "gato negro grande" and "gato negro": two words in common of three and two.
    assert token_f1("el gato negro grande", ["un gato negro"], "es") == pytest.approx(2 * 2 / 5)
    # Words count as often as they are there.
    assert token_f1("no no sí", ["no"], "es") == pytest.approx(2 * 1 / 4)
    assert token_f1("gato", ["perro", "gato pardo"], "es") == pytest.approx(2 / 3)
    assert token_f1("", ["gato"], "es") == 0


def test_contained_answers_are_whole_words() -> None:
    assert contains_answer("Nació en 1912, en París.", ["1912"], "es") == 1
    assert contains_answer("Nació en 1912, en París.", ["12"], "es") == 0
    assert contains_answer("Nació en París.", ["El en París"], "es") == 1
    assert contains_answer("Nació en París.", ["el"], "es") == 0


@given(WORDS, ANSWERS, LANGUAGE)
def test_f1_is_a_share_and_exact_means_one(prediction: str, answers: list[str], language: Any) -> None:
    score = token_f1(prediction, answers, language)
    assert 0 <= score <= 1
    if exact_match(prediction, answers, language):
        assert score == 1
    assert exact_match(answers[0], answers, language) == 1


@given(WORDS, WORDS, LANGUAGE)
def test_f1_is_symmetric(one: str, other: str, language: Any) -> None:
    assert token_f1(one, [other], language) == token_f1(other, [one], language)


@given(st.text(max_size=30), LANGUAGE)
def test_normalising_again_changes_nothing(text: str, language: Any) -> None:
    once = normalise_answer(text, language)
    assert normalise_answer(once, language) == once


# Rankings.


def rankings() -> list[Record]:
    other = [passage(f"p{number}") for number in range(12)]
    return [
        # Three chunks of one other paragraph take one rank: the answer is second of the places.
        record(1, retrieved=(other[0], other[0], other[0], passage("gold", True), other[1])),
        # The sixth chunk: in neither recall, sixth of the places.
        record(2, retrieved=(*other[:5], passage("gold", True))),
        # Chunks of the gold paragraph count once, at the rank of the first.
        record(3, retrieved=(passage("gold", True), other[0], passage("gold", True))),
        record(4, retrieved=()),
        # Eleventh place.
        record(5, retrieved=(*other[:10], passage("gold", True))),
        # Without a known place and without an answer: they have no say.
        record(6, units=()),
        unanswerable(7),
    ]


def test_rankings_by_hand() -> None:
    found = ranking_metrics(rankings(), k=3)
    assert {estimate.count for estimate in found.values()} == {5}
    assert found["recall@5"].value == pytest.approx(2 / 5)
    assert found["recall@k"].value == pytest.approx(1 / 5)
    assert found["mrr@10"].value == pytest.approx((1 / 2 + 1 / 6 + 1) / 5)
    assert found["ndcg@10"].value == pytest.approx((1 / math.log2(3) + 1 / math.log2(7) + 1) / 5)


def test_recall_of_several_places() -> None:
    two = record(1, units=("gold", "also"), retrieved=(passage("also", True), passage("other")))
    found = ranking_metrics([two], k=5)
    assert found["recall@5"].value == pytest.approx(1 / 2)
    assert found["mrr@10"].value == 1
    assert found["ndcg@10"].value == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_no_ranking_to_judge() -> None:
    found = ranking_metrics([unanswerable(1)], k=5)
    assert all(estimate.value is None and estimate.count == 0 for estimate in found.values())


# Answers.


def test_answers_by_hand() -> None:
    records = [
        record(1, short="gato negro"),
        record(2, answer="Es un perro.", citations=(cited(True), cited(False), cited(False)), grounded=False),
        record(3, citations=(), answer_language="pt"),
        record(4, **ABSTAINED),
        record(5, units=(), citations=(cited(False),)),
        unanswerable(6, answer="Es un gato negro."),
        unanswerable(7, **ABSTAINED),
    ]
    found = answer_metrics(records)
    values = {name: (estimate.value, estimate.count) for name, estimate in found.items()}
    assert values.pop("list_recall") == (None, 0)
    # "es gato negro" against "gato negro": 4/5; "es perro" has no word of it.
    assert values == {
        "exact_match": (pytest.approx(1 / 5), 5),
        "f1": (pytest.approx((1 + 0 + 4 / 5 + 0 + 4 / 5) / 5), 5),
        "contains_answer": (pytest.approx(3 / 5), 5),
        "citation_precision": (pytest.approx((1 + 1 / 3 + 0) / 3), 3),
        "citation_recall": (pytest.approx(2 / 4), 4),
        "groundedness": (pytest.approx(4 / 5), 5),
        "language_match": (pytest.approx(4 / 5), 5),
    }


def test_an_abstention_never_scores_whatever_it_says() -> None:
    (found,) = [answer_metrics([record(1, **{**ABSTAINED, "answer": "el gato negro"})])]
    assert (found["exact_match"].value, found["f1"].value, found["contains_answer"].value) == (0, 0, 0)


def test_items_of_a_list() -> None:
    items = ("el gato", "el perro", "la vaca", "el pez")
    records = [
        record(1, answer="Un gato y una vaca.", all_of=items),
        record(2, all_of=items, **ABSTAINED),
        record(3, answer="Un gato."),
        unanswerable(4, all_of=items),
    ]
    found = answer_metrics(records)["list_recall"]
    assert (found.value, found.count) == (pytest.approx((2 / 4 + 0) / 2), 2)


# Calibration.


def test_calibration_by_hand() -> None:
    wrong = {"answer": "Un perro."}
    records = [
        record(1, confidence=0.9),
        record(2, confidence=0.95, **wrong),
        record(3, confidence=0.3, **wrong),
        record(4, confidence=1.0),
        unanswerable(5, confidence=0.35),
        unanswerable(6, confidence=0.1, **ABSTAINED),
        record(7),
    ]
    found = calibration_metrics(records)
    # In the bin of 0.9: 1.85 promised and 1 right; in that of 0.3: 0.65 and 0; in that of 1.0: 1 and 1.
    assert found["calibration_error"].value == pytest.approx((0.85 + 0.65 + 0) / 5)
    squares = (0.01, 0.95**2, 0.09, 0.0, 0.35**2)
    assert found["brier"].value == pytest.approx(sum(squares) / 5)
    # Of the pairs of a right and another one, only 0.9 before 0.95 is in the wrong order.
    assert (found["right_auroc"].value, found["right_auroc"].count) == (pytest.approx(7 / 8), 6)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_risk_and_coverage(made: list[tuple[float, bool, bool]]) -> None:
    records = [
        record(number, confidence=confidence, answer="el gato negro" if right else "nada", abstained=abstained)
        for number, (confidence, right, abstained) in enumerate(made)
    ]
    points = risk_coverage(records)
    answered = [record for record in records if not record.abstained]
    assert len(points) == len(answered)
    if points:
        coverage, risk = points[-1]
        assert coverage == pytest.approx(len(answered) / len(records))
        assert risk == pytest.approx(sum(not is_right(record) for record in answered) / len(answered))


# Types, and two runs.


def test_types_of_questions() -> None:
    records = [
        record(1, type="list", all_of=("gato", "perro")),
        record(2, type="list", **ABSTAINED),
        unanswerable(3, type="list", **ABSTAINED),
        record(4, type="why", answer="Un perro."),
        record(5),
    ]
    found = measure_types(records)
    assert list(found) == ["list", "why"]
    values = {name: estimate.value for name, estimate in found["list"].items()}
    assert values == {
        "contains_answer": 0.5,
        "list_recall": 0.5,
        "citation_recall": 0.5,
        "false_abstention": 0.5,
        "abstention_recall": 1.0,
    }
    assert found["why"]["contains_answer"].value == 0.0


def test_two_runs_question_by_question() -> None:
    wrong = {"answer": "Un perro."}
    first = [record(1), record(2, **wrong), record(3, **wrong), unanswerable(4), record(9)]
    second = [record(1, **wrong), record(2), record(3, **wrong), unanswerable(4, **ABSTAINED), record(8)]
    found = compare_runs(first, second)
    assert (found.fixed, found.broken, found.count) == (("2", "4"), ("1",), 4)
    assert found.p_value == pytest.approx(1.0)
    many = [record(number, **wrong) for number in range(10)]
    better = [record(number) for number in range(10)]
    assert compare_runs(many, better).p_value == pytest.approx(2 / 2**10)
    assert compare_runs(many, many).p_value == 1.0


def test_questions_that_only_one_run_can_answer_are_not_compared() -> None:
    first = [record(1), record(2), unanswerable(3, **ABSTAINED), record(4, answer="Un perro.")]
    second = [record(1), unanswerable(2, **ABSTAINED), record(3), record(4)]
    found = compare_runs(first, second)
    assert (found.fixed, found.broken, found.count, found.unlike) == (("4",), (), 2, ("2", "3"))


# Abstention.


def abstentions() -> list[Record]:
    return [
        record(1, confidence=0.9),
        record(2, confidence=0.6),
        record(3, confidence=0.3, **ABSTAINED),
        unanswerable(4, confidence=0.5),
        unanswerable(5, confidence=0.1, **ABSTAINED),
        unanswerable(6, confidence=None, **ABSTAINED),
    ]


def test_abstention_by_hand() -> None:
    found = abstention_metrics(abstentions())
    assert (found["abstention_precision"].value, found["abstention_precision"].count) == (pytest.approx(2 / 3), 3)
    assert (found["abstention_recall"].value, found["abstention_recall"].count) == (pytest.approx(2 / 3), 3)
    assert (found["false_abstention"].value, found["false_abstention"].count) == (pytest.approx(1 / 3), 3)
    # Of the 3 * 2 pairs, only (0.3, 0.5) is in the wrong order.
    assert (found["confidence_auroc"].value, found["confidence_auroc"].count) == (pytest.approx(5 / 6), 5)


def test_best_threshold() -> None:
    curve = abstention_curve(abstentions())
    assert curve is not None
    # At 0.6: one of three answerable questions is abstained on, no unanswerable one is answered.
    assert curve.threshold == 0.6
    assert (curve.false_abstention, curve.false_answer) == (pytest.approx(1 / 3), 0)
    assert (curve.threshold, curve.false_abstention, curve.false_answer) in curve.points
    assert all(math.isfinite(number) for point in curve.points for number in point)


def test_no_curve_without_both_classes_or_confidence() -> None:
    assert abstention_curve([record(1, confidence=0.5)]) is None
    assert abstention_curve([record(1), unanswerable(2)]) is None
    assert abstention_metrics([record(1, confidence=0.5)])["confidence_auroc"].value is None


# Intervals.


def test_interval_of_a_share() -> None:
    found = mean_estimate([1.0] * 80 + [0.0] * 20)
    assert found.value == pytest.approx(0.8)
    # The normal approximation gives 0.8 ± 1.96 * 0.04.
    assert found.low == pytest.approx(0.72, abs=0.02)
    assert found.high == pytest.approx(0.88, abs=0.02)
    assert found == mean_estimate([1.0] * 80 + [0.0] * 20)


def test_interval_of_an_area() -> None:
    positive, negative = [index / 50 for index in range(20, 60)], [index / 50 for index in range(30)]
    found = area_estimate(positive, negative)
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert found.value == pytest.approx(wins / (len(positive) * len(negative)))
    assert found.low is not None
    assert found.high is not None
    assert 0.9 < found.low < found.value < found.high <= 1
    assert area_estimate(positive, [0.1]).low is None
    assert area_estimate([], negative).value is None


def test_degenerate_estimates() -> None:
    assert mean_estimate([]).value is None
    assert mean_estimate([0.5]).low == 0.5
    assert mean_estimate([1.0, 1.0]).high == 1.0
    assert quantile_estimate([], 0.5).value is None
    assert quantile_estimate([10, 20, 30], 0.5).value == 20


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_intervals_hold_within_the_numbers(values: list[float]) -> None:
    found = mean_estimate(values)
    assert found.low is not None
    assert found.high is not None
    slack = 1e-9
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack


def test_measure_has_every_metric_and_the_times() -> None:
    found = measure([record(number, milliseconds=float(number)) for number in range(1, 101)], 5)
    assert found["latency_p50_ms"].value == pytest.approx(50.5)
    assert found["latency_p95_ms"].value == pytest.approx(95.05)
    assert found["latency_p50_ms"].low is None
    assert len(found) == 21


# What went wrong.


@pytest.mark.parametrize(
    ("made", "failure"),
    [
        (record(), None),
        (record(answer="Un perro."), "wrong_sentence"),
        (record(answer="Un perro.", citations=(cited(False),)), "not_cited"),
        (record(answer="Un perro.", citations=(), units=()), "wrong_sentence"),
        (record(**ABSTAINED), "wrongly_abstained"),
        (record(**ABSTAINED, retrieved=(passage("other"),)), "not_retrieved"),
        (
            record(answer="Un perro.", retrieved=(passage("a"), passage("b"), passage("gold", True))),
            "not_retrieved",
        ),
        (unanswerable(1), "answered_unanswerable"),
        (unanswerable(1, **ABSTAINED), None),
    ],
)
def test_first_thing_that_went_wrong(made: Record, failure: str | None) -> None:
    assert failure_of(made, 2) == failure


def test_worst_failures_come_first() -> None:
    near = record(1, answer="Un gato pardo.")
    far = record(2, answer="Un perro.", confidence=0.2)
    sure = replace(far, id="3", confidence=0.9)
    silent = record(4, **ABSTAINED, confidence=0.1)
    (wrong, abstained) = reversed(worst_failures([near, far, sure, silent, record(5)], 5, 2))
    assert wrong == ("wrong_sentence", [sure, far])
    assert abstained == ("wrongly_abstained", [silent])
    counts = count_failures([near, far, sure, silent, record(5)], 5)
    assert counts["wrong_sentence"] == 3
    assert sum(counts.values()) == 4
