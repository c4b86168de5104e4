"""Ingestion: bring files and documents into an index, in batches that are committed as a whole."""

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from langchain_core.documents import Document

from lince_rag.documents.chunking import ALGORITHM_VERSION, ChunkingSettings
from lince_rag.documents.files import printable
from lince_rag.documents.parts import (
    by_source,
    clean_document,
    document_id,
    hash_documents,
    merge_documents,
    prepare_documents,
    stored_documents,
)
from lince_rag.documents.prepared import Part, PreparedDocument
from lince_rag.documents.readers.ocr import check_ocr
from lince_rag.documents.reading import Outcome, Readable, Reading, Work
from lince_rag.documents.remote import address_name, find_remote_files, is_remote
from lince_rag.documents.selection import EVERY_FILE, FileSelection, FoundFiles, find_files, local_path
from lince_rag.errors import ConfigurationError, DocumentError
from lince_rag.index.embeddings import check_loading
from lince_rag.index.ledger import Ledger, Source
from lince_rag.index.stores import ChunkStores
from lince_rag.index.verification import is_gone

# Chunks per commit: large enough to keep the cost of commits low, small enough that an interrupted run loses only
# seconds of work.
CHUNKS_PER_COMMIT: Final = 512

# Chunks whose vectors are written together: an interruption loses the work of at most some seconds.
VECTORS_PER_COMMIT: Final = 64

Item = str | Path | Document

# What reads items: it yields what became of each, in any order, and ends what it has started when it is closed.
Reads = Callable[[Sequence[Work]], Generator[Outcome]]


