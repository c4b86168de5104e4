"""Web pages."""

import contextlib
import itertools
import re
from dataclasses import dataclass, field, replace
from typing import Any, Final

from lince_rag.documents.readers.blocks import Block, Collector, Content, Unreadable, mark_contents, walk_tree
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
_CELLS: Final = {"td", "th"}
# What is looked at even without attributes.
_JUDGED: Final = {"dialog", "aside", "select", "header", "footer"}
_CODES: Final = {"code", "samp", "tt", "var"}
# Labels of keys and controls, which browsers draw apart from the text around them.
_APART: Final = {"kbd", "button", "label", "select", "textarea"}

# The names that DocBook, Sphinx, Texinfo, wikis and most templates give to navigation and tables of contents.
_NAVIGATION: Final = re.compile(
    r"(?:nav|toc|tableofcontents)(?:igation|bar|header|footer|center|tree|[-_]\w+)?|breadcrumbs?|pagination",
    re.IGNORECASE,
)
_NAVIGATION_ROLES: Final = {"navigation", "doc-toc", "menu", "menubar", "toolbar", "search"}

# What consent tools (OneTrust, Cookiebot, Didomi, Complianz, CookieYes …) call what they put over a page, and what
# templates call it; it speaks of cookies and has buttons or links.
_CONSENT_TOOLS: Final = re.compile(
    r"onetrust|cybot|didomi|cmplz|cky-|qc-cmp|usercentrics|iubenda|borlabs|klaro|tarteaucitron|sp_message",
    re.IGNORECASE,
)
_CONSENT: Final = re.compile(r"cookie|consent|gdpr|rgpd|lgpd", re.IGNORECASE)
LONGEST_CONSENT: Final = 3_000
# What covers a page is a part of it, and a policy on cookies that is read as a page is most of it.
COVER_SHARE: Final = 0.5

# What a part of a page is called that is links, unless its text says something else.
_LINKS: Final = re.compile(
    r"(?:.*[-_ ])?(?:nav(?:bar)?|menus?|breadcrumbs?|migas?|migalhas?|pagination|pager|share|sharing|sharedaddy|"
    r"social|redes|compart\w+|partilh\w+|addtoany|addthis|related\w*|relacionad[oa]s?|jp-relatedposts|yarpp|recom\w+|"
    r"popular\w*|trending|tags?|etiquetas|sidebar|widget|aside|languages?|idiomas?)(?:[-_ ].*)?",
    re.IGNORECASE,
)
LINKS_SHARE: Final = 0.6

# Inside these, a paragraph that is nothing but links leads to other pages; one that is buttons is nowhere a text.
_MARGINS: Final = {"header", "footer", "aside"}
_MARGIN_ROLES: Final = {"banner", "contentinfo", "complementary"}
# Links to call and to write are what people look for, and buttons that unfold a text are its title.
_ADDRESS: Final = re.compile(r"(?:tel|mailto|sms|geo|callto|whatsapp):", re.IGNORECASE)
_UNFOLDS: Final = re.compile(r"accordion|acorde|collaps|toggle|faq|question|pregunta|pergunta", re.IGNORECASE)

# Links to a place further down, for people who hear the page.
_SKIP: Final = re.compile(
    r"\W*(?:saltar|ir|pasar|pular|avançar|passar|skip|jump)\b.{0,20}\b(?:al?|to|para)\b.{0,20}"
    r"\b(?:conte\w+|conteúdo|content|nave\w+|men[uú]|main|principal|pesquisa|búsqueda|busca|rodapé|pie)\b.{0,20}",
    re.IGNORECASE,
)
_SKIP_LETTERS: Final = 60
# A path of pages above the title: "Inicio > Servicios > Horarios".
_PATH: Final = re.compile(
    r"(?:(?:usted |você )?est[áa] (?:aquí|aqui|en|em):? *)?"
    r"(?:inicio|início|home|portada|(?:página )?(?:inicial|principal))"
    r"(?: *[>›»/→|·] *[^>›»→|.]{1,60}){1,6}",
    re.IGNORECASE,
)

# A text that is not shown and is longer than a label is behind a tab, or unfolds.
LONGEST_HIDDEN: Final = 200
_HIDDEN_STYLE: Final = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)

# If what is left of a page has fewer letters, and is less than this share of it, its parts were not found.
FEWEST_LETTERS: Final = 200
LEFT_SHARE: Final = 0.25

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
    reader = _read_parts(root, _find_parts(root))
    if _letters(reader, left=True) < min(FEWEST_LETTERS, LEFT_SHARE * _letters(reader)):
        reader = _read_parts(root, _Parts(controls=False))
    title = root.find(".//head/title")
    blocks = _mark_path(mark_contents(reader.collector.blocks, reader.collector.links))
    return Content(blocks, "" if title is None else squeeze("".join(title.itertext())))


