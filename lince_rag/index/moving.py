"""Moving an index: everything that is in it goes into one file, and from there into another index."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from lince_rag.documents.chunking import chunk_id
from lince_rag.documents.prepared import PreparedDocument
from lince_rag.documents.reading import MARKS
from lince_rag.errors import (
    ConfigurationError,
    EmbeddingsMismatchError,
    IndexFolderError,
    IndexLockedError,
    LinceError,
)
from lince_rag.index.embeddings import (
    EMBEDDED,
    PACKAGED_E5_SMALL,
    TRIAL_TEXT,
    check_loading,
    embeddings_name,
    named_embeddings,
    restore_embeddings,
)
from lince_rag.index.export_files import ExportFile, ExportWriter, new_file
from lince_rag.index.exports import Manifest, Record
from lince_rag.index.ingestion import read_document, write_documents
from lince_rag.index.integrity import fingerprints, is_same_fingerprint
from lince_rag.index.ledger import CHUNKING_ALGORITHM, VECTOR_CHANGES, Ledger
from lince_rag.index.locations import find_location
from lince_rag.index.storage import damaged_ledger
from lince_rag.index.stores import ChunkStores
from lince_rag.index.vectors import batches

Progress = Callable[[int, int, str], None]

# How much more an index takes than what it is made of.
_GROWTH: Final = 2


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        documents: Number of documents.
        chunks: Number of chunks.
        waiting: Number of chunks whose vectors are still to come, there as here.
        bytes: Size of the file.
        seconds: Duration.
    """

    documents: int
    chunks: int
    waiting: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class RestoreReport:
    """What an export did to an index.

    Attributes:
        added: Number of documents that are new in the index.
        changed: Number of documents that replaced others of the same name.
        unchanged: Number of documents that were there already.
        waiting: Number of chunks of the index whose vectors are still to come; they are found by their terms.
        seconds: Duration.
    """

    added: int
    changed: int
    unchanged: int
    waiting: int
    seconds: float


# ---------------------------------------------------------------------------------------------------------- export


def export_index(
    stores: ChunkStores, file: Path, *, overwrite: bool = False, on_progress: Progress | None = None
) -> ExportReport:
    """Write everything that is in an index into a file; see ``Index.export``."""
    started = time.monotonic()
    ledger = stores.ledger
    with new_file(file, overwrite=overwrite) as stream, ExportWriter(stream) as writer, _at_rest(stores):
        if damage := ledger.damage():
            raise damaged_ledger(ledger.path, damage)
        sources, ids = ledger.ordered_sources(), ledger.ordered_ids()
        writer.documents(_read_records(ledger, sources, on_progress))
        vectors = _Vectors(stores, ids)
        writer.vectors(iter(vectors))
        manifest = Manifest(
            embeddings=ledger.setting("embeddings") or "",
            embeddings_options=ledger.json_setting("embeddings_options") or {},
            chunking=ledger.json_setting("chunking") or {},
            chunking_algorithm=ledger.setting(CHUNKING_ALGORITHM) or "",
            documents=len(sources),
            chunks=len(ids),
            vectors=vectors.count,
            dimension=vectors.dimension,
            members=writer.members,
        )
        writer.finish(manifest)
    waiting = len(ids) - vectors.count
    return ExportReport(len(sources), len(ids), waiting, file.stat().st_size, time.monotonic() - started)


@contextmanager
def _at_rest(stores: ChunkStores) -> Iterator[None]:
    """Keep other writers away; where nothing can be written, notice them."""
    ledger = stores.ledger
    if not ledger.read_only:
        with stores.write_lock():
            yield
        return

    def state() -> tuple[int, str | None]:
        return ledger.generation, ledger.setting(VECTOR_CHANGES)

    before = state()
    try:
        yield
        failed: LinceError | None = None
    except LinceError as error:
        if state() == before:
            raise
        failed = error
    if failed or state() != before:
        raise IndexLockedError(
            f"Another process has changed the index {stores.folder} meanwhile.", hint="Export it again."
        ) from failed


def _read_records(ledger: Ledger, sources: list[str], on_progress: Progress | None) -> Iterator[Record]:
    """Yield the documents in the order in which they were committed."""
    stamps, some_wait = ledger.stamps(), ledger.count_waiting() > 0
    for part in batches(len(sources)):
        known = {each.source: each for each in ledger.sources(sources[part])}
        for done, name in enumerate(sources[part], start=part.start):
            if on_progress:
                on_progress(done, len(sources), name)
            ids = sorted(ledger.chunk_ids(name))
            document, chunks, parts = read_document(ledger, known[name], ids)
            waiting = ledger.waiting_among(ids) if some_wait else frozenset[str]()
            marked = [(chunk.metadata, chunk.id not in waiting) for chunk in chunks]
            yield Record(document, marked, parts, stamps.get(name, "").partition(MARKS)[2])
    if on_progress and sources:
        on_progress(len(sources), len(sources), "")


