"""Messages of electronic mail: a single one (eml) and a mailbox of many (mbox)."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from email.message import EmailMessage, Message
from email.parser import BytesFeedParser
from email.policy import EmailPolicy, default
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Final

from lince_rag.documents.readers.blocks import Block, Content, Unreadable
from lince_rag.documents.readers.html import read_html
from lince_rag.documents.readers.members import Members, as_section
from lince_rag.documents.readers.text import decode, read_text
from lince_rag.text.words import squeeze

# Mail servers accept 25 to 50 MB, and reading 53 MB takes 380 MiB (measured).
MAXIMUM_MESSAGE_BYTES: Final = 64 * 2**20

# A forwarded message may contain a forwarded message, without end; deeper ones are left out.
MAXIMUM_FORWARDS: Final = 3

# The parser of the standard library takes quadratic time for a header; this is about 100 addresses.
MAXIMUM_HEADER: Final = 4_000

_SHOWN: Final = ("From", "To", "Cc", "Date", "Subject")
# One of these is in every message; a text without any is no message, although the parser accepts it.
_EXPECTED: Final = (*_SHOWN, "Received", "Message-ID", "MIME-Version", "Content-Type")

# The line that begins a message in a mailbox. That a header follows tells it from a line of a text that begins so
# and that a careless program did not mark.
_FROM_LINE: Final = re.compile(rb"^From [^\n]*\n(?=[!-9;-~]+:|>From )", re.MULTILINE)
# How a line of a text that begins so is marked.
_MARKED_LINE: Final = re.compile(rb"^>(>*From )", re.MULTILINE)

# Attachments whose name has no suffix that is known.
_SUFFIXES: Final = {"text/plain": ".txt", "text/html": ".html", "application/pdf": ".pdf", "text/calendar": ".ics"}

# Python codecs that are no encodings of text; one takes quadratic time.
_NO_CHARSETS: Final = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "utf-7"}
# What programs declare whatever the encoding is; decoding by content is more often right.
_DEFAULT_CHARSETS: Final = {"", "ascii", "utf-8", "iso8859-1"}


_PIECE: Final = 2**16


class _Policy(EmailPolicy):
    """The default policy for header values of any length, in any encoding, however malformed."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        return _parse_header(name, "".join(re.split(r"[\r\n]+", value))[:MAXIMUM_HEADER])


# Each question about a part parses its headers again, and the messages of a mailbox have many in common.
@lru_cache(maxsize=1_024)
def _parse_header(name: str, value: str) -> Any:
    try:
        if not value.isascii():
            # The parser gives bytes that are not ASCII as surrogates.
            value = squeeze(decode(value.encode("ascii", "surrogateescape")))
        return default.header_factory(name, value)
    except Exception:
        # The header parser has raised IndexError, AttributeError, ValueError and others on malformed values.
        return squeeze(value)


_POLICY: Final = _Policy()


def read_eml(data: bytes, members: Members) -> Content:
    """Read a message: its subject as a heading, its main headers, its text and its attachments."""
    message = _parse(data)
    return Content(_MessageReader(members).read(message, level=1), _header(message, "Subject"))


def read_mbox(data: bytes, members: Members) -> Content:
    """Read the messages of a mailbox, each as a section of level 2 whose page is its number."""
    starts = list(_FROM_LINE.finditer(data))
    if not starts or data[: starts[0].start()].strip():
        raise Unreadable('not a mailbox: it does not begin with a "From " line')
    ends = [*(start.start() for start in starts[1:]), len(data)]
    blocks: list[Block] = []
    reader = _MessageReader(members)
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
        try:
            if end - start.end() > MAXIMUM_MESSAGE_BYTES:
                raise Unreadable("too large")
            text = _MARKED_LINE.sub(rb"\1", data[start.end() : end])
            found = reader.read(_parse(text), level=2)
        except MemoryError:
            raise
        except Exception as error:
            # The parser fails in many ways on a damaged message, and a mailbox holds thousands.
            members.budget.left_out.append(f"message {number}: {error}")
            continue
        blocks += [replace(block, page=number) for block in found]
    if not blocks:
        raise Unreadable("none of its messages can be read")
    return Content(blocks)


def _parse(data: bytes) -> Message:
    # In pieces, because BytesParser copies the message into a text of four bytes a letter.
    parser = BytesFeedParser(EmailMessage, policy=_POLICY)
    for start in range(0, len(data), _PIECE):
        parser.feed(data[start : start + _PIECE])
    message = parser.close()
    if not _has_headers(message):
        raise Unreadable("not a message: it has no headers")
    return message


def _has_headers(message: Message) -> bool:
    return any(name in message for name in _EXPECTED)


def _header(message: Message, name: str) -> str:
    """A header as text on one line, decoded; "" if it is missing."""
    return squeeze(str(message.get(name, "")))


