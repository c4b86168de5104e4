"""Ingestion on a Ray cluster of two nodes: the same index as this machine makes, whatever is killed meanwhile."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings

from lince_rag import Index, LinceEmbeddings
from lince_rag.documents.workers import ReadingLimits
from lince_rag.errors import ConfigurationError, LinceError, MissingExtraError, installation
from lince_rag.index import on_ray
from tests.integration_tests.commands import COMMAND, environment
from tests.integration_tests.farm_files import CHUNKS, write_files
from tests.s3_server import BUCKET, serve_bucket

pytest.importorskip("ray.data", reason="needs the extra ray")

# The smallest with which Ray works; it must fit into the /dev/shm of a container.
OBJECT_STORE = 80 * 2**20
FILES = 64
SECONDS = 240

pytestmark = pytest.mark.slow


class SlowLoader(BaseLoader):
    """Reads a text file in a twentieth of a second."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def lazy_load(self) -> Iterator[Document]:
        time.sleep(0.05)
        yield Document(self.path.read_text())


class Failing(Embeddings):
    """An embedder that works here, and not in another process."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        if os.getpid() != self.home:
            raise OSError("no weights on this machine")
        return [[1.0, 0.0]] * len(texts)

    def embed_query(self, text: str) -> list[float]:
        return [1.0, 0.0]


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    """A cluster to which this process is connected."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.update(on_ray._QUIET)
    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def cluster(started: Any) -> Any:
    """The cluster, with two nodes."""
    if not started.worker_nodes:
        started.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
    return started


def busy_workers(cluster: Any) -> list[int]:
    """The processes that read and embed for a cluster."""
    raylets = [str(node.all_processes["raylet"][0].process.pid) for node in cluster.list_all_nodes()]
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", ",".join(raylets)], capture_output=True, text=True
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if re.search(r"ray::\S*Map", line)]


def state(index: Index) -> list[tuple[str, str, int, list[str]]]:
    """What an index holds, without what depends on the time."""
    return [
        (s.source, s.content_hash, s.chunks, sorted(index.ledger.chunk_ids(s.source))) for s in index.sources()
    ]


def answers(index: Index) -> list[list[str]]:
    """The best chunks, those of one document; how equal hits are ordered differs from index to index."""
    questions = [f"¿Cuántos olivos tiene la finca {number}?" for number in (5, 12, 17)]
    found = [index.as_retriever(k=CHUNKS).invoke(question) for question in questions]
    assert all(len({chunk.metadata["source"] for chunk in chunks}) == 1 for chunks in found)
    return [sorted(str(chunk.id) for chunk in chunks) for chunks in found]


def assert_whole(index: Index, count: int, chunks: int) -> None:
    """Nothing is lost, and nothing doubled."""
    report = index.verify()
    assert report.ok, report
    assert (report.documents, report.chunks, report.waiting) == (count, chunks, 0)


