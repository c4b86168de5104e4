"""PDF: pages, lines with their positions, and the paragraphs that these positions indicate."""

import ctypes
import itertools
import re
import statistics
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from lince_rag.documents.readers.blocks import DEFAULT_OPTIONS, Block, Content, ReadingOptions, Unreadable
from lince_rag.documents.readers.ocr import DOTS_PER_INCH, POINTS_PER_INCH, recognize
from lince_rag.text.words import clean, squeeze

# A longer "paragraph" (a page of ten thousand lines) is cut, because joining a line copies what was joined before.
_LONGEST_PARAGRAPH: Final = 20_000

# PDFium keeps global state and is not thread-safe (its documentation): one file at a time per process.
_PDFIUM_LOCK: Final = threading.Lock()

_SENTENCE_END: Final = (".", "!", "?", "…", ":", ";", '."', ".”", ".»", ".)")
_PAGE_NUMBER: Final = re.compile(r"(?<!\d)\d{1,4}(?!\d)", re.ASCII)
_BULLET: Final = re.compile(r"[•▪‣◦●■–—*-] ")
_NUMBERED: Final = re.compile(r"(\d{1,3}|[a-zA-Z])[.)] ")

# Ligatures and positional Arabic and Hebrew forms are only the appearance of a text. NFKC is applied to them
# alone: elsewhere it would also turn m² into m2, 1.º into 1.o and ½ into 1⁄2, which changes the meaning.
_PRESENTATION: Final = re.compile("[\ufb00-\ufdff\ufe70-\ufefc]")

# Old LaTeX fonts have no accented letters: the PDF has the accent and then the letter ("informaci´on").
_DETACHED: Final = re.compile("([´¨˜ˆ¸]) ?([A-Za-zı])")
_ACCENTS: Final = {"´": "\u0301", "¨": "\u0308", "˜": "\u0303", "ˆ": "\u0302", "¸": "\u0327"}


class Line(NamedTuple):
    """A line of a page, in points from the lower left corner."""

    text: str
    left: float
    right: float
    baseline: float
    size: float
    hyphen: bool


@dataclass
class Paragraph:
    """A paragraph as far as it has been read."""

    # Its lines, joined.
    text: str
    # Whether PDFium removed a hyphen from the end of the last line.
    hyphen: bool = False
    # What stands between the previous paragraph and this one.
    separator: str = "\n\n"

    def add(self, text: str, hyphen: bool = False) -> None:
        """Join another line, and a word that a hyphen divided; "Austria-" + "Hungría" keeps its hyphen."""
        if self.hyphen or re.search(r"[^\W\d_]-$", self.text[-2:]):
            mark = "" if text[:1].islower() else "-"
            self.text = self.text.removesuffix("-") + mark + text
        else:
            self.text += f" {text}"
        self.hyphen = hyphen

    def continues(self, text: str) -> bool:
        """Return whether a text in another column or on another page continues this paragraph."""
        return text[:1].islower() and not self.text.endswith(_SENTENCE_END)

    def finished(self) -> str:
        """The text; a hyphen at the end of the paragraph is put back."""
        return self.text + "-" * self.hyphen


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
            wrong = "protected with another password" if options.password else "protected with a password"
            raise Unreadable(wrong if password else "damaged or truncated PDF") from None
        try:
            if len(document) > options.maximum_pages:
                raise Unreadable(f"{len(document)} pages, the limit is {options.maximum_pages}")
            title = squeeze(document.get_metadata_dict().get("Title", ""))
            read = [_read_page(document, number) for number in range(len(document))]
            scanned = [number for number, (page, pictures) in enumerate(read) if pictures and not page]
            recognized = {number: _recognize_page(document, number) for number in scanned if options.ocr}
        except pypdfium2.PdfiumError as error:
            raise Unreadable(f"damaged PDF ({error})") from None
        finally:
            document.close()
    lines = [page for page, _ in read]
    repeated = _repeated_lines(lines)
    pages = [
        _join_lines([line for line in page if line not in out]) for page, out in zip(lines, repeated, strict=True)
    ]
    for number, paragraphs in recognized.items():
        pages[number] = paragraphs
    without_text = [number + 1 for number in scanned if not recognized.get(number)]
    return Content([*_blocks(pages), *_repeated_blocks(lines, repeated)], title, without_text)


