"""Tables in pages of PDFs: rows of cells, found by where the words stand and by the rules between them.

A PDF has no tables, only words at places. Programs write a table row by row, and a cell with all its lines at a
time; text in newspaper columns comes column by column. So the order in which the file holds the words tells both
apart, and it is kept: what is found only ends lines and separates cells.
"""

import itertools
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from lince_rag.documents.readers.pdf_lines import CELL_GAP, Line, Paragraph, Piece, Rules, Word, joined, line_of
from lince_rag.text.sentences import CELL_SEPARATOR

# Heights of letters from a line to the next one of the same cell, at most; between rows there may be as much.
LINE_PITCH: Final = 1.5

# Points by which the edges of cells of one column may differ.
TOLERANCE: Final = 3.0

# Cells of a row, and lines of a cell, at most. Their places are compared with one another.
MOST_CELLS: Final = 60

# Lines of a cell, at most, where no rules are: newspaper columns of a few lines look like a row.
CELL_LINES: Final = 4

# Letters of the cells in both of two columns that are lines of prose, typically.
PROSE_LETTERS: Final = 25

_LEADERS: Final = re.compile(r"(?:[.·…_]\s?){4,}")
# What is before an item of a list, at some distance.
_LIST_MARK: Final = re.compile(
    r"[•▪‣◦●■–—*·-]|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,5})[.):]|\d{1,2}(?:\.\d{1,2}){1,3}\.?|\[[^\]]{1,15}\]"
)
_COMMENT: Final = re.compile(r"[#%;▷]|//|--|/\*")
_EQUATION_NUMBER: Final = re.compile(r"\(\d+(?:\.\d+)*[a-z]?\)")
_PAGE: Final = re.compile(r"\d{1,4}")


@dataclass
class Cell:
    """A cell of a row, or a part of running text: one line or several, one below the other."""

    pieces: list[Piece]

    @property
    def left(self) -> float:
        """The left edge, in points."""
        return min(piece.left for piece in self.pieces)

    @property
    def right(self) -> float:
        """The right edge, in points."""
        return max(piece.right for piece in self.pieces)

    @property
    def text(self) -> str:
        """The lines, joined."""
        paragraph = Paragraph(self.pieces[0].text, self.pieces[0].hyphen)
        for piece in self.pieces[1:]:
            paragraph.add(piece.text, piece.hyphen)
        return paragraph.finished()

    def is_aligned(self, other: "Cell | Piece", tolerance: float = TOLERANCE) -> bool:
        """Return whether two cells begin, end or are centred at the same place."""
        left, right = other.left - self.left, other.right - self.right
        return min(abs(left), abs(right), abs(left + right) / 2) <= tolerance


Row = list[Cell]


def may_have_tables(lines: Sequence[Line]) -> bool:
    """Return whether two rows follow one another on a page."""
    if sum(map(_has_cells, lines, [None, *lines])) < 2:
        return False
    rules = Rules()
    rows = _rows(lines, rules)
    return any(len(one) > 1 and len(two) > 1 and _fits(two, [one], rules) for one, two in itertools.pairwise(rows))


def _has_cells(line: Line, previous: Line | None) -> bool:
    """Return whether a line has a wide gap, or stands beside the one before it."""
    if previous and line.left > previous.right and abs(line.baseline - previous.baseline) < 2 * line.size:
        return True
    gap = CELL_GAP * line.size
    return any(two.left - one.right > gap for one, two in itertools.pairwise(line.words))


def mark_tables(lines: Sequence[Line], rules: Rules) -> list[Line]:
    """Replace the lines of each table of a page by its rows, whose cells are separated as in other formats."""
    done: list[Line] = []
    # Where running text goes on: the line and the word.
    line = word = 0
    for table in _tables(_rows(lines, rules), lines, rules):
        pieces = [piece for row in table for cell in row for piece in cell.pieces]
        first, last = min(pieces, key=_place), max(pieces, key=_place)
        done += _running_text(lines, (line, word), (first.line, first.first))
        done += _row_lines(table)
        line, word = last.line, last.last + 1
    return [*done, *_running_text(lines, (line, word), (len(lines), 0))] if done else list(lines)


def _place(piece: Piece) -> tuple[int, int]:
    return piece.line, piece.first


