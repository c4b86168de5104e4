"""A watched folder: after any operations on its files, the index is as a new one of the folder would be."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lince_rag import Index
from lince_rag.errors import ConfigurationError
from lince_rag.index.ingestion import IngestReport

OPERATIONS = 1_000


def state(index: Index) -> dict[str, tuple[str, frozenset[str]]]:
    return {
        each.source: (each.content_hash, frozenset(index.ledger.chunk_ids(each.source)))
        for each in index.sources()
    }


@contextmanager
def watching(index: Index, folder: Path) -> Iterator[list[IngestReport]]:
    """Watch in a thread; yield the reports as they come."""
    stop, reports = threading.Event(), list[IngestReport]()
    thread = threading.Thread(target=lambda: reports.extend(index.watch(folder, stop=stop)))
    thread.start()
    try:
        yield reports
    finally:
        stop.set()
        thread.join(timeout=60)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def operate(folder: Path, chance: random.Random, number: int) -> None:
    """Do one thing that people do with files: write, change, append, rename, move a folder, delete."""
    files = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    target = folder / chance.choice(["", "a", "b", "b/c"]) / f"n{chance.randrange(40)}.txt"
    kind = chance.choice(["write", "write", "append", "rename", "delete", "folder"])
    if kind == "write" or not files:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"La nota {number} dice {chance.randrange(10)}.")
    elif kind == "append":
        with chance.choice(files).open("a") as file:
            file.write(f" Y también {number}.")
    elif kind == "rename":
        target.parent.mkdir(parents=True, exist_ok=True)
        chance.choice(files).replace(target)
    elif kind == "delete":
        chance.choice(files).unlink()
    elif (folder / "a").is_dir():
        (folder / "a").rename(folder / f"movida{number}")


@pytest.mark.slow
def test_random_operations_end_equal_to_a_new_index(tmp_path: Path) -> None:
    folder, chance = tmp_path / "folder", random.Random(7)
    folder.mkdir()
    (folder / "inicio.txt").write_text("Hola a todos.")
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        with watching(index, folder):
            for number in range(OPERATIONS):
                operate(folder, chance, number)
                if number % 100 == 99:
                    time.sleep(chance.random())
            (folder / "fin.txt").write_text("Fin.")

            def ends() -> bool:
                return any(each.source.endswith("fin.txt") for each in index.sources())

            wait_for(ends)
        kept = state(index)
        assert index.verify().ok
    with Index.open(tmp_path / "new", embeddings="embedded") as fresh:
        fresh.ingest(folder)
        assert kept == state(fresh)
        assert len(kept) > 10


def test_changes_before_the_first_moment_count_and_the_index_may_be_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Hola a todos.")
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        index.ingest(tmp_path)
        (tmp_path / "b.txt").write_text("Hasta luego.")
        with watching(index, tmp_path):
            wait_for(lambda: len(index.sources()) == 2)
            generation = index.ledger.generation
            # What it writes itself is no reason to read again.
            time.sleep(3)
            assert index.ledger.generation == generation
            (tmp_path / "a.txt").unlink()
            wait_for(lambda: [Path(each.source).name for each in index.sources()] == ["b.txt"])


def test_a_file_that_a_program_saves_by_replacing_it(tmp_path: Path) -> None:
    note = tmp_path / "nota.txt"
    note.write_text("Versión 0.")
    (tmp_path / "otra.txt").write_text("No se lee.")
    with Index.open(tmp_path / "index", embeddings="embedded") as index, watching(index, note):
        for number in range(1, 4):
            (tmp_path / "nota.tmp").write_text(f"Versión {number}.")
            (tmp_path / "nota.tmp").replace(note)
            wait_for(lambda: index.sources() != [] and index.text(str(note)) == note.read_text())
        assert [each.source for each in index.sources()] == [str(note)]


def test_a_wrong_pattern_is_reported_once_and_can_be_put_right(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with Index.open(tmp_path / "index", embeddings="embedded") as index, watching(index, folder) as reports:
        (folder / ".linceignore").write_text("!\n")
        wait_for(lambda: any(".linceignore" in str(error) for report in reports for error in report.failed))
        (folder / ".linceignore").write_text("b.txt\n")
        (folder / "a.txt").write_text("Hola a todos.")
        (folder / "b.txt").write_text("Hasta luego.")
        wait_for(lambda: len(index.sources()) == 1)
        assert sum(len(report.failed) for report in reports) == 1


def test_another_writer_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lince_rag.index.stores.LOCK_SECONDS", 0.1)
    folder = tmp_path / "folder"
    folder.mkdir()
    place = tmp_path / "index"
    with Index.open(place, embeddings="embedded") as index, Index.open(place) as other, watching(index, folder):
        with other.stores.write_lock():
            (folder / "a.txt").write_text("Hola a todos.")
            time.sleep(2)
            assert index.sources() == []
        wait_for(lambda: len(index.sources()) == 1)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    index = Index.open(tmp_path / "index", embeddings="embedded")
    with index, pytest.raises(ConfigurationError, match="to watch"):
        next(index.watch(tmp_path / "no"))
