"""Where in an index the answers are: the paragraphs and documents that a question file names."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, NamedTuple

from lince_rag.errors import ConfigurationError
from lince_rag.evaluation.questions import Question
from lince_rag.index.index import Index
from lince_rag.text.words import squeeze

# Paragraphs are looked up by their first words, so that the time does not grow with questions times documents.
_OPENING_WORDS: Final = 8


class Stretch(NamedTuple):
    """A paragraph's place in a document: character offsets in the document's text."""

    start: int
    end: int
    unit: str


@dataclass(frozen=True)
class Gold:
    """The places of a question's answer in an index.

    Attributes:
        units: Names of the paragraphs, or the documents, that hold it.
        known: Whether the question file says where the answer is.
    """

    units: frozenset[str]
    known: bool

    @property
    def missing(self) -> bool:
        """Whether the answer is said to be in a place that this index does not have."""
        return self.known and not self.units


class GoldMap:
    """Finds the paragraphs and documents of questions in an index, and tells what lies in them.

    Paragraphs are compared with white space and invisible characters normalised, the way files are read.

    Args:
        questions: The questions.
        index: The index; its documents are read once.

    Raises:
        ConfigurationError: The end of a path that a question gives as its source fits several documents.
    """

    def __init__(self, questions: Sequence[Question], index: Index) -> None:
        sources = [source.source for source in index.sources()]
        self._sources = _Sources(sources)
        contexts = {question.context for question in questions if question.context is not None}
        self._units = {context: tuple(squeeze(context).split()) for context in contexts}
        self._stretches = _find_paragraphs(set(self._units.values()), index, sources)
        self._found = {stretch.unit for stretches in self._stretches.values() for stretch in stretches}
        self._gold = {question.id: self._locate(question) for question in questions}

    def gold(self, question: Question) -> Gold:
        """Return where the answer to one of the questions is."""
        return self._gold[question.id]

    def unit(self, question: Question, source: str, start: int, end: int) -> str:
        """Name what a chunk stands for in a ranking: its document, its paragraph, or only itself.

        Args:
            question: One of the questions: it is judged by documents if it names one, else by paragraphs.
            source: The chunk's document.
            start: Where it begins, in characters of the document's text.
            end: Where it ends.

        Returns:
            The name. A chunk that lies in several paragraphs counts as the one with the answer, else as the one
            that it shares most with.
        """
        if question.context is None:
            return _document_unit(source)
        gold = self._gold[question.id].units
        overlaps = [
            (stretch.unit in gold, min(end, stretch.end) - max(start, stretch.start), stretch.unit)
            for stretch in self._stretches.get(source, ())
            if stretch.start < end and start < stretch.end
        ]
        return max(overlaps)[2] if overlaps else f"{source}:{start}-{end}"

    def holds(self, question: Question, source: str, start: int, end: int) -> bool:
        """Tell whether a stretch of a document lies in a paragraph or document that holds the answer."""
        gold = self._gold[question.id].units
        return _document_unit(source) in gold or any(
            stretch.unit in gold and stretch.start <= start and end <= stretch.end
            for stretch in self._stretches.get(source, ())
        )

    def _locate(self, question: Question) -> Gold:
        if not question.answerable:
            return Gold(frozenset(), known=False)
        if question.context is not None:
            unit = _paragraph_unit(self._units[question.context])
            return Gold(frozenset({unit} & self._found), known=True)
        found = [self._sources.find(source) for source in question.sources]
        units = frozenset(_document_unit(source) for source in found if source is not None)
        return Gold(units, known=bool(question.sources))


class _Sources:
    """Documents by name, or by the end of their path."""

    def __init__(self, sources: Iterable[str]) -> None:
        self._names = set(sources)
        self._by_file: dict[str, list[str]] = {}
        for source in self._names:
            self._by_file.setdefault(PurePath(source).name, []).append(source)

    def find(self, wanted: str) -> str | None:
        if wanted in self._names:
            return wanted
        parts = PurePath(wanted).parts
        if not parts:
            return None
        candidates = self._by_file.get(parts[-1], ())
        fitting = sorted(name for name in candidates if PurePath(name).parts[-len(parts) :] == parts)
        if len(fitting) > 1:
            raise ConfigurationError(
                f"The source {wanted!r} may be any of {', '.join(fitting)}.", hint="Give more of its path."
            )
        return fitting[0] if fitting else None


def _document_unit(source: str) -> str:
    return f"document {source}"


def _paragraph_unit(words: tuple[str, ...]) -> str:
    return "paragraph " + hashlib.blake2b(" ".join(words).encode(), digest_size=8).hexdigest()


def _find_paragraphs(
    paragraphs: Iterable[tuple[str, ...]], index: Index, sources: Sequence[str]
) -> dict[str, list[Stretch]]:
    """Every place of every paragraph, by document."""
    # First words → the paragraphs that begin so; short paragraphs are known by fewer words.
    openings: dict[int, dict[tuple[str, ...], list[tuple[str, ...]]]] = {}
    for paragraph in paragraphs:
        opening = paragraph[:_OPENING_WORDS]
        openings.setdefault(len(opening), {}).setdefault(opening, []).append(paragraph)
    found: dict[str, list[Stretch]] = {}
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
            found[source] = _stretches(text, len(words), places)
    return found


def _stretches(text: str, count: int, places: Iterable[tuple[int, tuple[str, ...]]]) -> list[Stretch]:
    """Turn places in words into places in characters."""
    spans = [match.span() for match in re.finditer(r"\S+", text) if squeeze(match[0])]
    if len(spans) != count:
        # An odd control character that one way of counting takes for a space: the whole document, then.
        return [Stretch(0, len(text), _paragraph_unit(paragraph)) for _, paragraph in places]
    return [
        Stretch(spans[at][0], spans[at + len(paragraph) - 1][1], _paragraph_unit(paragraph))
        for at, paragraph in places
    ]
