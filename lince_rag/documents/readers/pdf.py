"""PDF: pages, lines with their positions, and the paragraphs that these positions indicate."""

import itertools
import re
import statistics
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from lince_rag.documents.readers.blocks import DEFAULT_OPTIONS, Block, Content, ReadingOptions, Unreadable
from lince_rag.documents.readers.ocr import DOTS_PER_INCH, POINTS_PER_INCH, recognize
from lince_rag.documents.readers.pdf_fields import fill_in, page_fields
from lince_rag.documents.readers.pdf_lines import (
    CELL_GAP,
    Line,
    Paragraph,
    Rules,
    joined,
    line_of,
    page_lines,
    page_rules,
)
from lince_rag.documents.readers.pdf_tables import mark_tables, may_have_tables
from lince_rag.text.words import clean, squeeze

# A longer "paragraph" (a page of ten thousand lines) is cut, because joining a line copies what was joined before.
_LONGEST_PARAGRAPH: Final = 20_000

# PDFium keeps global state and is not thread-safe (its documentation): one file at a time per process.
_PDFIUM_LOCK: Final = threading.Lock()

_SENTENCE_END: Final = (".", "!", "?", "…", ":", ";", '."', ".”", ".»", ".)")
_PAGE_NUMBER: Final = re.compile(r"(?<!\d)\d{1,4}(?!\d)", re.ASCII)
# Lines that are the number of their page.
_NAMED_PAGE: Final = re.compile(
    r"(?:p[áa]g(?:ina|\.)?|page|p\.|hoja|folha|fl\.)\s*\d{1,4}(?:\s*(?:de|of|/)\s*\d{1,4})?|[-–—]\s*\d{1,4}\s*[-–—]",
    re.IGNORECASE | re.ASCII,
)
_NUMBER_OF_PAGES: Final = re.compile(r"(\d{1,4})\s*(?:de|of|/)\s*(\d{1,4})", re.IGNORECASE | re.ASCII)
# What stands before the number of a page that a running head ends with.
_BEFORE_NUMBER: Final = re.compile(r"(?:p[áa]g(?:ina|\.)?|page|hoja|folha|fl\.|[-–—|·/])\s*$", re.IGNORECASE)
_ROMAN: Final = re.compile(r"[ivxl]{1,6}")
_BULLET: Final = re.compile(r"[•▪‣◦●■–—*-] ")
_NUMBERED: Final = re.compile(r"(\d{1,3}|[a-zA-Z])[.)] ")

# Ligatures and positional Arabic and Hebrew forms are only the appearance of a text. NFKC is applied to them
# alone: elsewhere it would also turn m² into m2, 1.º into 1.o and ½ into 1⁄2, which changes the meaning.
_PRESENTATION: Final = re.compile("[\ufb00-\ufdff\ufe70-\ufefc]")

# Old LaTeX fonts have no accented letters: the PDF has the accent and then the letter ("informaci´on").
_DETACHED: Final = re.compile("([´¨˜ˆ¸]) ?([A-Za-zı])")
_ACCENTS: Final = {"´": "\u0301", "¨": "\u0308", "˜": "\u0303", "ˆ": "\u0302", "¸": "\u0327"}


class _Page(NamedTuple):
    """What is read of a page."""

    lines: list[Line]
    # None if there are no tables.
    rules: Rules | None
    # Whether there are pictures and no text.
    is_picture: bool


def read_pdf(data: bytes, options: ReadingOptions = DEFAULT_OPTIONS) -> Content:
    """Read the paragraphs of a PDF, each with its page, and the title in its metadata.

    PDFium gives the text in the order in which the file holds it; typesetting and office programs write columns
    one after the other. A paragraph that continues over a page break is two blocks with one space between them; a
    word divided there is put on the earlier page. Headers and footers stand at the end of the text, so that they
    interrupt no paragraph, except for the first of each, which may be the only place that names the author.
    """
    import pypdfium2

    with _PDFIUM_LOCK:
        try:
            document = pypdfium2.PdfDocument(data, password=options.password)
        except pypdfium2.PdfiumError as error:
            password = getattr(error, "err_code", None) == pypdfium2.raw.FPDF_ERR_PASSWORD
            needed = "protected with a password (give it with --password)"
            wrong = "protected with another password" if options.password else needed
            raise Unreadable(wrong if password else "damaged or truncated PDF") from None
        try:
            document.init_forms()
            if len(document) > options.maximum_pages:
                raise Unreadable(f"{len(document)} pages, the limit is {options.maximum_pages}")
            title = squeeze(document.get_metadata_dict().get("Title", ""))
            read = [_read_page(document, number) for number in range(len(document))]
            scanned = [number for number, page in enumerate(read) if page.is_picture]
            recognized = {number: _recognize_page(document, number) for number in scanned if options.ocr}
        except pypdfium2.PdfiumError as error:
            raise Unreadable(f"damaged PDF ({error})") from None
        finally:
            document.close()
    lines = [page.lines for page in read]
    repeated = _repeated_lines(lines)
    pages = [
        _join_page(page, [line for at, line in enumerate(page.lines) if at not in out])
        for page, out in zip(read, repeated, strict=True)
    ]
    for number, paragraphs in recognized.items():
        pages[number] = paragraphs
    without_text = [number + 1 for number in scanned if not recognized.get(number)]
    return Content([*_blocks(pages), *_repeated_blocks(lines, repeated)], title, without_text)


