"""Which reader reads a file, and whether its first bytes are what its name says."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lince_rag.documents.readers.blocks import Content, Unreadable
from lince_rag.documents.readers.html import read_html
from lince_rag.documents.readers.pdf import read_pdf
from lince_rag.documents.readers.text import read_markdown, read_text
from lince_rag.documents.readers.word import read_docx

# A PDF or a Word file is mostly pictures, so it may be large; 16 MB of plain text is ten thousand pages, and
# parsing a web page takes some ten times its size.
MAXIMUM_BINARY_BYTES: Final = 256 * 2**20
MAXIMUM_TEXT_BYTES: Final = 16 * 2**20


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: What to call it in an error.
        media_type: The media type, for metadata.
        read: Its reader.
        maximum_bytes: The largest file that is read.
    """

    name: str
    media_type: str
    read: Callable[[bytes], Content]
    maximum_bytes: int = MAXIMUM_TEXT_BYTES


_TEXT: Final = Format("text", "text/plain", read_text)
_MARKDOWN: Final = Format("text", "text/markdown", read_markdown)
_HTML: Final = Format("HTML", "text/html", read_html)
_PDF: Final = Format("PDF", "application/pdf", read_pdf, MAXIMUM_BINARY_BYTES)
_WORD: Final = Format(
    "Word",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    read_docx,
    MAXIMUM_BINARY_BYTES,
)
FORMATS: Final = {
    ".txt": _TEXT,
    ".md": _MARKDOWN,
    ".markdown": _MARKDOWN,
    ".html": _HTML,
    ".htm": _HTML,
    ".pdf": _PDF,
    ".docx": _WORD,
}

# What the first bytes of a file give it away as, whatever its name.
_MAGIC: Final = (
    (b"%PDF-", "PDF"),
    (b"PK\x03\x04", "zip or Word"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Word or Office"),
    (b"{\\rtf", "RTF"),
    (b"\x89PNG", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"\x1f\x8b", "gzip"),
)
_HTML_START: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|html)[\s>]", re.IGNORECASE
)
_ENCRYPTED_WORD: Final = "EncryptedPackage".encode("utf-16-le")


def _sniff(data: bytes) -> str:
    """The kind of file that the first bytes show, or "" where they show none."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    return "HTML" if _HTML_START.match(data) else ""


def check_kind(data: bytes, suffix: str, form: Format) -> None:
    """Refuse a file whose content is of another kind than its name says.

    Args:
        data: The file.
        suffix: The end of its name.
        form: The format that the suffix stands for.

    Raises:
        Unreadable: The content is something else, or protected with a password.
    """
    kind = _sniff(data)
    if form.name == "Word" and _ENCRYPTED_WORD in data[: 2**20]:
        raise Unreadable("protected with a password")
    # PDFium, like other readers, accepts up to a kilobyte of something else before a PDF.
    expected = kind == "zip or Word" if form.name == "Word" else b"%PDF-" in data[:1024]
    if form.name in {"Word", "PDF"} and not expected:
        raise Unreadable(f"named {suffix}, but its content is {kind or f'not {form.name}'}")
    if form.name not in {"Word", "PDF"} and kind not in {"", form.name}:
        raise Unreadable(f"named {suffix}, but its content is {kind}")
