"""An index on a real PostgreSQL and a real Chroma server does what one in a folder does, for many at once."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from lince_rag import ChatLince, Index, create_rag_chain
from lince_rag.cli.options import AnswerOptions
from lince_rag.cli.remote import running_server
from lince_rag.documents.prepared import PreparedDocument
from lince_rag.errors import ConfigurationError, EmbeddingsMismatchError, IndexLockedError, IndexServerError
from lince_rag.index.conditions import filter_to_sql
from lince_rag.index.ledger import Ledger
from lince_rag.index.locations import SharedLocation, find_location, index_argument
from lince_rag.index.postgresql import SharedLedger
from lince_rag.index.sqlite import FolderLedger
from tests.damage import SmallEmbeddings
from tests.database_servers import Servers, database_servers, postgresql_programs
from tests.servers import serving

pytestmark = pytest.mark.skipif(postgresql_programs() is None, reason="PostgreSQL's server is not installed")

NUMBERS = count(1)
QUESTIONS = [
    "¿Cuándo vence el contrato de alquiler?",
    "¿Cuánto cuesta el ascensor?",
    "¿Quién riega los olivos?",
    "Quanto custa a caldeira?",
]
TEXTS = {
    "contrato": "El contrato de alquiler vence el 30 de junio de 2027. La fianza es de 900 euros.",
    "acta": "La junta aprobó el ascensor, que cuesta 41.100 euros y se paga en doce meses.",
    "huerta": "Los olivos los riega Marta los lunes. El pozo tiene cuatro metros.",
    "caldeira": "A caldeira nova custa 2.300 euros e tem garantia de cinco anos.",
    "vacío": "…",
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with database_servers(tmp_path_factory.mktemp("servers")) as running:
        yield running


@pytest.fixture
def address(servers: Servers, tmp_path: Path) -> str:
    """A new index."""
    return servers.index(f"c{next(NUMBERS)}", tmp_path / "replica")


def documents(**metadata: object) -> list[Document]:
    return [Document(text, metadata={"source": source, **metadata}) for source, text in TEXTS.items()]


def notes(first: int, last: int) -> list[Document]:
    text = "La finca {n} tiene {olives} olivos, {n} pozos y una casa."
    return [
        Document(text.format(n=n, olives=7 * n), metadata={"source": f"finca-{n}", "n": n})
        for n in range(first, last)
    ]


def answers(index: Index) -> list[tuple[str, list[tuple[str, int, int]], bool]]:
    chain = create_rag_chain(ChatLince(), index.as_retriever())
    found = []
    for question in QUESTIONS:
        answer = chain.invoke(question)
        citations = [(each.source, each.start, each.end) for each in answer.citations]
        found.append((answer.text, citations, answer.abstained))
    return found


def same_in_both(one: Index, other: Index) -> None:
    assert one.sources() == other.sources()
    assert one.ledger.chunk_ids() == other.ledger.chunk_ids()
    assert answers(one) == answers(other)
    for question in QUESTIONS:
        for weight in (0.0, 0.5, 1.0):
            found = [index.as_retriever(k=4, lexical_weight=weight).invoke(question) for index in (one, other)]
            assert [chunk.id for chunk in found[0]] == [chunk.id for chunk in found[1]]
            scores = [[chunk.metadata["score"] for chunk in each] for each in found]
            assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("embeddings", ["embedded", SmallEmbeddings()], ids=["hashed", "later"])
def test_it_is_the_index_of_a_folder(address: str, tmp_path: Path, embeddings: str) -> None:
    changed = [Document("Los olivos los riega Julio los martes.", metadata={"source": "huerta"})]
    with (
        Index.open(address, embeddings=embeddings) as shared,
        Index.open(tmp_path / "folder", embeddings=embeddings) as folder,
    ):
        for index in (shared, folder):
            report = index.ingest(documents())
            assert (len(report.added), report.waiting) == (5, 0)
        same_in_both(shared, folder)
        for index in (shared, folder):
            assert index.ingest(documents()).unchanged == sorted(TEXTS, key=list(TEXTS).index)
            assert index.ingest(changed).changed == ["huerta"]
            assert index.delete("acta") == 1
            assert index.add_documents([Document("El tejado es de 1980.", metadata={"source": "casa"})], ids=["t"])
        same_in_both(shared, folder)
        assert shared.verify().ok
    with (
        Index.open(address, embeddings=embeddings) as again,
        Index.open(tmp_path / "folder", embeddings=embeddings) as folder,
    ):
        same_in_both(again, folder)
        assert again.summary()["languages"] == folder.summary()["languages"]
        assert again.text("casa") == "El tejado es de 1980."
    with pytest.raises(EmbeddingsMismatchError):
        Index.open(address, embeddings="embedded" if embeddings != "embedded" else SmallEmbeddings())


@pytest.mark.parametrize("embeddings", ["embedded", SmallEmbeddings()], ids=["hashed", "later"])
def test_an_index_moves_to_the_servers_and_back(address: str, tmp_path: Path, embeddings: str) -> None:
    """What is exported on either side is the same file, and a copy answers as the first one."""
    with Index.open(tmp_path / "folder", embeddings=embeddings) as folder:
        folder.ingest([*documents(page=1), *notes(0, 30)])
        folder.delete("finca-7")
        folder.export(tmp_path / "first.lince")
        Index.restore(tmp_path / "first.lince", address, embeddings=embeddings)
        with Index.open(address, embeddings=embeddings) as shared:
            assert shared.verify().ok
            assert shared.sources() == folder.sources()
            assert answers(shared) == answers(folder)
            shared.export(tmp_path / "second.lince")
    with ZipFile(tmp_path / "first.lince") as first, ZipFile(tmp_path / "second.lince") as second:
        assert first.read("documents.jsonl") == second.read("documents.jsonl")
        # Chroma normalises vectors once more when they are written.
        vectors = [np.frombuffer(each.read("vectors.f32"), "<f4") for each in (first, second)]
        assert np.abs(vectors[0] - vectors[1]).max() <= 2**-23


def test_files_are_read_changed_and_removed(address: str, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text)
    with Index.open(address, embeddings="embedded") as index:
        report = index.ingest(folder)
        # One has no text.
        assert (len(report.added), len(report.failed)) == (4, 1)
        assert len(index.ingest(folder).unchanged) == 4
        (folder / "acta.txt").unlink()
        assert [Path(source).name for source in index.ingest(folder).removed] == ["acta.txt"]
        assert len(index.sources()) == 3


keys = st.sampled_from(["page", "título", "a.b", "$", "'; DROP TABLE chunks; --", "back\\slash", "line\nbreak"])
scalars = st.one_of(
    st.integers(-3, 3),
    st.integers(-6, 6).map(lambda number: number / 2),
    st.booleans(),
    st.sampled_from(["", "es", "Z", "a", "ñ", "😀", "it's", 'quo"te', "%", "%s", "?", "a\\b", "\n", "2"]),
    st.sampled_from([2**63 - 1, -(2**63)]),
)
comparisons = st.one_of(
    st.tuples(st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), scalars),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(scalars, max_size=4)),
)
named = keys.filter(lambda key: not key.startswith("$"))
filters = st.dictionaries(
    named, st.one_of(scalars, st.lists(comparisons, min_size=1, max_size=2).map(dict)), max_size=3
)


@pytest.fixture(scope="module")
def ledgers(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, Ledger]]:
    location = find_location(servers.index("filters", tmp_path_factory.mktemp("replica")))
    assert isinstance(location, SharedLocation)
    shared, embedded = SharedLedger(location), FolderLedger(":memory:")
    yield shared, embedded
    shared.close()
    embedded.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.dictionaries(named, scalars, max_size=4), min_size=1, max_size=6), st.lists(filters, max_size=10)
)
def test_filters_select_the_same(ledgers: tuple[Ledger, Ledger], metadata: list[dict], wanted: list[dict]) -> None:
    prepared = []
    for number, each in enumerate(metadata):
        own = {"source": f"n{number}", "language": "es", "content_hash": "h", "start": 0, "end": 1, **each}
        chunk = Document(id=f"chunk-{number}", page_content="x", metadata=own)
        prepared.append(PreparedDocument(Document(page_content="x", metadata=own), [chunk], [], []))
    selected = []
    for ledger in ledgers:
        with ledger.transaction():
            ledger.forget(*(source.source for source in ledger.sources()))
            ledger.commit(*prepared)
        selected.append([ledger.select_ids(*filter_to_sql(each, ledger.SYNTAX)) for each in wanted])
    assert selected[0] == selected[1]


def test_long_lists_and_keys(address: str) -> None:
    with Index.open(address, embeddings="embedded") as index:
        index.ingest(notes(0, 12))
        many = [f"finca-{n}" for n in range(5, 3_000)]
        assert len(index.as_retriever(k=20, filter={"source": {"$in": many}}).invoke("olivos")) == 7
        index.ingest(Document("Un gato.", metadata={"source": "gato", "of": "nombre"}))
        assert len(index.as_retriever(filter={"of": {"$in": [*many, "nombre"]}}).invoke("gato")) == 1
        assert {"n", "of", "source"} <= set(index.ledger.metadata_keys())
        assert len(index.as_retriever(k=20, filter={"n": {"$gte": 4}}).invoke("olivos")) == 8


def test_another_machine_sees_what_is_committed(servers: Servers, tmp_path: Path) -> None:
    one, other = servers.index("machines", tmp_path / "one"), servers.index("machines", tmp_path / "other")
    with Index.open(one, embeddings="embedded") as writer, Index.open(other) as reader:
        assert reader.as_retriever().invoke("olivos") == []
        writer.ingest(documents())
        assert answers(reader) == answers(writer)
        writer.ingest(Document("Los olivos los riega Julio.", metadata={"source": "huerta"}))
        (first, *_) = reader.as_retriever(lexical_weight=1.0).invoke("¿Quién riega los olivos?")
        assert first.page_content == "Los olivos los riega Julio."
        writer.delete("huerta")
        assert all(chunk.metadata["source"] != "huerta" for chunk in reader.as_retriever().invoke("olivos"))
        # The copy of a machine that was away while the index was purged is made again.
        assert reader.verify().ok
        assert reader.stores.lexical.unknown(["oliv"]) == {"oliv"}
        assert answers(reader) == answers(writer)


def test_collections_know_nothing_of_each_other(servers: Servers, tmp_path: Path) -> None:
    one, other = servers.index("tenant_a", tmp_path / "a"), servers.index("tenant_b", tmp_path / "b")
    with (
        Index.open(one, embeddings="embedded") as first,
        Index.open(other, embeddings=SmallEmbeddings()) as second,
    ):
        first.ingest(documents())
        second.ingest(notes(0, 3))
        assert {source.source for source in second.sources()} == {"finca-0", "finca-1", "finca-2"}
        found = second.as_retriever(k=9).invoke("olivos")
        assert {chunk.metadata["source"] for chunk in found} == {"finca-0", "finca-1", "finca-2"}
        assert first.verify().ok
        assert second.verify().ok
        second.delete("finca-0")
        assert len(first.sources()) == 5


WRITER = """
import sys
from langchain_core.documents import Document
from lince_rag import Index
address, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with Index.open(address, embeddings="embedded") as index:
    print("open", flush=True)
    for start in range(first, last, 20):
        index.ingest([
            Document(f"La finca {n} tiene {n * 7} olivos, {n} pozos y una casa.",
                     metadata={"source": f"finca-{n}", "n": n})
            for n in range(start, min(start + 20, last))
        ])
        print(start, flush=True)
