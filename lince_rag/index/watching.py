"""Watching: ingest again whenever files change."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lince_rag.documents.selection import local_path
from lince_rag.errors import ConfigurationError, IndexLockedError
from lince_rag.index.ingestion import IngestReport

if TYPE_CHECKING:
    from watchfiles.main import AbstractEvent, Change

# Changes that follow each other within this time are read together, and the longest time that they are collected.
_STEP_MILLISECONDS: Final = 200
_DEBOUNCE_MILLISECONDS: Final = 2_000

# After this time without changes, an ingestion that another process prevented is tried again.
_RETRY_MILLISECONDS: Final = 1_000


def watch(
    index: Path,
    paths: Sequence[str | Path],
    ingest: Callable[[], IngestReport],
    stop: "AbstractEvent | None" = None,
) -> Iterator[IngestReport]:
    """Call ``ingest`` at once, and whenever something below the paths changes; see ``Index.watch``."""
    import watchfiles

    roots = [local_path(path) for path in paths]
    for root in roots:
        if not root.exists():
            raise ConfigurationError(f"There is no {root} to watch.", hint="Give files and folders that exist.")

    def counts(_: "Change", path: str) -> bool:
        # The index may be in the folder.
        return index not in Path(path).parents

    # What changed between an earlier ingestion and the first moment of watching is not reported as a change.
    waiting = True
    for changes in watchfiles.watch(
        *roots,
        watch_filter=counts,
        debounce=_DEBOUNCE_MILLISECONDS,
        step=_STEP_MILLISECONDS,
        stop_event=stop,
        rust_timeout=_RETRY_MILLISECONDS,
        yield_on_timeout=True,
    ):
        if not changes and not waiting:
            continue
        try:
            report = ingest()
        except IndexLockedError:
            waiting = True
            continue
        waiting = False
        if report.added or report.changed or report.removed or report.failed:
            yield report
