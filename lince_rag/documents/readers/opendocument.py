"""Texts and presentations in OpenDocument format."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from lince_rag.documents.readers.blocks import Block, Collector, Content, is_title, walk_tree
from lince_rag.documents.readers.packages import open_opendocument, package_title, parse_xml
from lince_rag.text.words import squeeze

_NAMES: Final = "{urn:oasis:names:tc:opendocument:xmlns:"
_OFFICE: Final = f"{_NAMES}office:1.0}}"
_TEXT: Final = f"{_NAMES}text:1.0}}"
_TABLE: Final = f"{_NAMES}table:1.0}}"
_STYLE: Final = f"{_NAMES}style:1.0}}"
_DRAW: Final = f"{_NAMES}drawing:1.0}}"
_SLIDE: Final = f"{_NAMES}presentation:1.0}}"
_SVG: Final = f"{_NAMES}svg-compatible:1.0}}"

_NOTE: Final = f"{_TEXT}note"
# Deleted text is in the tracked changes; comments and descriptions of pictures are not part of the text.
_DROPPED: Final = {
    f"{_TEXT}tracked-changes",
    f"{_TEXT}sequence-decls",
    f"{_OFFICE}annotation",
    f"{_OFFICE}forms",
    f"{_SVG}title",
    f"{_SVG}desc",
    f"{_SLIDE}notes",
    _NOTE,
}
_PARAGRAPHS: Final = {f"{_TEXT}p", f"{_TEXT}h"}
_CHARACTERS: Final = {f"{_TEXT}s": " ", f"{_TEXT}tab": " ", f"{_TEXT}line-break": "\n"}
_ROWS: Final = {f"{_TABLE}table", f"{_TABLE}table-row"}
_CELL: Final = f"{_TABLE}table-cell"
_ITEM: Final = f"{_TEXT}list-item"
_INDEXES: Final = {
    f"{_TEXT}{name}"
    for name in ("table-of-content", "illustration-index", "table-index", "object-index", "alphabetical-index")
}

# The boxes that every slide repeats.
_MARGINAL: Final = {"header", "footer", "date-time", "page-number"}


def read_odt(data: bytes) -> Content:
    """Read the paragraphs, headings, lists, tables, text boxes and notes of a text, in document order.

    The title is the one in its properties, else its first paragraph of style Title.
    """
    archive = open_opendocument(data)
    root = parse_xml(archive.read("content.xml"))
    styles = root.iterfind(f"{_OFFICE}automatic-styles/{_STYLE}style")
    titles = {style.get(f"{_STYLE}name") for style in styles if style.get(f"{_STYLE}parent-style-name") == "Title"}
    reader = _OpenReader(titles={"Title", *titles})
    for body in root.iterfind(f"{_OFFICE}body/{_OFFICE}text"):
        reader.walk(body)
    title = package_title(archive, "meta.xml")
    return Content(reader.collector.blocks, title if is_title(title) else reader.title)


def read_odp(data: bytes) -> Content:
    """Read the visible slides of a presentation, each as a page: its title, its text and the speaker's notes.

    The title is the one in the properties, else that of the first slide.
    """
    archive = open_opendocument(data)
    root = parse_xml(archive.read("content.xml"))
    hidden = {
        properties.getparent().get(f"{_STYLE}name")
        for properties in root.iterfind(f"{_OFFICE}automatic-styles/{_STYLE}style/{_STYLE}drawing-page-properties")
        if properties.get(f"{_SLIDE}visibility") == "hidden"
    }
    blocks: list[Block] = []
    slides = root.iterfind(f"{_OFFICE}body/{_OFFICE}presentation/{_DRAW}page")
    for page, slide in enumerate(slides, start=1):
        if slide.get(f"{_DRAW}style-name") not in hidden:
            blocks += [replace(block, page=page) for block in _read_slide(slide)]
    title = package_title(archive, "meta.xml")
    first = blocks[0].text if blocks and blocks[0].level else ""
    return Content(blocks, title if is_title(title) else first)


def _read_slide(slide: Any) -> list[Block]:
    notes = slide.iterfind(f"{_SLIDE}notes/{_DRAW}frame")
    shapes = [(shape.get(f"{_SLIDE}class", ""), shape) for shape in (*slide, *notes) if isinstance(shape.tag, str)]
    titles = [shape for kind, shape in shapes if kind == "title"]
    heading = squeeze(" ".join(block.text for block in _read_shapes(titles)))
    others = _read_shapes(shape for kind, shape in shapes if kind not in {"title", *_MARGINAL})
    return [Block(heading, level=2), *others] if heading else others


def _read_shapes(shapes: Iterable[Any]) -> list[Block]:
    reader = _OpenReader()
    for shape in shapes:
        if shape.tag not in _DROPPED:
            reader.walk(shape)
    return reader.collector.blocks


@dataclass
class _OpenReader:
    """Walks a part of a document and collects its blocks."""

    collector: Collector = field(default_factory=Collector)
    # The styles of its title, and the first paragraph that has one.
    titles: set[str] = field(default_factory=set)
    title: str = ""

    def walk(self, body: Any) -> None:
        for event, element in walk_tree(body, _DROPPED):
            if event == "start":
                self._start(element)
            else:
                if event == "end":
                    self._end(element)
                elif element.tag == _NOTE:
                    self._add_note(element)
                self._add(element.tail)
        self.collector.end_paragraph()

    def _start(self, element: Any) -> None:
        tag, collector = element.tag, self.collector
        if tag in _PARAGRAPHS:
            collector.open_paragraph()
        elif tag in _CHARACTERS:
            collector.pieces.append(_CHARACTERS[tag])
        elif tag in _ROWS:
            collector.end_row()
        elif tag == _CELL:
            collector.cells += 1
        elif tag == _ITEM:
            collector.item = True
        collector.navigation += tag in _INDEXES
        self._add(element.text)

    def _add(self, text: str | None) -> None:
        # Outside paragraphs, white space is layout of the XML, and in them a line end is one space.
        if text and self.collector.outer:
            self.collector.pieces.append(re.sub(r"\s+", " ", text))

    def _add_note(self, note: Any) -> None:
        inner = _OpenReader()
        for body in note.iterfind(f"{_TEXT}note-body"):
            inner.walk(body)
        self.collector.notes.append(squeeze(" ".join(block.text for block in inner.collector.blocks)))

    def _end(self, element: Any) -> None:
        tag, collector = element.tag, self.collector
        if tag in _PARAGRAPHS:
            self._end_paragraph(element)
        elif tag == _CELL:
            collector.end_cell()
        elif tag in _ROWS:
            collector.end_row()
        elif tag == _ITEM:
            collector.item = False
        collector.navigation -= tag in _INDEXES

    def _end_paragraph(self, paragraph: Any) -> None:
        level = 0
        if paragraph.tag == f"{_TEXT}h":
            given = paragraph.get(f"{_TEXT}outline-level", "1")
            level = int(given) if given.isdecimal() and int(given) else 1
        if not self.title and paragraph.get(f"{_TEXT}style-name") in self.titles:
            self.title = squeeze("".join(self.collector.pieces))
        self.collector.close_paragraph(level, "contents" if self.collector.navigation else "")
