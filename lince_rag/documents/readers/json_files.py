"""Data in JSON and JSON Lines, and notebooks of Jupyter."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Final

from lince_rag.documents.readers.blocks import HEADING_SEPARATOR, Block, Content, Unreadable
from lince_rag.documents.readers.rows import named_row
from lince_rag.documents.readers.text import decode, markdown_blocks
from lince_rag.text.sentences import CELL_SEPARATOR
from lince_rag.text.words import clean, squeeze

# A longer text is a paragraph of its own, and so is one of several lines.
_LONG_TEXT: Final = 200

# An object with more values is a list of lines rather than a row.
_MOST_CELLS: Final = 40

# Outputs of a notebook are often long tables of numbers; their first lines say what they are.
_OUTPUT_LINES: Final = 20
_OUTPUT_CHARACTERS: Final = 2_000

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

_Path = tuple[str, ...]

# The objects of a list have the same keys.
_name = lru_cache(maxsize=4096)(squeeze)


def read_json(data: bytes) -> Content:
    """Read a list of objects as rows of a table, and other data as lines "path › key: value".

    The keys of the outermost object that hold objects or lists are headings. Its "title" or "name" is the title.
    """
    value = _within_depth(lambda: _parse(decode(data)))
    title = ""
    if isinstance(value, dict):
        title = next((value[key] for key in ("title", "name") if isinstance(value.get(key), str)), "")
    return Content(_within_depth(lambda: _arrange(_document_blocks(value))), title)


def read_json_lines(data: bytes) -> Content:
    """Read the value in each line as an element of a list; see ``read_json``. A damaged line is left out."""
    values: list[Any] = []
    left_out: list[str] = []
    for number, line in enumerate(decode(data).split("\n"), start=1):
        if line.strip():
            try:
                values.append(_within_depth(partial(_parse, line, number)))
            except Unreadable as error:
                left_out.append(str(error))
    if left_out and not values:
        raise Unreadable(left_out[0])
    return Content(_within_depth(lambda: _arrange(_document_blocks(values))), left_out=left_out)


def _within_depth(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RecursionError:
        raise Unreadable("its values are nested too deeply") from None


def _parse(text: str, line: int = 1) -> Any:
    try:
        # Numbers stay as they are written.
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except json.JSONDecodeError as error:
        raise Unreadable(f"invalid JSON in line {line + error.lineno - 1}: {error.msg}") from None


def _arrange(blocks: Iterator[tuple[str, Block]]) -> list[Block]:
    """Put blocks of the same kind, rows or lines, right below each other."""
    found: list[Block] = []
    previous = ""
    for kind, block in blocks:
        together = kind == previous and kind in {"row", "line", "item"}
        found.append(replace(block, separator="\n" if together else "\n\n"))
        previous = kind
    return found


def _document_blocks(value: Any) -> Iterator[tuple[str, Block]]:
    if not isinstance(value, dict):
        yield from _value_blocks(value, ())
        return
    for key, inner in value.items():
        if not isinstance(inner, dict | list):
            yield from _value_blocks(inner, (_name(key),))
    for key, inner in value.items():
        if isinstance(inner, dict | list) and (found := list(_value_blocks(inner, ()))):
            if name := _name(key):
                yield "heading", Block(name, level=2)
            yield from found


def _value_blocks(value: Any, path: _Path) -> Iterator[tuple[str, Block]]:
    """Yield the kind and the block of each value in a value, with the path to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _value_blocks(inner, (*path, _name(key)))
    elif isinstance(value, list):
        yield from _list_blocks(value, path)
    elif (text := _scalar_text(value)) and _is_long(text):
        yield "paragraph", _long_block(HEADING_SEPARATOR.join(path), text)
    elif text:
        yield "line", Block(named_row([(HEADING_SEPARATOR.join(path), text)]))


def _long_block(name: str, text: str) -> Block:
    return Block(f"{name}: {text}" if name else text)


