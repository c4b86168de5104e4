from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda
from pydantic import Field

from lince_rag import Answer, ChatLince, Index, LinceLLM, create_rag_chain
from lince_rag.errors import ConfigurationError
from lince_rag.text.language import wording
from tests.unit_tests.chain_samples import QUESTION, TEXTS, Fixed, chain, chunks


def check(answer: Answer) -> None:
    assert answer.text == "El comité lo preside Amalia Ortuño."
    assert answer.language == "es"
    assert answer.grounded
    assert not answer.abstained
    (citation,) = answer.citations
    assert TEXTS[citation.source][citation.start : citation.end] == citation.quote == answer.text
    assert len(answer.documents) == 3
    assert answer.usage
    assert answer.usage["output_tokens"] == 6


async def test_every_way_to_call_it() -> None:
    check(chain().invoke(QUESTION))
    check(await chain().ainvoke({"question": QUESTION}))
    for answer in chain().batch([QUESTION, {"question": QUESTION, "history": []}]):
        check(answer)
    for answer in await chain().abatch([QUESTION]):
        check(answer)
    *pieces, last = list(chain().stream(QUESTION))
    assert "".join(pieces) == last.text
    assert len(pieces) == 6
    check(last)
    *pieces, last = [step async for step in chain().astream(QUESTION)]
    assert "".join(pieces) == last.text
    check(last)


def test_composes_with_other_runnables() -> None:
    composed = (lambda question: {"question": question}) | chain() | (lambda answer: answer.text)
    assert composed.invoke(QUESTION) == "El comité lo preside Amalia Ortuño."


def test_stream_gives_text_before_the_answer_is_whole() -> None:
    steps = chain().stream(QUESTION)
    assert next(steps) == "El"


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("¿Cuál es la capital de Noruega?", "es"),
        ("Qual é a capital da Noruega?", "pt"),
        ("What is the capital of Norway?", "en"),
    ],
)
def test_the_question_decides_the_language_of_the_abstention(question: str, language: Any) -> None:
    answer = chain().invoke(question)
    assert (answer.language, answer.text) == (language, wording("abstention", language))
    assert answer.abstained
    assert not answer.grounded
    assert not answer.citations


def test_a_fixed_language_wins() -> None:
    assert chain(language="pt").invoke("¿Cuál es la capital de Noruega?").text == wording("abstention", "pt")
    with pytest.raises(ConfigurationError, match="fr"):
        chain(language="fr")


def test_a_short_follow_up_keeps_the_language_of_the_history() -> None:
    history = [HumanMessage("Qual foi o dia da reunião de condomínio?"), AIMessage("12 de maio")]
    assert chain().invoke({"question": "2020?", "history": history}).language == "pt"


@pytest.mark.parametrize("question", ["elevador", "1.100 euros"])
def test_a_question_without_a_language_gets_that_of_the_documents(tmp_path: Path, question: str) -> None:
    (tmp_path / "ata.txt").write_text(TEXTS["ata"], encoding="utf-8")
    with Index.open(tmp_path / "index") as index:
        index.ingest(tmp_path / "ata.txt")
        asking = create_rag_chain(ChatLince(), index.as_retriever())
        assert asking.invoke(question).language == "pt"
        history = [HumanMessage("¿Cuánto se paga de impuestos este año?"), AIMessage("No lo dicen los textos.")]
        assert asking.invoke({"question": question, "history": history}).language == "es"
        assert asking.invoke("¿Cuánto cuesta el ascensor?").language == "es"


@pytest.mark.parametrize("given", ["", "  ", {}, {"question": 3}, {"question": "x", "histroy": []}])
def test_wrong_input(given: Any) -> None:
    with pytest.raises(ConfigurationError):
        chain().invoke(given)


def test_no_documents() -> None:
    answer = create_rag_chain(ChatLince(), Fixed(documents=[])).invoke(QUESTION)
    assert answer.abstained
    assert answer.documents == []


def test_context_that_does_not_fit_is_reported() -> None:
    answer = chain("agenda", "gato", "ata", max_context_tokens=26).invoke(QUESTION)
    assert [document.metadata["source"] for document in answer.documents] == ["agenda"]
    assert [document.metadata["source"] for document in answer.omitted] == ["gato", "ata"]
    assert answer.text == "El comité lo preside Amalia Ortuño."
    shorter = chain("agenda", "gato", max_context_tokens=20).invoke("¿Cuándo es la reunión del comité?")
    assert shorter.documents[0].page_content == "La reunión del comité es el martes 3 de marzo."
    assert [document.metadata["source"] for document in shorter.shortened] == ["agenda"]
    assert shorter.text == shorter.citations[0].quote == "La reunión del comité es el martes 3 de marzo."


