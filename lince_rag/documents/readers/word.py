"""Word documents."""

import io
import re
from dataclasses import dataclass
from typing import Any, Final

from lince_rag.documents.readers.blocks import Collector, Content, walk_tree
from lince_rag.documents.readers.packages import check_package
from lince_rag.text.words import squeeze

_WORD: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MATH: Final = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_FALLBACK: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"

# Properties hold no text; a Fallback repeats the text box before it; moveFrom is text that was moved elsewhere.
_DROPPED: Final = {f"{_WORD}pPr", f"{_WORD}tblPr", f"{_WORD}sectPr", f"{_WORD}moveFrom", _FALLBACK}

_CHARACTERS: Final = {
    f"{_WORD}tab": " ",
    f"{_WORD}br": "\n",
    f"{_WORD}cr": "\n",
    f"{_WORD}noBreakHyphen": "-",
}


def read_docx(data: bytes) -> Content:
    """Read the paragraphs, headings, lists, tables, text boxes and notes of a Word document, in document order.

    The title is the one in its properties, else its first paragraph of style Title. The XML is walked directly
    because the iteration of python-docx leaves out content controls and text boxes.
    """
    check_package(data, "Word", "word/")
    import docx

    document = docx.Document(io.BytesIO(data))
    styles = {style.style_id: _style_kind(style) for style in document.styles}
    notes = {}
    for relation in document.part.rels.values():
        kind = relation.reltype.rpartition("/")[2].removesuffix("s")
        if kind in {"footnote", "endnote"} and not relation.is_external:
            notes.update(_notes(relation.target_part.blob, kind))
    reader = _DocxReader(Collector(), styles, notes)
    reader.walk(document.element.body)
    return Content(reader.collector.blocks, document.core_properties.title or reader.title)


def _style_kind(style: Any) -> str:
    """The meaning of a paragraph style: a heading level as a digit, "title", "contents", "item" or ""."""
    for _ in range(10):  # A style inherits from another; in a damaged file this can be a cycle.
        name = (style.name or "").lower()
        if match := re.fullmatch(r"heading ([1-9])", name):
            return match[1]
        if name == "title":
            return "title"
        if re.fullmatch(r"toc [1-9]|table of figures", name):
            return "contents"
        if name.startswith("list"):
            return "item"
        style = getattr(style, "base_style", None)
        if style is None:
            break
    return ""


def _notes(xml: bytes, kind: str) -> dict[tuple[str, str], str]:
    """The text of each note, its paragraphs on one line, by (kind, id)."""
    from lxml import etree  # type: ignore[import-untyped]

    root = etree.fromstring(xml, etree.XMLParser(resolve_entities=False))
    return {
        (kind, note.get(f"{_WORD}id", "")): " ".join(map(_note_paragraph, note.iter(f"{_WORD}p")))
        for note in root.iter(f"{_WORD}{kind}")
    }


def _note_paragraph(paragraph: Any) -> str:
    # Word splits a word into runs wherever it was edited, so runs are joined without a space.
    text = f"{_WORD}t"
    return "".join(
        element.text or "" if element.tag == text else _CHARACTERS.get(element.tag, "")
        for element in paragraph.iter(text, *_CHARACTERS)
    )


@dataclass
class _DocxReader:
    """Walks a document's body and collects its blocks."""

    collector: Collector
    styles: dict[str, str]
    notes: dict[tuple[str, str], str]
    title: str = ""

    def walk(self, body: Any) -> None:
        for event, element in walk_tree(body, _DROPPED):
            if event == "start":
                self._start(element)
            elif event == "end":
                self._end(element)
        self.collector.end_paragraph()

    def _start(self, element: Any) -> None:
        tag = element.tag
        if tag in {f"{_WORD}t", f"{_MATH}t"}:
            self.collector.pieces.append(element.text or "")
        elif tag in _CHARACTERS:
            self.collector.pieces.append(_CHARACTERS[tag])
        elif tag == f"{_WORD}p":
            self.collector.open_paragraph()
        elif tag in {f"{_WORD}tbl", f"{_WORD}tr"}:
            self.collector.end_row()
        elif tag == f"{_WORD}tc":
            self.collector.cells += 1
        elif tag in {f"{_WORD}footnoteReference", f"{_WORD}endnoteReference"}:
            kind = tag.removeprefix(_WORD).removesuffix("Reference")
            self.collector.notes.append(self.notes.get((kind, element.get(f"{_WORD}id", "")), ""))

    def _end(self, element: Any) -> None:
        tag = element.tag
        if tag == f"{_WORD}p":
            self._end_paragraph(element)
        elif tag == f"{_WORD}tc":
            self.collector.end_cell()
        elif tag in {f"{_WORD}tbl", f"{_WORD}tr"}:
            self.collector.end_row()

    def _end_paragraph(self, paragraph: Any) -> None:
        style = paragraph.find(f"{_WORD}pPr/{_WORD}pStyle")
        kind = "" if style is None else self.styles.get(style.get(f"{_WORD}val"), "")
        outline = paragraph.find(f"{_WORD}pPr/{_WORD}outlineLvl")
        if outline is not None and outline.get(f"{_WORD}val", "9") in "012345678":
            kind = str(int(outline.get(f"{_WORD}val")) + 1)
        elif not kind and paragraph.find(f"{_WORD}pPr/{_WORD}numPr") is not None:
            kind = "item"
        if kind == "title" and not self.title:
            self.title = squeeze("".join(self.collector.pieces))
        self.collector.close_paragraph(int(kind) if kind.isdigit() else 0, kind)
