"""The vectors of an index, and the Chroma folder that several processes share."""

import re
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock, Timeout
from langchain_core.embeddings import Embeddings

from lince_rag.errors import EmbeddingsMismatchError, IndexDamagedError, IndexLockedError
from lince_rag.index.integrity import erase_unused_memory, graphs_damage, vectors_damage
from lince_rag.index.ledger import VECTOR_CHANGES, Ledger
from lince_rag.index.storage import (
    CHROMA_FILE,
    CHROMA_FOLDER,
    StoreCopies,
    close_vector_store,
    damaged_store,
    not_writable,
    open_vector_store,
    remove_folder,
    replace_folder_at,
    reporting,
    shared_lock,
    storage_error,
)

if TYPE_CHECKING:
    from langchain_chroma import Chroma

# Chroma takes at most 5,461 chunks in one call; with fewer, questions wait less.
CHUNKS_PER_CALL: Final = 1_000

VECTORS_LOCK_FILE: Final = "vectors.lock"

# How long a question waits for a batch of vectors that another process is writing (a second for 1,000).
VECTORS_LOCK_SECONDS: Final = 60.0

_POLL_SECONDS: Final = 0.005

# What Chroma says of a vector that is longer or shorter than those that it has.
VECTOR_LENGTHS: Final = re.compile(r"dimension of (\d+), got (\d+)")


@dataclass(frozen=True)
class VectorHit:
    """A chunk found by its vector."""

    id: str
    # The cosine similarity to the question.
    similarity: float
    # What ranks it: the similarity, less that to what all questions have in common, if the embedder knows it.
    score: float


def batches(length: int) -> Iterator[slice]:
    """Yield the slices of what Chroma takes in one call each."""
    for first in range(0, length, CHUNKS_PER_CALL):
        yield slice(first, first + CHUNKS_PER_CALL)


class VectorStore(ABC):
    """The vectors of an index, in a Chroma collection: in a folder, or on a server.

    Attributes:
        changes: How many changes to them this process has seen.
    """

    def __init__(self, embeddings: Embeddings, ledger: Ledger) -> None:
        self._embeddings = embeddings
        self._ledger = ledger
        self._store: Chroma | None = None
        self.changes = ledger.setting(VECTOR_CHANGES)

    @abstractmethod
    def open(self) -> AbstractContextManager["Chroma"]:
        """Give the collection as the last change has left it."""

    @abstractmethod
    def close(self) -> None:
        """Close the collection; it is opened again when it is needed."""

    @abstractmethod
    def reporting(self) -> AbstractContextManager[None]:
        """Turn errors of Chroma inside the block into a ``LinceError``."""

    @abstractmethod
    def damage(self) -> str | None:
        """Return what is wrong with the files; the empty text if nothing is, ``None`` if there are none."""

    @abstractmethod
    def damaged(self, reason: str) -> IndexDamagedError:
        """Return the error of vectors that are not those that were written."""

    @abstractmethod
    def renew(self) -> None:
        """Replace the collection by a new one without vectors."""

    @abstractmethod
    def rewrite(self, ids: Sequence[str]) -> None:
        """Write the vectors of some chunks, and no others, into a new collection in the place of this one."""

    @contextmanager
    def changing(self) -> Iterator["Chroma"]:
        """Hold the vector store to change it."""
        with self.open() as store:
            self.count_change()
            yield store

    def count_change(self) -> None:
        """Tell other processes that the store changes; call it with the files held."""
        # Counted before the change, so that other processes reopen the store even after a crash in the middle.
        self.changes = str(int(self.changes or 0) + 1)
        self._ledger.set_settings(**{VECTOR_CHANGES: self.changes})

    def nearest_exactly(self, vector: Any, limit: int, ids: Sequence[str]) -> list[tuple[str, float]]:
        """Do the same as ``nearest`` by comparing every vector of ``ids``: it takes longer, and misses none."""
        best: list[tuple[str, float]] = []
        with self.open() as store:
            for part in batches(len(ids)):
                found = store.get(ids=list(ids[part]), include=["embeddings"])
                best = sorted([*best, *compare_vectors(found, vector)], key=lambda pair: -pair[1])[:limit]
        return best

    def read(self, ids: Sequence[str]) -> Any:
        """Return the vectors of some chunks, in the order of their ids, as a float32 array of one row for each.

        Raises:
            IndexDamagedError: One is missing or cannot be read.
        """
        import numpy as np

        found: dict[str, Any] = {}
        for part in batches(len(ids)):
            # One call after another, so that questions do not wait long.
            with self.open() as store:
                read = store.get(ids=list(ids[part]), include=["embeddings"])
            found |= zip(read["ids"], read["embeddings"], strict=True)
        if missing := len(ids) - len(found):
            raise self.damaged(f"missing vectors: {missing}")
        return np.array([found[chunk_id] for chunk_id in ids], dtype=np.float32)

    def nearest(self, vector: Any, limit: int, ids: list[str] | None = None) -> list[tuple[str, float]]:
        """Find chunks by a vector: (id, cosine similarity), best first; only among ``ids`` if they are given."""
        # Not LangChain's methods: they always read the texts and the metadata too, which the ledger has.
        with self.open() as store:
            found = store._collection.query([vector], n_results=limit, include=["distances"], ids=ids)
        distances = found["distances"] or [[]]
        return [(each, 1.0 - distance) for each, distance in zip(found["ids"][0], distances[0], strict=True)]


