"""``/v1/chat/completions`` and ``/v1/models``, as OpenAI's clients call them: a collection is a model.

The form is that of https://platform.openai.com/docs/api-reference/chat. Citations are its ``url_citation``
annotations, and whole in the field ``lince``.
"""

import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field

from lince_rag.chain.answer import Answer
from lince_rag.chain.rag import RagChain
from lince_rag.errors import LinceError
from lince_rag.serve.collections import Collection
from lince_rag.serve.guard import RefusedError
from lince_rag.serve.messages import (
    QUESTION_CHARACTERS,
    TURN_CHARACTERS,
    AnswerOut,
    AskRequest,
    Turn,
    public_answer,
)
from lince_rag.serve.server import Server, begun, key_of, last_step, refusal

if TYPE_CHECKING:
    from fastapi import APIRouter

# Messages of a conversation that is sent whole each time; the last ones are read.
MOST_MESSAGES: Final = 400
READ_MESSAGES: Final = 40


class Part(BaseModel):
    """A part of a message; only texts are read."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: str = Field(default="", max_length=TURN_CHARACTERS)


class ChatMessage(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = Field(default=None)

    @property
    def text(self) -> str:
        """Its text."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or [] if part.type == "text")


class StreamOptions(BaseModel):
    """What else is streamed."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A conversation. Settings of sampling are the server's: those that clients send are not read."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(max_length=64, description="The name of a collection.")
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1


def create_router(server: Server) -> "APIRouter":
    """Return the routes."""
    from fastapi import APIRouter
    from starlette.requests import Request
    from starlette.responses import StreamingResponse

    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.get("/models")
    async def models(request: Request) -> dict[str, Any]:
        """List the collections that this key may read, as models."""
        key = key_of(request)
        names = [each for each in server.collections if key.may("read", each)]
        return {"object": "list", "data": [_model(each) for each in names]}

    @router.get("/models/{model}")
    async def model(model: str, request: Request) -> dict[str, Any]:
        """Describe a collection as a model."""
        return _model(server.collection(key_of(request), model).name)

    @router.post("/chat/completions")
    async def complete(given: ChatRequest, request: Request) -> Any:
        """Answer the last message from the documents of the collection that is named as the model."""
        collection = server.collection(key_of(request), given.model)
        asked, instructions = read_messages(given.messages)
        reply = Reply(collection.name, str(request.base_url))
        steps = server.steps(collection, asked, _instructed(collection.chain, instructions))
        if not given.stream:
            return reply.whole(public_answer(collection, await last_step(steps)))
        with_usage = given.stream_options is not None and given.stream_options.include_usage
        events = _events(collection, reply, steps, with_usage)
        return StreamingResponse(await begun(events), media_type="text/event-stream")

    return router


def read_messages(messages: Sequence[ChatMessage]) -> tuple[AskRequest, str]:
    """Return the question with the conversation before it, and what system messages say.

    Raises:
        RefusedError: The last message is not a user's, or it is too long.
    """
    instructions = "\n".join(each.text for each in messages if each.role in ("system", "developer"))
    turns = [each for each in messages if each.role in ("user", "assistant") and each.text.strip()]
    if not turns or turns[-1].role != "user":
        raise RefusedError(422, "no_question", "The last message must be a user's, with a text.")
    question = turns[-1].text
    if max(len(question), len(instructions)) > QUESTION_CHARACTERS:
        raise RefusedError(413, "too_long", f"A question may have at most {QUESTION_CHARACTERS} characters.")
    history = [
        Turn(role=each.role, content=each.text[:TURN_CHARACTERS])  # type: ignore[arg-type]
        for each in turns[-READ_MESSAGES - 1 : -1]
    ]
    return AskRequest(question=question, history=history), instructions


def _instructed(chain: RagChain, instructions: str) -> RagChain:
    if not instructions.strip():
        return chain
    both = "\n".join(filter(None, [chain.settings.instructions, instructions]))
    return RagChain(chain.llm, chain.retriever, replace(chain.settings, instructions=both))


class Reply:
    """The responses to one request."""

    def __init__(self, model: str, base_url: str) -> None:
        self._common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._base_url = base_url

    def whole(self, answer: AnswerOut) -> dict[str, Any]:
        """Return the response that is not streamed."""
        message = {
            "role": "assistant",
            "content": answer.text,
            "refusal": None,
            "annotations": self._annotations(answer),
        }
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(answer),
            "lince": answer.model_dump(mode="json"),
        }

    def chunk(self, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Return a piece of a streamed response."""
        reason = more.pop("finish_reason", None)
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice], **more}

    def last(self, answer: AnswerOut) -> dict[str, Any]:
        """Return the last piece, which has the citations."""
        delta = {"annotations": self._annotations(answer)}
        return self.chunk(delta, finish_reason="stop", lince=answer.model_dump(mode="json"))

    def usage(self, answer: AnswerOut) -> dict[str, Any]:
        """Return the piece that only says the tokens."""
        return {**self.chunk({}), "choices": [], "usage": _usage(answer)}

    def _annotations(self, answer: AnswerOut) -> list[dict[str, Any]]:
        """Return the citations; their addresses open the passage in the server's page."""
        found = []
        for each in answer.citations:
            where = {"collection": self._common["model"], "document": each.document}
            where |= {"start": str(each.start), "end": str(each.end)}
            citation = {
                "url": f"{self._base_url}#{urlencode(where)}",
                "title": each.title or each.name,
                "start_index": each.answer_start,
                "end_index": each.answer_end,
            }
            found.append({"type": "url_citation", "url_citation": citation})
        return found


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "lince-rag"}


def _usage(answer: AnswerOut) -> dict[str, int]:
    found = answer.usage or {}
    prompt, completion = int(found.get("input_tokens", 0)), int(found.get("output_tokens", 0))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _events(
    collection: Collection, reply: Reply, steps: AsyncIterator[str | Answer], with_usage: bool
) -> AsyncIterator[str]:
    started = False
    try:
        async with contextlib.aclosing(steps) as running:  # type: ignore[type-var]
            async for step in running:
                if not started:
                    yield _line(reply.chunk({"role": "assistant", "content": ""}))
                    started = True
                if isinstance(step, Answer):
                    answer = public_answer(collection, step)
                    yield _line(reply.last(answer))
                    if with_usage:
                        yield _line(reply.usage(answer))
                else:
                    yield _line(reply.chunk({"content": step}))
        yield "data: [DONE]\n\n"
    except (LinceError, RefusedError) as error:
        refused = error if isinstance(error, RefusedError) else refusal(error, collection)
        if not started:
            raise refused from error
        yield _line(refused.body(""))


def _line(data: Any) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
