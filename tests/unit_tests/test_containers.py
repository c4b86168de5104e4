"""Files that hold other files: books, messages with attachments, archives."""

import time
import unicodedata
from email.message import EmailMessage
from itertools import pairwise
from pathlib import Path

import pytest
from langchain_core.documents import Document

from lince_rag.documents.files import FileLoader
from lince_rag.errors import DocumentError
from tests.unit_tests.file_samples import (
    eml_bytes,
    epub_bytes,
    epub_parts,
    mbox_bytes,
    message,
    pdf_bytes,
    zip_bytes,
)


def load(folder: Path, name: str, content: bytes) -> Document:
    path = folder / name
    path.write_bytes(content)
    (document,) = FileLoader(path).load()
    check(document)
    return document


def check(document: Document) -> None:
    """What holds for every document."""
    text, sections = document.page_content, document.metadata["sections"]
    assert text.strip()
    assert sections[0]["start"] == 0
    assert sections[-1]["end"] == len(text)
    assert all(one["end"] == two["start"] for one, two in pairwise(sections))
    assert all(section["start"] < section["end"] for section in sections)
    assert text == unicodedata.normalize("NFC", text)


def reason(folder: Path, name: str, content: bytes) -> str:
    with pytest.raises(DocumentError) as caught:
        load(folder, name, content)
    return caught.value.reason


def section_texts(document: Document) -> dict[str, str]:
    return {
        section["heading"]: document.page_content[section["start"] : section["end"]].strip()
        for section in document.metadata["sections"]
    }


# --- Books


def test_epub(tmp_path: Path) -> None:
    document = load(tmp_path, "libro.epub", epub_bytes())
    assert document.metadata["title"] == "La huerta"
    assert document.metadata["media_type"] == "application/epub+zip"
    assert document.metadata["language"] == "es"
    assert section_texts(document) == {
        "": "Huerta y acequia",
        "El reparto": "El reparto\n\nEl agua llega por la acequia.\n\nSe reparte cada mañana.",
        "Los turnos": "Los turnos\n\nCada regante tiene uno.",
        "Los turnos › De noche": "De noche\n\nNadie riega.",
        "Los turnos › LAS MULTAS": "LAS MULTAS\n\nSon de 30 €.",
    }


def test_epub_with_an_ncx_and_without_a_title(tmp_path: Path) -> None:
    document = load(tmp_path, "libro.epub", epub_bytes("ncx", title=""))
    assert document.metadata["title"] == "Uno"
    assert list(section_texts(document)) == ["", "Uno", "Los turnos", "Los turnos › De noche", "Los turnos › Dos"]
    assert "Dos\n\nLAS MULTAS" in document.page_content


def test_epub_chapters_that_are_missing_are_skipped(tmp_path: Path) -> None:
    parts = epub_parts()
    del parts["OEBPS/2.xhtml"]
    assert "Los turnos" not in load(tmp_path, "a.epub", zip_bytes(parts)).page_content
    bare = {name: part for name, part in parts.items() if not name.endswith(".xhtml")}
    assert reason(tmp_path, "b.epub", zip_bytes(bare)) == "none of its 5 chapters can be read"
    del bare["OEBPS/libro.opf"]
    assert "no package file" in reason(tmp_path, "c.epub", zip_bytes(bare))
    bare["META-INF/container.xml"] = b"<"
    assert "no package file" in reason(tmp_path, "d.epub", zip_bytes(bare))


def test_epub_protected_against_copying(tmp_path: Path) -> None:
    def protected(algorithm: str) -> bytes:
        data = f'<EncryptedData xmlns="x"><EncryptionMethod Algorithm="{algorithm}"/></EncryptedData>'
        return zip_bytes(epub_parts() | {"META-INF/encryption.xml": f"<encryption>{data}</encryption>".encode()})

    assert load(tmp_path, "a.epub", protected("http://www.idpf.org/2008/embedding"))
    expected = "protected against copying"
    assert reason(tmp_path, "b.epub", protected("http://www.w3.org/2001/04/xmlenc#aes128-cbc")) == expected


def test_epub_reads_no_file_outside_it(tmp_path: Path) -> None:
    (tmp_path / "secreto.xhtml").write_text("<p>secreto</p>")
    parts = epub_parts()
    entity = f'<!DOCTYPE p [<!ENTITY e SYSTEM "file://{tmp_path}/secreto.xhtml">]>'.encode()
    parts["OEBPS/libro.opf"] = entity + parts["OEBPS/libro.opf"].replace(b"La huerta", b"La &e; huerta").replace(
        b"2.xhtml", f"../..{tmp_path}/secreto.xhtml".encode()
    )
    document = load(tmp_path, "a.epub", zip_bytes(parts))
    assert "secreto" not in document.page_content + document.metadata["title"]