class FolderVectors(VectorStore):
    """Opens the Chroma store of a folder for one user at a time, and again when another process has changed it."""

    def __init__(self, folder: Path, embeddings: Embeddings, ledger: Ledger, copies: StoreCopies) -> None:
        super().__init__(embeddings, ledger)
        self._folder = folder
        self._copies = copies
        # Whether this process has purged the store: what was deleted may still be in its memory.
        self._purged = False
        self._lock = threading.RLock()
        self._file_lock = FileLock(folder / VECTORS_LOCK_FILE, thread_local=False)

    def close(self) -> None:
        """Close the store; it is opened again when it is needed."""
        with self._lock:
            if self._store is not None:
                close_vector_store(self._store)
                self._store = None
                if self._purged:
                    with locked(self._file_lock, self._folder, VECTORS_LOCK_SECONDS):
                        erase_unused_memory(self._folder / CHROMA_FOLDER)

    @contextmanager
    def open(self) -> Iterator["Chroma"]:
        """Hold the vector store exclusively, in this thread of this process; raises ``IndexLockedError``.

        Even a Chroma query is not read-only: it updates its own copy of the graph and may write it to the disk. At
        the same time as a writer, that makes the writer fail or damages the vectors. So every user of the store
        takes a lock, and opens the store again if another process has changed it.
        """
        with self.files() as folder:
            if self._store is None:
                self._store = self._open(folder)
            try:
                with self.reporting():
                    yield self._store
            except BaseException:
                # What Chroma holds in memory may differ from its files now.
                self.close()
                raise

    @contextmanager
    def files(self) -> Iterator[Path]:
        """Hold the files of the vector store exclusively, and close them if another process has changed them."""
        exclusive = (
            nullcontext()
            if self._ledger.read_only
            else locked(self._file_lock, self._folder, VECTORS_LOCK_SECONDS)
        )
        with self._lock, exclusive:
            changes = self._ledger.setting(VECTOR_CHANGES)
            if changes != self.changes:
                self.close()
                self._copies.discard(CHROMA_FOLDER)
                self.changes = changes
            yield self._current_folder()

    def _current_folder(self) -> Path:
        if not self._ledger.read_only:
            return self._folder / CHROMA_FOLDER
        if copy := self._copies.path(CHROMA_FOLDER):
            return copy
        with shared_lock(self._folder / VECTORS_LOCK_FILE):
            return self._copies.renew(CHROMA_FOLDER)

    def _open(self, folder: Path) -> "Chroma":
        if not self._ledger.had_vectors():
            # Whatever is there comes from a process that was killed while Chroma created its files.
            remove_folder(folder)
        damage = ""
        if (folder / CHROMA_FILE).exists():
            with self.reporting():
                damage = graphs_damage(folder, vectors=False)
        elif self._ledger.had_vectors() and self._ledger.has_documents():
            damage = f"{CHROMA_FILE} is missing"
        if damage:
            raise damaged_store(self._folder, CHROMA_FOLDER, damage)
        with self.reporting():
            return open_vector_store(self._embeddings, folder)

    def damage(self) -> str | None:
        """Return what is wrong with the files; the empty text if nothing is, ``None`` if there are none."""
        with self.files() as folder:
            if not (folder / CHROMA_FILE).exists():
                return f"{CHROMA_FILE} is missing" if self._ledger.has_documents() else None
            # SQLite's locks belong to the process: closing a file that Chroma has open would release Chroma's.
            self.close()
            with self.reporting():
                return vectors_damage(folder)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn errors of the vector store inside the block into a ``LinceError``."""
        from chromadb.errors import InternalError, InvalidArgumentError, NotFoundError

        kinds = (OSError, sqlite3.Error, InternalError, NotFoundError)
        try:
            with reporting(self._folder, CHROMA_FOLDER, *kinds):
                yield
        except InvalidArgumentError as error:
            if lengths := VECTOR_LENGTHS.search(str(error)):
                raise other_length(*lengths.groups()) from error
            raise

    def renew(self) -> None:
        """Replace the store by a new one without vectors."""
        with self.files() as folder:
            self.count_change()
            self.close()
            remove_folder(folder)
            # A new one now: without it, other processes would take the index for a damaged one.
            with self.reporting():
                self._store = open_vector_store(self._embeddings, folder)

    def rewrite(self, ids: Sequence[str]) -> None:
        """Write the vectors of some chunks, and no others, into a new store in the place of this one.

        Chroma keeps deleted vectors in its graph and in its queue, and no call takes them out.
        """
        new = self._folder / f"{CHROMA_FOLDER}.new"
        remove_folder(new)
        with self.open() as store, self.reporting():
            copy = open_vector_store(self._embeddings, new)
            try:
                for part in batches(len(ids)):
                    found = store.get(ids=list(ids[part]), include=["embeddings"])
                    if found["ids"]:
                        copy._collection.upsert(found["ids"], found["embeddings"])
            finally:
                close_vector_store(copy)
            erase_unused_memory(new)
            self._purged = True
            with self.files() as folder:
                self.count_change()
                self.close()
                replace_folder_at(folder, new)

    def damaged(self, reason: str) -> IndexDamagedError:
        """Return the error of vectors that are not those that were written."""
        return damaged_store(self._folder, CHROMA_FOLDER, reason)


def compare_vectors(found: Any, vector: list[float]) -> list[tuple[str, float]]:
    """Compare a vector with all those of a Chroma result: (id, cosine similarity), best first."""
    import numpy as np

    if not found["ids"]:
        return []
    vectors, wanted = np.asarray(found["embeddings"]), np.asarray(vector)
    if vectors.shape[1] != len(wanted):
        raise other_length(vectors.shape[1], len(wanted))
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted)
    # A text without terms has the zero vector; its similarity is 0.
    similarities = (vectors @ wanted / np.where(lengths > 0, lengths, 1.0)).tolist()
    return sorted(zip(found["ids"], similarities, strict=True), key=lambda pair: -pair[1])


def other_length(own: object, given: object) -> EmbeddingsMismatchError:
    """Return the error of vectors that do not have the length of those in the index."""
    return EmbeddingsMismatchError(
        f"The vectors of the index have {own} numbers, but those of the embedder have {given}.",
        hint="It is another model than the index was built with, perhaps of the same name: check what the server"
        " runs, or build the index again with `lince-rag ingest --rebuild`.",
    )


@contextmanager
def locked(lock: FileLock, folder: Path, seconds: float) -> Iterator[None]:
    """Hold a lock of an index; raises ``IndexLockedError`` after some seconds."""
    try:
        lock.acquire(timeout=seconds, poll_interval=_POLL_SECONDS)
    except Timeout as error:
        raise IndexLockedError(
            f"Another process is writing to the index {folder}.",
            hint="Wait until it has finished. Questions can be asked in the meantime.",
        ) from error
    except OSError as error:
        raise storage_error(error, folder, not_writable(folder)) from error
    try:
        yield
    finally:
        lock.release()