"""


def writer(address: str, first: int, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, address, str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_two_writers_at_once(servers: Servers, tmp_path: Path) -> None:
    addresses = [servers.index("writers", tmp_path / name) for name in ("one", "other")]
    # Half of what one writes, the other writes, too.
    writers = [writer(addresses[0], 0, 120), writer(addresses[1], 60, 180)]
    for each in writers:
        assert each.wait(300) == 0
    with (
        Index.open(addresses[0]) as shared,
        Index.open(tmp_path / "folder", embeddings="embedded") as folder,
    ):
        folder.ingest(notes(0, 180))
        assert shared.sources() == folder.sources()
        assert shared.ledger.chunk_ids() == folder.ledger.chunk_ids()
        assert shared.ledger.uncommitted() == set()
        report = shared.verify()
        assert (report.ok, report.chunks) == (True, 180)
        for n in (3, 77, 140):
            (first, *_) = shared.as_retriever(lexical_weight=1.0).invoke(f"¿Cuántos olivos tiene la finca {n}?")
            assert first.metadata["source"] == f"finca-{n}"


def test_a_writer_that_is_killed_loses_and_doubles_nothing(servers: Servers, tmp_path: Path) -> None:
    address = servers.index("killed", tmp_path / "replica")
    for batches in (0, 1, 2):
        process = writer(address, 0, 200)
        assert process.stdout
        for _ in range(batches + 1):
            process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    with Index.open(address) as index:
        # Another writer is not kept waiting by the locks of a process that is gone.
        assert len(index.ingest(notes(0, 200)).unchanged) >= 20
        assert len(index.sources()) == 200
        report = index.verify()
        assert (report.ok, report.chunks, report.stray) == (True, 200, [])


def test_readers_see_one_version_of_a_document(address: str) -> None:
    """A document of three chunks is replaced again and again; each retrieval finds chunks of one version."""

    def version(number: int) -> Document:
        text = "Capítulo {name} de la versión {number}. " + "El olivar {name} da aceite. " * 40
        parts = [text.format(name=name, number=number) for name in "ABC"]
        return Document("\n\n".join(parts), metadata={"source": "libro", "version": number})

    with Index.open(address, embeddings="embedded") as index:
        index.ingest(version(0))
        assert len(index.ledger.chunk_ids()) >= 3

        def read(_: int) -> set[int]:
            # One statement of the ledger says what is committed.
            found = index.ledger.chunks(index.ledger.chunk_ids())
            return {chunk.metadata["version"] for chunk in found.values()}

        with ThreadPoolExecutor(2) as executor:
            reads = [executor.submit(read, n) for n in range(40)]
            for number in range(1, 8):
                index.ingest(version(number))
                index.as_retriever().invoke("¿Qué da el olivar B?")
            seen = [each.result() for each in reads]
        assert all(len(versions) <= 1 for versions in seen)
        assert {chunk.metadata["version"] for chunk in index.as_retriever().invoke("olivar")} == {7}


def test_what_is_missing_on_the_servers_is_noticed_and_repaired(address: str) -> None:
    with Index.open(address, embeddings=SmallEmbeddings()) as index:
        index.ingest([*documents(), *notes(0, 20)])
        expected = answers(index)
        with index.stores.vectors.open() as store:
            found = store._collection.get(include=["embeddings"])
            store.delete(ids=found["ids"][:3])
            store._collection.upsert([found["ids"][5]], [found["embeddings"][6]])
            store._collection.upsert(["stray"], [found["embeddings"][6]])
        report = index.verify()
        assert not report.ok
        assert set(found["ids"][:3]) <= set(report.missing_vectors)
        assert report.stray == ["stray"]
        assert index.verify(repair=True).repaired
        assert index.verify().ok
        assert answers(index) == expected
        index.ledger._execute_many("UPDATE documents SET text = ? WHERE source = ?", [("Otra cosa.", "acta")])
        assert "acta" in index.verify().damaged_ledger


def test_purging_leaves_one_collection_of_vectors(address: str) -> None:
    with Index.open(address, embeddings="embedded") as index:
        index.ingest([*documents(), *notes(0, 10)])
        expected = answers(index)
        with index.stores.vectors.open() as store:
            before = store._client.count_collections()
        index.delete("finca-3", purge=False)
        index.purge()
        with index.stores.vectors.open() as store:
            assert store._client.count_collections() == before
            assert len(store._collection.get(include=[])["ids"]) == 14
        assert answers(index) == expected
        assert index.verify().ok


class OtherEmbeddings(SmallEmbeddings):
    """Another embedder of the same length; it can be interrupted after a number of texts."""

    model = "other"

    def __init__(self, most: int = 1_000) -> None:
        self.left = most

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        # ``check_loading`` has one.
        if len(texts) > 1:
            self.left -= len(texts)
        if self.left < 0:
            raise KeyboardInterrupt
        return [[-number for number in reversed(self.embed_query(text))] for text in texts]


def test_it_is_built_again_with_another_embedder_in_its_place(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lince_rag.index.compaction.VECTORS_PER_COMMIT", 8)
    monkeypatch.setattr("lince_rag.index.shared.LOCK_SECONDS", 0.3)
    one, other = (servers.index("again", tmp_path / name) for name in ("one", "other"))
    with (
        Index.open(one, embeddings=SmallEmbeddings()) as index,
        Index.open(other, embeddings=SmallEmbeddings()) as elsewhere,
        Index.open(tmp_path / "folder", embeddings="embedded") as folder,
    ):
        for each in (index, folder):
            each.ingest([*documents(), *notes(0, 20)])
        before = answers(index)
        with index.stores.vectors.open() as store:
            collections = store._client.count_collections()
        # An interrupted run leaves the index as it was, and another embedder's work is not gone on with.
        for embeddings in (OtherEmbeddings(8), SmallEmbeddings(), OtherEmbeddings(16)):
            if embeddings.model == "small":
                Index.rebuild(one, embeddings=embeddings)
            else:
                with pytest.raises(KeyboardInterrupt):
                    Index.rebuild(one, embeddings=embeddings)
            assert answers(elsewhere) == before
            assert elsewhere.verify().ok
        elsewhere.delete("finca-3", purge=False)
        elsewhere.ingest(notes(20, 22))
        rest = OtherEmbeddings()
        done: list[tuple[int, int]] = []
        Index.rebuild(other, embeddings=rest, on_vectors=lambda *numbers: done.append(numbers))
        assert (rest.left, done[-1]) == (1_000 - 11, (11, 11))
        # Who has it open cannot make an application's embedder, and mixes no vectors.
        for use in (
            lambda: index.as_retriever().invoke("olivos"),
            lambda: index.ingest(notes(22, 23)),
            lambda: index.stores.vectors.nearest([0.1] * 32, 1),
        ):
            with pytest.raises(EmbeddingsMismatchError, match="OtherEmbeddings:other"):
                use()
        with Index.open(one, embeddings=OtherEmbeddings()) as again, again.stores.writing():
            assert again.verify().ok
            # Nothing is written meanwhile.
            with pytest.raises(IndexLockedError):
                Index.rebuild(other, embeddings="embedded")
        Index.rebuild(other, embeddings="embedded")
        folder.delete("finca-3")
        folder.ingest(notes(20, 22))
        # What has it open takes an embedder of this package.
        assert answers(elsewhere) == answers(folder)
        assert isinstance(index.embeddings, SmallEmbeddings)
        for each in (index, folder):
            assert each.ingest(notes(22, 24)).added == ["finca-22", "finca-23"]
        assert index.sources() == folder.sources()
        assert answers(index) == answers(folder)
        assert index.verify().ok
        with index.stores.vectors.open() as store:
            assert store._client.count_collections() == collections


def test_nobody_writes_while_an_index_is_purged(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge copies the vectors: what another one wrote meanwhile would be lost."""
    monkeypatch.setattr("lince_rag.index.shared.LOCK_SECONDS", 0.3)
    with Index.open(address, embeddings="embedded") as index, Index.open(address) as other:
        index.ingest(documents())
        with other.stores.writing():
            # Others may write.
            index.ingest(notes(0, 2))
            with pytest.raises(IndexLockedError):
                index.purge()
            with pytest.raises(IndexLockedError):
                index.verify(repair=True)
        with index.stores.writing(alone=True), pytest.raises(IndexLockedError), other.stores.writing():
            pytest.fail("two wrote at once")
        index.purge()
        assert index.verify().ok


