"""Files that hold other files: books, messages with attachments, archives."""

import bz2
import gzip
import io
import lzma
import stat
import time
import zipfile
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document

from lince_rag.documents.readers import archives, members
from tests.unit_tests.file_samples import (
    MEMBERS,
    docx_bytes,
    eml_bytes,
    epub_bytes,
    epub_parts,
    mbox_bytes,
    message,
    pdf_bytes,
    tar_bytes,
    zip_bytes,
)
from tests.unit_tests.reading import load, reason


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
    assert reason(tmp_path, "b.epub", zip_bytes(bare)) == "none of its chapters can be read"
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
    # The mailbox has it with a ">" in front.
    assert "Hola.\nFrom entonces\n" in document.page_content


def test_mbox_with_unmarked_from_lines_and_damaged_messages(tmp_path: Path) -> None:
    start = b"From a@example.org Tue Mar  5 10:30:00 2024\n"
    data = (
        start + raw_message("", b"Uno.\n\nFrom ahora no.\nFin.\n\n") + start + b"x:\n\n" + start + raw_message("")
    )
    document = load(tmp_path, "a.mbox", data)
    assert [section["page"] for section in document.metadata["sections"]] == [1, 3]
    assert "From ahora no.\nFin." in document.page_content
    assert reason(tmp_path, "b.mbox", start + b"x:\n\n") == "none of its messages can be read"
    assert 'does not begin with a "From " line' in reason(tmp_path, "c.mbox", raw_message(""))


def test_time_for_long_headers_is_bounded(tmp_path: Path) -> None:
    start = time.perf_counter()
    headers = "To: " + "(" * 100_000 + "\nCc: " + ", ".join(f"a{number}@example.org" for number in range(50_000))
    load(tmp_path, "a.eml", raw_message(headers + "\nContent-Type: text/plain; " + 'a*0="x";' * 50_000))
    assert time.perf_counter() - start < 20


# --- Archives

SECTIONS = [
    (1, "a.pdf"),
    (2, "a.pdf"),
    (None, "notas/año.txt"),
    (None, "notas/b.md › Riego"),
    (None, "notas/b.md › Riego › Turnos"),
]
TEXT = (
    "a.pdf\n\nPrimera página.\n\nSegunda página.\n\nnotas/año.txt\n\nEl año pasado llovió.\n\n"
    "notas/b.md\n\n# Riego\n\nPor la noche.\n\n## Turnos\n\nUno cada semana."
)


@pytest.mark.parametrize(
    ("name", "data", "media_type"),
    [
        ("riego.zip", zip_bytes(MEMBERS), "zip"),
        ("riego.tar", tar_bytes(MEMBERS), "x-tar"),
        ("riego.tar.gz", tar_bytes(MEMBERS, "gz"), "gzip"),
        ("riego.TGZ", tar_bytes(MEMBERS, "gz"), "gzip"),
        ("riego.gz", tar_bytes(MEMBERS, "gz"), "gzip"),
        ("riego.tar.bz2", tar_bytes(MEMBERS, "bz2"), "x-bzip2"),
        ("riego.tar.xz", tar_bytes(MEMBERS, "xz"), "x-xz"),
    ],
)
def test_archives(tmp_path: Path, name: str, data: bytes, media_type: str) -> None:
    document = load(tmp_path, name, data)
    assert document.metadata["title"] == "riego"
    assert document.metadata["media_type"] == f"application/{media_type}"
    assert document.page_content == TEXT
    assert [(section["page"], section["heading"]) for section in document.metadata["sections"]] == SECTIONS
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip), ("bz2", bz2), ("xz", lzma)])
def test_a_compressed_file_is_read_like_the_file(tmp_path: Path, suffix: str, compress: Any) -> None:
    document = load(tmp_path, f"a.md.{suffix}", compress.compress(b"# Uno\n\nDos."))
    assert (document.page_content, document.metadata["title"]) == ("# Uno\n\nDos.", "Uno")
    document = load(tmp_path, f"a.pdf.{suffix}", compress.compress(pdf_bytes(["Uno.", "Dos."], title="T")))
    assert [section["page"] for section in document.metadata["sections"]] == [1, 2]
    assert document.metadata["title"] == "T"
    expected = "the compressed file, a.exe, is not of a supported kind"
    assert reason(tmp_path, f"a.exe.{suffix}", compress.compress(b"x" * 600)) == expected


def test_archives_in_archives_and_messages(tmp_path: Path) -> None:
    data = zip_bytes({"x.txt": b"Fondo."})
    for name in ("3.zip", "2.zip", "1.zip"):
        data = zip_bytes({name: data, f"{name}.txt": b"Hola.", "a.eml": eml_bytes()})
    headings = list(section_texts(load(tmp_path, "a.zip", data)))
    assert headings[0] == "1.zip › 2.zip.txt"
    assert "1.zip.txt" in headings
    assert "a.eml › Reunión de regantes › manual de riego.docx" in headings
    # A third level, and what is attached to a message on the second, are not read.
    assert not [heading for heading in headings if "2.zip › " in heading or heading.startswith("1.zip › 2.zip ›")]
    made = message()
    made.add_attachment(zip_bytes(MEMBERS), maintype="application", subtype="zip", filename="riego.zip")
    document = load(tmp_path, "b.eml", made.as_bytes())
    assert "Reunión de regantes › riego.zip › notas/b.md › Riego › Turnos" in section_texts(document)


