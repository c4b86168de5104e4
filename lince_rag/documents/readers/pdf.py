"""PDF: pages, lines with their places, characters."""

import ctypes
import itertools
import logging
import re
import statistics
import threading
import unicodedata
from collections.abc import Iterator
from typing import Any, Final

from lince_rag.documents.readers.blocks import Block, Content, Unreadable, clean, squeeze
from lince_rag.documents.readers.paragraphs import Line, Paragraph, join_lines

logger = logging.getLogger(__name__)

# PDFium keeps global state and is not thread-safe (its own documentation): one file at a time in a process.
_PDFIUM_LOCK: Final = threading.Lock()


def read_pdf(data: bytes) -> Content:
    """Read a PDF page by page.

    PDFium gives the text in the order in which the file holds it: in what typesetting and office programs write,
    columns one after the other.

    Args:
        data: The file.

    Returns:
        Its paragraphs, each with its page, and the title in its metadata. A paragraph that goes on over a
        page break is two blocks, with one space between; a word divided there stands on the earlier page.
    """
    import pypdfium2

    with _PDFIUM_LOCK:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            password = getattr(error, "err_code", None) == pypdfium2.raw.FPDF_ERR_PASSWORD
            raise Unreadable("protected with a password" if password else "damaged or truncated PDF") from None
        try:
            title = squeeze(document.get_metadata_dict().get("Title", ""))
            pages = [_page_paragraphs(document, number) for number in range(len(document))]
        except pypdfium2.PdfiumError as error:
            raise Unreadable(f"damaged PDF ({error})") from None
        finally:
            document.close()
    return Content(list(_blocks(pages)), title)


def _blocks(pages: list[list[Paragraph]]) -> Iterator[Block]:
    """Join what goes on over a page break, and number the pages."""
    for earlier, later in itertools.pairwise(page for page in pages if page):
        if earlier[-1].continues(later[0].text):
            later[0].separator = " "
            if earlier[-1].hyphen or earlier[-1].text.endswith("-"):
                word, _, later[0].text = later[0].text.partition(" ")
                earlier[-1].add(word)
    for number, paragraphs in enumerate(pages, start=1):
        for paragraph in paragraphs:
            yield Block(_restore_characters(paragraph.finished()), page=number, separator=paragraph.separator)


def _page_paragraphs(document: Any, number: int) -> list[Paragraph]:
    from pypdfium2 import raw

    page = document[number]
    textpage = page.get_textpage()
    try:
        paragraphs = join_lines(_page_lines(textpage))
        if not paragraphs and any(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE])):
            logger.warning("Page %d has pictures and no text: it may be a scanned page.", number + 1)
        return paragraphs
    finally:
        textpage.close()
        page.close()


def _page_lines(textpage: Any) -> list[Line]:
    """Cut a page into lines with their places. PDFium ends a line with CR LF, or with U+0002 for a hyphen."""
    from pypdfium2 import raw

    lines: list[Line] = []
    start, letters = 0, list[str]()
    count = textpage.count_chars()
    for index in range(count + 1):
        code = raw.FPDFText_GetUnicode(textpage, index) if index < count else 10
        hyphen = code in (2, 0xFFFE) and raw.FPDFText_IsHyphen(textpage, index) == 1
        if not hyphen and code != 10:
            letters.append(chr(code) if code < 0x110000 else "\ufffd")
            continue
        if text := squeeze("".join(letters)):
            lines.append(_place(textpage, start, start + len(letters), text, hyphen))
        start, letters = index + 1, []
    return lines


def _place(textpage: Any, start: int, end: int, text: str, hyphen: bool) -> Line:
    from pypdfium2 import raw

    x, y, box = ctypes.c_double(), ctypes.c_double(), raw.FS_RECTF()
    places = []
    for index in sorted({start, (start + end) // 2, *range(max(start, end - 4), end)}):
        generated = raw.FPDFText_IsGenerated(textpage, index)
        if not generated and raw.FPDFText_GetLooseCharBox(textpage, index, box):
            raw.FPDFText_GetCharOrigin(textpage, index, x, y)
            places.append((box.left, box.right, y.value, box.top - box.bottom))
    if not places:
        return Line(text, 0.0, 0.0, 0.0, 0.0, hyphen)
    left, right, baselines, sizes = zip(*places, strict=True)
    return Line(text, min(left), max(right), statistics.median(baselines), statistics.median(sizes), hyphen)


# Typeset ligatures and positional Arabic and Hebrew forms are how a text looks. NFKC is applied to them
# alone: on everything it would also turn m² into m2, 1.º into 1.o and ½ into 1⁄2, which have a meaning.
_PRESENTATION: Final = re.compile("[\ufb00-\ufdff\ufe70-\ufefc]")

# Old LaTeX fonts have no accented letters: the PDF holds the accent and then the letter ("informaci´on").
_DETACHED: Final = re.compile("([´¨˜ˆ¸]) ?([A-Za-zı])")
_ACCENTS: Final = {"´": "\u0301", "¨": "\u0308", "˜": "\u0303", "ˆ": "\u0302", "¸": "\u0327"}


def _restore_characters(text: str) -> str:
    text = _PRESENTATION.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return clean(_DETACHED.sub(lambda match: match[2].replace("ı", "i") + _ACCENTS[match[1]], text))
