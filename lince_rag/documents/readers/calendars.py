"""Calendars (iCalendar, RFC 5545) and contacts (vCard, RFC 6350 and 2.1): lines "NAME;PARAMETERS:value"."""

import contextlib
import datetime
import quopri
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lince_rag.documents.readers.blocks import Block, Content, Unreadable
from lince_rag.documents.readers.rows import named_row
from lince_rag.documents.readers.text import decode
from lince_rag.text.sentences import CELL_SEPARATOR
from lince_rag.text.words import clean, squeeze

# A long line goes on in the next one, after a space. Undone in the bytes: it may stand inside a character.
_FOLD: Final = re.compile(rb"\r?\n[ \t]")
_LINE: Final = re.compile(r'(?:[\w-]+\.)?([\w-]+)((?:;(?:"[^"]*"|[^":])*)?):(.*)')
_ESCAPE: Final = re.compile(r"\\(.)")
_PARTS: Final = re.compile(r"(?:[^;\\]|\\.)*")
_TIME: Final = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)(?:T(\d\d):?(\d\d)(?::?\d\d)?(?:\.\d+)?(Z)?)?", re.ASCII)
_YEARLESS: Final = re.compile(r"--(\d\d)-?(\d\d)", re.ASCII)
_DURATION: Final = re.compile(
    r"P(?:(\d{1,4})W)?(?:(\d{1,4})D)?(?:T(?:(\d{1,4})H)?(?:(\d{1,4})M)?(?:\d{1,4}S)?)?", re.ASCII
)

_EVENTS: Final = {"VEVENT": "Summary", "VTODO": "Task", "VJOURNAL": "Summary"}
_UNITS: Final = {"YEARLY": "years", "MONTHLY": "months", "WEEKLY": "weeks", "DAILY": "days", "HOURLY": "hours"}
# The fields of a contact in the order of its row. Those with parts have them between semicolons.
_CONTACT: Final = {
    "FN": "Name", "NICKNAME": "Nickname", "ORG": "Organization", "TITLE": "Title", "ROLE": "Role",
    "TEL": "Telephone", "EMAIL": "Email", "ADR": "Address", "BDAY": "Birthday", "ANNIVERSARY": "Anniversary",
    "URL": "Web", "CATEGORIES": "Categories", "NOTE": "Note",
}  # fmt: skip
_WITH_PARTS: Final = {"ORG", "ADR", "N"}


@dataclass(frozen=True)
class _Field:
    name: str
    parameters: str
    value: str

    @property
    def text(self) -> str:
        """The value on one line, without escapes."""
        plain = _ESCAPE.sub(lambda found: " " if found[1] in "nN" else found[1], self.value)
        return squeeze(plain).replace(CELL_SEPARATOR, " / ")

    @property
    def parts(self) -> list[str]:
        found = (_Field(self.name, "", part).text for part in _PARTS.findall(self.value))
        return [part for part in found if part]


_Item = dict[str, list[_Field]]


def read_ics(data: bytes) -> Content:
    """Read the events, tasks and notes of a calendar, a row each; the calendar's name is the title."""
    rows, title = [], ""
    for kind, item in _items(data):
        if kind in _EVENTS:
            rows.append(named_row(_event_cells(item, _EVENTS[kind])))
        elif kind == "VCALENDAR" and not title:
            title = _first(item, "X-WR-CALNAME") or _first(item, "NAME")
    return _content(rows, title, "no events in it")


def read_vcf(data: bytes) -> Content:
    """Read contacts, a row each."""
    rows = [named_row(_contact_cells(item)) for kind, item in _items(data) if kind == "VCARD"]
    return _content(rows, "", "no contacts in it")


def _content(rows: list[str], title: str, reason: str) -> Content:
    blocks = [Block(row, separator="\n") for row in rows if row]
    if not blocks:
        raise Unreadable(reason)
    return Content(blocks, title)


def _items(data: bytes) -> Iterator[tuple[str, _Item]]:
    """Yield the kind and the fields of each part between BEGIN and END, the inner ones first."""
    opened: list[tuple[str, _Item]] = []
    for field in _fields(data):
        if field.name == "BEGIN":
            opened.append((field.value.strip().upper(), {}))
        elif field.name == "END" and opened:
            yield opened.pop()
        elif opened:
            opened[-1][1].setdefault(field.name, []).append(field)
    # The end of the file may be missing.
    yield from reversed(opened)


def _fields(data: bytes) -> Iterator[_Field]:
    lines = iter(clean(decode(_FOLD.sub(b"", data))).split("\n"))
    for line in lines:
        found = _LINE.fullmatch(line)
        if not found:
            continue
        name, parameters, value = found[1].upper(), found[2], found[3]
        if "QUOTED-PRINTABLE" in parameters.upper():
            while value.endswith("="):
                value = value[:-1] + next(lines, "")
            value = clean(decode(quopri.decodestring(value.encode()))).replace("\n", " ")
        yield _Field(name, parameters, value)


