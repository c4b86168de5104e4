"""The blocks of text that a reader finds, with headings and pages, and how they become one text with sections."""

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from lince_rag.text.sentences import CELL_SEPARATOR
from lince_rag.text.words import clean, squeeze

HEADING_SEPARATOR: Final = " › "

# The longest heading in metadata, where every chunk repeats it; in the text it is not shortened.
MAXIMUM_HEADING: Final = 300

# Pages of the longest PDF that is read. A page of a book takes a few milliseconds.
MAXIMUM_PAGES: Final = 20_000

# Fewer links or entries of a table of contents in a row may stand in a text as references.
MINIMUM_CONTENTS: Final = 3

# A list of links may name its current page, which is no link, or say "see also".
OTHER_LETTERS: Final = 0.2

# Titles that word processors and typesetters set automatically, and file names.
_NO_TITLE: Final = re.compile(
    r"(untitled|sin t[ií]tulo|sem t[ií]tulo|word document|document[oe]?|presentaci[oó]n|apresenta[cç][aã]o|"
    r"powerpoint presentation|presentaci[oó]n de powerpoint|apresenta[cç][aã]o do powerpoint|slide|book|libro|"
    r"pasta)[ \d]*|microsoft (word|powerpoint|excel) - .*|"
    r"\S*\.(docx?|od[tsp]|rtf|pdf|indd|qxd|tex|dvi|html?|pptx?|xls[xm]?|csv|pages|pmd)",
    re.IGNORECASE,
)
_MAXIMUM_TITLE: Final = 200


class Unreadable(Exception):  # noqa: N818  # always turned into a DocumentError
    """A file cannot be read; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Block:
    """A paragraph, a row of a table, an item of a list, or a heading; the text is already clean."""

    text: str
    # 1 or more for a heading, 0 for anything else.
    level: int = 0
    # The title, if it is not simply the text.
    heading: str = ""
    # The page, from 1, if the format has pages.
    page: int | None = None
    # What stands between the previous block and this one.
    separator: str = "\n\n"
    # Whether the text continues after the heading.
    body: bool = False
    # "code", "contents" (a table of contents, navigation), "repeated" (a header or footer of a page, after its
    # first page), or "" for anything else.
    kind: str = ""


@dataclass(frozen=True)
class ReadingOptions:
    """How files are read.

    Args:
        maximum_pages: Pages of the longest PDF that is read.
        password: What opens PDFs that are protected with a password.
        ocr: Whether text in pictures is read: scanned pages of a PDF, and picture files.
    """

    maximum_pages: int = MAXIMUM_PAGES
    password: str | None = field(default=None, repr=False)
    ocr: bool = False


DEFAULT_OPTIONS: Final = ReadingOptions()


@dataclass(frozen=True)
class Content:
    """What a reader finds: blocks in reading order, and the title in the file's metadata, if any."""

    blocks: list[Block]
    title: str = ""
    # The numbers, from 1, of the pages that hold pictures and no text.
    pages_without_text: list[int] = field(default_factory=list)
    # What of the file could not be read, each with its reason.
    left_out: list[str] = field(default_factory=list)


def is_title(title: str) -> bool:
    """Return whether the title in a file's metadata was written by its author."""
    letters = any(character.isalpha() for character in title)
    return letters and len(title) <= _MAXIMUM_TITLE and not _NO_TITLE.fullmatch(title)


def assemble(blocks: list[Block]) -> tuple[str, dict[str, list[dict[str, Any]]], str]:
    """Join blocks into one text, and return also its structure and its first heading of level 1, or "".

    The structure has ``sections``, which divide the text without gaps, and ``kinds``, the spans that are code,
    contents or repeated. A section begins at each heading and each page. A heading without text of its own shares
    the section of the deeper heading after it, so that no section is only a title.
    """
    parts: list[str] = []
    sections: list[dict[str, Any]] = []
    kinds: list[dict[str, Any]] = []
    path: list[tuple[int, str]] = []
    length, bare, title = 0, False, ""
    for block in (block for block in blocks if block.text):
        separator = block.separator if parts else ""
        start = length + len(separator)
        shared = bare and block.level > path[-1][0]
        if block.level:
            heading = block.heading or squeeze(block.text)[:MAXIMUM_HEADING]
            title = title or (heading if block.level == 1 else "")
            path = [entry for entry in path if entry[0] < block.level] + [(block.level, heading)]
        names = HEADING_SEPARATOR.join(name for _, name in path)
        if not sections or (block.level and not shared) or sections[-1]["page"] != block.page:
            sections.append({"start": start, "end": start, "page": block.page, "heading": names})
        sections[-1]["heading"] = names
        bare = block.level > 0 and not block.body
        parts += [separator, block.text]
        length = start + len(block.text)
        if block.kind:
            kinds.append({"start": start, "end": length, "kind": block.kind})
    for section, following in itertools.pairwise(sections):
        section["end"] = following["start"]
    if sections:
        sections[-1]["end"] = length
    return "".join(parts), {"sections": sections, "kinds": kinds}, title


