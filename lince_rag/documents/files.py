"""Files → one LangChain ``Document`` each, with title, language, and sections by page and heading."""

import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from lince_rag.documents.readers.archives import read_archive
from lince_rag.documents.readers.blocks import (
    MAXIMUM_PAGES,
    Content,
    ReadingOptions,
    Unreadable,
    assemble,
    is_title,
)
from lince_rag.documents.readers.calendars import read_ics, read_vcf
from lince_rag.documents.readers.epub import read_epub
from lince_rag.documents.readers.html import read_html
from lince_rag.documents.readers.json_files import read_json, read_json_lines, read_notebook
from lince_rag.documents.readers.mail import MAXIMUM_MESSAGE_BYTES, read_eml, read_mbox
from lince_rag.documents.readers.members import MAXIMUM_DEPTH, Members
from lince_rag.documents.readers.ocr import read_image
from lince_rag.documents.readers.opendocument import read_odp, read_odt
from lince_rag.documents.readers.pdf import read_pdf
from lince_rag.documents.readers.slides import read_pptx
from lince_rag.documents.readers.tables import read_csv, read_ods, read_xls, read_xlsx
from lince_rag.documents.readers.text import read_code, read_markdown, read_rtf, read_text
from lince_rag.documents.readers.word import read_docx
from lince_rag.errors import DocumentError
from lince_rag.text.language import detect_language
from lince_rag.text.words import squeeze

StrPath = str | os.PathLike[str]

# A PDF or a Word file consists mostly of pictures, so it may be large; 16 MB of plain text is ten thousand pages,
# and parsing a web page takes about ten times its size.
MAXIMUM_BINARY_BYTES: Final = 256 * 2**20
MAXIMUM_TEXT_BYTES: Final = 16 * 2**20

# Sixteen bytes make an accidental collision among 10^12 files less than 10^-14 likely (birthday bound).
DIGEST_BYTES: Final = 16


@dataclass(frozen=True)
class Format:
    """A kind of file: its name in errors, its media type, its reader and the largest file that is read.

    ``container`` is what its first bytes show, if that is not text. If it holds other files, the reader takes
    ``Members``, too.
    """

    name: str
    media_type: str
    read: Callable[..., Content]
    maximum_bytes: int = MAXIMUM_TEXT_BYTES
    container: str = ""
    holds_files: bool = False


def _package(name: str, media_type: str, read: Callable[[bytes], Content]) -> Format:
    return Format(name, f"application/{media_type}", read, MAXIMUM_BINARY_BYTES, _ZIP)


def _archive(media_type: str, container: str = "") -> Format:
    return Format("archive", media_type, read_archive, MAXIMUM_BINARY_BYTES, container, holds_files=True)


_OFFICE: Final = "vnd.openxmlformats-officedocument"
_OPENDOCUMENT: Final = "vnd.oasis.opendocument"
_ZIP: Final = "zip, Office or OpenDocument"
_OLD_OFFICE: Final = "old Word or Office"
# fmt: off
_CODE_SUFFIXES: Final = (
    ".py", ".js", ".ts", ".jsx", ".tsx", ".java", ".c", ".h", ".cpp", ".hpp", ".cs", ".go", ".rs", ".rb", ".php",
    ".swift", ".kt", ".scala", ".sh", ".bash", ".ps1", ".sql", ".r", ".lua", ".pl", ".css", ".scss", ".xml",
    ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf",
)
# fmt: on
_TEXT: Final = Format("text", "text/plain", read_text)
_MARKDOWN: Final = Format("text", "text/markdown", read_markdown)
_HTML: Final = Format("HTML", "text/html", read_html)
_JSON_LINES: Final = Format("JSON", "application/x-ndjson", read_json_lines)
FORMATS: Final = {
    **dict.fromkeys((".txt", ".rst", ".tex", ".org", ".adoc", ".log", ".srt", ".vtt"), _TEXT),
    **dict.fromkeys(_CODE_SUFFIXES, Format("code", "text/plain", read_code)),
    ".md": _MARKDOWN,
    ".markdown": _MARKDOWN,
    ".html": _HTML,
    ".htm": _HTML,
    ".pdf": Format("PDF", "application/pdf", read_pdf, MAXIMUM_BINARY_BYTES, "PDF"),
    ".docx": _package("Word", f"{_OFFICE}.wordprocessingml.document", read_docx),
    ".epub": _package("EPUB", "epub+zip", read_epub),
    ".eml": Format("email", "message/rfc822", read_eml, MAXIMUM_MESSAGE_BYTES, holds_files=True),
    ".mbox": Format("mbox", "application/mbox", read_mbox, MAXIMUM_BINARY_BYTES, holds_files=True),
    ".zip": _archive("application/zip", _ZIP),
    ".tar": _archive("application/x-tar"),
    # Of .tar.gz, and of single compressed files, too.
    ".gz": _archive("application/gzip", "gzip"),
    ".tgz": _archive("application/gzip", "gzip"),
    ".bz2": _archive("application/x-bzip2"),
    ".tbz2": _archive("application/x-bzip2"),
    ".xz": _archive("application/x-xz"),
    ".txz": _archive("application/x-xz"),
    ".pptx": _package("PowerPoint", f"{_OFFICE}.presentationml.presentation", read_pptx),
    ".pptm": _package("PowerPoint", "vnd.ms-powerpoint.presentation.macroEnabled.12", read_pptx),
    ".csv": Format("table", "text/csv", read_csv),
    ".tsv": Format("table", "text/tab-separated-values", read_csv),
    ".ics": Format("calendar", "text/calendar", read_ics),
    ".vcf": Format("contacts", "text/vcard", read_vcf),
    ".json": Format("JSON", "application/json", read_json),
    ".jsonl": _JSON_LINES,
    ".ndjson": _JSON_LINES,
    ".ipynb": Format("notebook", "application/x-ipynb+json", read_notebook),
    ".xlsx": _package("Excel", f"{_OFFICE}.spreadsheetml.sheet", read_xlsx),
    ".xlsm": _package("Excel", "vnd.ms-excel.sheet.macroEnabled.12", read_xlsx),
    ".xls": Format("Excel", "application/vnd.ms-excel", read_xls, MAXIMUM_BINARY_BYTES, _OLD_OFFICE),
    ".rtf": Format("RTF", "application/rtf", read_rtf, 4 * MAXIMUM_TEXT_BYTES, "RTF"),
    ".odt": _package("OpenDocument", f"{_OPENDOCUMENT}.text", read_odt),
    ".odp": _package("OpenDocument", f"{_OPENDOCUMENT}.presentation", read_odp),
    ".ods": _package("OpenDocument", f"{_OPENDOCUMENT}.spreadsheet", read_ods),
}