def _blocks(pages: list[list[Paragraph]]) -> Iterator[Block]:
    """Join what continues over a page break, and number the pages."""
    for earlier, later in itertools.pairwise(page for page in pages if page):
        if earlier[-1].continues(later[0].text):
            later[0].separator = " "
            if earlier[-1].hyphen or earlier[-1].text.endswith("-"):
                word, _, later[0].text = later[0].text.partition(" ")
                earlier[-1].add(word)
    for number, paragraphs in enumerate(pages, start=1):
        for paragraph in paragraphs:
            yield Block(_restore_characters(paragraph.finished()), page=number, separator=paragraph.separator)


def _recognize_page(document: Any, number: int) -> list[Paragraph]:
    """The paragraphs in the picture of a page."""
    page = document[number]
    try:
        image = page.render(scale=DOTS_PER_INCH / POINTS_PER_INCH).to_pil()
    finally:
        page.close()
    return [Paragraph(text) for text in recognize(image)]


def _read_page(document: Any, number: int) -> tuple[list[Line], bool]:
    """The lines of a page, and whether it has pictures, if it has no text."""
    from pypdfium2 import raw

    page = document[number]
    textpage = page.get_textpage()
    try:
        lines = _page_lines(textpage)
        return lines, not lines and any(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE]))
    finally:
        textpage.close()
        page.close()


def _repeated_lines(pages: list[list[Line]]) -> list[set[Line]]:
    """Find the headers and footers of each page that an earlier page also has, at the same height.

    They are lines among the first two or the last two of their page, and equal on three pages or more, apart from
    the page's number.
    """
    edges = [[(line, _edge_keys(line, number)) for line in _edge_lines(page)] for number, page in enumerate(pages)]
    counts = Counter(key for page in edges for key in {key for _, keys in page for key in keys})
    seen: set[tuple[str, int]] = set()
    repeated = []
    for page in edges:
        repeated.append({line for line, keys in page if any(counts[key] > 2 and key in seen for key in keys)})
        seen.update(key for _, keys in page for key in keys)
    return repeated


def _edge_lines(lines: list[Line]) -> list[Line]:
    """The lines at the two highest and the two lowest places of a page."""
    rows = sorted({round(line.baseline) for line in lines})
    edges = {*rows[:2], *rows[-2:]}
    return [line for line in lines if round(line.baseline) in edges]


def _edge_keys(line: Line, page: int) -> set[tuple[str, int]]:
    """The line's text, and what it is if its first or its last number counts pages, each with its height."""
    numbers = list(_PAGE_NUMBER.finditer(line.text))
    texts = {line.text}
    for match in {numbers[0], numbers[-1]} if numbers else set():
        first = int(match[0]) - page
        texts.add(f"{line.text[: match.start()]}\0{first}\0{line.text[match.end() :]}")
    return {(text, round(line.baseline)) for text in texts}


def _repeated_blocks(pages: list[list[Line]], repeated: list[set[Line]]) -> Iterator[Block]:
    separator = "\n\n"
    for number, (page, out) in enumerate(zip(pages, repeated, strict=True), start=1):
        for line in page:
            if line in out:
                text = _restore_characters(line.text + "-" * line.hyphen)
                yield Block(text, page=number, separator=separator, kind="repeated")
                separator = "\n"


def _page_lines(textpage: Any) -> list[Line]:
    """Cut a page into lines with their positions. PDFium ends a line with CR LF, or with U+0002 for a hyphen."""
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


def _restore_characters(text: str) -> str:
    text = _PRESENTATION.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return clean(_DETACHED.sub(lambda match: match[2].replace("ı", "i") + _ACCENTS[match[1]], text))


def _join_lines(lines: list[Line]) -> list[Paragraph]:
    """Join the lines of a page, in reading order, into paragraphs."""
    pairs = list(itertools.pairwise(lines))
    gaps = [above.baseline - line.baseline for above, line in pairs if _is_below(above, line)]
    pitch = statistics.median_low(gaps) if gaps else 0.0
    paragraphs: list[Paragraph] = []
    for index, line in enumerate(lines):
        # The right edge of the lines nearby; in a whole column, a wide heading over two columns would count too.
        edge = max(near.right for near in lines[max(index - 3, 0) : index + 4] if abs(near.left - line.left) < 30)
        fits = paragraphs and len(paragraphs[-1].text) < _LONGEST_PARAGRAPH
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
