"""Plain text, Markdown, RTF and program code."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from lince_rag.documents.readers.blocks import MAXIMUM_HEADING, Block, Content, Unreadable
from lince_rag.text.sentences import CELL_SEPARATOR
from lince_rag.text.words import clean, squeeze

# With a greater share of control characters and undecodable ones, bytes are not text.
MAXIMUM_CONTROL_SHARE: Final = 0.05

# With fewer letters and spaces than this share, bytes are text in Windows-1252 only if hardly any character is one
# that texts of our languages do not have. In random bytes one in seven is; in price lists, none.
_LETTERS_SHARE: Final = 0.5
_STRANGE: Final = re.compile(r"[^\x00-\x7f\w€‚„“”‘’«»–—…°º·•¡¿§£©®™²³¹¼½¾´¨×\xa0\xad]")
MAXIMUM_STRANGE_SHARE: Final = 0.05

# A longer line with fewer spaces was written by a program that leaves out all that people need.
_MINIFIED_LINE: Final = 100_000
_MINIFIED_SPACES: Final = 0.05

_FRONT_LINE: Final = re.compile(r"[\w-]+[ \t]*:|[ \t#-]|$")
_FRONT_TITLE: Final = re.compile(r"title[ \t]*:", re.IGNORECASE)
_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
# Not over a blank line. Both are removed, and what is between them stays.
_BOLD: Final = re.compile(r"\*\*(?=\S)((?:(?!\*\*|\n\n).)+)(?<=\S)\*\*", re.DOTALL)
_CODE: Final = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_HASHES: Final = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_UNDERLINE: Final = re.compile(r" {0,3}(=+|-+)$")
_NO_SETEXT: Final = re.compile(r"$| {4}|\t| {0,3}(?:[>#|]|[*+-] |\d+[.)] |[-=*_ ]+$)|.*\|.*\|")

# The hexadecimal digits of a picture. Only from the start of a run, so that short runs are looked at once.
_RTF_PICTURE: Final = re.compile(rb"(?<![0-9a-fA-F\r\n])[0-9a-fA-F\r\n]{1024,}")
_RTF_TITLE: Final = re.compile(r"\{\\title\s([^{}]{1,500})\}")
_RTF_CODE_PAGE: Final = re.compile(r"\\ansicpg\d{1,5}")
_RTF_ITEM: Final = re.compile(r"[·•▪\uf0b7o–-]\t+")


def decode(data: bytes) -> str:
    """Decode a text: by its byte-order mark, else as UTF-8, else as Windows-1252 if the result is text."""
    for mark, encoding in ((b"\xff\xfe\0\0", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return refuse_binary(data.decode(encoding, "replace"))
    if b"\0" in data:
        raise Unreadable("a binary file, not text")
    text = data.decode("utf-8-sig", "replace")
    wrong = text.count("\ufffd")
    # A few bad bytes in a UTF-8 file are damage; if many non-ASCII characters are bad, it is another encoding.
    if wrong == 0 or 4 * wrong < sum(character > "\x7f" for character in text) - wrong:
        return refuse_binary(text)
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    letters = sum(character.isalpha() or character.isspace() for character in text)
    # A table may consist of numbers and separators.
    strange = letters < _LETTERS_SHARE * len(text) and len(_STRANGE.findall(text))
    if strange > MAXIMUM_STRANGE_SHARE * len(text):
        raise Unreadable("a binary file, or text in an unknown encoding")
    return refuse_binary(text)


def refuse_binary(text: str) -> str:
    """Return a decoded text unchanged, or refuse it if too many of its characters cannot be text."""
    control = len(re.findall("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd]", text))
    if control > MAXIMUM_CONTROL_SHARE * len(text):
        raise Unreadable("a binary file, or text in an unknown encoding")
    return text


def _tidy(text: str) -> str:
    """Remove spaces at line ends and blank lines at both ends, and reduce runs of blank lines to one."""
    text = "\n".join(line.rstrip(" \t") for line in clean(text).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def read_text(data: bytes) -> Content:
    """Read plain text; its lines stay as they are, because nothing shows which of them belong together."""
    return Content([Block(_tidy(decode(data)))])


def read_code(data: bytes) -> Content:
    """Read program code or data as it is written, in one block."""
    text = clean(decode(data))
    lines = [line.rstrip() for line in text.split("\n")]
    if any(len(line) > _MINIFIED_LINE and line.count(" ") < _MINIFIED_SPACES * len(line) for line in lines):
        raise Unreadable("minified code")
    return Content([Block("\n".join(lines).strip("\n"), kind="code")])


def read_markdown(data: bytes) -> Content:
    """Read Markdown: a block for each heading (``#`` or underlined) with the text below it.

    The text stays as written, with its markers, except for those of bold and of code in a line: an answer quotes
    the words, as other formats give them. YAML front matter is left out, except for its title.
    """
    title, blocks = markdown_blocks(clean(decode(data)))
    return Content(blocks, title)


def markdown_blocks(text: str) -> tuple[str, list[Block]]:
    """Cut a clean text in Markdown at its headings, and return also the title in its front matter, or ""."""
    title, text = _split_front_matter(text.lstrip("\n"))
    lines = _without_emphasis(_tidy(text).split("\n"))
    headings = _markdown_headings(lines)
    blocks = []
    starts = [0, *(line for line in headings if line)]
    for start, end in itertools.pairwise([*starts, len(lines)]):
        level, heading, height = headings.get(start, (0, "", 0))
        piece = "\n".join(lines[start:end]) + "\n" * (end < len(lines))
        body = bool("".join(lines[start + height : end]).strip())
        blocks.append(Block(piece, level=level, heading=heading, separator="", body=body))
    return title, blocks


def _split_front_matter(text: str) -> tuple[str, str]:
    """The title in YAML front matter, and the text after it; a single rule ("---") is not front matter."""
    lines = text.split("\n")
    title = ""
    if lines[0].rstrip() == "---":
        for number, line in enumerate(lines[1:], start=1):
            if line.rstrip() in {"---", "..."}:
                return title, "\n".join(lines[number + 1 :])
            if not _FRONT_LINE.match(line):
                break
            if found := _FRONT_TITLE.match(line):
                title = line[found.end() :].strip().strip("\"'")
    return "", text


def _without_emphasis(lines: list[str]) -> list[str]:
    """Remove the marks of bold and of code in a line, outside fenced code."""
    found: list[str] = []
    paragraph: list[str] = []
    for line, fenced in zip([*lines, ""], [*_fenced(lines), True], strict=True):
        if not fenced:
            paragraph.append(line)
            continue
        text = _CODE.sub(r"\1", _BOLD.sub(r"\1", "\n".join(paragraph)))
        found += [*(text.split("\n") if paragraph else []), line]
        paragraph = []
    return found[:-1]


def _fenced(lines: list[str]) -> Iterator[bool]:
    """Yield for each line whether it is in fenced code or a fence."""
    fence = ""
    for line in lines:
        marks = _FENCE.fullmatch(line)
        closes = bool(fence and marks and marks[1].startswith(fence) and not marks[2].strip())
        opens = not fence and marks is not None and not (marks[1][0] == "`" and "`" in marks[2])
        yield bool(fence) or opens
        fence = marks[1] if opens and marks else "" if closes else fence


def _markdown_headings(lines: list[str]) -> dict[int, tuple[int, str, int]]:
    """Line number → (level, title, lines it takes) of each heading outside fenced code."""
    headings = {}
    for number, (line, fenced) in enumerate(zip(lines, _fenced(lines), strict=True)):
        if fenced:
            continue
        if match := _HASHES.match(line):
            headings[number] = (len(match[1]), _plain(line[match.end() :]), 1)
        elif (match := _UNDERLINE.fullmatch(line)) and _is_setext(lines, number, headings):
            headings[number - 1] = (1 if match[1][0] == "=" else 2, _plain(lines[number - 1]), 2)
    return headings


def _is_setext(lines: list[str], number: int, headings: dict[int, tuple[int, str, int]]) -> bool:
    """Return whether the line above is a title: a paragraph of one line, not an item, a quotation or a table."""
    above = number - 1
    if above < 0 or above in headings or _NO_SETEXT.match(lines[above]):
        return False
    return above == 0 or not lines[above - 1].strip() or above - 1 in headings


def _plain(title: str) -> str:
    """A heading without its closing marks, links and emphasis marks."""
    title = title.strip()
    opened = title.rstrip("#")
    title = opened if not opened or opened[-1] in " \t" else title
    # The link pattern takes quadratic time on many open brackets; a longer line is not a real heading.
    title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title[:MAXIMUM_HEADING])
    return squeeze(re.sub(r"\*+|`+|(?<!\w)_+|_+(?!\w)", "", title))


def read_rtf(data: bytes) -> Content:
    """Read the paragraphs, list items and table rows of an RTF file, and the title in its properties."""
    data = _RTF_PICTURE.sub(b"", data)
    try:
        source = data.decode("utf-8")
    except UnicodeDecodeError:
        source = data.decode("cp1252", "replace")
    blocks: list[Block] = []
    for line in _rtf_text(source).split("\n"):
        row = line.rstrip().endswith("|")
        cells = [squeeze(cell) for cell in line.rstrip().removesuffix("|").split("|")] if row else []
        item = _RTF_ITEM.match(line)
        text = CELL_SEPARATOR.join(cells) if row else squeeze(line[item.end() :] if item else line)
        if any(map(str.isalnum, text)):
            kind = "row" if row else "- " if item else ""
            together = kind and blocks and blocks[-1].kind == kind
            blocks.append(Block("- " * bool(item) + text, kind=kind, separator="\n" if together else "\n\n"))
    title = _RTF_TITLE.search(source)
    page = _RTF_CODE_PAGE.search(source)
    # A group of its own, in the code page of the file.
    named = _rtf_text(f"{{\\rtf1{page[0] if page else ''} {title[1]}}}") if title else ""
    return Content([replace(block, kind="") for block in blocks], named)


def _rtf_text(source: str) -> str:
    """The text of an RTF file, each paragraph and each table row ("cell|cell|") on a line."""
    from striprtf.striprtf import rtf_to_text

    # Its patterns for fonts and links take quadratic time on strange files: other names hide both from them. A
    # font's own character set matters to alphabets other than ours, and those programs write as Unicode.
    source = re.sub(r"\\fldinst", r"\\fldtype", source.replace("\\fonttbl", "\\colortbl"), flags=re.IGNORECASE)
    text = rtf_to_text(source, errors="replace")  # type: ignore[no-untyped-call]
    # Characters outside the first plane are written in two halves.
    return clean(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
