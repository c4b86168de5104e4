"""Texts cut into sentences with their terms, and cached: retrieval, answers and citations share them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from lince_rag.text.language import Language
from lince_rag.text.words import grams, words

# How many chunks are cached, the most recently used; each takes about 50 kB.
CACHED_TEXTS: Final = 512

_DIGIT: Final = re.compile(r"\d")

# The number of an item or a section.
_NUMBER: Final = re.compile(r"(?:\d{1,3}\.)+\d{0,3}[.)]?", re.ASCII)

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")

# The beginning of a line that is a sentence on its own: a list item, a heading, a table row, a quotation.
_OWN_LINE: Final = re.compile(r"\s*(?:[-*•·+>]\s|\d{1,2}[.)]\s|#{1,6}\s|\|)")

# A line much shorter than wrapped text (60 to 80 characters), without punctuation at its end and before a capital
# letter or a digit, is a title, an address or a cell.
_SHORT_LINE: Final = 45

# The splitter takes quadratic time on one block of many sentences (measured: 12 s for 280,000 characters of
# Chinese), so a longer block is cut where a sentence seems to end.
_LONGEST_BLOCK: Final = 8_000
_LIKELY_ENDS: Final = ("\n", ". ", "? ", "! ", "。", "？", "！")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, verbatim, and its character offsets ``[start, end)`` in its text."""

    start: int
    end: int
    text: str
    # The stems of its words, in order.
    stems: tuple[str, ...]
    # The stems and the 4-grams of its words.
    terms: frozenset[str]
    # Its words with a digit, as they are written.
    numbers: frozenset[str]


@lru_cache(maxsize=CACHED_TEXTS)
def split_sentences(text: str, language: Language) -> tuple[Sentence, ...]:
    """Cut a chunk or an answer into sentences."""
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


def sentence_spans(text: str, language: Language) -> list[tuple[int, int]]:
    """Return the (start, end) offsets of each sentence, without the white space around it.

    A blank line, a list item, a heading and a table row always end a sentence.
    """
    from sentencex import get_sentence_boundaries

    # The splitter does not accept a lone surrogate; the replacement has the same length.
    text = _LONE_SURROGATE.sub("\ufffd", text)
    spans: list[tuple[int, int]] = []
    for offset, stop in (piece for block in _blocks(text) for piece in _pieces(text, *block)):
        first = len(spans)
        for boundary in get_sentence_boundaries(language, text[offset:stop]):
            start, end = offset + boundary["start_index"], offset + boundary["end_index"]
            while start < end and text[start].isspace():
                start += 1
            while end > start and text[end - 1].isspace():
                end -= 1
            if start < end and len(spans) > first and _continues(text, spans[-1], start):
                spans[-1] = (spans[-1][0], end)
            elif start < end:
                spans.append((start, end))
    return spans


def _continues(text: str, before: tuple[int, int], start: int) -> bool:
    """Return whether the splitter has cut a sentence in two.

    It cuts names at their period ("copia.BAK"), "14.6.5. Instalar" and "2. Pulse" after the number, and lists of
    optional arguments ("[OPCIÓN]... [FICHERO]").
    """
    end = before[1]
    if end == start:
        return text[end - 1] == "."
    numbered = _NUMBER.fullmatch(text, *before) and "\n" not in text[end:start]
    return bool(numbered) or (text[start] in "([" and text[max(end - 3, 0) : end].endswith(("...", "…")))


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Cut a text where no sentence continues: at blank lines, list items, headings, table rows, short lines."""
    start, previous = 0, ""
    for match in re.finditer(r"[^\n]*\n?", text):
        line = match.group().strip()
        if match.start() > start and _separates(previous, line):
            yield start, match.start()
            start = match.start()
        previous = line
    if start < len(text):
        yield start, len(text)


def _pieces(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a block that is too long for the splitter, where a sentence or else a word seems to end."""
    while stop - start > _LONGEST_BLOCK:
        limit = start + _LONGEST_BLOCK
        cut = max(text.rfind(end, start, limit) + len(end) for end in _LIKELY_ENDS)
        if cut <= start + 2:
            cut = text.rfind(" ", start, limit) + 1
        yield start, cut if cut > start else limit
        start = cut if cut > start else limit
    yield start, stop


def _separates(previous: str, line: str) -> bool:
    if not line or not previous or _OWN_LINE.match(line + " ") or " | " in line or " | " in previous:
        return True
    if previous.startswith("#"):
        return True
    begins = line[0].isupper() or line[0].isdigit() or line[0] in "¿¡"
    return len(previous) < _SHORT_LINE and begins and previous[-1] not in ",;-"