class _Vectors:
    """The vectors of the chunks that have one, in the order of the chunks; checked with their fingerprints."""

    def __init__(self, stores: ChunkStores, ids: list[str]) -> None:
        self._stores = stores
        self._ids = ids
        self.count = 0
        self.dimension = 0

    def __iter__(self) -> Iterator[Any]:
        ledger = self._stores.ledger
        for part in batches(len(self._ids)):
            waiting = ledger.waiting_among(self._ids[part])
            if not (ids := [each for each in self._ids[part] if each not in waiting]):
                continue
            array = self._stores.vectors.read(ids)
            written = ledger.fingerprints(ids)
            found = zip(ids, fingerprints(array), strict=True)
            # An earlier version wrote no fingerprints.
            if wrong := sum(not is_same_fingerprint(value, written.get(each, value)) for each, value in found):
                raise self._stores.vectors.damaged(f"vectors that are not the ones that were written: {wrong}")
            self.count, self.dimension = self.count + len(ids), array.shape[1]
            yield array


# --------------------------------------------------------------------------------------------------------- restore


class Renaming:
    """Names of documents with another beginning: files are in another folder on another machine.

    Args:
        given: The new beginning of names, by the old one: whole folders, or whole names.

    Raises:
        ConfigurationError: A beginning is empty.
    """

    def __init__(self, given: Mapping[str, str]) -> None:
        if not all(old and new for old, new in given.items()):
            raise ConfigurationError(
                f"{dict(given)} has an empty name.", hint="Give the old folder and the new one."
            )
        # The longest first: a folder in another one may go elsewhere.
        ordered = sorted(given.items(), key=lambda pair: -len(pair[0]))
        self._given = [(_without_end(old), _without_end(_absolute(old, new))) for old, new in ordered]
        self._unused = {old for old, _ in self._given}

    def __call__(self, source: str) -> str:
        """Return the new name of a document."""
        for old, new in self._given:
            rest = source.removeprefix(old)
            if source.startswith(old) and (not rest or rest[0] in "/\\"):
                self._unused.discard(old)
                return new + _separated(rest, old, new)
        return source

    def check(self, known: list[str]) -> None:
        """Raise a ``ConfigurationError`` if a beginning was that of no name so far; some names are ``known``."""
        if self._unused:
            raise ConfigurationError(
                f"No document of the export is in {sorted(self._unused)[0]!r}.",
                hint=f"Its documents are named {', '.join(map(repr, known))} …" if known else "It has none.",
            )


def _without_end(folder: str) -> str:
    return folder.rstrip("/\\")


def _absolute(old: str, new: str) -> str:
    """Make the new folder of files a whole path, as the names of files are."""
    return os.path.abspath(Path(new).expanduser()) if _is_path(old) and not _is_path(new) else new


def _is_path(name: str) -> bool:
    """Whether a name begins as a path of this system or of Windows does."""
    return name.startswith(("/", "\\")) or name[1:2] == ":"


def _separated(rest: str, old: str, new: str) -> str:
    """Write the end of a path as the system of its new beginning does."""
    from_windows, to_windows = ("\\" in name or name[1:2] == ":" for name in (old, new))
    if from_windows == to_windows:
        return rest
    return rest.replace("\\", "/") if from_windows else rest.replace("/", "\\")


def embedder_of(export: ExportFile, given: Embeddings | str | None) -> Embeddings:
    """Return the embedder of the index that an export goes into.

    Raises:
        ConfigurationError: The export names a model that does not come with this package, and none is given: what
            a file names is not loaded, or fetched, because it says so.
    """
    options, name = export.manifest.embeddings_options, export.manifest.embeddings
    model = str(options.get("model") or "")
    if given is None:
        if model not in (EMBEDDED, PACKAGED_E5_SMALL):
            raise EmbeddingsMismatchError(
                f"The export was made with the embedder {name!r}.",
                hint="Name it with --embeddings to take the vectors, or another one to embed the passages again.",
            )
        given = model
    if not isinstance(given, str):
        return given
    chosen = named_embeddings(given)
    # With the prompts that the index has.
    if chosen.model != model:
        return chosen
    # Not on the server that the file names: who runs that one would get the texts.
    server = {"base_url": chosen.base_url} if chosen.base_url else {}
    same = restore_embeddings({key: options[key] for key in options if key != "base_url"} | server)
    return same if same.name == name else chosen


