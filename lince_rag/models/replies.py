"""An engine's text → LangChain messages: content and tool calls, whole and while they come."""

import json
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call, tool_call, tool_call_chunk

from lince_rag.engines import Generation
from lince_rag.models.tool_calls import may_be_calls, read_calls


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
