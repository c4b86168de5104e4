import multiprocessing
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lince_rag.errors import ConfigurationError
from lince_rag.index.vector_cache import VectorCache


class Embedder:
    """Counts what it is asked for."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: list[str]) -> list[list[float]]:
        self.texts += texts
        return [np.full(64, len(text), dtype=np.float32).tolist() for text in texts]


def test_only_new_texts_are_embedded_and_in_order(tmp_path):
    embed, cache = Embedder(), VectorCache(tmp_path / "deep" / "file.db")
    assert [vector[0] for vector in cache.vectors("m", ["a", "bbb", "a", "cc"], embed)] == [1, 3, 1, 2]
    assert [vector[0] for vector in cache.vectors("m", ["cc", "dddd", "a"], embed)] == [2, 4, 1]
    assert embed.texts == ["a", "bbb", "cc", "dddd"]
    cache.vectors("other", ["a"], embed)
    assert embed.texts[4:] == ["a"]
    assert cache.vectors("m", [], embed) == []
    many = [f"{'x' * (number % 50)}{number}" for number in range(1200)]
    first = cache.vectors("m", many, embed)
    assert VectorCache(tmp_path / "deep" / "file.db").vectors("m", many, embed) == first
    assert len(embed.texts) == 5 + 1200


def test_vectors_are_exactly_those_of_the_server(tmp_path):
    vector = np.random.default_rng(1).normal(size=100).astype(np.float32).tolist()
    cache = VectorCache(tmp_path / "file.db")
    assert cache.vectors("m", ["a"], lambda _: [vector]) == [vector] == cache.vectors("m", ["a"], Embedder())


def test_what_was_not_asked_for_longest_goes_first(tmp_path, monkeypatch):
    embed, cache = Embedder(), VectorCache(tmp_path / "file.db", most_bytes=100_000)
    day = [0]
    monkeypatch.setattr(VectorCache, "_today", staticmethod(lambda: day[0]))
    for part in range(40):
        day[0] = part
        cache.vectors("m", ["first", *(f"{part}-{number}" for number in range(20))], embed)
    assert embed.texts.count("first") == 1
    assert os.path.getsize(tmp_path / "file.db") < 200_000
    embed.texts.clear()
    cache.vectors("m", ["0-1", "39-1"], embed)
    assert embed.texts == ["0-1"]


def test_threads_and_processes_share_a_file(tmp_path):
    cache = VectorCache(tmp_path / "file.db")
    fill = partial(_fill, cache)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, range(8)))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill, args=(number,)) for number in range(8, 11)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    embed = Embedder()
    cache.vectors("m", [f"{number}-{each}" for number in range(11) for each in range(30)], embed)
    assert embed.texts == []


def _fill(cache: VectorCache, number: int) -> None:
    for each in range(0, 30, 10):
        cache.vectors("m", [f"{number}-{one}" for one in range(each, each + 10)], Embedder())


@pytest.mark.parametrize("damage", ["text", "folder", "other"])
def test_a_file_that_cannot_be_used_is_named(tmp_path, damage):
    file: Path = tmp_path / "file.db"
    if damage == "text":
        file.write_text("This is no database, and longer than its header would be." * 20)
    elif damage == "folder":
        file.mkdir()
    else:
        with sqlite3.connect(file) as connection:
            connection.execute("CREATE TABLE vectors (name)")
    with pytest.raises(ConfigurationError, match=r"file\.db cannot be used"):
        VectorCache(file).vectors("m", ["a"], Embedder())
