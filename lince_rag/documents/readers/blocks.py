"""What a reader finds: blocks of text with headings and pages, and how they become one text with sections."""

import itertools
import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

HEADING_SEPARATOR: Final = " › "

# Longest heading that is kept whole in metadata, where every chunk repeats it; the text itself is not shortened.
MAXIMUM_HEADING: Final = 300


class Unreadable(Exception):  # noqa: N818  # a reason on its way to a DocumentError, never seen by a user
    """A file cannot be read; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Block:
    """A paragraph, a row of a table, an item of a list, or a heading.

    Attributes:
        text: The text, already clean.
        level: 1 and up for a heading, 0 for anything else.
        heading: The title, when it is not simply ``text``.
        page: The page, from 1, where the format has pages.
        separator: What stands between the previous block and this one.
        body: The text of a heading's block goes on after the heading.
    """

    text: str
    level: int = 0
    heading: str = ""
    page: int | None = None
    separator: str = "\n\n"
    body: bool = False


@dataclass(frozen=True)
class Content:
    """What a reader found: blocks in reading order, and the title in the file's own metadata, if any."""

    blocks: list[Block]
    title: str = ""


_REMOVED: Final = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff\ufffe\uffff]"
)
_LINE_END: Final = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SPACE: Final = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")


def clean(text: str) -> str:
    """Normalise characters without changing what is written.

    Unicode NFC; one kind of line end and of space; no soft hyphens, control characters or text-direction
    marks; half a surrogate pair, which no database takes, becomes U+FFFD.
    """
    text = _SPACE.sub(" ", _LINE_END.sub("\n", text))
    text = re.sub("[\ud800-\udfff]", "\ufffd", _REMOVED.sub("", text))
    return unicodedata.normalize("NFC", text)


def squeeze(text: str) -> str:
    """Put a text on one line, with one space where there was any white space."""
    return " ".join(clean(text).split())


def assemble(blocks: list[Block]) -> tuple[str, list[dict[str, Any]], str]:
    """Join blocks into one text.

    A section begins at each heading and each page. A heading with no text of its own shares the section of
    the deeper heading after it, so that no section is a bare title.

    Args:
        blocks: The blocks in reading order.

    Returns:
        The text; its sections, which divide it without gaps; and its first heading of level 1, or "".
    """
    parts: list[str] = []
    sections: list[dict[str, Any]] = []
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
    for section, following in itertools.pairwise(sections):
        section["end"] = following["start"]
    if sections:
        sections[-1]["end"] = length
    return "".join(parts), sections, title


def walk_tree(root: Any, dropped: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Walk an lxml tree without recursion, so that no depth breaks it.

    Args:
        root: The element to begin with.
        dropped: Tags of the elements that are left out with all that is in them.

    Yields:
        ("start", element) and ("end", element) in document order; only ("dropped", element) for those left out.
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
    """Collects blocks from a walk: text comes in pieces, and the end of each element says what it was."""

    blocks: list[Block] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)
    row: list[list[str]] = field(default_factory=list)
    cells: int = 0
    item: bool = False
    previous: str = ""

    def end_paragraph(self, level: int = 0, kind: str = "") -> None:
        """Make a block of the pieces so far, or a paragraph of a cell inside a table.

        Args:
            level: The level of a heading, 0 for anything else.
            kind: "item" for an item of a list.
        """
        lines = [squeeze(line) for line in "".join(self.pieces).split("\n")]
        self.pieces.clear()
        text = "\n".join(line for line in lines if line)
        if not text:
            return
        # The mark of a list item belongs to its first paragraph, whatever element that is in.
        kind, self.item = "item" if self.item else kind, False
        if level:
            self.end_row()
            self._append(Block(squeeze(text), level=level), "heading")
        elif self.cells:
            self.paragraphs.append(text)
        else:
            self._append(Block(f"- {text}" if kind == "item" else text), kind)

    def preformatted(self, text: str) -> None:
        """Take a ``<pre>`` as it is: its line ends and indentation are its content."""
        self.end_paragraph()
        self.end_row()
        if text.strip():
            self._append(Block(clean(text).strip("\n").rstrip()), "")

    def end_cell(self) -> None:
        """End a cell of a table."""
        self.end_paragraph()
        self.row.append(self.paragraphs)
        self.paragraphs = []
        self.cells = max(self.cells - 1, 0)

    def end_row(self) -> None:
        """Write a row as one line; a cell of many paragraphs is page layout, and stays paragraphs."""
        cells = [*self.row, self.paragraphs] if self.paragraphs else self.row
        self.row, self.paragraphs = [], []
        if any(len(cell) > 2 for cell in cells):
            for paragraph in (paragraph for cell in cells for paragraph in cell):
                self._append(Block(paragraph), "")
        elif any(cells):
            texts = [squeeze(" ".join(cell)) for cell in cells]
            line = " | ".join(texts) if len(cells) - texts.count("") > 1 else "".join(texts)
            self._append(Block(line), "row")

    def _append(self, block: Block, kind: str) -> None:
        together = kind in {"item", "row"} and kind == self.previous
        separator = "\n" if together else "\n\n"
        self.blocks.append(Block(block.text, level=block.level, separator=separator))
        self.previous = kind
