"""The values of the form fields of a PDF, put behind their labels."""

import bisect
import ctypes
import re
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from lince_rag.documents.readers.pdf_lines import CELL_GAP, Line, Piece, Word, joined, line_of
from lince_rag.text.words import squeeze

# Fields of a page that are read. A tax form has some hundreds.
MAXIMUM_FIELDS: Final = 5_000

# Bits of PDF 32000-1: annotations that are not shown (table 165), and fields for passwords (table 228).
_HIDDEN: Final = 2 | 32
_PASSWORD: Final = 1 << 13

# How a box that is ticked is written, as in Markdown.
_TICK: Final = "[x]"

# What is printed where somebody is to write.
_BLANK: Final = re.compile(r"[._…]{3,}")

# Points from a box to the text beside it, and from a field to the label at its left, at most.
_TEXT_DISTANCE: Final = 20.0
_LABEL_DISTANCE: Final = 300.0

# Heights of letters from a field to the label above it, at most.
_ABOVE: Final = 1.5


class Field(NamedTuple):
    """A field that is filled in, with its place on the page."""

    name: str
    value: str
    is_box: bool
    left: float
    bottom: float
    right: float
    top: float


def page_fields(document: Any, page: Any) -> list[Field]:
    """Read the fields of a page that are filled in, if the document's form has been initialized."""
    from pypdfium2 import raw

    fields: list[Field] = []
    if not document.formenv:
        return fields
    for index in range(min(raw.FPDFPage_GetAnnotCount(page), MAXIMUM_FIELDS)):
        annotation = raw.FPDFPage_GetAnnot(page, index)
        if not annotation:
            continue
        try:
            if field := _read_field(document.formenv, annotation):
                fields.append(field)
        finally:
            raw.FPDFPage_CloseAnnot(annotation)
    return fields


