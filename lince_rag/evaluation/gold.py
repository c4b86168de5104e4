"""The places of the answers in an index: the paragraphs and documents that a question file names."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, NamedTuple

from lince_rag.evaluation.questions import Question
from lince_rag.index.filters import match_source
from lince_rag.index.index import Index
from lince_rag.text.words import squeeze

# Paragraphs are looked up by their first words, so that not every paragraph is compared with every document.
_OPENING_WORDS: Final = 8


class Span(NamedTuple):
    """The place of a paragraph in a document, in character offsets."""

    start: int
    end: int
    unit: str


@dataclass(frozen=True)
class Gold:
    """The paragraphs or documents that hold the answer; ``known`` if the question file names them."""

    units: frozenset[str]
    known: bool

    @property
    def missing(self) -> bool:
        """Whether the question file names a place that this index does not have."""
        return self.known and not self.units


class GoldMap:
    """Finds the paragraphs and documents of questions in an index; reads each document once.

    Paragraphs are compared with white space and invisible characters normalised, as in files that are read.
    """

    def __init__(self, questions: Sequence[Question], index: Index) -> None:
        sources = [source.source for source in index.sources()]
        self._sources: dict[str, list[str]] = {}
        for source in sources:
            self._sources.setdefault(PurePath(source).name, []).append(source)
        contexts = {question.context for question in questions if question.context is not None}
        self._units = {context: tuple(squeeze(context).split()) for context in contexts}
        self._spans = _find_paragraphs(set(self._units.values()), index, sources)
        self._found = {span.unit for spans in self._spans.values() for span in spans}
        self._gold = {question.id: self._locate(question) for question in questions}
        self._copies = {question.id: set(map(self._find_source, question.copies)) for question in questions}

    def gold(self, question: Question) -> Gold:
        """Return where the answer to one of the questions is."""
        return self._gold[question.id]

    def unit(self, question: Question, source: str, start: int, end: int) -> str:
        """Name the document or paragraph that a chunk counts as in a ranking; in no paragraph, the chunk itself.

        A chunk in several paragraphs counts as the one with the answer, else as the one that it overlaps most.
        """
        gold = self._gold[question.id].units
        if question.context is None:
            is_copy = source in self._copies[question.id]
            return max(gold) if is_copy and gold else _document_unit(source)
        overlaps = [
            (span.unit in gold, min(end, span.end) - max(start, span.start), span.unit)
            for span in self._spans.get(source, ())
            if span.start < end and start < span.end
        ]
        return max(overlaps)[2] if overlaps else f"{source}:{start}-{end}"

    def holds(self, question: Question, source: str, start: int, end: int) -> bool:
        """Return whether a span of a document lies in a paragraph or document that holds the answer."""
        gold = self._gold[question.id].units
        if _document_unit(source) in gold or (gold and source in self._copies[question.id]):
            return True
        return any(
            span.unit in gold and span.start <= start and end <= span.end for span in self._spans.get(source, ())
        )

    def _locate(self, question: Question) -> Gold:
        if not question.answerable:
            return Gold(frozenset(), known=False)
        if question.context is not None:
            unit = _paragraph_unit(self._units[question.context])
            return Gold(frozenset({unit} & self._found), known=True)
        found = [self._find_source(source) for source in question.sources]
        units = frozenset(_document_unit(source) for source in found if source is not None)
        return Gold(units, known=bool(question.sources))

    def _find_source(self, wanted: str) -> str | None:
        return match_source(wanted, self._sources.get(PurePath(wanted).name, []))


def _document_unit(source: str) -> str:
    return f"document {source}"


def _paragraph_unit(words: tuple[str, ...]) -> str:
    return "paragraph " + hashlib.blake2b(" ".join(words).encode(), digest_size=8).hexdigest()


def _find_paragraphs(
    paragraphs: Iterable[tuple[str, ...]], index: Index, sources: Sequence[str]
) -> dict[str, list[Span]]:
    """Find every place of every paragraph, by document."""
    # Number of words → first words → the paragraphs that begin with them; a short paragraph has fewer.
    openings: dict[int, dict[tuple[str, ...], list[tuple[str, ...]]]] = {}
    for paragraph in paragraphs:
        opening = paragraph[:_OPENING_WORDS]
        openings.setdefault(len(opening), {}).setdefault(opening, []).append(paragraph)
    found: dict[str, list[Span]] = {}
    for source in sources if openings else ():
        text = index.text(source)
        words = tuple(squeeze(text).split())
        places = [
            (at, paragraph)
            for length, beginning in openings.items()
            for at in range(len(words) - length + 1)
            for paragraph in beginning.get(words[at : at + length], ())
            if words[at : at + len(paragraph)] == paragraph
        ]
        if places:
            found[source] = _as_spans(text, len(words), places)
    return found


def _as_spans(text: str, count: int, places: Iterable[tuple[int, tuple[str, ...]]]) -> list[Span]:
    """Turn word offsets into character offsets."""
    words = [match.span() for match in re.finditer(r"\S+", text) if squeeze(match[0])]
    if len(words) != count:
        # A control character is a space in one count and not in the other: take the whole document.
        return [Span(0, len(text), _paragraph_unit(paragraph)) for _, paragraph in places]
    return [
        Span(words[at][0], words[at + len(paragraph) - 1][1], _paragraph_unit(paragraph))
        for at, paragraph in places
    ]
