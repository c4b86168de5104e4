"""What the routes of a server share: its collections, who may read them, and answers step by step."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lince_rag.chain.answer import Answer
from lince_rag.errors import ConfigurationError, ContextWindowError, IndexLockedError, LinceError
from lince_rag.serve.collections import Collection, PublicDocument
from lince_rag.serve.guard import Limits, Places, RefusedError
from lince_rag.serve.jobs import Ingestion
from lince_rag.serve.messages import AskRequest, history_of
from lince_rag.serve.metrics import Metrics
from lince_rag.serve.state import Key, Right, ServerState

if TYPE_CHECKING:
    from starlette.requests import Request


@dataclass
class Server:
    """What the routes of one worker share."""

    collections: Mapping[str, Collection]
    state: ServerState
    ingestion: Ingestion
    limits: Limits
    metrics: Metrics
    places: Places = field(init=False)
    # Whether the first question finds everything loaded, or something cannot be.
    readiness: Literal["loading", "ready", "failed"] = "loading"

    def __post_init__(self) -> None:
        self.places = Places(self.limits)

    def collection(self, key: Key, name: str | None, right: Right = "read") -> Collection:
        """Return a collection, or the only one.

        Raises:
            RefusedError: There is none of that name that the key may read (404), or it may only read it (403).
        """
        readable = [each for each in self.collections.values() if key.may("read", each.name)]
        if name is None and len(readable) != 1:
            raise RefusedError(
                404, "no_collection", f"Say which collection: {', '.join(each.name for each in readable)}."
            )
        found = next((each for each in readable if name in (None, each.name)), None)
        if found is None:
            raise RefusedError(404, "no_collection", f"There is no collection {name!r}.")
        if not key.may(right, found.name):
            raise RefusedError(403, "read_only", f"This key may only read {found.name!r}.")
        return found

    def documents(self, collection: Collection, ids: list[str]) -> list[PublicDocument]:
        """Return documents by their ids; one that is not there is an error."""
        return [self.document(collection, each) for each in ids]

    def document(self, collection: Collection, identity: str) -> PublicDocument:
        """Return a document by its id.

        Raises:
            RefusedError: There is none (404).
        """
        found = collection.document(identity)
        if found is None:
            raise RefusedError(404, "no_document", f"There is no document {identity!r} in {collection.name!r}.")
        return found

    async def steps(
        self, collection: Collection, asked: AskRequest, chain: Any = None
    ) -> AsyncIterator[str | Answer]:
        """Yield the pieces of an answer and, last, the answer; it holds a place until it is closed.

        The chain runs in a task of its own, because what reads the steps may change from task to task.
        """
        await collection.refresh()
        documents = self.documents(collection, asked.documents)
        chain = chain or collection.chain_for(documents, asked.k)
        queue: asyncio.Queue[str | Answer | Exception] = asyncio.Queue()

        async def produce() -> None:
            try:
                async with self.places.take():
                    given = {"question": asked.question, "history": history_of(asked.history)}
                    async for step in chain.astream(given):
                        queue.put_nowait(step)
            except Exception as error:
                queue.put_nowait(error)

        task = asyncio.create_task(produce())
        try:
            while True:
                step = await queue.get()
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, Answer):
                    await collection.refresh()
                    outcome = "abstained" if step.abstained else "doubtful" if step.doubtful else "answered"
                    self.metrics.answers.labels(collection.name, outcome).inc()
                yield step
                if isinstance(step, Answer):
                    return
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def refusal(error: LinceError, collection: Collection | None = None) -> RefusedError:
    """Return what clients are told of an error: nothing of the machine, but for what they gave themselves."""
    if isinstance(error, ConfigurationError | ContextWindowError):
        message = collection.public_text(str(error)) if collection else "The request cannot be carried out."
        return RefusedError(413 if isinstance(error, ContextWindowError) else 422, "not_possible", message)
    if isinstance(error, IndexLockedError):
        return RefusedError(
            503, "locked", "Another process is writing the collection. Try again later.", retry_after=5
        )
    return RefusedError(
        503, "unavailable", "The collection or the model cannot be used; the server's log says why."
    )


def key_of(request: "Request") -> Key:
    """Return who asks."""
    key: Key = request.state.key
    return key


async def last_step(steps: AsyncIterator[str | Answer]) -> Answer:
    """Return the answer that a stream ends with."""
    async with contextlib.aclosing(steps) as running:  # type: ignore[type-var]
        async for step in running:
            if isinstance(step, Answer):
                return step
    raise AssertionError("A stream ends with its answer.")


async def begun(steps: AsyncIterator[str]) -> AsyncIterator[str]:
    """Wait for the first step, so that what goes wrong before has a status of its own; return all steps."""
    first = await anext(steps)

    async def following() -> AsyncIterator[str]:
        async with contextlib.aclosing(steps):  # type: ignore[type-var]
            yield first
            async for step in steps:
                yield step

    return following()
