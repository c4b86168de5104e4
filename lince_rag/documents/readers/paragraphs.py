"""Lines of a PDF page → paragraphs. PDF has no paragraphs: the places and sizes of the lines are their signs."""

import itertools
import re
import statistics
from dataclasses import dataclass
from typing import Final, NamedTuple

_SENTENCE_END: Final = (".", "!", "?", "…", ":", ";", '."', ".”", ".»", ".)")
_BULLET: Final = re.compile(r"[•▪‣◦●■–—*-] ")
_NUMBERED: Final = re.compile(r"(\d{1,3}|[a-zA-Z])[.)] ")


class Line(NamedTuple):
    """A line of a page, in points from the lower left corner."""

    text: str
    left: float
    right: float
    baseline: float
    size: float
    hyphen: bool


@dataclass
class Paragraph:
    """A paragraph as far as it is read.

    Attributes:
        text: Its lines, joined.
        hyphen: Whether PDFium took a hyphen off the end of the last line.
        separator: What stands between the paragraph before and this one.
    """

    text: str
    hyphen: bool = False
    separator: str = "\n\n"

    def add(self, text: str, hyphen: bool = False) -> None:
        """Join a further line, and a word that a hyphen divided; "Austria-" + "Hungría" keeps its hyphen."""
        if self.hyphen or re.search(r"[^\W\d_]-$", self.text):
            mark = "" if text[:1].islower() else "-"
            self.text = self.text.removesuffix("-") + mark + text
        else:
            self.text += f" {text}"
        self.hyphen = hyphen

    def continues(self, text: str) -> bool:
        """Tell whether a text in another column or on another page goes on with this paragraph."""
        return text[:1].islower() and not self.text.endswith(_SENTENCE_END)

    def finished(self) -> str:
        """The text; a hyphen mark that turned out to end the paragraph is written out again."""
        return self.text + "-" * self.hyphen


def join_lines(lines: list[Line]) -> list[Paragraph]:
    """Join the lines of a page.

    Args:
        lines: The lines in reading order.

    Returns:
        The paragraphs.
    """
    pairs = list(itertools.pairwise(lines))
    gaps = [above.baseline - line.baseline for above, line in pairs if _is_below(above, line)]
    pitch = statistics.median_low(gaps) if gaps else 0.0
    paragraphs: list[Paragraph] = []
    for index, line in enumerate(lines):
        # The edge that the lines around reach; a whole column would count a wide heading over two columns.
        edge = max(near.right for near in lines[max(index - 3, 0) : index + 4] if abs(near.left - line.left) < 30)
        if paragraphs and not _starts_paragraph(lines[index - 1], line, pitch, edge):
            paragraphs[-1].add(line.text, line.hyphen)
        else:
            listed = paragraphs and _BULLET.match(line.text) and _BULLET.match(paragraphs[-1].text)
            paragraphs.append(Paragraph(line.text, line.hyphen, "\n" if listed else "\n\n"))
    return paragraphs


def _is_below(above: Line, line: Line) -> bool:
    """Tell whether a line is under another in one column, in letters of about one size."""
    drop = above.baseline - line.baseline
    same_size = abs(above.size - line.size) <= 0.12 * above.size
    overlap = above.left < line.right and line.left < above.right
    return same_size and overlap and 0.3 * line.size < drop < 4 * line.size


def _starts_paragraph(above: Line, line: Line, pitch: float, edge: float) -> bool:
    """Tell whether a line begins a paragraph.

    The numbers are typographic: an extra gap is at least a third of a line, an indent about a letter high.
    """
    ended = above.text.endswith(_SENTENCE_END)
    goes_on = line.text[:1].islower() and not ended
    if above.hyphen and line.text[:1].islower():
        return False
    if not _is_below(above, line):
        return not goes_on or abs(above.size - line.size) > 0.12 * above.size
    if _BULLET.match(line.text) or (ended and _NUMBERED.match(line.text)):
        return True
    if above.baseline - line.baseline > 1.3 * pitch or (ended and line.left - above.left > 0.7 * line.size):
        return True
    # A line that had room for the next word was ended on purpose.
    letter = (line.right - line.left) / max(len(line.text), 1)
    word = letter * (len(line.text.partition(" ")[0]) + 2)
    return not goes_on and above.right + word < edge
