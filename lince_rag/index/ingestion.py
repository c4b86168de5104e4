"""Ingestion: bring files and documents into an index, in batches that are committed as a whole."""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from langchain_core.documents import Document

from lince_rag.documents.chunking import ALGORITHM_VERSION, ChunkingSettings, PreparedDocument, prepare
from lince_rag.documents.files import FileLoader, FoundFiles, find_files, hash_file
from lince_rag.documents.workers import DEFAULT_LIMITS, ReadingLimits, ReadingPool
from lince_rag.errors import ConfigurationError, DocumentError
from lince_rag.index.embeddings import check_loading
from lince_rag.index.ledger import Ledger, Source
from lince_rag.index.stores import ChunkStores
from lince_rag.index.verification import is_gone
from lince_rag.text.language import LANGUAGES, detect_language

# Chunks per commit: large enough to keep the cost of commits low, small enough that an interrupted run loses only
# seconds of work.
CHUNKS_PER_COMMIT: Final = 512

# Chunks whose vectors are written together: an interruption loses the work of at most some seconds.
VECTORS_PER_COMMIT: Final = 64

Item = str | Path | Document

# What became of an item: it is unchanged (``None``), cannot be read, or is ready to be written.
Outcome = PreparedDocument | DocumentError | None

# What SQLite cannot store in a text: NUL and lone surrogates.
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


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
        skipped: Files of the folders that were not read, by the reason: ``unsupported``, ``hidden`` or ``link``.
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
    pages_without_text: dict[str, list[int]] = field(default_factory=dict)
    chunks: int = 0
    waiting: int = 0
    seconds: float = 0.0


def ingest(
    stores: ChunkStores,
    paths: Item | Iterable[Item],
    on_progress: Callable[[int, int, str], None] | None = None,
    *,
    limits: ReadingLimits = DEFAULT_LIMITS,
    follow_links: bool = False,
) -> IngestReport:
    """Bring files, folders and documents into the stores and the ledger of an index; see ``Index.ingest``."""
    started = time.monotonic()
    report = IngestReport()
    settings = recorded_chunking(stores.ledger)
    given = [paths] if isinstance(paths, str | Path | Document) else list(paths)
    if not stores.ledger.had_vectors():
        check_loading(stores.embeddings)
    with stores.writing(), ReadingPool(settings, limits) as pool:
        stores.ledger.expect_algorithm(ALGORITHM_VERSION)
        known = stores.ledger.content_hashes()
        found = find_files(
            [_absolute(item) for item in given if not isinstance(item, Document)], follow_links=follow_links
        )
        report.skipped = found.skipped
        items = _items_by_source(found, given)
        report.removed = _missing_sources(given, items, known)
        if report.removed:
            stores.write([], forget=report.removed)
        for source in report.removed:
            items.pop(source, None)

        def read() -> Iterator[PreparedDocument]:
            outcomes = pool.map(partial(_prepare, pool, settings, known), items.items())
            for done, (source, outcome) in enumerate(zip(items, outcomes, strict=True)):
                if on_progress:
                    on_progress(done, len(items), source)
                if _note(report, source, outcome, known):
                    yield outcome

        _write(stores, read())
        if on_progress and items:
            on_progress(len(items), len(items), "")
    report.waiting = stores.ledger.count_waiting()
    report.seconds = time.monotonic() - started
    return report


def _write(stores: ChunkStores, documents: Iterable[PreparedDocument]) -> None:
    """Write documents as they come, some hundred chunks in each commit; call it inside ``writing``."""
    batch: list[PreparedDocument] = []
    for document in documents:
        batch.append(document)
        if sum(len(each.chunks) for each in batch) >= CHUNKS_PER_COMMIT:
            stores.write(batch)
            batch = []
    if batch:
        stores.write(batch)


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
                    yield _stored_document(ledger, source, ids)

        _write(stores, read())
    if on_progress and sources:
        on_progress(len(sources), len(sources), "")


def _stored_document(ledger: Ledger, source: Source, ids: set[str]) -> PreparedDocument:
    metadata = {
        "source": source.source,
        "title": source.title,
        "language": source.language,
        "content_hash": source.content_hash,
    }
    document = Document(page_content=ledger.text(source.source) or "", metadata=metadata)
    chunks = sorted(ledger.chunks(ids).values(), key=lambda chunk: int(chunk.metadata["start"]))
    return PreparedDocument.of(document, chunks)