def check_fit(export: ExportFile, embeddings: Embeddings, folder: str | Path) -> None:
    """Check what would fail later, before anything is changed.

    Raises:
        ConfigurationError: The embedder cannot be loaded, or the vectors are not its own.
        IndexFolderError: There is no space.
    """
    manifest = export.manifest
    check_loading(embeddings)
    if takes_vectors(export, embeddings) and manifest.vectors:
        length = len(embeddings.embed_query(TRIAL_TEXT))
        if length != manifest.dimension:
            raise EmbeddingsMismatchError(
                f"The vectors of the export have {manifest.dimension} numbers; those of the embedder"
                f" {manifest.embeddings!r} have {length}.",
                hint="Name another embedder with --embeddings, which embeds the passages again.",
            )
    path = find_location(folder)
    if isinstance(path, Path):
        there = next(each for each in (path, *path.parents) if each.exists())
        needed, free = _GROWTH * export.size, shutil.disk_usage(there).free
        if needed > free:
            raise IndexFolderError(
                f"The index will take about {needed // 2**20} MiB, and {free // 2**20} MiB are free in {there}.",
                hint="Free space on that disk, or choose another folder.",
            )


def other_settings(error: ConfigurationError) -> ConfigurationError:
    """Return the error of an index that has another embedder or chunking than an export."""
    if isinstance(error, EmbeddingsMismatchError):
        return EmbeddingsMismatchError(
            error.message,
            hint="Import into another folder, or name the index's own embedder with --embeddings, which embeds the"
            " passages again.",
        )
    return ConfigurationError(error.message, hint="Import into another folder.")


def takes_vectors(export: ExportFile, embeddings: Embeddings) -> bool:
    """Return whether the vectors of an export are those of an embedder."""
    return export.manifest.embeddings == embeddings_name(embeddings)


def restore(
    stores: ChunkStores, export: ExportFile, rename: Renaming, on_progress: Progress | None = None
) -> RestoreReport:
    """Bring the documents of a checked export into an index; see ``Index.restore``.

    What the index has already is left as it is, so an interrupted run goes on with the next call.
    """
    started = time.monotonic()
    manifest, ledger = export.manifest, stores.ledger
    counts = {"added": 0, "changed": 0, "unchanged": 0}
    marks: dict[str, str] = {}
    with stores.writing():
        takes = takes_vectors(export, stores.embeddings)
        if not ledger.has_documents():
            ledger.set_settings(**{CHUNKING_ALGORITHM: manifest.chunking_algorithm})
        hashed = (ledger.setting(CHUNKING_ALGORITHM) or "") == manifest.chunking_algorithm
        known = ledger.content_hashes()

        def read() -> Iterator[PreparedDocument]:
            for done, (given, array) in enumerate(export.records()):
                source = rename(given.document.metadata["source"])
                if on_progress:
                    on_progress(done, manifest.documents, source)
                record = given.renamed(source)
                if not hashed:
                    # The next ingestion reads the file again: other chunks of this index were cut in another way.
                    record.document.metadata["content_hash"] = ""
                if record.options:
                    marks[source] = MARKS + record.options
                ids = [chunk_id(metadata) for metadata, _ in record.chunks]
                having = [each for each, (_, has) in zip(ids, record.chunks, strict=True) if has and takes]
                if _is_there(ledger, record, known.get(source), ids, having):
                    counts["unchanged"] += 1
                    continue
                counts["changed" if source in known else "added"] += 1
                yield PreparedDocument.of(
                    record.document, _chunks(record, ids), record.parts, dict(zip(having, array, strict=takes))
                )

        write_documents(stores, read())
        # What the file system says of a file is another thing here; how it was read is not.
        had = ledger.stamps()
        ledger.set_stamps({source: mark for source, mark in marks.items() if source not in had})
    if on_progress and manifest.documents:
        on_progress(manifest.documents, manifest.documents, "")
    return RestoreReport(**counts, waiting=ledger.count_waiting(), seconds=time.monotonic() - started)


def _is_there(ledger: Ledger, record: Record, known: str | None, ids: list[str], having: list[str]) -> bool:
    """Return whether the index has a document, with all vectors that would come with it."""
    same = known == record.document.metadata["content_hash"]
    # Chunk ids are digests of the document's contents and the offsets: equal ids mean equal chunks.
    return (
        same
        and ledger.chunk_ids(record.document.metadata["source"]) == set(ids)
        and not ledger.waiting_among(having)
    )


def _chunks(record: Record, ids: list[str]) -> list[Document]:
    text = record.document.page_content
    return [
        Document(id=each, page_content=text[metadata["start"] : metadata["end"]], metadata=metadata)
        for each, (metadata, _) in zip(ids, record.chunks, strict=True)
    ]