def test_damaged_epub(tmp_path: Path) -> None:
    assert reason(tmp_path, "a.epub", epub_bytes()[:900]) == "damaged or truncated EPUB file"
    assert reason(tmp_path, "b.epub", zip_bytes({"a.txt": b"x"})) == "a zip file, but not an EPUB document"


# --- Messages

HEADERS = (
    "From: Ana Ruiz Ibáñez <ana@example.org>\nTo: João <joao@example.org>, luis@example.org\n"
    "Date: 2024-03-05 10:30+01:00\nSubject: "
)


def raw_message(headers: str, body: bytes = b"Hola") -> bytes:
    return b"From: a@example.org\r\nSubject: X\r\n" + headers.encode() + b"\r\n\r\n" + body


def test_eml_with_attachments(tmp_path: Path) -> None:
    document = load(tmp_path, "a.eml", eml_bytes())
    assert document.metadata["title"] == "Reunión de regantes"
    assert document.metadata["media_type"] == "message/rfc822"
    texts = section_texts(document)
    cc = HEADERS.replace("Date", "Cc: Núria <nuria@example.org>\nDate")
    assert texts.pop("Reunión de regantes") == (
        f"Reunión de regantes\n\n{cc}Reunión de regantes\n\nNos vemos mañana a las 8.\n> De acuerdo.\n\n"
        "Attachment: mapa.png (image/png, 3 KiB)"
    )
    assert {heading.removeprefix("Reunión de regantes › "): text for heading, text in texts.items()} == {
        "manual de riego.docx": "manual de riego.docx\n\nManual de regadío",
        "manual de riego.docx › Capítulo 1": (
            "Capítulo 1\n\nEl agua llega por la acequia. Se reparte cada mañana."
        ),
        "manual de riego.docx › Capítulo 1 › Turnos": (
            "Turnos\n\n- lunes\n- miércoles\n\nDía | Hora\nlunes | 8 h"
        ),
        "manual de riego.docx › Capítulo 2": "Capítulo 2\n\nLas multas son de 30 €.",
        "información.txt": "información.txt\n\nEl año pasado.",
        "Acta": f"Acta\n\n{HEADERS}Acta\n\nSe aprueba.",
    }


def test_eml_without_a_subject_or_plain_text(tmp_path: Path) -> None:
    made = message("", " ")
    made.add_alternative("<h1>Título</h1><p>Es <b>así</b>.</p>", subtype="html", charset="iso-8859-15")
    document = load(tmp_path, "a.eml", made.as_bytes())
    heading = "2024-03-05 10:30+01:00 Ana Ruiz Ibáñez <ana@example.org>"
    assert document.metadata["title"] == heading
    assert section_texts(document)[f"{heading} › Título"] == "Título\n\nEs así."


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (raw_message("Content-Type: text/plain; charset=no-hay", "Según".encode()), "Según"),
        (raw_message("Content-Type: text/plain; charset=utf-8", "Según".encode("latin-1")), "Según"),
        (raw_message("Content-Type: text/plain; charset=punycode", b"ma-ana"), "ma-ana"),
        (raw_message("Content-Type: text/plain; charset=base64", b"Hola"), "Hola"),
        (raw_message("Content-Type: text/plain; charset=cp850", "Según €".encode("cp858")), "Según"),
        (raw_message("Cc: José <j@example.org>"), "Cc: José <j@example.org>"),
        (raw_message("Cc: =?utf-8?q?Jos=C3=A9?= <j@example.org>"), "Cc: José <j@example.org>"),
        (raw_message("Cc: =?nada?q?Jos?= <j@example.org>"), "Cc: Jos <j@example.org>"),
        (raw_message("Cc: =?utf-8?b?!!?= <"), "Cc: "),
        (raw_message("Date: ayer"), "Date: ayer"),
        (raw_message("Date: Tue, 99 Mar 2024 10:30:00"), "Date: Tue, 99 Mar 2024"),
        (raw_message("Content-Type: multipart/mixed; boundary=B", b"--B\n\nHola\n--B"), "Hola"),
        (raw_message("Content-Transfer-Encoding: base64", b"SG9sYQ"), "Hola"),
        (raw_message("Content-Type: text/html", b"<p>Hola<p>Adi&oacute;s"), "Hola\n\nAdiós"),
        (raw_message('Content-Type: =; ;;="\nTo: ,,<>@:;\nCc: (((('), "Hola"),
    ],
)
def test_malformed_and_old_messages(tmp_path: Path, data: bytes, expected: str) -> None:
    assert expected in load(tmp_path, "a.eml", data).page_content