def test_documents_named_zip(tmp_path: Path) -> None:
    assert load(tmp_path, "a.zip", docx_bytes("Riego")).metadata["title"] == "Riego"
    assert load(tmp_path, "b.zip", epub_bytes()).metadata["title"] == "La huerta"


def test_names_in_a_zip_without_the_mark_of_utf8(tmp_path: Path) -> None:
    data = zip_bytes({"caXXo.txt": b"Hola."})
    names = [data.replace(b"caXXo", "caño".encode()), data.replace(b"caXXo", "canão".encode("cp850"))]
    assert load(tmp_path, "a.zip", names[0]).page_content.startswith("caño.txt")
    assert load(tmp_path, "b.zip", names[1]).page_content.startswith("canão.txt")


def test_archives_without_readable_files(tmp_path: Path) -> None:
    expected = "none of its files can be read (b.txt: a binary file, not text)"
    for name, pack in (("a.zip", zip_bytes), ("a.tar", tar_bytes)):
        assert reason(tmp_path, name, pack({"b.txt": b"\0x", "a.txt": b" "})) == expected
        assert reason(tmp_path, name, pack({"b.png": b"x", ".txt": b"x"})) == "no file of a supported kind in it"


def test_damaged_archives(tmp_path: Path) -> None:
    for name, data in [
        ("a.zip", zip_bytes(MEMBERS)[:-200]),
        ("a.tar", b"x" * 600),
        ("a.tar.gz", tar_bytes(MEMBERS, "gz")[:-200]),
        ("a.tar.bz2", tar_bytes(MEMBERS, "bz2")[:-200]),
        ("a.tar.xz", tar_bytes(MEMBERS, "xz")[:-200]),
        ("a.txt.gz", gzip.compress(bytes(range(256)))[:-9]),
        ("a.txt.bz2", b"Hola."),
    ]:
        assert reason(tmp_path, name, data) == "damaged or truncated archive"


def test_encrypted_zip(tmp_path: Path) -> None:
    # The flags of an entry are 6 bytes after the mark of its local header, and 8 after that of its central one.
    data = bytearray(zip_bytes({"a.txt": b"Hola."}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert reason(tmp_path, "a.zip", bytes(data)) == "protected with a password"


def test_links_in_a_zip_are_not_followed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("enlace.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("a.txt", "Hola.")
    assert load(tmp_path, "a.zip", buffer.getvalue()).page_content == "a.txt\n\nHola."


def test_a_member_that_declares_a_wrong_size_is_left_out(tmp_path: Path) -> None:
    for size in (10, 2**31):
        data = bytearray(zip_bytes({"a.txt": b"Hola. " * 1000, "b.txt": b"Bien."}))
        for place in (22, data.index(b"PK\x01\x02") + 24):
            data[place : place + 4] = size.to_bytes(4, "little")
        assert load(tmp_path, "a.zip", bytes(data)).page_content == "b.txt\n\nBien."


def test_limits_of_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = {"a.txt": b"a" * 300_000, "b.txt": b"Hola.", "foto.png": bytes(300_000)}
    monkeypatch.setattr(members, "MAXIMUM_MEMBER_BYTES", 100_000)
    monkeypatch.setattr(archives, "MAXIMUM_MEMBER_BYTES", 100_000)
    for name, data in [("a.zip", zip_bytes(bomb)), ("a.tar.gz", tar_bytes(bomb, "gz"))]:
        assert load(tmp_path, name, data).page_content == "b.txt\n\nHola."
    assert reason(tmp_path, "a.txt.gz", gzip.compress(bomb["a.txt"])) == "too large once unpacked"
    monkeypatch.setattr(members, "MAXIMUM_UNPACKED_BYTES", 200_000)
    assert reason(tmp_path, "b.tar.gz", tar_bytes(bomb, "gz")) == "too large once unpacked"
    part = zip_bytes({f"{number}.txt": b"a" * 90_000 for number in range(3)})
    assert reason(tmp_path, "b.zip", part) == "too large once unpacked"
    # What an archive in an archive holds counts, too.
    nested = zip_bytes({"a.zip": zip_bytes({"a.txt": b"a" * 90_000}), "b.zip": part})
    assert reason(tmp_path, "c.zip", nested) == "too large once unpacked"
    # A header of any size is read by the standard library itself.
    long = tar_bytes({"x" * 400_000 + ".txt": b"Hola."}, "gz")
    assert reason(tmp_path, "d.tar.gz", long) == "too large once unpacked"


def test_limits_of_the_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {f"{number}.txt": b"Hola." for number in range(12)}
    monkeypatch.setattr(members, "MAXIMUM_MEMBERS", 11)
    for name, pack in (("a.zip", zip_bytes), ("a.tar", tar_bytes)):
        assert reason(tmp_path, name, pack(data)) == "more than 11 files in it"
    monkeypatch.setattr(archives, "MAXIMUM_ENTRIES", 11)
    for name, pack in (("b.zip", zip_bytes), ("b.tar", tar_bytes)):
        assert reason(tmp_path, name, pack(data)) == "more than 11 entries in it"
    monkeypatch.setattr(members, "MAXIMUM_MEMBERS", 1)
    made = message()
    for number in range(2):
        made.add_attachment("Hola.", filename=f"{number}.txt")
    assert "Attachment: 1.txt (text/plain, 6 bytes)" in load(tmp_path, "a.eml", made.as_bytes()).page_content
