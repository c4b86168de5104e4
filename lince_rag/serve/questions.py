"""The routes of the HTTP API for questions: answers, passages, collections, and what readers think of answers."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lince_rag.chain.answer import Answer
from lince_rag.errors import LinceError
from lince_rag.serve.collections import Collection
from lince_rag.serve.guard import RefusedError
from lince_rag.serve.messages import (
    AnswerOut,
    AskRequest,
    CollectionOut,
    PassageOut,
    SearchRequest,
    VoteRequest,
    public_answer,
    public_passage,
)
from lince_rag.serve.server import Server, begun, key_of, last_step, refusal
from lince_rag.serve.state import OWNER, Key

if TYPE_CHECKING:
    from fastapi import APIRouter


def create_router(server: Server) -> "APIRouter":
    """Return the routes."""
    from fastapi import APIRouter, Query
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse

    router = APIRouter(prefix="/v1")

    @router.post("/ask", response_model=AnswerOut, tags=["questions"])
    async def ask(asked: AskRequest, request: Request) -> Any:
        """Answer a question from the documents of a collection, with citations, or abstain."""
        key = key_of(request)
        collection = server.collection(key, asked.collection)
        steps = server.steps(collection, asked)
        if not asked.stream and "text/event-stream" not in request.headers.get("accept", ""):
            return public_answer(collection, await last_step(steps))
        return StreamingResponse(
            await begun(_events(collection, steps, key is OWNER)), media_type="text/event-stream"
        )

    @router.post("/search", tags=["questions"])
    async def search(asked: SearchRequest, request: Request) -> list[PassageOut]:
        """Find the passages that best match a question, best first."""
        collection = server.collection(key_of(request), asked.collection)
        await collection.refresh()
        chain = collection.chain_for(server.documents(collection, asked.documents), asked.k)
        async with server.places.take():
            found = await chain.retriever.ainvoke(asked.question)
        return [public_passage(collection, each) for each in found]

    @router.get("/collections", tags=["collections"])
    async def collections(request: Request) -> list[CollectionOut]:
        """List the collections that this key may read."""
        key = key_of(request)
        readable = [each for each in server.collections.values() if key.may("read", each.name)]
        return [await asyncio.to_thread(_describe, each, key) for each in readable]

    @router.post("/votes", status_code=204, tags=["votes"])
    async def vote(given: VoteRequest, request: Request) -> Response:
        """Keep what a reader thinks of an answer."""
        found = server.collection(key_of(request), given.collection)
        said = given.model_dump(include={"answer", "quote", "history"})
        which = found.document(given.document)
        said["source"] = which.name if which else ""
        await asyncio.to_thread(server.state.vote, found.name, given.question, said, given.vote)
        return Response(status_code=204)

    @router.get("/votes", tags=["votes"], response_class=Response)
    async def votes(request: Request, collection: Annotated[str | None, Query(max_length=64)] = None) -> Response:
        """Return the questions that were voted on, as JSON lines that `lince-rag eval` reads.

        The answers of those with a good vote are what was quoted; those of the others are to be filled in.
        """
        found = server.collection(key_of(request), collection, "write")
        rows = await asyncio.to_thread(server.state.votes, found.name)
        lines = [
            json.dumps(question_of(number, row), ensure_ascii=False) for number, row in enumerate(rows, start=1)
        ]
        return Response("".join(f"{line}\n" for line in lines), media_type="application/jsonl")

    return router


def question_of(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a vote as a question of an evaluation."""
    said, speakers = row["answer"], {"user": "human", "assistant": "ai"}
    good = row["vote"] > 0
    return {
        "id": f"vote-{number}",
        "question": row["question"],
        "answers": [said["quote"]] if good and said["quote"] else [],
        "source": said["source"] if good else "",
        "history": [[speakers[turn["role"]], turn["content"]] for turn in said["history"]],
        "vote": row["vote"],
        "shown": said["answer"],
    }


async def _events(
    collection: Collection, steps: AsyncIterator[str | Answer], for_owner: bool
) -> AsyncIterator[str]:
    """Yield the events of a streamed answer: ``text``, ``citations`` and ``done``, or ``error``.

    The owner gets the answer as the chain gives it.
    """
    started = False
    try:
        async with contextlib.aclosing(steps) as running:  # type: ignore[type-var]
            async for step in running:
                if not isinstance(step, Answer):
                    yield _event("text", {"text": step})
                elif for_owner:
                    yield _event("done", step.model_dump(mode="json"))
                else:
                    answer = public_answer(collection, step).model_dump(mode="json")
                    yield _event("citations", answer["citations"])
                    yield _event("done", answer)
                started = True
    except (LinceError, RefusedError) as error:
        refused = error if isinstance(error, RefusedError) else refusal(error, collection)
        if not started:
            raise refused from error
        yield _event("error", refused.body("")["error"])


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _describe(collection: Collection, key: Key) -> CollectionOut:
    documents, languages = collection.documents(), dict[str, int]()
    for each in documents:
        languages[each.language] = languages.get(each.language, 0) + 1
    right: Literal["read", "write"] = "write" if key.may("write", collection.name) else "read"
    return CollectionOut(
        name=collection.name,
        documents=len(documents),
        passages=sum(each.passages for each in documents),
        languages=languages,
        waiting=collection.index.ledger.count_waiting(),
        model=str(getattr(collection.chain.llm, "model", "")),
        right="read" if collection.index.ledger.read_only else right,
    )
