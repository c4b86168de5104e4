"""How likely the tokens of an answer were, written as in OpenAI's interface."""

from collections.abc import Sequence
from typing import Any


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
