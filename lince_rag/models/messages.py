"""LangChain messages and documents → what chat templates take; generated text → LangChain messages."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call, tool_call, tool_call_chunk

from lince_rag.engines import Generation
from lince_rag.errors import TemplateError
from lince_rag.models.answer_formats import may_be_calls, read_calls, to_json, write_calls
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


class ReplyReader:
    """Makes message chunks of the steps of an answer.

    Args:
        model: The model's name, for the metadata.
        may_call: Whether the answer may call tools; otherwise all of it is content, whatever it looks like.
    """

    def __init__(self, model: str, *, may_call: bool) -> None:
        self._model = model
        self._may_call = may_call
        self._text = ""
        self._given = 0
        # Characters of the arguments given so far, call by call.
        self._calls: list[int] = []
        self._input_tokens_said = False

    def take(self, step: Generation) -> AIMessageChunk:
        """Read the next step.

        Args:
            step: A stretch of the answer; the last one has a finish reason.

        Returns:
            Its message chunk.
        """
        self._text += step.text
        content, calls = "", []
        if self._may_call and may_be_calls(self._text) and not (step.finish_reason and not self._calls_begun):
            calls = self._new_call_chunks()
        else:
            content, self._given = self._text[self._given :], len(self._text)
        # Usage adds up over the chunks of a stream, so the prompt counts once.
        input_tokens = 0 if self._input_tokens_said else step.input_tokens
        self._input_tokens_said = True
        return AIMessageChunk(
            content=content,
            tool_call_chunks=calls,
            response_metadata=_metadata(self._model, step) if step.finish_reason else {},
            usage_metadata=_usage(input_tokens, step.output_tokens),
            chunk_position="last" if step.finish_reason else None,
        )

    @property
    def _calls_begun(self) -> bool:
        return next(read_calls(self._text), None) is not None

    def _new_call_chunks(self) -> list[ToolCallChunk]:
        chunks = []
        for index, call in enumerate(read_calls(self._text)):
            begun = index < len(self._calls)
            if not begun:
                self._calls.append(0)
            new = call.arguments[self._calls[index] :]
            if new or not begun:
                name, call_id = (None, None) if begun else (call.name, _call_id())
                chunks.append(tool_call_chunk(name=name, args=new, id=call_id, index=index))
            self._calls[index] = len(call.arguments)
        return chunks


def read_reply(model: str, generation: Generation, *, may_call: bool) -> AIMessage:
    """Make a message of a whole answer.

    Args:
        model: The model's name, for the metadata.
        generation: The answer.
        may_call: Whether it may call tools.

    Returns:
        The message.
    """
    calls = list(read_calls(generation.text)) if may_call else []
    return AIMessage(
        content="" if calls else generation.text,
        tool_calls=[
            tool_call(name=call.name, args=json.loads(call.arguments), id=_call_id())
            for call in calls
            if call.complete
        ],
        invalid_tool_calls=[
            invalid_tool_call(name=call.name, args=call.arguments, id=_call_id(), error="The answer was cut off.")
            for call in calls
            if not call.complete
        ],
        response_metadata=_metadata(model, generation),
        usage_metadata=_usage(generation.input_tokens, generation.output_tokens),
    )


def _call_id() -> str:
    return f"call_{uuid4().hex}"


def _metadata(model: str, generation: Generation) -> dict[str, Any]:
    return {
        "model_name": model,
        "model_provider": "lince",
        "finish_reason": generation.finish_reason,
        "abstained": generation.abstained,
    }


def _usage(input_tokens: int, output_tokens: int) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=input_tokens, output_tokens=output_tokens, total_tokens=input_tokens + output_tokens
    )
