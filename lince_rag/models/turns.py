"""The parts of a conversation with tools: the last question, the calls made for it, and what they found."""

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage

from lince_rag.text.confidence import strongest_confidence


def last_question(messages: Sequence[BaseMessage]) -> str:
    """Return the text of the last human message; empty if there is none."""
    return next((str(turn.text) for turn in reversed(messages) if isinstance(turn, HumanMessage)), "")


def current_turn(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return the messages after the last human message: calls and their results."""
    after = next((at for at in range(len(messages), 0, -1) if isinstance(messages[at - 1], HumanMessage)), 0)
    return list(messages[after:])


def made_calls(messages: Iterable[BaseMessage]) -> list[ToolCall]:
    """Return all tool calls in the messages."""
    return [call for message in messages if isinstance(message, AIMessage) for call in message.tool_calls]


def found_documents(messages: Iterable[BaseMessage]) -> list[Document]:
    """Return the documents in the artifacts of tool results, each once, the most confident search first."""
    artifacts = [message.artifact for message in messages if isinstance(message, ToolMessage)]
    results = [
        [document for document in artifact if isinstance(document, Document)]
        for artifact in artifacts
        if isinstance(artifact, list)
    ]
    found: dict[tuple[str, Any], Document] = {}
    for documents in sorted(results, key=_confidence, reverse=True):
        for document in documents:
            found.setdefault((document.page_content, document.metadata.get("source")), document)
    return list(found.values())


def _confidence(documents: Iterable[Document]) -> float:
    return strongest_confidence(document.metadata for document in documents) or 0.0


def read_results(messages: Sequence[BaseMessage]) -> tuple[list[BaseMessage], list[Document]]:
    """Return the conversation without calls and results, and what was found for the last question.

    A tool that returns no documents counts with its text; errors are left out.
    """
    turn = current_turn(messages)
    results = [message for message in turn if isinstance(message, ToolMessage) and message.status != "error"]
    texts = [Document(text) for result in results if not found_documents([result]) and (text := str(result.text))]
    return without_calls(messages), [*found_documents(results), *texts]


def without_calls(messages: Iterable[BaseMessage], name: str | None = None) -> list[BaseMessage]:
    """Return a conversation without the calls of one tool and their results; ``None`` leaves out every tool."""
    kept: list[BaseMessage] = []
    left_out: set[str | None] = set()
    for message in messages:
        if isinstance(message, AIMessage) and message.tool_calls:
            others = [call for call in message.tool_calls if name is not None and call["name"] != name]
            left_out = {call["id"] for call in message.tool_calls if call not in others}
            if others:
                kept.append(message.model_copy(update={"tool_calls": others}))
        elif not isinstance(message, ToolMessage) or (name and message.tool_call_id not in left_out):
            kept.append(message)
    return kept