def test_the_same_index_as_this_machine_makes(cluster: Any, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    write_files(folder, "uno", 20)
    (folder / "roto.pdf").write_bytes(b"nada")
    # Twelve megabytes of which the parser makes more than the limit.
    (folder / "enorme.html").write_bytes(b"<p>a</p>" * 1_500_000)
    (folder / "foto.xyz").write_text("x")
    note = Document("La finca 99 está en la nota.", metadata={"source": "nota"})
    limits = ReadingLimits(memory_mib=420)
    with Index.open(tmp_path / "local") as local, Index.open(tmp_path / "ray") as there:
        for _ in range(2):
            here = local.ingest([folder, note], limits=limits)
            report = there.ingest([folder, note], limits=limits, engine="ray", address=cluster.address)
            # A file that has just changed is hashed, and comes after those that are not opened.
            assert sorted(report.unchanged) == sorted(here.unchanged)
            for name in ("added", "changed", "removed", "skipped", "left_out", "chunks", "waiting"):
                assert getattr(report, name) == getattr(here, name), name
            assert list(map(str, report.failed)) == list(map(str, here.failed))
            assert "roto.pdf: named .pdf, but its content is not PDF" in str(report.failed)
            if (folder / "enorme.html").exists():
                assert "enorme.html: reading it takes more than 420 MiB of memory" in str(report.failed)
            assert state(there) == state(local)
            assert there.ledger.ordered_ids() == local.ledger.ordered_ids()
            assert answers(there) == answers(local)
            assert there.verify().ok
            # Another version of some, one gone, one that cannot be read any more.
            write_files(folder, "dos", 3)
            (folder / "finca-010.md").unlink(missing_ok=True)
            (folder / "enorme.html").unlink(missing_ok=True)
            (folder / "finca-011.md").write_bytes(b"%PDF-1.7 nada")


def test_vectors_come_with_their_documents(cluster: Any, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    write_files(folder, "uno", 18)
    embeddings = LinceEmbeddings("multilingual-e5-small")
    with (
        Index.open(tmp_path / "local", embeddings=embeddings) as local,
        Index.open(tmp_path / "ray", embeddings=embeddings) as there,
    ):
        local.ingest(folder)
        report = there.ingest(
            folder,
            engine="ray",
            address=cluster.address,
            on_vectors=lambda *_: pytest.fail("embedded by this process"),
        )
        assert report.waiting == 0
        assert_whole(there, 18, 18 * CHUNKS)
        assert answers(there) == answers(local)
        write_files(folder, "dos", 2)
        assert there.ingest(folder, engine="ray", vectors="later").waiting == 2 * CHUNKS


def test_killed_workers_and_a_killed_node(cluster: Any, tmp_path: Path) -> None:
    killed = list[int]()

    def kill(done: int, *_: object) -> None:
        if done == 0:
            killed.extend(busy_workers(cluster))
            for process in killed:
                os.kill(process, signal.SIGKILL)
        elif done == FILES // 2:
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

    write_files(tmp_path / "documents", "uno", FILES)
    with Index.open(tmp_path / "index", embeddings=DeterministicFakeEmbedding(size=16)) as index:
        report = index.ingest(tmp_path / "documents", engine="ray", loaders={"*.md": SlowLoader}, on_progress=kill)
        assert killed
        assert not cluster.worker_nodes
        assert len(report.added) == FILES
        assert_whole(index, FILES, report.chunks)


def end_after_a_commit(index: Index, arguments: list[str], number: int, folder: Path, attempts: int = 3) -> str:
    """Begin a command, send it a signal as soon as it has committed something, and return what it wrote."""
    before = len(index.sources())
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # A commit is one of 512 chunks.
    while len(index.sources()) == before and process.poll() is None:
        time.sleep(0.1)
    by_itself = process.poll()
    process.send_signal(number)
    out, _ = process.communicate(timeout=SECONDS)
    if by_itself == 1 and not out and attempts > 1:
        # Ray's own code ends a process, and says nothing, if its servers do not answer in time on a busy machine.
        return end_after_a_commit(index, arguments, number, folder, attempts - 1)
    assert process.returncode == (130 if number == signal.SIGINT else -number), out
    return out


def test_ended_runs_are_continued(cluster: Any, tmp_path: Path) -> None:
    count = 8 * FILES
    write_files(tmp_path / "documents", "uno", count)
    arguments = ["ingest", "documents", "--index", "index", "--engine", "ray", "--address", cluster.address]
    with Index.open(tmp_path / "index") as index:
        for number in (signal.SIGINT, signal.SIGKILL):
            before = len(index.sources())
            out = end_after_a_commit(index, arguments, number, tmp_path)
            assert before < len(index.sources()) < count, out
            assert number == signal.SIGKILL or ("Interrumpido" in out and "Traceback" not in out)
        before = len(index.sources())
        report = index.ingest(tmp_path / "documents", engine="ray")
        assert len(report.unchanged) == before
        assert len(report.added) == count - before
        assert_whole(index, count, count * CHUNKS)


def test_workers_fetch_files_of_other_file_systems(cluster: Any, tmp_path: Path) -> None:
    with serve_bucket() as bucket, Index.open(tmp_path / "index") as index:
        for number in range(9):
            bucket.put(f"c/acta {number}.txt", f"El acta {number} se aprueba.".encode())
        report = index.ingest(bucket.address("c"), engine="ray", address=cluster.address)
        assert sorted(report.added) == [f"s3://{BUCKET}/c/acta {number}.txt" for number in range(9)]
        assert len(bucket.read) == 9
        del bucket.objects["c/acta 3.txt"]
        bucket.put("c/acta 4.txt", b"El acta 4 no se aprueba.")
        report = index.ingest(bucket.address("c"), engine="ray", address=cluster.address)
        assert (len(report.changed), len(report.unchanged), len(report.removed)) == (1, 7, 1)
        assert len(bucket.read) == 10
        assert index.verify().ok


def test_an_embedder_that_fails_there(cluster: Any, tmp_path: Path) -> None:
    write_files(tmp_path / "documents", "uno", 2)
    with Index.open(tmp_path / "index", embeddings=Failing()) as index:
        with pytest.raises(LinceError, match=r"cannot go on: .*no weights on this machine") as raised:
            index.ingest(tmp_path / "documents", engine="ray", address=cluster.address)
        assert "run the same command again" in raised.value.hint
        index.ingest(tmp_path / "documents")
        assert_whole(index, 2, 2 * CHUNKS)


def test_what_cannot_be_sent(cluster: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text("Un texto.")
    with Index.open(tmp_path / "index") as index, socket.socket() as open_socket:
        with pytest.raises(ConfigurationError, match=r"cannot be sent to other processes.*socket"):
            index.ingest(file, engine="ray", loaders={"*.md": lambda path: SlowLoader(f"{path}{open_socket}")})
        assert not index.sources()


# ------------------------------------------------------------------------------------------- without the cluster


def ray_processes(place: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if place in line]


def test_ray_is_started_and_ended_quietly(tmp_path: Path) -> None:
    write_files(tmp_path / "documents", "uno", 2)
    before = set(Path("/tmp").glob("lince-ray-*"))
    done = subprocess.run(
        [*COMMAND, "ingest", "documents", "--index", "index", "--engine", "ray"],
        cwd=tmp_path,
        env={**environment(), "RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 nuevos")
    assert done.stderr == ""
    assert set(Path("/tmp").glob("lince-ray-*")) == before
    assert not ray_processes("/tmp/lince-ray-")


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "no-such-host.invalid:6379", "ray://127.0.0.1:10001", "x", "silent"]
)
def test_a_wrong_address_is_said_in_seconds(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    ray.shutdown()
    monkeypatch.setattr(on_ray, "_CONNECT_SECONDS", 3.0)
    write_files(tmp_path / "documents", "uno", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent, Index.open(tmp_path / "index") as index:
        address = f"127.0.0.1:{silent.getsockname()[1]}" if address == "silent" else address
        began = time.monotonic()
        with pytest.raises(ConfigurationError, match=re.escape(address)):
            index.ingest(tmp_path / "documents", engine="ray", address=address)
        assert time.monotonic() - began < 15
        index.ingest(tmp_path / "documents")


def test_ray_that_does_not_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def too_slow(**options: object) -> None:
        # What Ray does on a machine with much else to do, after half a minute.
        raise Exception("The current node timed out during startup.")

    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", too_slow)
    write_files(tmp_path / "documents", "uno", 1)
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        with pytest.raises(LinceError, match="Ray does not start on this machine: The current node timed out"):
            index.ingest(tmp_path / "documents", engine="ray")
        assert not index.sources()


def test_wrong_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Index.open(tmp_path / "index") as index:
        with pytest.raises(ConfigurationError, match="There is no engine 'spark'"):
            index.ingest(tmp_path, engine="spark")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="'a:1' is not used by the engine 'local'"):
            index.ingest(tmp_path, address="a:1")
        monkeypatch.setattr("lince_rag.errors.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match="'ray'.*" + re.escape(installation("ray"))):
            index.ingest(tmp_path, engine="ray")
