"""Texts cut into sentences with their terms, and remembered: retrieval, answers and citations share them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from lince_rag.text.language import Language
from lince_rag.text.words import grams, words

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


# What begins a line that is a unit of its own: a list item, a heading, a table row, a quotation.
_OWN_LINE: Final = re.compile(r"\s*(?:[-*•·+>]\s|\d{1,2}[.)]\s|#{1,6}\s|\|)")

_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")

# A line much shorter than wrapped text, without punctuation at its end, before a capital letter or a digit: a
# title, an address, a cell. Wrapped text is 60 to 80 characters wide.
_SHORT_LINE: Final = 45


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Cut a text where no sentence goes on: at blank lines, list items, headings, table rows, short lines."""
    start, previous = 0, ""
    for match in re.finditer(r"[^\n]*\n?", text):
        line = match.group().strip()
        if match.start() > start and _separates(previous, line):
            yield start, match.start()
            start = match.start()
        previous = line
    if start < len(text):
        yield start, len(text)


def _separates(previous: str, line: str) -> bool:
    if not line or not previous or _OWN_LINE.match(line + " ") or " | " in line or " | " in previous:
        return True
    if previous.startswith("#"):
        return True
    begins = line[0].isupper() or line[0].isdigit() or line[0] in "¿¡"
    return len(previous) < _SHORT_LINE and begins and previous[-1] not in ",;-"


def sentence_spans(text: str, language: Language) -> list[tuple[int, int]]:
    """Split a text into sentences.

    Args:
        text: Any text; a blank line, a list item, a heading and a table row always end a sentence.
        language: The language whose abbreviations to know.

    Returns:
        (start, end) character offsets in order, without the white space around each sentence.
    """
    from sentencex import get_sentence_boundaries

    # Half a surrogate pair is no character for the splitter; the stand-in has the same length.
    text = _HALF_PAIR.sub("\ufffd", text)
    spans = []
    for offset, stop in _blocks(text):
        for boundary in get_sentence_boundaries(language, text[offset:stop]):
            start, end = offset + boundary["start_index"], offset + boundary["end_index"]
            while start < end and text[start].isspace():
                start += 1
            while end > start and text[end - 1].isspace():
                end -= 1
            if start < end:
                spans.append((start, end))
    return spans
