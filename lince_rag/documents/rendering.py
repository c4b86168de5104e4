"""The picture of a page of a PDF with a passage boxed, made in a process of its own: ``python -m`` this module.

A PDF from anywhere may crash or exhaust what draws it. The process reads one request (JSON) from standard input,
writes one line of JSON and the PNG to standard output, and ends.
"""

import ctypes
import importlib
import json
import os
import sys
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any, Final, NamedTuple

from lince_rag.text.language import fold

# What drawing one page may take. A page of a scanned A3 plan takes about 150 MiB and a second.
MEMORY_BYTES: Final = 768 * 2**20
PROCESSOR_SECONDS: Final = 10

# A page of text is legible at this width; posters are reduced further.
WIDTH_PIXELS: Final = 1_100
LONGEST_PIXELS: Final = 1_800

# Characters of a page that are compared with a passage.
PAGE_CHARACTERS: Final = 100_000

# Where the passage is not on the page as a whole, because it continues on another, parts of so many letters are
# boxed: shorter ones are also found by chance.
PART_LETTERS: Final = 12

MOST_BOXES: Final = 200

# The colour that the passage is tinted with, and that of its frame.
TINT: Final = (255, 236, 130)
FRAME: Final = (176, 96, 0)


class Box(NamedTuple):
    """A rectangle of a picture, in pixels from its upper left corner."""

    left: int
    top: int
    right: int
    bottom: int


def find_spans(page: str, quote: str, before: str = "", after: str = "") -> list[tuple[int, int]]:
    """Return the spans of a page's text that hold a passage, by their letters and digits only.

    The text of the index has other spaces, hyphens and accents than the characters of the page.

    Args:
        page: The characters of the page.
        quote: The passage; if it continues on another page, only a part of it is on this one.
        before: The text before the passage, which tells which of several equal ones is meant.
        after: The text after it.
    """
    letters, places = _letters(page)
    wanted, earlier, later = _letters(quote)[0], _letters(before)[0], _letters(after)[0]
    if not wanted:
        return []
    for lead, whole in ((len(earlier), earlier + wanted), (0, wanted + later), (0, wanted)):
        found = letters.find(whole)
        if found >= 0:
            parts = [(found + lead, len(wanted))]
            break
    else:
        blocks = SequenceMatcher(None, letters, wanted, autojunk=False).get_matching_blocks()
        long = [each for each in blocks if each.size >= PART_LETTERS]
        is_most = sum(each.size for each in long) > len(wanted) / 2
        # What a page break divides is the beginning or the end of the passage; the rest is other text.
        parts = [(a, size) for a, b, size in long if is_most or b == 0 or b + size == len(wanted)]
    return [(places[start], places[start + size - 1] + 1) for start, size in parts]


def _letters(text: str) -> tuple[str, list[int]]:
    """Return the letters and digits of a text without accents and in small letters, and where each stands."""
    letters, places = list[str](), list[int]()
    for place, character in enumerate(text):
        # Old fonts have a dotless i below a detached accent.
        for letter in fold(character).casefold().replace("ı", "i"):
            if letter.isalnum():
                letters.append(letter)
                places.append(place)
    return "".join(letters), places


def render(request: dict[str, Any]) -> Iterator[bytes]:
    """Yield the line of JSON, and the picture unless there is an error.

    Args:
        request: ``path``, ``page`` (from 1), ``quote``, ``before`` and ``after``.
    """
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(request["path"])
        if not 1 <= request["page"] <= len(document):
            yield _line({"error": "no_page", "pages": len(document)})
            return
        page = document[request["page"] - 1]
        width, height = page.get_size()
        scale = min(WIDTH_PIXELS / max(width, 1), LONGEST_PIXELS / max(width, height, 1))
        image = page.render(scale=scale).to_pil().convert("RGB")
        boxes = _boxes(page, image.size, request) if request["quote"] else []
    except pypdfium2.PdfiumError:
        yield _line({"error": "no_picture"})
        return
    _draw(image, boxes)
    yield _line({"pages": len(document), "boxes": len(boxes)})
    yield _png(image)


def _line(said: dict[str, Any]) -> bytes:
    return json.dumps(said).encode() + b"\n"


def _png(image: Any) -> bytes:
    import io

    target = io.BytesIO()
    image.save(target, "PNG", compress_level=6)
    return target.getvalue()


def _boxes(page: Any, size: tuple[int, int], request: dict[str, Any]) -> list[Box]:
    """Return where a passage stands on the picture of a page, a box for each line."""
    from pypdfium2 import raw

    textpage = page.get_textpage()
    codes = (
        raw.FPDFText_GetUnicode(textpage, index) for index in range(min(textpage.count_chars(), PAGE_CHARACTERS))
    )
    text = "".join(chr(code) if code < 0x110000 else " " for code in codes)
    boxes: list[Box] = []
    for start, end in find_spans(text, request["quote"], request["before"], request["after"]):
        for number in range(min(textpage.count_rects(start, end - start), MOST_BOXES)):
            left, bottom, right, top = textpage.get_rect(number)
            corners = [_pixel(page, size, *corner) for corner in ((left, top), (right, bottom))]
            (x1, x2), (y1, y2) = (sorted(values) for values in zip(*corners, strict=True))
            _add(boxes, Box(x1, y1, x2, y2))
    return boxes[:MOST_BOXES]


def _pixel(page: Any, size: tuple[int, int], x: float, y: float) -> tuple[int, int]:
    """Return where a point of a page, which may be turned, is on its picture."""
    from pypdfium2 import raw

    across, down = ctypes.c_int(), ctypes.c_int()
    raw.FPDF_PageToDevice(page, 0, 0, *size, 0, x, y, across, down)
    return across.value, down.value


def _add(boxes: list[Box], box: Box) -> None:
    """Add a box, or let the last one grow, if both are of one line: some files place every word by itself."""
    last = boxes[-1] if boxes else None
    height = box.bottom - box.top
    if (
        last
        and min(last.bottom, box.bottom) - max(last.top, box.top) > height / 2
        and box.left - last.left >= 0
        and box.left - last.right < 2 * height
    ):
        boxes.pop()
        box = Box(last.left, min(last.top, box.top), max(last.right, box.right), max(last.bottom, box.bottom))
    boxes.append(box)


def _draw(image: Any, boxes: list[Box]) -> None:
    """Tint the boxes like a text marker, and frame them."""
    from PIL import Image, ImageChops, ImageDraw

    for box in boxes:
        left, top = max(box.left - 3, 0), max(box.top - 2, 0)
        right, bottom = min(box.right + 3, image.width - 1), min(box.bottom + 2, image.height - 1)
        if left >= right or top >= bottom:
            continue
        part = image.crop((left, top, right, bottom))
        image.paste(ImageChops.multiply(part, Image.new("RGB", part.size, TINT)), (left, top))
        ImageDraw.Draw(image).rectangle((left, top, right, bottom), outline=FRAME, width=2)


def _limit() -> None:
    """Bound what this process may take; it may not write files."""
    try:
        import resource
    except ImportError:
        return
    for what, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, PROCESSOR_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.setrlimit(what, (most, most))


def main() -> None:
    """Draw the page that standard input asks for."""
    # All modules are there before the limits count; and what a library prints must not come before the picture.
    for name in ("PIL.ImageChops", "PIL.ImageDraw", "PIL.PngImagePlugin", "pypdfium2.raw"):
        importlib.import_module(name)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.read())
    _limit()
    for part in render(request):
        output.write(part)
    output.flush()
    # Nothing of what the file has left in memory is tidied up.
    os._exit(0)


if __name__ == "__main__":
    main()