def test_the_prompt_always_fits_the_window() -> None:
    long = "La reunión del comité es el martes 3 de marzo. " * 300
    documents = [Document(long.strip(), metadata={"source": str(number), "start": 0}) for number in range(5)]
    llm = ChatLince()
    answer = create_rag_chain(llm, Fixed(documents=documents)).invoke(QUESTION)
    assert answer.usage
    assert llm.context_window - 2000 < answer.usage["input_tokens"] <= llm.context_window - llm.answer_tokens
    assert len(answer.documents) + len(answer.omitted) == 5
    assert len(answer.shortened) == 1


def test_a_long_history_is_dropped_from_its_beginning_and_reported() -> None:
    turns = [turn for n in range(40) for turn in (HumanMessage(f"¿Qué {n}? " + "bla " * 100), AIMessage("Eso."))]
    answer = chain().invoke({"question": QUESTION, "history": turns})
    assert answer.text == "El comité lo preside Amalia Ortuño."
    assert 0 < answer.omitted_turns < 80
    assert answer.omitted_turns % 2 == 0
    assert answer.usage
    assert answer.usage["input_tokens"] < 4096


class Recorder(GenericFakeChatModel):
    """A foreign chat model that keeps what it was sent."""

    seen: list[Any] = Field(default_factory=list)

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append(messages)
        return super()._generate(messages, *args, **kwargs)


def test_any_chat_model_gets_the_context_in_the_human_message() -> None:
    llm = Recorder(messages=iter([AIMessage("A reunião foi no dia 12 de maio. Os marcianos vieram.")]))
    answer = chain(llm=llm).invoke("Quando foi a reunião de condomínio?")
    system, human = llm.seen[0]
    assert isinstance(system, SystemMessage)
    assert wording("abstention", "pt") in system.text
    assert all(text in human.text for text in TEXTS.values())
    assert human.text.endswith("Quando foi a reunião de condomínio?")
    assert [citation.source for citation in answer.citations] == ["ata"]
    assert not answer.grounded


def test_any_chat_model_that_abstains() -> None:
    llm = FakeListChatModel(responses=["No lo encuentro en los documentos."])
    answer = chain(llm=llm).invoke(QUESTION)
    assert answer.abstained
    assert answer.citations == []


def test_any_chat_model_streams() -> None:
    llm = FakeListChatModel(responses=["El comité lo preside Amalia Ortuño."])
    *pieces, last = list(chain(llm=llm).stream(QUESTION))
    assert "".join(pieces) == last.text
    assert last.grounded


class Events(BaseCallbackHandler):
    def __init__(self) -> None:
        self.names: list[str] = []

    def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
        self.names.append("chain")

    def on_retriever_start(self, *args: Any, parent_run_id: Any = None, **kwargs: Any) -> None:
        self.names.append(f"retriever {parent_run_id is not None}")

    def on_chat_model_start(self, *args: Any, parent_run_id: Any = None, **kwargs: Any) -> None:
        self.names.append(f"model {parent_run_id is not None}")

    def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        self.names.append("token")


def test_callbacks_see_the_parts_as_children() -> None:
    events = Events()
    chain().invoke(QUESTION, config={"callbacks": [events]})
    assert events.names == ["chain", "retriever True", "model True"]
    events = Events()
    list(chain().stream(QUESTION, config={"callbacks": [events]}))
    assert events.names[:3] == ["chain", "retriever True", "model True"]
    assert events.names.count("token") == 7


@pytest.mark.parametrize("llm", ["lince-zero", ChatLince, LinceLLM(), LinceLLM().bind(n=2), Fixed(documents=[])])
def test_what_is_no_chat_model_is_refused_at_once(llm: Any) -> None:
    with pytest.raises(ConfigurationError, match="is not a chat model"):
        create_rag_chain(llm, Fixed(documents=[]))


def test_what_is_no_retriever_is_refused_at_once(tmp_path: Path) -> None:
    with Index.open(tmp_path, embeddings="embedded") as index:
        for wrong in (index, index.as_retriever, str(tmp_path), ChatLince(), None):
            with pytest.raises(ConfigurationError, match="is not a retriever") as error:
                create_rag_chain(ChatLince(), wrong)
            assert "as_retriever()" in error.value.hint
        create_rag_chain(ChatLince(), index.as_retriever().with_retry())
    create_rag_chain(RunnableLambda(lambda _: AIMessage("Sí.")), RunnableLambda(lambda _: chunks()))


def test_errors_reach_the_caller() -> None:
    llm = ChatLince(model="lince-zero")
    with pytest.raises(Exception, match="lince-zero"):
        list(chain(llm=llm).stream(QUESTION))


def test_answer_round_trips_through_json() -> None:
    answer = chain().invoke(QUESTION)
    assert Answer.model_validate_json(answer.model_dump_json()) == answer