def _read_parts(root: Any, parts: "_Parts") -> "_HtmlReader":
    reader = _HtmlReader(parts)
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
    return reader


def _letters(reader: "_HtmlReader", *, left: bool = False) -> int:
    """Count the letters of a page, or of what is left of it to be searched."""
    blocks = (block for block in reader.collector.blocks if not (left and block.kind == "contents"))
    return sum(sum(map(str.isalnum, block.text)) for block in blocks)


def _mark_path(blocks: list[Block]) -> list[Block]:
    """Mark the path of pages above the first heading."""
    above = list(itertools.takewhile(lambda block: not block.level, blocks))
    marked = [replace(block, kind="contents") if _PATH.fullmatch(block.text) else block for block in above]
    return [*marked, *blocks[len(above) :]]


def _is_navigation(element: Any) -> bool:
    """Return whether a part of a page is marked as navigation or a table of contents."""
    if element.tag not in _BLOCKS or element.tag in {"html", "body", "main", "article"}:
        return False
    return element.get("role") in _NAVIGATION_ROLES or any(map(_NAVIGATION.fullmatch, _names(element)))


def _names(element: Any) -> list[str]:
    return [*(element.get("class") or "").split(), element.get("id") or ""]


@dataclass
class _Parts:
    """The elements of a page that are not its content."""

    # Banners of consent, dialogs, menus, lists of links.
    boilerplate: set[Any] = field(default_factory=set)
    # Inside other text: symbols and labels that are not shown, links to a place further down.
    unseen: set[Any] = field(default_factory=set)
    # Headers, footers and what stands beside the content.
    margins: set[Any] = field(default_factory=set)
    # Whether paragraphs of buttons or of links in margins are left out.
    controls: bool = True


@dataclass
class _PartsFinder:
    """Walks a page once, counting, so that nested elements take no more time."""

    parts: _Parts = field(default_factory=_Parts)
    # The letters so far, and those in links and buttons; the open ones; the main parts and titles so far.
    letters: int = 0
    links: int = 0
    open: int = 0
    contents: int = 0
    # What had been counted before each open element.
    before: dict[Any, tuple[int, int, int]] = field(default_factory=dict)
    # What may cover the page, with its letters.
    covers: list[tuple[Any, int]] = field(default_factory=list)

    def start(self, element: Any) -> None:
        tag = element.tag
        self.open += _is_control(element)
        self.contents += tag in {"main", "article", "h1"} or element.get("role") == "main"
        if (element.attrib or tag in _JUDGED) and tag not in {"html", "body", "main", "article"}:
            self.before[element] = self.letters, self.links, self.contents
        self.count(element.text)

    def end(self, element: Any) -> None:
        self.open -= _is_control(element)
        letters, links, contents = self.before.pop(element, (0, 0, -1))
        if contents >= 0 and (element.tag in _MARGINS or element.get("role") in _MARGIN_ROLES):
            self.parts.margins.add(element)
        if contents == self.contents:
            self._judge(element, self.letters - letters, self.links - links)
        self.count(element.tail)

    def count(self, text: str | None) -> None:
        letters = sum(map(str.isalnum, text)) if text else 0
        self.letters += letters
        self.links += letters if self.open else 0

    def _judge(self, element: Any, letters: int, links: int) -> None:
        tag, role, names = element.tag, element.get("role"), _names(element)
        hidden = letters <= LONGEST_HIDDEN and _is_hidden(element)
        if tag not in _BLOCKS and tag != "select":
            shown = not hidden or tag in _HEADINGS or tag in _CELLS
            if not shown or (tag == "a" and _is_skip(element, letters)):
                self.parts.unseen.add(element)
            return
        beside = tag == "aside" or role == "complementary" or any(map(_LINKS.fullmatch, names))
        linked = letters > 0 and links >= LINKS_SHARE * letters
        tool = any(map(_CONSENT_TOOLS.search, names))
        if hidden or tool or tag == "select" or (linked and beside):
            self.parts.boilerplate.add(element)
        elif _is_dialog(element) or (0 < links <= letters <= LONGEST_CONSENT and _asks_for_consent(element)):
            self.covers.append((element, letters))

    def finish(self) -> _Parts:
        """Return what was found, when all of the page has been counted."""
        covers = {element for element, letters in self.covers if letters < COVER_SHARE * self.letters}
        self.parts.boilerplate |= covers
        return self.parts


def _find_parts(root: Any) -> _Parts:
    finder = _PartsFinder()
    for event, element in walk_tree(root, _DROPPED):
        if event == "start":
            finder.start(element)
        elif event == "end":
            finder.end(element)
        else:
            finder.count(element.tail)
    return finder.finish()