def _first(item: _Item, name: str) -> str:
    return item[name][0].text if name in item else ""


def _event_cells(item: _Item, label: str) -> list[tuple[str, str]]:
    people = [_person(field) for field in item.get("ATTENDEE", [])]
    status = _first(item, "STATUS").lower()
    return [
        (label, _first(item, "SUMMARY")),
        ("Date", _event_time(item)),
        ("Due", _moment(_first(item, "DUE"))),
        ("Repeats", _repetition(_first(item, "RRULE"))),
        ("Location", _first(item, "LOCATION")),
        ("Description", _first(item, "DESCRIPTION")),
        ("Organizer", _person(item["ORGANIZER"][0]) if "ORGANIZER" in item else ""),
        ("Attendees", ", ".join(filter(None, people))),
        ("Status", status if status in {"cancelled", "tentative", "completed"} else ""),
        ("Web", _first(item, "URL")),
    ]


def _person(field: _Field) -> str:
    named = re.search(r'(?i);CN=("[^"]*"|[^;:"]*)', field.parameters)
    return named[1].strip('"') if named else re.sub(r"(?i)^mailto:", "", field.text)


def _parse(written: str) -> datetime.datetime | None:
    found = _TIME.match(written)
    try:
        return datetime.datetime(*(int(part or 0) for part in found.groups()[:5])) if found else None  # type: ignore[arg-type]
    except ValueError:
        return None


def _moment(written: str) -> str:
    """A date, and a time if there is one, as people read them; what is no date stays as it is written."""
    found, moment = _TIME.match(written), _parse(written)
    if not found or not moment:
        yearless = _YEARLESS.fullmatch(written)
        return f"{yearless[1]}-{yearless[2]}" if yearless else written
    if not found[4]:
        return moment.date().isoformat()
    return moment.isoformat(" ", "minutes") + (" UTC" if found[6] else "")


def _event_time(item: _Item) -> str:
    """When an event begins and ends; the end of one that takes whole days is the day after it."""
    written = _first(item, "DTSTART")
    start, end = _parse(written), _parse(_first(item, "DTEND"))
    if not start:
        return written
    timed = "T" in written
    length = _DURATION.fullmatch(_first(item, "DURATION"))
    # The calendar of Python has an end, too.
    with contextlib.suppress(OverflowError):
        if not end and length:
            weeks, days, hours, minutes = (int(part or 0) for part in length.groups())
            end = start + datetime.timedelta(days, weeks=weeks, hours=hours, minutes=minutes)
        if end and not timed:
            end -= datetime.timedelta(days=1)
    begins = _moment(written)
    if not end or end <= start:
        return begins
    zone = " UTC" if begins.endswith(" UTC") else ""
    begins = begins.removesuffix(" UTC")
    if not timed:
        return f"{begins} – {end.date().isoformat()}"
    same = start.date() == end.date()
    return (
        f"{begins}{'–' if same else ' – '}{end.strftime('%H:%M') if same else end.isoformat(' ', 'minutes')}{zone}"
    )


def _repetition(rule: str) -> str:
    """A recurrence rule in words as far as it has common parts: "every 2 weeks, on MO, TH, until 2025-06-20"."""
    parts = dict(part.split("=", 1) for part in rule.upper().split(";") if "=" in part)
    unit, interval = _UNITS.get(parts.pop("FREQ", "")), parts.pop("INTERVAL", "1")
    if unit is None:
        return rule
    found = [f"every {interval} {unit}" if interval != "1" else f"every {unit[:-1]}"]
    parts.pop("WKST", None)
    for name, value in parts.items():
        value = value.replace(",", ", ")
        words = {"BYDAY": f"on {value}", "COUNT": f"{value} times", "UNTIL": f"until {_moment(value)[:10]}"}
        found.append(words.get(name, f"{name.removeprefix('BY').lower()} {value}"))
    return ", ".join(found)


def _contact_cells(item: _Item) -> list[tuple[str, str]]:
    if not _first(item, "FN"):
        item |= {"FN": item.get("N", [])}
    return [
        (label, ", ".join(filter(None, (_contact_text(field) for field in item.get(name, [])))))
        for name, label in _CONTACT.items()
    ]


def _contact_text(field: _Field) -> str:
    if field.name in {"BDAY", "ANNIVERSARY"}:
        return _moment(field.text)
    text = ", ".join(field.parts) if field.name in _WITH_PARTS else field.text
    if field.name != "TEL" or not text:
        return text
    kinds = set(re.findall(r"\b(?:HOME|WORK|CELL|FAX)\b", field.parameters.upper()))
    return re.sub(r"(?i)^tel:", "", text) + (f" ({', '.join(sorted(kinds)).lower()})" if kinds else "")