def test_who_may_only_read_can_ask(servers: Servers, tmp_path: Path) -> None:
    with Index.open(servers.index("readers", tmp_path / "one"), embeddings="embedded") as index:
        index.ingest(documents())
        expected = answers(index)
        for statement in (
            "CREATE ROLE guest LOGIN",
            "GRANT USAGE ON SCHEMA lince_readers TO guest",
            "GRANT SELECT ON ALL TABLES IN SCHEMA lince_readers TO guest",
        ):
            index.ledger._execute(statement)
    guest = servers.index("readers", tmp_path / "two").replace("lince@", "guest@")
    with Index.open(guest) as index:
        assert index.ledger.read_only
        assert answers(index) == expected
        with pytest.raises(Exception, match="cannot be changed"):
            index.ingest(notes(0, 1))
    with pytest.raises(Exception, match="cannot be"):
        Index.open(servers.index("filters", tmp_path / "two").replace("lince@", "guest@"))


def test_it_is_served_by_its_address(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    address = servers.index("served", tmp_path / "replica")
    with Index.open(address, embeddings="embedded") as index:
        index.ingest(documents())
        # The server takes any password.
        secret = address.replace("lince@", "lince:secreto@")
        with serving(secret, log=tmp_path / "log") as served, served.client() as client:
            said = client.post("/v1/ask", json={"question": QUESTIONS[0]}).json()
            assert "30 de junio" in said["text"]
            job = client.post("/v1/documents", files={"files": ("b.txt", "El tejado es de 1980.")}).json()
            assert served.wait_for_job(client, job["id"])["report"]["added"] == ["b.txt"]
            assert len(index.sources()) == 6
            # `ask` finds it, with the password or without.
            assert running_server(Path(address), AnswerOptions())
            Index.rebuild(address, embeddings=OtherEmbeddings())
            refused = client.post("/v1/ask", json={"question": QUESTIONS[1]})
            assert refused.status_code == 422
            assert "OtherEmbeddings:other" in refused.text
            Index.rebuild(address, embeddings="embedded")
            assert "41.100" in client.post("/v1/ask", json={"question": QUESTIONS[1]}).json()["text"]
        kept = [each for each in (tmp_path / "data").rglob("*") if each.is_file()]
        assert kept
        written = [(tmp_path / "log"), *kept]
        assert not [each for each in written if b"secreto" in each.read_bytes()]


def test_what_is_wrong_is_said(servers: Servers, tmp_path: Path) -> None:
    with pytest.raises(IndexServerError, match=r"no collection 'nothing'.*lince-rag ingest"):
        Index.open(servers.index("nothing", tmp_path), create=False)
    with pytest.raises(ConfigurationError, match="'Contratos de 2024' is not a name"):
        Index.open(servers.index("Contratos de 2024", tmp_path))
    wrong = "lince+postgresql://ana:secreto@127.0.0.1:1/base?chroma=http://127.0.0.1:1"
    started = time.monotonic()
    with pytest.raises(IndexServerError, match=r"127\.0\.0\.1:1/base/documents") as caught:
        Index.open(wrong)
    assert time.monotonic() - started < 15
    assert "secreto" not in f"{caught.value!r} {caught.value} {find_location(wrong)!r}"
    no_chroma = servers.index("no_chroma", tmp_path / "r").replace(servers.chroma, "http://127.0.0.1:1")
    with Index.open(no_chroma, embeddings="embedded") as index:
        with pytest.raises(IndexServerError, match=r"Chroma server http://127\.0\.0\.1:1 cannot"):
            index.ingest(documents())
        assert index.sources() == []
        assert index.as_retriever().invoke("olivos") == []


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ('ledger = "postgresql://h/d"', "no chroma"),
        ('ledger = "postgresql://h/d"\nchroma = "http://h:8000"\nfolder = "x"', "unknown key 'folder'"),
        ('ledger = "mysql://h/d"\nchroma = "http://h:8000"', "not the address of a PostgreSQL"),
        ('ledger = "postgresql://h/d"\nchroma = "h:8000"', "not the address of a Chroma"),
        ('ledger = "postgresql://h/d"\nchroma = 8000', "other values"),
        ("ledger = ", "cannot be read"),
    ],
)
def test_a_file_that_names_no_index(tmp_path: Path, content: str, wrong: str) -> None:
    file = tmp_path / "shared.toml"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=wrong):
        find_location(file)


