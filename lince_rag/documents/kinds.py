"""What parts of a text are: tables of contents and lists of links, which are not searched, code, lists, tables."""

import bisect
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from typing import Final, NamedTuple

from lince_rag.text.sentences import CELL_SEPARATOR

Span = tuple[int, int]

# Entries of a table of contents in a row; and the share of them whose page is not before that of the entry above,
# which tells it from a list of prices.
MINIMUM_ENTRIES: Final = 5
ORDERED_SHARE: Final = 0.9

# A long title is on two or three lines, of which only the last one has the dots and the page.
TITLE_LINES: Final = 2
TITLE_LENGTH: Final = 100

MINIMUM_LINKS: Final = 3

_DOTS: Final = re.compile(r"(?:[.·] ?){4,}+|(?:… ?){2,}+")
_PAGE: Final = re.compile(r"\s{0,3}(\d{1,4})(?![.,]?\d)", re.ASCII)
# A list item of Markdown that is only a link without a scheme or a host: to a file of the same collection.
_LINK_ITEM: Final = re.compile(
    r"(?:[-*+•]|\d{1,3}[.)]) +\[[^\]]*\]\((?![a-z][a-z0-9+.-]*:|//)[^)\s]*\)[.;,]?", re.IGNORECASE
)
_FENCE: Final = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)
_ITEM: Final = re.compile(r"(?:[-*•·+]|\d{1,3}[.)])\s")


class _Line(NamedTuple):
    start: int
    end: int
    text: str


def contents_spans(text: str) -> list[Span]:
    """Find the tables of contents, whose entries have dots and a page, and the lists of links in Markdown."""
    found = re.finditer(r"[^\n]+", text)
    lines = [_Line(*line.span(), line[0].strip()) for line in found if not line[0].isspace()]
    return [*_page_lists(lines), *_link_lists(lines)]


def _page_lists(lines: list[_Line]) -> Iterator[Span]:
    """Yield the runs of lines with entries, across the lines of long titles."""
    run: list[_Line] = []
    pages: list[int] = []
    others = 0
    for line in lines:
        if found := _entry_pages(line.text):
            run.append(line)
            pages += found
            others = 0
            continue
        others += 1
        if others > TITLE_LINES or len(line.text) > TITLE_LENGTH:
            if _are_contents(pages):
                yield run[0].start, run[-1].end
            run, pages = [], []
    if _are_contents(pages):
        yield run[0].start, run[-1].end


def _entry_pages(line: str) -> list[int]:
    found = (_PAGE.match(line, dots.end()) for dots in _DOTS.finditer(line))
    return [int(page[1]) for page in found if page]


def _are_contents(pages: list[int]) -> bool:
    ordered = sum(one <= two for one, two in pairwise(pages))
    return len(pages) >= MINIMUM_ENTRIES and ordered >= ORDERED_SHARE * (len(pages) - 1)


def _link_lists(lines: list[_Line]) -> Iterator[Span]:
    for linked, group in groupby(lines, lambda line: bool(_LINK_ITEM.fullmatch(line.text))):
        run = list(group)
        if linked and len(run) >= MINIMUM_LINKS:
            yield run[0].start, run[-1].end


def code_spans(text: str) -> list[Span]:
    """Find the fenced code of Markdown."""
    fences = [found.start() for found in _FENCE.finditer(text)]
    return list(zip(fences[::2], fences[1::2], strict=False))


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Sort spans and join those that overlap."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def remaining_spans(start: int, end: int, removed: list[Span]) -> Iterator[Span]:
    """Yield what is left of ``[start, end)`` without the removed spans, which are sorted and disjoint."""
    first = bisect.bisect_right(removed, start, key=lambda span: span[1])
    for low, high in itertools.takewhile(lambda span: span[0] < end, removed[first:]):
        if start < low:
            yield start, low
        start = high
    if start < end:
        yield start, end


def is_heading(text: str, heading: str) -> bool:
    """Return whether a text is only its heading, which may be a path, or the last parts of it."""
    # Marks of Markdown and line breaks may add to the heading's length.
    if not heading or len(text) > 2 * len(heading) + TITLE_LENGTH:
        return False
    letters = _letters(text)
    return bool(letters) and _letters(heading).endswith(letters)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def chunk_kind(text: str, heading: str, code: int) -> str:
    """Name what most of a chunk is, of which ``code`` characters are known to be program code."""
    if is_heading(text, heading):
        return "heading"
    if 2 * code > len(text):
        return "code"
    sizes = Counter[str]()
    kind = ""
    for line in text.split("\n"):
        stripped = line.strip()
        if CELL_SEPARATOR in line or stripped.startswith("|"):
            kind = "table"
        elif _ITEM.match(stripped):
            kind = "list"
        elif not stripped or kind == "table" or not line[0].isspace():
            # An indented line continues the item above it.
            kind = ""
        sizes[kind] += len(stripped)
    most, size = sizes.most_common(1)[0]
    return most if most and 2 * size > len(text) else "prose"
