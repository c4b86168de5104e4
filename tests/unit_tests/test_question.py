from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.retrievers import BaseRetriever

from lince_rag import ChatLince, create_rag_chain
from lince_rag.chain.question import accept_rewriting, needs_rewriting, rewrite_by_rules, topic_readings
from lince_rag.errors import ConfigurationError
from lince_rag.text.language import LANGUAGES, Language, wording
from tests.unit_tests.chain_samples import Fixed, chain, chunks


def turns(*questions: str) -> list[BaseMessage]:
    return [turn for question in questions for turn in (HumanMessage(question), AIMessage("…"))]


@pytest.mark.parametrize(
    ("language", "conversation", "whole"),
    [
        (
            "es",
            ["¿Cuántos habitantes tenía Burgos en 2010?", "¿Y en 2020?"],
            "¿Cuántos habitantes tenía Burgos en 2020?",
        ),
        (
            "es",
            ["¿Cuántos habitantes tenía Burgos en 2010?", "¿Y en 2020?", "¿Y Palencia?"],
            "¿Cuántos habitantes tenía Palencia en 2020?",
        ),
        (
            "pt",
            ["Quem foi o primeiro presidente do Brasil?", "E quem foi o segundo?"],
            "Quem foi o segundo presidente do Brasil?",
        ),
        ("pt", ["Quem foi o presidente do Brasil?", "Onde ele nasceu?"], "Onde ele nasceu? (presidente Brasil)"),
        (
            "es",
            ["¿Cuánto es la fianza del contrato?", "¿Cuándo se devuelve?"],
            "¿Cuándo se devuelve? (fianza contrato)",
        ),
        ("en", ["Who chairs the committee?", "And since when?"], "And since when? (chairs committee)"),
        (
            "es",
            ["¿Cuánto es la fianza?", "¿Qué presión debe tener la caldera?"],
            "¿Qué presión debe tener la caldera?",
        ),
        ("es", ["¿Y en 2020?"], "¿Y en 2020?"),
    ],
)
def test_rules_carry_over_what_is_missing(language: Language, conversation: list[str], whole: str) -> None:
    assert rewrite_by_rules(conversation[-1], turns(*conversation[:-1]), language) == whole


@pytest.mark.parametrize(
    ("language", "question", "half"),
    [
        ("es", "¿Cuánto es la fianza?", False),
        ("es", "¿Cuándo vence el contrato?", False),
        ("es", "¿Quién lo preside?", True),
        ("es", "¿Y el precio?", True),
        ("es", "¿Y qué presión tiene la caldera?", False),
        ("es", "¿Y cuál es el precio?", True),
        ("es", "¿Quién fue el segundo?", True),
        ("es", "¿Por qué?", True),
        ("pt", "Quanto é o aluguel?", False),
        ("pt", "Quem foi o segundo?", True),
        ("pt", "E a garantia?", True),
        ("en", "What is the deposit?", False),
        ("en", "And the price?", True),
    ],
)
def test_a_short_question_that_names_its_subject_is_whole(language: Language, question: str, half: bool) -> None:
    """After "gracias", a whole question must not be searched for together with what was asked before."""
    history = turns("¿Cuántos habitantes tenía Burgos en 2010?", "Gracias")
    assert needs_rewriting(question, history, language) is half


questions = st.text(max_size=40) | st.sampled_from(
    ["¿Y en 2020?", "Quem foi o segundo?", "(", "", "And Rome in 1999?"]
)


@given(questions, st.lists(questions, max_size=4), st.sampled_from(LANGUAGES))
def test_rules_never_fail_and_leave_whole_questions_alone(
    question: str, before: list[str], language: Language
) -> None:
    whole = rewrite_by_rules(question, turns(*before), language)
    if not needs_rewriting(question, turns(*before), language):
        assert whole == question
    assert bool(whole.strip()) == bool(question.strip()) or before


@pytest.mark.parametrize(
    ("reply", "accepted"),
    [
        ("¿Cuántos habitantes tenía Burgos en 2020?", True),
        ("Pregunta: ¿Cuántos habitantes tenía Burgos en 2020?\nRespuesta: muchos", True),
        ("", False),
        ("How many inhabitants did the city of Burgos have in 2020?", False),
        ("palabra " * 60, False),
    ],
)
def test_a_rewriting_of_the_model_is_taken_if_it_is_one(reply: str, accepted: bool) -> None:
    history = turns("¿Cuántos habitantes tenía Burgos en 2010?")
    whole = accept_rewriting(reply, "¿Y en 2020?", history, "es")
    assert whole == "¿Cuántos habitantes tenía Burgos en 2020?"
    if not accepted:
        assert whole == rewrite_by_rules("¿Y en 2020?", history, "es")


class Recording(Fixed):
    """Notes what it is asked."""

    asked: list[str]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        self.asked.append(query)
        return self.documents


FOLLOW_UP = {
    "question": "¿Y quién lo preside?",
    "history": [("human", "¿Cuándo es la reunión del comité?"), ("ai", "El martes.")],
}


