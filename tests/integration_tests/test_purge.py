"""What is deleted is in no file of the index any more, raw or decompressed; only its owner may read the files."""

import io
import json
import os
import sqlite3
import stat
import zlib
from pathlib import Path

import docx
import numpy as np
import pptx
import pytest
from langchain_core.documents import Document

from lince_rag import Index
from lince_rag.documents.prepared import searchable_text
from lince_rag.errors import ConfigurationError, IndexLockedError
from lince_rag.index.integrity import erase_unused_memory
from tests.unit_tests.file_samples import (
    epub_parts,
    message,
    ods_bytes,
    opendocument_bytes,
    pdf_bytes,
    saved,
    tar_bytes,
    xls_bytes,
    xlsx_bytes,
    zip_bytes,
)

# No word of any language, so that no part of it is anywhere by chance.
SECRET = "zxqwvkjhgf"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, and every value of its databases, decompressed."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    for path in folder.rglob("*.sqlite*"):
        if path.suffix in (".sqlite", ".sqlite3"):
            found[f"{path.name} values"] = values(path)
    return found


def values(path: Path) -> bytes:
    out = io.BytesIO()
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        try:
            rows = connection.execute(f'SELECT * FROM "{table}"').fetchall()
        except sqlite3.OperationalError:
            # A virtual table whose module this SQLite lacks; its own tables are read.
            continue
        for value in (value for row in rows for value in row if isinstance(value, str | bytes)):
            data = value.encode() if isinstance(value, str) else value
            out.write(data)
            try:
                out.write(zlib.decompress(data))
            except zlib.error:
                continue
    connection.close()
    return out.getvalue()


def places(folder: Path, needles: list[bytes]) -> set[str]:
    """The files and databases that hold one of the needles."""
    return {name for name, data in contents(folder).items() for needle in needles if needle in data.lower()}


def needles() -> list[bytes]:
    return [SECRET.encode(), SECRET.encode("utf-16-le")]


def fill(folder: Path) -> Path:
    folder.mkdir()
    for number in range(40):
        (folder / f"nota{number}.txt").write_text(f"La fianza número {number} es de {number * 100} euros. " * 20)
    secret = folder / f"{SECRET}.txt"
    secret.write_text(f"La contraseña del banco es {SECRET}. " * 30)
    return secret


def test_nothing_of_a_deleted_document_is_left(tmp_path: Path) -> None:
    secret = fill(tmp_path / "documents")
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        index.ingest(tmp_path / "documents")
        chunks = index.ledger.chunks(index.ledger.chunk_ids(str(secret))).values()
        (vector, *_) = index.embeddings.embed_documents([searchable_text(chunk) for chunk in chunks])
        ids = [str(chunk.id).encode() for chunk in chunks]
        # A dictionary of terms shares the letters of words, so it must be asked.
        assert index.stores.lexical.unknown([SECRET]) == set()
        segments = set(os.listdir(tmp_path / "index" / "lexical"))
    raw = np.asarray(vector, dtype="<f4").tobytes()
    found = places(tmp_path / "index", needles())
    # The search for it works: it is in the ledger, its vector in Chroma.
    assert any(name.startswith("ledger.sqlite") for name in found)
    assert any(raw in data for name, data in contents(tmp_path / "index").items() if name.startswith("chroma"))
    with Index.open(tmp_path / "index") as index:
        assert index.delete(secret) > 0
        (first, *_) = index.as_retriever().invoke("¿De cuánto es la fianza número 7?")
        assert "número 7 es de 700" in first.page_content
        assert index.stores.lexical.unknown([SECRET]) == {SECRET}
        kept = segments & set(os.listdir(tmp_path / "index" / "lexical"))
        assert all("meta.json" in name or "managed" in name or "lock" in name for name in kept), kept
        # Also while the index is open.
        assert places(tmp_path / "index", needles()) == set()
        assert index.verify().ok
    assert places(tmp_path / "index", [*needles(), *ids]) == set()
    assert not any(raw in data for data in contents(tmp_path / "index").values())


def test_memory_that_chroma_wrote_with_its_graph_is_erased(tmp_path: Path) -> None:
    """It writes all that it has reserved, with whatever the process had there before."""
    secret = fill(tmp_path / "documents")
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        index.ingest(tmp_path / "documents")
        index.delete(secret)
        expected = index.as_retriever().invoke("¿De cuánto es la fianza número 7?")
    for name in ("length.bin", "data_level0.bin"):
        (path,) = (tmp_path / "index" / "chroma").glob(f"*/{name}")
        with open(path, "r+b") as file:
            file.seek(-64, os.SEEK_END)
            file.write(SECRET.encode())
    assert len(places(tmp_path / "index", needles())) == 2
    erase_unused_memory(tmp_path / "index" / "chroma")
    assert places(tmp_path / "index", needles()) == set()
    with Index.open(tmp_path / "index") as index:
        assert index.verify().ok
        assert index.as_retriever().invoke("¿De cuánto es la fianza número 7?") == expected


TEXT = f"La contraseña del banco es {SECRET}."
ROWS = [["Cuenta", "Clave"], ["Banco", SECRET]]