# Documents of programs without a reader here, and the kind that these programs can save them as.
SAVED_AS: Final = {
    ".doc": ".docx", ".docm": ".docx", ".dot": ".docx", ".wps": ".docx", ".wpd": ".docx", ".pages": ".docx",
    ".ppt": ".pptx", ".pps": ".pptx", ".xlsb": ".xlsx", ".numbers": ".xlsx", ".sxw": ".odt", ".sxc": ".ods",
}  # fmt: skip

# Read if text in pictures is asked for.
_IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif")
IMAGE_FORMATS: Final = dict.fromkeys(_IMAGE_SUFFIXES, Format("image", "image/*", read_image, MAXIMUM_BINARY_BYTES))
_ALL_FORMATS: Final = FORMATS | IMAGE_FORMATS

# A list of some eighty suffixes would tell a reader less.
_READ_KINDS: Final = "PDF, Office, OpenDocument, EPUB, HTML, e-mail, text, tables, code and archives are"

# The kind of file that the first bytes show, whatever the file's name.
_MAGIC: Final = (
    (b"%PDF-", "PDF"),
    (b"PK\x03\x04", _ZIP),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _OLD_OFFICE),
    (b"{\\rtf", "RTF"),
    (b"\x89PNG", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"\x1f\x8b", "gzip"),
)
_HTML_START: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|html)[\s>]", re.IGNORECASE
)
# A Word, Excel or PowerPoint file that is protected with a password is a container of the old kind.
_ENCRYPTED: Final = "EncryptedPackage".encode("utf-16-le")

# A file that changed so shortly before it was read may change again without another time: file systems count time
# in steps of up to two seconds.
_SETTLED_NANOSECONDS: Final = 2 * 10**9

# What the kernel shows as files (processes, devices); /dev/shm holds real ones, and its other files are no files.
_SYSTEM_FOLDERS: Final = ("/proc", "/sys")


