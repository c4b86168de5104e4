"""LangChain messages and documents → what chat templates take."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from lince_rag.errors import TemplateError
from lince_rag.models.tool_calls import to_json, write_calls
from lince_rag.text.language import DEFAULT_LANGUAGE, Language
from lince_rag.text.wording import wording

_ROLES: dict[type[BaseMessage], str] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "user",
}

# Blocks of an AI message that say what its tool_calls say.
_CALL_BLOCKS = frozenset({"tool_use", "tool_call"})


# Metadata of a chunk that an engine may look at.
DESCRIPTION: Final = ("title", "heading", "language", "relevance", "confidence")


def as_template_documents(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Turn chunks into what chat templates take.

    Args:
        documents: The chunks.

    Returns:
        Dicts with ``text``, and with ``title``, ``heading``, ``language`` and a retriever's ``relevance``
        and ``confidence`` where the chunk has them. Templates use ``text`` and ``title``; the rest is
        for the extractive engine.
    """
    converted = []
    for document in documents:
        entry: dict[str, Any] = {"text": document.page_content}
        for key in DESCRIPTION:
            if (value := document.metadata.get(key)) not in (None, ""):
                entry[key] = value
        converted.append(entry)
    return converted


def to_template(
    messages: Sequence[BaseMessage],
    documents: Sequence[Document] = (),
    language: Language = DEFAULT_LANGUAGE,
) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Turn messages and documents into what chat templates take.

    The calls of an AI message are written as the model writes them. The results of tools, errors too, become the
    input of a user turn.

    Args:
        messages: System, human, AI and tool messages with text; a ``text-plain`` block is a document, and a human
            message may have an ``input`` in its ``additional_kwargs``.
        documents: Further documents, which come first.
        language: The language of the sentence that the results of tools follow.

    Returns:
        The messages and the documents of a template.

    Raises:
        TemplateError: A message or a block has no place in a text prompt.
    """
    converted = as_template_documents(documents)
    names: dict[str | None, str] = {}
    turns: list[dict[str, str]] = []
    for before, message in zip([None, *messages], messages, strict=False):
        content = "".join(_texts(message, converted))
        if isinstance(message, ToolMessage):
            name = message.name or names.get(message.tool_call_id) or message.tool_call_id
            if not isinstance(before, ToolMessage):
                turns.append({"role": "user", "content": wording("results", language)})
            # As JSON, so that no result can look like another's.
            result = to_json({"name": name, "error" if message.status == "error" else "result": content})
            turns[-1]["input"] = "\n".join(filter(None, (turns[-1].get("input"), result)))
            continue
        if isinstance(message, AIMessage) and message.tool_calls:
            names |= {call["id"]: call["name"] for call in message.tool_calls}
            content = "\n".join(filter(None, (content, write_calls(message.tool_calls))))
        turn = {"role": _role(message), "content": content}
        if (entered := message.additional_kwargs.get("input")) is not None:
            turn["input"] = entered
        turns.append(turn)
    return turns, converted


def with_instructions(messages: Sequence[BaseMessage], instructions: SystemMessage) -> list[BaseMessage]:
    """Put instructions after the system message, or first where there is none.

    Args:
        messages: A conversation.
        instructions: The instructions.

    Returns:
        The conversation with them.
    """
    system = [message for message in messages[:1] if isinstance(message, SystemMessage)]
    return [*system, instructions, *messages[len(system) :]]


def join_turns(turns: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Make one turn of those of one role that follow each other, a blank line between their texts.

    Args:
        turns: The messages of a template.

    Returns:
        The messages, their roles alternating.
    """
    joined: list[dict[str, str]] = []
    for turn in turns:
        if not joined or joined[-1]["role"] != turn["role"]:
            joined.append(dict(turn))
            continue
        before = joined[-1]
        for key in ("content", "input"):
            if key in turn:
                before[key] = f"{before[key]}\n\n{turn[key]}" if key in before else turn[key]
    return joined


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return role
    raise TemplateError(
        f"A message of type {message.type!r} has no place in these formats.",
        hint="Use system, human, AI and tool messages.",
    )


def _texts(message: BaseMessage, documents: list[dict[str, Any]]) -> list[str]:
    """Return the texts of a message; its plain-text documents join the others."""
    texts = []
    for block in [message.content] if isinstance(message.content, str) else message.content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(str(block["text"]))
        elif block.get("type") == "text-plain" and isinstance(block.get("text"), str):
            title = {"title": block["title"]} if block.get("title") else {}
            documents.append({"text": block["text"], **title})
        elif not (isinstance(message, AIMessage) and block.get("type") in _CALL_BLOCKS):
            raise TemplateError(
                f"A content block of type {block.get('type')!r} cannot be written into a text prompt.",
                hint="These models read text, and documents as text-plain blocks.",
            )
    return texts
