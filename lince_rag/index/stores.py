"""The two stores of an index, kept consistent with its ledger: vectors in Chroma, terms in tantivy."""

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Final

from filelock import FileLock
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from lince_rag.documents.prepared import PreparedDocument, index_terms, searchable_text, term_lines
from lince_rag.errors import IndexLockedError
from lince_rag.index.conditions import filter_to_sql
from lince_rag.index.embeddings import embeddings_name, hashes_terms
from lince_rag.index.filters import Selection
from lince_rag.index.integrity import fingerprints
from lince_rag.index.ledger import Ledger
from lince_rag.index.lexical import LexicalHit, LexicalIndex
from lince_rag.index.storage import (
    LEXICAL_FOLDER,
    StoreCopies,
    folder_bytes,
    inherit_mode,
    not_writable,
    remove_folder,
)
from lince_rag.index.vectors import FolderVectors, VectorHit, VectorStore, batches, compare_vectors, locked
from lince_rag.text.language import Language, detect_language
from lince_rag.text.sentences import TermLines

# Results that are fetched to be filtered, at most. Beyond, Chroma is as fast among given ids.
MOST_HITS: Final = 4_000
MOST_VECTORS: Final = 1_000

# How many filters are remembered with what they select; each with vectors of at most 2 MB.
KEPT_SELECTIONS: Final = 16

# How long a writer waits for others before it gives up: for a few short ingestions, each of which starts workers.
LOCK_SECONDS: Final = 15.0

_WITHOUT_LIMIT: Final = -1.0

# Share of the lexical score for an embedder that does not define its own.
NEUTRAL_WEIGHT: Final = 0.5


