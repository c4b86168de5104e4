"""The document agent on the embedded default: it searches, cites, searches again, abstains and remembers."""

from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents.middleware import ModelRequest, dynamic_prompt, wrap_model_call
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from lince_rag import Answer, BestOf, ChatLince, Index, create_document_agent
from lince_rag.agents.agent import SEARCH_TOOL
from lince_rag.errors import ConfigurationError, UnknownModelError
from lince_rag.text.language import wording
from tests.unit_tests.chain_samples import QUESTION, TEXTS

ANSWER = "El comité lo preside Amalia Ortuño."


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    folder = tmp_path_factory.mktemp("agent")
    documents = folder / "documents"
    documents.mkdir()
    for name, text in TEXTS.items():
        (documents / f"{name}.md").write_text(text, encoding="utf-8")
    with Index.open(folder / "index") as opened:
        opened.ingest(documents)
        yield opened


class Scripted(GenericFakeChatModel):
    """Another package's model, which calls tools: it says what it was told to, and keeps what it was asked."""

    asked: list[list[BaseMessage]]
    bound: list[dict[str, Any]]

    def bind_tools(self, tools: Any, **options: Any) -> Runnable[Any, AIMessage]:
        self.bound.append({"tools": [each.name for each in tools], **options})
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.asked.append(messages)
        return super()._generate(messages, *args, **kwargs)


def scripted(*replies: AIMessage) -> Scripted:
    return Scripted(messages=iter(replies), asked=[], bound=[])


def search(query: str) -> AIMessage:
    call = {"name": SEARCH_TOOL, "args": {"query": query}, "id": query, "type": "tool_call"}
    return AIMessage("", tool_calls=[call])  # type: ignore[list-item]


def asked(question: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(question)]}


def kinds(messages: list[BaseMessage]) -> list[str]:
    return ["call" if isinstance(each, AIMessage) and each.tool_calls else each.type for each in messages]


def test_it_searches_and_cites(index: Index) -> None:
    state = create_document_agent(ChatLince(), index).invoke(asked(QUESTION))
    assert kinds(state["messages"]) == ["human", "call", "tool", "ai"]
    answer = state["answer"]
    assert isinstance(answer, Answer)
    assert answer.text == state["messages"][-1].text == ANSWER
    assert answer.grounded
    (citation,) = answer.citations
    assert index.text(citation.source)[citation.start : citation.end] == citation.quote == ANSWER
    assert answer.usage is not None
    last = state["messages"][-1].usage_metadata
    assert answer.usage["output_tokens"] > last["output_tokens"]


async def test_the_async_twin_says_the_same(index: Index) -> None:
    agent = create_document_agent(ChatLince(), index)
    state = await agent.ainvoke(asked(QUESTION))
    assert state["answer"].text == ANSWER
    assert state["answer"].citations == agent.invoke(asked(QUESTION))["answer"].citations


def test_it_searches_again_in_other_words(index: Index) -> None:
    question = "Buenas tardes, tendrías la amabilidad de confirmarme quién preside el comité"
    state = create_document_agent(ChatLince(), index, minimum_confidence=0.55).invoke(asked(question))
    assert kinds(state["messages"]) == ["human", "call", "tool", "call", "tool", "ai"]
    assert ANSWER in state["answer"].text


def test_it_abstains(index: Index) -> None:
    state = create_document_agent(ChatLince(), index).invoke(asked("¿Quién pintó el Guernica?"))
    assert kinds(state["messages"]).count("call") == 2
    answer = state["answer"]
    assert answer.abstained
    assert answer.text == wording("abstention", "es")
    assert answer.citations == []


def test_steps_are_bounded(index: Index) -> None:
    agent = create_document_agent(ChatLince(), index, max_searches=1)
    assert kinds(agent.invoke(asked("¿Quién pintó el Guernica?"))["messages"]) == ["human", "call", "tool", "ai"]


def test_it_streams_its_steps_and_its_tokens(index: Index) -> None:
    agent = create_document_agent(ChatLince(), index)
    steps = [name for update in agent.stream(asked(QUESTION), stream_mode="updates") for name in update]
    assert [step for step in steps if step in ("model", "tools")] == ["model", "tools", "model"]
    tokens = [
        chunk.text
        for chunk, _ in agent.stream(asked(QUESTION), stream_mode="messages")
        if isinstance(chunk, AIMessageChunk)
    ]
    assert "".join(tokens) == ANSWER
    assert len(list(filter(None, tokens))) > 3