def _is_control(element: Any) -> bool:
    """Return whether an element is a link to a page, or a button."""
    if element.tag == "a":
        return not _ADDRESS.match(element.get("href") or "tel:")
    return bool(element.tag == "button") and not any(map(_UNFOLDS.search, _names(element)))


def _is_dialog(element: Any) -> bool:
    modal = element.get("aria-modal") == "true"
    return bool(element.tag == "dialog" or element.get("role") in {"dialog", "alertdialog"} or modal)


def _asks_for_consent(element: Any) -> bool:
    named = any(map(_CONSENT.search, _names(element)))
    return named and "cookie" in "".join(element.itertext()).lower()


def _is_hidden(element: Any) -> bool:
    """Return whether an element is not shown, and is not what unfolds or is behind a tab, as its role says."""
    if element.get("role") in {"tabpanel", "region"}:
        return False
    hidden = element.get("hidden", "until-found") != "until-found" or element.get("aria-hidden") == "true"
    return hidden or _HIDDEN_STYLE.search(element.get("style") or "") is not None


def _is_skip(element: Any, letters: int) -> bool:
    short = element.get("href", "").startswith("#") and 0 < letters <= _SKIP_LETTERS
    return short and _SKIP.fullmatch(squeeze("".join(element.itertext()))) is not None


@dataclass
class _HtmlReader:
    """Collects the blocks of a page while its elements start and end."""

    parts: _Parts
    collector: Collector = field(default_factory=Collector)
    # The number of open local links, and whether the innermost one has had text.
    links: int = 0
    named: bool = False
    # The number of open elements of program code, where a capital letter may stand inside a name.
    codes: int = 0
    # The edges of elements since the last text: whether one may be inside a word, whether one is never.
    inside: bool = False
    apart: bool = False
    # The numbers of open links and buttons, of open buttons, and of open elements that are left out.
    controls: int = 0
    buttons: int = 0
    unseen: int = 0

    def start(self, element: Any) -> None:
        tag, collector = element.tag, self.collector
        if tag in _BLOCKS or tag in _HEADINGS or tag in _CELLS:
            collector.end_paragraph()
        if tag in {"table", "tr"}:
            collector.end_row()
        if tag in _CELLS:
            collector.cells += 1
        elif tag == "li":
            collector.item = True
        elif tag == "br":
            collector.pieces.append("\n")
        self._pass_edge(tag)
        if tag == "a" and _LOCAL.match(element.get("href", ":")):
            self.links, self.named = self.links + 1, False
        self.codes += tag in _CODES
        self._enter(element, 1)
        self.add(element.text)

    def _enter(self, element: Any, change: int) -> None:
        """Count an element that begins (1) or ends (-1) by what it is."""
        collector, boilerplate = self.collector, element in self.parts.boilerplate
        if boilerplate and not collector.cells:
            collector.end_paragraph()
        collector.navigation += change * (_is_navigation(element) or boilerplate)
        collector.margins += change * (element in self.parts.margins)
        # What is in a cell cannot be marked.
        self.unseen += change * (element in self.parts.unseen or (boilerplate and collector.cells > 0))
        if self.parts.controls and _is_control(element):
            self.controls += change
            self.buttons += change * (element.tag == "button")

    def end(self, element: Any) -> None:
        tag, collector = element.tag, self.collector
        if tag in _CELLS:
            collector.end_cell()
        elif tag in _HEADINGS or tag in _BLOCKS:
            collector.end_paragraph(_HEADINGS.get(tag, 0))
            collector.item = collector.item and tag != "li"
        if tag in {"table", "tr"}:
            collector.end_row()
        self.links -= tag == "a" and bool(_LOCAL.match(element.get("href", ":")))
        self.codes -= tag in _CODES
        self._enter(element, -1)
        self._pass_edge(tag)
        self.add(element.tail)

    def _pass_edge(self, tag: Any) -> None:
        self.inside = self.inside or tag in _INSIDE_WORDS or self.codes > 0
        self.apart = self.apart or tag in _APART

    def add(self, text: str | None) -> None:
        """Add text to the paragraph, with a space before it if it begins a word that the page draws apart."""
        if not text or self.unseen:
            return
        text, pieces = re.sub(r"\s+", " ", text), self.collector.pieces
        if pieces and self._is_word_end(pieces[-1], text):
            pieces.append(" ")
        pieces.append(text)
        self.inside = self.apart = False
        letters = sum(map(str.isalnum, text))
        self.collector.control_letters += letters if self.controls else 0
        self.collector.buttons += letters if self.buttons else 0
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
