"""The stores of a shared index: vectors in a Chroma server, and on each machine a copy of the terms."""

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from filelock import FileLock
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from lince_rag.documents.prepared import PreparedDocument, index_terms
from lince_rag.errors import (
    EmbeddingsMismatchError,
    IndexDamagedError,
    IndexLockedError,
    IndexServerError,
    LinceError,
)
from lince_rag.index.embeddings import embeddings_name
from lince_rag.index.filters import Selection
from lince_rag.index.ledger import VECTOR_CHANGES
from lince_rag.index.lexical import LexicalIndex
from lince_rag.index.opening import other_embedder, recorded_embeddings
from lince_rag.index.postgresql import COMMITTING, EMBEDDING, WRITING, SharedLedger
from lince_rag.index.storage import (
    LEXICAL_FOLDER,
    first_line,
    folder_bytes,
    not_writable,
    open_vector_store,
    remove_folder,
)
from lince_rag.index.stores import LOCK_SECONDS, ChunkStores
from lince_rag.index.vectors import VECTOR_LENGTHS, VectorHit, VectorStore, batches, locked, other_length

if TYPE_CHECKING:
    from langchain_chroma import Chroma

# The setting with the name of the Chroma collection: a new one for each index, and whenever it is written anew, so
# that no two ledgers ever share one.
_VECTOR_COLLECTION: Final = "vector_collection"

# The settings with the name of a collection that is not the index's: one that is to take its place, for the
# embedder of this name, or one that had its place. Who finds it left goes on with it, or deletes it.
_SPARE: Final = "spare_collection"
_SPARE_EMBEDDER: Final = "spare_embedder"

# How long a question waits for another process that copies terms on this machine.
_COPY_SECONDS: Final = 600.0

_COPY_FILE: Final = "copy.json"


class ServerVectors(VectorStore):
    """The vectors of a shared index, in a collection of a Chroma server; it serves many clients at once."""

    _ledger: SharedLedger

    def __init__(self, embeddings: Embeddings, ledger: SharedLedger, embedder: str | None = None) -> None:
        super().__init__(embeddings, ledger)
        self._collection = ""
        # The name of the embedder of the vectors; it may not change.
        self._embedder = embedder or ledger.setting("embeddings")

    def close(self) -> None:
        """Forget the connection."""
        self._store = None

    @contextmanager
    def open(self) -> Iterator["Chroma"]:
        """Give the collection that the ledger names; it is made when it is first written.

        Raises:
            EmbeddingsMismatchError: The index has been built again with another embedder.
        """
        with self.reporting():
            found = self._ledger.settings_of(VECTOR_CHANGES, _VECTOR_COLLECTION, "embeddings")
            if (recorded := found.get("embeddings")) != self._embedder:
                raise other_embedder(recorded, str(self._embedder))
            self.changes, name = found.get(VECTOR_CHANGES), found.get(_VECTOR_COLLECTION)
            if name is None:
                name = self._new_name()
                self._ledger.set_settings(**{_VECTOR_COLLECTION: name})
            if self._store is None or name != self._collection:
                self._store, self._collection = self._connect(name), name
            yield self._store

    def _new_name(self) -> str:
        return f"{self._ledger.location.schema}-{secrets.token_hex(6)}"

    def _connect(self, name: str) -> "Chroma":
        import chromadb
        from chromadb.config import Settings

        parts = urlsplit(self._ledger.location.chroma)
        places = dict(zip(("tenant", "database"), filter(None, parts.path.split("/")), strict=False))
        token = os.environ.get("LINCE_CHROMA_TOKEN")
        client = chromadb.HttpClient(
            host=str(parts.hostname),
            port=parts.port or (443 if parts.scheme == "https" else 80),
            ssl=parts.scheme == "https",
            headers={"Authorization": f"Bearer {token}"} if token else None,
            settings=Settings(anonymized_telemetry=False),
            **places,
        )
        return open_vector_store(self._embeddings, client=client, collection=name)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn errors of the server into an ``IndexServerError``."""
        import httpx
        from chromadb.errors import ChromaError

        try:
            yield
        except LinceError:
            raise
        except (ChromaError, httpx.HTTPError, ValueError, OSError) as error:
            self.close()
            if lengths := VECTOR_LENGTHS.search(str(error)):
                raise other_length(*lengths.groups()) from error
            raise IndexServerError(
                f"The Chroma server {self._ledger.location.chroma} cannot be used: {first_line(error)}.",
                hint="Check that it runs there (`chroma run`), and LINCE_CHROMA_TOKEN if it wants a token.",
            ) from error

    def damage(self) -> str:
        """Return nothing: the files are the server's."""
        return ""

    def damaged(self, reason: str) -> IndexDamagedError:
        """Return the error of vectors that are not those that were written."""
        location = self._ledger.location
        return IndexDamagedError(
            f"The vectors of {location.name} are damaged: {reason}.",
            hint=f"Build them again from the ledger: lince-rag status --index {location.argument} --repair",
        )

    def renew(self) -> None:
        """Replace the collection by a new one without vectors."""
        self.rewrite([])

    def rewrite(self, ids: Sequence[str]) -> None:
        """Write the vectors of some chunks, and no others, into a new collection in the place of this one."""
        with self.open() as store:
            # What is there may hold what has been deleted since.
            self.drop_spare()
            new = self.open_spare(embedder="")
            for part in batches(len(ids)):
                found = store.get(ids=list(ids[part]), include=["embeddings"])
                if found["ids"]:
                    new._collection.upsert(found["ids"], found["embeddings"])
            with self._ledger.transaction():
                self.take_spare()
            self.drop_spare()

    def open_spare(self, embedder: str) -> "Chroma":
        """Return a collection beside this one for an embedder: what an interrupted call has left, or a new one."""
        name, begun = (self._ledger.setting(key) or "" for key in (_SPARE, _SPARE_EMBEDDER))
        if not name or begun != embedder:
            self.drop_spare()
            name = self._new_name()
            # Noted before it is made, so that none is forgotten.
            self._ledger.set_settings(**{_SPARE: name, _SPARE_EMBEDDER: embedder})
        return self._connect(name)

    def take_spare(self) -> None:
        """Let the collection beside this one take its place; call it in a transaction."""
        found = self._ledger.settings_of(_SPARE, _VECTOR_COLLECTION, VECTOR_CHANGES)
        self.changes = found.get(VECTOR_CHANGES)
        self.count_change()
        old = {_SPARE: found.get(_VECTOR_COLLECTION, ""), _SPARE_EMBEDDER: ""}
        self._ledger.set_settings(**{_VECTOR_COLLECTION: found[_SPARE]}, **old)

    def drop_spare(self) -> None:
        """Delete the collection beside this one, if there is one."""
        if name := self._ledger.setting(_SPARE):
            # Opened first: then it is there, also if an interrupted call has not made it, or has deleted it.
            self._connect(name)._client.delete_collection(name)
            self._ledger.set_settings(**{_SPARE: "", _SPARE_EMBEDDER: ""})


