"""The lines of a page of a PDF with their words, and the rules drawn on it."""

import bisect
import ctypes
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from lince_rag.text.words import squeeze

# Heights of letters between two cells of a row, at least. The spaces of justified prose are up to 0.6, and those
# between cells 0.9 or more (measured on the papers of two households and on manuals in LaTeX).
CELL_GAP: Final = 0.8

# Shapes of a page that are looked at for the rules of tables. A page full of tables has hundreds; a map has more
# than this, and no tables.
MAXIMUM_SHAPES: Final = 20_000

# Corners of a shape of which all edges are rules, at most: a rectangle that is closed.
_CORNERS: Final = 6

_WORD: Final = re.compile(r"\S+")

# Points between the frames of two tables, at least. The cells of a web page have frames of their own, 1.5 apart.
_TABLE_GAP: Final = 4.0

# Points that a line is long, at least, to be the edge of a cell.
_SHORTEST_RULE: Final = 3.0


class Word(NamedTuple):
    """A word of a page, in points from the lower left corner."""

    text: str
    left: float
    right: float
    baseline: float
    size: float


class Line(NamedTuple):
    """A line of a page, in points from the lower left corner."""

    text: str
    left: float
    right: float
    baseline: float
    size: float
    hyphen: bool
    # The words, where the page may have tables.
    words: tuple[Word, ...] = ()
    # 0 in running text, 1 for the first of several rows of a table or form, 2 for those after it.
    row: int = 0


@dataclass
class Paragraph:
    """A paragraph as far as it has been read."""

    # Its lines, joined.
    text: str
    # Whether PDFium removed a hyphen from the end of the last line.
    hyphen: bool = False
    # What stands between the previous paragraph and this one.
    separator: str = "\n\n"
    # Whether it is a row of a table or of a form.
    row: bool = False

    def add(self, text: str, hyphen: bool = False) -> None:
        """Join another line, and a word that a hyphen divided; "Austria-" + "Hungría" keeps its hyphen."""
        if self.hyphen or re.search(r"[^\W\d_]-$", self.text[-2:]):
            mark = "" if text[:1].islower() else "-"
            self.text = self.text.removesuffix("-") + mark + text
        else:
            self.text += f" {text}"
        self.hyphen = hyphen

    def finished(self) -> str:
        """The text; a hyphen at the end of the paragraph is put back."""
        return self.text + "-" * self.hyphen


class Piece(NamedTuple):
    """Words of a line with no wide gap between them: the number of the line, of the first word and of the last."""

    text: str
    left: float
    right: float
    baseline: float
    size: float
    hyphen: bool
    line: int
    first: int
    last: int


@dataclass
class Rules:
    """The straight lines that are drawn on a page, and the edges of its rectangles."""

    # (height, left, right) and (place, bottom, top), in order.
    horizontal: list[tuple[float, float, float]] = field(default_factory=list)
    vertical: list[tuple[float, float, float]] = field(default_factory=list)

    def add(self, left: float, bottom: float, right: float, top: float) -> None:
        """Add the edges of a rectangle; those of a rule are two next to each other."""
        if right - left > _SHORTEST_RULE:
            self.horizontal += [(bottom, left, right), (top, left, right)]
        if top - bottom > _SHORTEST_RULE:
            self.vertical += [(left, bottom, top), (right, bottom, top)]

    def divides_lines(self, above: Piece, below: Piece) -> bool:
        """Return whether a rule is drawn between two lines."""
        return bool(self._between(above, below))

    def end_table(self, above: Piece, below: Piece) -> bool:
        """Return whether two lines are in tables of their own, with the frames of both between them."""
        heights = self._between(above, below)
        return bool(heights) and heights[-1] - heights[0] > _TABLE_GAP

    def _between(self, above: Piece, below: Piece) -> list[float]:
        """The heights of the rules between two lines."""
        left, right = min(above.left, below.left), max(above.right, below.right)
        start = bisect.bisect(self.horizontal, (below.baseline + 0.2 * below.size,))
        stop = bisect.bisect(self.horizontal, (above.baseline,))
        return [height for height, first, last in self.horizontal[start:stop] if first < right and left < last]

    def divides_cells(self, word: Word, following: Word) -> bool:
        """Return whether a rule is drawn between two words of a line."""
        start = bisect.bisect(self.vertical, (word.right - 1,))
        stop = bisect.bisect(self.vertical, (following.left + 1,))
        height = word.baseline + 0.2 * word.size
        return any(bottom <= height <= top for _, bottom, top in self.vertical[start:stop])

    def hold(self, one: Piece, two: Piece) -> bool:
        """Return whether two words are between the same horizontal rules of a grid."""
        low, high = sorted((one.baseline, two.baseline))
        start = bisect.bisect(self.vertical, (min(one.left, two.left) - 40,))
        stop = bisect.bisect(self.vertical, (max(one.right, two.right) + 40,))
        if not any(bottom <= low and high <= top for _, bottom, top in self.vertical[start:stop]):
            return False
        between = self.horizontal[bisect.bisect(self.horizontal, (low,)) : bisect.bisect(self.horizontal, (high,))]
        middles = [(word.left + word.right) / 2 for word in (one, two)]
        return not any(left <= middle <= right for _, left, right in between for middle in middles)


