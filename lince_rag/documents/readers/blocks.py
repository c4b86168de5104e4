"""What a reader finds: blocks of text with headings and pages, and how they become one text with sections."""

import itertools
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Final

HEADING_SEPARATOR: Final = " › "

# Longest heading that is kept whole in metadata, where every chunk repeats it; the text itself is not shortened.
MAXIMUM_HEADING: Final = 300


class Unreadable(Exception):  # noqa: N818  # a reason on its way to a DocumentError, never seen by a user
    """A file cannot be read; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Block:
    """A paragraph, a row of a table, an item of a list, or a heading.

    Attributes:
        text: The text, already clean.
        level: 1 and up for a heading, 0 for anything else.
        heading: The title, when it is not simply ``text``.
        page: The page, from 1, where the format has pages.
        separator: What stands between the previous block and this one.
        body: The text of a heading's block goes on after the heading.
    """

    text: str
    level: int = 0
    heading: str = ""
    page: int | None = None
    separator: str = "\n\n"
    body: bool = False


@dataclass(frozen=True)
class Content:
    """What a reader found: blocks in reading order, and the title in the file's own metadata, if any."""

    blocks: list[Block]
    title: str = ""


_REMOVED: Final = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff\ufffe\uffff]"
)
_LINE_END: Final = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SPACE: Final = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")


def clean(text: str) -> str:
    """Normalise characters without changing what is written.

    Unicode NFC; one kind of line end and of space; no soft hyphens, control characters or text-direction
    marks; half a surrogate pair, which no database takes, becomes U+FFFD.
    """
    text = _SPACE.sub(" ", _LINE_END.sub("\n", text))
    text = re.sub("[\ud800-\udfff]", "\ufffd", _REMOVED.sub("", text))
    return unicodedata.normalize("NFC", text)


def squeeze(text: str) -> str:
    """Put a text on one line, with one space where there was any white space."""
    return " ".join(clean(text).split())


def assemble(blocks: list[Block]) -> tuple[str, list[dict[str, Any]], str]:
    """Join blocks into one text.

    A section begins at each heading and each page. A heading with no text of its own shares the section of
    the deeper heading after it, so that no section is a bare title.

    Args:
        blocks: The blocks in reading order.

    Returns:
        The text; its sections, which divide it without gaps; and its first heading of level 1, or "".
    """
    parts: list[str] = []
    sections: list[dict[str, Any]] = []
    path: list[tuple[int, str]] = []
    length, bare, title = 0, False, ""
    for block in (block for block in blocks if block.text):
        separator = block.separator if parts else ""
        start = length + len(separator)
        shared = bare and block.level > path[-1][0]
        if block.level:
            heading = block.heading or squeeze(block.text)[:MAXIMUM_HEADING]
            title = title or (heading if block.level == 1 else "")
            path = [entry for entry in path if entry[0] < block.level] + [(block.level, heading)]
        names = HEADING_SEPARATOR.join(name for _, name in path)
        if not sections or (block.level and not shared) or sections[-1]["page"] != block.page:
            sections.append({"start": start, "end": start, "page": block.page, "heading": names})
        sections[-1]["heading"] = names
        bare = block.level > 0 and not block.body
        parts += [separator, block.text]
        length = start + len(block.text)
    for section, following in itertools.pairwise(sections):
        section["end"] = following["start"]
    if sections:
        sections[-1]["end"] = length
    return "".join(parts), sections, title
