"""Answers and passages on the terminal: wrapped at words, with Markdown as styles, and sources that are links."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

from lince_rag.cli.localisation import visible
from lince_rag.cli.terminal import answer_notes, output, short_path
from lince_rag.text.language import Language, wording, write_number

if TYPE_CHECKING:
    from langchain_core.documents import Document

    from lince_rag.chain.answer import Answer, Citation
    from lince_rag.index.index import Index

# A line break inside a paragraph, but not before an item of a list, a row of a table, or a name with its value.
_LINE_BREAK: Final = re.compile(
    r"(?<!\n)[ \t]*\n[ \t]*(?![\n\t ]|(?:[-*•·+]|\d{1,3}[.)])\s|[^\n]* \| |[^\n:.,;]{1,40}: )"
)

# The longest part of an answer that is held back until its Markdown is complete.
_HELD: Final = 200

# Where bold text begins and ends while an answer is laid out, and what stands for the line before a piece
# (private-use characters).
_ON, _OFF, _BEFORE = "\ue000", "\ue001", "\ue002"
_MARKS: Final = re.compile(f"([{_ON}{_OFF}{_BEFORE}])")

_RULE: Final = re.compile(r"^(?:```.*|[ \t]*\|?[ \t]*:?-{3,}[-:| \t]*)(?:\n|\Z)", re.MULTILINE)
_HEADING: Final = re.compile(r"^#{1,6}[ \t]+(\S.*?)[ \t]*#*$", re.MULTILINE)
_BOLD: Final = re.compile(r"\*\*(?=\S)((?:(?!\*\*|\n\n).)+?)(?<=\S)\*\*", re.DOTALL)
_LINK: Final = re.compile(r"!?\[([^\]\n]*)\]\(([^()\s]*)\)")
_CODE: Final = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_ITALIC: Final = re.compile(r"(?<![\w*_\\])([*_])(?=[^\s*_])([^*_\n]+)(?<=[^\s*_])\1(?![\w*_])")
_BRACKETS: Final = re.compile(r"\[[^\]\n]*\](?=[^(])")
# Nothing of these is printed before its end is there.
_TOGETHER: Final = (_RULE, _HEADING, _BOLD, _LINK, _CODE, _ITALIC, _BRACKETS)
_OPEN_LINE: Final = re.compile(r"^(?:#{1,6}[ \t]*|`{1,3}.*|[ \t]*\|?[ \t]*:?-[-:| \t]*)\Z", re.MULTILINE)
_OPEN: Final = re.compile(r"\*\*|`|\[|(?<![\w*_\\])[*_](?=[^\s*_]?[^\n]*\Z)")

_TOKEN: Final = re.compile(r"\n|[ \t]+|[^ \t\n]+")
_ITEM: Final = re.compile(r"[-*•·+]|\d{1,3}[.)]|\[\d{1,2}\]")

# Files whose lines are not what their reader shows.
_WITHOUT_LINES: Final = frozenset(
    {".html", ".htm", ".json", ".jsonl", ".ndjson", ".ipynb", ".eml", ".mbox", ".ics", ".vcf", ".rtf"}
)
_MAXIMUM_FILE: Final = 16 * 2**20

# Characters between two quotes that are one passage: the white space between two sentences.
_GAP: Final = 4

_HEADING_CHARACTERS: Final = 60


class TextPrinter:
    """Prints a text as it comes: on a terminal wrapped at words, its Markdown as bold text or left out.

    What is not yet complete is held back.

    Args:
        console: Where to print.
        margin: Columns to the left of every line.
        lead: What stands in the margin of the first line.
    """

    def __init__(self, console: Console, margin: int = 0, lead: str = "") -> None:
        self._console = console
        self._width = console.width if console.is_terminal else None
        self._margin = margin
        self._lead = lead
        self._held = ""
        self._column = 0
        self._indent = margin
        self._space = ""
        self._bold = 0

    def add(self, piece: str) -> None:
        """Take a piece of the text, and print what is complete."""
        self._held += piece
        end = _settled(self._before + self._held) - len(self._before)
        if end > 0:
            ready, self._held = self._held[:end], self._held[end:]
            self._print(ready)

    def end(self) -> None:
        """Print the rest."""
        ready, self._held = self._held, ""
        self._print(ready)

    @property
    def _before(self) -> str:
        return _BEFORE if self._column or self._space else ""

    def _print(self, text: str) -> None:
        laid_out = Text()
        for token in _TOKEN.findall(_without_markdown(self._before + visible(text))):
            if token == "\n":
                laid_out.append("\n")
                self._column, self._indent, self._space = 0, self._margin, ""
            elif token.isspace():
                self._space = token
            elif token != _BEFORE:
                self._add_word(laid_out, token)
        self._console.print(laid_out, end="", soft_wrap=True)

    def _add_word(self, laid_out: Text, word: str) -> None:
        length = cell_len(_MARKS.sub("", word))
        if self._column == 0:
            self._indent = self._margin + len(self._space)
            laid_out.append(self._lead.ljust(self._indent))
            self._column, self._lead = max(self._indent, len(self._lead)), ""
            if _ITEM.fullmatch(_MARKS.sub("", word)):
                self._indent += length + 1
        elif self._width and self._column + len(self._space) + length > self._width:
            laid_out.append("\n" + " " * self._indent)
            self._column = self._indent
        else:
            laid_out.append(self._space, "bold" if self._bold else None)
            self._column += len(self._space)
        self._space = ""
        self._column += length
        for part in _MARKS.split(word):
            if part in (_ON, _OFF):
                self._bold = max(0, self._bold + (1 if part == _ON else -1))
            elif part != _BEFORE:
                laid_out.append(part, "bold" if self._bold else None)


def _settled(held: str) -> int:
    """Return up to where what follows does not change how a text is printed."""
    last = re.search(r"\s+\S*\Z", held)
    end = last.start() if last else 0
    if line := _OPEN_LINE.search(held):
        end = min(end, line.start())
    rest = held
    for pattern in _TOGETHER:
        for match in pattern.finditer(rest):
            end = match.start() if match.start() < end < match.end() else end
        rest = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), rest)
    opened = _OPEN.search(rest)
    return min(end, opened.start()) if opened and len(held) - opened.start() < _HELD else end


def _without_markdown(text: str) -> str:
    """Mark what Markdown makes bold, and leave out its other signs."""
    text = _RULE.sub("", text)
    text = _HEADING.sub(rf"{_ON}\1{_OFF}", text)
    text = _BOLD.sub(rf"{_ON}\1{_OFF}", text)
    text = _CODE.sub(r"\1", text)
    text = _ITALIC.sub(r"\2", text)
    return _LINK.sub(lambda match: match[1] if match[1] == match[2] else f"{match[1]} ({match[2]})".strip(), text)


@dataclass(frozen=True)
class Place:
    """Where a quote is in the documents."""

    source: str
    heading: str = ""
    page: int | None = None
    line: int | None = None


class Places:
    """Names where quotes are: document, page or line, and heading, with links on a terminal that can show them.

    Args:
        index: The index that the quotes are from; without it, few quotes have a line.
        name: How to write the name of a document.
        linked: Whether links are wanted.
    """

    def __init__(
        self, index: "Index | None" = None, name: Callable[[str], str] = short_path, *, linked: bool = True
    ) -> None:
        console = output()
        self._text = index.ledger.text if index else None
        self._name = name
        self._linked = linked and console.is_terminal and not console.is_dumb_terminal and not console.no_color

    def of_citation(self, citation: "Citation") -> Place:
        """Return where a citation's quote is."""
        return self._find(citation.source, citation.heading, citation.page, citation.start, citation.quote)

    def of_document(self, document: "Document") -> Place:
        """Return where a retrieved chunk is."""
        data = document.metadata
        start = int(data.get("start") or 0)
        return self._find(
            str(data["source"]), str(data.get("heading") or ""), data.get("page"), start, document.page_content
        )

    def _find(self, source: str, heading: str, page: int | None, start: int, quote: str) -> Place:
        text = self._text(source) if self._text else None
        line = None if page is not None else _line(text, source, start, quote)
        return Place(source, heading, page, line)

    def write(self, places: Sequence[Place], language: Language) -> Text:
        """Write places in the same document and below the same heading in a row."""
        source, heading = places[0].source, places[0].heading
        written = Text()
        written.append(self._name(source), self._style(places[0], "cyan"))
        for kind in ("page", "line"):
            numbers = {getattr(place, kind): place for place in places if getattr(place, kind) is not None}
            if not numbers:
                continue
            label = wording(kind if len(numbers) == 1 else f"{kind}s", language, **{kind: "\0"})
            before, _, after = label.partition("\0")
            written.append(", " + before)
            for position, number in enumerate(sorted(numbers)):
                written.append(", " if position else "")
                written.append(str(number), self._style(numbers[number], "cyan"))
            written.append(after)
        if heading:
            shown = " ".join(visible(heading).split())
            cut = shown if len(shown) <= _HEADING_CHARACTERS else shown[: _HEADING_CHARACTERS - 1].rstrip() + "…"
            written.append(f" ({cut})", "dim")
        return written

    def _style(self, place: Place, colour: str) -> Style:
        link = _address(place) if self._linked else None
        return Style.parse(colour) + Style(link=link)


