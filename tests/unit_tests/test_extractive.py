from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lince_rag.engines.base import GenerationSettings
from lince_rag.engines.extractive import ExtractiveEngine, select_passages
from lince_rag.prompting.templates import Prompt
from lince_rag.text.language import LANGUAGES, Language, wording
from lince_rag.text.questions import content_stems, kind_of
from lince_rag.text.words import words

CONTRACT = {
    "title": "Contrato",
    "heading": "Contrato › Renta y fianza",
    "text": "Renta y fianza\n\nLa renta mensual es de 815 euros. Se paga los cinco primeros días del mes. "
    "La fianza, de 1.630 euros, la deposita doña Amalia Ortuño en la Cámara de Burgos. "
    "El contrato empezó el 1 de octubre de 2024.",
}
RECIPE = {
    "title": "Receita",
    "text": "Misture a farinha com o leite. Asse o bolo durante 55 minutos. Sirva frio, com café.",
}


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("¿Cuánto es la renta mensual?", "La renta mensual es de 815 euros."),
        ("¿Cuándo empezó el contrato?", "El contrato empezó el 1 de octubre de 2024."),
        ("¿Quién deposita la fianza?", CONTRACT["text"].split(". ")[2] + "."),
        ("Durante quantos minutos o bolo assa?", "Asse o bolo durante 55 minutos."),
    ],
)
def test_answers_with_the_sentence_that_says_it(question: str, answer: str) -> None:
    (passage,) = select_passages(question, [CONTRACT, RECIPE], "es")
    assert answer in passage
    assert len(passage) < 2 * len(answer)


@pytest.mark.parametrize(
    "question", ["¿Quién ganó el mundial de fútbol?", "Qual é a capital da Noruega?", "¿?", "", "12345"]
)
def test_abstains_when_the_documents_do_not_say(question: str) -> None:
    assert select_passages(question, [CONTRACT, RECIPE], "es") == []


def test_a_heading_is_no_answer() -> None:
    assert "Renta y fianza" not in select_passages("¿Renta y fianza?", [CONTRACT], "es")


def test_a_second_sentence_answers_what_the_first_leaves_open() -> None:
    documents = [
        {"text": "La biblioteca abre a las nueve. El lunes es festivo. El bar sirve café."},
        {"text": "El aparcamiento cierra a medianoche. La piscina es azul. El jardín tiene rosas."},
    ]
    answer = select_passages("¿A qué hora abre la biblioteca y cierra el aparcamiento?", documents, "es")
    assert answer[0].startswith("La biblioteca abre a las nueve.")
    assert answer[1:] == ["El aparcamiento cierra a medianoche."]


def test_confidence_decides_with_a_retriever() -> None:
    """What the retriever says of the documents as a whole goes before the words of the question."""
    question = "¿Cuándo empezó la guerra de los contratos en Marte?"
    assert select_passages(question, [{**CONTRACT, "confidence": 0.05}], "es") == []
    assert select_passages(question, [{**CONTRACT, "confidence": 0.9}], "es") != []
    assert select_passages(question, [{**CONTRACT, "confidence": 0.05}], "es", minimum_confidence=0.04) != []
    assert select_passages("¿Quién ganó el mundial?", [CONTRACT], "es", minimum_confidence=0.0) != []


