"""Web pages."""

import contextlib
import re
from typing import Any, Final

from lince_rag.documents.readers.blocks import Collector, Content, Unreadable, walk_tree
from lince_rag.documents.readers.text import decode, refuse_binary
from lince_rag.text.words import clean, squeeze

# A <pre> is not walked because it is added unchanged.
_DROPPED: Final = {"pre", "script", "style", "nav", "noscript", "template", "head", "svg"}
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
# fmt: off
_BLOCKS: Final = {
    "address", "article", "aside", "blockquote", "body", "center", "dd", "details", "dialog", "div", "dl",
    "dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "li",
    "main", "ol", "optgroup", "option", "p", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
}
# fmt: on

# What old pages declare. Others are rare, and some Python codecs ("unicode_escape") are not encodings.
_CHARSET: Final = re.compile(rb"charset\s*=\s*[\"']?\s*((?:iso-8859-|windows-125)\d+)", re.IGNORECASE)

# An element with so many attributes that libxml2, which compares each with all others, takes seconds for them.
# Nothing in them is read. Possessive, so that it never goes back.
_MANY_ATTRIBUTES: Final = re.compile(
    r"<([a-z][\w:-]*+)(?:\s++[^\s\"'<>=/]++(?:\s*+=\s*+(?:\"[^\"]*+\"|'[^']*+'|[^\s\"'<>]++))?+){200,}+\s*+/?>",
    re.IGNORECASE,
)


def _decode(data: bytes) -> str:
    """Decode a page as UTF-8, or else as it declares, because declarations are often out of date."""
    declared = _CHARSET.search(data[:2048])
    try:
        if declared and declared[1].lower() != b"iso-8859-1":  # Browsers read it as Windows-1252, like decode.
            data.decode("utf-8")
    except UnicodeDecodeError:
        with contextlib.suppress(LookupError):
            return refuse_binary(data.decode(declared[1].decode("ascii"), "replace")) if declared else ""
    return decode(data)


def read_html(data: bytes) -> Content:
    """Read the paragraphs, headings, list items and table rows of a web page, and its ``<title>``.

    lxml, unlike Beautiful Soup, lets us walk without recursion, so that no depth breaks it, and builds no second
    tree.
    """
    from lxml import etree  # type: ignore[import-untyped]

    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    text = _MANY_ATTRIBUTES.sub(r"<\1>", clean(_decode(data)))
    root = etree.fromstring(text.encode("utf-8"), parser)
    if any(entry.type_name == "ERR_RESOURCE_LIMIT" for entry in parser.error_log):
        raise Unreadable("its elements are nested too deeply")
    if root is None:
        return Content([])
    collector = Collector()
    for event, element in walk_tree(root, _DROPPED):
        if event == "start":
            _start(collector, element)
        elif event == "end":
            _end(collector, element)
        else:
            if element.tag == "pre":
                collector.add_preformatted("".join(element.itertext()))
            collector.pieces.append(_text(element.tail))
    collector.end_paragraph()
    title = root.find(".//head/title")
    return Content(collector.blocks, "" if title is None else squeeze("".join(title.itertext())))


def _text(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "")


def _start(collector: Collector, element: Any) -> None:
    tag = element.tag
    if tag in _BLOCKS or tag in _HEADINGS or tag in {"td", "th"}:
        collector.end_paragraph()
    if tag in {"table", "tr"}:
        collector.end_row()
    if tag in {"td", "th"}:
        collector.cells += 1
    elif tag == "li":
        collector.item = True
    elif tag == "br":
        collector.pieces.append("\n")
    collector.pieces.append(_text(element.text))


def _end(collector: Collector, element: Any) -> None:
    tag = element.tag
    if tag in {"td", "th"}:
        collector.end_cell()
    elif tag in _HEADINGS or tag in _BLOCKS:
        collector.end_paragraph(_HEADINGS.get(tag, 0))
        collector.item = collector.item and tag != "li"
    if tag in {"table", "tr"}:
        collector.end_row()
    collector.pieces.append(_text(element.tail))