def _running_text(lines: Sequence[Line], start: tuple[int, int], stop: tuple[int, int]) -> Iterator[Line]:
    """Yield the lines from one word to another, shortened if a table begins or ends in them."""
    for number in range(start[0], min(stop[0] + 1, len(lines))):
        line = lines[number]
        first = start[1] if number == start[0] else 0
        last = stop[1] if number == stop[0] else len(line.words)
        if first == 0 and last == len(line.words) and number < stop[0]:
            yield line
        elif words := line.words[first:last]:
            yield line_of(words, joined(words), line.hyphen and last == len(line.words))


def _rows(lines: Sequence[Line], rules: Rules) -> list[Row]:
    """Put the words of a page together as rows; running text is rows of one cell."""
    rows: list[Row] = []
    row: Row = []
    for number, line in enumerate(lines):
        if line.row or not line.words:
            row = []
            continue
        for piece in _pieces(line, number, rules):
            if row and max(len(row), len(row[-1].pieces)) >= MOST_CELLS:
                row = []
            if row and _is_beside(row, piece, rules):
                if len(row) == 1 and (above := _take_off(row[0], piece, rules)):
                    rows.insert(-1, [above])
                row.append(Cell([piece]))
            elif row and _is_stacked(row[-1], piece, rules):
                row[-1].pieces.append(piece)
            else:
                row = [Cell([piece])]
                rows.append(row)
    return rows


def _pieces(line: Line, number: int, rules: Rules) -> Iterator[Piece]:
    """Cut a line at its wide gaps, at rules, and where the next words stand higher or lower."""
    words = line.words
    ends = [at for at, (one, two) in enumerate(itertools.pairwise(words)) if _is_apart(one, two, rules)]
    if ends and (_is_spaced_out(words) or _LEADERS.search(line.text)):
        ends = [at for at in ends if not _is_level(words[at], words[at + 1])]
    if not ends:
        yield Piece(*line[:6], number, 0, len(words) - 1)
        return
    first = 0
    for last in [*ends, len(words) - 1]:
        part = words[first : last + 1]
        hyphen = line.hyphen and last == len(words) - 1
        yield Piece(*line_of(part, joined(part), hyphen)[:6], number, first, last)
        first = last + 1


def _is_level(word: Word, following: Word) -> bool:
    """Return whether the next word of a line stands at the same height, after this one."""
    level = abs(following.baseline - word.baseline) < 0.35 * word.size
    return level and following.left - word.right > -word.size


def _is_apart(word: Word, following: Word, rules: Rules) -> bool:
    gap = following.left - word.right
    if gap > CELL_GAP * word.size or not _is_level(word, following):
        return True
    return bool(rules.vertical) and gap > 0.25 * word.size and rules.divides_cells(word, following)


def _is_spaced_out(words: Sequence[Word]) -> bool:
    """Return whether a line is prose with equally wide spaces: a line of a narrow column that is justified."""
    gaps = [two.left - one.right for one, two in itertools.pairwise(words)]
    prose = sum(word.text.isalpha() and word.text[0].islower() for word in words)
    return len(gaps) > 1 and min(gaps) > 0.6 * max(gaps) and prose > len(words) / 2


def _is_beside(row: Row, piece: Piece, rules: Rules) -> bool:
    """Return whether a piece is in the next cell of a row."""
    if piece.left < row[-1].right + 0.1 * piece.size:
        return False
    heights = [each.baseline for cell in row for each in cell.pieces]
    margin = 0.35 * piece.size
    within = min(heights) - margin <= piece.baseline <= max(heights) + margin
    return within or rules.hold(row[-1].pieces[-1], piece)


def _take_off(cell: Cell, piece: Piece, rules: Rules) -> Cell | None:
    """Take the lines off the first cell of a row that are above the row, as its second cell shows."""
    above = [
        each
        for each in cell.pieces
        if each.baseline > piece.baseline + 0.75 * piece.size and not rules.hold(each, piece)
    ]
    if not above or len(above) == len(cell.pieces) or cell.pieces[len(above)].text[0].islower():
        return None
    cell.pieces = cell.pieces[len(above) :]
    return Cell(above)