def _blocks(pages: list[list[Paragraph]]) -> Iterator[Block]:
    """Join what continues over a page break, and number the pages."""
    for earlier, later in itertools.pairwise(page for page in pages if page):
        if earlier[-1].row and later[0].row:
            later[0].separator = "\n"
        elif _continues(earlier[-1], later[0]):
            later[0].separator = " "
            if earlier[-1].hyphen or earlier[-1].text.endswith("-"):
                word, _, later[0].text = later[0].text.partition(" ")
                earlier[-1].add(word)
    for number, paragraphs in enumerate(pages, start=1):
        for paragraph in paragraphs:
            yield Block(_restore_characters(paragraph.finished()), page=number, separator=paragraph.separator)


def _continues(earlier: Paragraph, later: Paragraph) -> bool:
    """Return whether the text of another page continues a paragraph."""
    lower = later.text[:1].islower() and not earlier.text.endswith(_SENTENCE_END)
    return lower and not earlier.row and not later.row


def _recognize_page(document: Any, number: int) -> list[Paragraph]:
    """The paragraphs in the picture of a page."""
    page = document[number]
    try:
        image = page.render(scale=DOTS_PER_INCH / POINTS_PER_INCH).to_pil()
    finally:
        page.close()
    return [Paragraph(text) for text in recognize(image)]


def _read_page(document: Any, number: int) -> _Page:
    from pypdfium2 import raw

    page = document[number]
    textpage = page.get_textpage()
    try:
        lines = fill_in(page_lines(textpage), page_fields(document, page))
        if not lines:
            return _Page([], None, any(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE])))
        edges = set(_edge_lines(lines))
        lines = [
            part
            for at, line in enumerate(lines)
            for part in (_split_number(line, number) if at in edges else [line])
        ]
        if may_have_tables(lines):
            return _Page(lines, page_rules(page), False)
        # The words of a long book would take much memory.
        return _Page([line._replace(words=()) for line in lines], None, False)
    finally:
        textpage.close()
        page.close()


def _join_page(page: _Page, lines: list[Line]) -> list[Paragraph]:
    """Join the lines of a page, in reading order, into paragraphs and rows of tables."""
    gaps = [above.baseline - line.baseline for above, line in itertools.pairwise(lines) if _is_below(above, line)]
    pitch = statistics.median_low(gaps) if gaps else 0.0
    return _join_lines(lines if page.rules is None else mark_tables(lines, page.rules), pitch)


def _repeated_lines(pages: list[list[Line]]) -> list[set[int]]:
    """Find the headers and footers of each page that an earlier page also has, at the same height.

    They are lines among the first two or the last two of their page, and equal on three pages or more (on both
    pages, if there are two), apart from the page's number. A line that is nothing but this number is always one.
    """
    few = len(pages) == 2 and not _is_copy(*pages)
    edges = [
        [(at, _edge_keys(page[at], number, few=few)) for at in _edge_lines(page)]
        for number, page in enumerate(pages)
    ]
    counts = Counter(key for page in edges for key in {key for _, keys in page for key in keys})
    seen: set[tuple[str, int]] = set()
    repeated = []
    for number, (page, places) in enumerate(zip(pages, edges, strict=True)):
        out = set()
        for at, keys in places:
            text = page[at].text
            is_number = text.isdecimal() or _NUMBER_OF_PAGES.fullmatch(text)
            known = any(counts[key] > (1 if few else 2) and (key in seen or is_number) for key in keys)
            if known or _is_page_number(text, number, len(pages)):
                out.add(at)
        repeated.append(out)
        seen.update(key for _, keys in places for key in keys)
    return repeated


def _is_copy(page: list[Line], other: list[Line]) -> bool:
    """Return whether most of a page is on the other one, too, as on an original and its copy."""
    known = {line.text for line in page}
    return 2 * sum(line.text in known for line in other) > len(other)


def _is_page_number(text: str, page: int, pages: int) -> bool:
    """Return whether a line at the edge of a page is its number: "Página 1 de 2", "1 / 2", "- 1 -"."""
    if match := _NUMBER_OF_PAGES.fullmatch(text):
        return int(match[1]) == page + 1 or int(match[2]) == pages
    return bool(_NAMED_PAGE.fullmatch(text))


