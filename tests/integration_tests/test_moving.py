"""Moving an index: what comes out of the file is what went into it, or an error before anything is changed."""

import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from lince_rag import ChatLince, ChunkingSettings, Index, LinceError, create_rag_chain
from lince_rag.errors import (
    ConfigurationError,
    EmbeddingsMismatchError,
    ExportFileError,
    IndexDamagedError,
    IndexLockedError,
)
from lince_rag.index.export_files import ExportFile
from tests.damage import SmallEmbeddings
from tests.integration_tests.commands import run
from tests.integration_tests.farm_files import write_files

QUESTIONS = ("¿Cuánto es la fianza?", "¿Cuándo vence el contrato?", "Quantos euros custa o elevador?")

FILES = {
    "contrato.md": "# Contrato\n\nLa fianza es de 815 euros.\n\n## Plazo\n\nEl contrato vence en junio de 2027.\n",
    "acta.txt": "El ascensor cuesta 1.100 euros. Se aprobó por unanimidad.\n",
    "ata.txt": "O elevador custa 1.100 euros e foi aprovado por unanimidade 😀.\n",
}

PARTS = [
    Document("La caldera tiene 1,5 bar.", metadata={"source": "manual", "page": 1, "año": 2024}, id="p1"),
    # What JSON can write in the metadata of a part.
    Document("El gas se paga en marzo.", metadata={"source": "manual", "x": {"a": ["\ud800", float("inf")]}}),
]


def contents(index: Index) -> dict[str, Any]:
    """Everything that must be the same in a moved index, the order of the chunks included."""
    ids = index.ledger.ordered_ids()
    names = index.ledger.ordered_sources()
    return {
        "sources": [index.ledger.sources([name]) for name in names],
        "texts": [index.text(name) for name in names],
        "chunks": [(chunk.id, chunk.page_content, chunk.metadata) for chunk in in_order(index, ids)],
        # Text, because a number that is no number does not equal itself.
        "parts": repr([index.ledger.parts(name) for name in names]),
        "waiting": index.ledger.waiting_among(ids),
        "terms": index.ledger.term_lines(ids),
        "settings": [
            index.ledger.setting(key) or ""
            for key in ("embeddings", "embeddings_options", "chunking", "chunking_algorithm")
        ],
    }


def in_order(index: Index, ids: list[str]) -> list[Document]:
    found = index.ledger.chunks(ids)
    return [found[each] for each in ids]


def vectors(index: Index) -> np.ndarray:
    ids = index.ledger.ordered_ids()
    waiting = index.ledger.waiting_among(ids)
    return index.stores.vectors.read([each for each in ids if each not in waiting])