def _is_stacked(cell: Cell, piece: Piece, rules: Rules) -> bool:
    """Return whether a piece is the next line of a cell."""
    last = cell.pieces[-1]
    drop = last.baseline - piece.baseline
    if drop < 0.3 * piece.size or abs(last.size - piece.size) > 0.12 * last.size:
        return False
    if not (cell.left < piece.right and piece.left < cell.right):
        return False
    if rules.hold(last, piece):
        return drop < 2 * LINE_PITCH * piece.size
    if drop > LINE_PITCH * piece.size or rules.divides_lines(last, piece):
        return False
    return cell.is_aligned(piece) and (_has_letters(last.text) or _has_letters(piece.text))


def _has_letters(text: str) -> bool:
    return any(map(str.isalpha, text))


def _tables(rows: Sequence[Row], lines: Sequence[Line], rules: Rules) -> Iterator[list[Row]]:
    """Yield the runs of rows that are tables."""
    table: list[Row] = []
    # A row of one cell, such as the title of a group of rows, if the table goes on after it.
    title: list[Row] = []
    for row in rows:
        if table and not title and _continues(table[-1], row, rules):
            for cell in row:
                _column_of(table[-1], cell).pieces += cell.pieces
        elif len(row) > 1 and _is_plausible(row, rules) and table and _fits(row, table, rules):
            table += [*title, row]
            title = []
        elif len(row) == 1 and table and not title and _is_title(row, table[-1]):
            title = [row]
        else:
            if _is_table(table, lines, rules):
                yield table
            title, table = [], [row] if len(row) > 1 and _is_plausible(row, rules) else []
    if _is_table(table, lines, rules):
        yield table


def _column_of(row: Row, cell: Cell) -> Cell:
    """The cell of a row that another one is below: aligned with it, or the last one if its lines are indented."""
    column = min(row, key=lambda each: abs(each.left - cell.left))
    return column if column.is_aligned(cell) else row[-1]


def _continues(above: Row, row: Row, rules: Rules) -> bool:
    """Return whether a row has only further lines of cells of the row above it."""
    if len(row) >= len(above) or (len(row) > 1 and row[0].is_aligned(above[0])):
        return False
    for cell in row:
        column = _column_of(above, cell)
        last, piece = column.pieces[-1], cell.pieces[0]
        indented = len(row) == 1 and above[0].left + TOLERANCE < cell.left < column.right
        near = 0.3 * piece.size < last.baseline - piece.baseline < 1.35 * piece.size
        if not near or rules.divides_lines(last, piece) or not (column.is_aligned(cell) or indented):
            return False
        if not (piece.text[0].islower() or last.hyphen or rules.hold(last, piece)):
            return False
    return True


def _is_title(row: Row, above: Row) -> bool:
    (cell,) = row
    one_line = len(cell.pieces) == 1 and len(cell.text) < 60 and not cell.text.endswith((".", ":"))
    return one_line and abs(cell.left - above[0].left) < TOLERANCE and _is_near(row, above)


def _is_near(row: Row, above: Row) -> bool:
    piece, last = row[0].pieces[0], above[0].pieces[-1]
    return 0.3 * piece.size < last.baseline - piece.baseline < 5 * piece.size


def _is_plausible(row: Row, rules: Rules) -> bool:
    """Return whether a row is none of newspaper columns, items of lists, an equation with its number, or code."""
    if len(row) % 2 == 0 and all(_LIST_MARK.fullmatch(cell.text) for cell in row[::2]):
        return False
    if _COMMENT.match(row[-1].text) or (len(row) == 2 and _EQUATION_NUMBER.fullmatch(row[1].text)):
        return False
    long = sum(len(cell.pieces) > CELL_LINES for cell in row)
    return long < 2 or rules.hold(row[0].pieces[0], row[0].pieces[-1])


def _fits(row: Row, table: Sequence[Row], rules: Rules) -> bool:
    """Return whether a row has the columns of the rows above it."""
    above = next(each for each in reversed(table) if len(each) > 1)
    if not _is_near(row, above) or rules.end_table(above[0].pieces[-1], row[0].pieces[0]):
        return False
    if len(row) == len(above):
        for (one, two), (three, four) in zip(itertools.pairwise(row), itertools.pairwise(above), strict=True):
            if max(one.right, three.right) >= min(two.left, four.left):
                return False
    earlier = [cell for each in table[-5:] if len(each) > 1 for cell in each]
    return sum(any(cell.is_aligned(each) for each in earlier) for cell in row) > 1