def test_a_file_and_a_path_stand_for_the_address(tmp_path: Path) -> None:
    file = tmp_path / "shared.toml"
    file.write_text('ledger = "postgresql://ana@h/d"\nchroma = "https://c/t/d"\ncollection = "actas"\n')
    expected = SharedLocation("postgresql://ana@h/d", "https://c/t/d", "actas")
    assert find_location(file) == expected
    address = "lince+postgresql://ana@h/d?chroma=https://c/t/d&collection=actas"
    assert find_location(address) == expected
    # As the command line gives it.
    assert find_location(Path(address)) == expected
    with pytest.raises(ConfigurationError, match="has a user") as caught:
        find_location(address.replace("https://c", "https://ana:secreto@c"))
    assert "secreto" not in str(caught.value)
    kept = find_location(f"{address}&sslmode=require")
    assert isinstance(kept, SharedLocation)
    assert kept.ledger == "postgresql://ana@h/d?sslmode=require"
    assert find_location(tmp_path) == tmp_path
    # What a command prints can be typed again, and shows no password.
    for secret in (
        address.replace("ana@", "ana:secreto@"),
        address.replace("ana@", "ana:el@secreto@"),
        address.replace("?", "?password=secreto&"),
        address + "&sslpassword=secreto",
    ):
        assert shlex.split(index_argument(Path(secret))) == [address]
        assert "secreto" not in repr(find_location(secret))
    with pytest.raises(ConfigurationError, match="not the address of a PostgreSQL") as caught:
        find_location(address.replace("ana@", "ana:el/secreto@"))
    assert "secreto" not in str(caught.value)
    assert index_argument(tmp_path) == str(tmp_path)
