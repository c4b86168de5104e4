"""The files of an index: opening the vector store, copies where nothing can be written, errors with a way out."""

import os
import re
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from langchain_core.embeddings import Embeddings

from lince_rag.documents.selection import LEDGER_FILE
from lince_rag.errors import IndexDamagedError, IndexFolderError, IndexLockedError, LinceError

if TYPE_CHECKING:
    from langchain_chroma import Chroma

COLLECTION: Final = "chunks"

# Chroma's own ef of 100 finds .84-.92 of the 50 nearest hashed texts, 500 finds .98. Of multilingual-e5-small, 100
# finds .95, 200 .984, 500 .996 (9,578 chunks of manuals, 160 real questions; with noisy copies of them, 95,780 in
# all, 500 finds .997). It can only be set when the collection is created.
SEARCH_EF: Final = 500

# Counts the Chroma folders that this process has opened.
_OPENED: Final = count()

CHROMA_FOLDER: Final = "chroma"
LEXICAL_FOLDER: Final = "lexical"
CHROMA_FILE: Final = "chroma.sqlite3"

# SQLite, Chroma (SQLite in Rust) and tantivy say it in different words. 27, 28, 122: file too large, disk full,
# quota; 778, 1034, 1546, 4874: SQLite could not write, flush, cut or enlarge a file.
_NO_SPACE: Final = re.compile(
    r"no space left|disk is full|file too large|quota exceeded|os error (27|28|122)\b|code: (27|28|122)\b"
    r"|code: (13|778|1034|1546|4874)\)",
    re.IGNORECASE,
)
_NO_SPACE_NAMES: Final = frozenset(
    f"SQLITE_{name}" for name in ("FULL", "IOERR_WRITE", "IOERR_FSYNC", "IOERR_TRUNCATE", "IOERR_SHMSIZE")
)
_NOT_WRITABLE: Final = re.compile(
    r"read-?only|permission denied|operation not permitted|os error (1|13|30)\b|code: (1|13|30),|code: (8|1544)\)"
    r"|unable to open database file",
    re.IGNORECASE,
)
_BUSY: Final = re.compile(r"database (table )?is locked|LockBusy|code: 5\)", re.IGNORECASE)

# What an index folder consists of, besides locks and the journals of its ledger.
_INDEX_ENTRIES: Final = frozenset(
    {
        *(LEDGER_FILE + suffix for suffix in ("", "-wal", "-shm")),
        *(f"{name}.lock" for name in ("write", "vectors", "embedding")),
        CHROMA_FOLDER,
        LEXICAL_FOLDER,
    }
)

# Below this many free bytes, a failure is taken as one to write to a full disk.
_LITTLE_SPACE: Final = 200_000

# tantivy quotes whole files.
_LONGEST_REASON: Final = 160

LEDGER_HINT: Final = (
    "The ledger cannot be rebuilt from the rest of the index: restore it from a backup, or ingest the documents"
    " again into a new folder."
)


def is_writable(folder: Path) -> bool:
    """Return whether this user may write to an index folder, its stores and all files in them."""
    folders = [folder, folder / CHROMA_FOLDER, folder / LEXICAL_FOLDER]
    with suppress(OSError):
        folders += [entry for entry in (folder / CHROMA_FOLDER).iterdir() if entry.is_dir()]
    for each in folders:
        if each.exists() and not all(os.access(path, os.W_OK) for path in (each, *each.iterdir())):
            return False
    return True


def inherit_mode(folder: Path) -> None:
    """Give every file of an index folder the permissions of its ledger, where they are others.

    Chroma and tantivy create files that every user may read; the ledger is created for its owner only, and who
    shares an index changes the permissions of the ledger.
    """
    with suppress(OSError):
        mode = stat.S_IMODE(os.stat(folder / LEDGER_FILE).st_mode)
        for path, _, names in os.walk(folder):
            for name in names:
                # Another process may delete one meanwhile.
                with suppress(OSError):
                    file = os.path.join(path, name)
                    if stat.S_IMODE(os.stat(file).st_mode) != mode:
                        os.chmod(file, mode)


