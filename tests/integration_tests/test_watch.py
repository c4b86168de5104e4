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

OPERATIONS = 1_000


def state(index: Index) -> dict[str, tuple[str, frozenset[str]]]:
    return {
        each.source: (each.content_hash, frozenset(index.ledger.chunk_ids(each.source)))
        for each in index.sources()
    }


@contextmanager
def watching(index: Index, folder: Path) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=lambda: list(index.watch(folder, stop=stop)))
    thread.start()
    try:
        yield
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