def mark_contents(blocks: list[Block], links: list[int]) -> list[Block]:
    """Mark rows and lists of links, given how many links each block consists of (0 if it has other text)."""
    marked: list[Block] = []
    for linked, group in itertools.groupby(zip(blocks, links, strict=True), lambda pair: pair[1] > 0):
        run = list(group)
        counts = [count for _, count in run]
        contents = linked and (sum(counts) >= MINIMUM_CONTENTS or max(counts) > 1)
        marked += [replace(block, kind="contents") if contents else block for block, _ in run]
    return marked


def walk_tree(root: Any, dropped: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield ("start", element) and ("end", element) of an lxml tree in document order, without recursion.

    An element with a dropped tag is skipped with everything in it, and gives only ("dropped", element).
    """
    from lxml import etree  # type: ignore[import-untyped]

    walker = etree.iterwalk(root, events=("start", "end"))
    for event, element in walker:
        if element.tag not in dropped:
            yield event, element
        elif event == "start":
            walker.skip_subtree()
        else:
            yield "dropped", element


@dataclass
class Collector:
    """Collects blocks while a tree is walked: text comes in pieces, and an element's end tells what they were."""

    blocks: list[Block] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)
    row: list[list[str]] = field(default_factory=list)
    cells: int = 0
    item: bool = False
    previous: str = ""
    # Of each block, the number of links that it consists of; 0 if it has other text.
    links: list[int] = field(default_factory=list)
    # Since the last block: the number of links, and of letters in them and outside them.
    linked: int = 0
    link_letters: int = 0
    other_letters: int = 0
    # Since the last block: the number of letters in links and buttons of any kind, and in buttons.
    control_letters: int = 0
    buttons: int = 0
    # The numbers of open elements that are navigation, and that are margins of a page.
    navigation: int = 0
    margins: int = 0
    # The notes that the current paragraph refers to.
    notes: list[str] = field(default_factory=list)
    # The pieces of each paragraph that is interrupted by a text box.
    outer: list[list[str]] = field(default_factory=list)

    def open_paragraph(self) -> None:
        """Begin a paragraph, perhaps in a text box inside another; the text of the box comes before that one."""
        self.outer.append(self.pieces)
        self.pieces = []

    def close_paragraph(self, level: int = 0, kind: str = "") -> None:
        """End an opened paragraph, and add its notes after it, under the same heading."""
        self.end_paragraph(level, kind)
        notes, self.notes = self.notes, []
        for note in notes:
            self.pieces.append(note)
            self.end_paragraph()
        self.pieces = self.outer.pop()

    def end_paragraph(self, level: int = 0, kind: str = "") -> None:
        """Make a block of the pieces so far, or a paragraph of a cell; ``kind`` is "item" for a list item."""
        lines = [squeeze(line) for line in "".join(self.pieces).split("\n")]
        self.pieces.clear()
        text = "\n".join(line for line in lines if line)
        if not text:
            return
        # The mark of a list item belongs to its first paragraph, whatever element contains it.
        kind, self.item = "item" if self.item else kind, False
        if level:
            self.end_row()
            self._append(Block(squeeze(text), level=level), "heading")
        elif self.cells:
            self.paragraphs.append(text)
        else:
            contents = "contents" if kind == "contents" else ""
            self._append(Block(f"- {text}" if kind == "item" else text, kind=contents), kind)

    def add_preformatted(self, text: str) -> None:
        """Add a ``<pre>`` unchanged: its line ends and indentation are part of its content."""
        self.end_paragraph()
        self.end_row()
        if text.strip():
            self._append(Block(clean(text).strip("\n").rstrip(), kind="code"), "code")

    def end_cell(self) -> None:
        """End a cell of a table."""
        self.end_paragraph()
        self.row.append(self.paragraphs)
        self.paragraphs = []
        self.cells = max(self.cells - 1, 0)

    def end_row(self) -> None:
        """Add a row as one line, or its paragraphs if a cell has many: then the table is page layout."""
        cells = [*self.row, self.paragraphs] if self.paragraphs else self.row
        self.row, self.paragraphs = [], []
        if any(len(cell) > 2 for cell in cells):
            for paragraph in (paragraph for cell in cells for paragraph in cell):
                self._append(Block(paragraph), "")
        elif any(cells):
            texts = [squeeze(" ".join(cell)) for cell in cells]
            line = CELL_SEPARATOR.join(texts) if len(cells) - texts.count("") > 1 else "".join(texts)
            self._append(Block(line), "row")

    def _append(self, block: Block, kind: str) -> None:
        together = kind in {"item", "row", "contents"} and kind == self.previous
        if self.navigation or (not block.level and self._is_control(block.text)):
            # Its heading is above nothing that is searched.
            block = replace(block, kind="contents", level=0)
        self.blocks.append(replace(block, separator="\n" if together else "\n\n"))
        other = block.level > 0 or self.other_letters > OTHER_LETTERS * self.link_letters
        self.links.append(0 if other else self.linked)
        self.linked = self.link_letters = self.other_letters = self.control_letters = self.buttons = 0
        self.previous = kind

    def _is_control(self, text: str) -> bool:
        """Return whether a paragraph is buttons, or links in a margin without a number or an address."""
        if not 0 < self.control_letters == self.link_letters + self.other_letters:
            return False
        return self.buttons > 0 or (self.margins > 0 and not any(each.isdigit() or each == "@" for each in text))