def _address(place: Place) -> str | None:
    """Return the address of a place in a file: browsers go to a page, terminals hand the line to an editor."""
    path = Path(place.source)
    if not path.is_absolute() or not path.is_file():
        return None
    fragment = f"#page={place.page}" if place.page is not None else f"#{place.line}" if place.line else ""
    return path.as_uri() + fragment


@lru_cache(maxsize=8)
def _lines_of(source: str) -> str:
    """Return the text of a file that is one; the empty text for any other."""
    from lince_rag.documents.readers.blocks import Unreadable
    from lince_rag.documents.readers.text import decode

    path = Path(source)
    try:
        if path.suffix.lower() in _WITHOUT_LINES or path.stat().st_size > _MAXIMUM_FILE:
            return ""
        return decode(path.read_bytes())
    except (OSError, Unreadable):
        return ""


def _line(text: str | None, source: str, start: int, quote: str) -> int | None:
    """Return the line of a file, from 1, in which a quote begins; ``None`` if the file does not have it.

    The text of the index has fewer blank lines than the file. Without it, what stands in the file more than once
    has no line.
    """
    first = quote.strip().split("\n", 1)[0].strip()
    raw = _lines_of(source) if first else ""
    if not raw or (text is None and raw.count(first) != 1):
        return None
    at = -1
    for _ in range(text.count(first, 0, start) + 1 if text else 1):
        at = raw.find(first, at + 1)
        if at < 0:
            return None
    return raw.count("\n", 0, at) + 1 if at >= 0 else None


