"""Spreadsheets: Excel and OpenDocument workbooks, and text with separated values."""

import csv
import datetime
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final
from xml.parsers import expat

from lince_rag.documents.readers.blocks import Block, Content, Unreadable
from lince_rag.documents.readers.packages import check_package, open_opendocument, package_title
from lince_rag.documents.readers.rows import table_blocks
from lince_rag.documents.readers.text import decode
from lince_rag.text.words import clean, squeeze

# calamine keeps every cell between the first and the last that are used, 32 bytes each, so that one stray cell in
# the far corner would need 500 GB. No real table has so many cells within 64 MB of XML.
MAXIMUM_CELLS: Final = 2**22

# The name that a program gives to the sheet of a new workbook says nothing.
_DEFAULT_NAME: Final = re.compile(r"(?:sheet|hoja|planilha|folha|plan|feuil)\s?1", re.IGNORECASE)

# In the order of preference: of those that fit equally, a comma is the most likely to be a decimal one.
_DELIMITERS: Final = "\t;|,"
# Excel writes such a first line for itself.
_DECLARED: Final = re.compile(r"sep=(.)\n", re.IGNORECASE)
_SAMPLE_CHARACTERS: Final = 2**16

# Not over a "<", so that their time does not grow with the square of a damaged file.
_EXCEL_CELL: Final = re.compile(rb"<(?:\w+:)?c(\s[^<>]*)?(?<!/)>")
_EXCEL_ROW: Final = re.compile(rb"<(?:\w+:)?row\s[^<>]*?\br=[\"'](\d+)")
_EXCEL_REFERENCE: Final = re.compile(rb"\br=[\"']([A-Za-z]{1,9})(\d+)[\"']")
_COUNT: Final = re.compile(rb"[cC]ount=[\"'](\d+)")
_COUNTED: Final = {"xl/sharedStrings.xml", "xl/styles.xml"}
_OPEN_TABLE: Final = re.compile(rb"<table:(table-row|(?:covered-)?table-cell|table)(?=[\s/>])([^<>]*)>")
_REPEATED: Final = re.compile(rb"number-(?:rows|columns)-repeated=[\"'](\d+)")


def read_csv(data: bytes) -> Content:
    """Read rows of values that commas, semicolons, tabs or vertical bars separate."""
    text = clean(decode(data))
    if declared := _DECLARED.match(text):
        text = text[declared.end() :]
    delimiter = declared[1] if declared else _find_delimiter(text)
    try:
        return Content(_csv_blocks(csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)))
    except csv.Error:
        # A quotation mark without its pair takes the rest of the file into one value.
        return Content(_csv_blocks(line.split(delimiter) for line in text.split("\n")))


def _csv_blocks(rows: Iterable[list[str]]) -> list[Block]:
    return list(table_blocks([" ".join(cell.split()) for cell in row] for row in rows))


def _find_delimiter(text: str) -> str:
    """Return the delimiter that divides the most lines into equally many values."""
    sample = text[:_SAMPLE_CHARACTERS]
    if len(text) > len(sample):
        sample = sample[: sample.rfind("\n") + 1] or sample

    def fit(delimiter: str) -> float:
        try:
            rows = list(csv.reader(io.StringIO(sample), delimiter=delimiter))
        except csv.Error:
            return 0.0
        counts = Counter(len(row) for row in rows if row)
        return max((number for size, number in counts.items() if size > 1), default=0) / max(counts.total(), 1)

    return max(_DELIMITERS, key=fit)


def read_xlsx(data: bytes) -> Content:
    """Read the visible sheets of an Excel workbook (xlsx, xlsm): each is a page, with its name as the heading."""
    archive = check_package(data, "Excel", "xl/")
    for name in archive.namelist():
        sheet = name.startswith("xl/worksheets/") and name.endswith(".xml")
        if sheet or name in _COUNTED:
            xml = archive.read(name)
            _check_syntax(xml)
            # calamine reserves memory for as many elements as are declared.
            if any(int(count[:20]) > len(xml) for count in _COUNT.findall(xml)):
                raise Unreadable("damaged Excel file: it declares more than it holds")
            if sheet:
                _check_area(*_excel_area(xml))
    return Content(_read_sheets(data), package_title(archive, "docProps/core.xml"))


def read_ods(data: bytes) -> Content:
    """Read the visible sheets of an OpenDocument spreadsheet as those of an Excel workbook."""
    archive = open_opendocument(data)
    xml = archive.read("content.xml")
    _check_syntax(xml)
    for area in _opendocument_areas(xml):
        _check_area(*area)
    return Content(_read_sheets(data), package_title(archive, "meta.xml"))


