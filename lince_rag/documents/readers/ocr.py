"""Text in pictures: scanned pages and photographs, read by the program Tesseract."""

import io
import re
from typing import TYPE_CHECKING, Final

from lince_rag.documents.readers.blocks import Block, Content, Unreadable
from lince_rag.errors import ConfigurationError, require
from lince_rag.text.words import clean, squeeze

if TYPE_CHECKING:
    from PIL.Image import Image

# The languages of Tesseract that are read, by the names of its packages.
LANGUAGES: Final = ("spa", "por", "eng")

# The resolution for which Tesseract was trained; PDF measures in 72 points an inch.
DOTS_PER_INCH: Final = 300
POINTS_PER_INCH: Final = 72

# A page of small print takes some ten seconds.
PAGE_SECONDS: Final = 120.0

INSTALL: Final = "sudo apt install tesseract-ocr tesseract-ocr-spa tesseract-ocr-por"

# The frames of a TIFF are pages; those of a GIF may be a film.
MAXIMUM_FRAMES: Final = 200


def check_ocr() -> None:
    """Raise an error that says what to install, if text in pictures cannot be read.

    Raises:
        MissingExtraError: The extra ``ocr`` is not installed.
        ConfigurationError: The program Tesseract, or one of its languages, is not installed.
    """
    require("ocr", "pytesseract", "PIL")
    import pytesseract

    try:
        known = set(pytesseract.get_languages())
    except pytesseract.TesseractNotFoundError:
        raise ConfigurationError("The program Tesseract is not installed.", hint=INSTALL) from None
    if missing := [language for language in LANGUAGES if language not in known]:
        raise ConfigurationError(f"Tesseract cannot read {', '.join(missing)}.", hint=INSTALL)


def recognize(image: "Image") -> list[str]:
    """Return the paragraphs in a picture of a page; none if there is no text.

    Raises:
        Unreadable: Tesseract fails, or takes more than two minutes.
    """
    import pytesseract

    try:
        text = pytesseract.image_to_string(image, lang="+".join(LANGUAGES), timeout=PAGE_SECONDS)
    except (RuntimeError, pytesseract.TesseractError) as error:
        raise Unreadable(f"its text cannot be recognised ({error})") from None
    paragraphs = (_join(paragraph.split("\n")) for paragraph in re.split(r"\n\s*\n", clean(text)))
    return [paragraph for paragraph in paragraphs if any(map(str.isalnum, paragraph))]


def _join(lines: list[str]) -> str:
    """Join the lines of a paragraph, and the words that a hyphen divides."""
    text = ""
    for line in lines:
        divided = re.search(r"[^\W\d_]-$", text[-2:]) and line[:1].islower()
        text = text[:-1] + line if divided else f"{text} {line}"
    return squeeze(text)


def read_image(data: bytes) -> Content:
    """Read the text in a picture; each frame of a TIFF is a page."""
    from PIL import Image, ImageSequence

    try:
        image = Image.open(io.BytesIO(data))
    except (OSError, Image.DecompressionBombError) as error:
        raise Unreadable(f"damaged or unknown picture ({type(error).__name__})") from None
    blocks = []
    for number, frame in enumerate(ImageSequence.Iterator(image), start=1):
        if number > MAXIMUM_FRAMES:
            raise Unreadable(f"more than {MAXIMUM_FRAMES} pictures in it")
        blocks += [Block(paragraph, page=number) for paragraph in recognize(frame.convert("RGB"))]
    return Content(blocks)