def _date(message: Message) -> str:
    """The date in ISO format with its time zone, or as it is written if it is malformed."""
    written = _header(message, "Date")
    try:
        return parsedate_to_datetime(written).isoformat(sep=" ", timespec="minutes")
    except (ValueError, TypeError, IndexError, OverflowError):
        return written


@dataclass(frozen=True)
class _MessageReader:
    """Reads messages, and with ``members`` what is attached to them."""

    members: Members

    def read(self, message: Message, level: int, forwards: int = 0) -> list[Block]:
        """The blocks of a message; ``forwards`` is the number of messages that it is in."""
        headers = {name: _date(message) if name == "Date" else _header(message, name) for name in _SHOWN}
        heading = headers["Subject"] or squeeze(f"{headers['Date']} {headers['From']}") or "Message"
        blocks = [Block(heading, level=level)]
        blocks.append(Block("\n".join(f"{name}: {value}" for name, value in headers.items() if value)))
        parts = list(_leaves(message))
        bodies = _choose_bodies(parts)
        for text in bodies.values():
            blocks += [replace(block, level=block.level and block.level + level) for block in text]
        names: list[str] = []
        sections: list[Block] = []
        for part, _ in parts:
            if not _is_body(part):
                sections += self._read_attachment(part, level + 1, forwards, names)
        return [*blocks, Block("\n".join(names)), *sections]

    def _read_attachment(self, part: Message, level: int, forwards: int, names: list[str]) -> list[Block]:
        """The section of an attachment or a forwarded message; if it cannot be read, its name is added."""
        if part.get_content_type() == "message/rfc822":
            payload = part.get_payload()
            forwarded = payload[0] if isinstance(payload, list) and payload else None
            if isinstance(forwarded, Message) and _has_headers(forwarded) and forwards < MAXIMUM_FORWARDS:
                return self.read(forwarded, level, forwards + 1)
        name, data = squeeze(part.get_filename() or ""), _payload(part)
        suffix = _SUFFIXES.get(part.get_content_type(), "")
        shown = name or ("attachment" + suffix if suffix else "")
        known = shown if self.members.reads(shown) else shown + suffix
        try:
            if shown:
                self.members.budget.add_bytes(len(data))
                return as_section(shown, self.members.read(known, data).blocks, level)
        except Unreadable as error:
            if self.members.reads(known):
                self.members.budget.left_out.append(f"{shown}: {error}")
            names.append(f"Attachment: {shown} ({part.get_content_type()}, {_size(len(data))})")
        return []


def _leaves(message: Message) -> Iterator[tuple[Message, int]]:
    """Yield the parts that are not made of parts, each with the number of the outermost choice it belongs to.

    A choice (multipart/alternative) offers the same text in several formats; 0 stands for none.
    """
    waiting, choices = [(message, 0)], 0
    while waiting:
        part, choice = waiting.pop()
        payload = part.get_payload()
        # A message/… is a list of messages, too, but they are no parts of this one.
        if isinstance(payload, list) and part.get_content_maintype() == "multipart":
            if part.get_content_subtype() == "alternative" and not choice:
                choice = choices = choices + 1
            waiting += [(item, choice) for item in reversed(payload) if isinstance(item, Message)]
        else:
            yield part, choice


def _is_body(part: Message) -> bool:
    """Return whether a part is text of the message, and not a file attached to it."""
    plain = part.get_content_type() in {"text/plain", "text/html"}
    return plain and part.get_content_disposition() != "attachment" and not part.get_filename()


def _choose_bodies(parts: list[tuple[Message, int]]) -> dict[int, list[Block]]:
    """Number of a part → its text, for those that make up the text: of a choice, plain text rather than HTML."""
    bodies = {number: _body(part) for number, (part, _) in enumerate(parts) if _is_body(part)}
    bodies = {number: blocks for number, blocks in bodies.items() if any(block.text for block in blocks)}
    plain = {parts[number][1] for number in bodies if parts[number][0].get_content_type() == "text/plain"} - {0}
    return {
        number: blocks
        for number, blocks in bodies.items()
        if parts[number][1] not in plain or parts[number][0].get_content_type() == "text/plain"
    }


def _body(part: Message) -> list[Block]:
    try:
        text = _text(part).encode()
        return (read_html if part.get_content_type() == "text/html" else read_text)(text).blocks
    except Unreadable:
        return []


def _text(part: Message) -> str:
    """Decode a text by its declared encoding if that is plausible, else by its content."""
    data = _payload(part)
    try:
        codec = codecs.lookup(part.get_content_charset("")).name
        if codec not in _NO_CHARSETS | _DEFAULT_CHARSETS:
            return data.decode(codec)
    except (LookupError, ValueError):
        pass
    return decode(data)


def _payload(part: Message) -> bytes:
    """The bytes of a part, without the encoding in which they were sent."""
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _size(size: int) -> str:
    """A size in the unit in which people read it."""
    if size < 1024:
        return f"{size} bytes"
    return f"{size / 1024:.0f} KiB" if size < 2**20 else f"{size / 2**20:.1f} MiB"
