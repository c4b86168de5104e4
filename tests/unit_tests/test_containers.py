"""Files that hold other files: books, messages with attachments, archives."""

import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from langchain_core.documents import Document

from lince_rag.documents.files import FileLoader
from lince_rag.errors import DocumentError
from tests.unit_tests.file_samples import epub_bytes, epub_parts, zip_bytes


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