def is_of_the_system(path: str) -> bool:
    """Return whether a path without links is one of the kernel's, whose files only look like files."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in _SYSTEM_FOLDERS)


def is_settled(changed: int) -> bool:
    """Return whether a file that changed at a time (ns) will have another one when it changes again."""
    return 0 <= changed < time.time_ns() - _SETTLED_NANOSECONDS


def hash_file(path: StrPath) -> str:
    """Hash the bytes of a file, without parsing it: the hexadecimal BLAKE2b digest in ``content_hash``."""
    try:
        _check_regular(path)
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        with open(path, "rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
        return digest.hexdigest()
    except Unreadable as error:
        raise DocumentError(printable(path), str(error)) from None
    except (OSError, ValueError) as error:
        raise DocumentError(printable(path), _reason(error)) from None


class FileLoader(BaseLoader):
    """Loads one file as one LangChain ``Document`` with its whole text.

    The metadata: ``source`` (the path unless given), ``title``, ``content_hash`` (of the bytes), ``media_type``,
    ``language``, ``sections``, a list of ``{"start", "end", "page", "heading"}`` that divide the text in order,
    ``kinds``, a list of ``{"start", "end", "kind"}`` of the code, contents and repeated lines in it, and for a PDF
    ``pages_without_text``, the numbers of the pages that hold only pictures; for an archive, a message
    or JSON Lines ``left_out``, what could not be read in it.

    Args:
        path: The file.
        source: The document's name; by default the path.
        maximum_pages: Pages of the longest PDF that is read.
        password: What opens a PDF that is protected with a password.
        ocr: Whether text in pictures is read, as scanned pages are; it needs the extra ``ocr`` and Tesseract.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        source: str | None = None,
        maximum_pages: int = MAXIMUM_PAGES,
        password: str | None = None,
        ocr: bool = False,
    ) -> None:
        self.path = Path(path)
        self.source = printable(path) if source is None else source
        self.options = ReadingOptions(maximum_pages, password, ocr)

    def lazy_load(self) -> Iterator[Document]:
        """Yield the document, or raise ``DocumentError`` with the reason why the file cannot be read."""
        try:
            document = self._load()
        except Unreadable as error:
            raise DocumentError(self.source, str(error)) from None
        except OSError as error:
            raise DocumentError(self.source, _reason(error)) from None
        except MemoryError:
            raise
        except Exception as error:
            # The parsers fail in many ways on damaged files, and one such file must not stop the reading of a
            # folder.
            raise DocumentError(self.source, f"damaged file ({type(error).__name__}: {error})") from error
        yield document

    def _load(self) -> Document:
        size = _check_regular(self.path)
        suffix = self.path.suffix.lower()
        formats = _ALL_FORMATS if self.options.ocr else FORMATS
        if suffix not in formats:
            if suffix in SAVED_AS:
                raise Unreadable(f"files named {suffix} are not supported; save it as {SAVED_AS[suffix]} or PDF")
            hint = " without --ocr" if suffix in IMAGE_FORMATS else f"; {_READ_KINDS}"
            raise Unreadable(f"files named {suffix or 'without a suffix'} are not supported{hint}")
        form = formats[suffix]
        limit = form.maximum_bytes
        data = b""
        if size <= limit:
            with open(self.path, "rb") as file:
                data = file.read(limit + 1)
        if max(size, len(data)) > limit:
            raise Unreadable(f"too large: {size / 2**20:.0f} MiB, the limit is {limit // 2**20} MiB")
        members = Members(self.path.name, _read, formats, self.options)
        content = _read(self.path.name, data, members)
        text, structure, first_heading = assemble(content.blocks)
        if not any(character.isalnum() for character in text):
            scanned = form.name == "PDF" and not self.options.ocr
            raise Unreadable("no text in it (scanned images? --ocr reads them)" if scanned else "no text in it")
        title = squeeze(content.title)
        metadata: dict[str, Any] = {
            "source": self.source,
            "title": title if is_title(title) else first_heading or printable(self.path.stem),
            "content_hash": hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest(),
            "media_type": form.media_type,
            "language": detect_language(text),
            **structure,
        }
        if content.pages_without_text:
            metadata["pages_without_text"] = content.pages_without_text
        if left_out := [*content.left_out, *members.budget.left_out]:
            metadata["left_out"] = left_out
        return Document(page_content=text, metadata=metadata)


def _read(name: str, data: bytes, members: Members) -> Content:
    """Read the bytes of a file, or of one inside another file, whose name has a supported suffix."""
    suffix = PurePath(name).suffix.lower()
    form = _ALL_FORMATS[suffix]
    if len(data) > form.maximum_bytes:
        raise Unreadable(f"too large: the limit is {form.maximum_bytes // 2**20} MiB")
    if not data.strip():
        raise Unreadable("the file is empty")
    _check_kind(data, suffix, form)
    if form.holds_files:
        if members.depth >= MAXIMUM_DEPTH:
            raise Unreadable("in too many other files")
        return form.read(data, members)
    return read_pdf(data, members.options) if form.name == "PDF" else form.read(data)


def _check_regular(path: StrPath) -> int:
    """Refuse what cannot be read to its end (a folder, a pipe), and return the file's size."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        listable = os.access(path, os.R_OK | os.X_OK)
        raise Unreadable("a folder, not a file" if listable else "no permission to list the folder")
    if not stat.S_ISREG(status.st_mode) or is_of_the_system(os.path.realpath(path)):
        raise Unreadable("not a regular file")
    return status.st_size


def _check_kind(data: bytes, suffix: str, form: Format) -> None:
    """Refuse a file that is protected with a password, or whose content does not match its name."""
    kind = _sniff(data)
    if form.container in {_ZIP, _OLD_OFFICE} and kind == _OLD_OFFICE and _ENCRYPTED in data:
        raise Unreadable("protected with a password")
    if form.name == "image":
        # Its reader knows more kinds than these.
        return
    if form.container == "PDF":
        # PDFium, like other readers, accepts up to a kilobyte of something else before it.
        fits = b"%PDF-" in data[:1024]
    else:
        # Program code may begin as a web page does.
        fits = kind in ({form.container} if form.container else {"", form.name, "HTML" * (form.name == "code")})
    if not fits:
        raise Unreadable(f"named {suffix}, but its content is {kind or f'not {form.name}'}")


def _sniff(data: bytes) -> str:
    """The kind of file that the first bytes show, or "" if they do not show any."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    return "HTML" if _HTML_START.match(data) else ""


def printable(path: StrPath) -> str:
    """A path as text that every database accepts; a file name in an old encoding is not valid Unicode."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
    return name


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return getattr(error, "strerror", None) or str(error)
