"""The ledger: one SQLite file that says what is in an index. A chunk that is not in it does not exist."""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from langchain_core.documents import Document

from lince_rag.errors import IndexFolderError
from lince_rag.text.language import Language

FORMAT: Final = 1

# The setting that counts the changes of the vector store.
VECTOR_CHANGES: Final = "vector_changes"

# SQLite takes 32,766 values a statement (its default since 3.32); stay far below.
_VALUES_PER_STATEMENT: Final = 10_000

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    source TEXT PRIMARY KEY, content_hash TEXT NOT NULL, title TEXT NOT NULL, language TEXT NOT NULL,
    text TEXT NOT NULL, ingested_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE IF NOT EXISTS chunks (
    id TEXT PRIMARY KEY, source TEXT NOT NULL REFERENCES documents(source) ON DELETE CASCADE,
    start INTEGER NOT NULL, end INTEGER NOT NULL, metadata TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS chunks_by_source ON chunks(source, start);
CREATE TABLE IF NOT EXISTS uncommitted (id TEXT PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Source:
    """A document of an index.

    Attributes:
        source: The file's path, or the name an application gave.
        title: Its title.
        language: Its language.
        chunks: How many chunks it has.
        characters: Length of its text.
        content_hash: blake2b of its bytes when it was ingested.
    """

    source: str
    title: str
    language: Language
    chunks: int
    characters: int
    content_hash: str


class Ledger:
    """The committed documents and chunks of an index, and the ids of writes that have not been committed.

    Args:
        path: The SQLite file; made if missing.

    Raises:
        IndexFolderError: The file is not a ledger, or one of another format.
    """

    def __init__(self, path: Path) -> None:
        # LangChain runs batches in threads; one connection behind a lock serves them all.
        self._lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False, timeout=30, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.executescript(_TABLES)
            found = self.setting("format")
            if found is None:
                self.set_settings(format=str(FORMAT))
        except sqlite3.DatabaseError as error:
            raise IndexFolderError(
                f"{path} is not a readable index ledger: {error}",
                hint="Choose another folder, or delete this one and ingest again.",
            ) from error
        if found is not None and found != str(FORMAT):
            raise IndexFolderError(
                f"{path} has format {found}; this version reads format {FORMAT}.",
                hint="Delete the folder and ingest again.",
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything that is written inside, or nothing."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def setting(self, key: str) -> str | None:
        """Return a setting of the index, ``None`` when it is not set."""
        rows = self._rows("SELECT value FROM settings WHERE key = ?", [key])
        return cast(str, rows[0][0]) if rows else None

    def set_settings(self, **values: str) -> None:
        """Store settings of the index."""
        with self._lock:
            self._connection.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", values.items())

    @property
    def generation(self) -> int:
        """How many commits the index has seen: a reader whose number is older opens its stores again."""
        return int(self.setting("generation") or 0)

    def sources(self) -> list[Source]:
        """Return the committed documents by name."""
        rows = self._rows(
            "SELECT source, title, language, (SELECT count(*) FROM chunks c WHERE c.source = d.source),"
            " length(text), content_hash FROM documents d ORDER BY source"
        )
        return [Source(*row) for row in rows]

    def is_empty(self) -> bool:
        """Tell whether no document was ever written, not even in part or for a time."""
        # Chroma keeps the dimension of the first vector, whatever is deleted later.
        return self.setting(VECTOR_CHANGES) is None and not self._rows("SELECT 1 FROM documents LIMIT 1")

    def content_hashes(self) -> dict[str, str]:
        """Return the content hash of every committed document by source."""
        return dict(self._rows("SELECT source, content_hash FROM documents"))

    def text(self, source: str) -> str | None:
        """Return the text of a document, ``None`` when it is not in the index."""
        rows = self._rows("SELECT text FROM documents WHERE source = ?", [source])
        return cast(str, rows[0][0]) if rows else None

    def chunk_ids(self, source: str | None = None) -> set[str]:
        """Return the ids of the committed chunks, of one document or of all."""
        if source is None:
            return {row[0] for row in self._rows("SELECT id FROM chunks")}
        return {row[0] for row in self._rows("SELECT id FROM chunks WHERE source = ?", [source])}

    def select_ids(self, condition: str, values: Sequence[Any]) -> list[str]:
        """Return the ids of the chunks that fulfil an SQL condition over ``c`` (chunks) and ``d`` (documents)."""
        statement = f"SELECT c.id FROM chunks c JOIN documents d USING (source) WHERE {condition} ORDER BY c.id"
        return [row[0] for row in self._rows(statement, values)]

    def chunks(self, ids: Iterable[str]) -> dict[str, Document]:
        """Return committed chunks as documents; ids that are not committed are missing from the result."""
        wanted = list(dict.fromkeys(ids))
        found: dict[str, Document] = {}
        for first in range(0, len(wanted), _VALUES_PER_STATEMENT):
            part = wanted[first : first + _VALUES_PER_STATEMENT]
            rows = self._rows(
                "SELECT c.id, substr(d.text, c.start + 1, c.end - c.start), c.metadata"
                " FROM chunks c JOIN documents d USING (source)"
                f" WHERE c.id IN ({','.join('?' * len(part))})",
                part,
            )
            for chunk_id, text, metadata in rows:
                found[chunk_id] = Document(id=chunk_id, page_content=text, metadata=json.loads(metadata))
        return found

    def commit(self, document: Document, content_hash: str, chunks: Sequence[Document]) -> None:
        """Make a document and its chunks the committed version of its source; call it in a transaction."""
        metadata = document.metadata
        self._connection.execute("DELETE FROM documents WHERE source = ?", [metadata["source"]])
        self._connection.execute(
            "INSERT INTO documents (source, content_hash, title, language, text) VALUES (?, ?, ?, ?, ?)",
            [
                metadata["source"], content_hash, str(metadata.get("title") or metadata["source"]),
                metadata["language"], document.page_content,
            ],
        )  # fmt: skip
        self._connection.executemany(
            "INSERT INTO chunks VALUES (?, ?, ?, ?, ?)",
            [
                (chunk.id, metadata["source"], chunk.metadata["start"], chunk.metadata["end"],
                 json.dumps(chunk.metadata, ensure_ascii=False))
                for chunk in chunks
            ],
        )  # fmt: skip

    def forget(self, source: str) -> None:
        """Remove a document and its chunks; call it in a transaction."""
        self._connection.execute("DELETE FROM documents WHERE source = ?", [source])

    def advance(self) -> None:
        """Count one more commit; call it in the transaction of that commit."""
        self.set_settings(generation=str(self.generation + 1))

    def uncommitted(self) -> set[str]:
        """Return the ids that the stores may hold although no committed document has them."""
        return {row[0] for row in self._rows("SELECT id FROM uncommitted")}

    def set_uncommitted(self, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Add ids to, or remove them from, those the stores may hold without a committed document."""
        # Outside a transaction every row would be a commit of its own (0.2 ms each, with the disk's wait).
        with self._lock, nullcontext() if self._connection.in_transaction else self.transaction():
            self._connection.executemany("INSERT OR IGNORE INTO uncommitted VALUES (?)", ((i,) for i in add))
            self._connection.executemany("DELETE FROM uncommitted WHERE id = ?", ((i,) for i in remove))

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()