class ChunkStores:
    """Writes chunks to both stores and the ledger of an index folder as one step, and searches them."""

    def __init__(self, folder: Path, embeddings: Embeddings, ledger: Ledger) -> None:
        self.embeddings = embeddings
        self.ledger = ledger
        self.folder = folder
        self._copies = StoreCopies(folder)
        self.vectors = self._open_vectors()
        self._selections: dict[str, Selection] = {}
        self._last_query: tuple[Embeddings, str | None, list[float]] = (embeddings, None, [])
        self._generation = ledger.generation
        self.lexical = self._open_lexical()

    def __repr__(self) -> str:
        return f"ChunkStores({str(self.folder)!r}, embeddings={embeddings_name(self.embeddings)!r})"

    def close(self) -> None:
        """Close the vector store and release its files; delete temporary copies."""
        self.vectors.close()
        self._copies.close()

    # Search.

    @property
    def lexical_weight(self) -> float:
        """The share of the lexical score that suits the embedder (0 to 1)."""
        return float(getattr(self.embeddings, "lexical_weight", NEUTRAL_WEIGHT))

    @property
    def similarity_spread(self) -> float | None:
        """How far apart the similarities of the embedder lie; ``None`` if it was not measured."""
        spread = getattr(self.embeddings, "similarity_spread", None)
        return None if spread is None else float(spread)

    def select(self, filter_: Mapping[str, Any]) -> Selection:
        """Return the committed chunks whose metadata passes a filter in Chroma's notation."""
        condition, values = filter_to_sql(filter_, self.ledger.SYNTAX)
        # Questions often share a filter, and to apply it to all chunks takes longer than the rest.
        key = f"{self.ledger.generation} {condition} {values!r}"
        found = self._selections.pop(key, None) or Selection(self.ledger, condition, values)
        self._selections[key] = found
        for oldest in list(self._selections)[:-KEPT_SELECTIONS]:
            self._selections.pop(oldest, None)
        return found

    def term_lines(self, ids: Sequence[str]) -> dict[str, TermLines]:
        """Return the terms of committed chunks, by id: as they are stored, or else computed from the text."""
        stored = self.ledger.term_lines(ids)
        lost = [chunk_id for chunk_id in ids if chunk_id not in stored]
        return stored | {each: term_lines(chunk) for each, chunk in self.ledger.chunks(lost).items()}

    def search_terms(
        self, question: str, language: Language, limit: int, selection: Selection | None = None
    ) -> list[LexicalHit]:
        """Search the terms in the latest commit of any process; see ``LexicalIndex.search``."""
        self.refresh()
        find = partial(self.lexical.search, question, language)
        return find(limit) if selection is None else selection.search(find, attrgetter("id"), limit, MOST_HITS)

    def search_vectors(self, question: str, limit: int, selection: Selection | None = None) -> list[VectorHit]:
        """Find chunks by their vectors, best first.

        Chunks whose vectors are still to come are not found.
        """
        import numpy as np

        if (selection is not None and selection.few == []) or not self.ledger.had_vectors():
            return []
        asked = self._query_vector(question)
        common = self._common_part(question, len(asked))
        if common is None:
            return [VectorHit(each, score, score) for each, score in self._find_vectors(asked, limit, selection)]
        wanted = np.asarray(asked) - common
        with self.vectors.open() as store:
            near = self._find_vectors(wanted.tolist(), limit, selection)
            found: Any = store.get(ids=[each for each, _ in near], include=["embeddings"]) if near else {"ids": []}
        similarities, length = dict(compare_vectors(found, asked)), float(np.linalg.norm(wanted))
        # Beside other writers, a chunk may have been deleted between the two.
        return [
            VectorHit(each, similarities[each], length * score) for each, score in near if each in similarities
        ]

    def _common_part(self, question: str, length: int) -> Any:
        """Return what all questions in the language of one have in common; ``None`` if it is not known."""
        find = getattr(self.embeddings, "common_part", None)
        common = find(detect_language(question)) if find else None
        # Another model can have the name of one that was measured.
        return common if common is not None and len(common) == length else None

    def _find_vectors(
        self, vector: list[float], limit: int, selection: Selection | None
    ) -> list[tuple[str, float]]:
        """Find chunks by a vector: (id, cosine similarity), best first."""
        with self.vectors.open() as store:
            if selection is None:
                return self._nearest(vector, limit)
            if selection.few is None:
                find = partial(self.vectors.nearest, vector)
                near: list[tuple[str, float]] = selection.search(find, itemgetter(0), limit, MOST_VECTORS)
                # Among given ids, the graph search ends early where it finds no neighbour that is one of them.
                return near if len(near) == limit else self.vectors.nearest_exactly(vector, limit, selection.ids)
            # Reading the vectors takes much longer than comparing them.
            changes, found = selection.memory or (None, None)
            if changes is None or changes != self.vectors.changes:
                found = store.get(ids=selection.few, include=["embeddings"])
                selection.memory = self.vectors.changes, found
        return compare_vectors(found, vector)[:limit]

    def _nearest(self, vector: Any, limit: int) -> list[tuple[str, float]]:
        near = self.vectors.nearest(vector, limit)
        if len(near) == limit:
            return near
        # Rarely, the graph of a store that was just opened finds fewer than there are, or none.
        ids = self.ledger.chunk_ids()
        missed = len(ids) - self.ledger.count_waiting() > len(near)
        return self.vectors.nearest_exactly(vector, limit, sorted(ids)) if missed else near

    def similarities(self, question: str, texts: list[str]) -> list[float]:
        """Return the cosine similarity of a question and each of some texts, which are embedded as chunks are."""
        import numpy as np

        vectors, query = np.array(self.embeddings.embed_documents(texts)), np.array(self._query_vector(question))
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        return [float(each) for each in vectors @ query / lengths]

    def read(self, question: str, texts: list[str]) -> list[float]:
        """Return how well each text answers a question, if the embedder comes with a reader; else nothing."""
        read = getattr(self.embeddings, "read_passages", None)
        return list(read(question, texts)) if read else []

    def _query_vector(self, question: str) -> list[float]:
        """Embed a question, and remember the last one: a retrieval needs it twice."""
        embeddings = self.embeddings
        asker, asked, vector = self._last_query
        if asked != question or asker is not embeddings:
            vector = embeddings.embed_query(question)
            self._last_query = embeddings, question, vector
        return vector

    def _open_vectors(self) -> VectorStore:
        return FolderVectors(self.folder, self.embeddings, self.ledger, self._copies)

    def _open_lexical(self) -> LexicalIndex:
        folder = self._copies.renew(LEXICAL_FOLDER) if self.ledger.read_only else self.folder / LEXICAL_FOLDER
        return LexicalIndex(folder, index_folder=self.folder, new=not self.ledger.has_documents())

    def stored_bytes(self) -> int:
        """Return how much the ledger and the stores take."""
        return folder_bytes(self.folder)

    def refresh(self) -> None:
        """Reload the lexical index if another process has committed."""
        generation = self.ledger.generation
        if generation != self._generation:
            # Opened again, and not only reloaded: another process may have built it again.
            self.lexical = self._open_lexical()
            self._generation = generation

    # Writing.

    @contextmanager
    def writing(self, seconds: float | None = None, *, alone: bool = False) -> Iterator[None]:
        """Hold the write lock, after deleting what an interrupted writer left; raises ``IndexLockedError``.

        A shared index has many writers at once, but for one that must be ``alone``; here each is.
        """
        with self.write_lock(seconds):
            self.refresh()
            self.delete_uncommitted()
            yield
            inherit_mode(self.folder)

    @contextmanager
    def write_lock(self, seconds: float | None = None) -> Iterator[None]:
        """Hold the write lock; raises ``IndexLockedError``, and ``IndexFolderError`` if nothing can be written."""
        if self.ledger.read_only:
            raise not_writable(self.folder)
        with locked(
            FileLock(self.folder / "write.lock"), self.folder, LOCK_SECONDS if seconds is None else seconds
        ):
            yield

    def committing(self) -> AbstractContextManager[None]:
        """Hold, inside ``writing``, what keeps other writers from committing; here they cannot write at all."""
        return nullcontext()

    @contextmanager
    def embedding_lock(self) -> Iterator[bool]:
        """Hold the lock of the process that adds vectors; yield whether no other process has it."""
        if self.ledger.read_only:
            raise not_writable(self.folder)
        with ExitStack() as stack:
            try:
                stack.enter_context(self._try_embedding_lock())
                free = True
            except IndexLockedError:
                free = False
            yield free

    def _try_embedding_lock(self) -> AbstractContextManager[None]:
        return locked(FileLock(self.folder / "embedding.lock"), self.folder, 0)

    def write(self, prepared: Sequence[PreparedDocument], forget: Sequence[str] = ()) -> None:
        """Replace documents, and remove the sources in ``forget``, in one commit; call it inside ``writing``.

        The order makes a crash harmless at any point: new ids are first recorded as uncommitted, then written to
        both stores, then committed in the ledger, in the transaction that makes the old ids uncommitted. Last, the
        old chunks are deleted from the stores.

        If the embedder is slow, only known vectors are written: those that come with the documents, and those of
        texts that the old version had. The other chunks wait for theirs (``write_vectors``).
        """
        chunks = [chunk for document in prepared for chunk in document.chunks]
        new = {str(chunk.id) for chunk in chunks}
        sources = [document.source for document in prepared] + list(forget)
        old = self.ledger.chunk_ids_of(sources)
        found = [terms for document in prepared for terms in document.terms]
        given = {chunk_id: vector for each in prepared for chunk_id, vector in each.vectors.items()}
        waiting = self._write_stores(chunks, found, old, given)
        with self.ledger.transaction():
            self.ledger.forget(*forget)
            self.ledger.commit(*prepared)
            self.ledger.set_uncommitted(remove=new, add=old - new)
            self.ledger.set_waiting(add=waiting)
            self.ledger.advance()
        self._note_commit()
        self.delete_uncommitted()

    def _note_commit(self) -> None:
        # The lexical index was reloaded when it was written.
        self._generation = self.ledger.generation

    def _write_stores(
        self, chunks: Sequence[Document], terms: Sequence[str], old: Set[str], given: Mapping[str, Any]
    ) -> Set[str]:
        """Write new chunks to both stores; return the ids of those that wait for their vectors."""
        new = {str(chunk.id) for chunk in chunks}
        if hashes_terms(self.embeddings) and not new <= given.keys():
            self.store(chunks, terms, uncommitted=new - old)
            return frozenset()
        known = self._known_vectors([chunk for chunk in chunks if chunk.id not in given], old) if old else {}
        known |= given
        self.ledger.set_uncommitted(add=new - old)
        if chunks:
            ready = [chunk for chunk in chunks if chunk.id in known]
            self._upsert(ready, [known[str(chunk.id)] for chunk in ready])
            self.store_terms(chunks, terms)
        return new - known.keys()

    def _known_vectors(self, chunks: Sequence[Document], old: Set[str]) -> dict[str, Any]:
        """Return the vectors of the chunks whose texts are those of old chunks, by their new ids and in order.

        Most of a changed file stays the same, but its chunks get new ids.
        """
        if not self.ledger.had_vectors():
            return {}
        by_text = {searchable_text(chunk): chunk_id for chunk_id, chunk in self.ledger.chunks(old).items()}
        same = {str(chunk.id): by_text[text] for chunk in chunks if (text := searchable_text(chunk)) in by_text}
        # Two of the new chunks can have the text of one old chunk.
        wanted = sorted(set(same.values()))
        vectors: dict[str, Any] = {}
        with self.vectors.open() as store:
            for part in batches(len(wanted)):
                found = store.get(ids=wanted[part], include=["embeddings"])
                vectors |= zip(found["ids"], found["embeddings"], strict=True)
        return {new: vectors[chunk_id] for new, chunk_id in same.items() if chunk_id in vectors}

    def store(
        self, chunks: Sequence[Document], terms: Sequence[str] | None = None, uncommitted: Set[str] = frozenset()
    ) -> None:
        """Write chunks to both stores without committing them.

        ``terms`` are those of each chunk, if they are known already; ``uncommitted`` are the ids that are new.
        """
        if not chunks:
            return
        found = [index_terms(chunk) for chunk in chunks] if terms is None else terms
        self.store_vectors(chunks, uncommitted, found)
        self.store_terms(chunks, found)

    def store_vectors(
        self, chunks: Sequence[Document], uncommitted: Set[str] = frozenset(), terms: Sequence[str] | None = None
    ) -> None:
        """Write chunks to the vector store; see ``store``."""
        for part in batches(len(chunks)):
            # Embedding comes before the lock, so that questions wait only while Chroma writes; and before the ids
            # are recorded, so that a new index stays empty if the embedder cannot be loaded.
            vectors = self.embed(chunks[part], None if terms is None else terms[part])
            self.ledger.set_uncommitted(add=uncommitted & {str(chunk.id) for chunk in chunks[part]})
            self._upsert(chunks[part], vectors)

    def embed(self, chunks: Sequence[Document], terms: Sequence[str] | None = None) -> Sequence[Any]:
        """Return the vectors of chunks, whose terms may be known already."""
        if hashes_terms(self.embeddings):
            found = [index_terms(chunk) for chunk in chunks] if terms is None else terms
            vectors: Sequence[Any] = self.embeddings.embed_terms(found)
            return vectors
        return self.embeddings.embed_documents([searchable_text(chunk) for chunk in chunks])

    def write_vectors(self, chunks: Sequence[Document], vectors: Sequence[Any]) -> int:
        """Write the vectors of those of the committed chunks that still wait for them; return their number."""
        # Another process may read documents for minutes.
        with self.writing(_WITHOUT_LIMIT), self.committing():
            waiting = self.ledger.waiting_among([str(chunk.id) for chunk in chunks])
            pairs = [pair for pair in zip(chunks, vectors, strict=True) if pair[0].id in waiting]
            self._upsert([chunk for chunk, _ in pairs], [vector for _, vector in pairs])
        return len(pairs)

    def _upsert(self, chunks: Sequence[Document], vectors: Sequence[Any]) -> None:
        """Write chunks with their vectors to the vector store; they do not wait for them any more."""
        for part in batches(len(chunks)):
            ids = [str(chunk.id) for chunk in chunks[part]]
            self.ledger.set_fingerprints(dict(zip(ids, fingerprints(vectors[part]), strict=True)))
            with self.vectors.changing() as store:
                # Without texts and metadata, which the ledger has: Chroma would write each text several times,
                # also into two indexes that nothing asks (77 MB for texts of 9 MB).
                store._collection.upsert(ids, list(vectors[part]))
            self.ledger.set_waiting(remove=ids)

    def store_terms(self, chunks: Sequence[Document], terms: Sequence[str] | None = None) -> None:
        """Write chunks to the lexical index; ``terms`` are those of each chunk, if they are known already."""
        found = [index_terms(chunk) for chunk in chunks] if terms is None else terms
        self.lexical.write(zip([str(chunk.id) for chunk in chunks], found, strict=True))

    def restore_term_lines(self) -> None:
        """Compute the stored terms that are missing or damaged; call it with the write lock held."""
        ids = self.ledger.ordered_ids()
        for part in batches(len(ids)):
            lost = self.ledger.chunks(set(ids[part]) - self.ledger.term_lines(ids[part]).keys())
            with self.ledger.transaction():
                self.ledger.set_term_lines((each, term_lines(chunk).pack()) for each, chunk in lost.items())

    def discard(self, ids: Sequence[str]) -> None:
        """Delete chunks from both stores; unknown ids are skipped."""
        if self.ledger.had_vectors():
            for part in batches(len(ids)):
                with self.vectors.changing() as store:
                    store.delete(ids=list(ids[part]))
                self.ledger.set_fingerprints(remove=ids[part])
        self._discard_terms(ids)

    def _discard_terms(self, ids: Sequence[str]) -> None:
        self.lexical.write([], delete=ids)

    def rebuild(self, *, vectors: bool, terms: bool) -> None:
        """Replace stores by new ones with the committed chunks; call it with the write lock held."""
        if vectors:
            self.vectors.renew()
        if terms:
            remove_folder(self.folder / LEXICAL_FOLDER)
            self.lexical = LexicalIndex(self.folder / LEXICAL_FOLDER)
        # In the order of ingestion, so that chunks with equal scores keep their order, too.
        ids = self.ledger.ordered_ids() if vectors or terms else []
        for part in batches(len(ids)):
            found = self.ledger.chunks(ids[part])
            chunks = [found[chunk_id] for chunk_id in ids[part]]
            if vectors:
                self.store_vectors(chunks)
            if terms:
                self.store_terms(chunks)

    def rewrite(self) -> None:
        """Write both stores anew, with the committed chunks only; call it inside ``writing``."""
        ids = self.ledger.ordered_ids()
        found = (self.ledger.chunks(ids[part]) for part in batches(len(ids)))
        terms = ((chunk_id, index_terms(chunk)) for part in found for chunk_id, chunk in part.items())
        self.lexical.write(terms, anew=True)
        if self.ledger.had_vectors():
            self.vectors.rewrite(ids)

    def delete_uncommitted(self) -> None:
        """Delete what an interrupted writer left in the stores, and old versions of documents."""
        if stray := sorted(self.ledger.uncommitted()):
            self.discard(stray)
            self.ledger.set_uncommitted(remove=stray)
