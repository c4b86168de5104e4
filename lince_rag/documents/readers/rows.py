"""Rows of a table as lines that name the columns of their values, so that each is understood alone."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from lince_rag.documents.readers.blocks import Block
from lince_rag.text.language import fold
from lince_rag.text.sentences import CELL_SEPARATOR

Row = Sequence[str]

# Headers such as "Province, 2023, 2024" are years; a single number among texts is a value.
_YEAR: Final = re.compile(r"(?:19|20)\d\d")
_BOOLEANS: Final = {"true", "false"}

# Rows that are looked at to tell whether the first one is a header.
SAMPLE_ROWS: Final = 50

# Below a text that names a column of numbers or dates, nearly all cells are such.
NUMBERS_SHARE: Final = 0.8

# What columns of people's tables are called, folded: a first row with one of these is a header even if no column
# has numbers.
# fmt: off
_NAMES: Final = frozenset((
    "apellido", "apellidos", "articulo", "artigo", "autor", "category", "categoria", "cidade", "city",
    "ciudad", "cliente", "code", "codigo", "concepto", "conceito", "correo", "data", "date", "descripcion",
    "descricao", "description", "dia", "direccion", "email", "endereco", "estado", "fecha", "fim", "fin",
    "fornecedor", "hora", "id", "importe", "inicio", "item", "mes", "nome", "nombre", "name", "notas",
    "numero", "observaciones", "obs", "pais", "phone", "precio", "preco", "price", "product", "producto",
    "produto", "proveedor", "provincia", "quantidade", "quantity", "cantidad", "ref", "referencia", "saldo",
    "sobrenome", "telefone", "telefono", "tipo", "title", "titulo", "total", "type", "unidad", "unidades",
    "valor",
))
# fmt: on


def named_row(cells: Iterable[tuple[str, str]]) -> str:
    """Write (name, value) pairs as "name: value | name: value"; a value without a name stands alone."""
    return CELL_SEPARATOR.join(f"{name}: {value}" if name else value for name, value in cells if value)


def table_blocks(rows: Iterable[Row], page: int | None = None) -> Iterator[Block]:
    """Yield a block for each row of a table, with the names of its columns if the table has a header.

    Rows of two cells under no header are "name: value". Where it cannot be told whether the first row is a header,
    it stays a row, and no value gets a name. Lines with a single cell above a table are paragraphs. After a blank
    row another table begins, or the one above goes on, if it is as wide and has no header of its own.

    Args:
        rows: The cells of each row as clean text on one line, "" for an empty cell.
        page: The page of the blocks.
    """
    names: list[str] = []
    for filled, group in itertools.groupby(rows, any):
        run = iter(group)
        sample = list(itertools.islice(run, SAMPLE_ROWS)) if filled else []
        titles = list(itertools.takewhile(lambda row: _width(row) == 1, sample))
        for title in titles:
            yield Block("".join(title), page=page)
        rest = sample[len(titles) :]
        if not rest:
            continue
        names, lines = _read_run(rest, run, names)
        for number, line in enumerate(lines):
            yield Block(line, page=page, separator="\n" if number else "\n\n")


def _read_run(sample: list[Row], more: Iterable[Row], names: list[str]) -> tuple[list[str], Iterator[str]]:
    """Return the names of the columns, and the lines of the rows, given those of the table above."""
    if _is_header(sample):
        names = [name.rstrip(" :") for name in sample[0]]
        if len(sample) > 1:
            return names, _named(names, itertools.chain(sample[1:], more))
        return names, iter([CELL_SEPARATOR.join(filter(None, sample[0]))])
    if _are_pairs(sample):
        return [], (_pair(row) for row in itertools.chain(sample, more))
    if sum(map(bool, names)) != max(map(_width, sample)):
        names = []
    return names, _named(names, itertools.chain(sample, more))


def _named(names: list[str], rows: Iterable[Row]) -> Iterator[str]:
    for row in rows:
        yield named_row(zip([*names, *[""] * len(row)], row, strict=False))


def _pair(row: Row) -> str:
    name, *values = filter(None, row)
    return named_row([(name.rstrip(" :"), value) for value in values] or [("", name)])


def _width(row: Row) -> int:
    return sum(map(bool, row))


def _is_text(cell: str) -> bool:
    return any(map(str.isalpha, cell)) and cell not in _BOOLEANS


def _is_header(sample: Sequence[Row]) -> bool:
    """Return whether the first row has the names of the columns, as the rows below it show."""
    first, below = sample[0], sample[1:]
    others = [cell for cell in first if cell and not _is_text(cell)]
    years = len(others) > 1 and all(map(_YEAR.fullmatch, others))
    if others:
        ordered = years and sorted(set(others), reverse=others[0] > others[1]) == others
        return ordered and len(others) < _width(first)
    columns = [at for at, cell in enumerate(first) if cell]
    # Of two columns, the first may have names of values, too.
    if any(_is_name(first[at]) for at in (columns if len(columns) > 2 else columns[1:])):
        return True
    for at in columns:
        values = [row[at] for row in below if at < len(row) and row[at]]
        numbers = sum(not _is_text(value) for value in values)
        fewest = 2 if len(columns) == 2 and at == columns[1] else 1
        if len(values) >= fewest and numbers >= NUMBERS_SHARE * len(values):
            return True
    return False


def _is_name(cell: str) -> bool:
    words = re.findall(r"[^\W\d_]+", fold(cell).casefold())
    return bool(words) and words[0] in _NAMES and len(words) <= 4


def _are_pairs(sample: Sequence[Row]) -> bool:
    """Return whether rows are names with a value each: at most two cells, the first of them always another."""
    firsts = [next(filter(None, row)) for row in sample]
    distinct = len(set(firsts)) == len(firsts) and all(map(_is_text, firsts))
    return distinct and len(sample) > 1 and max(map(_width, sample)) == 2
