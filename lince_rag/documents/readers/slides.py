"""Presentations of PowerPoint."""

import io
from collections.abc import Iterable, Iterator
from typing import Any, Final

from lince_rag.documents.readers.blocks import Block, Content, is_title
from lince_rag.documents.readers.packages import check_package
from lince_rag.documents.readers.rows import table_blocks
from lince_rag.text.words import squeeze

_DRAWING: Final = "{http://schemas.openxmlformats.org/drawingml/2006/main}"

# The boxes of a layout that every slide repeats.
_MARGINAL: Final = {"DATE", "FOOTER", "HEADER", "SLIDE_NUMBER"}

# Shapes whose tops differ by less, in the unit of the format (914,400 to an inch), are side by side.
_LINE_HEIGHT: Final = 182_880

# A first line with fewer characters and no full stop is the title of a slide that has no box for one.
_TITLE_CHARACTERS: Final = 100


def read_pptx(data: bytes) -> Content:
    """Read the visible slides of a presentation, each as a page: its title, its text and the speaker's notes.

    The title is the one in the properties, else that of the first slide.
    """
    check_package(data, "PowerPoint", "ppt/")
    import pptx

    presentation = pptx.Presentation(io.BytesIO(data))
    blocks: list[Block] = []
    for page, slide in enumerate(presentation.slides, start=1):
        if slide.element.get("show", "1") not in {"0", "false"}:
            blocks += _read_slide(slide, page)
    first = blocks[0].text if blocks and blocks[0].level else ""
    title = squeeze(presentation.core_properties.title)
    return Content(blocks, title if is_title(title) else first)


def _read_slide(slide: Any, page: int) -> list[Block]:
    title = slide.shapes.title
    blocks: list[Block] = []
    for shape in _in_reading_order(slide.shapes):
        # Each access to a shape makes another object for it.
        if title is not None and shape.shape_id == title.shape_id:
            continue
        blocks += _shape_blocks(shape, page)
    heading = "" if title is None else squeeze(title.text_frame.text)
    if heading:
        blocks.insert(0, Block(heading, level=2, page=page))
    elif blocks and _seems_title(blocks[0].text):
        blocks[0] = Block(blocks[0].text, level=2, page=page)
    if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None:
        blocks += _paragraphs(notes, page, listed=False)
    return blocks


def _in_reading_order(shapes: Iterable[Any]) -> Iterator[Any]:
    """Yield shapes from top to bottom and left to right, the placeholders of the layout in their own order."""
    found = list(shapes)
    placeholders = (shape for shape in found if shape.is_placeholder)
    for shape in sorted(found, key=lambda shape: ((shape.top or 0) // _LINE_HEIGHT, shape.left or 0)):
        yield next(placeholders) if shape.is_placeholder else shape


def _shape_blocks(shape: Any, page: int) -> Iterator[Block]:
    from pptx.shapes.group import GroupShape

    listed = False
    if shape.is_placeholder:
        kind = shape.placeholder_format.type
        if kind is not None and kind.name in _MARGINAL:
            return
        listed = kind is not None and kind.name in {"BODY", "OBJECT"}
    if isinstance(shape, GroupShape):
        for inner in _in_reading_order(shape.shapes):
            yield from _shape_blocks(inner, page)
    elif shape.has_text_frame:
        yield from _paragraphs(shape.text_frame, page, listed=listed and len(shape.text_frame.paragraphs) > 1)
    elif getattr(shape, "has_table", False):
        yield from table_blocks(([squeeze(cell.text) for cell in row.cells] for row in shape.table.rows), page)


def _paragraphs(frame: Any, page: int, *, listed: bool) -> Iterator[Block]:
    """Yield the paragraphs of a text frame; in a frame of the layout they are list items unless they say not."""
    after_item = False
    for paragraph in frame.paragraphs:
        text = "\n".join(filter(None, map(squeeze, paragraph.text.split("\v"))))
        if text:
            item = _is_item(paragraph, listed)
            separator = "\n" if item and after_item else "\n\n"
            yield Block(f"- {text}" if item else text, page=page, separator=separator)
            after_item = item


def _is_item(paragraph: Any, listed: bool) -> bool:
    properties = paragraph._p.find(f"{_DRAWING}pPr")
    marks = set() if properties is None else {child.tag for child in properties}
    marked = not marks.isdisjoint({f"{_DRAWING}buChar", f"{_DRAWING}buAutoNum", f"{_DRAWING}buBlip"})
    return marked or (listed and f"{_DRAWING}buNone" not in marks)


def _seems_title(text: str) -> bool:
    """Return whether the first text of a slide without a title can be it, and not a list item or a row."""
    return (
        len(text) <= _TITLE_CHARACTERS and "\n" not in text and not text.startswith("- ") and text[-1] not in ".;|"
    )
