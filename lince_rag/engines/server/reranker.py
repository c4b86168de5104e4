"""Scores of passages from a server that reranks: Text Embeddings Inference, vLLM, llama-server, Jina, Cohere."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from math import isfinite
from operator import itemgetter
from typing import Any, Final

import httpx

from lince_rag.engines.server.client import StatusError, wait_for
from lince_rag.engines.server.options import ServerOptions
from lince_rag.engines.server.protocol import VLLM
from lince_rag.engines.server.scoring import TEI, ScoringServer

# Where passages are posted to, and under which name: most servers, those with an address of their own version such
# as Cohere's /v2, and TEI.
_FORMS: Final = (("/v1/rerank", "documents"), ("/rerank", "documents"), ("/rerank", "texts"))

# How a server answers that has no such address, and how one that has, but reads another name.
_NO_ADDRESS: Final = (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED)
_UNKNOWN_FORM: Final = (*_NO_ADDRESS, httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)


class ServerReranker:
    """Scores pairs on a server; may be used from any thread.

    Args:
        model: The name of the model.
        options: The server.
        batch_size: The most passages of a request.
    """

    def __init__(self, model: str, options: ServerOptions, batch_size: int) -> None:
        self._server = ScoringServer(model, options, batch_size)
        # The one that the server understands, once that is known.
        self._form: tuple[str, str] | None = None

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return one score per pair of a question and a passage, in order."""
        return wait_for(self._score(pairs))

    async def _score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        scores: list[float] = []
        for question, group in groupby(pairs, key=itemgetter(0)):
            passages = [passage for _, passage in group]
            scores += await self._server.map_texts(passages, partial(self._ask, question))
        return scores

    async def _ask(self, question: str, passages: list[str]) -> list[float]:
        facts = await self._server.facts()
        forms = [_FORMS[-1]] if facts.kind == TEI else [self._form] if self._form else list(_FORMS)
        refusals: list[StatusError] = []
        for path, name in forms:
            payload: dict[str, Any] = {"query": question, name: passages}
            payload |= {"truncate": True} if name == "texts" else {"model": facts.model}
            if facts.kind == VLLM:
                # As many tokens of a passage as the model takes.
                payload["truncate_prompt_tokens"] = -1
            try:
                reply = await self._server.client.post(path, payload, list)
            except StatusError as error:
                if error.is_too_large or error.status not in _UNKNOWN_FORM:
                    raise
                refusals.append(error)
            else:
                self._form = path, name
                return self._read(reply, len(passages))
        # What a server says that has one of the addresses says more than that another one is missing.
        raise next((each for each in refusals if each.status not in _NO_ADDRESS), refusals[0])

    def _read(self, reply: Any, count: int) -> list[float]:
        rows = reply if isinstance(reply, list) else reply.get("results", reply.get("data"))
        found = self._server.in_order(rows, count, "relevance_score", "score")
        if not all(isinstance(score, (int, float)) and isfinite(score) for score in found):
            raise self._server.wrong_reply("a score that is not a finite number")
        return [float(score) for score in found]
