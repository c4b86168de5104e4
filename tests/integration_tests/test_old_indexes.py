"""Indexes and export files of earlier versions: opened, asked, checked, exported, moved, ingested into."""

import tarfile
import zlib
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from langchain_core.documents import Document

from lince_rag import ChatLince, Index, create_rag_chain
from lince_rag.documents.chunking import ALGORITHM_VERSION
from lince_rag.errors import EmbeddingsMismatchError
from lince_rag.index.export_files import ExportFile, ExportWriter
from lince_rag.index.ledger import FORMAT
from tests.integration_tests.commands import run
from tests.integration_tests.old_indexes.make import COMMITS, DOCUMENTS, FILES

ARCHIVES = Path(__file__).parent / "old_indexes"
EXPORT = ARCHIVES / "format-1.lince"

# The version of the hashed words has changed since.
REBUILT = ["58734d5"]
CURRENT = [commit for commit in COMMITS if commit not in REBUILT]

# What they were cut by; the first ones did not say.
CHUNKING = {"58734d5": "", "5b28542": "", "aedf4ba": "2", "8d35e27": "2", "ffb788a": "2"} | dict.fromkeys(
    ("1c03121", "a534c17"), "3"
)

# The zlib that wrote the export file; another one may compress in another way.
ZLIB = "1.2.13"


def unpack(commit: str, folder: Path) -> Path:
    with tarfile.open(ARCHIVES / f"{commit}.tar.xz") as archive:
        archive.extractall(folder / "index", filter="data")
    return folder / "index"


def write_documents(folder: Path) -> Path:
    (folder / "documents").mkdir()
    for name, text in FILES.items():
        (folder / "documents" / name).write_text(text, encoding="utf-8")
    return folder / "documents"


def assert_complete(index: Index, documents: Path | str = DOCUMENTS) -> None:
    """It has the three documents, answers from them, and all its files are in order."""
    names = {f"{documents}/{name}": text.rstrip() for name, text in FILES.items()}
    names["manual"] = "La caldera tiene 1,5 bar."
    assert {source.source: index.text(source.source) for source in index.sources()} == names
    chain = create_rag_chain(ChatLince(), index.as_retriever())
    answer = chain.invoke("¿Cuánto es la fianza?")
    assert "815 euros" in answer.text
    (citation, *_) = answer.citations
    assert citation.source == f"{documents}/contrato.md"
    assert index.text(citation.source)[citation.start : citation.end] == citation.quote
    assert "1.100 euros" in chain.invoke("Quanto custa o elevador?").text
    (chunk,) = index.as_retriever(filter={"source": "manual"}).invoke("caldera")
    assert chunk.metadata["autor"] == "Ana"
    assert index.verify().ok


def test_every_archive_is_tried() -> None:
    assert {file.name.partition(".")[0] for file in ARCHIVES.glob("*.tar.xz")} == set(COMMITS)


@pytest.mark.parametrize("commit", CURRENT)
def test_an_old_index_is_asked_checked_and_written_to(commit: str, tmp_path: Path) -> None:
    with Index.open(unpack(commit, tmp_path)) as index:
        assert_complete(index)
        assert index.ledger.setting("format") == str(FORMAT)
        assert (index.ledger.setting("chunking_algorithm") or "") == CHUNKING.get(commit, str(ALGORITHM_VERSION))
        index.add_documents([Document("El tejado es de pizarra.", metadata={"source": "nuevo"}, id="a")])
        index.add_documents([Document("La puerta es de roble.", metadata={"source": "nuevo"}, id="b")])
        assert index.as_retriever(k=1).invoke("¿De qué es la puerta?")[0].metadata["document_id"] == "b"
        index.delete("nuevo")
        assert_complete(index)


@pytest.mark.parametrize("commit", CURRENT)
def test_the_files_of_an_old_index_are_read_again_if_they_would_be_cut_otherwise(
    commit: str, tmp_path: Path
) -> None:
    documents = write_documents(tmp_path)
    with Index.open(unpack(commit, tmp_path)) as index:
        index.export(tmp_path / "file")
    report = Index.restore(tmp_path / "file", tmp_path / "new", rename={str(DOCUMENTS): str(documents)})
    assert (report.added, report.waiting) == (3, 0)
    with Index.open(tmp_path / "new") as index:
        assert_complete(index, documents)
        report2 = index.ingest(documents)
        names = sorted(f"{documents}/{name}" for name in FILES)
        assert sorted(report2.changed if commit in CHUNKING else report2.unchanged) == names
        assert not report2.added
        assert not report2.failed
        assert_complete(index, documents)
        found = index.as_retriever(filter={"source": names[0]}).invoke("elevador")
        assert [chunk.metadata["kind"] for chunk in found] == ["prose"]


@pytest.mark.parametrize("commit", COMMITS)
def test_an_old_index_is_built_again_and_repaired(commit: str, tmp_path: Path) -> None:
    folder = unpack(commit, tmp_path)
    Index.rebuild(folder, embeddings="embedded")
    with Index.open(folder) as index:
        assert_complete(index)
        index.purge()
        (folder / "chroma" / "chroma.sqlite3").write_bytes(b"x" * 1000)
        assert index.verify(repair=True).repaired
        assert_complete(index)


@pytest.mark.parametrize("commit", REBUILT)
def test_an_index_with_older_hashes_is_moved_with_new_ones(commit: str, tmp_path: Path) -> None:
    folder = unpack(commit, tmp_path)
    with pytest.raises(EmbeddingsMismatchError, match="embedded/1/1024") as caught:
        Index.open(folder)
    assert "--rebuild" in caught.value.hint
    run("export", str(tmp_path / "file"), "--index", str(folder))
    run("import", str(tmp_path / "file"), "--index", str(tmp_path / "new"))
    with Index.open(tmp_path / "new") as index:
        assert_complete(index)


# ---------------------------------------------------------------------------------------------------- export files


def test_an_export_of_format_1_is_read(tmp_path: Path) -> None:
    Index.restore(EXPORT, tmp_path / "new")
    with Index.open(tmp_path / "new") as new, Index.open(unpack("1c03121", tmp_path)) as old:
        assert_complete(new)
        ids = old.ledger.ordered_ids()
        assert new.ledger.ordered_ids() == ids
        assert new.ledger.chunks(ids) == old.ledger.chunks(ids)
        assert [new.ledger.parts(name) for name in new.ledger.ordered_sources()] == [
            old.ledger.parts(name) for name in old.ledger.ordered_sources()
        ]


def test_an_index_is_still_exported_as_then(tmp_path: Path) -> None:
    with Index.open(unpack("1c03121", tmp_path)) as index:
        index.export(tmp_path / "file")
    with ZipFile(tmp_path / "file") as new, ZipFile(EXPORT) as old:
        assert new.namelist() == old.namelist()
        for name in ("mimetype", "documents.jsonl"):
            assert new.read(name) == old.read(name)
        vectors = [np.frombuffer(archive.read("vectors.f32"), "<f4") for archive in (new, old)]
        # Chroma computes with what the processor has; the last bit may differ.
        assert np.abs(vectors[0] - vectors[1]).max() <= 2**-23


def test_the_bytes_of_the_file_are_those_of_then(tmp_path: Path) -> None:
    with ExportFile(EXPORT) as export, (tmp_path / "file").open("w+b") as stream, ExportWriter(stream) as writer:
        read = list(export.records())
        writer.documents(record for record, _ in read)
        writer.vectors(array for _, array in read)
        writer.finish(export.manifest)
    if zlib.ZLIB_RUNTIME_VERSION == ZLIB:
        assert (tmp_path / "file").read_bytes() == EXPORT.read_bytes()
    with ZipFile(tmp_path / "file") as new, ZipFile(EXPORT) as old:
        assert {name: new.read(name) for name in new.namelist()} == {
            name: old.read(name) for name in old.namelist()
        }