@pytest.mark.parametrize("call", ["invoke", "ainvoke", "stream", "astream"])
async def test_the_embedded_engine_answers_a_follow_up(call: str) -> None:
    retriever = Recording(documents=chunks(), asked=[])
    asking = create_rag_chain(ChatLince(), retriever)
    if call == "invoke":
        answer = asking.invoke(FOLLOW_UP)
    elif call == "ainvoke":
        answer = await asking.ainvoke(FOLLOW_UP)
    elif call == "stream":
        answer = list(asking.stream(FOLLOW_UP))[-1]
    else:
        answer = [step async for step in asking.astream(FOLLOW_UP)][-1]
    assert "El comité lo preside Amalia Ortuño." in answer.text
    assert retriever.asked == [answer.standalone] == ["¿Y quién lo preside? (reunión comité)"]


class Measuring(BaseRetriever):
    """Gives one chunk with a confidence for each question; the first words of the question say which."""

    found: dict[str, tuple[str, float]]
    asked: list[str]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        self.asked.append(query)
        text, confidence = next(value for start, value in self.found.items() if query.startswith(start))
        return [Document(text, metadata={"source": text, "start": 0, "confidence": confidence})]


TOPIC = "¿Cuánto cuesta la noche en el refugio?"
BED = "En el refugio se reserva la cama con diez días."
SHOP = "La tienda abre los lunes y reserva pan."
PRICE = "La noche en el refugio cuesta 16 euros."


def after_topic(question: str, **found: tuple[str, float]) -> tuple[str, list[str]]:
    retriever = Measuring(found={TOPIC: found["topic"], question: found["asked"]}, asked=[])
    given = {
        "question": question,
        "history": [("human", TOPIC), ("ai", f"{PRICE} " * 3)],
    }
    answer = create_rag_chain(ChatLince(), retriever).invoke(given)
    return answer.standalone, retriever.asked


def test_the_reading_with_the_best_evidence_is_searched_for() -> None:
    whole = f"{TOPIC} ¿Y cómo se reserva?"
    searched, asked = after_topic("¿Y cómo se reserva?", topic=(BED, 0.8), asked=(SHOP, 0.3))
    assert searched == whole == asked[-1]
    searched, _ = after_topic("¿Y cómo se reserva?", topic=(BED, 0.3), asked=(SHOP, 0.8))
    assert searched.startswith("¿Y cómo se reserva?")


def test_a_reading_that_finds_only_the_topic_is_not_the_question() -> None:
    searched, _ = after_topic("¿Y cómo se reserva?", topic=(PRICE, 0.9), asked=(SHOP, 0.3))
    assert searched.startswith("¿Y cómo se reserva?")


def test_a_whole_question_that_finds_its_answer_is_left_alone() -> None:
    question = "¿Cuándo abre la tienda del pueblo?"
    assert after_topic(question, topic=(SHOP, 0.99), asked=(SHOP, 0.5)) == (question, [question])
    # It finds little, but the topic does not gain enough.
    assert after_topic(question, topic=(SHOP, 0.4), asked=(SHOP, 0.2))[0] == question
    assert after_topic(question, topic=(SHOP, 0.9), asked=(SHOP, 0.2))[0] == f"{TOPIC} {question}"


def test_thanks_are_no_topic() -> None:
    history = [*turns(TOPIC), HumanMessage("muchas gracias"), AIMessage("Aquí estoy.")]
    assert topic_readings("¿Y cómo se reserva?", history, "es") == [
        f"{TOPIC} ¿Y cómo se reserva?",
        f"{TOPIC} … ¿Y cómo se reserva?",
    ]
    long = [*turns(TOPIC, "¿Y quién lo atiende?")[:-1], AIMessage("palabra " * 40)]
    assert topic_readings("¿Desde cuándo?", long, "es") == [f"{TOPIC} ¿Y quién lo atiende? ¿Desde cuándo?"]
    assert topic_readings("¿Desde cuándo?", [], "es") == []


def test_a_model_rewrites_and_then_answers_the_question_as_it_was_asked() -> None:
    seen: list[str] = []

    class Noting(FakeListChatModel):
        def _call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
            seen.append(messages[-1].text)
            return super()._call(messages, *args, **kwargs)

    llm = Noting(responses=["¿Quién preside el comité?", "El comité lo preside Amalia Ortuño."])
    retriever = Recording(documents=chunks(), asked=[])
    answer = create_rag_chain(llm, retriever).invoke(FOLLOW_UP)
    assert retriever.asked == ["¿Quién preside el comité?"] == [answer.standalone]
    assert wording("question", "es") in seen[0]
    assert seen[1].endswith(str(FOLLOW_UP["question"]))
    assert answer.grounded


def test_off_searches_for_the_question_as_it_is() -> None:
    retriever = Recording(documents=chunks(), asked=[])
    create_rag_chain(ChatLince(), retriever, rewriting="off").invoke(FOLLOW_UP)
    assert retriever.asked == [FOLLOW_UP["question"]]


def test_wrong_mode_is_named() -> None:
    with pytest.raises(ConfigurationError, match="sometimes"):
        chain(rewriting="sometimes")