def in_every_format() -> dict[str, bytes]:
    """A file of each kind that has the secret in its text."""
    word, slides = docx.Document(), pptx.Presentation()
    word.add_paragraph(TEXT)
    slides.slides.add_slide(slides.slide_layouts[1]).placeholders[1].text_frame.text = TEXT
    plain = {f"a.{suffix}": TEXT.encode() for suffix in ("txt", "md", "html", "rst", "py", "yaml")}
    paragraph = f"<text:p>{TEXT}</text:p>"
    slide = f"<draw:page><draw:frame><draw:text-box>{paragraph}</draw:text-box></draw:frame></draw:page>"
    book = {name: data.replace(b"acequia", SECRET.encode()) for name, data in epub_parts().items()}
    return plain | {
        "a.pdf": pdf_bytes([TEXT]),
        "a.docx": saved(word),
        "a.pptx": saved(slides),
        "a.xlsx": xlsx_bytes({"Claves": ROWS}),
        "a.xls": xls_bytes({"Claves": ROWS}),
        "a.ods": ods_bytes({"Claves": ROWS}),
        "a.odt": opendocument_bytes("text", paragraph),
        "a.odp": opendocument_bytes("presentation", slide),
        "a.csv": "\n".join(map(";".join, ROWS)).encode(),
        "a.json": json.dumps({"clave": SECRET}).encode(),
        "a.jsonl": json.dumps({"clave": SECRET}).encode(),
        "a.ipynb": json.dumps({"cells": [{"cell_type": "markdown", "source": [TEXT]}]}).encode(),
        "a.rtf": f"{{\\rtf1\\ansi La clave es {SECRET}.\\par}}".encode(),
        "a.epub": zip_bytes(book),
        "a.eml": message(body=TEXT).as_bytes(),
        "a.mbox": b"From a@example.org Tue Mar  5 10:30:00 2024\n" + message(body=TEXT).as_bytes(),
        "a.zip": zip_bytes({"dentro.txt": TEXT.encode()}),
        "a.tar.gz": tar_bytes({"dentro.txt": TEXT.encode()}, "gz"),
    }


def test_nothing_is_left_of_any_format(tmp_path: Path) -> None:
    fill(tmp_path / "documents").unlink()
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name, data in in_every_format().items():
        (secrets / name).write_bytes(data)
    # LangChain documents, too.
    part = Document(TEXT, id=f"id-{SECRET}", metadata={"source": f"nota-{SECRET}", "clave": SECRET})
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        assert index.ingest([tmp_path / "documents", secrets]).failed == []
        index.add_documents([part])
        kept = [each for each in index.sources() if "documents" in each.source]
        gone = [each.source for each in index.sources() if each not in kept]
        assert len(gone) == len(in_every_format()) + 1
        assert [source for source in gone if SECRET not in index.text(source)] == []
        for source in gone:
            index.delete(source, purge=False)
        index.purge()
        assert index.sources() == kept
        assert places(tmp_path / "index", needles()) == set()
        assert index.stores.lexical.unknown([SECRET]) == {SECRET}


def test_without_a_purge_nothing_is_found_and_a_purge_follows(tmp_path: Path) -> None:
    secret = fill(tmp_path / "documents")
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        index.ingest(tmp_path / "documents")
        index.delete(secret, purge=False)
        assert not any(SECRET in each.page_content for each in index.as_retriever(k=50).invoke(SECRET))
        report = index.purge()
        assert report.seconds > 0
        assert places(tmp_path / "index", needles()) == set()
        assert len(index.as_retriever(k=3).invoke("¿Cuál es la fianza?")) == 3


def test_another_process_sees_the_new_files(tmp_path: Path) -> None:
    secret = fill(tmp_path / "documents")
    with Index.open(tmp_path / "index", embeddings="embedded") as one, Index.open(tmp_path / "index") as two:
        one.ingest(tmp_path / "documents")
        question = "¿De cuánto es la fianza número 7?"
        before = two.as_retriever(k=1).invoke(question)[0].page_content
        one.delete(secret)
        assert two.as_retriever(k=1).invoke(question)[0].page_content == before
        assert two.verify().ok
        two.ingest(Document("La fianza nueva es de 9 euros.", metadata={"source": "nueva"}))
        assert one.as_retriever(k=1).invoke("¿De cuánto es la fianza nueva?")[0].metadata["source"] == "nueva"


def test_a_reader_in_the_way_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lince_rag.index.compaction.LOCK_SECONDS", 0.3)
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        index.add_documents([Document("Hola a todos.", metadata={"source": "a"})])
        reader = sqlite3.connect(tmp_path / "index" / "ledger.sqlite")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM documents").fetchall()
        index.add_documents([Document("Adiós a todos.", metadata={"source": "b"})])
        with pytest.raises(IndexLockedError, match="keeps what was deleted"):
            index.delete("b")
        reader.close()
        index.purge()
        assert [source.source for source in index.sources()] == ["a"]
        with pytest.raises(ConfigurationError):
            index.delete("b")


def test_vectors_to_come_still_come(tmp_path: Path) -> None:
    fill(tmp_path / "documents")
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        index.ingest(tmp_path / "documents")
        ids = sorted(index.ledger.chunk_ids())[:5]
        index.stores.discard(ids)
        index.ledger.set_waiting(add=ids)
        index.stores.store_terms(list(index.ledger.chunks(ids).values()))
        index.purge()
        assert index.ledger.count_waiting() == 5
        assert index.add_vectors() == 0
        assert index.verify().ok


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    fill(tmp_path / "documents")
    old = os.umask(0o022)
    try:
        with Index.open(tmp_path / "index", embeddings="embedded") as index:
            index.ingest(tmp_path / "documents")
            index.as_retriever().invoke("¿Cuál es la fianza?")
            index.delete(tmp_path / "documents" / "nota3.txt")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "index").stat().st_mode) == 0o700
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "index").rglob("*") if path.is_file()
    }
    assert set(modes.values()) == {0o600}, modes
    # Who shares an index changes the ledger's permissions, and later files follow.
    (tmp_path / "index" / "ledger.sqlite").chmod(0o640)
    with Index.open(tmp_path / "index") as index:
        index.purge()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "index").rglob("*") if path.is_file()} == {
        0o640
    }
