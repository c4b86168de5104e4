"""Purging: the files of an index are written anew, so that nothing deleted is left in them."""

import time
from dataclasses import dataclass
from typing import Final

from lince_rag.errors import IndexLockedError
from lince_rag.index.stores import LOCK_SECONDS, ChunkStores

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