def _list_blocks(values: list[Any], path: _Path) -> Iterator[tuple[str, Block]]:
    name = HEADING_SEPARATOR.join(path)
    if joined := _joined(values):
        yield "line", Block(named_row([(name, joined)]))
        return
    if name and any(values):
        yield "lead", Block(f"{name}:")
    for value in values:
        if isinstance(value, dict):
            yield from _record_blocks(value)
        elif isinstance(value, list):
            yield from _list_blocks(value, ())
        elif text := _scalar_text(value):
            yield ("paragraph", Block(text)) if _is_long(text) else ("item", Block(f"- {text}"))


def _record_blocks(record: dict[str, Any]) -> Iterator[tuple[str, Block]]:
    """Yield the row of an object in a list, and its long texts as paragraphs after it."""
    pairs = list(_pairs(record, ()))
    cells = [(name, text) for name, text in pairs if not _is_long(text)]
    if len(cells) <= _MOST_CELLS:
        yield "row", Block(named_row(cells))
    else:
        # A blank line parts it from the record before it.
        yield "lead", Block(named_row(cells[:1]))
        yield from (("line", Block(named_row([cell]))) for cell in cells[1:])
    yield from (("paragraph", _long_block(name, text)) for name, text in pairs if _is_long(text))


def _pairs(value: Any, path: _Path) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each value that is neither an object nor a list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _pairs(inner, (*path, _name(key)))
    elif isinstance(value, list) and not (joined := _joined(value)):
        for number, inner in enumerate(value, start=1):
            yield from _pairs(inner, (*path, str(number)))
    elif text := joined if isinstance(value, list) else _scalar_text(value):
        yield HEADING_SEPARATOR.join(path), text


def _joined(values: list[Any]) -> str:
    """The values of a list on one line, or "" if it does not fit or holds objects or lists."""
    if any(isinstance(value, dict | list) for value in values):
        return ""
    text = ", ".join(filter(None, map(_scalar_text, values)))
    return "" if _is_long(text) or CELL_SEPARATOR in text else text


def _scalar_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if text.isascii() and text.isprintable():
        return text.strip()
    return "\n".join(line.rstrip() for line in clean(text).strip().split("\n"))


def _is_long(text: str) -> bool:
    return len(text) > _LONG_TEXT or "\n" in text


def read_notebook(data: bytes) -> Content:
    """Read the texts of a Jupyter notebook, its code, and the beginning of the outputs that are text."""
    notebook = _within_depth(lambda: _parse(decode(data)))
    if not isinstance(notebook, dict):
        raise Unreadable("not a notebook")
    # Before version 4, the cells were in sheets.
    sheets = [notebook, *_objects(notebook.get("worksheets"))]
    blocks = [block for sheet in sheets for cell in _objects(sheet.get("cells")) for block in _cell_blocks(cell)]
    headings = (block for block in blocks if block.level)
    title = next((block.heading or block.text for block in headings), "")
    return Content(blocks, title)


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _cell_blocks(cell: dict[str, Any]) -> Iterator[Block]:
    source = clean(_joined_lines(cell.get("source", cell.get("input"))))
    if cell.get("cell_type") != "code":
        blocks = [block for block in markdown_blocks(source)[1] if block.text]
        # The first one would continue the line of the cell before.
        yield from [replace(block, separator="\n\n" * (block is blocks[0])) for block in blocks]
        return
    outputs = [_output_text(output) for output in _objects(cell.get("outputs"))]
    for text in (source, *outputs):
        text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
        if text:
            yield Block(text, kind="code")


def _output_text(output: dict[str, Any]) -> str:
    """The beginning of an output of code, if it is text."""
    data = output.get("data")
    text = _joined_lines(data.get("text/plain") if isinstance(data, dict) else output.get("text"))
    lines = clean(_COLOUR.sub("", text[: 2 * _OUTPUT_CHARACTERS]))[:_OUTPUT_CHARACTERS].split("\n")
    return "\n".join(lines[:_OUTPUT_LINES])


def _joined_lines(value: Any) -> str:
    """The text of a field, which may be a list of its lines."""
    if isinstance(value, list):
        return "".join(line for line in value if isinstance(line, str))
    return value if isinstance(value, str) else ""
