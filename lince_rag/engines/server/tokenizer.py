"""Token ids from a server's ``/tokenize``, for a model whose tokenizer is not on this machine."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from lince_rag.engines.server.client import ServerClient, wait_for
from lince_rag.errors import EngineError
from lince_rag.prompting.content import Segment
from lince_rag.prompting.templates import Prompt

# Texts whose ids are kept: the chain counts the same passages for every question.
_CACHE_SIZE: Final = 1024


class ServerTokenizer:
    """The tokenizer of a server.

    Args:
        client: The server.
        model: The name of the model on the server.
        splits_controls: Whether the server can read a text without control tokens, as llama-server can. Where it
            cannot (vLLM), only the markers that the registry knows are kept from becoming control tokens.
    """

    def __init__(self, client: ServerClient, model: str, *, splits_controls: bool) -> None:
        self._client = client
        self._model = model
        self._splits_controls = splits_controls
        self._ids = lru_cache(_CACHE_SIZE)(self._request)

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text that holds no control tokens."""
        return list(self._ids(text, False))

    def encode(self, prompt: Prompt, bos: str | None) -> list[int]:
        """Return the ids of a prompt; no content becomes a control token.

        The text after each BOS is encoded in one piece, so that tokens may span template and content as they
        natively do. If some content would be read otherwise with control tokens than without, every segment is
        encoded by itself.
        """
        content = "\n".join(segment.text for segment in prompt.segments if segment.is_content)
        if not self._splits_controls or self._ids(content, True) == self._ids(content, False):
            return [token for piece in _pieces(prompt.text, bos) for token in self._ids(piece, True)]
        return self._encode_segments(prompt.segments)

    def _encode_segments(self, segments: Sequence[Segment]) -> list[int]:
        return [token for segment in segments for token in self._ids(segment.text, not segment.is_content)]

    def _request(self, text: str, controls: bool) -> tuple[int, ...]:
        if not text:
            return ()
        if self._splits_controls:
            payload = {"content": text, "parse_special": controls, "add_special": False}
        else:
            payload = {"prompt": text, "add_special_tokens": False}
        reply = wait_for(self._client.post("/tokenize", {"model": self._model, **payload}))
        tokens = reply.get("tokens") if isinstance(reply, dict) else None
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise EngineError(
                f"{self._client.base_url}/tokenize answers without token ids.",
                hint="Name a folder or hub id with the model's tokenizer as model_path.",
            )
        return tuple(tokens)


def _pieces(text: str, bos: str | None) -> list[str]:
    """Split a text before and after each BOS."""
    return re.split(f"({re.escape(bos)})", text) if bos else [text]
