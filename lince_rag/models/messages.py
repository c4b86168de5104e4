"""LangChain messages and documents → the input of chat templates; generated text → LangChain messages.

And the parts of a conversation with tools: the last question, the calls made for it, and what they found.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
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
    ToolCall,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call, tool_call, tool_call_chunk

from lince_rag.engines import Generation
from lince_rag.engines.json_schema.grammar import to_json
from lince_rag.errors import TemplateError
from lince_rag.models.answer_formats import may_be_calls, read_calls, write_calls
from lince_rag.text.evidence import strongest_confidence
from lince_rag.text.language import DEFAULT_LANGUAGE, Language, wording

_ROLES: Final[dict[type[BaseMessage], str]] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "user",
}

# Content blocks of an AI message that repeat its tool_calls.
_CALL_BLOCKS: Final = frozenset({"tool_use", "tool_call"})

# Metadata that a template document keeps: templates use the title, the rest is for the extractive engine.
_DOCUMENT_METADATA: Final = ("title", "heading", "language", "passages", "confidence")


def as_template_documents(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Turn documents into dicts with ``text`` and the metadata that templates and engines read."""
    return [
        {
            "text": document.page_content,
            **{
                key: value for key in _DOCUMENT_METADATA if (value := document.metadata.get(key)) not in (None, "")
            },
        }
        for document in documents
    ]


def to_template(
    messages: Sequence[BaseMessage],
    documents: Sequence[Document] = (),
    language: Language = DEFAULT_LANGUAGE,
) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Turn messages and documents into the messages and documents of a template.

    The calls of an AI message are written in the form that models generate. Tool results, errors included, become
    the input of a user turn whose text is in the given language. A ``text-plain`` block is a document, which
    follows the given ones; a human message may have an ``input`` in its ``additional_kwargs``.
    """
    converted = as_template_documents(documents)
    names: dict[str | None, str] = {}
    turns: list[dict[str, str]] = []
    for before, message in zip([None, *messages], messages, strict=False):
        content = "".join(_read_blocks(message, converted))
        if isinstance(message, ToolMessage):
            name = message.name or names.get(message.tool_call_id) or message.tool_call_id
            if not isinstance(before, ToolMessage):
                turns.append({"role": "user", "content": wording("results", language)})
            # As JSON, so that a result cannot imitate another one.
            result = to_json({"name": name, "error" if message.status == "error" else "result": content})
            turns[-1]["input"] = "\n".join(filter(None, (turns[-1].get("input"), result)))
            continue
        if isinstance(message, AIMessage) and message.tool_calls:
            names |= {call["id"]: call["name"] for call in message.tool_calls}
            content = "\n".join(filter(None, (content, write_calls(message.tool_calls))))
        turn = {"role": _role(message), "content": content}
        if (input_ := message.additional_kwargs.get("input")) is not None:
            turn["input"] = input_
        turns.append(turn)
    return turns, converted


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return role
    raise TemplateError(
        f"A message of type {message.type!r} cannot be written in these prompt formats.",
        hint="Use system, human, AI and tool messages.",
    )


def _read_blocks(message: BaseMessage, documents: list[dict[str, Any]]) -> list[str]:
    """Return the texts of a message, and append its plain-text documents to the given ones."""
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
                hint="Use text blocks, and text-plain blocks for documents.",
            )
    return texts


def with_instructions(messages: Sequence[BaseMessage], instructions: SystemMessage) -> list[BaseMessage]:
    """Insert instructions after the system message, or at the start if there is none."""
    system = [message for message in messages[:1] if isinstance(message, SystemMessage)]
    return [*system, instructions, *messages[len(system) :]]


def as_conversation(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return messages in an order that formats can write: the system's first, and no reply first or last."""
    system = [message for message in messages if isinstance(message, SystemMessage)]
    turns = [message for message in messages if not isinstance(message, SystemMessage)]
    before = [HumanMessage("")] if not turns or isinstance(turns[0], AIMessage) else []
    after = [HumanMessage("")] if turns and isinstance(turns[-1], AIMessage) else []
    return [*system, *before, *turns, *after]


def join_turns(turns: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Join consecutive turns of one role, with a blank line between their texts, so that roles alternate."""
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


def read_reply(model: str, generation: Generation, *, may_call: bool) -> AIMessage:
    """Make a message of a whole answer, with the model's name in its metadata."""
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
        response_metadata=_metadata(model, generation) | logprobs_info(generation),
        usage_metadata=token_usage(generation.input_tokens, generation.output_tokens, generation.cached_tokens),
    )


class ReplyReader:
    """Makes message chunks of a streamed answer; unless it may call tools, all of its text is content."""

    def __init__(self, model: str, *, may_call: bool) -> None:
        self._model = model
        self._may_call = may_call
        self._text = ""
        # Characters of content given so far, and of the arguments of each call.
        self._given = 0
        self._given_arguments: list[int] = []
        self._prompt_counted = False

    def read(self, step: Generation) -> AIMessageChunk:
        """Make the message chunk of the next part of the answer; the last one has a finish reason."""
        self._text += step.text
        content, calls = "", []
        if self._may_call and may_be_calls(self._text) and not (step.finish_reason and not self._calls_begun):
            calls = self._new_call_chunks()
        else:
            content, self._given = self._text[self._given :], len(self._text)
        # Usage adds up over the chunks of a stream, so the prompt counts once.
        input_tokens, cached = (0, None) if self._prompt_counted else (step.input_tokens, step.cached_tokens)
        self._prompt_counted = True
        return AIMessageChunk(
            content=content,
            tool_call_chunks=calls,
            response_metadata=(_metadata(self._model, step) if step.finish_reason else {}) | logprobs_info(step),
            usage_metadata=token_usage(input_tokens, step.output_tokens, cached),
            chunk_position="last" if step.finish_reason else None,
        )

    @property
    def _calls_begun(self) -> bool:
        return next(read_calls(self._text), None) is not None

    def _new_call_chunks(self) -> list[ToolCallChunk]:
        chunks = []
        for index, call in enumerate(read_calls(self._text)):
            begun = index < len(self._given_arguments)
            if not begun:
                self._given_arguments.append(0)
            new = call.arguments[self._given_arguments[index] :]
            if new or not begun:
                name, call_id = (None, None) if begun else (call.name, _call_id())
                chunks.append(tool_call_chunk(name=name, args=new, id=call_id, index=index))
            self._given_arguments[index] = len(call.arguments)
        return chunks


def _call_id() -> str:
    return f"call_{uuid4().hex}"


def _metadata(model: str, generation: Generation) -> dict[str, Any]:
    return {
        "model_name": model,
        "model_provider": "lince",
        "finish_reason": generation.finish_reason,
        "abstained": generation.abstained,
    }


def logprobs_info(generation: Generation) -> dict[str, Any]:
    """Return the logprobs of an answer, if there are any, under the name that langchain-openai gives them."""
    return {} if generation.logprobs is None else {"logprobs": {"content": list(generation.logprobs)}}


def token_usage(input_tokens: int, output_tokens: int, cached_tokens: int | None = None) -> UsageMetadata:
    """Return the usage of a call, with its total, and the tokens of the prompt that were not computed again."""
    usage = UsageMetadata(
        input_tokens=input_tokens, output_tokens=output_tokens, total_tokens=input_tokens + output_tokens
    )
    if cached_tokens is not None:
        usage["input_token_details"] = {"cache_read": cached_tokens}
    return usage


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
