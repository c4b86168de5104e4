"""The two stores of an index, kept in step with its ledger: vectors in Chroma, terms in tantivy."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock, Timeout
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from lince_rag.errors import IndexFolderError, IndexLockedError
from lince_rag.index.ledger import VECTOR_CHANGES, Ledger
from lince_rag.index.lexical import LexicalHit, LexicalIndex
from lince_rag.text.language import Language

if TYPE_CHECKING:
    from langchain_chroma import Chroma

# How many folders this process has opened.
_OPENED: Final = count()

COLLECTION: Final = "chunks"

# Chroma's own ef of 100 finds .84-.92 of the true neighbours of hashed text, 500 finds .98, and it can only be
# set when the collection is made.
SEARCH_EF: Final = 500


def open_vector_store(
    embeddings: Embeddings, folder: Path | None = None, *, client: Any = None, collection: str = COLLECTION
) -> "Chroma":
    """Open, or make, the Chroma collection that holds the chunks.

    Cosine space (Chroma's default is squared euclidean distance), no default embedder (Chroma's is English
    only), no telemetry.

    Args:
        embeddings: What turns texts into vectors.
        folder: Where Chroma keeps its files; ``None`` keeps them in memory.
        client: A Chroma client to use instead, for a server.
        collection: The collection's name.

    Returns:
        The LangChain vector store.
    """
    import chromadb
    from chromadb.config import Settings
    from langchain_chroma import Chroma

    if client is None:
        settings = Settings(anonymized_telemetry=False)
        if folder is None:
            client = chromadb.EphemeralClient(settings=settings)
        else:
            client = chromadb.PersistentClient(path=_own_spelling(folder), settings=settings)
    return Chroma(
        collection_name=collection,
        embedding_function=embeddings,
        client=client,
        collection_configuration={"hnsw": {"space": "cosine", "ef_search": SEARCH_EF}},
    )


def _own_spelling(folder: Path) -> str:
    """Spell a path as no other store of this process does: ``a/.``, ``a/./``, ``a//.`` … are all ``a``.

    Chroma gives all clients of one spelling the same engine. Closing and opening again would then keep the
    stale one as long as another ``Index`` uses it, and writing with it after another process has written
    damages the vectors (measured: 1,024 of 4,500 unreadable).
    """
    return str(folder) + "".join("/." if bit == "1" else "/" for bit in f"{next(_OPENED):b}")


def close_vector_store(store: "Chroma") -> None:
    """Let go of the files, so that opening again sees what other processes wrote.

    Args:
        store: A store that ``open_vector_store`` returned.
    """
    store._client.close()


# Among so few chunks the vectors are compared one by one (30 ms for 500): Chroma's graph search misses some of
# a small selection where many chunks are nearly alike (a fifth to a quarter, measured with form letters).
EXACT_SEARCH: Final = 500

# How long a writer waits for another one before it gives up.
LOCK_SECONDS: Final = 5.0

# How long a question waits for a batch of vectors that another process is writing (a second for 1,000).
VECTORS_LOCK_SECONDS: Final = 60.0

_POLL_SECONDS: Final = 0.005

# Chroma takes at most 5,461 chunks in one call; with fewer, questions wait less.
CHUNKS_PER_CALL: Final = 1_000


@dataclass(frozen=True)
class PreparedDocument:
    """A document that is ready to be written.

    Attributes:
        document: The whole text, with ``source``, ``title`` and ``language`` in its metadata.
        content_hash: What tells this version from another.
        chunks: Its chunks, with ids and offsets.
    """

    document: Document
    content_hash: str
    chunks: Sequence[Document]

    @property
    def source(self) -> str:
        """The document's name."""
        return str(self.document.metadata["source"])