def _note(report: IngestReport, source: str, outcome: Outcome, known: Mapping[str, str]) -> bool:
    """Note in the report what became of an item; return whether it is to be written."""
    if outcome is None:
        report.unchanged.append(source)
        return False
    if isinstance(outcome, DocumentError):
        report.failed.append(outcome)
        return False
    (report.changed if source in known else report.added).append(source)
    report.chunks += len(outcome.chunks)
    if pages := outcome.document.metadata.get("pages_without_text"):
        report.pages_without_text[source] = pages
    return True


def _items_by_source(found: FoundFiles, given: list[Item]) -> dict[str, Path | Document]:
    """Return the files of all paths and folders, and the documents; the last one with a name wins."""
    items: dict[str, Path | Document] = {_source(file): file for file in found.files}
    return items | {_source(item): item for item in given if isinstance(item, Document)}


def _absolute(path: str | Path) -> Path:
    """Make a path absolute without following links, so that citations show the path that the user gave."""
    return Path(os.path.abspath(Path(path).expanduser()))


def _source(item: Path | Document) -> str:
    if isinstance(item, Path):
        # Not str(item): a file name in an old encoding is not valid Unicode.
        return FileLoader(item).source
    source = item.metadata.get("source")
    if not isinstance(source, str) or not source:
        raise ConfigurationError(
            f"A document without a source cannot be ingested: {item.page_content[:60]!r}",
            hint="Set metadata['source'] to a unique name.",
        )
    return _storable(source)


def _storable(text: str) -> str:
    """Replace what SQLite cannot store, keeping the length and so the offsets."""
    return _UNSTORABLE.sub("\ufffd", text)


def _missing_sources(given: list[Item], items: dict[str, Path | Document], known: Iterable[str]) -> list[str]:
    """Return the sources that were ingested from these paths before and whose files no longer exist.

    If a whole folder is missing (a disk that is not mounted, a typing error), nothing below it counts as missing:
    the folder is reported as a path that does not exist.
    """
    present = {source for source, item in items.items() if isinstance(item, Document) or os.path.exists(item)}
    roots = [_absolute(item) for item in given if not isinstance(item, Document)]

    def is_below_a_root(path: Path) -> bool:
        return path.is_absolute() and any(
            root == path or (root in path.parents and root.is_dir()) for root in roots
        )

    return [
        source for source in known if source not in present and is_below_a_root(Path(source)) and is_gone(source)
    ]


def _prepare(
    pool: ReadingPool, settings: ChunkingSettings, known: Mapping[str, str], named: tuple[str, Path | Document]
) -> Outcome:
    source, item = named
    try:
        content_hash = hash_file(item) if isinstance(item, Path) else _hash_document(item)
        if content_hash == known.get(source):
            return None
        if isinstance(item, Path):
            return pool.read(item, source)
        return prepare(_clean(item, source, content_hash), settings)
    except DocumentError as error:
        return error


def _clean(document: Document, source: str, content_hash: str) -> Document:
    """Copy a document with metadata that SQLite can store, and with the metadata that chunking needs."""
    if not document.page_content.strip():
        raise DocumentError(source, "no text in it")
    text = _storable(document.page_content)
    metadata: dict[str, Any] = {
        _storable(key): _storable(value) if isinstance(value, str) else value
        for key, value in document.metadata.items()
        # SQLite cannot read JSON that contains NaN or Infinity: one such value would break every filter.
        if not isinstance(value, float) or math.isfinite(value)
    }
    metadata["content_hash"] = content_hash
    if metadata.get("language") not in LANGUAGES:
        metadata["language"] = detect_language(text)
    return document.model_copy(update={"page_content": text, "metadata": metadata})


def _hash_document(document: Document) -> str:
    metadata = json.dumps(document.metadata, sort_keys=True, default=str)
    return hashlib.blake2b(
        f"{metadata}\0{document.page_content}".encode("utf-8", "surrogatepass"), digest_size=16
    ).hexdigest()