def _split_number(line: Line, page: int) -> list[Line]:
    """Take the number of the page off a line that has other text at some distance."""
    pairs = enumerate(itertools.pairwise(line.words), start=1)
    gaps = [at for at, (one, two) in pairs if two.left - one.right > CELL_GAP * one.size]
    for at in {gaps[0], gaps[-1]} if gaps else set():
        parts = line.words[:at], line.words[at:]
        texts = [joined(part) for part in parts]
        if any(_NAMED_PAGE.fullmatch(text) or _NUMBER_OF_PAGES.fullmatch(text) for text in texts):
            first, second = (line_of(part, text, False) for part, text in zip(parts, texts, strict=True))
            return [first, second._replace(hyphen=line.hyphen)]
        if any(_ROMAN.fullmatch(text) or (text.isdecimal() and int(text) <= page + 1) for text in texts):
            # The title of a chapter with the number of the page is no row of a table.
            return [line._replace(words=())]
    return [line]


def _edge_lines(lines: list[Line]) -> list[int]:
    """The lines at the two highest and the two lowest places of a page."""
    rows = sorted({round(line.baseline) for line in lines})
    edges = {*rows[:2], *rows[-2:]}
    return [at for at, line in enumerate(lines) if round(line.baseline) in edges]


def _edge_keys(line: Line, page: int, *, few: bool) -> set[tuple[str, int]]:
    """The line's text, and what it is if its first or its last number counts pages, each with its height.

    On a few pages, "Annex 1" and "Annex 2" may be titles; a number of a page has a mark or a name there.
    """
    numbers = list(_PAGE_NUMBER.finditer(line.text))
    texts = {line.text}
    for match in {numbers[0], numbers[-1]} if numbers else set():
        before, after = line.text[: match.start()], line.text[match.end() :]
        if not few or _BEFORE_NUMBER.search(before) or (not before and not after.strip(" -–—|·/").isdecimal()):
            texts.add(f"{before}\0{int(match[0]) - page}\0{after}")
    return {(text, round(line.baseline)) for text in texts}


def _repeated_blocks(pages: list[list[Line]], repeated: list[set[int]]) -> Iterator[Block]:
    separator = "\n\n"
    for number, (page, out) in enumerate(zip(pages, repeated, strict=True), start=1):
        for at in sorted(out):
            text = _restore_characters(page[at].text + "-" * page[at].hyphen)
            yield Block(text, page=number, separator=separator, kind="repeated")
            separator = "\n"


def _restore_characters(text: str) -> str:
    text = _PRESENTATION.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return clean(_DETACHED.sub(lambda match: match[2].replace("ı", "i") + _ACCENTS[match[1]], text))


def _join_lines(lines: list[Line], pitch: float) -> list[Paragraph]:
    paragraphs: list[Paragraph] = []
    for index, line in enumerate(lines):
        if line.row:
            paragraphs.append(Paragraph(line.text, False, "\n" if line.row > 1 else "\n\n", row=True))
            continue
        # The right edge of the lines nearby; in a whole column, a wide heading over two columns would count too.
        edge = max(near.right for near in lines[max(index - 3, 0) : index + 4] if abs(near.left - line.left) < 30)
        fits = paragraphs and not paragraphs[-1].row and len(paragraphs[-1].text) < _LONGEST_PARAGRAPH
        if fits and not _starts_paragraph(lines[index - 1], line, pitch, edge):
            paragraphs[-1].add(line.text, line.hyphen)
        else:
            listed = paragraphs and _BULLET.match(line.text) and _BULLET.match(paragraphs[-1].text)
            paragraphs.append(Paragraph(line.text, line.hyphen, "\n" if listed else "\n\n"))
    return paragraphs


def _is_below(above: Line, line: Line) -> bool:
    """Return whether a line is under another in the same column, in letters of about the same size."""
    drop = above.baseline - line.baseline
    same_size = abs(above.size - line.size) <= 0.12 * above.size
    overlap = above.left < line.right and line.left < above.right
    return same_size and overlap and 0.3 * line.size < drop < 4 * line.size


def _starts_paragraph(above: Line, line: Line, pitch: float, edge: float) -> bool:
    """Return whether a line begins a paragraph.

    The numbers are typographic: an extra gap is at least a third of a line, an indent about the height of a
    letter.
    """
    ended = above.text.endswith(_SENTENCE_END)
    continues = line.text[:1].islower() and not ended
    if above.hyphen and line.text[:1].islower():
        return False
    if not _is_below(above, line):
        return not continues or abs(above.size - line.size) > 0.12 * above.size
    if _BULLET.match(line.text) or (ended and _NUMBERED.match(line.text)):
        return True
    if above.baseline - line.baseline > 1.3 * pitch or (ended and line.left - above.left > 0.7 * line.size):
        return True
    # If a line had room for the next word, the author ended it on purpose.
    letter = (line.right - line.left) / max(len(line.text), 1)
    word = letter * (len(line.text.partition(" ")[0]) + 2)
    return not continues and above.right + word < edge