def line_of(words: Sequence[Word], text: str, hyphen: bool) -> Line:
    """Make a line of words; its height and its size are those of most of them."""
    left = min([word.left for word in words])
    right = max([word.right for word in words])
    # Of two words, one may be the mark of a note.
    weighted = [word for word in words for _ in word.text] if len(words) == 2 else words
    middle = (len(weighted) - 1) // 2
    baseline = sorted([word.baseline for word in weighted])[middle]
    size = sorted([word.size for word in weighted])[middle]
    return Line(text, left, right, baseline, size, hyphen, tuple(words))


def joined(words: Sequence[Word]) -> str:
    """The text of words of a line."""
    return squeeze(" ".join([word.text for word in words]))


def page_lines(textpage: Any) -> list[Line]:
    """Cut a page into lines with their positions. PDFium ends a line with CR LF, or with U+0002 for a hyphen."""
    from pypdfium2 import raw

    lines: list[Line] = []
    text = _page_text(textpage)
    start = 0
    for end in [*(match.start() for match in re.finditer("[\n\x02\ufffe]", text)), len(text)]:
        hyphen = end < len(text) and text[end] != "\n"
        if hyphen and raw.FPDFText_IsHyphen(textpage, end) != 1:
            continue
        if part := squeeze(text[start:end]):
            words = tuple(_words(textpage, text[start:end], start))
            line = line_of(words, part, hyphen) if words else Line(part, 0.0, 0.0, 0.0, 0.0, hyphen)
            lines.append(_with_spaces(textpage, line, text[start:end].rstrip("\r"), start))
        start = end + 1
    return lines


def _with_spaces(textpage: Any, line: Line, text: str, start: int) -> Line:
    """Widen a line by the spaces around it that the file holds: an indentation, or a space where a line is cut."""
    from pypdfium2 import raw

    box = raw.FS_RECTF()
    for index in {0, len(text) - 1}:
        if text[index].isspace() and not raw.FPDFText_IsGenerated(textpage, start + index):
            raw.FPDFText_GetLooseCharBox(textpage, start + index, box)
            line = line._replace(left=min(line.left, box.left), right=max(line.right, box.right))
    return line


def _page_text(textpage: Any) -> str:
    """The characters of a page, of which PDFium counts each, as one text."""
    from pypdfium2 import raw

    count = textpage.count_chars()
    buffer = (ctypes.c_ushort * (count + 1))()
    raw.FPDFText_GetText(textpage, 0, count, buffer)
    text = bytes(buffer)[: 2 * count].decode("utf-16-le", "surrogatepass")
    if len(text) == count and "\0" not in text:
        return text
    # Some characters have no code, or two.
    codes = (raw.FPDFText_GetUnicode(textpage, index) for index in range(count))
    return "".join(chr(code) if code < 0x110000 else "\ufffd" for code in codes)


def _words(textpage: Any, text: str, start: int) -> Iterator[Word]:
    from pypdfium2 import raw

    x, y, first, last = ctypes.c_double(), ctypes.c_double(), raw.FS_RECTF(), raw.FS_RECTF()
    box, origin = raw.FPDFText_GetLooseCharBox, raw.FPDFText_GetCharOrigin
    above = below = baseline = 0.0
    for match in _WORD.finditer(text):
        begin, end = start + match.start(), start + match.end() - 1
        if not box(textpage, begin, first):
            continue
        left, right, top, bottom = first.left, first.right, first.top, first.bottom
        size = top - bottom
        if begin < end and box(textpage, end, last):
            left, right = min(left, last.left), max(right, last.right)
            # A bracket has a higher box than letters have.
            size = min(size, last.top - last.bottom)
        if top != above or bottom != below:
            origin(textpage, begin, x, y)
            above, below, baseline = top, bottom, y.value
        yield Word(match[0], left, right, baseline, size)


def page_rules(page: Any) -> Rules:
    """Find the rules on a page."""
    from pypdfium2 import raw

    rules = Rules()
    edges = [ctypes.c_float() for _ in range(4)]
    for index in range(min(raw.FPDFPage_CountObjects(page), MAXIMUM_SHAPES)):
        shape = raw.FPDFPage_GetObject(page, index)
        is_path = raw.FPDFPageObj_GetType(shape) == raw.FPDF_PAGEOBJ_PATH
        if is_path and raw.FPDFPath_CountSegments(shape) <= _CORNERS:
            raw.FPDFPageObj_GetBounds(shape, *edges)
            rules.add(*(edge.value for edge in edges))
    rules.horizontal.sort()
    rules.vertical.sort()
    return rules
