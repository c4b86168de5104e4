"""Several processes and threads on one index: killed writers, readers next to a writer, two writers."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from langchain_core.documents import Document

from lince_rag import ChatLince, Index, create_rag_chain
from lince_rag.errors import IndexLockedError
from tests.integration_tests.commands import in_a_fork
from tests.integration_tests.farm_files import CHUNKS, write_files

# Of four chunks each; a commit comes after 128 of them and at the end.
FILES = 150
SECONDS = 60

WRITER = """
import sys
from lince_rag import Index
with Index.open(sys.argv[1]) as index:
    print("open", flush=True)
    report = index.ingest(sys.argv[2], on_progress=lambda done, total, name: print(done, flush=True))
    print("added", len(report.added), "changed", len(report.changed), flush=True)
"""

# Holds the lock until it is told to go on.
HOLDER = """
import sys
from lince_rag import Index
with Index.open(sys.argv[1]) as index, index.stores.writing():
    print("locked", flush=True)
    sys.stdin.readline()
"""

# Asks again and again; reports every answer as lines of "source version" until it is told to stop.
READER = """
import sys, threading, time
from lince_rag import Index
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
with Index.open(sys.argv[1]) as index:
    retriever = index.as_retriever(k=40)
    print("open", flush=True)
    while True:
        last = stop.is_set()
        whole = {}
        for chunk in retriever.invoke("¿Qué versión tiene la finca de olivos?"):
            words = chunk.page_content.split()
            whole.setdefault(chunk.metadata["source"], set()).add(words[words.index("versión") + 1])
        vectors = [hit.id for hit in index.stores.search_vectors("¿Qué versión tiene la finca de olivos?", 40)]
        found = [chunk.page_content for chunk in index.ledger.chunks(vectors).values()]
        print(max((len(versions) for versions in whole.values()), default=0), len(whole), len(vectors), len(found),
              ",".join(sorted({v for versions in whole.values() for v in versions})), flush=True)
        if last:
            break
        time.sleep(0.1)
