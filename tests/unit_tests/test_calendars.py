"""Calendars and contacts."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lince_rag.documents.readers.blocks import Unreadable
from lince_rag.documents.readers.calendars import read_ics, read_vcf
from tests.unit_tests.reading import load, reason


def event(*lines: str) -> str:
    (block,) = read_ics("\r\n".join(["BEGIN:VCALENDAR", "BEGIN:VEVENT", *lines, "END:VEVENT"]).encode()).blocks
    return block.text


def contact(*lines: str) -> str:
    (block,) = read_vcf("\r\n".join(["BEGIN:VCARD", *lines, "END:VCARD"]).encode()).blocks
    return block.text


def test_a_calendar(tmp_path: Path) -> None:
    text = (
        "BEGIN:VCALENDAR\r\nX-WR-CALNAME:Coro del barrio\r\nBEGIN:VEVENT\r\nSUMMARY:Ensayo\\, con piano\r\n"
        "DTSTART;TZID=Europe/Madrid:20250314T183000\r\nDTEND;TZID=Europe/Madrid:20250314T200000\r\n"
        "LOCATION:Sala 2\r\nDESCRIPTION:Traer atril\\;\\nllega el so\r\n listas: a las 19\r\n"
        "BEGIN:VALARM\r\nDESCRIPTION:Aviso\r\nEND:VALARM\r\nEND:VEVENT\r\n"
        "BEGIN:VTODO\r\nSUMMARY:Pagar cuota\r\nDUE;VALUE=DATE:20250401\r\nEND:VTODO\r\nEND:VCALENDAR\r\n"
    )
    document = load(tmp_path, "c.ics", text)
    assert document.page_content == (
        "Summary: Ensayo, con piano | Date: 2025-03-14 18:30–20:00 | Location: Sala 2 | "
        "Description: Traer atril; llega el solistas: a las 19\nTask: Pagar cuota | Due: 2025-04-01"
    )
    assert document.metadata["title"] == "Coro del barrio"
    assert document.metadata["media_type"] == "text/calendar"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["DTSTART:20250314T183000Z"], "2025-03-14 18:30 UTC"),
        (["DTSTART:20250314T183000Z", "DURATION:PT1H30M"], "2025-03-14 18:30–20:00 UTC"),
        (["DTSTART:20250314T220000", "DTEND:20250315T020000"], "2025-03-14 22:00 – 2025-03-15 02:00"),
        (["DTSTART;VALUE=DATE:20250314", "DTEND;VALUE=DATE:20250315"], "2025-03-14"),
        (["DTSTART;VALUE=DATE:20250314", "DTEND;VALUE=DATE:20250317"], "2025-03-14 – 2025-03-16"),
        (["DTSTART:20259914"], "20259914"),
        (["DTSTART:99991231T235900", "DURATION:P9999W"], "9999-12-31 23:59"),
        (["DTSTART;VALUE=DATE:20250101", "DTEND;VALUE=DATE:00010101"], "2025-01-01"),
    ],
)
def test_dates_of_events(lines: list[str], expected: str) -> None:
    assert event(*lines) == f"Date: {expected}"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("FREQ=WEEKLY;BYDAY=MO,TH;UNTIL=20250620T000000Z", "every week, on MO, TH, until 2025-06-20"),
        ("FREQ=MONTHLY;INTERVAL=2;COUNT=5;WKST=MO", "every 2 months, 5 times"),
        ("FREQ=YEARLY;BYMONTH=5", "every year, month 5"),
        ("cada luna", "cada luna"),
    ],
)
def test_repetitions(rule: str, expected: str) -> None:
    assert event(f"RRULE:{rule}") == f"Repeats: {expected}"


def test_people_of_an_event() -> None:
    lines = ['ORGANIZER;CN="Peña, Olga":mailto:o@b.example', "ATTENDEE;CN=Iñaki de Haro:mailto:i@b.example"]
    assert event(*lines, "ATTENDEE:mailto:u@b.example") == (
        "Organizer: Peña, Olga | Attendees: Iñaki de Haro, u@b.example"
    )


def test_contacts(tmp_path: Path) -> None:
    text = contact(
        "VERSION:3.0", "FN:Olga Ruiz", "ORG:Pan y Sal\\, S.L.;Obrador", "item1.TEL;type=CELL:600 000 000",
        "TEL;VALUE=uri;TYPE=work:tel:+34-900-000-000", "ADR;TYPE=HOME:;;Calle Sol 4;Soria;;42001;",
        "BDAY:19800503", "NOTE:Abre a las 6 | martes no",
    )  # fmt: skip
    assert text == (
        "Name: Olga Ruiz | Organization: Pan y Sal, S.L., Obrador | Telephone: 600 000 000 (cell), "
        "+34-900-000-000 (work) | Address: Calle Sol 4, Soria, 42001 | Birthday: 1980-05-03 | "
        "Note: Abre a las 6 / martes no"
    )
    old = (
        "BEGIN:VCARD\nN;CHARSET=UTF-8;ENCODING=QUOTED-PRINTABLE:=C3=91u=\n=C3=B1ez;Jos=C3=A9\n"
        "TEL;CELL:1\nBDAY:--0503"
    )
    document = load(tmp_path, "c.vcf", old)
    assert document.page_content == "Name: Ñuñez, José | Telephone: 1 (cell) | Birthday: 05-03"


def test_reasons(tmp_path: Path) -> None:
    assert reason(tmp_path, "c.ics", "BEGIN:VCALENDAR\nEND:VCALENDAR") == "no events in it"
    assert reason(tmp_path, "c.vcf", "hola") == "no contacts in it"


@given(
    st.lists(
        st.one_of(
            st.text(max_size=20),
            st.sampled_from(
                ["BEGIN:VEVENT", "END:VEVENT", "BEGIN:VCARD", "DTSTART:", "DTEND:00010101", "\\", ";", ":"]
            ),
            st.sampled_from(
                ["DTSTART:99991231T235900", "DURATION:P9999W", "RRULE:FREQ=DAILY", "N;QUOTED-PRINTABLE:="]
            ),
        ),
        max_size=12,
    )
)
def test_any_lines(lines: list[str]) -> None:
    for read in (read_ics, read_vcf):
        with contextlib.suppress(Unreadable):
            assert all("\n" not in block.text for block in read("\n".join(lines).encode()).blocks)