class LexicalCopy(LexicalIndex):
    """This machine's copy of the terms of a shared index, brought up to date before a search.

    It holds the state of a commit, whose number is in a file beside it. Processes share it; one writes at a time.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / LEXICAL_FOLDER, index_folder=folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = folder / _COPY_FILE
        self._writing = FileLock(folder / "copy.lock", thread_local=False)

    def _lock(self, seconds: float = _COPY_SECONDS) -> AbstractContextManager[None]:
        return locked(self._writing, self._index_folder, seconds)

    @property
    def generation(self) -> int | None:
        """The commit whose state it holds; ``None`` if there is none yet."""
        with suppress(FileNotFoundError, ValueError, KeyError):
            return int(json.loads(self._file.read_text())["generation"])
        return None

    def note(self, generation: int) -> None:
        """Note the commit whose state it holds now."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({"generation": generation}))
        new.replace(self._file)

    def write(self, chunks: Iterable[tuple[str, str]], delete: Iterable[str] = (), *, anew: bool = False) -> None:
        """Do what ``LexicalIndex`` does, while no other process of this machine writes."""
        with self._lock():
            super().write(chunks, delete, anew=anew)

    def update(self, ledger: SharedLedger, known: dict[str, str] | None = None, *, wait: bool = True) -> int:
        """Bring it to the state of the latest commit, and return its number.

        ``known`` has the terms of some chunks; without ``wait``, nothing happens if another process writes.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(self._lock(_COPY_SECONDS if wait else 0.0))
            except IndexLockedError:
                if wait:
                    raise
                return self.generation or 0
            before, current = self.generation, ledger.generation
            changed = None if before is None or before > current else ledger.changed_ids(before)
            if before is not None and before == current:
                self.reload()
            elif changed is None:
                self.write(_terms_of(ledger, ledger.ordered_ids(), known or {}), anew=True)
            else:
                new, gone = changed
                self.write(_terms_of(ledger, new, known or {}), delete=gone)
            self.note(current)
            return current

    def discard(self) -> None:
        """Delete the copy; the next ``update`` makes it again."""
        with self._lock():
            self._file.unlink(missing_ok=True)
            remove_folder(self.folder)
            self.__dict__.pop("_index", None)


def _terms_of(ledger: SharedLedger, ids: Sequence[str], known: dict[str, str]) -> Iterator[tuple[str, str]]:
    for part in batches(len(ids)):
        found = ledger.chunks(each for each in ids[part] if each not in known)
        terms = known | {each: index_terms(chunk) for each, chunk in found.items()}
        yield from ((each, terms[each]) for each in ids[part] if each in terms)


class SharedStores(ChunkStores):
    """The stores of a shared index. Many may write at once; commits come one after another."""

    vectors: ServerVectors
    lexical: LexicalCopy
    ledger: SharedLedger

    def __init__(self, folder: Path, embeddings: Embeddings, ledger: SharedLedger) -> None:
        super().__init__(folder, embeddings, ledger)
        # Nothing is known of this machine's copy before it is brought up to date.
        self._generation = -1
        # The terms of the commit that is being made.
        self._terms: dict[str, str] | None = None

    def _open_vectors(self) -> VectorStore:
        return ServerVectors(self.embeddings, self.ledger)

    def _open_lexical(self) -> LexicalIndex:
        return LexicalCopy(self.folder)

    def stored_bytes(self) -> int:
        """Return how much the tables on the server and this machine's copy take."""
        return self.ledger.stored_bytes() + folder_bytes(self.folder)

    def refresh(self) -> None:
        """Bring this machine's copy of the terms up to date."""
        if self.ledger.generation != self._generation:
            self._generation = self.lexical.update(self.ledger)

    def follow(self) -> str | None:
        """Take the embedder that the index has now, if it was built again; return the name of its vectors.

        Raises:
            EmbeddingsMismatchError: It is one of an application, which must be given.
        """
        found = self.ledger.settings_of("embeddings", _VECTOR_COLLECTION)
        recorded, own = found.get("embeddings"), embeddings_name(self.embeddings)
        if recorded not in (None, own):
            embeddings = recorded_embeddings(self.ledger)
            if embeddings.name != recorded:
                raise other_embedder(recorded, own)
            self.embeddings = embeddings
            self.vectors = ServerVectors(embeddings, self.ledger, recorded)
            self._selections.clear()
        return found.get(_VECTOR_COLLECTION)

    def search_vectors(self, question: str, limit: int, selection: Selection | None = None) -> list[VectorHit]:
        """Find chunks by their vectors, again if these have been replaced meanwhile; see ``ChunkStores``."""
        while True:
            vectors, embeddings = self.follow(), self.embeddings
            try:
                found = super().search_vectors(question, limit, selection)
                # Another thread may have taken a new embedder between the question's vector and the search.
                if embeddings is self.embeddings:
                    return found
            except (EmbeddingsMismatchError, IndexServerError):
                if vectors == self.follow() and embeddings is self.embeddings:
                    raise

    @contextmanager
    def writing(self, seconds: float | None = None, *, alone: bool = False) -> Iterator[None]:
        """Write beside others, or ``alone``, after deleting what an interrupted writer left."""
        with self.write_lock(seconds, alone=alone):
            # It stays the same until the lock is released.
            self.follow()
            if self.ledger.uncommitted():
                with self.committing():
                    pass
            yield

    @contextmanager
    def write_lock(self, seconds: float | None = None, *, alone: bool = True) -> Iterator[None]:
        """Keep others from writing, or only from working ``alone``, as a purge does; see ``ChunkStores``."""
        if self.ledger.read_only:
            raise not_writable(self.folder)
        limit = LOCK_SECONDS if seconds is None else seconds
        with self.ledger.locked(WRITING, shared=not alone, seconds=limit):
            yield

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Write to the stores and commit while no other process does; on one connection, which holds the lock."""
        with self.ledger.locked(COMMITTING):
            # What another writer left when it ended in the middle.
            self.delete_uncommitted()
            yield

    def _try_embedding_lock(self) -> AbstractContextManager[None]:
        return self.ledger.locked(EMBEDDING, seconds=0.0)

    def write(self, prepared: Sequence[PreparedDocument], forget: Sequence[str] = ()) -> None:
        """Replace documents, and remove the sources in ``forget``, in one commit; see ``ChunkStores.write``."""
        with self.committing():
            before, self._terms = self.ledger.generation, {}
            try:
                super().write(prepared, forget)
            finally:
                known, self._terms = self._terms, None
        # A copy that lacks more is brought up to date when a question needs it: that may take minutes.
        if (self.lexical.generation or 0) == before:
            self.lexical.update(self.ledger, known, wait=False)

    def _note_commit(self) -> None:
        """Leave the copy of the terms to ``refresh``."""

    def store_terms(self, chunks: Sequence[Document], terms: Sequence[str] | None = None) -> None:
        """Keep the terms of a commit for this machine's copy, until it is committed; else write them."""
        if self._terms is None:
            super().store_terms(chunks, terms)
        else:
            found = [index_terms(chunk) for chunk in chunks] if terms is None else terms
            self._terms |= zip([str(chunk.id) for chunk in chunks], found, strict=True)

    def _discard_terms(self, ids: Sequence[str]) -> None:
        """Leave what a commit replaces to ``refresh``."""
        if self._terms is None:
            super()._discard_terms(ids)

    def rebuild(self, *, vectors: bool, terms: bool) -> None:
        """Replace stores by new ones with the committed chunks; call it with the write lock held."""
        super().rebuild(vectors=vectors, terms=False)
        if terms:
            self.lexical.discard()
            self._generation = self.lexical.update(self.ledger)