def answers(index: Index) -> list[Any]:
    chain = create_rag_chain(ChatLince(), index.as_retriever(k=4))
    return [
        (answer.text, answer.short, round(answer.confidence, 4), answer.citations)
        for answer in map(chain.invoke, QUESTIONS)
    ]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of files and of LangChain documents; no test changes it."""
    folder = tmp_path_factory.mktemp("index") / "index"
    with Index.open(folder, chunking=ChunkingSettings(max_characters=60)) as index:
        index.ingest([documents / "contrato.md", documents])
        index.add_documents(PARTS)
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "casa.lince"
    with Index.open(folder) as index:
        index.export(file)
    return file


# -------------------------------------------------------------------------------------------------- there and back


def test_a_moved_index_has_the_same_contents_and_answers(folder: Path, exported: Path, tmp_path: Path) -> None:
    report = Index.restore(exported, tmp_path / "new")
    assert (report.added, report.changed, report.unchanged, report.waiting) == (4, 0, 0, 0)
    with Index.open(folder) as old, Index.open(tmp_path / "new") as new:
        assert contents(new) == contents(old)
        assert answers(new) == answers(old)
        # Chroma divides each vector by its length once more, which may change the last bit of a number.
        assert np.abs(vectors(new) - vectors(old)).max() <= 2**-23
        assert new.verify().ok
        assert new.ledger.parts("manual")[1].metadata["x"] == {"a": ["\ud800", float("inf")]}


def test_the_file_has_the_vectors_bit_by_bit(folder: Path, exported: Path) -> None:
    with Index.open(folder) as index, ZipFile(exported) as archive:
        found = np.frombuffer(archive.read("vectors.f32"), "<f4").reshape(-1, 1024)
        assert (found == vectors(index)).all()
        assert len(found) == len(index.ledger.chunk_ids())


def test_the_file_is_what_the_documentation_says(exported: Path) -> None:
    assert exported.read_bytes()[30:].startswith(b"mimetypeapplication/x-lince-rag-index; format=1")
    with ZipFile(exported) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["mimetype", "documents.jsonl", "vectors.f32", "manifest.json"]
        manifest = json.loads(archive.read("manifest.json"))
        lines = archive.read("documents.jsonl").decode().splitlines()
        assert archive.comment == b"sha256:" + hashlib.sha256(exported.read_bytes()[:-71]).hexdigest().encode()
        for name, member in manifest["members"].items():
            content = archive.read(name)
            assert member == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert [len(json.loads(line)["chunks"]) for line in lines] == [2, 1, 1, 2]
    assert (manifest["documents"], manifest["chunks"], manifest["vectors"], manifest["dimension"]) == (
        4,
        6,
        6,
        1024,
    )


def test_equal_indexes_give_equal_files(folder: Path, exported: Path, tmp_path: Path) -> None:
    with Index.open(folder) as index:
        index.export(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == exported.read_bytes()
    assert stat.S_IMODE((tmp_path / "again").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["again"]


def test_files_that_did_not_change_are_not_read_again(documents: Path, exported: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for name, text in FILES.items():
        (moved / name).write_text(text, encoding="utf-8")
    Index.restore(exported, tmp_path / "new", rename={f"{documents}/": str(moved)})
    with Index.open(tmp_path / "new") as index:
        assert {source.source for source in index.sources()} == {"manual", *(str(moved / name) for name in FILES)}
        before = contents(index)
        report = index.ingest(moved)
        assert len(report.unchanged) == len(FILES)
        assert not report.changed
        (moved / "acta.txt").write_text("El ascensor cuesta 900 euros.", encoding="utf-8")
        report = index.ingest(moved)
        assert report.changed == [str(moved / "acta.txt")]
        assert index.verify().ok
    # The ids are those that an ingestion here would have given.
    with Index.open(tmp_path / "fresh", chunking=ChunkingSettings(max_characters=60)) as fresh:
        for name, text in FILES.items():
            (moved / name).write_text(text, encoding="utf-8")
        fresh.ingest([moved / "contrato.md", moved])
        fresh.add_documents(PARTS)
        assert contents(fresh) == before


def test_how_files_were_read_is_kept(tmp_path: Path) -> None:
    (tmp_path / "acta.txt").write_text("Acta.", encoding="utf-8")
    source = str(tmp_path / "acta.txt")
    with Index.open(tmp_path / "index") as index:
        index.ingest(tmp_path / "acta.txt")
        index.ledger.set_stamps({source: "1 2 3 4+op"})
        index.export(tmp_path / "file")
    Index.restore(tmp_path / "file", tmp_path / "new")
    with Index.open(tmp_path / "new") as index:
        assert index.ledger.stamps() == {source: "+op"}
        assert index.ingest(tmp_path / "acta.txt").unchanged == [source]


# ------------------------------------------------------------------------------------------- vectors and embedders


def test_waiting_chunks_stay_waiting(tmp_path: Path) -> None:
    with Index.open(tmp_path / "index", embeddings=SmallEmbeddings()) as index:
        index.add_documents(PARTS)
        index.add_documents([Document("Otro documento.", metadata={"source": "otro"})], vectors="later")
        assert index.export(tmp_path / "file").waiting == 1
        with pytest.raises(EmbeddingsMismatchError, match="SmallEmbeddings:small") as caught:
            Index.restore(tmp_path / "file", tmp_path / "new")
        assert "--embeddings" in caught.value.hint
        assert not (tmp_path / "new").exists()
        report = Index.restore(tmp_path / "file", tmp_path / "new", embeddings=SmallEmbeddings())
        assert report.waiting == 1
        with Index.open(tmp_path / "new", embeddings=SmallEmbeddings()) as new:
            assert contents(new) == contents(index)
            assert np.abs(vectors(new) - vectors(index)).max() <= 2**-23
            assert new.add_vectors() == 0
            assert new.verify().ok


def test_another_embedder_embeds_again(exported: Path, tmp_path: Path) -> None:
    report = Index.restore(exported, tmp_path / "small", embeddings=SmallEmbeddings())
    assert report.waiting == 6
    with Index.open(tmp_path / "small", embeddings=SmallEmbeddings()) as index:
        assert index.add_vectors() == 0
        index.export(tmp_path / "file")
    # Hashed words take no time, so nothing waits.
    assert Index.restore(tmp_path / "file", tmp_path / "hashed", embeddings="embedded").waiting == 0
    with Index.open(tmp_path / "hashed") as index:
        assert index.verify().ok
        assert vectors(index).shape == (6, 1024)


def test_vectors_come_to_documents_that_wait_for_them(tmp_path: Path) -> None:
    with Index.open(tmp_path / "one", embeddings=SmallEmbeddings()) as index:
        index.add_documents(PARTS)
        index.export(tmp_path / "file")
    with Index.open(tmp_path / "two", embeddings=SmallEmbeddings()) as index:
        index.add_documents(PARTS, vectors="later")
        assert index.ledger.count_waiting() == 2
    report = Index.restore(tmp_path / "file", tmp_path / "two", embeddings=SmallEmbeddings())
    assert (report.changed, report.waiting) == (1, 0)


@pytest.mark.parametrize("empty", [True, False])
def test_an_index_without_vectors_or_documents(empty: bool, tmp_path: Path) -> None:
    with Index.open(tmp_path / "index", embeddings=SmallEmbeddings()) as index:
        if not empty:
            index.add_documents(PARTS, vectors="later")
        index.export(tmp_path / "file")
    report = Index.restore(tmp_path / "file", tmp_path / "new", embeddings=SmallEmbeddings())
    assert (report.added, report.waiting) == ((0, 0) if empty else (1, 2))
    with Index.open(tmp_path / "new", embeddings=SmallEmbeddings()) as index:
        assert index.verify().ok


# ---------------------------------------------------------------------------------------------- into another index


def test_documents_replace_those_of_the_same_name_and_others_stay(exported: Path, tmp_path: Path) -> None:
    settings = ChunkingSettings(max_characters=60)
    with Index.open(tmp_path / "index", chunking=settings) as index:
        index.add_documents([Document("Viejo.", metadata={"source": "manual"})])
        index.add_documents([Document("La casa es azul.", metadata={"source": "mío"})])
    report = Index.restore(exported, tmp_path / "index")
    assert (report.added, report.changed, report.unchanged) == (3, 1, 0)
    with Index.open(tmp_path / "index") as index:
        assert len(index.sources()) == 5
        assert index.text("mío") == "La casa es azul."
        assert "caldera" in index.text("manual")
        assert index.verify().ok
        assert not index.ledger.uncommitted()
    assert Index.restore(exported, tmp_path / "index").unchanged == 4


def test_an_index_with_other_settings_is_left_alone(exported: Path, tmp_path: Path) -> None:
    document = Document("La casa es azul.", metadata={"source": "mío"})
    with Index.open(tmp_path / "chunking") as index:
        index.add_documents([document])
    with pytest.raises(ConfigurationError, match="built with the chunking"):
        Index.restore(exported, tmp_path / "chunking")
    with Index.open(tmp_path / "small", embeddings=SmallEmbeddings()) as index:
        index.add_documents([document])
    with pytest.raises(EmbeddingsMismatchError, match="SmallEmbeddings") as caught:
        Index.restore(exported, tmp_path / "small")
    assert "--embeddings" in caught.value.hint
    for name, embeddings in (("chunking", None), ("small", SmallEmbeddings())):
        with Index.open(tmp_path / name, embeddings=embeddings) as index:
            assert [source.source for source in index.sources()] == ["mío"]


def test_documents_that_another_algorithm_cut_are_read_again(
    exported: Path, documents: Path, tmp_path: Path
) -> None:
    with Index.open(tmp_path / "index", chunking=ChunkingSettings(max_characters=60)) as index:
        index.ingest(documents / "acta.txt")
        index.ledger.set_settings(chunking_algorithm="2")
        index.export(tmp_path / "old")
    # Into an empty index, the version comes along; beside newer documents, the hashes do not.
    Index.restore(tmp_path / "old", tmp_path / "new")
    with Index.open(tmp_path / "new") as index:
        assert index.ledger.setting("chunking_algorithm") == "2"
        assert len(index.ingest(documents / "acta.txt").changed) == 1
    with Index.open(tmp_path / "mixed", chunking=ChunkingSettings(max_characters=60)) as index:
        index.ingest(documents / "ata.txt")
    Index.restore(tmp_path / "old", tmp_path / "mixed")
    assert Index.restore(tmp_path / "old", tmp_path / "mixed").unchanged == 1
    with Index.open(tmp_path / "mixed") as index:
        report = index.ingest(documents)
        assert report.changed == [str(documents / "acta.txt")]
        assert report.unchanged == [str(documents / "ata.txt")]


# ----------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("rename", "source", "expected"),
    [
        ({"/home/ana": "/home/luz"}, "/home/ana/a.txt", "/home/luz/a.txt"),
        ({"/home/ana/": "/home/luz"}, "/home/ana/a.txt", "/home/luz/a.txt"),
        ({"/home/ana/a.txt": "/b.txt"}, "/home/ana/a.txt", "/b.txt"),
        ({"/": "/mnt"}, "/home/ana/a.txt", "/mnt/home/ana/a.txt"),
        ({"/home/ana": "/"}, "/home/ana/a.txt", "/a.txt"),
        ({"C:\\Users\\ana": "/home/ana"}, "C:\\Users\\ana\\b\\a.txt", "/home/ana/b/a.txt"),
        ({"/home/ana": "D:\\ana"}, "/home/ana/b/a.txt", "D:\\ana\\b\\a.txt"),
        ({"viejo": "nuevo"}, "viejo/a", "nuevo/a"),
    ],
)
def test_names_get_another_beginning(rename: dict[str, str], source: str, expected: str, tmp_path: Path) -> None:
    with Index.open(tmp_path / "index") as index:
        index.add_documents([Document("Hola.", metadata={"source": source, "title": source})])
        index.export(tmp_path / "file")
    Index.restore(tmp_path / "file", tmp_path / "new", rename=rename)
    with Index.open(tmp_path / "new") as index:
        (found,) = index.sources()
        (chunk,) = index.ledger.chunks(index.ledger.chunk_ids()).values()
        assert (found.source, found.title, chunk.metadata["source"], chunk.metadata["title"]) == (expected,) * 4


def test_names_that_cannot_be(exported: Path, documents: Path, tmp_path: Path) -> None:
    for rename, message in (
        ({str(documents)[:-1]: "/x"}, "No document of the export is in"),
        ({"": "/x"}, "empty name"),
        ({f"{documents}/acta.txt": "/x", f"{documents}/ata.txt": "/x"}, "would both get the name '/x'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            Index.restore(exported, tmp_path / "new", rename=rename)
        assert not (tmp_path / "new").exists()


# --------------------------------------------------------------------------------------------------- any documents

# What JSON can write; the ledger replaces half characters and NUL in names and texts.
_texts = st.text(st.characters(codec=None), max_size=30)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=6,
)
_reserved = {"source", "heading", "language", "sections", "kinds", "page_starts", "title", "content_hash"}
_documents = st.lists(
    st.builds(
        lambda text, source, metadata, name: Document(text, metadata={**metadata, "source": source}, id=name),
        st.text(st.characters(codec=None), min_size=1, max_size=200).filter(str.strip),
        st.sampled_from(["a", "b/ç", "😀", "\ud800x", "C:\\x", "https://x.es/?q=1#2", " ", "x" * 300]),
        st.dictionaries(_texts.filter(lambda key: key not in _reserved), _values, max_size=4),
        st.none() | _texts.filter(bool),
    ),
    max_size=4,
)


@pytest.mark.slow
@settings(max_examples=40)
@given(given_documents=_documents)
def test_any_documents_are_moved(
    given_documents: list[Document], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    with Index.open(folder / "index", chunking=ChunkingSettings(max_characters=50)) as index:
        index.add_documents(given_documents)
        index.export(folder / "file")
        Index.restore(folder / "file", folder / "new")
        with Index.open(folder / "new") as new:
            assert contents(new) == contents(index)
            assert new.verify().ok
            again = folder / "again"
            new.export(again)
            with ZipFile(again) as one, ZipFile(folder / "file") as other:
                assert one.read("documents.jsonl") == other.read("documents.jsonl")


# --------------------------------------------------------------------------------------------------------- damages


def test_no_damage_is_silent(exported: Path, folder: Path, tmp_path: Path) -> None:
    content = exported.read_bytes()
    dice = random.Random(7)
    for position in {
        *range(60),
        *range(len(content) - 120, len(content)),
        *dice.sample(range(len(content)), 300),
    }:
        damaged = bytearray(content)
        damaged[position] ^= dice.randrange(1, 256)
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(ExportFileError):
            Index.restore(tmp_path / "damaged", tmp_path / "new")
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("length", [0, 1, 29, 60, 77, 1_000, -1, -71, -93])
def test_a_cut_file(length: int, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(exported.read_bytes()[:length])
    with pytest.raises(ExportFileError, match=r"not an export|may have been cut"):
        Index.restore(tmp_path / "cut", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_files(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("manifest.json", "{}")
    (tmp_path / "text.txt").write_text("Hola")
    for name in ("other.zip", "text.txt"):
        with pytest.raises(ExportFileError, match="is not an export"):
            Index.restore(tmp_path / name, tmp_path / "new")
    for name in ("nothing", "."):
        with pytest.raises(ExportFileError, match="cannot be read"):
            Index.restore(tmp_path / name, tmp_path / "new")


def test_a_newer_format(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "newer").write_bytes(exported.read_bytes().replace(b"format=1", b"format=2"))
    with pytest.raises(ExportFileError, match="has the export format 2; this version reads formats up to 1"):
        Index.restore(tmp_path / "newer", tmp_path / "new")


# Files that were made to do harm have the right digests.


def forge(
    exported: Path, file: Path, change: Callable[[dict[str, Any], list[dict[str, Any]], bytearray], Any]
) -> None:
    """Write a changed export with right digests; ``change`` may return other bytes for the documents."""
    with ZipFile(exported) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        records = [json.loads(line) for line in archive.read("documents.jsonl").decode().splitlines()]
        numbers = bytearray(archive.read("vectors.f32"))
    lines = change(manifest, records, numbers)
    if not isinstance(lines, bytes):
        lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    members = {"documents.jsonl": lines, "vectors.f32": bytes(numbers)}
    for name, content in members.items():
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["members"][name] = manifest["members"].get(name) and entry
    with ZipFile(file, "w", ZIP_DEFLATED) as archive:
        archive.comment = b"sha256:" + b"0" * 64
        archive.writestr("mimetype", "application/x-lince-rag-index; format=1", 0)
        for name, content in {**members, "manifest.json": json.dumps(manifest)}.items():
            archive.writestr(name, content)
    content = file.read_bytes()[:-71]
    file.write_bytes(content + b"sha256:" + hashlib.sha256(content).hexdigest().encode())


def set_chunk(key: str, value: Any) -> Callable[..., None]:
    return lambda manifest, records, numbers: records[0]["chunks"][0]["metadata"].update({key: value})


def set_record(key: str, value: Any) -> Callable[..., None]:
    return lambda manifest, records, numbers: records[0].update({key: value})


def set_manifest(key: str, value: Any) -> Callable[..., None]:
    return lambda manifest, records, numbers: manifest.update({key: value})


def set_part(key: str, value: Any) -> Callable[..., None]:
    return lambda manifest, records, numbers: records[3]["parts"][0].update({key: value})


def set_number(value: float) -> Callable[..., None]:
    def change(manifest: Any, records: Any, numbers: bytearray) -> None:
        numbers[:4] = np.float32(value).tobytes()

    return change


HOSTILE: dict[str, Callable[..., Any]] = {
    "start before the text": set_chunk("start", -1),
    "end outside the text": set_chunk("end", 10**6),
    "end before the start": set_chunk("end", 0),
    "a start that is a text": set_chunk("start", "0"),
    "a start that is true": set_chunk("start", True),
    "a start that is a fraction": set_chunk("start", 0.5),
    "a heading that is a number": set_chunk("heading", 5),
    "a language that is a path": set_chunk("language", "../../x"),
    "nested metadata": set_chunk("x", {"y": []}),
    "an infinite number": lambda m, r, n: line_with(r, b'"kind": "prose"', b'"kind": 1e999'),
    "no number": lambda m, r, n: line_with(r, b'"kind": "prose"', b'"kind": NaN'),
    "half a character in metadata": set_chunk("x", "\ud800"),
    "pages that are none": set_chunk("page_starts", [5]),
    "a chunk with a source": set_chunk("source", "/etc/passwd"),
    "no source": set_record("source", ""),
    "a source that is a list": set_record("source", ["x"]),
    "half a character in a source": set_record("source", "\udfff"),
    "a text with NUL": set_record("text", "a\0" * 200),
    "a language that is none": set_record("language", "xx"),
    "chunks that are none": set_record("chunks", 5),
    "unknown options": set_record("options", "x"),
    "unknown keys": set_record("more", 1),
    "a document twice": lambda m, r, n: r.append(r[0]),
    "a chunk twice": lambda m, r, n: r[0]["chunks"].append(r[0]["chunks"][0]),
    "a chunk more": lambda m, r, n: r[0]["chunks"].pop(),
    "no vector": lambda m, r, n: r[0]["chunks"][0].update(vector=False),
    "a vector that is a number": lambda m, r, n: r[0]["chunks"][0].update(vector=1),
    "too many vectors": lambda m, r, n: n.extend(bytes(4096)),
    "too few vectors": lambda m, r, n: n.__delitem__(slice(4096)),
    "a part outside the text": set_part("end", 10**9),
    "a part without metadata": set_part("metadata", None),
    "a part with more": set_part("more", 1),
    "NaN": set_number(float("nan")),
    "an infinite vector": set_number(float("inf")),
    "a long vector": set_number(1e30),
    "a huge number of documents": set_manifest("documents", 10**15),
    "a number that is a text": set_manifest("chunks", "7"),
    "a huge dimension": set_manifest("dimension", 2**40),
    "no dimension": set_manifest("dimension", 0),
    "another chunking": set_manifest("chunking", {"max_characters": 0}),
    "unknown chunking": set_manifest("chunking", {"x": 0}),
    "options that are a list": set_manifest("embeddings_options", []),
    "unknown options of the embedder": set_manifest("embeddings_options", {"batch_size": "x"}),
    "a title that is a list": set_record("title", []),
    "half a character in a title": set_record("title", "\ud800"),
    "options of another kind": set_manifest("embeddings_options", {"model": 5}),
    "an embedder that is none": set_manifest("embeddings", None),
    "another format": set_manifest("format", 2),
    "more settings": set_manifest("x", 1),
    "other members": lambda m, r, n: m["members"].update({"../../x": {"bytes": 1, "sha256": ""}}),
    "no members": lambda m, r, n: m["members"].clear(),
    "no JSON": lambda m, r, n: b"{\n",
    "deep JSON": lambda m, r, n: b"[" * 100_000 + b"\n",
    "a long number": lambda m, r, n: line_with(r, b'"kind": "prose"', b'"kind": ' + b"1" * 10_000),
    "a list": lambda m, r, n: b"[]\n",
    "no end of the line": lambda m, r, n: line_with(r, b"", b"")[:-1],
    "no UTF-8": lambda m, r, n: b'{"source": "\xff"}\n',
}  # fmt: skip


def line_with(records: list[dict[str, Any]], old: bytes, new: bytes) -> bytes:
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    assert old in lines
    return lines.replace(old, new, 1) if old else lines


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_was_made_to_do_harm(name: str, exported: Path, tmp_path: Path) -> None:
    forge(exported, tmp_path / "file", HOSTILE[name])
    with pytest.raises(ExportFileError, match="is damaged"):
        Index.restore(tmp_path / "file", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_forged_without_a_change_is_read(exported: Path, folder: Path, tmp_path: Path) -> None:
    forge(exported, tmp_path / "file", lambda m, r, n: None)
    Index.restore(tmp_path / "file", tmp_path / "new")
    with Index.open(folder) as old, Index.open(tmp_path / "new") as new:
        assert contents(new) == contents(old)


def test_chunks_that_repeat_a_long_text(exported: Path, tmp_path: Path) -> None:
    def change(manifest: Any, records: list[dict[str, Any]], numbers: bytearray) -> None:
        first = records[0]["chunks"][0]["metadata"]
        records[0]["text"] = "a " * 10_000
        manifest["chunks"] += 9_999
        records[0]["chunks"] += [
            {"vector": False, "metadata": {**first, "start": 0, "end": 20_000 - n}} for n in range(10_000)
        ]

    forge(exported, tmp_path / "file", change)
    with pytest.raises(ExportFileError, match="repeat the text"):
        Index.restore(tmp_path / "file", tmp_path / "new")


def test_an_archive_with_other_members_or_a_long_directory(exported: Path, tmp_path: Path) -> None:
    def resign(content: bytes) -> bytes:
        return content[:-64] + hashlib.sha256(content[:-71]).hexdigest().encode()

    for names in (["mimetype", "../../x"], ["mimetype", *(f"{n:0100}" for n in range(20_000))]):
        with ZipFile(tmp_path / "file", "w") as archive:
            archive.comment = b"sha256:" + b"0" * 64
            for name in names:
                archive.writestr(name, "application/x-lince-rag-index; format=1")
        (tmp_path / "file").write_bytes(resign((tmp_path / "file").read_bytes()))
        with pytest.raises(ExportFileError, match=r"other members|part of the archive is too long"):
            Index.restore(tmp_path / "file", tmp_path / "new")
    assert not Path("../../x").exists()


def test_a_line_without_an_end_is_not_read_as_a_whole(exported: Path, tmp_path: Path) -> None:
    """300 MB of one line take 300 kB in the file."""
    pytest.importorskip("resource")
    forge(exported, tmp_path / "file", lambda m, r, n: b" " * (300 * 2**20))
    with pytest.raises(ExportFileError, match="a line is too long"):
        Index.restore(tmp_path / "file", tmp_path / "new")


def test_a_model_that_a_file_names_is_not_fetched(exported: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any], records: Any, numbers: Any) -> None:
        manifest.update(embeddings="someone/model", embeddings_options={"model": "someone/model"})

    forge(exported, tmp_path / "file", change)
    with pytest.raises(EmbeddingsMismatchError, match="someone/model"):
        Index.restore(tmp_path / "file", tmp_path / "new")


def test_vectors_of_another_length_than_the_embedders(exported: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any], records: Any, numbers: bytearray) -> None:
        del numbers[len(numbers) // 2 :]
        manifest["dimension"] = 512

    forge(exported, tmp_path / "file", change)
    with pytest.raises(EmbeddingsMismatchError, match="have 512 numbers"):
        Index.restore(tmp_path / "file", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_file_that_holds_more_than_the_disk(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file can hold terabytes of one letter; here the disk is small."""
    monkeypatch.setattr("lince_rag.index.moving._GROWTH", 2**40)
    with pytest.raises(LinceError, match="are free in"):
        Index.restore(exported, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# -------------------------------------------------------------------------------------------- damages of the index


def test_a_damaged_index_is_not_exported(folder: Path, tmp_path: Path) -> None:
    from shutil import copytree

    copytree(folder, tmp_path / "vectors")
    with Index.open(tmp_path / "vectors") as index:
        ids = index.ledger.ordered_ids()
        # Another text's vector.
        index.stores.vectors.read(ids)
        with index.stores.vectors.changing() as store:
            store._collection.upsert(ids[:1], [np.eye(1024, dtype=np.float32)[3]])
        with pytest.raises(IndexDamagedError, match="not the ones that were written: 1"):
            index.export(tmp_path / "file")
        with index.stores.vectors.changing() as store:
            store.delete(ids=ids[:2])
        with pytest.raises(IndexDamagedError, match="missing vectors: 2"):
            index.export(tmp_path / "file")
    copytree(folder, tmp_path / "ledger")
    with Index.open(tmp_path / "ledger") as index:
        index.ledger._execute("UPDATE documents SET text = 'x' || text WHERE source = 'manual'")
        with pytest.raises(IndexDamagedError, match="'manual' differs from its checksum"):
            index.export(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["ledger", "vectors"]


def test_what_could_not_be_imported_is_not_exported(tmp_path: Path) -> None:
    with Index.open(tmp_path / "index") as index:
        index.add_documents([Document("Hola.", metadata={"source": "raro", "page_starts": "x" * 10})])
        index.export(tmp_path / "file")
        index.ledger._execute("UPDATE chunks SET metadata = json_set(metadata, '$.page_starts', json('[1]'))")
        index.ledger._execute("DELETE FROM checksums")
        with pytest.raises(ExportFileError, match="'raro' cannot be exported: a chunk whose 'page_starts'"):
            index.export(tmp_path / "other")


# ------------------------------------------------------------------------------------------------- other processes

RESTORE = """
import sys
from lince_rag import Index
Index.restore(sys.argv[1], sys.argv[2], on_progress=lambda done, total, name: print(done, flush=True))
"""


@pytest.mark.slow
def test_a_killed_import_goes_on(tmp_path: Path) -> None:
    write_files(tmp_path / "documents", "uno", 300)
    with Index.open(tmp_path / "index") as index:
        index.ingest(tmp_path / "documents")
        index.export(tmp_path / "file")
        expected = contents(index)
    for reached in (1, 130, 260, 299):
        process = subprocess.Popen(
            [sys.executable, "-c", RESTORE, str(tmp_path / "file"), str(tmp_path / "new")],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            if int(line) >= reached:
                break
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    report = Index.restore(tmp_path / "file", tmp_path / "new")
    assert report.added + report.unchanged == 300
    assert report.unchanged > 0
    with Index.open(tmp_path / "new") as index:
        assert contents(index) == expected
        assert index.verify().ok
        assert not index.ledger.uncommitted()


def test_an_index_that_another_process_writes_to(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lince_rag.index.stores.LOCK_SECONDS", 0.2)
    holder = (
        "import sys; from lince_rag import Index\n"
        "with Index.open(sys.argv[1]) as index, index.stores.writing():\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "locked\n"
        with Index.open(folder) as index, pytest.raises(IndexLockedError, match="Another process is writing"):
            index.export(tmp_path / "file")
        process.stdin.close()
    assert os.listdir(tmp_path) == []


def test_an_index_that_cannot_be_written_and_changes(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Nobody can hold its lock; a change is noticed at the end."""
    with Index.open(folder) as index:
        monkeypatch.setattr(index.ledger, "read_only", True)

        def change(done: int, total: int, name: str) -> None:
            index.ledger.read_only = False
            index.ledger.set_settings(vector_changes=f"{int(index.ledger.setting('vector_changes') or 0) + 1}")
            index.ledger.read_only = True

        assert index.export(tmp_path / "one").documents == 4
        with pytest.raises(IndexLockedError, match="meanwhile"):
            index.export(tmp_path / "two", on_progress=change)
    assert os.listdir(tmp_path) == ["one"]


def test_nothing_is_left_of_an_interrupted_export(folder: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, name: str) -> None:
        if done == 2:
            assert len(os.listdir(tmp_path)) == 1
            raise KeyboardInterrupt

    with Index.open(folder) as index, pytest.raises(KeyboardInterrupt):
        index.export(tmp_path / "file", on_progress=interrupt)
    assert os.listdir(tmp_path) == []


# -------------------------------------------------------------------------------------------------------- commands


def test_the_commands(folder: Path, documents: Path, tmp_path: Path) -> None:
    file, new = str(tmp_path / "casa.lince"), str(tmp_path / "new")
    out, _ = run("export", file, "--index", str(folder))
    assert "4 documentos, 6 fragmentos" in out
    _, err = run("export", file, "--index", str(folder), status=2)
    assert "ya existe" in err
    assert "--force" in err
    run("export", file, "--index", str(folder), "--force")
    out, _ = run("import", file, "--index", new, "--rename", f"{documents}=/home/luz")
    assert "4 documentos nuevos, 0 reemplazados, 0 sin cambios" in out
    out, _ = run("import", file, "--index", new, "--rename", f"{documents}=/home/luz", LC_ALL="pt_BR.UTF-8")
    assert "4 sem alterações" in out
    assert "815 euros" in run("ask", QUESTIONS[0], "--index", new)[0]
    assert "/home/luz/acta.txt" in run("status", "--list", "--index", new)[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "{tmp}/x", "--index", "{tmp}/none"], "No hay ningún índice"),
        (["export", "{tmp}", "--index", "{index}"], "es una carpeta"),
        (["export", "{tmp}/no/x", "--index", "{index}"], "No se ha podido escribir el archivo"),
        (["export"], "Falta el argumento"),
        (["import", "{tmp}/x", "--index", "{tmp}/new"], "No se puede leer el archivo"),
        (["import", __file__, "--index", "{tmp}/new"], "no es un índice exportado"),
        (["import", "{file}", "--index", "{tmp}/new", "--rename", "x"], "no dice qué pasa a ser qué"),
        (
            ["import", "{file}", "--index", "{tmp}/new", "--rename", "/q=/r"],
            "Ningún documento exportado está en '/q'",
        ),
        (["import", "{file}", "--index", "{tmp}/new", "--embeddings", "no/such"], "no/such"),
    ],
)
def test_wrong_commands(arguments: list[str], said: str, folder: Path, exported: Path, tmp_path: Path) -> None:
    given = [each.format(tmp=tmp_path, index=folder, file=exported) for each in arguments]
    out, err = run(*given, status=2)
    assert said in err
    assert not out


@pytest.fixture
def many(tmp_path: Path) -> Path:
    with Index.open(tmp_path / "many") as index:
        index.ingest([Document(f"La finca {n} tiene olivos.", metadata={"source": f"{n}"}) for n in range(3_000)])
    return tmp_path / "many"


@pytest.mark.slow
def test_ctrl_c(many: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "en_US.UTF-8"}

    def interrupted(*arguments: str, when: Callable[[], bool]) -> str:
        process = subprocess.Popen(
            [sys.executable, "-m", "lince_rag.cli.app", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        while not when():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, (out, err)
        assert "Traceback" not in err
        return out

    folder = tmp_path / "files"
    folder.mkdir()

    def begun() -> bool:
        return any(file.stat().st_size for file in folder.iterdir())

    said = interrupted("export", str(folder / "x"), "--index", str(many), when=begun)
    assert "has not been written" in said
    assert os.listdir(folder) == []
    with Index.open(many) as index:
        index.export(folder / "x")
    ledger = tmp_path / "new" / "write.lock"
    interrupted("import", str(folder / "x"), "--index", str(tmp_path / "new"), when=ledger.exists)
    assert Index.restore(folder / "x", tmp_path / "new").waiting == 0
    with Index.open(tmp_path / "new") as index:
        assert len(index.sources()) == 3_000
        assert index.verify().ok


def test_an_open_export_says_what_it_holds(exported: Path) -> None:
    with ExportFile(exported) as export:
        assert export.manifest.embeddings == "embedded/2/1024"
        assert export.manifest.chunking == {"max_characters": 60, "overlap_sentences": 0}
        assert export.size > 6 * 4096
