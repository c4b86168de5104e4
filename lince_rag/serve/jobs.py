"""Ingestion in the background: uploaded files are read, one job at a time, while questions are answered."""

import logging
import threading
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lince_rag.errors import IndexLockedError, LinceError
from lince_rag.index.ingestion import IngestReport
from lince_rag.serve.collections import Collection
from lince_rag.serve.state import Job, ServerState

# How long the thread sleeps when there is nothing to do, and when another process writes the index.
IDLE_SECONDS: Final = 1.0

# Bytes of a file name: ext4 takes 255, and some are needed for the name of the file while it is uploaded.
NAME_BYTES: Final = 200

UNNAMED: Final = "document"

logger = logging.getLogger(__name__)


class _StoppedError(Exception):
    """The server ends; the job is taken up again when it starts."""


@dataclass
class Ingestion:
    """The thread that carries out the jobs of a server, one after another.

    Any worker may take any job. What a worker that was killed has left is taken up when the server starts again:
    to ingest a file again does no harm.
    """

    collections: Mapping[str, Collection]
    state: ServerState

    def __post_init__(self) -> None:
        self._wake = threading.Event()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingestion", daemon=True)

    def start(self) -> None:
        """Begin with the jobs that wait, those that a killed server has left among them."""
        self.state.release_jobs()
        self._thread.start()

    def notice(self) -> None:
        """Say that there is a new job."""
        self._wake.set()

    def stop(self, seconds: float) -> None:
        """End as soon as the current file, or 64 passages, are done; wait for that at most so long."""
        self._ends.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        self.state.release_jobs(own=True)

    def _run(self) -> None:
        for collection in self.collections.values():
            self._embed(collection)
        while not self._ends.is_set():
            self._wake.clear()
            job = self.state.take_job()
            if job is None:
                self._wake.wait(IDLE_SECONDS)
                continue
            try:
                self._carry_out(job)
            except _StoppedError:
                return
            except Exception:
                logger.exception("The job %s failed.", job.id)
                self.state.finish_job(job.id, error="The server failed; its log says why.")

    def _carry_out(self, job: Job) -> None:
        collection = self.collections.get(job.collection)
        if collection is None:
            self.state.finish_job(job.id, error=f"There is no collection {job.collection!r} any more.")
            return
        try:
            if not job.files:
                self._wait_for_lock(collection.index.purge)
                self.state.finish_job(job.id)
                return
            report = self._wait_for_lock(lambda: self._read(job, collection))
        except LinceError as error:
            self.state.finish_job(job.id, error=collection.public_text(str(error)))
            return
        self.state.finish_job(job.id, report=public_report(collection, report))
        self._embed(collection)

    def _read(self, job: Job, collection: Collection) -> IngestReport:
        def progress(done: int, total: int, _: str) -> None:
            if self._ends.is_set():
                raise _StoppedError
            self.state.progress(job.id, done, total)

        return collection.index.ingest(list(job.files), on_progress=progress, vectors="later")

    def _wait_for_lock(self, write: Any) -> Any:
        """Write, as soon as no other process does."""
        while True:
            try:
                return write()
            except IndexLockedError:
                if self._ends.wait(IDLE_SECONDS):
                    raise _StoppedError from None

    def _embed(self, collection: Collection) -> None:
        """Embed what waits for its vectors, also from before the server was started."""

        def progress(done: int, total: int) -> None:
            if self._ends.is_set():
                raise _StoppedError

        index = collection.index
        if index.ledger.read_only or not index.ledger.count_waiting():
            return
        try:
            index.add_vectors(progress)
        except _StoppedError:
            return
        except LinceError as error:
            logger.warning("The vectors of %s are not complete: %s", collection.name, error)


def public_report(collection: Collection, report: IngestReport) -> dict[str, Any]:
    """Return what an ingestion did, in words for clients."""

    def names(sources: list[str]) -> list[str]:
        known = collection.by_source
        return [known[each].name if each in known else collection.public_text(each) for each in sources]

    def texts(found: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {names([source])[0]: values for source, values in found.items()}

    return {
        "added": names(report.added),
        "changed": names(report.changed),
        "unchanged": names(report.unchanged),
        "failed": [
            {"name": collection.public_text(each.source), "reason": collection.public_text(each.reason)}
            for each in report.failed
        ],
        "left_out": texts(report.left_out),
        "pages_without_text": texts(report.pages_without_text),
        "passages": report.chunks,
    }


def safe_name(given: str | None) -> str:
    """Return the file name that an upload is kept under: without folders, control characters and leading dots."""
    name = unicodedata.normalize("NFC", given or "").replace("\\", "/").rsplit("/", 1)[-1]
    name = "".join(each for each in name if unicodedata.category(each)[0] not in "CZ" or each == " ")
    path = Path(name.strip().lstrip(".").strip() or UNNAMED)
    stem = path.stem.encode("utf-8")[: NAME_BYTES - len(path.suffix.encode("utf-8")[:20])].decode(
        "utf-8", "ignore"
    )
    suffix = path.suffix.encode("utf-8")[:20].decode("utf-8", "ignore")
    return (stem.rstrip() or UNNAMED) + suffix
