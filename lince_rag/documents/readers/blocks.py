"""The blocks of text that a reader finds, with headings and pages, and how they become one text with sections."""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from lince_rag.text.words import clean, squeeze

HEADING_SEPARATOR: Final = " › "

# The longest heading in metadata, where every chunk repeats it; in the text it is not shortened.
MAXIMUM_HEADING: Final = 300


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


@dataclass(frozen=True)
class Content:
    """What a reader finds: blocks in reading order, and the title in the file's metadata, if any."""

    blocks: list[Block]
    title: str = ""
    # The numbers, from 1, of the pages that hold pictures and no text.
    pages_without_text: list[int] = field(default_factory=list)


def assemble(blocks: list[Block]) -> tuple[str, list[dict[str, Any]], str]:
    """Join blocks into one text, and return also its sections and its first heading of level 1, or "".

    The sections divide the text without gaps. A section begins at each heading and each page. A heading without
    text of its own shares the section of the deeper heading after it, so that no section is only a title.
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
            self._append(Block(f"- {text}" if kind == "item" else text), kind)

    def add_preformatted(self, text: str) -> None:
        """Add a ``<pre>`` unchanged: its line ends and indentation are part of its content."""
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
        """Add a row as one line, or its paragraphs if a cell has many: then the table is page layout."""
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
