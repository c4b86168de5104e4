"""Ingestion: bring files and documents into an index, in batches that are committed as a whole."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from lince_rag.documents.chunking import ALGORITHM_VERSION, ChunkingSettings
from lince_rag.documents.files import FORMATS, IMAGE_FORMATS, hash_file, printable
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
from lince_rag.documents.selection import EVERY_FILE, FileSelection, find_files, local_path
from lince_rag.documents.workers import DEFAULT_LIMITS, ReadingLimits, ReadingPool
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

# A file that changed so shortly before it was read may change again without another time: file systems count time
# in steps of up to two seconds.
_SETTLED_NANOSECONDS: Final = 2 * 10**9

Item = str | Path | Document

# With which options a file was read, in its stamp: "o" for OCR, "p" for a password. They matter to pictures and
# PDFs, and to files that may hold such.
MARKS: Final = "+"
_OPTIONS: Final = {suffix: "op" for suffix, form in FORMATS.items() if form.holds_files} | dict.fromkeys(
    [".pdf", *IMAGE_FORMATS], "o"
)

# What became of an item: it is unchanged (``None``), cannot be read, or is ready to be written.
Outcome = PreparedDocument | DocumentError | None

# File patterns, and what makes the loader of a file's path.
Loaders = Mapping[str, Callable[[str], BaseLoader]]


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
    limits: ReadingLimits = DEFAULT_LIMITS,
    selection: FileSelection = EVERY_FILE,
    loaders: Loaders | None = None,
    password: str | None = None,
) -> IngestReport:
    """Bring files, folders and documents into the stores and the ledger of an index; see ``Index.ingest``."""
    started = time.monotonic()
    report = IngestReport()
    settings = recorded_chunking(stores.ledger)
    given = [paths] if isinstance(paths, str | Path | Document) else list(paths)
    roots = [local_path(item) for item in given if not isinstance(item, Document)]
    documents = by_source(clean_document(item) for item in given if isinstance(item, Document))
    if not stores.ledger.had_vectors():
        check_loading(stores.embeddings)
    if selection.ocr:
        check_ocr()
    pool = ReadingPool(settings, limits, password=password, ocr=selection.ocr)
    with stores.writing(), pool:
        stores.ledger.expect_algorithm(ALGORITHM_VERSION)
        reader = _Reader(pool, settings, loaders or {}, stores.ledger, "o" * selection.ocr + "p" * bool(password))
        found = find_files(roots, selection)
        report.skipped = found.skipped
        # Not str(file): a file name in an old encoding is not valid Unicode.
        items: dict[str, Path | list[Document]] = {printable(file): file for file in found.files}
        items |= documents
        report.removed = _missing_sources(roots, items, reader.known, found.skipped.get("ignored", ()))
        if report.removed:
            stores.write([], forget=report.removed)
        for source in report.removed:
            items.pop(source, None)
        # Without threads: most files of most runs are such.
        report.unchanged = [
            source for source, item in items.items() if isinstance(item, Path) and reader.is_unread(source, item)
        ]
        same = frozenset(report.unchanged)
        rest = {source: item for source, item in items.items() if source not in same}

        def read() -> Iterator[PreparedDocument]:
            outcomes = zip(rest, pool.map(reader.read, rest.items()), strict=True)
            for done, (source, outcome) in enumerate(outcomes, start=len(same)):
                if on_progress:
                    on_progress(done, len(items), source)
                if _note(report, source, outcome, reader.known):
                    yield outcome

        write_documents(stores, read())
        failed = {error.source for error in report.failed}
        stores.ledger.set_stamps({each: stamp for each, stamp in reader.read_stamps.items() if each not in failed})
        if on_progress and items:
            on_progress(len(items), len(items), "")
    report.waiting = stores.ledger.count_waiting()
    report.seconds = time.monotonic() - started
    return report


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
    if left_out := outcome.document.metadata.get("left_out"):
        report.left_out[source] = left_out
    return True


def _missing_sources(
    roots: Sequence[Path],
    items: Mapping[str, Path | list[Document]],
    known: Iterable[str],
    ignored: Iterable[str],
) -> list[str]:
    """Return the sources that were ingested from these paths before and whose files no longer exist or count.

    If a whole folder is missing (a disk that is not mounted, a typing error), nothing below it counts as missing:
    the folder is reported as a path that does not exist.
    """
    present = {source for source, item in items.items() if isinstance(item, list) or os.path.exists(item)}
    folders = tuple(path for path in ignored if path.endswith(os.sep))
    files = set(ignored)

    def is_below_a_root(path: Path) -> bool:
        return path.is_absolute() and any(
            root == path or (root in path.parents and root.is_dir()) for root in roots
        )

    return [
        source
        for source in known
        if source not in present
        and (source in files or source.startswith(folders) or (is_below_a_root(Path(source)) and is_gone(source)))
    ]


class _Reader:
    """Reads items of an ingestion, in several threads, unless they are unchanged."""

    def __init__(
        self,
        pool: ReadingPool,
        settings: ChunkingSettings,
        loaders: Loaders,
        ledger: Ledger,
        options: str,
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._loaders = loaders
        self._options = options
        # The content hashes of the committed documents.
        self.known = ledger.content_hashes()
        self._stamps = ledger.stamps()
        # What the file system said of the files when they were read.
        self.read_stamps: dict[str, str] = {}

    def read(self, named: tuple[str, Path | list[Document]]) -> Outcome:
        source, item = named
        try:
            return self._read_documents(source, item) if isinstance(item, list) else self._read_file(source, item)
        except DocumentError as error:
            return error

    def _read_documents(self, source: str, documents: list[Document]) -> Outcome:
        content_hash = hash_documents(documents)
        if content_hash == self.known.get(source):
            return None
        return prepare_documents(source, documents, content_hash, self._settings)

    def is_unread(self, source: str, file: Path) -> bool:
        """Return whether the file system says that a file is as it was when it was read."""
        before, _, had = self._stamps.get(source, "").partition(MARKS)
        return bool(before and self._known(source, file, had) and _stamp(file) == before)

    def _wanted(self, file: Path) -> str:
        """The options that matter to a file."""
        possible = _OPTIONS.get(file.suffix.lower(), "") if self._options else ""
        return "".join(option for option in self._options if option in possible)

    def _known(self, source: str, file: Path, had: str) -> str:
        """The content hash of a committed file; what was read without the options of this run is not known."""
        return self.known.get(source, "") if set(self._wanted(file)) <= set(had) else ""

    def _read_file(self, source: str, file: Path) -> Outcome:
        stamp, (_, _, had) = _stamp(file), self._stamps.get(source, "").partition(MARKS)
        known = self._known(source, file, had)
        loader = self._loader(file)
        # A new file is hashed where it is read.
        content_hash = hash_file(file) if known or loader else ""
        if content_hash and content_hash == known:
            self.read_stamps[source] = stamp + MARKS + had
            return None
        if loader is None:
            outcome = self._pool.read(file, source)
        else:
            outcome = prepare_documents(source, _load(loader, file, source), content_hash, self._settings)
        self.read_stamps[source] = stamp + MARKS + self._wanted(file)
        return outcome

    def _loader(self, file: Path) -> Callable[[str], BaseLoader] | None:
        """Return what makes the application's loader of a file, if it has one."""
        name = file.name.lower()
        return next((make for pattern, make in self._loaders.items() if fnmatch(name, pattern.lower())), None)


def _load(make: Callable[[str], BaseLoader], file: Path, source: str) -> list[Document]:
    """Read a file with a loader of the application's, whose errors are those of the file."""
    try:
        documents = make(str(file)).load()
    except Exception as error:
        raise DocumentError(source, f"{type(error).__name__}: {error}") from error
    named = [each.model_copy(update={"metadata": {**each.metadata, "source": source}}) for each in documents]
    return [clean_document(document) for document in named]


def _stamp(file: Path) -> str:
    """Return what the file system says of a file, or "" if that cannot tell whether it will change.

    Equal stamps mean equal contents: the time of the last change of the file's data or record cannot be set by
    programs.
    """
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return ""
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    if not 0 <= changed < time.time_ns() - _SETTLED_NANOSECONDS:
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
