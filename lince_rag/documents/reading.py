"""Reading the items of an ingestion: what is unchanged is recognised, the rest is read, cut and analysed."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from lince_rag.documents.chunking import ALGORITHM_VERSION, ChunkingSettings
from lince_rag.documents.files import FORMATS, IMAGE_FORMATS, hash_file, is_settled
from lince_rag.documents.parts import clean_document, hash_documents, prepare_documents
from lince_rag.documents.prepared import PreparedDocument
from lince_rag.documents.remote import RemoteFile
from lince_rag.documents.workers import DEFAULT_LIMITS, ReadingLimits, ReadingPool
from lince_rag.errors import ConfigurationError, DocumentError

# With which options a file was read, in its stamp: "o" for OCR, "p" for a password. They matter to pictures and
# PDFs, and to files that may hold such.
MARKS: Final = "+"
_OPTIONS: Final = {suffix: "op" for suffix, form in FORMATS.items() if form.holds_files} | dict.fromkeys(
    [".pdf", *IMAGE_FORMATS], "o"
)

# What is ingested under one name.
Readable = Path | RemoteFile | list[Document]

# File patterns, and what makes the loader of a file's path.
Loaders = Mapping[str, Callable[[str], BaseLoader]]


@dataclass(frozen=True)
class Work:
    """An item to read, and what is known of it.

    Args:
        source: Its name.
        item: The file, or the LangChain documents.
        known: The content hash of the committed version; "" if it must be read again.
        had: The options with which that was read.
    """

    source: str
    item: Readable
    known: str = ""
    had: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Args:
        source: Its name.
        result: Ready to be written; or the reason why it cannot be read; or ``None``: it is unchanged.
        stamp: What the file system said of the file; ``None`` if it is not read or no file.
    """

    source: str
    result: PreparedDocument | DocumentError | None
    stamp: str | None = None


@dataclass(frozen=True)
class Reading:
    """How items are read; it can be pickled, if the loaders can, and used in another process.

    Args:
        chunking: How documents are cut.
        limits: What reading one file may take.
        loaders: Readers of the application's.
        password: What opens PDFs that are protected with a password.
        ocr: Whether text in pictures is read.
        algorithm: The version of the code that cuts documents, in the process that writes.
    """

    chunking: ChunkingSettings
    limits: ReadingLimits = DEFAULT_LIMITS
    loaders: Loaders | None = None
    password: str | None = None
    ocr: bool = False
    algorithm: int = ALGORITHM_VERSION

    def outcomes(self, works: Sequence[Work]) -> Generator[Outcome]:
        """Read items in worker processes of this machine; yield what became of each, in order.

        Raises:
            ConfigurationError: This process has another version of the package than the one that writes.
        """
        if self.algorithm != ALGORITHM_VERSION:
            raise ConfigurationError(
                f"Documents are cut here by version {ALGORITHM_VERSION} of the code, and by {self.algorithm} where"
                " the index is written.",
                hint="Install the same version of lince-rag on all machines.",
            )
        with ReadingPool(self.chunking, self.limits, password=self.password, ocr=self.ocr) as pool:
            yield from pool.map(_Reader(self, pool).read, works)

    def work(self, source: str, item: Readable, known: str, stamp: str) -> Work:
        """Return the work that an item makes, of which the index has a content hash and a stamp, or ""."""
        if isinstance(item, list):
            return Work(source, item, known)
        had = stamp.partition(MARKS)[2]
        # What was read without the options of this run is not known.
        return Work(source, item, known if set(self._wanted(item)) <= set(had) else "", had)

    def is_unchanged(self, work: Work, stamp: str) -> bool:
        """Return whether the file system says that a file is as it was when it was read."""
        before = stamp.partition(MARKS)[0]
        return bool(before and work.known and not isinstance(work.item, list) and _file_stamp(work.item) == before)

    def stamp(self, work: Work, file_stamp: str, *, unread: bool = False) -> str:
        """Return what to store of a file that was read, or whose contents are the known ones."""
        options = work.had if unread or isinstance(work.item, list) else self._wanted(work.item)
        return file_stamp + MARKS + options

    def loader(self, name: str) -> Callable[[str], BaseLoader] | None:
        """Return what makes the application's loader of a file, if it has one."""
        found = (make for pattern, make in (self.loaders or {}).items() if fnmatch(name.lower(), pattern.lower()))
        return next(found, None)

    def _wanted(self, file: Path | RemoteFile) -> str:
        """The options that matter to a file."""
        given = "o" * self.ocr + "p" * bool(self.password)
        possible = _OPTIONS.get(file.suffix.lower(), "") if given else ""
        return "".join(option for option in given if option in possible)


class _Reader:
    """Reads items, in several threads, unless their contents are the known ones."""

    def __init__(self, reading: Reading, pool: ReadingPool) -> None:
        self._reading = reading
        self._pool = pool

    def read(self, work: Work) -> Outcome:
        try:
            if isinstance(work.item, list):
                return Outcome(work.source, self._read_documents(work, work.item))
            # Before the file is opened: it may change meanwhile.
            stamp = _file_stamp(work.item)
            if isinstance(work.item, RemoteFile):
                with work.item.fetched() as file:
                    result = self._read_file(work, file)
            else:
                result = self._read_file(work, work.item)
        except DocumentError as error:
            return Outcome(work.source, DocumentError(work.source, error.reason))
        return Outcome(work.source, result, self._reading.stamp(work, stamp, unread=result is None))

    def _read_documents(self, work: Work, documents: list[Document]) -> PreparedDocument | None:
        content_hash = hash_documents(documents)
        if content_hash == work.known:
            return None
        return prepare_documents(work.source, documents, content_hash, self._reading.chunking)

    def _read_file(self, work: Work, file: Path) -> PreparedDocument | None:
        loader = self._reading.loader(file.name)
        # A new file is hashed where it is read.
        content_hash = hash_file(file) if work.known or loader else ""
        if content_hash and content_hash == work.known:
            return None
        if loader is None:
            return self._pool.read(file, work.source)
        documents = _load(loader, file, work.source)
        return prepare_documents(work.source, documents, content_hash, self._reading.chunking)


def _load(make: Callable[[str], BaseLoader], file: Path, source: str) -> list[Document]:
    """Read a file with a loader of the application's, whose errors are those of the file."""
    try:
        documents = make(str(file)).load()
    except Exception as error:
        raise DocumentError(source, f"{type(error).__name__}: {error}") from error
    named = [each.model_copy(update={"metadata": {**each.metadata, "source": source}}) for each in documents]
    return [clean_document(document) for document in named]


def _file_stamp(file: Path | RemoteFile) -> str:
    """Return what the file system says of a file, or "" if that cannot tell whether it will change.

    Equal stamps mean equal contents: the time of the last change of the file's data or record cannot be set by
    programs.
    """
    if isinstance(file, RemoteFile):
        return file.stamp
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return ""
    if not is_settled(max(status.st_mtime_ns, status.st_ctime_ns)):
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
