"""Verification: check that the stores of an index hold exactly the chunks of its ledger, and repair them."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from lince_rag.index.stores import ChunkStores

# Vectors to read in one call.
_BATCH: Final = 500


@dataclass
class VerifyReport:
    """What a verification found.

    Attributes:
        documents: Number of committed documents.
        chunks: Number of committed chunks.
        missing_terms: Ids of chunks that are not in the lexical index.
        missing_vectors: Ids of chunks without a readable vector.
        stray: Ids of chunks that are in a store but in no committed document.
        gone: Sources whose file no longer exists.
        repaired: Whether missing chunks were written again and stray ones deleted.
    """

    documents: int = 0
    chunks: int = 0
    missing_terms: list[str] = field(default_factory=list)
    missing_vectors: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    repaired: bool = False

    @property
    def ok(self) -> bool:
        """Whether both stores now agree with the ledger."""
        return self.repaired or not (self.missing_terms or self.missing_vectors or self.stray)


def verify(stores: ChunkStores, *, repair: bool = False) -> VerifyReport:
    """Check the stores of an index, and repair them on request; see ``Index.verify``."""
    ledger = stores.ledger
    with stores.writing(), stores.vectors() as vectors:
        committed = ledger.chunk_ids()
        sources = ledger.content_hashes()
        in_lexical = stores.lexical.ids()
        in_vectors = set(vectors.get(include=[])["ids"])
        report = VerifyReport(
            documents=len(sources),
            chunks=len(committed),
            missing_terms=sorted(committed - in_lexical),
            missing_vectors=sorted(committed - _readable_ids(vectors, committed & in_vectors)),
            stray=sorted((in_lexical | in_vectors) - committed),
            gone=sorted(source for source in sources if is_gone(source)),
        )
        if repair and not report.ok:
            if report.stray:
                stores.discard(report.stray)
            lost = {*report.missing_terms, *report.missing_vectors}
            stores.store(list(ledger.chunks(sorted(lost)).values()))
            # Readers in other processes reload their stores when the generation changes.
            with ledger.transaction():
                ledger.advance()
            report.repaired = True
    return report


def _readable_ids(vectors: Any, ids: Iterable[str]) -> set[str]:
    """Return the ids whose vectors Chroma can read."""
    readable: set[str] = set()
    ordered = sorted(ids)
    for first in range(0, len(ordered), _BATCH):
        batch = ordered[first : first + _BATCH]
        if _can_read(vectors, batch):
            readable.update(batch)
        else:
            # One unreadable vector makes the whole call fail.
            readable.update(chunk_id for chunk_id in batch if _can_read(vectors, [chunk_id]))
    return readable


def _can_read(vectors: Any, ids: list[str]) -> bool:
    from chromadb.errors import ChromaError

    try:
        found = vectors.get(ids=ids, include=["embeddings"])
    except ChromaError:
        return False
    return len(found["ids"]) == len(ids)


def is_gone(source: str) -> bool:
    """Return whether a source is the path of a file that no longer exists; an unreachable path does not count."""
    try:
        os.stat(source)
    except (FileNotFoundError, NotADirectoryError):
        return os.path.isabs(source)
    except (OSError, ValueError):
        return False
    return False
