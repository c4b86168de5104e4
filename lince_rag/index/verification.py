"""Verification: check that the stores of an index hold exactly the chunks of its ledger, and repair them."""

import os
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any, Final

from lince_rag.errors import IndexDamagedError
from lince_rag.index.integrity import fingerprints, is_same_fingerprint, lexical_damage
from lince_rag.index.stores import ChunkStores

# Vectors to read in one call.
_BATCH: Final = 500

# How often to check beside a writer that commits meanwhile.
_ATTEMPTS: Final = 3


@dataclass
class VerifyReport:
    """What a verification found.

    Attributes:
        documents: Number of committed documents.
        chunks: Number of committed chunks.
        missing_terms: Ids of chunks that are not in the lexical index.
        missing_vectors: Ids of chunks whose vector cannot be read, or is not the one that was written.
        stray: Ids of chunks that are in a store but in no committed document.
        waiting: Number of chunks whose vectors are still to come; they are found by their terms.
        gone: Sources whose file no longer exists.
        damaged_ledger: What is wrong with the ledger, which cannot be repaired; else the empty text. Nothing else
            has been checked then.
        damaged_terms: What is wrong with the files of the lexical index; else the empty text.
        damaged_vectors: What is wrong with the files of the vector store; else the empty text.
        repaired: Whether missing chunks were written again, stray ones deleted, and damaged stores built again.
    """

    documents: int = 0
    chunks: int = 0
    missing_terms: list[str] = field(default_factory=list)
    missing_vectors: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    waiting: int = 0
    gone: list[str] = field(default_factory=list)
    damaged_ledger: str = ""
    damaged_terms: str = ""
    damaged_vectors: str = ""
    repaired: bool = False

    @property
    def ok(self) -> bool:
        """Whether the ledger is sound and both stores now agree with it."""
        return self.repaired or not (
            self.damaged_ledger
            or self.damaged_terms
            or self.damaged_vectors
            or self.missing_terms
            or self.missing_vectors
            or self.stray
        )


def verify(stores: ChunkStores, *, repair: bool = False) -> VerifyReport:
    """Check the stores of an index, and repair them on request; see ``Index.verify``."""
    if not repair:
        return _check_beside_writers(stores)
    with stores.write_lock():
        report = _check(stores)
        if report.damaged_ledger:
            return report
        if not report.ok:
            _restore(stores, report)
            report.repaired = _check(stores).ok
            if not report.repaired:
                # What is missing cannot be added to these files.
                stores.rebuild(vectors=True, terms=True)
                report.repaired = _check(stores).ok
        if report.ok:
            stores.delete_uncommitted()
            stores.restore_term_lines()
    return report


def _restore(stores: ChunkStores, report: VerifyReport) -> None:
    """Write what a report misses, and delete what is stray; build stores again that are damaged."""
    vectors, terms = bool(report.damaged_vectors), bool(report.damaged_terms)
    stores.rebuild(vectors=vectors, terms=terms)
    if report.stray and not (vectors and terms):
        stores.discard(report.stray)
    lost = {*([] if vectors else report.missing_vectors), *([] if terms else report.missing_terms)}
    stores.store(list(stores.ledger.chunks(sorted(lost)).values()))
    # Readers in other processes reload their stores when the generation changes.
    with stores.ledger.transaction():
        stores.ledger.advance()


def _check_beside_writers(stores: ChunkStores) -> VerifyReport:
    """Check without the write lock; again if problems were found while a writer committed."""
    for _ in range(_ATTEMPTS):
        generation = stores.ledger.generation
        report = _check(stores)
        if report.ok or stores.ledger.generation == generation:
            break
    return report


