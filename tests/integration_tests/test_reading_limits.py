"""Files are read in worker processes: one that breaks its reader costs only itself."""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lince_rag import Index
from lince_rag.documents import workers
from lince_rag.documents.chunking import ChunkingSettings
from lince_rag.documents.workers import ReadingLimits, ReadingPool
from lince_rag.errors import ConfigurationError
from tests.hostile_files import HOSTILE, mutate
from tests.unit_tests.file_samples import docx_bytes, pdf_bytes

pytestmark = pytest.mark.slow

QUESTION = "¿Quién riega los olivos?"
HTML = "<html><body><h1>Olivos</h1><ul><li>Los riega Marta.</li></ul><pre>a\nb</pre></body></html>"
GOOD = {
    "a.txt": b"Los olivos los riega Marta cada lunes.",
    "b.md": b"# Riego\n\n```\ncodigo\n```\n\nMarta riega los olivos.\n",
    "c.html": HTML.encode(),
    "d.pdf": pdf_bytes(["Los olivos se riegan los lunes.", "Marta los riega."]),
    "e.docx": docx_bytes(),
    "f.txt": "Año de nieves, año de bienes.".encode("latin-1"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name, data in GOOD.items():
        (folder / name).write_bytes(data)
    return folder


def named(index: Index) -> set[str]:
    return {Path(source.source).name for source in index.sources()}


def worker_processes() -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if workers.__name__ in line and str(os.getpid()) in line]


def test_hostile_files_cost_only_themselves(tmp_path: Path, folder: Path) -> None:
    for name, (make, _) in HOSTILE.items():
        (folder / name).write_bytes(make())
    with Index.open(tmp_path / "index") as index:
        report = index.ingest(folder, limits=ReadingLimits(seconds=20, memory_mib=400))
        assert named(index) == GOOD.keys()
        reasons = {Path(error.source).name: error.reason for error in report.failed}
        assert reasons.keys() == HOSTILE.keys()
        for name, (_, expected) in HOSTILE.items():
            assert expected in reasons[name]
        assert index.as_retriever().invoke(QUESTION)
        assert index.verify().ok


def test_time_is_limited(tmp_path: Path, folder: Path) -> None:
    (folder / "slow.txt").write_text("La lluvia en Sevilla. " * 400_000)
    with Index.open(tmp_path / "index") as index:
        # The processor time of one file; the first one of a worker loads the language model.
        report = index.ingest(folder, limits=ReadingLimits(seconds=2.0))
        assert [error.reason for error in report.failed] == ["reading it takes more than 2 s"]
        assert named(index) == GOOD.keys()


def test_pages_are_limited(tmp_path: Path, folder: Path) -> None:
    with Index.open(tmp_path / "index") as index:
        report = index.ingest(folder, limits=ReadingLimits(pages=1))
        assert [error.reason for error in report.failed] == ["2 pages, the limit is 1"]
    with pytest.raises(ConfigurationError, match="seconds"):
        ReadingLimits(seconds=0)
    with pytest.raises(ConfigurationError, match="memory_mib=120"):
        ReadingLimits(memory_mib=120)


def test_killed_workers_are_replaced(tmp_path: Path, folder: Path) -> None:
    for number in range(150):
        (folder / f"finca-{number:03}.md").write_text(f"# Finca {number}\n\n" + "Tiene olivos y un pozo. " * 200)
    with Index.open(tmp_path / "undisturbed") as index:
        index.ingest(folder)
        expected = index.ledger.chunk_ids()
    killed = []

    def kill_now_and_then(done: int, total: int, name: str) -> None:
        if done % 40 == 20 and (found := worker_processes()):
            killed.append(int(found[-1].split()[0]))
            os.kill(killed[-1], signal.SIGKILL)

    with Index.open(tmp_path / "index") as index:
        report = index.ingest(folder, on_progress=kill_now_and_then)
        assert report.failed == []
        assert index.ledger.chunk_ids() == expected
        assert index.verify().ok
    assert len(set(killed)) > 1


def test_a_worker_that_exits_with_success_has_not_read_its_file(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends a process in the middle of a file may look like success: a library that calls ``exit(0)``."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'lince_rag.documents.workers' in ' '.join(sys.orig_argv):\n"
        "    from lince_rag.documents import files\n"
        "    load = files.FileLoader.load\n"
        "    def exiting(self):\n"
        "        once = os.path.join(os.path.dirname(__file__), 'once')\n"
        "        if 'always' in self.source or 'once' in self.source and not os.path.exists(once):\n"
        "            open(once, 'w').close()\n"
        "            os._exit(0)\n"
        "        return load(self)\n"
        "    files.FileLoader.load = exiting\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("always.txt", "once.txt"):
        (folder / name).write_text(f"Los olivos de {name} los riega Julio.")
    with Index.open(tmp_path / "index") as index:
        # Limits that no other worker has, so that new ones start.
        report = index.ingest(folder, limits=ReadingLimits(seconds=43))
        (failed,) = report.failed
        assert (Path(failed.source).name, failed.reason) == (
            "always.txt",
            "reading it ended the reading process (exit status 0)",
        )
        assert named(index) == {*GOOD, "once.txt"}


def test_no_file_is_given_to_a_worker_that_ends(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With little memory every file is a worker's last, and to end takes it a while; a file is tried twice."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, sys, time\n"
        "def end():\n"
        "    try:\n"
        "        os.mkdir(os.path.join(os.path.dirname(__file__), 'first'))\n"
        "        time.sleep(8)\n"
        "    except FileExistsError:\n"
        "        time.sleep(1)\n"
        "if 'lince_rag.documents.workers' in ' '.join(sys.orig_argv):\n"
        "    atexit.register(end)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (folder / "long.txt").write_text("La lluvia en Sevilla es una maravilla. " * 20_000)
    with ReadingPool(ChunkingSettings(), ReadingLimits(memory_mib=256, workers=2)) as pool:
        with ThreadPoolExecutor(2) as executor:
            list(executor.map(lambda name: pool.read(folder / name, name), ("a.txt", "long.txt")))
        assert pool.read(folder / "b.md", "b.md").chunks


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    # A process that has ended stays in the list until its new parent takes notice.
    return state != "Z"


def test_workers_end_with_their_parent(tmp_path: Path, folder: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from lince_rag import Index\n"
        "from lince_rag.documents import workers\n"
        "with Index.open(sys.argv[1]) as index:\n"
        "    index.ingest(sys.argv[2])\n"
        "idle = [w._process.pid for found in workers._idle_workers.values() for w in found]\n"
        "print(*idle, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "i"), str(folder)], capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    pids = [int(pid) for pid in ended.stdout.split()]
    assert pids
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(map(is_running, pids)):
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def test_a_worker_imports_nothing_from_the_working_folder(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "json.py").write_text("raise SystemExit('imported a file of the documents')")
    monkeypatch.chdir(folder)
    workers._end_idle_workers()
    monkeypatch.setattr(workers, "_idle_workers", {})
    with Index.open(tmp_path / "index") as index:
        assert index.ingest(".").failed == []
        assert named(index) == {*GOOD, "json.py"}


def test_mutated_files_never_stop_an_ingestion(tmp_path: Path, folder: Path) -> None:
    generator = random.Random(7)
    bad = tmp_path / "mutated"
    bad.mkdir()
    for number in range(200):
        name = generator.choice(sorted(GOOD))
        (bad / f"{number:03}{Path(name).suffix}").write_bytes(mutate(GOOD[name], generator))
    with Index.open(tmp_path / "index") as index:
        report = index.ingest([bad, folder], limits=ReadingLimits(seconds=10))
        assert len(report.added) + len(report.failed) == 200 + len(GOOD)
        assert named(index) >= GOOD.keys()
        assert all(error.reason and "\n" not in error.reason for error in report.failed)
        assert index.verify().ok
        for source in index.sources():
            text = index.text(source.source)
            for chunk in index.ledger.chunks(index.ledger.chunk_ids(source.source)).values():
                assert text[chunk.metadata["start"] : chunk.metadata["end"]] == chunk.page_content
