"""The document agent on a checkpoint: a tiny Llama that learns, in the test, to search and then to answer.

Its weights are random at first. It is shown what to say to exactly the prompts that the agent gives, until it says
so by itself: then the agent's own loop, constrained decoding and citations run on a model that decides.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessageChunk, HumanMessage

from lince_rag import ChatLince, Index, create_document_agent
from lince_rag.agents.agent import SEARCH_TOOL
from lince_rag.models.answer_formats import write_calls
from tests.checkpoints import KINDS, build_checkpoint, shared_checkpoint
from tests.teaching import teach

TEXT = "La reunión de la junta es el martes por la tarde. El contrato de alquiler vence el treinta de mayo."
QUESTION = "¿Cuándo vence el contrato de alquiler?"
ANSWER = "El contrato de alquiler vence el treinta de mayo."
SEARCH = write_calls([{"name": SEARCH_TOOL, "args": {"query": "vence el contrato"}}])
WINDOW = 2048


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    folder = tmp_path_factory.mktemp("agent")
    (folder / "documents").mkdir()
    (folder / "documents" / "junta.txt").write_text(TEXT, encoding="utf-8")
    with Index.open(folder / "index") as opened:
        opened.ingest(folder / "documents")
        yield opened


class Prompts(BaseCallbackHandler):
    """Keeps what the model was asked, and how."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Any], dict[str, Any]]] = []

    def on_chat_model_start(self, serialized: Any, messages: list[list[Any]], **kwargs: Any) -> None:
        self.calls.append((messages[0], kwargs["invocation_params"]))


def ask(chat: ChatLince, index: Index) -> tuple[dict[str, Any], list[list[int]]]:
    """Run the agent; return its last state and the prompts of the model, as token ids."""
    prompts = Prompts()
    agent = create_document_agent(chat, index, max_searches=1)
    state = agent.invoke({"messages": [HumanMessage(QUESTION)]}, {"callbacks": [prompts]})
    names = ("tools", "tool_choice")
    encoded = [
        chat.encode(
            messages,
            options.get("documents", ()),
            **{name: options[name] for name in names if options.get(name) is not None},
        )
        for messages, options in prompts.calls
    ]
    return state, encoded


@pytest.fixture(scope="module")
def taught(index: Index, tmp_path_factory: pytest.TempPathFactory) -> ChatLince:
    """A tiny Llama that searches first and then answers."""
    folder = tmp_path_factory.mktemp("taught") / "llama"
    fields = build_checkpoint("llama-2-7b-spanish", folder, context_window=WINDOW).chat_fields
    chat = ChatLince(**fields, max_tokens=160, temperature=0)
    _, (first, *_) = ask(chat, index)
    teach(chat, [(first, SEARCH)])
    _, (first, second, *_) = ask(chat, index)
    teach(chat, [(first, SEARCH), (second, ANSWER)])
    return chat


def test_a_model_that_decides_to_search(taught: ChatLince, index: Index) -> None:
    state, prompts = ask(taught, index)
    kinds = [message.type for message in state["messages"]]
    assert kinds == ["human", "ai", "tool", "ai"]
    (call,) = state["messages"][1].tool_calls
    assert (call["name"], call["args"]) == (SEARCH_TOOL, {"query": "vence el contrato"})
    answer = state["answer"]
    assert answer.text == ANSWER
    assert answer.grounded
    (citation,) = answer.citations
    assert index.text(citation.source)[citation.start : citation.end] == ANSWER
    # What was found is where the format has its context, and nowhere else.
    told = taught.runtime.tokenizer.decode(prompts[1])  # type: ignore[attr-defined]
    assert told.count("treinta de mayo") == 1
    assert told.index("### Contexto:") < told.index("treinta de mayo")


def test_its_steps_and_tokens_stream(taught: ChatLince, index: Index) -> None:
    agent = create_document_agent(taught, index, max_searches=1)
    asked = {"messages": [HumanMessage(QUESTION)]}
    chunks = [
        chunk for chunk, _ in agent.stream(asked, stream_mode="messages") if isinstance(chunk, AIMessageChunk)
    ]
    assert "".join(chunk.text for chunk in chunks) == ANSWER
    arguments = [call["args"] for chunk in chunks for call in chunk.tool_call_chunks]
    assert "".join(filter(None, arguments)) == '{"query":"vence el contrato"}'
    assert len(arguments) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_random_weights_end_with_an_answer(kind: str, index: Index) -> None:
    """Whatever a model says, the steps are bounded, and what is not in the documents is said to be so."""
    fields = shared_checkpoint(kind, context_window=WINDOW).chat_fields
    chat = ChatLince(**{**fields, "max_tokens": 160, "num_beams": 1})
    agent = create_document_agent(chat, index, on_unsupported="extract")
    state = agent.invoke({"messages": [HumanMessage(QUESTION)]})
    answer = state["answer"]
    assert state["messages"][-1].text == answer.text
    searched = [message for message in state["messages"] if message.type == "tool"]
    assert 1 <= len(searched) <= 2
    # It searches for word salad: what it finds holds the answer, or the agent abstains.
    assert answer.abstained or (answer.grounded and answer.text == ANSWER)