class ChunkStores:
    """Writes chunks to both stores and the ledger as one step, and searches them.

    Args:
        folder: The index's folder.
        embeddings: What turns chunks and questions into vectors.
        ledger: The ledger of the same folder.
    """

    def __init__(self, folder: Path, embeddings: Embeddings, ledger: Ledger) -> None:
        self.embeddings = embeddings
        self.lexical = LexicalIndex(folder / "lexical")
        self._folder = folder
        self._ledger = ledger
        self._vector_store: Any = None
        self._generation = ledger.generation
        self._vector_changes = ledger.setting(VECTOR_CHANGES)
        self._lock = threading.RLock()
        self._vectors_lock = FileLock(folder / "vectors.lock", thread_local=False)

    @contextmanager
    def vectors(self) -> Iterator[Any]:
        """The Chroma vector store (``langchain_chroma.Chroma``), held by this thread alone of all processes.

        Chroma has no readers: a query brings its own copy of the graph up to date and may write it to the disk.
        Beside a writer that makes the writer fail, or damages the vectors. So whoever uses the store holds a
        lock, and opens the store again when somebody else has changed it in between.

        Raises:
            IndexLockedError: Another process does not let go of it.
        """
        with self._lock, _held(self._vectors_lock, VECTORS_LOCK_SECONDS, self._folder):
            changes = self._ledger.setting(VECTOR_CHANGES)
            if changes != self._vector_changes:
                self.close()
                self._vector_changes = changes
            if self._vector_store is None:
                self._vector_store = self._open_vectors()
            yield self._vector_store

    @contextmanager
    def _changing_vectors(self) -> Iterator[Any]:
        with self.vectors() as store:
            # Counted before the change: after a crash in the middle, the others must open the store again, too.
            self._vector_changes = str(int(self._vector_changes or 0) + 1)
            self._ledger.set_settings(**{VECTOR_CHANGES: self._vector_changes})
            yield store

    def _open_vectors(self) -> Any:
        from chromadb.errors import ChromaError

        folder = self._folder / "chroma"
        try:
            return open_vector_store(self.embeddings, folder)
        except ChromaError as error:
            raise IndexFolderError(
                f"The vector store in {folder} cannot be opened: {error}",
                hint=f"Delete the folder {folder}, then run verify with repair on the index to build it again.",
            ) from error

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            if self._vector_store is not None:
                close_vector_store(self._vector_store)
                self._vector_store = None

    def search_terms(
        self, question: str, language: Language, limit: int, ids: Sequence[str] | None = None
    ) -> list[LexicalHit]:
        """Find chunks by their terms; see ``LexicalIndex.search``."""
        self._refresh()
        return self.lexical.search(question, language, limit, ids)

    def rarity(self, found: Iterable[str]) -> dict[str, float]:
        """Return the inverse document frequency of terms; see ``LexicalIndex.rarity``."""
        return self.lexical.rarity(found)

    def search_vectors(
        self, question: str, limit: int, ids: Sequence[str] | None = None
    ) -> list[tuple[str, float]]:
        """Find chunks by their vectors: (id, cosine similarity), best first; among ``ids`` when given."""
        if ids is not None and not ids:
            return []
        vector = self.embeddings.embed_query(question)
        options = {} if ids is None else {"ids": list(ids)}
        with self.vectors() as store:
            if ids is not None and len(ids) <= EXACT_SEARCH:
                return _search_exactly(store.get(ids=list(ids), include=["embeddings"]), vector)[:limit]
            found = store.similarity_search_by_vector_with_relevance_scores(vector, k=limit, **options)
        return [(document.id, 1.0 - distance) for document, distance in found]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the index's write lock; whatever an interrupted writer left behind is swept away first.

        Raises:
            IndexLockedError: Another process or thread holds it.
        """
        with _held(FileLock(self._folder / "write.lock"), LOCK_SECONDS, self._folder):
            self._refresh()
            self._sweep()
            yield

    def write(self, prepared: Sequence[PreparedDocument], forget: Sequence[str] = ()) -> None:
        """Replace and forget documents in one commit; call it inside ``writing``.

        The order makes a crash harmless at any point: new ids are first noted as uncommitted, then written to
        both stores, then committed in the ledger in the transaction that makes the old ids uncommitted, and
        those are swept out last.

        Args:
            prepared: Documents that become the committed version of their source.
            forget: Sources to remove.
        """
        chunks = [chunk for document in prepared for chunk in document.chunks]
        new = {str(chunk.id) for chunk in chunks}
        sources = [document.source for document in prepared] + list(forget)
        old = {chunk_id for source in sources for chunk_id in self._ledger.chunk_ids(source)}
        self.store(chunks, uncommitted=new - old)
        with self._ledger.transaction():
            for source in forget:
                self._ledger.forget(source)
            for document in prepared:
                self._ledger.commit(document.document, document.content_hash, document.chunks)
            self._ledger.set_uncommitted(remove=new, add=old - new)
            self._ledger.advance()
        self._generation = self._ledger.generation
        self._sweep()

    def store(self, chunks: Sequence[Document], uncommitted: frozenset[str] | set[str] = frozenset()) -> None:
        """Write chunks to both stores, without committing them.

        Args:
            chunks: Chunks with ids, ``source`` and ``language``.
            uncommitted: Those of their ids that no committed document has; noted before they are written.
        """
        if not chunks:
            return
        texts = [searchable_text(chunk) for chunk in chunks]
        ids = [str(chunk.id) for chunk in chunks]
        metadatas = [{"source": chunk.metadata["source"]} for chunk in chunks]
        for part in _batches(len(chunks)):
            # Embedded before the lock is taken, so that questions wait only while Chroma writes; and before
            # anything is noted: an embedder that cannot be loaded leaves a new index as free as it was.
            vectors = self.embeddings.embed_documents(texts[part])
            self._ledger.set_uncommitted(add=uncommitted.intersection(ids[part]))
            with self._changing_vectors() as store:
                store._collection.upsert(ids[part], vectors, metadatas[part], texts[part])
        languages = [chunk.metadata["language"] for chunk in chunks]
        self.lexical.write(zip(ids, texts, languages, strict=True))

    def discard(self, ids: Sequence[str]) -> None:
        """Delete chunks from both stores.

        Args:
            ids: The chunks' ids; unknown ones are passed over.
        """
        for part in _batches(len(ids)):
            with self._changing_vectors() as store:
                store.delete(ids=list(ids[part]))
        self.lexical.write([], delete=ids)

    def _sweep(self) -> None:
        """Delete from both stores what no committed document has."""
        if stray := sorted(self._ledger.uncommitted()):
            self.discard(stray)
            self._ledger.set_uncommitted(remove=stray)

    def _refresh(self) -> None:
        """Read the lexical index again when another process has committed since."""
        generation = self._ledger.generation
        if generation != self._generation:
            self.lexical.reload()
            self._generation = generation


@contextmanager
def _held(lock: FileLock, seconds: float, folder: Path) -> Iterator[None]:
    try:
        lock.acquire(timeout=seconds, poll_interval=_POLL_SECONDS)
    except Timeout as error:
        raise IndexLockedError(
            f"Another process is writing to the index {folder}.",
            hint="Wait until it has finished; asking questions is possible meanwhile.",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _batches(count: int) -> Iterator[slice]:
    """Cut a run into parts of the size that Chroma takes in one call."""
    for first in range(0, count, CHUNKS_PER_CALL):
        yield slice(first, first + CHUNKS_PER_CALL)


def _search_exactly(found: Any, vector: list[float]) -> list[tuple[str, float]]:
    """Compare a vector with each of those found: (id, cosine similarity), best first."""
    import numpy as np

    if not found["ids"]:
        return []
    vectors, wanted = np.asarray(found["embeddings"]), np.asarray(vector)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted)
    # A text without terms has the zero vector: it is like nothing.
    similarities = (vectors @ wanted / np.where(lengths > 0, lengths, 1.0)).tolist()
    return sorted(zip(found["ids"], similarities, strict=True), key=lambda pair: -pair[1])


def searchable_text(chunk: Document) -> str:
    """Return what is indexed for a chunk: its headings above its text."""
    heading = chunk.metadata.get("heading")
    return f"{heading}\n{chunk.page_content}" if heading else chunk.page_content