@dataclass
class IngestReport:
    """What an ingestion did.

    Attributes:
        added: Sources that are new in the index.
        changed: Sources whose chunks were replaced.
        unchanged: Sources that did not change.
        removed: Sources that left the index because their file no longer exists.
        failed: One error, with its reason, per file that could not be read. If a file was readable before, the
            index keeps the chunks of its last readable version.
        skipped: Files of the folders that were not read, by the reason: ``unsupported``, ``hidden``, ``link``,
            ``ignored`` or ``excluded``.
        left_out: What could not be read of each archive or message, new or changed: "file in it: reason".
        pages_without_text: The pages of each PDF, new or changed, that hold pictures only (scanned?).
        chunks: Number of chunks written.
        waiting: Number of chunks of the index whose vectors are still to come; they are found by their terms.
        seconds: Duration.
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: list[DocumentError] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    pages_without_text: dict[str, list[int]] = field(default_factory=dict)
    chunks: int = 0
    waiting: int = 0
    seconds: float = 0.0


def ingest(
    stores: ChunkStores,
    paths: Item | Iterable[Item],
    on_progress: Callable[[int, int, str], None] | None = None,
    *,
    reading: Reading,
    selection: FileSelection = EVERY_FILE,
    reads: Reads | None = None,
) -> IngestReport:
    """Bring files, folders and documents into the stores and the ledger of an index; see ``Index.ingest``.

    ``reads`` reads the items that are not unchanged; by default ``reading`` does it, on this machine.
    """
    started = time.monotonic()
    if not stores.ledger.had_vectors():
        check_loading(stores.embeddings)
    if selection.ocr:
        check_ocr()
    given = _Given(paths)
    with stores.writing():
        stores.ledger.expect_algorithm(ALGORITHM_VERSION)
        known, stamps = stores.ledger.content_hashes(), stores.ledger.stamps()
        items, report = given.find(selection, known)
        if report.removed:
            stores.write([], forget=report.removed)
        works = [
            reading.work(source, item, known.get(source, ""), stamps.get(source, ""))
            for source, item in items.items()
        ]
        # Without threads: most files of most runs are such.
        report.unchanged = [
            work.source for work in works if reading.is_unchanged(work, stamps.get(work.source, ""))
        ]
        same = frozenset(report.unchanged)
        rest = [work for work in works if work.source not in same]
        read_stamps: dict[str, str] = {}

        def read(outcomes: Iterable[Outcome]) -> Iterator[PreparedDocument]:
            for done, outcome in enumerate(outcomes, start=len(same)):
                if on_progress:
                    on_progress(done, len(works), outcome.source)
                if outcome.stamp is not None:
                    read_stamps[outcome.source] = outcome.stamp
                if (document := _note(report, outcome, known)) is not None:
                    yield document

        with closing((reads or reading.outcomes)(rest)) as outcomes:
            write_documents(stores, read(outcomes))
        stores.ledger.set_stamps(read_stamps)
        if on_progress and works:
            on_progress(len(works), len(works), "")
    report.waiting = stores.ledger.count_waiting()
    report.seconds = time.monotonic() - started
    return report


class _Given:
    """What a call of ``ingest`` names: paths of this machine, addresses of others, and documents."""

    def __init__(self, paths: Item | Iterable[Item]) -> None:
        given = [paths] if isinstance(paths, str | Path | Document) else list(paths)
        named = [item for item in given if not isinstance(item, Document)]
        self._addresses = [str(item) for item in named if is_remote(item)]
        self._roots = [local_path(item) for item in named if not is_remote(item)]
        self._documents = by_source(clean_document(item) for item in given if isinstance(item, Document))

    def find(self, selection: FileSelection, known: Iterable[str]) -> tuple[dict[str, Readable], IngestReport]:
        """Return the items to read by their sources, and a report of the files that are skipped or removed."""
        found = find_files(self._roots, selection)
        # Not str(file): a file name in an old encoding is not valid Unicode.
        items: dict[str, Readable] = {printable(file): file for file in found.files}
        remote, present = find_remote_files(self._addresses, selection, found)
        items |= remote
        items |= self._documents
        removed = self._missing(items, present, known, found)
        for source in removed:
            items.pop(source, None)
        return items, IngestReport(removed=removed, skipped=found.skipped)

    def _missing(
        self, items: Mapping[str, Readable], remote: Set[str], known: Iterable[str], found: FoundFiles
    ) -> list[str]:
        """Return the sources that were ingested from these paths before and whose files no longer exist or count.

        If a whole folder is missing (a disk that is not mounted, a typing error), nothing below it counts as
        missing: the folder is reported as a path that does not exist.
        """
        present = {
            source
            for source, item in items.items()
            if isinstance(item, list) or (isinstance(item, Path) and os.path.exists(item))
        }
        ignored = found.skipped.get("ignored", ())
        folders = tuple(path for path in ignored if path.endswith(("/", os.sep)))
        files = set(ignored)
        # An address that is itself an item is a file, or is not there.
        remote_folders = tuple(
            f"{address_name(each)}/" for each in self._addresses if address_name(each) not in items
        )

        def is_gone_from_here(source: str) -> bool:
            if source.startswith(remote_folders):
                return source not in remote
            return self._is_below_a_root(Path(source)) and is_gone(source)

        return [
            source
            for source in known
            if source not in present
            and (source in files or source.startswith(folders) or is_gone_from_here(source))
        ]

    def _is_below_a_root(self, path: Path) -> bool:
        return path.is_absolute() and any(
            root == path or (root in path.parents and root.is_dir()) for root in self._roots
        )


def add_documents(stores: ChunkStores, documents: Sequence[Document]) -> list[str]:
    """Add LangChain documents to the sources that they name; see ``Index.add_documents``."""
    settings = recorded_chunking(stores.ledger)
    if not stores.ledger.had_vectors():
        check_loading(stores.embeddings)
    with stores.writing():
        known = stores.ledger.content_hashes()
        cleaned = [clean_document(document) for document in documents]
        given = by_source(cleaned)
        named = [document.id for document in cleaned if document.id]

        def read() -> Iterator[PreparedDocument]:
            # A document that had a source before, and now has another, leaves the first one.
            moved = stores.ledger.sources_of_parts(named) - given.keys()
            for source in [*sorted(moved), *given]:
                parts = stores.ledger.parts(source)
                if source in known and not parts:
                    raise ConfigurationError(
                        f"{source!r} was read from a file; documents cannot be added to it.",
                        hint="Give the documents another metadata['source'].",
                    )
                kept = parts if source in given else [part for part in parts if part.id not in named]
                stored = stored_documents(source, stores.ledger.text(source) or "", kept)
                merged = merge_documents(stored, given.get(source, []))
                if not merged:
                    left.append(source)
                elif (content_hash := hash_documents(merged)) != known.get(source):
                    yield prepare_documents(source, merged, content_hash, settings)

        left = list[str]()
        write_documents(stores, read())
        if left:
            stores.write([], forget=left)
    return [document_id(document) for document in cleaned]


def write_documents(stores: ChunkStores, documents: Iterable[PreparedDocument]) -> None:
    """Write documents as they come, some hundred chunks in each commit; call it inside ``writing``.

    Documents are read while those before are written, so at most two batches are in memory.
    """
    with ThreadPoolExecutor(1) as executor:
        written: Future[None] | None = None
        for batch in _batches(documents):
            if written:
                written.result()
            written = executor.submit(stores.write, batch)
        if written:
            written.result()


def _batches(documents: Iterable[PreparedDocument]) -> Iterator[list[PreparedDocument]]:
    batch: list[PreparedDocument] = []
    for document in documents:
        batch.append(document)
        if sum(len(each.chunks) for each in batch) >= CHUNKS_PER_COMMIT:
            yield batch
            batch = []
    if batch:
        yield batch


def recorded_chunking(ledger: Ledger) -> ChunkingSettings:
    """Return how the documents of an index are cut."""
    return ChunkingSettings(**(ledger.json_setting("chunking") or {}))


def add_vectors(stores: ChunkStores, on_progress: Callable[[int, int], None] | None = None) -> int:
    """Embed the committed chunks that wait for their vectors; see ``Index.add_vectors``."""
    done = 0
    with stores.embedding_lock() as free:
        # Read again and again: another process may ingest, and its documents are newer.
        while free and (ids := stores.ledger.waiting(CHUNKS_PER_COMMIT)):
            known = stores.ledger.chunks(ids)
            chunks = [known[chunk_id] for chunk_id in ids if chunk_id in known]
            for first in range(0, len(chunks), VECTORS_PER_COMMIT):
                part = chunks[first : first + VECTORS_PER_COMMIT]
                if on_progress:
                    on_progress(done, done + stores.ledger.count_waiting())
                done += stores.write_vectors(part, stores.embed(part))
    if on_progress and done:
        on_progress(done, done)
    return stores.ledger.count_waiting()


def copy_documents(
    ledger: Ledger, stores: ChunkStores, on_progress: Callable[[int, int, str], None] | None = None
) -> None:
    """Bring the documents and chunks of another index into stores; no file is read.

    Stores that have some of them are brought up to date, so an interrupted copy continues on the next call.
    """
    with stores.writing():
        known = stores.ledger.content_hashes()
        sources = ledger.sources()
        if gone := sorted(known.keys() - {source.source for source in sources}):
            stores.write([], forget=gone)

        def read() -> Iterator[PreparedDocument]:
            for done, source in enumerate(sources):
                if on_progress:
                    on_progress(done, len(sources), source.source)
                ids = ledger.chunk_ids(source.source)
                # Chunk ids are digests of the document's contents and the offsets: equal ids mean equal chunks.
                same = stores.ledger.chunk_ids(source.source) == ids
                if not same or known.get(source.source) != source.content_hash:
                    yield PreparedDocument.of(*read_document(ledger, source, ids))

        write_documents(stores, read())
        stores.ledger.set_stamps(ledger.stamps())
    if on_progress and sources:
        on_progress(len(sources), len(sources), "")


def read_document(
    ledger: Ledger, source: Source, ids: Iterable[str]
) -> tuple[Document, list[Document], list[Part]]:
    """Return a document of an index, its chunks in the order of ``ordered_ids``, and its parts."""
    metadata = {
        "source": source.source,
        "title": source.title,
        "language": source.language,
        "content_hash": source.content_hash,
    }
    document = Document(page_content=ledger.text(source.source) or "", metadata=metadata)
    chunks = sorted(ledger.chunks(ids).values(), key=lambda chunk: (int(chunk.metadata["start"]), str(chunk.id)))
    return document, chunks, ledger.parts(source.source)


def _note(report: IngestReport, outcome: Outcome, known: Mapping[str, str]) -> PreparedDocument | None:
    """Note in the report what became of an item; return the document that is to be written, if there is one."""
    source, result = outcome.source, outcome.result
    if result is None:
        report.unchanged.append(source)
        return None
    if isinstance(result, DocumentError):
        report.failed.append(result)
        return None
    (report.changed if source in known else report.added).append(source)
    report.chunks += len(result.chunks)
    if pages := result.document.metadata.get("pages_without_text"):
        report.pages_without_text[source] = pages
    if left_out := result.document.metadata.get("left_out"):
        report.left_out[source] = left_out
    return result