def holds_stores(folder: Path) -> bool:
    """Return whether a folder has a vector store or a lexical index."""
    return (folder / CHROMA_FOLDER / CHROMA_FILE).exists() or (folder / LEXICAL_FOLDER / "meta.json").exists()


def folder_bytes(folder: Path) -> int:
    """Return how much the files of a folder take; a file that another process deletes meanwhile counts nothing."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(path, name)).st_size
    return total


def not_writable(folder: Path) -> IndexFolderError:
    """Return the error of an index folder that can be read but not written."""
    return IndexFolderError(
        f"The index {folder} cannot be changed: this user may not write to the folder or to a file in it, or its"
        " file system is read-only.",
        hint="Give yourself write permission, or copy the index to a folder that you can write to. Questions can"
        " be asked without it.",
    )


def no_space(folder: Path, error: BaseException) -> IndexFolderError:
    """Return the error of a disk that is full, or of a limit on files that is reached."""
    return IndexFolderError(
        f"The index {folder} could not be written: {first_line(error)}.",
        hint="Free space on that disk, or raise the quota or the file size limit. Then run"
        f" `lince-rag status --index {folder} --repair`, and the same command again: what was committed is kept.",
    )


def damaged_store(index: Path, store: str, reason: object) -> IndexDamagedError:
    """Return the error of a damaged store, ``"chroma"`` or ``"lexical"``, which can be built from the ledger."""
    what = "vector store" if store == CHROMA_FOLDER else "lexical index"
    return IndexDamagedError(
        f"The {what} in {index / store} is damaged: {first_line(reason)}.",
        hint=f"Build it again from the ledger: lince-rag status --index {index} --repair",
    )


def damaged_ledger(path: Path, reason: object) -> IndexDamagedError:
    """Return the error of a ledger that cannot be trusted."""
    return IndexDamagedError(f"The ledger {path} is damaged: {first_line(reason)}.", hint=LEDGER_HINT)


def first_line(reason: object) -> str:
    """Return the first line of a reason, shortened; its type if it has no text."""
    line = (str(reason).strip().splitlines() or [type(reason).__name__])[0].rstrip(".")
    return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + " …"


def storage_error(error: BaseException, folder: Path, damage: LinceError) -> LinceError:
    """Return the error to raise for one of a library or the system; ``damage`` if it fits no other."""
    text = str(error)
    name = getattr(error, "sqlite_errorname", "") or ""
    if name in _NO_SPACE_NAMES or _NO_SPACE.search(text) or _is_full(folder):
        return no_space(folder, error)
    if _BUSY.search(text):
        return IndexLockedError(
            f"Another process is using the index {folder}: {first_line(error)}.", hint="Try again in a moment."
        )
    if isinstance(error, PermissionError) or _NOT_WRITABLE.search(text):
        return not_writable(folder)
    return damage


def _is_full(folder: Path) -> bool:
    """Return whether a failure comes from a full disk, whatever the library says."""
    with suppress(OSError):
        return shutil.disk_usage(folder).free < _LITTLE_SPACE
    return False


@contextmanager
def reporting(folder: Path, store: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn these exceptions of a store's library, and panics of Rust, into a ``LinceError``."""
    try:
        yield
    except LinceError:
        raise
    except BaseException as error:
        # A panic is not an Exception, and its class cannot be imported.
        if not isinstance(error, kinds) and type(error).__name__ != "PanicException":
            raise
        raise storage_error(error, folder, damaged_store(folder, store, error)) from error


@contextmanager
def reporting_ledger(path: Path) -> Iterator[None]:
    """Turn errors of SQLite, and values of a wrong kind in a row, into a ``LinceError`` that says what to do."""
    try:
        yield
    except sqlite3.ProgrammingError:
        # A mistake in the program, as using a closed ledger.
        raise
    except (sqlite3.DatabaseError, OSError) as error:
        raise storage_error(error, path.parent, damaged_ledger(path, error)) from error


