"""The ledger: the SQLite file that records what is in an index. Search ignores chunks that are not in it."""

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

# The name of the setting that counts the changes to the vector store.
VECTOR_CHANGES: Final = "vector_changes"

# The name of the setting that has the version of the chunking of all documents with a content hash.
CHUNKING_ALGORITHM: Final = "chunking_algorithm"

# SQLite takes at most 32,766 values per statement (its default since 3.32).
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
        source: The file's path, or the name that an application gave.
        title: Its title, or its source if it has none.
        language: The language of its text.
        chunks: The number of its chunks.
        characters: The length of its text.
        content_hash: The blake2b digest of its bytes when it was ingested.
    """

    source: str
    title: str
    language: Language
    chunks: int
    characters: int
    content_hash: str


class Ledger:
    """The committed documents and chunks of an index, its settings, and the ids of uncommitted writes."""

    def __init__(self, path: Path) -> None:
        # LangChain runs batches in threads; they share one connection, protected by a lock.
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
                hint="Choose another folder, or delete this one and ingest the documents again.",
            ) from error
        if found is not None and found != str(FORMAT):
            raise IndexFolderError(
                f"{path} has format {found}; this version reads format {FORMAT}.",
                hint="Delete the folder and ingest the documents again.",
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all writes of the block, or none."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def setting(self, key: str) -> str | None:
        """Return a setting of the index; ``None`` if it is not set."""
        return self._value("SELECT value FROM settings WHERE key = ?", key)

    def set_settings(self, **values: str) -> None:
        """Store settings of the index."""
        with self._lock:
            self._connection.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", values.items())

    @property
    def generation(self) -> int:
        """The number of commits so far; a reader with a lower number must reload its stores."""
        return int(self.setting("generation") or 0)

    def sources(self) -> list[Source]:
        """Return the committed documents, sorted by source."""
        rows = self._rows(
            "SELECT source, title, language, (SELECT count(*) FROM chunks c WHERE c.source = d.source),"
            " length(text), content_hash FROM documents d ORDER BY source"
        )
        return [Source(*row) for row in rows]

    def is_empty(self) -> bool:
        """Return whether nothing was ever written, not even in part or temporarily."""
        # Chroma keeps the dimension of the first vector even if everything is deleted later.
        return self.setting(VECTOR_CHANGES) is None and not self._rows("SELECT 1 FROM documents LIMIT 1")

    def content_hashes(self) -> dict[str, str]:
        """Return the content hash of each committed document, by source."""
        return dict(self._rows("SELECT source, content_hash FROM documents"))

    def expect_algorithm(self, version: int) -> None:
        """Forget the content hashes if another version of the chunking made the chunks.

        The next ingestion reads every file again, also if it is interrupted, as if all had changed; until then
        their old chunks are searched.
        """
        if self.setting(CHUNKING_ALGORITHM) != str(version):
            with self.transaction():
                self._connection.execute("UPDATE documents SET content_hash = ''")
                self.set_settings(**{CHUNKING_ALGORITHM: str(version)})

    def text(self, source: str) -> str | None:
        """Return the text of a document; ``None`` if it is not in the index."""
        return self._value("SELECT text FROM documents WHERE source = ?", source)

    def chunk_ids(self, source: str | None = None) -> set[str]:
        """Return the ids of the committed chunks, of one document or of all."""
        if source is None:
            return {row[0] for row in self._rows("SELECT id FROM chunks")}
        return {row[0] for row in self._rows("SELECT id FROM chunks WHERE source = ?", [source])}

    def select_ids(self, condition: str, values: Sequence[Any]) -> list[str]:
        """Return the ids of the chunks that satisfy an SQL condition on ``c`` (chunks) and ``d`` (documents)."""
        statement = f"SELECT c.id FROM chunks c JOIN documents d USING (source) WHERE {condition} ORDER BY c.id"
        return [row[0] for row in self._rows(statement, values)]

    def chunks(self, ids: Iterable[str]) -> dict[str, Document]:
        """Return the committed chunks among these ids, by id."""
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
        """Replace the committed version of a document and its chunks; call it in a transaction."""
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
        """Increase the generation; call it in the transaction of a commit."""
        self.set_settings(generation=str(self.generation + 1))

    def uncommitted(self) -> set[str]:
        """Return the ids that the stores may hold although no committed document contains them."""
        return {row[0] for row in self._rows("SELECT id FROM uncommitted")}

    def set_uncommitted(self, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Add ids to the uncommitted ones, or remove them."""
        # Outside a transaction each row would be a separate commit (0.2 ms each, including the wait for the disk).
        with self._lock, nullcontext() if self._connection.in_transaction else self.transaction():
            self._connection.executemany("INSERT OR IGNORE INTO uncommitted VALUES (?)", ((i,) for i in add))
            self._connection.executemany("DELETE FROM uncommitted WHERE id = ?", ((i,) for i in remove))

    def _value(self, statement: str, value: str) -> str | None:
        rows = self._rows(statement, [value])
        return cast(str, rows[0][0]) if rows else None

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()