def test_it_remembers(index: Index, caplog: pytest.LogCaptureFixture) -> None:
    agent = create_document_agent(ChatLince(), index, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "una"}}
    assert agent.invoke(asked("¿Cuándo es la reunión del comité?"), thread)["answer"].grounded
    followed = agent.invoke(asked("¿Y quién lo preside?"), thread)
    assert ANSWER in followed["answer"].text
    assert "comité" in followed["answer"].standalone
    assert kinds(followed["messages"]).count("human") == 2
    other = agent.invoke(asked("¿Y quién lo preside?"), {"configurable": {"thread_id": "otra"}})
    assert other["answer"].standalone == "¿Y quién lo preside?"
    # A checkpoint holds nothing that a later version of LangGraph would refuse to read.
    assert "unregistered" not in caplog.text


def test_the_language_is_the_askers(index: Index) -> None:
    agent = create_document_agent(ChatLince(), index)
    assert agent.invoke(asked("Quem pintou o Guernica?"))["answer"].text == wording("abstention", "pt")
    fixed = create_document_agent(ChatLince(), index, language="en")
    assert fixed.invoke(asked("Quem pintou o Guernica?"))["answer"].text == wording("abstention", "en")


def test_a_model_of_another_package(index: Index) -> None:
    llm = scripted(search("quién preside"), AIMessage("Lo preside Amalia Ortuño y es muy alta según dicen todos."))
    state = create_document_agent(llm, index).invoke(asked(QUESTION))
    system, human, call, result = llm.asked[1]
    assert wording("abstention", "es") in system.text
    assert SEARCH_TOOL in system.text
    assert (human.text, kinds([call])) == (QUESTION, ["call"])
    # What was found stays in the result of the tool.
    assert ANSWER in result.text
    assert not state["answer"].grounded
    assert state["answer"].unsupported


def test_what_is_unsupported_is_quoted_instead(index: Index) -> None:
    llm = scripted(search(QUESTION), AIMessage("Lo preside Blas Piñar desde el año 1971 en Toledo."))
    agent = create_document_agent(llm, index, on_unsupported="extract")
    state = agent.invoke(asked(QUESTION))
    # What is said without a search would be supported by nothing.
    assert [bound["tool_choice"] for bound in llm.bound] == [SEARCH_TOOL, None]
    assert state["answer"].corrections == ["quoted_instead"]
    assert state["answer"].text == state["messages"][-1].text == ANSWER
    assert len(state["messages"]) == 4


def test_a_model_is_made_to_search_again_and_not_asked_for_what_is_not_there(index: Index) -> None:
    llm = scripted(search("Guernica"), search("cuadro de Picasso"))
    state = create_document_agent(llm, index).invoke(asked("¿Quién pintó el Guernica?"))
    assert [bound["tool_choice"] for bound in llm.bound] == [None, SEARCH_TOOL]
    assert state["answer"].abstained
    assert state["messages"][-1].text == wording("abstention", "es")


def test_more_tools_are_called_and_their_errors_read(index: Index) -> None:
    @tool
    def sumar(a: int, b: int) -> int:
        """Suma dos números."""
        return a + b

    call = {"name": "sumar", "args": {"a": 2, "b": 3}, "id": "1", "type": "tool_call"}
    llm = scripted(AIMessage("", tool_calls=[call]), AIMessage("Son 5."))  # type: ignore[list-item]
    state = create_document_agent(llm, index, [sumar]).invoke(asked("¿Cuánto es 2 más 3?"))
    assert llm.bound[0]["tools"] == [SEARCH_TOOL, "sumar"]
    assert [each.text for each in state["messages"] if isinstance(each, ToolMessage)] == ["5"]
    assert state["answer"].text == "Son 5."


def test_a_model_that_never_stops_calling_has_to_answer(index: Index) -> None:
    @tool
    def eco(texto: str) -> str:
        """Repite un texto."""
        return texto

    calls = [
        AIMessage("", tool_calls=[{"name": "eco", "args": {"texto": str(at)}, "id": str(at), "type": "tool_call"}])
        for at in range(8)
    ]
    llm = scripted(*calls, AIMessage("Ya."))
    state = create_document_agent(llm, index, [eco]).invoke(asked("Repite."))
    assert len(llm.bound) == 8
    assert state["answer"].text == "Ya."


def call_of(name: str, **arguments: Any) -> AIMessage:
    call = {"name": name, "args": arguments, "id": name, "type": "tool_call"}
    return AIMessage("", tool_calls=[call])  # type: ignore[list-item]


@tool
def saldo() -> str:
    """Dice el saldo de la cuenta."""
    return "El saldo de la cuenta es de 500 euros."


def test_an_answer_may_rest_on_what_another_tool_said(index: Index) -> None:
    llm = scripted(search("saldo"), call_of("saldo"), AIMessage("El saldo de la cuenta es de 500 euros."))
    agent = create_document_agent(llm, index, [saldo], on_unsupported="drop", minimum_confidence=0)
    answer = agent.invoke(asked("¿Cuál es el saldo de la cuenta?"))["answer"]
    assert answer.grounded
    assert [citation.source for citation in answer.citations] == ["saldo"]


