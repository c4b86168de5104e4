"""How likely the tokens of an answer were, as OpenAI writes it: computed here, or read from a server."""

import json
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from lince_rag.engines.base import GenerationSettings
from lince_rag.errors import EngineError


def describe(scores: Any, answer: Sequence[int], alternatives: int, vocabulary: Any) -> tuple[dict[str, Any], ...]:
    """Describe each token of an answer that has text.

    Args:
        scores: Natural logarithms of probabilities, an array of shape [tokens of the answer, vocabulary].
        answer: The ids of the answer.
        alternatives: How many of the likeliest tokens to list beside each one.
        vocabulary: The ``LLTokenizer`` of the model.

    Returns:
        For each token a dict with ``token``, ``bytes``, ``logprob`` and ``top_logprobs``, likeliest first.
    """
    return tuple(
        {**_describe(vocabulary, token, row), "top_logprobs": _likeliest(vocabulary, row, alternatives)}
        for token, row in zip(answer, scores, strict=True)
        if not vocabulary.is_special_token(token)
    )


def _likeliest(vocabulary: Any, row: Any, number: int) -> list[dict[str, Any]]:
    # A model may have more scores than there are tokens, to fill a block of memory.
    row = row[: vocabulary.vocab_size]
    tokens = row.argpartition(-number)[-number:].tolist() if number else []
    return [_describe(vocabulary, token, row) for token in sorted(tokens, key=row.__getitem__, reverse=True)]


def _describe(vocabulary: Any, token: int, row: Any) -> dict[str, Any]:
    text: bytes = vocabulary.decode_bytes([token])
    return {"token": text.decode(errors="replace"), "bytes": list(text), "logprob": float(row[token])}


class ScoredTokens:
    """Collects how likely the tokens of an answer were, if that is asked for.

    Args:
        settings: What is asked for.
        controls: Control tokens, which are left out.
    """

    def __init__(self, settings: GenerationSettings, controls: Iterable[str]) -> None:
        self._number = settings.alternatives
        self._controls = set(controls)
        self._tokens: list[dict[str, Any]] = []

    def add(self, text: str, found: list[dict[str, Any]], base_url: str) -> None:
        """Add the tokens of a part of the answer."""
        if self._number is None:
            return
        if text and not found:
            raise EngineError(
                f"The server {base_url} does not say how likely its tokens are.", hint="Leave logprobs out."
            )
        for token in found:
            if token["token"] not in self._controls:
                likeliest = sorted(token["top_logprobs"], key=itemgetter("logprob"), reverse=True)
                self._tokens.append({**token, "top_logprobs": likeliest[: self._number]})

    def take(self) -> tuple[dict[str, Any], ...] | None:
        """Return what was added since the last time; ``None`` if nothing is asked for."""
        taken, self._tokens = self._tokens, []
        return None if self._number is None else tuple(taken)


def read_logprobs(found: Any, base_url: str) -> list[dict[str, Any]]:
    """Read what a server says of the tokens: in the form of chats (llama-server), or of completions (vLLM)."""
    if not found:
        return []
    try:
        if "content" in found:
            return [
                {**_entry(each), "top_logprobs": [_entry(other) for other in each["top_logprobs"]]}
                for each in found["content"]
            ]
        rows = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
        return [
            {**_named(token, score), "top_logprobs": [_named(*other) for other in (others or {}).items()]}
            for token, score, others in rows
        ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            f"The server {base_url} sent logprobs in an unknown form: {json.dumps(found)[:80]}.",
            hint="Leave logprobs out.",
        ) from error


def _entry(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"token": str(given["token"]), "bytes": given["bytes"], "logprob": float(given["logprob"])}


def _named(token: str, score: float) -> dict[str, Any]:
    # A token that is a part of a character has lost its bytes.
    known = None if not token or "\ufffd" in token else list(token.encode())
    return {"token": token, "bytes": known, "logprob": float(score)}