def print_answer(
    steps: "Iterable[str | Answer]", places: Places | None = None, *, whole: bool = False
) -> "Answer":
    """Print what ``RagChain.stream`` yields as it comes, then the sources and the notes; return the answer.

    With ``whole``, the text comes in one piece at the end, with the short answer in bold and several passages
    numbered: a model that only quotes takes no time.
    """
    places = places or Places()
    console = output()
    answer, shown = _print_steps(steps, console, whole=whole)
    console.print()
    for correction in answer.corrections:
        console.print(f"  {wording(correction, answer.language)}", style="yellow", markup=False)
    passages = quoted_passages(answer) if whole else []
    if shown.strip() != answer.text:
        # The answer was corrected after it had been printed.
        _print_text(console, answer.text)
        console.print()
    _print_sources(console, answer, passages, places)
    for note in answer_notes(answer):
        console.print(f"  {note}", style="yellow", markup=False)
    return answer


def _print_steps(steps: "Iterable[str | Answer]", console: Console, *, whole: bool) -> "tuple[Answer, str]":
    """Print the text of an answer; return the answer and what was printed of it."""
    answer: Any = None
    shown = ""
    printer = TextPrinter(console)
    for step in steps:
        if not isinstance(step, str):
            answer = step
        elif not whole:
            printer.add(step)
            shown += step
    printer.end()
    if whole:
        passages = [answer.text[start:end] for start, end, _ in quoted_passages(answer)]
        for number, text in enumerate(passages, start=1):
            lead = f"[{number}] "
            _print_text(console, _mark_short(text, answer.short), len(lead) if console.is_terminal else 0, lead)
            console.print("\n\n" if number < len(passages) else "", end="")
        if not passages:
            _print_text(console, _mark_short(answer.text, answer.short))
        shown = answer.text
    return answer, shown


