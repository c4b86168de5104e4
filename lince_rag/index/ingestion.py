"""Ingestion: files and documents into an index, one direction, in batches that commit whole."""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from langchain_core.documents import Document

from lince_rag.documents.chunking import ChunkingSettings, chunk_document
from lince_rag.documents.files import FileLoader, find_files, hash_file
from lince_rag.errors import ConfigurationError, DocumentError
from lince_rag.index.stores import PreparedDocument
from lince_rag.index.verification import is_gone
from lince_rag.text.language import LANGUAGES, detect_language

if TYPE_CHECKING:
    from lince_rag.index.index import Index

# Chunks a commit: large enough that the commits cost little, small enough that an interrupted run loses
# seconds of work.
CHUNKS_PER_COMMIT: Final = 512

Item = str | Path | Document

_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


@dataclass
class IngestReport:
    """What an ingestion did.

    Attributes:
        added: Sources that are new in the index.
        changed: Sources whose old chunks were replaced.
        unchanged: Sources that were left as they are.
        removed: Sources that went because their file is gone.
        failed: Files that could not be read, each with its reason. A file that was readable before keeps the
            chunks of its last readable version.
        chunks: Chunks written.
        seconds: How long it took.
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: list[DocumentError] = field(default_factory=list)
    chunks: int = 0
    seconds: float = 0.0


def ingest(
    index: "Index", paths: Item | Iterable[Item], on_progress: Callable[[int, int, str], None] | None = None
) -> IngestReport:
    """Bring files, folders and documents into an index; see ``Index.ingest``."""
    started = time.monotonic()
    report = IngestReport()
    settings = ChunkingSettings(**json.loads(index.ledger.setting("chunking") or "{}"))
    given = [paths] if isinstance(paths, str | Path | Document) else list(paths)
    with index.stores.writing():
        known = index.ledger.content_hashes()
        items = _list_items(given)
        _forget_missing(index, given, items, known, report)
        batch: list[PreparedDocument] = []
        for done, item in enumerate(items):
            source = _source(item)
            if on_progress:
                on_progress(done, len(items), source)
            prepared = _prepare(item, source, known.get(source), settings, report)
            if prepared is None:
                continue
            (report.changed if source in known else report.added).append(source)
            batch.append(prepared)
            if sum(len(document.chunks) for document in batch) >= CHUNKS_PER_COMMIT:
                report.chunks += _commit(index, batch)
                batch = []
        report.chunks += _commit(index, batch)
        if on_progress and items:
            on_progress(len(items), len(items), "")
    report.seconds = time.monotonic() - started
    return report


def _commit(index: "Index", batch: list[PreparedDocument]) -> int:
    if batch:
        index.stores.write(batch)
    return sum(len(document.chunks) for document in batch)


def _list_items(given: list[Item]) -> list[Path | Document]:
    """Files of all paths and folders, each once, and the documents as they are; the last of a name wins."""
    files = find_files([_absolute(item) for item in given if not isinstance(item, Document)])
    items: dict[str, Path | Document] = {_source(file): file for file in files}
    items |= {_source(item): item for item in given if isinstance(item, Document)}
    return list(items.values())


def _absolute(path: str | Path) -> Path:
    """Make a path absolute without following links: the name a person gave a file is the one to cite."""
    return Path(os.path.abspath(Path(path).expanduser()))


def _source(item: Path | Document) -> str:
    if isinstance(item, Path):
        # Not str(item): a file name in an old encoding is not valid Unicode.
        return FileLoader(item).source
    source = item.metadata.get("source")
    if not isinstance(source, str) or not source:
        raise ConfigurationError(
            f"A document without a source cannot be ingested: {item.page_content[:60]!r}",
            hint="Set metadata['source'] to a name that tells it from the others.",
        )
    return _storable(source)


def _storable(text: str) -> str:
    """Put a stand-in of the same length for what SQLite cannot hold: NUL and half surrogate pairs."""
    return _UNSTORABLE.sub("\ufffd", text)


def _forget_missing(
    index: "Index", given: list[Item], items: list[Path | Document], known: dict[str, str], report: IngestReport
) -> None:
    """Take out what was ingested from these paths before and is no longer there.

    A folder that is missing as a whole (a disk that is not mounted, a typing error) takes nothing with it: it is
    reported as a path that does not exist.
    """
    present = {_source(item) for item in items if isinstance(item, Document) or os.path.exists(item)}
    roots = [_absolute(item) for item in given if not isinstance(item, Document)]
    for source in known:
        path = Path(source)
        below = path.is_absolute() and any(
            root == path or (root in path.parents and root.is_dir()) for root in roots
        )
        if below and source not in present and is_gone(source):
            report.removed.append(source)
    gone = set(report.removed)
    items[:] = [item for item in items if isinstance(item, Document) or _source(item) not in gone]
    if gone:
        index.stores.write([], forget=report.removed)


def _prepare(
    item: Path | Document, source: str, known_hash: str | None, settings: ChunkingSettings, report: IngestReport
) -> PreparedDocument | None:
    """Load and cut one item, unless it has not changed or cannot be read: then the report says so."""
    try:
        content_hash = hash_file(item) if isinstance(item, Path) else _hash_document(item)
        if content_hash == known_hash:
            report.unchanged.append(source)
            return None
        document = next(_load(item))
        return PreparedDocument(document, content_hash, chunk_document(document, settings))
    except DocumentError as error:
        report.failed.append(error)
        return None


def _load(item: Path | Document) -> Iterator[Document]:
    if isinstance(item, Path):
        yield from FileLoader(item).lazy_load()
        return
    if not item.page_content.strip():
        raise DocumentError(_source(item), "no text in it")
    text = _storable(item.page_content)
    metadata: dict[str, Any] = {
        _storable(key): _storable(value) if isinstance(value, str) else value
        for key, value in item.metadata.items()
        # SQLite cannot look into JSON with NaN or Infinity in it: one would break every filter.
        if not isinstance(value, float) or math.isfinite(value)
    }
    metadata["content_hash"] = _hash_document(item)
    if metadata.get("language") not in LANGUAGES:
        metadata["language"] = detect_language(text)
    yield item.model_copy(update={"page_content": text, "metadata": metadata})


def _hash_document(document: Document) -> str:
    metadata = json.dumps(document.metadata, sort_keys=True, default=str)
    return hashlib.blake2b(
        f"{metadata}\0{document.page_content}".encode("utf-8", "surrogatepass"), digest_size=16
    ).hexdigest()