def _read_field(form: Any, annotation: Any) -> Field | None:
    from pypdfium2 import raw

    kind = raw.FPDFAnnot_GetFormFieldType(form, annotation)
    is_box = kind in {raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON}
    is_list = kind in {raw.FPDF_FORMFIELD_COMBOBOX, raw.FPDF_FORMFIELD_LISTBOX}
    secret = raw.FPDFAnnot_GetFlags(annotation) & _HIDDEN
    if kind == raw.FPDF_FORMFIELD_TEXTFIELD:
        secret = secret or raw.FPDFAnnot_GetFormFieldFlags(form, annotation) & _PASSWORD
    if secret or not (is_box or is_list or kind == raw.FPDF_FORMFIELD_TEXTFIELD):
        return None

    def text(read: Callable[..., int], *arguments: Any) -> str:
        size = read(form, annotation, *arguments, None, 0)
        buffer = (ctypes.c_ushort * (size // 2 + 1))()
        read(form, annotation, *arguments, buffer, size)
        return squeeze(bytes(buffer).decode("utf-16-le", "replace").partition("\0")[0])

    if is_box:
        ticked = raw.FPDFAnnot_IsChecked(form, annotation)
        value = (text(raw.FPDFAnnot_GetFormFieldExportValue) or _TICK) if ticked else ""
    else:
        options = range(raw.FPDFAnnot_GetOptionCount(form, annotation)) if is_list else range(0)
        chosen = [at for at in options if raw.FPDFAnnot_IsOptionSelected(form, annotation, at)]
        value = ", ".join(text(raw.FPDFAnnot_GetOptionLabel, at) for at in chosen)
        value = value or text(raw.FPDFAnnot_GetFormFieldValue)
    box = raw.FS_RECTF()
    if not value or not raw.FPDFAnnot_GetRect(annotation, box):
        return None
    name = text(raw.FPDFAnnot_GetFormFieldAlternateName) or text(raw.FPDFAnnot_GetFormFieldName)
    return Field(name, value, is_box, box.left, box.bottom, box.right, box.top)


def fill_in(lines: list[Line], fields: Sequence[Field]) -> list[Line]:
    """Put the value of each field behind its label, or a line with its name and value where it stands."""
    if not fields:
        return lines
    labels = sorted(_labels(lines), key=attrgetter("baseline", "left"))
    # What is put into each line: the number of the word it comes before, and the word.
    inserted: dict[int, list[tuple[int, Word]]] = {}
    # What comes before each line.
    added: dict[int, list[Line]] = {}
    for field in fields:
        if any(field.value in label.text for label in _at_height(labels, field) if _overlap(label, field)):
            continue
        if field.is_box and (label := _nearest(labels, field, fields, on_the_right=True)):
            place = label.first
        elif label := _nearest(labels, field, fields) or _above(labels, field):
            place = label.last + 1
        else:
            at = min(
                (line for line in range(len(lines)) if lines[line].baseline < field.bottom), default=len(lines)
            )
            added.setdefault(at, []).append(_named_line(field))
            continue
        value = _TICK if field.is_box else field.value
        word = Word(value, field.left, field.right, label.baseline, label.size)
        inserted.setdefault(label.line, []).append((place, word))
    return list(_filled(lines, inserted, added))


def _named_line(field: Field) -> Line:
    text = f"{field.name}: {field.value}" if field.name else field.value
    return Line(text, field.left, field.right, field.bottom, field.top - field.bottom, False, row=1)


def _filled(
    lines: list[Line], inserted: dict[int, list[tuple[int, Word]]], added: dict[int, list[Line]]
) -> Iterator[Line]:
    previous = -2
    for number in range(len(lines) + 1):
        yield from added.get(number, ())
        if number in inserted:
            row = 2 if previous == number - 1 and number not in added else 1
            yield _with_values(lines[number], sorted(inserted[number], key=lambda each: each[0]), row)
            previous = number
        elif number < len(lines):
            yield lines[number]


def _with_values(line: Line, values: list[tuple[int, Word]], row: int) -> Line:
    words: list[Word] = []
    is_sentence = False
    start = 0
    for place, value in values:
        words += line.words[start:place]
        start = place
        following = line.words[place].left if place < len(line.words) else value.right + 2 * value.size
        if value.text == _TICK:
            pass
        elif 0 < following - value.right < CELL_GAP * value.size:
            # The sentence goes on after the value.
            is_sentence = True
        elif words:
            while len(words) > 1 and _BLANK.fullmatch(words[-1].text):
                words.pop()
            if words[-1].text[-1] not in ":?¿.":
                words[-1] = words[-1]._replace(text=f"{words[-1].text}:")
        words.append(value)
    words += line.words[start:]
    text = joined(words)
    return line_of(words, text, line.hyphen)._replace(row=0 if is_sentence else row)


def _labels(lines: Sequence[Line]) -> Iterator[Piece]:
    for number, line in enumerate(lines):
        first = 0
        for index, word in enumerate(line.words):
            following = line.words[index + 1] if index + 1 < len(line.words) else None
            if following:
                gap = following.left - word.right
                level = abs(following.baseline - word.baseline) < 0.35 * word.size
                if level and abs(gap) < CELL_GAP * word.size:
                    continue
            part = line.words[first : index + 1]
            place = part[0].left, word.right, part[0].baseline, word.size
            yield Piece(joined(part), *place, False, number, first, index)
            first = index + 1


def _between(labels: Sequence[Piece], low: float, high: float) -> Sequence[Piece]:
    start, stop = (bisect.bisect(labels, height, key=lambda label: label.baseline) for height in (low, high))
    return labels[start:stop]


def _at_height(labels: Sequence[Piece], field: Field) -> Sequence[Piece]:
    return _between(labels, field.bottom - 3, field.top + 1)


def _overlap(label: Piece, field: Field) -> bool:
    return label.left < field.right and field.left < label.right


def _nearest(
    labels: Sequence[Piece], field: Field, fields: Sequence[Field], *, on_the_right: bool = False
) -> Piece | None:
    """Find the text beside a field that no other field is nearer to."""
    limit = _TEXT_DISTANCE if on_the_right else _LABEL_DISTANCE

    def distance(label: Piece) -> float:
        return label.left - field.right if on_the_right else field.left - label.right

    beside = [label for label in _at_height(labels, field) if -3 <= distance(label) <= limit]
    label = min(beside, key=distance, default=None)
    if label is None or on_the_right:
        return label
    middle = (field.bottom + field.top) / 2
    other = any(
        each.bottom < middle < each.top and label.right - 3 <= each.left < field.left - 1
        for each in fields
        if each is not field
    )
    return None if other else label


def _above(labels: Sequence[Piece], field: Field) -> Piece | None:
    near = [
        label
        for label in _between(labels, field.top - 1, field.top + 30)
        if _overlap(label, field) and label.baseline - field.top < _ABOVE * label.size
    ]
    return min(near, key=lambda label: label.baseline, default=None)