def read_xls(data: bytes) -> Content:
    """Read the visible sheets of a workbook of Excel 97 to 2003."""
    return Content(_read_sheets(data))


def _read_sheets(data: bytes) -> list[Block]:
    """Read the visible sheets of a workbook of any kind."""
    import python_calamine as calamine

    visible, work_sheet = calamine.SheetVisibleEnum.Visible, calamine.SheetTypeEnum.WorkSheet
    blocks: list[Block] = []
    try:
        with calamine.CalamineWorkbook.from_filelike(io.BytesIO(data)) as workbook:
            sheets = [sheet for sheet in workbook.sheets_metadata if sheet.visible == visible]
            for page, sheet in enumerate(sheets, start=1):
                if sheet.typ == work_sheet:
                    rows = (
                        list(map(_cell_text, row)) for row in workbook.get_sheet_by_name(sheet.name).iter_rows()
                    )
                    named = len(sheets) > 1 or not _DEFAULT_NAME.fullmatch(sheet.name)
                    blocks += _section(sheet.name if named else "", list(table_blocks(rows, page)))
    except calamine.PasswordError:
        raise Unreadable("protected with a password") from None
    except BaseException as error:
        # A failed assertion of the Rust code is not an Exception.
        if type(error).__name__ == "PanicException":
            raise Unreadable("damaged workbook") from None
        raise
    return blocks


def _section(name: str, rows: list[Block]) -> list[Block]:
    """The blocks of a sheet under its name, if it has both."""
    return [Block(squeeze(name), level=2, page=rows[0].page), *rows] if name and rows else rows


def _cell_text(value: Any) -> str:
    if isinstance(value, str):
        return squeeze(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        # As Excel shows them: without the last digits, which are errors of the binary number.
        whole = value.is_integer() and abs(value) < 1e15
        return str(int(value)) if whole else format(value, ".15g")
    if isinstance(value, datetime.datetime):
        at_midnight = value.time() == datetime.time()
        return value.date().isoformat() if at_midnight else value.isoformat(" ", "minutes")
    if isinstance(value, datetime.time):
        return value.isoformat("minutes")
    if isinstance(value, datetime.timedelta):
        minutes = round(value.total_seconds() / 60)
        return f"{'-' * (minutes < 0)}{abs(minutes) // 60}:{abs(minutes) % 60:02}"
    return str(value)


def _check_syntax(xml: bytes) -> None:
    """Refuse XML that is not well formed, in which calamine may search without end for the end of a table."""
    try:
        expat.ParserCreate().Parse(xml, True)
    except expat.ExpatError as error:
        raise Unreadable(f"damaged workbook: {error}") from None


def _check_area(rows: int, columns: int) -> None:
    if rows * columns > MAXIMUM_CELLS:
        raise Unreadable(f"a sheet of {rows} rows and {columns} columns, the limit is {MAXIMUM_CELLS} cells")


def _excel_area(xml: bytes) -> tuple[int, int]:
    """The last row and the last column of a sheet that hold a value."""
    rows = columns = unnamed = 0
    for cell in _EXCEL_CELL.finditer(xml):
        if reference := _EXCEL_REFERENCE.search(cell[1] or b""):
            rows = max(rows, int(reference[2]))
            columns = max(columns, _column_number(reference[1]))
        else:
            unnamed += 1
    if unnamed:
        # Such a cell is in the column after the one before it, and in the row that the row's element names.
        rows = max([rows, *(int(row) for row in _EXCEL_ROW.findall(xml))])
        columns = max(columns, min(unnamed, 2**14))
    return rows, columns


def _column_number(letters: bytes) -> int:
    """The number of a column, from 1: A, B, …, Z, AA."""
    number = 0
    for letter in letters.upper():
        number = 26 * number + letter - ord("A") + 1
    return number


def _opendocument_areas(xml: bytes) -> Iterator[tuple[int, int]]:
    """Yield the last row and the last column that hold a value, of each sheet and the ones before it."""
    row = last_row = column = last_column = repeated = 0
    for kind, attributes in _OPEN_TABLE.findall(xml):
        found = _REPEATED.search(attributes)
        count = int(found[1]) if found else 1
        if kind == b"table":
            yield last_row, last_column
            row = column = repeated = 0
        elif kind == b"table-row":
            row, column, repeated = row + repeated, 0, count
        else:
            column += count
            if b"value-type" in attributes:
                last_row, last_column = max(last_row, row + repeated), max(last_column, column)
    yield last_row, last_column
