"""Many texts for a server that embeds or reranks them: requests that are not too large, a few at a time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar

import httpx

from lince_rag.engines.server.client import ServerClient, StatusError
from lince_rag.engines.server.options import ServerOptions
from lince_rag.engines.server.protocol import listed_models
from lince_rag.errors import ContextWindowError, EngineError

TEI: Final = "Text Embeddings Inference"

# What only the answer of Text Embeddings Inference to /info has, as
# https://huggingface.github.io/text-embeddings-inference describes it.
_TEI_NAMES: Final = ("model_id", "model_type", "max_client_batch_size")

# Requests that one call has under way at the same time.
REQUESTS_AT_ONCE: Final = 4

# The most characters of a request, unless one text alone has more: below the limits of TEI (2 MB) and of most
# proxies (1 MB), also if every character takes four bytes.
MOST_CHARACTERS: Final = 200_000

# A text that the server finds too long is cut to this share, again and again; with fewer characters than the
# second number, something else is too long.
_KEPT_SHARE: Final = 0.75
_SHORTEST_TEXT: Final = 32

_Score = TypeVar("_Score")

Ask = Callable[[list[str]], Awaitable[Sequence[_Score]]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoringFacts:
    """What a server says of itself.

    Attributes:
        kind: ``TEI``, or who it says it is: ``"vllm"``, ``"llamacpp"`` …; empty if it does not say it.
        model: The name under which it runs the model.
        batch_size: The most texts of a request, if it says so.
    """

    kind: str
    model: str
    batch_size: int | None = None


class ScoringServer:
    """A server that embeds or reranks texts.

    Args:
        model: The name of the model.
        options: The server.
        batch_size: The most texts of a request.
    """

    def __init__(self, model: str, options: ServerOptions, batch_size: int) -> None:
        self.model = model
        self.client = ServerClient(options)
        self._batch_size = batch_size
        self._facts: ScoringFacts | None = None
        self._said_cut = False

    async def facts(self) -> ScoringFacts:
        """Return what the server says of itself when it is first asked."""
        self._facts = self._facts or await self._ask_facts()
        return self._facts

    async def map_texts(self, texts: Sequence[str], ask: "Ask[_Score]") -> list[_Score]:
        """Ask for something of each text.

        Args:
            texts: The texts.
            ask: Sends one request for some texts, and returns what is answered to each, in order.

        Returns:
            What is answered to each text, in order.
        """
        if not texts:
            return []
        size = min(self._batch_size, (await self.facts()).batch_size or self._batch_size)
        free = asyncio.Semaphore(REQUESTS_AT_ONCE)

        async def send(batch: list[str]) -> list[_Score]:
            async with free:
                return await self._ask_in_parts(batch, ask)

        tasks = [asyncio.ensure_future(send(batch)) for batch in batches(texts, size, MOST_CHARACTERS)]
        try:
            parts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return [score for part in parts for score in part]

    async def _ask_in_parts(self, texts: list[str], ask: "Ask[_Score]") -> list[_Score]:
        """Send a request; halve it while the server takes it as too large."""
        try:
            return list(await ask(texts))
        except (StatusError, ContextWindowError) as error:
            if not _is_too_large(error):
                raise
            if len(texts) == 1:
                return [await self._ask_cut(texts[0], ask, error)]
        half = len(texts) // 2
        return [*await self._ask_in_parts(texts[:half], ask), *await self._ask_in_parts(texts[half:], ask)]

    async def _ask_cut(self, text: str, ask: "Ask[_Score]", error: Exception) -> _Score:
        """Cut a text until the server takes it, and say so."""
        length = len(text)
        while (length := int(length * _KEPT_SHARE)) >= _SHORTEST_TEXT:
            try:
                (score,) = await ask([text[:length]])
            except (StatusError, ContextWindowError) as again:
                if not _is_too_large(again):
                    raise
                error = again
                continue
            level = logging.DEBUG if self._said_cut else logging.WARNING
            self._said_cut = True
            logger.log(
                level,
                "%s: a text of %d characters is longer than %s takes; only its first %d are read. Smaller chunks,"
                " or a server with a longer window, would read all. Further ones are logged at debug level.",
                self.model,
                len(text),
                self.client.base_url,
                length,
            )
            return score
        raise error

    async def _ask_facts(self) -> ScoringFacts:
        try:
            rows = listed_models(await self.client.get("/v1/models"))
        except StatusError as error:
            if error.status in {httpx.codes.UNAUTHORIZED, httpx.codes.TOO_MANY_REQUESTS} or error.status >= 500:
                raise
            rows = []
        if not rows:
            return await self._ask_tei()
        row = next((row for row in rows if is_same_model(row["id"], self.model)), None)
        if row is None and len(rows) == 1:
            raise self._other_model(rows[0]["id"])
        # Of a server with many models the list need not be complete.
        return ScoringFacts(str(row.get("owned_by", "")), row["id"]) if row else ScoringFacts("", self.model)

    async def _ask_tei(self) -> ScoringFacts:
        try:
            found = await self.client.get("/info")
        except StatusError:
            # It is another server. What it makes of a request is seen then.
            found = {}
        if any(name not in found for name in _TEI_NAMES):
            return ScoringFacts("", self.model)
        if not is_same_model(str(found["model_id"]), self.model):
            raise self._other_model(found["model_id"])
        size = found["max_client_batch_size"]
        return ScoringFacts(TEI, self.model, size if isinstance(size, int) and size > 0 else None)

    def in_order(self, rows: Any, count: int, *names: str) -> list[Any]:
        """Return what the rows of a reply have under one of the names, in the order of their ``index``.

        Raises:
            EngineError: There is not exactly one row for each text.
        """
        rows = rows if isinstance(rows, list) else []
        found: dict[Any, Any] = {}
        for position, row in enumerate(rows):
            if isinstance(row, dict) and isinstance(index := row.get("index", position), int):
                found[index] = next((row[name] for name in names if name in row), None)
        if len(rows) != count or found.keys() != set(range(count)):
            raise self.wrong_reply(f"{len(rows)} rows for {count} texts, or not one for each")
        return [found[position] for position in range(count)]

    def wrong_reply(self, what: str) -> EngineError:
        """Return the error of a reply that cannot be used."""
        return EngineError(
            f"The server {self.client.base_url} answers {what}.",
            hint=f"Check that it runs {self.model!r}, and see its log.",
        )

    def _other_model(self, name: str) -> EngineError:
        return EngineError(
            f"The server {self.client.base_url} does not run {self.model!r}, but {name!r}.",
            hint="Start it with that model or under that name (vLLM: --served-model-name, llama-server: --alias),"
            " or name the model that it runs.",
        )


def _is_too_large(error: Exception) -> bool:
    return error.is_too_large if isinstance(error, StatusError) else True


def is_same_model(listed: str, wanted: str) -> bool:
    """Return whether a server's name of a model, perhaps the path of a file or with a tag, is the wanted one."""
    return listed == wanted or _short_name(listed) == _short_name(wanted)


def _short_name(name: str) -> str:
    return PurePosixPath(name.removesuffix(":latest")).name.lower().removesuffix(".gguf")


def batches(texts: Sequence[str], most_texts: int, most_characters: int) -> Iterator[list[str]]:
    """Yield the texts in order, in batches within both limits; a text that is longer is a batch of its own."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) == most_texts or characters + len(text) > most_characters):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch
