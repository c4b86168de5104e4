import sqlite3
import threading
from itertools import combinations, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from lince_rag.documents.prepared import PreparedDocument
from lince_rag.errors import IndexFolderError
from lince_rag.index.ledger import FORMAT, Source
from lince_rag.index.sqlite import FolderLedger


@pytest.fixture
def ledger(tmp_path):
    ledger = FolderLedger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def commit(ledger, source, text, spans=None, **metadata):
    metadata = {"source": source, "language": "es", "content_hash": f"hash of {text}"} | metadata
    chunks = [
        Document(
            id=f"{source}-{start}-{end}",
            page_content=text[start:end],
            metadata=metadata | {"start": start, "end": end},
        )
        for start, end in spans or [(0, len(text))]
    ]
    with ledger.transaction():
        ledger.commit(PreparedDocument(Document(page_content=text, metadata=metadata), chunks, [], []))
        ledger.advance()
    return chunks


def test_a_committed_document_comes_back(ledger):
    text = "Año 😀 nuevo. Vida nueva."
    chunks = commit(ledger, "a.txt", text, [(0, 12), (13, 24)], title="Año")
    assert ledger.sources() == [Source("a.txt", "Año", "es", 2, len(text), f"hash of {text}")]
    assert ledger.content_hashes() == {"a.txt": f"hash of {text}"}
    assert ledger.text("a.txt") == text
    assert ledger.chunk_ids() == ledger.chunk_ids("a.txt") == {chunk.id for chunk in chunks}
    assert ledger.chunks([*ledger.chunk_ids(), "unknown"]) == {chunk.id: chunk for chunk in chunks}


@settings(max_examples=50)
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40), st.data()
)
def test_a_chunk_is_always_its_piece_of_the_text(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    ledger = FolderLedger(":memory:")
    (chunk,) = commit(ledger, "s", text, [(start, end)])
    assert ledger.chunks([chunk.id])[chunk.id].page_content == text[start:end]
    ledger.close()


def test_an_unknown_source_has_no_text_and_no_chunks(ledger):
    assert ledger.text("x") is None
    assert ledger.chunk_ids("x") == set()
    assert ledger.chunks([]) == {}


def test_a_new_version_replaces_the_old_one_and_its_chunks(ledger):
    old = commit(ledger, "a", "uno dos", [(0, 3), (4, 7)])
    other = commit(ledger, "b", "otro")
    new = commit(ledger, "a", "tres cuatro", [(0, 11)])
    assert ledger.chunk_ids() == {new[0].id, other[0].id}
    assert not ledger.chunks([chunk.id for chunk in old])
    assert ledger.text("a") == "tres cuatro"


def test_a_failed_transaction_leaves_nothing_behind(ledger):
    commit(ledger, "a", "uno")
    before = (ledger.sources(), ledger.chunk_ids(), ledger.generation, ledger.uncommitted())
    with pytest.raises(RuntimeError, match="stop"), ledger.transaction():
        ledger.forget("a")
        ledger.set_uncommitted(add=["x"])
        ledger.advance()
        raise RuntimeError("stop")
    assert (ledger.sources(), ledger.chunk_ids(), ledger.generation, ledger.uncommitted()) == before
    commit(ledger, "b", "dos")


def test_another_connection_sees_only_what_is_committed(ledger, tmp_path):
    reader = FolderLedger(tmp_path / "ledger.sqlite")
    commit(ledger, "a", "uno")
    with ledger.transaction():
        ledger.forget("a")
        assert [source.source for source in reader.sources()] == ["a"]
    assert reader.sources() == []
    reader.close()


def test_every_commit_advances_the_generation(ledger):
    assert ledger.generation == 0
    commit(ledger, "a", "uno")
    commit(ledger, "a", "dos")
    assert ledger.generation == 2


def test_uncommitted_ids_are_a_set_that_survives(ledger, tmp_path):
    ledger.set_uncommitted(add=["a", "b", "b"])
    ledger.set_uncommitted(add=["b", "c"], remove=["a", "unknown"])
    ledger.close()
    again = FolderLedger(tmp_path / "ledger.sqlite")
    assert again.uncommitted() == {"b", "c"}
    again.close()


def test_noting_many_ids_is_one_write(ledger):
    statements = []
    ledger._connection.set_trace_callback(statements.append)
    ledger.set_uncommitted(add=[str(number) for number in range(500)])
    assert statements.count("COMMIT") == 1
    with ledger.transaction():
        ledger.set_uncommitted(remove=["1"])
    assert statements.count("COMMIT") == 2


def test_many_chunks_are_read_in_one_call(ledger):
    chunks = commit(ledger, "a", "a" * 250, islice(combinations(range(251), 2), 25_000))
    assert len(ledger.chunks(chunk.id for chunk in chunks)) == 25_000


@pytest.mark.parametrize("title", [None, "", 0, 7, ["una", "lista"], {"es": "x"}])
def test_any_title_is_kept_as_text(ledger, title):
    commit(ledger, "a", "uno", title=title)
    assert ledger.sources()[0].title == str(title or "a")


def test_threads_share_a_ledger(ledger):
    errors = []

    def work(number):
        try:
            for version in range(10):
                commit(ledger, f"s{number}", f"texto {version}")
                assert ledger.text(f"s{number}") == f"texto {version}"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(ledger.sources()) == 8
    assert ledger.generation == 80


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(IndexFolderError, match=r"ledger\.sqlite"):
        FolderLedger(path)


def test_the_format_is_written_and_another_one_refused(tmp_path):
    path = tmp_path / "ledger.sqlite"
    ledger = FolderLedger(path)
    assert ledger.setting("format") == str(FORMAT)
    ledger.set_settings(format=str(FORMAT + 1))
    ledger.close()
    with pytest.raises(IndexFolderError, match=f"format {FORMAT + 1}"):
        FolderLedger(path)


def test_a_closed_ledger_can_be_closed_again(ledger):
    ledger.close()
    ledger.close()
    with pytest.raises(sqlite3.ProgrammingError):
        ledger.sources()


def test_another_version_of_the_chunking_forgets_the_hashes_once(ledger):
    commit(ledger, "a.txt", "Hola.")
    ledger.expect_algorithm(2)
    assert ledger.content_hashes() == {"a.txt": ""}
    commit(ledger, "a.txt", "Hola.")
    ledger.expect_algorithm(2)
    assert ledger.content_hashes() == {"a.txt": "hash of Hola."}
