"""Writing an index anew: without what was deleted, or on servers with the vectors of another embedder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from langchain_core.embeddings import Embeddings

from lince_rag.errors import IndexLockedError, IndexServerError
from lince_rag.index.embeddings import embeddings_name
from lince_rag.index.ingestion import VECTORS_PER_COMMIT
from lince_rag.index.integrity import fingerprints
from lince_rag.index.opening import embedder_settings
from lince_rag.index.postgresql import EMBEDDING
from lince_rag.index.shared import SharedStores
from lince_rag.index.stores import LOCK_SECONDS, ChunkStores
from lince_rag.index.vectors import batches

if TYPE_CHECKING:
    from langchain_chroma import Chroma

_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True)
class PurgeReport:
    """What purging an index did.

    Attributes:
        seconds: Duration.
        freed: How many bytes fewer the files take.
    """

    seconds: float
    freed: int


def purge(stores: ChunkStores) -> PurgeReport:
    """Write the stores and the ledger of an index anew; see ``Index.purge``."""
    started, before = time.monotonic(), stores.stored_bytes()
    with stores.writing(alone=True):
        stores.rewrite()
        with stores.ledger.transaction():
            stores.ledger.advance()
        end = time.monotonic() + LOCK_SECONDS
        while not stores.ledger.compact():
            if time.monotonic() > end:
                raise IndexLockedError(
                    f"Another process is reading the index {stores.folder}, whose journal keeps what was deleted.",
                    hint="Wait until it has finished, and purge again.",
                )
            time.sleep(_POLL_SECONDS)
    return PurgeReport(time.monotonic() - started, before - stores.stored_bytes())


def change_embedder(
    stores: SharedStores, embeddings: Embeddings, on_progress: Callable[[int, int], None] | None = None
) -> None:
    """Write the vectors of an embedder beside those of a shared index, then put them in their place.

    Until then the index is as it was. The next call goes on with what an interrupted one has written.
    """
    ledger, vectors = stores.ledger, stores.vectors
    # Nobody embeds or writes with the old embedder meanwhile.
    with ledger.locked(EMBEDDING, seconds=LOCK_SECONDS), stores.write_lock():
        with vectors.reporting():
            new, ids = vectors.open_spare(embeddings_name(embeddings)), ledger.ordered_ids()
            there = set(new.get(include=[])["ids"])
            stray = sorted(there.difference(ids))
            for part in batches(len(stray)):
                new.delete(ids=stray[part])
        missing = [each for each in ids if each not in there]
        embedding = SharedStores(stores.folder, embeddings, ledger)
        for first in range(0, len(missing), VECTORS_PER_COMMIT):
            if on_progress:
                on_progress(first, len(missing))
            some = missing[first : first + VECTORS_PER_COMMIT]
            known = ledger.chunks(some)
            made = list(embedding.embed([known[each] for each in some]))
            with vectors.reporting():
                new._collection.upsert(some, made)
        with vectors.reporting():
            _put_in_place(stores, new, ids, embeddings)
    if on_progress and missing:
        on_progress(len(missing), len(missing))


def _put_in_place(stores: SharedStores, new: "Chroma", ids: Sequence[str], embeddings: Embeddings) -> None:
    """Let a new collection be that of the index, in one transaction, and delete the old one."""
    ledger = stores.ledger
    with ledger.transaction():
        ledger.forget_vectors()
        for part in batches(len(ids)):
            found = new.get(ids=list(ids[part]), include=["embeddings"])
            if len(found["ids"]) < len(ids[part]):
                raise IndexServerError(
                    f"The Chroma server {ledger.location.chroma} has lost vectors that were just written.",
                    hint="Run the same command again: it writes what is missing.",
                )
            ledger.set_fingerprints(dict(zip(found["ids"], fingerprints(found["embeddings"]), strict=True)))
        stores.vectors.take_spare()
        ledger.set_settings(**embedder_settings(embeddings))
        ledger.advance()
    stores.vectors.drop_spare()