def test_the_result_of_a_tool_that_ends_the_run_stays_as_it_is(index: Index) -> None:
    @tool(return_direct=True)
    def directo() -> str:
        """Da un texto."""
        return "This is the English text of the contract, word for word."

    state = create_document_agent(scripted(call_of("directo")), index, [directo]).invoke(asked("Dame el texto."))
    assert kinds(state["messages"]) == ["human", "call", "tool"]
    assert state["answer"].text == state["messages"][-1].text
    assert not state["answer"].grounded


def test_other_calls_of_earlier_turns_are_still_shown(index: Index) -> None:
    llm = scripted(
        call_of("saldo"), AIMessage("Son 500 euros."), search("comité"), AIMessage(ANSWER), AIMessage("Ya.")
    )
    agent = create_document_agent(llm, index, [saldo], checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "saldos"}}
    for question in ("¿Cuál es el saldo?", QUESTION, "Gracias."):
        agent.invoke(asked(question), thread)
    shown = llm.asked[-1][1:]
    assert kinds(shown) == ["human", "call", "tool", "ai", "human", "ai", "human"]
    assert shown[2].text == saldo.invoke({})


def test_all_instructions_reach_the_model(index: Index) -> None:
    """Of the caller, of the conversation and of other middleware."""

    @dynamic_prompt
    def prompt(request: ModelRequest[Any]) -> str:
        return "Tutea siempre."

    llm = scripted(AIMessage("Hola."))
    agent = create_document_agent(llm, index, system_prompt="Sé breve.", middleware=[prompt])
    agent.invoke({"messages": [SystemMessage("Eres Lince."), HumanMessage("Hola")]})
    system, *rest = llm.asked[0]
    assert all(part in system.text for part in ("Sé breve.", "Tutea siempre.", "Eres Lince.", SEARCH_TOOL))
    assert kinds(rest) == ["human"]


def test_what_comes_with_the_question_is_read(index: Index) -> None:
    blocks: list[Any] = [
        {"type": "text", "text": "¿Cuánto es la fianza?"},
        {"type": "text-plain", "text": "La fianza es de 815 euros.", "mime_type": "text/plain"},
    ]
    question = HumanMessage(blocks)
    state = create_document_agent(ChatLince(), index).invoke({"messages": [question]})
    assert state["answer"].text == "La fianza es de 815 euros."
    llm = scripted(AIMessage("Son 815 euros."))
    create_document_agent(llm, index).invoke({"messages": [question]})
    assert llm.asked[0][1].content == blocks


def test_calls_at_once_are_bounded_too(index: Index) -> None:
    many = AIMessage("", tool_calls=[search(str(number)).tool_calls[0] for number in range(12)])
    state = create_document_agent(scripted(many, AIMessage("Ya.")), index, minimum_confidence=0).invoke(
        asked(QUESTION)
    )
    assert kinds(state["messages"]).count("tool") == 2


def test_the_embedded_default_only_searches(index: Index) -> None:
    deleted: list[str] = []

    @tool
    def borrar_documento(nombre: str) -> str:
        """Borra el documento en el que se dice quién preside el comité."""
        deleted.append(nombre)
        return "borrado"

    state = create_document_agent(ChatLince(), index, [borrar_documento]).invoke(asked(QUESTION))
    assert state["answer"].text == ANSWER
    assert not deleted


def test_another_model_that_stands_in_gets_what_it_can_read(index: Index) -> None:
    """The prompt is written for the model that is asked: what another middleware puts in is not a ChatLince."""
    other = scripted(search(QUESTION), AIMessage(ANSWER))

    @wrap_model_call
    def stand_in(request: ModelRequest[Any], handler: Any) -> Any:
        return handler(request.override(model=other))

    state = create_document_agent(ChatLince(), index, middleware=[stand_in]).invoke(asked(QUESTION))
    assert state["answer"].text == ANSWER
    assert [set(bound) for bound in other.bound] == [{"tools", "tool_choice"}] * 2
    assert ANSWER in other.asked[1][-1].text


def test_wrong_arguments(index: Index) -> None:
    with pytest.raises(ConfigurationError, match="BestOf is not a chat model that can call tools"):
        create_document_agent(BestOf(llm=ChatLince()), index)
    with pytest.raises(ConfigurationError, match="str is not a chat model"):
        create_document_agent("extractive", index)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="max_searches='2'"):
        create_document_agent(ChatLince(), index, max_searches="2")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="max_searches=0"):
        create_document_agent(ChatLince(), index, max_searches=0)
    with pytest.raises(ConfigurationError, match="minimum_confidence=2"):
        create_document_agent(ChatLince(), index, minimum_confidence=2)
    with pytest.raises(ConfigurationError, match="on_unsupported='ignore'"):
        create_document_agent(ChatLince(), index, on_unsupported="ignore")  # type: ignore[arg-type]
    with pytest.raises(UnknownModelError, match="gtp"):
        create_document_agent(ChatLince(model="gtp"), index)