"""


def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process: "subprocess.Popen[str]") -> str:
    out, error = process.communicate("\n", timeout=SECONDS)
    assert process.returncode == 0, error
    return out


def kill_when(process: "subprocess.Popen[str]", reached: Callable[[str], bool], delay: float = 0.0) -> None:
    assert process.stdout
    for line in process.stdout:
        if reached(line.strip()):
            break
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=SECONDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files") / "documents"
    write_files(folder, "uno", FILES)
    return folder


@pytest.fixture(scope="module")
def clean_ids(folder, tmp_path_factory):
    """The chunk ids of a run that nothing disturbed."""
    with Index.open(tmp_path_factory.mktemp("clean") / "index") as index:
        index.ingest(folder)
        ids = index.ledger.chunk_ids()
    assert len(ids) == FILES * CHUNKS
    return ids


def assert_only_whole_documents(index):
    """Nothing but committed chunks is ever returned, and documents are in the index whole or not at all."""
    sources = index.sources()
    assert all(source.chunks == CHUNKS for source in sources)
    assert {row[0] for row in index.ledger._rows("SELECT id FROM term_lines")} == index.ledger.chunk_ids()
    found = index.as_retriever(k=FILES * CHUNKS).invoke("¿Cuántos olivos tiene la finca y el pozo?")
    assert {chunk.id for chunk in found} <= index.ledger.chunk_ids()
    for chunk in found:
        text = index.text(chunk.metadata["source"])
        assert text[chunk.metadata["start"] : chunk.metadata["end"]] == chunk.page_content


# Commits come after file 127 and at the end: before, around and after them. The delays reach into the writing of
# the stores, which begins when a batch is full.
@pytest.mark.parametrize(
    ("reached", "delay"),
    [
        ("open", 0.0),
        ("127", 0.01),
        ("127", 0.1),
        ("127", 0.25),
        (f"{FILES - 1}", 0.05),
        (f"{FILES}", 0.0),
    ],
)
def test_a_killed_writer_does_no_harm(folder, clean_ids, tmp_path, reached, delay):
    path = tmp_path / "index"
    kill_when(start(WRITER, path, folder), lambda line: line == reached, delay)
    with Index.open(path) as index:
        assert index.ledger.chunk_ids() <= clean_ids
        assert_only_whole_documents(index)
        index.ingest(folder)
        assert index.ledger.chunk_ids() == clean_ids
        report = index.verify()
        assert report.ok, report
        assert index.ledger.uncommitted() == set()
        assert_only_whole_documents(index)


@pytest.mark.parametrize("delay", [0.02, 0.2])
def test_a_writer_killed_while_it_replaces_documents(folder, clean_ids, tmp_path, delay):
    changing = tmp_path / "documents"
    write_files(changing, "uno", FILES)
    path = tmp_path / "index"
    with Index.open(path) as index:
        index.ingest(changing)
        old = index.ledger.chunk_ids()
    write_files(changing, "dos", FILES)
    kill_when(start(WRITER, path, changing), lambda line: line == "127", delay)
    with Index.open(path) as index:
        assert_only_whole_documents(index)
        assert len(index.ledger.chunk_ids()) == FILES * CHUNKS
        index.ingest(changing)
        assert not index.ledger.chunk_ids() & old
        assert index.verify().ok
        found = index.as_retriever(k=50).invoke("versión uno de la finca")
        assert len(found) == 50
        assert all("versión dos" in chunk.page_content for chunk in found)


def test_readers_beside_a_writer_see_whole_documents_and_then_the_new_version(tmp_path):
    changing = tmp_path / "documents"
    path = tmp_path / "index"
    write_files(changing, "uno", FILES)
    wait(start(WRITER, path, changing))
    readers = [start(READER, path) for _ in range(2)]
    answers_before: list[str] = []
    for reader in readers:
        assert reader.stdout
        assert reader.stdout.readline() == "open\n"
        # It has seen the first version before another is written.
        answers_before.append(reader.stdout.readline())
    for version in ("dos", "tres"):
        write_files(changing, version, FILES)
        assert f"changed {FILES}" in wait(start(WRITER, path, changing))
    for reader, before in zip(readers, answers_before, strict=True):
        answers = [line.split() for line in [before, *wait(reader).splitlines()]]
        assert len(answers) > 3
        assert all(int(versions) <= 1 for versions, *_ in answers), "two versions of a document in one answer"
        assert all(int(documents) > 0 for _, documents, *_ in answers), "an answer without documents"
        assert set(answers[-1][4].split(",")) == {"tres"}
        assert {"uno", "tres"} <= {version for answer in answers for version in answer[4].split(",")}
        # After the last commit the vectors are the committed ones: nothing stale, nothing missing.
        assert answers[-1][2] == answers[-1][3] == "40"
    with Index.open(path) as index:
        assert index.verify().ok
        assert len(index.ledger.chunk_ids()) == FILES * CHUNKS


def test_a_second_writer_is_told_to_wait(tmp_path, monkeypatch):
    monkeypatch.setattr("lince_rag.index.stores.LOCK_SECONDS", 0.3)
    note = Document(page_content="El gato duerme.", metadata={"source": "nota"})
    with Index.open(tmp_path / "index") as index:
        index.ingest(note)
        holder = start(HOLDER, tmp_path / "index")
        assert holder.stdout
        assert holder.stdout.readline() == "locked\n"
        other = Document(page_content="El perro come.", metadata={"source": "otra"})
        for write in (
            lambda: index.ingest(other),
            lambda: index.delete("nota"),
            lambda: index.verify(repair=True),
        ):
            with pytest.raises(IndexLockedError, match="Another process"):
                write()
        # Asking goes on meanwhile.
        assert index.as_retriever().invoke("gato")[0].page_content == "El gato duerme."
        wait(holder)
        index.ingest(other)
        assert len(index.sources()) == 2


def test_a_second_thread_is_told_to_wait(tmp_path, monkeypatch):
    monkeypatch.setattr("lince_rag.index.stores.LOCK_SECONDS", 0.2)
    with Index.open(tmp_path / "index") as index, index.stores.writing():
        errors = []

        def ingest():
            try:
                index.ingest(Document(page_content="Un texto.", metadata={"source": "nota"}))
            except IndexLockedError as error:
                errors.append(error)

        thread = threading.Thread(target=ingest)
        thread.start()
        thread.join(SECONDS)
        assert len(errors) == 1


def test_processes_that_make_the_same_index_at_once(tmp_path):
    documents = tmp_path / "documents"
    write_files(documents, "uno", count=3)
    writers = [start(WRITER, tmp_path / "index", documents) for _ in range(3)]
    outputs = [wait(writer) for writer in writers]
    assert sorted(output.splitlines()[-1] for output in outputs) == ["added 0 changed 0"] * 2 + [
        "added 3 changed 0"
    ]
    with Index.open(tmp_path / "index") as index:
        assert index.verify().ok


def test_two_open_indexes_of_one_process_beside_another_process(tmp_path):
    """Chroma shares one engine among the clients of a process: a stale one would damage the vectors."""
    path = tmp_path / "index"
    with Index.open(path) as one, Index.open(path) as other:
        one.ingest(Document(page_content="El gato duerme.", metadata={"source": "nota"}))
        assert len(other.stores.search_vectors("gato", 9)) == 1
        for round_, index in enumerate((one, other)):
            documents = tmp_path / f"documents-{round_}"
            write_files(documents, "uno", FILES)
            wait(start(WRITER, path, documents))
            for reader in (one, other):
                found = reader.stores.search_vectors("¿Qué versión tiene la finca de olivos?", 40)
                assert len(reader.ledger.chunks(hit.id for hit in found)) == 40
            index.ingest(Document(page_content=f"Nota {round_}.", metadata={"source": f"nota-{round_}"}))
        assert one.verify().ok
        assert other.verify().ok
    with Index.open(path) as index:
        report = index.verify()
        assert report.ok
        assert report.chunks == 2 * FILES * CHUNKS + 3


@pytest.mark.parametrize("embeddings", ["embedded", "multilingual-e5-small"])
def test_a_fork_opens_the_index_itself(tmp_path, embeddings):
    question = "¿Cuánto es la fianza?"

    def ask(index: Index) -> str:
        return create_rag_chain(ChatLince(), index.as_retriever(k=2)).invoke(question).text

    def open_and_ask() -> str:
        with Index.open(tmp_path) as index:
            return ask(index)

    with Index.open(tmp_path, embeddings=embeddings) as index:
        index.add_documents([Document("La fianza es de 815 euros.", metadata={"source": "contrato"})])
        assert ask(index) == in_a_fork(open_and_ask) == "La fianza es de 815 euros."
        assert in_a_fork(lambda: ask(index)) == "ForkError"
        assert in_a_fork(lambda: str(index.add_documents([Document("x")]))) == "ForkError"
        assert in_a_fork(lambda: index.text("contrato")) == "ForkError"
        assert ask(index) == "La fianza es de 815 euros."


def test_threads_ask_while_another_ingests(folder, tmp_path):
    with Index.open(tmp_path / "index") as index:
        index.ingest(sorted(folder.iterdir())[:20])
        retriever = index.as_retriever(k=8)
        questions = [f"¿Cuántos olivos tiene la finca {number}?" for number in range(16)]
        done, errors, rounds = threading.Event(), [], []

        def ingest():
            try:
                index.ingest(folder)
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        thread = threading.Thread(target=ingest)
        thread.start()
        while not done.is_set():
            answers = retriever.batch(questions, config={"max_concurrency": 8})
            rounds.append(answers)
        thread.join(SECONDS)
        assert not errors
        assert len(rounds) > 1
        for answers in rounds:
            assert all(len(answer) == 8 for answer in answers)
        for number, answer in enumerate(retriever.batch(questions, config={"max_concurrency": 8})):
            assert answer[0].metadata["source"].endswith(f"finca-{number:03}.md")
        assert index.verify().ok


async def test_async_questions_at_once(folder, tmp_path):
    with Index.open(tmp_path / "index") as index:
        index.ingest(sorted(folder.iterdir())[:20])
        questions = [f"¿Cuántos olivos tiene la finca {number}?" for number in range(16)]
        answers = await index.as_retriever(k=3).abatch(questions)
        assert [answer[0].metadata["source"][-6:-3] for answer in answers] == [f"{n:03}" for n in range(16)]
