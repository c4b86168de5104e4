"""The ledger of a folder, a SQLite file: one connection for all threads, copies of what is read-only."""

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from lince_rag.errors import IndexDamagedError, check_process
from lince_rag.index.conditions import SQLITE_SYNTAX
from lince_rag.index.integrity import connection_damage, document_damage
from lince_rag.index.ledger import Ledger
from lince_rag.index.storage import StoreCopies, damaged_ledger, first_line, not_writable, reporting_ledger

# The path of a database that is in no file.
MEMORY: Final = ":memory:"

# How long a statement waits for another process.
BUSY_SECONDS: Final = 30


_TABLES: Final = """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    source TEXT PRIMARY KEY, content_hash TEXT NOT NULL, title TEXT NOT NULL, language TEXT NOT NULL,
    text TEXT NOT NULL, ingested_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE IF NOT EXISTS chunks (
    id TEXT PRIMARY KEY, source TEXT NOT NULL REFERENCES documents(source) ON DELETE CASCADE,
    start INTEGER NOT NULL, end INTEGER NOT NULL, metadata TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS chunks_by_source ON chunks(source, start);
CREATE TABLE IF NOT EXISTS term_lines (
    id TEXT PRIMARY KEY REFERENCES chunks(id) ON DELETE CASCADE, packed BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS uncommitted (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checksums (
    source TEXT PRIMARY KEY REFERENCES documents(source) ON DELETE CASCADE, checksum TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fingerprints (id TEXT PRIMARY KEY, fingerprint REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waiting (
    id TEXT PRIMARY KEY REFERENCES chunks(id) ON DELETE CASCADE) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (
    source TEXT NOT NULL REFERENCES documents(source) ON DELETE CASCADE, position INTEGER NOT NULL,
    id TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, metadata TEXT NOT NULL, named INTEGER NOT NULL,
    PRIMARY KEY (source, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stamps (
    source TEXT PRIMARY KEY REFERENCES documents(source) ON DELETE CASCADE, stamp TEXT NOT NULL) WITHOUT ROWID;
"""


class FolderLedger(Ledger):
    """The ledger in an SQLite file, the default.

    Args:
        path: The file, or ``":memory:"``.
        read_only: Whether the file cannot be written.
        new: Whether a missing or empty file is a new ledger, and not one that was lost.
    """

    SYNTAX = SQLITE_SYNTAX
    KEYS = "json_each(c.metadata) AS j"

    def __init__(self, path: Path | str, *, read_only: bool = False, new: bool = True) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self._process = os.getpid()
        # LangChain runs batches in threads; they share one connection, protected by a lock.
        self._lock = threading.RLock()
        self._copies = StoreCopies(self.path.parent)
        with reporting_ledger(self.path):
            self._connection = self._connect_read_only() if read_only else self._connect()
        try:
            with reporting_ledger(self.path):
                if not new and not self._tables():
                    raise damaged_ledger(self.path, "it is empty")
                if not read_only:
                    self._connection.executescript(_TABLES)
            self._check_format()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        if str(self.path) != MEMORY and not self.path.exists():
            # Its journals get its permissions.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(
            self.path, check_same_thread=False, timeout=BUSY_SECONDS, isolation_level=None
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA foreign_keys = ON")
            # What is deleted is overwritten, and not only marked as free.
            connection.execute("PRAGMA secure_delete = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_read_only(self) -> sqlite3.Connection:
        """Open a file that cannot be written; a copy of it if SQLite would have to write beside it."""
        try:
            connection = _open_read_only(self.path)
            connection.execute("SELECT 1 FROM sqlite_master")
        except sqlite3.OperationalError:
            connection.close()
            connection = sqlite3.connect(self._copies.renew(self.path.name), check_same_thread=False)
            connection.execute("PRAGMA query_only = ON")
        return connection

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()
            self._copies.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all writes of the block, or none."""
        with self._lock:
            self._execute("BEGIN IMMEDIATE")
            try:
                yield
                self._execute("COMMIT")
            except BaseException:
                # SQLite itself rolls back if the disk is full.
                if self._connection.in_transaction:
                    self._execute("ROLLBACK")
                raise

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Make the writes of the block a part of the open transaction, or one of their own."""
        # Outside a transaction each row would be a separate commit (0.2 ms each, including the wait for the disk).
        with self._lock, nullcontext() if self._connection.in_transaction else self.transaction():
            yield

    def compact(self) -> bool:
        """Write the file anew without what was deleted; return whether nothing of it is left in the journal."""
        with self._lock:
            self._execute("VACUUM")
            # The caller decides how long to wait for others.
            self._execute("PRAGMA busy_timeout = 0")
            try:
                # 1 if another connection reads an older state, which the journal is needed for.
                return bool(self._rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0)
            finally:
                self._execute(f"PRAGMA busy_timeout = {1000 * BUSY_SECONDS}")

    def damage(self) -> str:
        """Return what is wrong with the file or with a document in it; the empty text if nothing is.

        SQLite checks the structure of its file, not the values: a checksum protects each document.
        """
        checked = "checksums" in self._tables()
        try:
            # Another connection sees one state, and lets the questions of other threads go on.
            with reporting_ledger(self.path), closing(self._another_connection()) as connection:
                if found := connection_damage(connection):
                    return found
                connection.execute("BEGIN")
                return document_damage(connection.execute) if checked else ""
        except IndexDamagedError as error:
            return first_line(error.__cause__ or error)

    def _another_connection(self) -> sqlite3.Connection:
        (_, _, file), *_ = self._rows("PRAGMA database_list")
        return _open_read_only(Path(file))

    def _tables(self) -> set[str]:
        return {row[0] for row in self._rows("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        # No store of an index may be used in two processes at once; SQLite's would be damaged.
        check_process(self._process, f"The index {self.path.parent} was opened")
        with self._lock, reporting_ledger(self.path):
            return self._connection.execute(statement, values).fetchall()

    def _execute(self, statement: str) -> None:
        with reporting_ledger(self.path):
            self._connection.execute(statement)

    def _execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        if self.read_only:
            raise not_writable(self.path.parent)
        with self._lock, reporting_ledger(self.path):
            self._connection.executemany(statement, rows)


def _open_read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=BUSY_SECONDS
    )
