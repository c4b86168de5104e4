"""Web pages and Word documents: a walk over an XML tree, and a collector of the blocks found on it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from lince_rag.documents.readers.blocks import Block, clean, squeeze


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