def _check(stores: ChunkStores) -> VerifyReport:
    ledger = stores.ledger
    if damage := ledger.damage():
        return VerifyReport(damaged_ledger=damage)
    committed, uncommitted, waiting = ledger.known_ids()
    damaged_terms, in_lexical = _check_terms(stores)
    damaged_vectors, in_vectors, readable = _check_vectors(stores, committed - waiting)
    # A writer may have committed meanwhile: missing is what was committed before and after, stray what never was.
    committed_after, uncommitted_after, waiting_after = ledger.known_ids()
    known = committed | uncommitted | committed_after | uncommitted_after
    committed &= committed_after
    stray = (in_lexical | in_vectors) - known
    sources = ledger.content_hashes()
    if stray and ledger.is_empty():
        # Vectors are never written before the ledger has noted them: it is not the ledger of these stores.
        return VerifyReport(damaged_ledger="it is empty, but the stores hold chunks")
    return VerifyReport(
        documents=len(sources),
        chunks=len(committed_after),
        missing_terms=sorted(committed - in_lexical),
        missing_vectors=sorted(committed - readable - waiting - waiting_after),
        waiting=len(waiting_after),
        stray=sorted(stray),
        gone=sorted(source for source in sources if is_gone(source)),
        damaged_terms=damaged_terms,
        damaged_vectors=damaged_vectors,
    )


def _check_terms(stores: ChunkStores) -> tuple[str, set[str]]:
    """Return what is wrong with the files of the lexical index, and the ids in it."""
    has_documents = stores.ledger.has_documents()
    stores.refresh()
    damage = lexical_damage(stores.lexical.folder)
    if damage and not has_documents and not (stores.lexical.folder / "meta.json").exists():
        return "", set()
    if not damage:
        try:
            stores.lexical.reload()
            return "", stores.lexical.ids()
        except IndexDamagedError as error:
            damage = str(error.__cause__ or error.message)
    return damage, set()


def _check_vectors(stores: ChunkStores, committed: Set[str]) -> tuple[str, set[str], set[str]]:
    """Return what is wrong with the vectors, the ids in them, and those of the committed ones to be trusted."""
    damage = stores.vectors.damage() if stores.ledger.had_vectors() else None
    if damage is None or damage:
        return damage or "", set(), set()
    try:
        with stores.vectors.open() as vectors:
            found = set(vectors.get(include=[])["ids"])
        readable, wrong = _readable_ids(stores, committed & found)
    except IndexDamagedError as error:
        return str(error.__cause__ or error.message), set(), set()
    damage = f"vectors that are not the ones that were written: {len(wrong)}" if wrong else ""
    return damage, found, readable - wrong


def _readable_ids(stores: ChunkStores, ids: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the ids whose vectors Chroma can read, and those whose vector is not the one that was written."""
    found: dict[str, float] = {}
    ordered = sorted(ids)
    for first in range(0, len(ordered), _BATCH):
        batch = ordered[first : first + _BATCH]
        # One call after another, so that a writer does not wait long.
        with stores.vectors.open() as vectors:
            read = _read(vectors, batch)
            if len(read) < len(batch):
                # One unreadable vector makes the whole call fail.
                for chunk_id in batch:
                    read |= _read(vectors, [chunk_id])
        found |= read
    written = stores.ledger.fingerprints()
    # An earlier version wrote no fingerprints.
    wrong = {each for each, value in found.items() if not is_same_fingerprint(value, written.get(each, value))}
    return set(found), wrong


def _read(vectors: Any, ids: list[str]) -> dict[str, float]:
    """Return the fingerprints of the vectors that can be read, by id."""
    from chromadb.errors import ChromaError

    try:
        found = vectors.get(ids=ids, include=["embeddings"])
    except ChromaError:
        return {}
    return dict(zip(found["ids"], fingerprints(found["embeddings"]), strict=True)) if found["ids"] else {}


def is_gone(source: str) -> bool:
    """Return whether a source is the path of a file that no longer exists; an unreachable path does not count."""
    try:
        os.stat(source)
    except (FileNotFoundError, NotADirectoryError):
        return os.path.isabs(source)
    except (OSError, ValueError):
        return False
    return False
