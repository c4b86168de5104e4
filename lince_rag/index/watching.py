"""Watching: ingest again whenever files change."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lince_rag.documents.remote import address_name, is_remote
from lince_rag.documents.selection import local_path
from lince_rag.errors import ConfigurationError, DocumentError, IndexLockedError
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

    roots = [_watchable(path) for path in paths]
    if not roots:
        raise ConfigurationError("There is nothing to watch.", hint="Give files and folders.")
    folders = {root for root in roots if root.is_dir()}

    def counts(_: "Change", path: str) -> bool:
        above = Path(path).parents
        # The index may be in the folder.
        return index not in above and (Path(path) in roots or not folders.isdisjoint((Path(path), *above)))

    # What changed between an earlier ingestion and the first moment of watching is not reported as a change.
    waiting, known = True, set[str]()
    for changes in watchfiles.watch(
        # Programs save a file by putting a new one in its place, which a watched file does not notice.
        *folders.union(root.parent for root in roots if root not in folders),
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
        except ConfigurationError as error:
            # A pattern in a file of patterns, which may be put right.
            report = IngestReport(failed=[DocumentError(", ".join(map(str, roots)), str(error))])
        waiting = False
        failed = {str(error) for error in report.failed}
        report.failed, known = [error for error in report.failed if str(error) not in known], failed
        if report.added or report.changed or report.removed or report.failed:
            yield report


def _watchable(path: str | Path) -> Path:
    if is_remote(path):
        raise ConfigurationError(
            f"{address_name(str(path))} cannot be watched, because it is not on this machine.",
            hint="Ingest it again from time to time.",
        )
    root = local_path(path)
    if not root.exists():
        raise ConfigurationError(f"There is no {root} to watch.", hint="Give files and folders that exist.")
    return root
