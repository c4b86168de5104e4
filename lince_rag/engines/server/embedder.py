"""Vectors of texts from a server: any with /v1/embeddings, and Text Embeddings Inference at its own address."""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from typing import Any, Final

from lince_rag.engines.server.client import start, wait_for
from lince_rag.engines.server.options import ServerOptions
from lince_rag.engines.server.protocol import LLAMA_CPP, VLLM
from lince_rag.engines.server.scoring import TEI, ScoringServer

# Servers that are known to write vectors as base64, a quarter of the size of decimal numbers and exact.
_WRITES_BASE64: Final = (LLAMA_CPP, VLLM)


class ServerEmbedder:
    """Embeds texts on a server; may be used from any thread and any event loop.

    Args:
        model: The name of the model.
        options: The server.
        batch_size: The most texts of a request.
    """

    def __init__(self, model: str, options: ServerOptions, batch_size: int) -> None:
        self._server = ScoringServer(model, options, batch_size)
        # Of the vectors so far.
        self._length: int | None = None

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector of unit length per text, in order."""
        return wait_for(self._server.map_texts(texts, self._ask))

    async def aembed(self, texts: Sequence[str]) -> list[list[float]]:
        """Do the same without blocking; if the caller is cancelled, the requests are closed."""
        return await asyncio.wrap_future(start(self._server.map_texts(texts, self._ask)))

    async def _ask(self, texts: list[str]) -> list[list[float]]:
        facts = await self._server.facts()
        if facts.kind == TEI:
            # Its /v1/embeddings refuses a text that is too long.
            payload: dict[str, Any] = {"inputs": texts, "truncate": True, "normalize": True}
            reply = await self._server.client.post("/embed", payload, list)
        else:
            payload = {"model": facts.model, "input": texts}
            payload["encoding_format"] = "base64" if facts.kind in _WRITES_BASE64 else "float"
            if facts.kind == VLLM:
                # As many as the model takes.
                payload["truncate_prompt_tokens"] = -1
            reply = await self._server.client.post("/v1/embeddings", payload)
        return self._read(reply, len(texts))

    def _read(self, reply: Any, count: int) -> list[list[float]]:
        """Check the vectors of a reply and make their length 1."""
        import numpy as np

        rows = reply if isinstance(reply, list) else self._server.in_order(reply.get("data"), count, "embedding")
        try:
            vectors = np.array([_decode(row) for row in rows], dtype=np.float64)
        except (TypeError, ValueError, binascii.Error) as error:
            raise self._server.wrong_reply("vectors that are not lists of numbers of one length") from error
        if vectors.ndim != 2 or len(vectors) != count or not vectors.shape[1]:
            raise self._server.wrong_reply(f"{len(rows)} vectors for {count} texts")
        if not np.isfinite(vectors).all():
            raise self._server.wrong_reply("a vector with a number that is not finite")
        length = int(vectors.shape[1])
        if self._length not in (None, length):
            raise self._server.wrong_reply(f"vectors of {length} numbers, and before of {self._length}")
        self._length = length
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        found: list[list[float]] = (vectors / np.where(norms > 0, norms, 1.0)).astype(np.float32).tolist()
        return found


def _decode(row: Any) -> Any:
    """Return the numbers of a vector, which may be written as base64 of little-endian float32."""
    if not isinstance(row, str):
        return row
    import numpy as np

    return np.frombuffer(base64.b64decode(row, validate=True), dtype="<f4")
