"""Web pages."""

import contextlib
import re
from dataclasses import dataclass, field
from typing import Any, Final

from lince_rag.documents.readers.blocks import Collector, Content, Unreadable, mark_contents, walk_tree
from lince_rag.documents.readers.text import decode, refuse_binary
from lince_rag.text.words import clean, squeeze

# A <pre> is not walked because it is added unchanged.
_DROPPED: Final = {"pre", "script", "style", "nav", "noscript", "template", "head", "svg"}
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
# fmt: off
_BLOCKS: Final = {
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div",
    "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "li",
    "main", "menu", "ol", "optgroup", "option", "p", "section", "summary", "table", "tbody", "tfoot", "thead",
    "tr", "ul",
}
# fmt: on

# Elements that can stand inside a word: an index of a formula, a style for some of the letters.
_INSIDE_WORDS: Final = {"sub", "sup", "wbr", "ruby", "rt", "rb", "rp"}
_CODES: Final = {"code", "samp", "tt", "var"}
# Labels of keys and controls, which browsers draw apart from the text around them.
_APART: Final = {"kbd", "button", "label", "select", "textarea"}

# The names that DocBook, Sphinx, Texinfo, wikis and most templates give to navigation and tables of contents.
_NAVIGATION: Final = re.compile(
    r"(?:nav|toc|tableofcontents)(?:igation|bar|header|footer|center|tree|[-_]\w+)?|breadcrumbs?|pagination",
    re.IGNORECASE,
)

# An address without a scheme or a host: the link leads to this page, or to another file of the same collection.
_LOCAL: Final = re.compile(r"(?![a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)

# What old pages declare. Others are rare, and some Python codecs ("unicode_escape") are not encodings.
_CHARSET: Final = re.compile(rb"charset\s*=\s*[\"']?\s*((?:iso-8859-|windows-125)\d+)", re.IGNORECASE)

# An element with so many attributes that libxml2, which compares each with all others, takes seconds for them.
# It is read without them. Possessive, so that it never goes back.
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
    reader = _HtmlReader()
    for event, element in walk_tree(root, _DROPPED):
        if event == "start":
            reader.start(element)
        elif event == "end":
            reader.end(element)
        else:
            if element.tag == "pre":
                reader.collector.add_preformatted("".join(element.itertext()))
            reader.add(element.tail)
    reader.collector.end_paragraph()
    title = root.find(".//head/title")
    blocks = mark_contents(reader.collector.blocks, reader.collector.links)
    return Content(blocks, "" if title is None else squeeze("".join(title.itertext())))


def _is_navigation(element: Any) -> bool:
    """Return whether a part of a page is marked as navigation or a table of contents."""
    if element.tag not in _BLOCKS or element.tag in {"html", "body", "main", "article"}:
        return False
    names = [*(element.get("class") or "").split(), element.get("id") or ""]
    return element.get("role") in {"navigation", "doc-toc"} or any(map(_NAVIGATION.fullmatch, names))


@dataclass
class _HtmlReader:
    """Collects the blocks of a page while its elements start and end."""

    collector: Collector = field(default_factory=Collector)
    # The number of open local links, and whether the innermost one has had text.
    links: int = 0
    named: bool = False
    # The number of open elements of program code, where a capital letter may stand inside a name.
    codes: int = 0
    # The edges of elements since the last text: whether one may be inside a word, whether one is never.
    inside: bool = False
    apart: bool = False

    def start(self, element: Any) -> None:
        tag, collector = element.tag, self.collector
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
        self._pass_edge(tag)
        if tag == "a" and _LOCAL.match(element.get("href", ":")):
            self.links, self.named = self.links + 1, False
        self.codes += tag in _CODES
        collector.navigation += _is_navigation(element)
        self.add(element.text)

    def end(self, element: Any) -> None:
        tag, collector = element.tag, self.collector
        if tag in {"td", "th"}:
            collector.end_cell()
        elif tag in _HEADINGS or tag in _BLOCKS:
            collector.end_paragraph(_HEADINGS.get(tag, 0))
            collector.item = collector.item and tag != "li"
        if tag in {"table", "tr"}:
            collector.end_row()
        self.links -= tag == "a" and bool(_LOCAL.match(element.get("href", ":")))
        self.codes -= tag in _CODES
        collector.navigation -= _is_navigation(element)
        self._pass_edge(tag)
        self.add(element.tail)

    def _pass_edge(self, tag: Any) -> None:
        self.inside = self.inside or tag in _INSIDE_WORDS or self.codes > 0
        self.apart = self.apart or tag in _APART

    def add(self, text: str | None) -> None:
        """Add text to the paragraph, with a space before it if it begins a word that the page draws apart."""
        if not text:
            return
        text, pieces = re.sub(r"\s+", " ", text), self.collector.pieces
        if pieces and self._is_word_end(pieces[-1], text):
            pieces.append(" ")
        pieces.append(text)
        self.inside = self.apart = False
        letters = sum(map(str.isalnum, text))
        if not self.links:
            self.collector.other_letters += letters
        elif letters:
            self.collector.linked += not self.named
            self.collector.link_letters += letters
            self.named = True

    def _is_word_end(self, before: str, text: str) -> bool:
        """Return whether a word ends at an element's edge: "Preferencias" + "Herramientas", not "W" + "ord"."""
        if self.inside or not (before[-1].isalnum() and text[0].isalnum()):
            return False
        title = text[0].isupper() and text[1:2].islower()
        return self.apart or (title and before[-2:].isalpha() and len(before) > 1 and before[-1].islower())
