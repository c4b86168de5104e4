"""Verification: do the stores of an index hold exactly what its ledger says, readably?"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lince_rag.index.index import Index

# One unreadable vector fails a whole `get`, so a batch that fails is read one by one.
_BATCH: Final = 500


@dataclass
class VerifyReport:
    """What a verification found.

    Attributes:
        documents: Committed documents.
        chunks: Committed chunks.
        missing_terms: Chunks that are not in the lexical index.
        missing_vectors: Chunks without a readable vector.
        stray: Chunks in a store that no committed document has.
        gone: Sources whose file is no longer there.
        repaired: Whether missing and stray chunks were put right.
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
        """Whether both stores agree with the ledger, now."""
        return self.repaired or not (self.missing_terms or self.missing_vectors or self.stray)


def verify(index: "Index", *, repair: bool = False) -> VerifyReport:
    """Check an index, and put it right on request; see ``Index.verify``."""
    with index.stores.writing(), index.stores.vectors() as vectors:
        committed = index.ledger.chunk_ids()
        sources = index.ledger.content_hashes()
        in_lexical = index.stores.lexical.ids()
        in_vectors = set(vectors.get(include=[])["ids"])
        readable = _readable(vectors, committed & in_vectors)
        report = VerifyReport(
            documents=len(sources),
            chunks=len(committed),
            missing_terms=sorted(committed - in_lexical),
            missing_vectors=sorted(committed - readable),
            stray=sorted((in_lexical | in_vectors) - committed),
            gone=sorted(source for source in sources if is_gone(source)),
        )
        if repair and not report.ok:
            if report.stray:
                index.stores.discard(report.stray)
            lost = {*report.missing_terms, *report.missing_vectors}
            index.stores.store(list(index.chunks(sorted(lost)).values()))
            # Readers in other processes open their stores again when the generation changes.
            with index.ledger.transaction():
                index.ledger.advance()
            report.repaired = True
    return report


def _readable(vectors: Any, ids: Iterable[str]) -> set[str]:
    """The ids whose vectors Chroma can read back."""
    readable: set[str] = set()
    ordered = sorted(ids)
    for first in range(0, len(ordered), _BATCH):
        batch = tuple(ordered[first : first + _BATCH])
        for part in [batch] if _can_read(vectors, batch) else [(chunk_id,) for chunk_id in batch]:
            if len(part) > 1 or _can_read(vectors, part):
                readable.update(part)
    return readable


def _can_read(vectors: Any, ids: tuple[str, ...]) -> bool:
    from chromadb.errors import ChromaError

    try:
        found = vectors.get(ids=list(ids), include=["embeddings"])
    except ChromaError:
        return False
    return len(found["ids"]) == len(ids)


def is_gone(source: str) -> bool:
    """Tell whether a source is the path of a file that is no longer there; one out of reach is not gone."""
    try:
        os.stat(source)
    except (FileNotFoundError, NotADirectoryError):
        return os.path.isabs(source)
    except (OSError, ValueError):
        return False
    return False
