"""EPUB books: a zip archive with a package file, which lists web pages in reading order."""

import posixpath
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import unquote

from lince_rag.documents.readers.blocks import Block, Content, Unreadable
from lince_rag.documents.readers.html import read_html
from lince_rag.documents.readers.packages import check_package
from lince_rag.text.words import squeeze

_CONTAINER: Final = "META-INF/container.xml"
_ENCRYPTION: Final = "META-INF/encryption.xml"

# Text of these types; the last one is what books older than EPUB 2 declare. A spine may also list pictures.
_PAGES: Final = {"application/xhtml+xml", "text/html", "text/x-oeb1-document"}
_NCX: Final = "application/x-dtbncx+xml"
_EPUB_TYPE: Final = "{http://www.idpf.org/2007/ops}type"

# Many books change the first kilobyte of their fonts, so that they cannot be used elsewhere; text stays readable.
_FONT_ALGORITHMS: Final = {"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"}


@dataclass(frozen=True)
class _Book:
    """What the package file says: the title, and the names of files in the archive."""

    title: str
    # The files of the text, in reading order.
    spine: list[str]
    # The navigation document of EPUB 3, and the table of contents of EPUB 2.
    navigation: str = ""
    ncx: str = ""


def read_epub(data: bytes) -> Content:
    """Read the chapters of a book in their reading order, and its title.

    A chapter without a heading takes its title in the book's table of contents, which itself is not text.
    """
    archive = check_package(data, "EPUB", _CONTAINER)
    _refuse_protected(archive)
    book = _read_package(archive)
    titles = _chapter_titles(archive, book)
    blocks: list[Block] = []
    found = 0
    for name in book.spine:
        if name == book.navigation:
            continue
        try:
            chapter = read_html(archive.read(name)).blocks
        except (KeyError, Unreadable):
            continue
        found += 1
        blocks += _with_heading(chapter, *titles.get(name, ("", 0)))
    if not found:
        raise Unreadable("none of its chapters can be read")
    return Content(blocks, book.title)


def _parse(archive: zipfile.ZipFile, name: str) -> Any:
    """The root of an XML file in the archive, or None if it is missing or damaged."""
    from lxml import etree  # type: ignore[import-untyped]

    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True)
    try:
        return etree.fromstring(archive.read(name), parser)
    except (KeyError, etree.XMLSyntaxError):
        return None


def _refuse_protected(archive: zipfile.ZipFile) -> None:
    """Refuse a book of which anything but the fonts is encrypted."""
    root = _parse(archive, _ENCRYPTION) if _ENCRYPTION in archive.namelist() else None
    if root is None:
        return
    methods = root.iterfind(".//{*}EncryptedData/{*}EncryptionMethod")
    if any(method.get("Algorithm") not in _FONT_ALGORITHMS for method in methods):
        raise Unreadable("protected against copying")


def _read_package(archive: zipfile.ZipFile) -> _Book:
    """Read the package file that the container names."""
    container = _parse(archive, _CONTAINER)
    entries = [] if container is None else container.iterfind(".//{*}rootfile")
    name = next((entry.get("full-path") for entry in entries if entry.get("full-path")), "")
    root = _parse(archive, name)
    if root is None:
        raise Unreadable("damaged EPUB file: no package file, which lists the chapters")
    title = root.find(".//{*}metadata//{http://purl.org/dc/elements/1.1/}title")
    manifest = {item.get("id"): item for item in root.iterfind(".//{*}manifest/{*}item")}
    spine = root.find(".//{*}spine")
    references = [] if spine is None else spine.iterfind("{*}itemref")
    items = [manifest[reference.get("idref")] for reference in references if reference.get("idref") in manifest]

    def path(item: Any) -> str:
        return _resolve(name, item.get("href") or "")

    return _Book(
        title="" if title is None else squeeze("".join(title.itertext())),
        # A book may refer to a page twice; its text is read once.
        spine=list(dict.fromkeys(path(item) for item in items if item.get("media-type") in _PAGES)),
        navigation=next(
            (path(item) for item in manifest.values() if "nav" in (item.get("properties") or "").split()), ""
        ),
        ncx=next((path(item) for item in manifest.values() if item.get("media-type") == _NCX), ""),
    )


def _resolve(base: str, link: str) -> str:
    """The name in the archive of the file that a link in another file leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(link.partition("#")[0])))


def _chapter_titles(archive: zipfile.ZipFile, book: _Book) -> dict[str, tuple[str, int]]:
    """File → (title, level) of its first entry in the table of contents: the navigation document, else the ncx."""
    for name, entries in ((book.navigation, _navigation_entries), (book.ncx, _ncx_entries)):
        root = _parse(archive, name) if name else None
        titles: dict[str, tuple[str, int]] = {}
        for link, title, level in [] if root is None else entries(root):
            if title:
                titles.setdefault(_resolve(name, link), (title, level))
        if titles:
            return titles
    return {}


def _navigation_entries(root: Any) -> Iterator[tuple[str, str, int]]:
    """Yield (link, title, level) of the entries of a navigation document."""
    lists = list(root.iter("{*}nav"))
    # There may be others, of pages and of pictures.
    contents = [nav for nav in lists if "toc" in (nav.get(_EPUB_TYPE) or "").split()] or lists[:1]
    for nav in contents:
        for link, level in _Levels("ol", "a").walk(nav):
            yield link.get("href") or "", squeeze("".join(link.itertext())), level


def _ncx_entries(root: Any) -> Iterator[tuple[str, str, int]]:
    """Yield (link, title, level) of the entries of an ncx file."""
    for content, level in _Levels("navPoint", "content").walk(root):
        label = content.getparent().find("{*}navLabel")
        title = "" if label is None else squeeze("".join(label.itertext()))
        yield content.get("src") or "", title, level


@dataclass
class _Levels:
    """Finds elements, and how many elements of another name each is in."""

    outer: str
    wanted: str
    depth: int = field(default=0, init=False)

    def walk(self, root: Any) -> Iterator[tuple[Any, int]]:
        from lxml import etree

        for event, element in etree.iterwalk(root, events=("start", "end")):
            name = etree.QName(element).localname if isinstance(element.tag, str) else ""
            if name == self.outer:
                self.depth += 1 if event == "start" else -1
            elif name == self.wanted and event == "start":
                yield element, max(self.depth, 1)


def _with_heading(chapter: list[Block], title: str, level: int) -> list[Block]:
    """Give a chapter without headings its title as one, or mark the paragraph that it begins with as one."""
    if not title or not chapter or any(block.level for block in chapter):
        return chapter
    if squeeze(chapter[0].text).casefold() == title.casefold():
        return [replace(chapter[0], level=level), *chapter[1:]]
    return [Block(title, level=level), *chapter]