def _print_text(console: Console, text: str, margin: int = 0, lead: str = "") -> None:
    """Print text of documents: a single line break in it comes from the layout of the file."""
    printer = TextPrinter(console, margin, lead)
    printer.add(_LINE_BREAK.sub(" ", text))
    printer.end()


def _mark_short(text: str, short: str | None) -> str:
    return text.replace(short, _ON + short + _OFF, 1) if short else text


def quoted_passages(answer: "Answer") -> "list[tuple[int, int, Citation]]":
    """Return the passages of an answer of several: their offsets in its text, and a citation of each."""
    passages: list[tuple[int, int, Any]] = []
    last: Any = None
    at = 0
    for piece in answer.text.split("\n\n"):
        start, end = at, at + len(piece)
        at = end + 2
        cited = [each for each in answer.citations if start <= each.answer_start < end]
        goes_on = not cited or (
            last is not None and cited[0].source == last.source and 0 <= cited[0].start - last.end <= _GAP
        )
        if passages and goes_on:
            passages[-1] = (passages[-1][0], end, passages[-1][2])
        elif not cited:
            return []
        else:
            passages.append((start, end, cited[0]))
        last = cited[-1] if cited else last
    return passages if len(passages) > 1 else []


def _print_sources(
    console: Console, answer: "Answer", passages: "Sequence[tuple[int, int, Citation]]", places: Places
) -> None:
    """Print where an answer is from: one line for each passage, or for each document and heading."""
    if passages:
        rows = [places.write([places.of_citation(citation)], answer.language) for _, _, citation in passages]
        rows = [Text.assemble(f"[{number}] ", row) for number, row in enumerate(rows, start=1)]
    else:
        groups: dict[tuple[str, str], list[Place]] = {}
        for place in map(places.of_citation, _first_of_each(answer.citations)):
            groups.setdefault((place.source, place.heading), []).append(place)
        rows = [places.write(group, answer.language) for group in groups.values()]
    label = (f"  {wording('sources', answer.language)}:", "dim")
    if len(rows) == 1:
        console.print(Text.assemble(label, " ", rows[0]))
    elif rows:
        console.print(Text.assemble(label))
        for row in rows:
            console.print(Text.assemble("    ", row))


def _first_of_each(citations: "Iterable[Citation]") -> "Iterator[Citation]":
    """Yield the first citation of every passage: the sentences of one passage follow each other."""
    last: Any = None
    for citation in citations:
        if last is None or citation.source != last.source or not 0 <= citation.start - last.end <= _GAP:
            yield citation
        last = citation


def print_passages(documents: "Sequence[Document]", places: Places, language: Language) -> None:
    """Print the passages that a search found, best first, each below its place and its score."""
    console = output()
    if not documents:
        console.print(wording("nothing_found", language), markup=False)
    for number, document in enumerate(documents, start=1):
        place = places.write([places.of_document(document)], language)
        score = "  " + write_number(document.metadata.get("score") or 0.0, ".2f", language)
        console.print(Text.assemble(f"{number}. ", place, (score, "dim")))
        _print_text(console, document.page_content, margin=len(f"{number}. "))
        console.print("\n" if number < len(documents) else "")