def remove_folder(folder: Path) -> None:
    """Delete a folder of an index, if it is there."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise storage_error(error, folder.parent, not_writable(folder.parent)) from error


def replace_folder_at(folder: Path, new: Path) -> None:
    """Put a new folder in the place of an old one, which is deleted."""
    remove_folder(set_aside(folder))
    if folder.exists():
        folder.rename(set_aside(folder))
    new.rename(folder)
    remove_folder(set_aside(folder))


def replace_folder(folder: Path, new: Path) -> None:
    """Put a new index folder in the place of an old one, with what else lay in the old one, as conversations."""
    for entry in folder.iterdir():
        if entry.name not in _INDEX_ENTRIES and not (new / entry.name).exists():
            shutil.move(entry, new / entry.name)
    replace_folder_at(folder, new)


def set_aside(folder: Path) -> Path:
    """Return where a folder is while a new one takes its place."""
    return folder.with_name(f"{folder.name}.old")


class StoreCopies:
    """Temporary copies of the stores of an index that cannot be written.

    Chroma and tantivy write even to answer a question: lock files, and the journal of a database.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copies: dict[str, TemporaryDirectory[str]] = {}

    def renew(self, name: str) -> Path:
        """Copy a file or a folder of the index again; return the copy."""
        self.discard(name)
        source = self._folder / name
        try:
            copy = TemporaryDirectory(prefix="lince-rag-", ignore_cleanup_errors=True)
            self._copies[name] = copy
            target = Path(copy.name) / name
            for file in [*source.rglob("*")] if source.is_dir() else [source, Path(f"{source}-wal")]:
                if file.is_file():
                    # Without the permissions of the original, which may forbid writing.
                    to = target.parent / file.relative_to(self._folder)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, to)
        except OSError as error:
            raise IndexFolderError(
                f"The index {self._folder} cannot be written, and it cannot be copied to read it:"
                f" {first_line(error)}.",
                hint="Set TMPDIR to a folder with space for a copy of the index.",
            ) from error
        return target

    def path(self, name: str) -> Path | None:
        """Return the copy of a file or folder, if there is one."""
        return Path(self._copies[name].name) / name if name in self._copies else None

    def discard(self, name: str) -> None:
        """Delete a copy."""
        if copy := self._copies.pop(name, None):
            copy.cleanup()

    def close(self) -> None:
        """Delete all copies."""
        for name in list(self._copies):
            self.discard(name)


@contextmanager
def shared_lock(file: Path) -> Iterator[None]:
    """Hold a writer's lock without writing to its file, so that nothing changes while it is copied."""
    with ExitStack() as stack:
        with suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(file, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield


def open_vector_store(
    embeddings: Embeddings, folder: Path | None = None, *, client: Any = None, collection: str = COLLECTION
) -> "Chroma":
    """Open or create the Chroma collection of the chunks: in a folder, through a ``client``, or in memory.

    It uses cosine space (Chroma's default is squared Euclidean distance), no default embedder (Chroma's is only
    for English) and no telemetry.
    """
    import chromadb
    from chromadb.config import Settings
    from langchain_chroma import Chroma

    if client is None:
        settings = Settings(anonymized_telemetry=False)
        if folder is None:
            client = chromadb.EphemeralClient(settings=settings)
        else:
            client = chromadb.PersistentClient(path=_unique_path(folder), settings=settings)
    return Chroma(
        collection_name=collection,
        embedding_function=embeddings,
        client=client,
        collection_configuration={"hnsw": {"space": "cosine", "ef_search": SEARCH_EF}},
    )


def _unique_path(folder: Path) -> str:
    """Write a path as no other store of this process does: ``a/.``, ``a/./``, ``a//.`` … all mean ``a``.

    Chroma gives all clients of one path string the same engine. After closing and opening again, the stale engine
    would remain as long as another ``Index`` uses it, and writing with it after another process has written
    damages the vectors (measured: 1,024 of 4,500 unreadable).
    """
    return str(folder) + "".join("/." if bit == "1" else "/" for bit in f"{next(_OPENED):b}")


def close_vector_store(store: "Chroma") -> None:
    """Release the files of a store, so that opening it again reads what other processes wrote."""
    store._client.close()
