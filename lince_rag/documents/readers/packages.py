"""Files that are zip archives of XML: Office, OpenDocument and EPUB, checked before anything in them is read."""

import io
import zipfile
from typing import Any, Final

from lince_rag.documents.readers.blocks import Unreadable
from lince_rag.text.words import squeeze

# 3 MB of a zip can hold 3 GB (a docx measured: 5.9 GB of memory and a minute in every reader). The text of a
# thousand-page book is about 20 MB of XML; pictures are not compressed again, and not parsed.
MAXIMUM_UNPACKED_BYTES: Final = 256 * 2**20
MAXIMUM_XML_BYTES: Final = 64 * 2**20

_XML_SUFFIXES: Final = (".xml", ".rels", ".xhtml", ".html", ".htm", ".opf", ".ncx")


def check_package(data: bytes, name: str, needed: str) -> zipfile.ZipFile:
    """Open a file that must be a zip archive with an entry whose name begins with ``needed``.

    Args:
        data: The bytes of the file.
        name: What it should be, as errors say it: "Word".
        needed: The beginning of the name of an entry that only such a file has.

    Returns:
        The archive. Every entry was decompressed once, so none holds more than it declares.

    Raises:
        Unreadable: It is another kind of zip, damaged, protected with a password, or too large when unpacked.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile:
        raise Unreadable(f"damaged or truncated {name} file") from None
    entries = archive.infolist()
    if not any(entry.filename.startswith(needed) for entry in entries):
        raise Unreadable(f"a zip file, but not {_article(name)} {name} document")
    if any(entry.flag_bits & 1 for entry in entries):
        raise Unreadable("protected with a password")
    xml = sum(entry.file_size for entry in entries if entry.filename.endswith(_XML_SUFFIXES))
    if xml > MAXIMUM_XML_BYTES or sum(entry.file_size for entry in entries) > MAXIMUM_UNPACKED_BYTES:
        raise Unreadable("too large once unpacked")
    # In small pieces, it finds an entry that holds more than it declares before that is in memory.
    if bad := archive.testzip():
        raise Unreadable(f"damaged {name} file: {bad!r} is not what the archive declares")
    return archive


def parse_xml(xml: bytes) -> Any:
    """Parse an entry of a package; nothing that it refers to is fetched, and no entity of its own is expanded."""
    from lxml import etree  # type: ignore[import-untyped]

    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, remove_pis=True
    )
    return etree.fromstring(xml, parser)


def package_title(archive: zipfile.ZipFile, entry: str) -> str:
    """Return the title in the properties of a document, or "" without one."""
    if entry not in archive.namelist():
        return ""
    title = parse_xml(archive.read(entry)).find(".//{http://purl.org/dc/elements/1.1/}title")
    return "" if title is None else squeeze("".join(title.itertext()))


def open_opendocument(data: bytes) -> zipfile.ZipFile:
    """Open an OpenDocument file that is not encrypted; see ``check_package`` for what it raises."""
    archive = check_package(data, "OpenDocument", "")
    names = archive.namelist()
    manifest = "META-INF/manifest.xml"
    # Newer programs encrypt the whole package, older ones each of its entries.
    if "encrypted-package" in names or (manifest in names and b"encryption-data" in archive.read(manifest)):
        raise Unreadable("protected with a password")
    if "content.xml" not in names:
        raise Unreadable("a zip file, but not an OpenDocument document")
    return archive


def _article(name: str) -> str:
    return "an" if name[0] in "AEIOU" else "a"