def _is_table(table: Sequence[Row], lines: Sequence[Line], rules: Rules) -> bool:
    rows = [row for row in table if len(row) > 1]
    if len(rows) < 2 or _is_contents(rows):
        return False
    above = rows[0][0].pieces[-1]
    if all(
        rules.divides_lines(above._replace(left=cell.left, right=cell.right), cell.pieces[0]) for cell in rows[1]
    ):
        return True
    if len(rows) == 2:
        # Two lines with a wide gap each may be anything.
        one, two = rows
        if len(one) != len(two) or not all(map(Cell.is_aligned, one, two)):
            return False
        if len(one) == 2 and abs(one[1].left - two[1].left) > 1:
            return False
    elif max(map(len, rows)) == 2 and _is_prose(rows):
        return False
    numbers = sum(not _has_letters(row[-1].text) for row in rows)
    words = [word for row in rows for cell in row for piece in cell.pieces for word in _words(piece, lines)]
    return 2 * numbers >= len(rows) or not _is_monospaced(words)


def _words(piece: Piece, lines: Sequence[Line]) -> Sequence[Word]:
    return lines[piece.line].words[piece.first : piece.last + 1]


def _is_monospaced(words: Sequence[Word]) -> bool:
    """Return whether all letters are equally wide, as in program code."""
    widths = [
        (word.right - word.left) / len(word.text)
        for word in words
        if len(word.text) > 2 and _has_letters(word.text)
    ]
    return len(widths) > 1 and max(widths) < 1.02 * min(widths)


def _is_contents(rows: Sequence[Row]) -> bool:
    """Return whether each row ends with a page, in their order, as in a table of contents without dots."""
    ends = [row[-1].text for row in rows]
    if not all(map(_PAGE.fullmatch, ends)):
        return False
    pages = list(map(int, ends))
    return pages == sorted(pages)


def _is_prose(rows: Sequence[Row]) -> bool:
    """Return whether two columns are lines of prose, which some programs write across the page."""
    letters = [statistics.median(len(row[column].text) for row in rows) for column in (0, 1)]
    pitches = [one[0].pieces[-1].baseline - two[0].pieces[0].baseline for one, two in itertools.pairwise(rows)]
    close = statistics.median(pitches) < LINE_PITCH * rows[0][0].pieces[0].size
    return close and min(letters) > PROSE_LETTERS


def _row_lines(table: Sequence[Row]) -> Iterator[Line]:
    """Write each row of a table on a line."""
    columns = _columns(table)
    for number, row in enumerate(table):
        cells = _cells(row, columns)
        piece = row[0].pieces[0]
        left, right = row[0].left, row[-1].right
        yield Line(_row_text(cells), left, right, piece.baseline, piece.size, False, row=2 if number else 1)


def _columns(table: Sequence[Row]) -> list[tuple[float, float]]:
    """The left and right edges of the columns, as the rows show that have as many cells as most have.

    A first row with more cells names columns that are not filled everywhere.
    """
    number = max(statistics.mode(len(row) for row in table if len(row) > 1), len(table[0]))
    full = [row for row in table if len(row) == number]
    return [(min(row[at].left for row in full), max(row[at].right for row in full)) for at in range(number)]


def _cells(row: Row, columns: Sequence[tuple[float, float]]) -> list[str]:
    """The texts of the cells of a row, each in its column; several in one were one cell with wide spaces."""
    cells: list[list[str]] = [[] for _ in columns]
    is_narrow = len(row) <= len(columns)
    place = 0
    for number, cell in enumerate(row):
        following = len(row) - number - 1 if is_narrow else 0
        free = range(place, len(columns) - following)
        place = max(free, key=lambda at: min(cell.right, columns[at][1]) - max(cell.left, columns[at][0]))
        cells[place].append(cell.text)
        place += is_narrow
    return [" ".join(texts) for texts in cells]


def _row_text(cells: Sequence[str]) -> str:
    filled = [cell for cell in cells if cell]
    if len(filled) < 2:
        return "".join(filled)
    labels = filled[::2]
    if len(filled) % 2 == 0 and all(label.endswith(":") for label in labels):
        # "Date: | 3 May | Place: | Soria" names its values as it is.
        pairs = zip(labels, filled[1::2], strict=True)
        return CELL_SEPARATOR.join(f"{label} {value}" for label, value in pairs)
    return CELL_SEPARATOR.join(cells)
