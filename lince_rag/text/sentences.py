"""Texts cut into sentences with their terms, and remembered: retrieval, answers and citations share them."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from lince_rag.text.language import Language
from lince_rag.text.words import grams, sentence_spans, words

# Chunks remembered, the last used; one takes some 50 kB.
REMEMBERED_TEXTS: Final = 512

_DIGIT: Final = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a text.

    Attributes:
        start: Character offset of the sentence in the text.
        end: Character offset just after it.
        text: The sentence, verbatim.
        stems: The stems of its words, in order.
        terms: The stems and the 4-grams of its words.
        numbers: Its words with a digit, as they are written.
    """

    start: int
    end: int
    text: str
    stems: tuple[str, ...]
    terms: frozenset[str]
    numbers: frozenset[str]


@lru_cache(maxsize=REMEMBERED_TEXTS)
def split_sentences(text: str, language: Language) -> tuple[Sentence, ...]:
    """Cut a text into sentences.

    Args:
        text: A chunk or an answer.
        language: Its language.

    Returns:
        The sentences in order.
    """
    return tuple(_analyse(text, start, end, language) for start, end in sentence_spans(text, language))


def _analyse(text: str, start: int, end: int, language: Language) -> Sentence:
    found = list(words(text[start:end], language))
    return Sentence(
        start,
        end,
        text[start:end],
        tuple(word.stem for word in found),
        frozenset(word.stem for word in found).union(gram for word in found for gram in grams(word.folded)),
        frozenset(word.text for word in found if _DIGIT.search(word.text)),
    )
