"""Rows of a table as lines that name the columns of their values, so that each is understood alone."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from lince_rag.documents.readers.blocks import Block

CELL_SEPARATOR: Final = " | "

# Headers such as "Province, 2023, 2024" are years; a single number among texts is a value.
_YEAR: Final = re.compile(r"(?:19|20)\d\d")
_BOOLEANS: Final = {"true", "false"}


def named_row(cells: Iterable[tuple[str, str]]) -> str:
    """Write (name, value) pairs as "name: value | name: value"; a value without a name stands alone."""
    return CELL_SEPARATOR.join(f"{name}: {value}" if name else value for name, value in cells if value)


def table_blocks(rows: Iterable[Sequence[str]], page: int | None = None) -> Iterator[Block]:
    """Yield a block for each row of a table, with the names of its columns if the table has a header.

    The header is the first row with two or more cells, if all of them are text; lines above it are paragraphs.
    After a blank row another header may follow, if it can be told from the rows above, which have numbers.

    Args:
        rows: The cells of each row as clean text on one line, "" for an empty cell.
        page: The page of the blocks.
    """
    table = _Table()
    previous = ""
    for row in rows:
        for kind, text in table.read(row):
            together = kind == previous == "row"
            yield Block(text, page=page, separator="\n" if together else "\n\n")
            previous = kind
        if not any(row):
            previous = ""
    for _, text in table.end():
        yield Block(text, page=page)


class _Table:
    """Reads the rows of a table in order, and gives for each its (kind, text): "row" or "paragraph"."""

    def __init__(self) -> None:
        # None before the first row with two cells, empty if that was no header.
        self._names: list[str] | None = None
        # A header that has had no row below it yet.
        self._unused = ""
        self._blank = False
        self._numbers = False

    def read(self, row: Sequence[str]) -> Iterator[tuple[str, str]]:
        count = sum(map(bool, row))
        if not count:
            self._blank = True
            return
        starts = self._names is None or (self._blank and self._numbers)
        if count > 1 and starts and _is_header(row):
            yield from self.end()
            self._names = [name.rstrip(" :") for name in row]
            self._unused = CELL_SEPARATOR.join(filter(None, row))
            self._numbers = False
        elif count == 1 and (self._names is None or self._blank):
            yield "paragraph", "".join(row)
        else:
            self._names = self._names or []
            self._unused = ""
            self._numbers = self._numbers or not all(map(_is_text, filter(None, row)))
            names = [*self._names, *[""] * len(row)]
            yield "row", named_row(zip(names, row, strict=False))
        self._blank = False

    def end(self) -> Iterator[tuple[str, str]]:
        """Give a header that no row followed."""
        if self._unused:
            yield "row", self._unused
        self._unused = ""


def _is_text(cell: str) -> bool:
    return any(map(str.isalpha, cell)) and cell not in _BOOLEANS


def _is_header(row: Sequence[str]) -> bool:
    """Return whether the cells are names of columns: all are text, or some are and the others years in order."""
    others = [cell for cell in row if cell and not _is_text(cell)]
    years = len(others) > 1 and all(map(_YEAR.fullmatch, others))
    ordered = years and sorted(set(others), reverse=others[0] > others[1]) == others
    return not others or (ordered and len(others) < sum(map(bool, row)))