def test_names_of_attachments(tmp_path: Path) -> None:
    def part(header: str, body: str = "Texto.") -> str:
        return f"--B\nContent-Type: {header}\n\n{body}\n"

    parts = [
        part("text/plain", "Uno."),
        part('application/octet-stream; name="=?utf-8?Q?a=C3=B1o.md?="', "# Dos"),
        part("text/plain\nContent-Disposition: attachment; filename*=UTF-8''c%2Fd%C3%AD.txt", "Tres."),
        part("text/plain\nContent-Disposition: attachment", "Cuatro."),
        part("text/html; name=informe", "<p>Cinco."),
        part("application/pdf; name=roto.pdf", "nada"),
        part("application/pgp-signature", "No."),
        part("image/png\nContent-Disposition: inline; filename=firma.png", "x"),
        part("text/plain", "Pie."),
    ]
    body = "".join(parts) + "--B--\n"
    document = load(tmp_path, "a.eml", raw_message("Content-Type: multipart/mixed; boundary=B", body.encode()))
    assert section_texts(document) == {
        "X": "X\n\nFrom: a@example.org\nSubject: X\n\nUno.\n\nPie.\n\n"
        "Attachment: roto.pdf (application/pdf, 4 bytes)\nAttachment: firma.png (image/png, 1 bytes)",
        "X › año.md › Dos": "año.md\n\n# Dos",
        "X › c/dí.txt": "c/dí.txt\n\nTres.",
        "X › attachment.txt": "attachment.txt\n\nCuatro.",
        "X › informe": "informe\n\nCinco.",
    }


def test_attachments_inside_a_choice_of_formats(tmp_path: Path) -> None:
    made = message(body="Claro.")
    made.add_alternative("<p>No.</p>", subtype="html")
    rich = made.get_payload(1)
    assert isinstance(rich, EmailMessage)
    rich.make_mixed()
    rich.add_attachment("Adjunto.", filename="a.txt")
    document = load(tmp_path, "a.eml", made.as_bytes())
    assert section_texts(document)["Reunión de regantes › a.txt"] == "a.txt\n\nAdjunto."
    assert "No." not in document.page_content


def test_forwarded_messages_are_read_to_a_depth_of_three(tmp_path: Path) -> None:
    made = message("Fondo")
    for number in range(5):
        outer = message(f"Nivel {number}")
        outer.add_attachment(made)
        made = outer
    document = load(tmp_path, "a.eml", made.as_bytes())
    assert list(section_texts(document))[-1] == "Nivel 4 › Nivel 3 › Nivel 2 › Nivel 1"


def test_a_message_without_headers_is_not_one(tmp_path: Path) -> None:
    assert reason(tmp_path, "a.eml", b"Hola.\n\nAdi\xc3\xb3s.") == "not a message: it has no headers"
    assert reason(tmp_path, "b.eml", b" ") == "the file is empty"


def test_mbox(tmp_path: Path) -> None:
    long = message("Con adjunto", "Hola.\nFrom entonces\n\nFrom: no es cabecera\n")
    long.add_attachment(pdf_bytes(["Uno.", "Dos."]), maintype="application", subtype="pdf", filename="i.pdf")
    data = mbox_bytes(tmp_path, [message(), long, message("", "Fin.")])
    document = load(tmp_path, "buzón.mbox", data)
    assert document.metadata["title"] == "buzón"
    assert [(section["page"], section["heading"]) for section in document.metadata["sections"]] == [
        (1, "Reunión de regantes"),
        (2, "Con adjunto"),
        (2, "Con adjunto › i.pdf"),
        (3, "2024-03-05 10:30+01:00 Ana Ruiz Ibáñez <ana@example.org>"),
    ]
    assert section_texts(document)["Con adjunto › i.pdf"] == "i.pdf\n\nUno.\n\nDos."


def test_mbox_with_unmarked_from_lines_and_damaged_messages(tmp_path: Path) -> None:
    start = b"From a@example.org Tue Mar  5 10:30:00 2024\n"
    data = (
        start + raw_message("", b"Uno.\n\nFrom ahora no.\nFin.\n\n") + start + b"x:\n\n" + start + raw_message("")
    )
    document = load(tmp_path, "a.mbox", data)
    assert [section["page"] for section in document.metadata["sections"]] == [1, 3]
    assert "From ahora no.\nFin." in document.page_content
    assert reason(tmp_path, "b.mbox", start + b"x:\n\n") == "none of its 1 messages can be read"
    assert 'does not begin with a "From " line' in reason(tmp_path, "c.mbox", raw_message(""))


def test_time_for_long_headers_is_bounded(tmp_path: Path) -> None:
    start = time.perf_counter()
    headers = "To: " + "(" * 100_000 + "\nCc: " + ", ".join(f"a{number}@example.org" for number in range(50_000))
    load(tmp_path, "a.eml", raw_message(headers + "\nContent-Type: text/plain; " + 'a*0="x";' * 50_000))
    assert time.perf_counter() - start < 20