def prompt_for(question: str, documents: list[dict[str, Any]]) -> Prompt:
    from lince_rag.prompting.registry import get_model
    from lince_rag.prompting.templates import ChatTemplate

    return ChatTemplate.from_spec(get_model("extractive")).render(
        [{"role": "user", "content": question}], documents
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_abstention_is_localised(language: Language) -> None:
    engine = ExtractiveEngine(4096)
    generation = engine.generate(prompt_for("xyz?", [CONTRACT]), GenerationSettings(language=language))
    assert generation.text == wording("abstention", language)
    assert generation.abstained
    assert generation.finish_reason == "stop"


def test_without_documents_it_says_how_it_wants_them() -> None:
    generation = ExtractiveEngine(4096).generate(prompt_for("¿Cuánto es la renta?", []), GenerationSettings())
    assert "documents=[…]" in generation.text
    assert generation.abstained


def test_abstention_follows_the_question_without_a_language() -> None:
    generation = ExtractiveEngine(4096).generate(
        prompt_for("Quem descobriu o caminho marítimo para a Índia?", [CONTRACT]), GenerationSettings()
    )
    assert generation.text == wording("abstention", "pt")


@pytest.mark.parametrize("stop", ["815", "mensual es", " de", "La", "euros."])
def test_stops_stop_and_never_show(stop: str) -> None:
    engine, prompt = ExtractiveEngine(4096), prompt_for("¿Cuánto es la renta mensual?", [CONTRACT])
    whole = engine.generate(prompt, GenerationSettings()).text
    settings_ = GenerationSettings(stop=("never said", stop))
    cut = engine.generate(prompt, settings_)
    assert cut.text == whole[: whole.index(stop)]
    assert "".join(step.text for step in engine.stream(prompt, settings_)) == cut.text
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize("limit", [1, 3, 6, 7, 100])
def test_length_limit(limit: int) -> None:
    engine, prompt = ExtractiveEngine(4096), prompt_for("¿Cuánto es la renta mensual?", [CONTRACT])
    generation = engine.generate(prompt, GenerationSettings(max_tokens=limit))
    expected = ["La", "renta", "mensual", "es", "de", "815", "euros."]
    assert generation.text.split() == expected[:limit]
    assert generation.output_tokens == min(limit, len(expected)) == engine.count_tokens(generation.text)
    assert generation.finish_reason == ("length" if limit < len(expected) else "stop")


def test_streams_step_by_step() -> None:
    steps = list(
        ExtractiveEngine(4096).stream(prompt_for("¿Cuánto es la renta mensual?", [CONTRACT]), GenerationSettings())
    )
    assert len(steps) > 5
    assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)
    assert steps[-1].finish_reason == "stop"


texts = st.text(max_size=200) | st.lists(
    st.sampled_from(["La casa", "es", "azul.", "¿Dónde?", "\n", "\n\n", "- ", "## T", "12", "| x |", "São Paulo"]),
    max_size=30,
).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(texts, st.lists(texts, max_size=4), st.sampled_from(LANGUAGES))
def test_every_quote_is_verbatim(question: str, contents: list[str], language: Language) -> None:
    for quote in select_passages(question, [{"text": text} for text in contents], language):
        assert any(quote in text for text in contents)


@pytest.mark.parametrize(
    ("question", "language", "kind"),
    [
        ("¿Cuándo nació?", "es", "date"),
        ("¿En qué año murió?", "es", "date"),
        ("a que hora abre", "es", "time"),
        ("Que horas fecha?", "pt", "time"),
        ("¿cuanto cuesta?", "es", "amount"),
        ("¿Quiénes vinieron?", "es", "person"),
        ("¿Dónde vive?", "es", "place"),
        ("Em que data chega?", "pt", "date"),
        ("Quantas pessoas vieram?", "pt", "number"),
        ("Quem fez isso?", "pt", "person"),
        ("Onde fica?", "pt", "place"),
        ("How much is it?", "en", "number"),
        ("¿Por qué?", "es", None),
    ],
)
def test_kind_of_question(question: str, language: Language, kind: str | None) -> None:
    found = kind_of(question, language)
    assert (found.name if found else None) == kind


def test_evidence_must_be_news() -> None:
    kind = kind_of("¿Cuándo, después de 1954, murió?", "es")
    assert kind is not None
    assert not kind.has_evidence("Nació en 1954.", "¿Cuándo, después de 1954, murió?")
    assert kind.has_evidence("Murió en 1961.", "¿Cuándo, después de 1954, murió?")


def test_content_stems_leave_function_words_out() -> None:
    asked = list(words("¿Cuál es la capital de Francia?", "es"))
    assert content_stems(asked, "es") == {word.stem for word in asked if word.text in ("capital", "francia")}
    only = list(words("¿Qué es lo que hay?", "es"))
    assert content_stems(only, "es") == {word.stem for word in only}
