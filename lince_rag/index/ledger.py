"""The ledger records what is in an index. Search ignores chunks that are not in it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from langchain_core.documents import Document

from lince_rag.documents.prepared import Part, PreparedDocument
from lince_rag.errors import IndexFolderError
from lince_rag.index.conditions import FilterSyntax
from lince_rag.index.integrity import CHUNK_COLUMNS, DOCUMENT_COLUMNS, checksum
from lince_rag.index.storage import damaged_ledger
from lince_rag.text.language import Language
from lince_rag.text.sentences import TermLines

# Raised if an earlier version could not read what this one writes. Since 2, chunks may wait for their vectors.
FORMAT: Final = 2

# The name of the setting that counts the changes to the vector store.
VECTOR_CHANGES: Final = "vector_changes"

# The name of the setting that has the version of the chunking of all documents with a content hash.
CHUNKING_ALGORITHM: Final = "chunking_algorithm"

# More rows than any index has: SQLite and PostgreSQL write "no limit" in different ways.
NO_LIMIT: Final = 2**62


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


class Ledger(ABC):
    """The committed documents and chunks of an index, its settings, and the ids of uncommitted writes.

    Its statements run on SQLite and on PostgreSQL; the class of a database says how, and in which other words.

    Attributes:
        path: Where it is, for messages; its folder is the folder of the index on this machine.
        read_only: Whether it cannot be written.
    """

    # How conditions are written.
    SYNTAX: ClassVar[FilterSyntax]
    # The keys of the metadata of ``c``, as ``j.key``.
    KEYS: ClassVar[str]

    path: Path
    read_only: bool

    @abstractmethod
    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""

    @abstractmethod
    def _execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement for each row of values."""

    @abstractmethod
    def _tables(self) -> set[str]:
        """Return the names of the tables: one that an earlier version wrote may lack some, and be read-only."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Commit all writes of the block, or none."""

    @abstractmethod
    def joined(self) -> AbstractContextManager[None]:
        """Make the writes of the block a part of this thread's transaction, or one of their own."""

    @abstractmethod
    def compact(self) -> bool:
        """Write it anew without what was deleted; return whether nothing of that is left."""

    @abstractmethod
    def damage(self) -> str:
        """Return what is wrong with it or with a document in it; the empty text if nothing is."""

    @abstractmethod
    def close(self) -> None:
        """Release files and connections."""

    @property
    def _among(self) -> str:
        """Compares with the texts of one JSON array: SQLite limits values, and compiles for each number anew."""
        return f"IN ({self.SYNTAX.texts})"

    def _value(self, statement: str, value: str) -> str | None:
        rows = self._rows(statement, [value])
        return str(rows[0][0]) if rows else None

    def _check_format(self) -> None:
        found = self.setting("format")
        if found not in (None, *map(str, range(1, FORMAT + 1))):
            raise IndexFolderError(
                f"{self.path} has format {found}; this version reads formats up to {FORMAT}.",
                hint="Update lince_rag, or ingest the documents again into a new folder.",
            )
        # The tables that an earlier format lacks are empty, and have been created.
        if found != str(FORMAT) and not self.read_only:
            self.set_settings(format=str(FORMAT))

    def setting(self, key: str) -> str | None:
        """Return a setting of the index; ``None`` if it is not set."""
        return self._value("SELECT value FROM settings WHERE key = ?", key)

    def set_settings(self, **values: str) -> None:
        """Store settings of the index."""
        self._execute_many(
            "INSERT INTO settings VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            list(values.items()),
        )

    @property
    def generation(self) -> int:
        """The number of commits so far; a reader with a lower number must reload its stores."""
        value = self.setting("generation") or "0"
        if not value.isdecimal():
            raise damaged_ledger(self.path, f"its generation is {value!r}")
        return int(value)

    def json_setting(self, key: str) -> dict[str, Any] | None:
        """Return a setting that is a JSON object; ``None`` if it is not set."""
        value = self.setting(key)
        try:
            found: dict[str, Any] | None = None if value is None else dict(json.loads(value))
        except (ValueError, TypeError) as error:
            raise damaged_ledger(self.path, f"its setting {key!r} is {value!r}") from error
        return found

    def sources(self, names: Iterable[str] | None = None) -> list[Source]:
        """Return the committed documents, or those among some names, sorted by source."""
        among, values = ("", []) if names is None else (f" WHERE source {self._among}", [_json(names)])
        rows = self._rows(
            "SELECT source, title, language, (SELECT count(*) FROM chunks c WHERE c.source = d.source),"
            f" length(text), content_hash FROM documents d{among} ORDER BY source",
            values,
        )
        return [Source(*row) for row in rows]

    def ordered_sources(self) -> list[str]:
        """Return the names of the committed documents, in the order in which they were committed."""
        return [row[0] for row in self._rows("SELECT d.source FROM documents d ORDER BY d.rowid")]

    def is_empty(self) -> bool:
        """Return whether nothing was ever written, not even in part or temporarily."""
        return not self.had_vectors() and not self.has_documents()

    def had_vectors(self) -> bool:
        """Return whether a vector was ever written: Chroma keeps the dimension of the first one for good."""
        return self.setting(VECTOR_CHANGES) is not None

    def has_documents(self) -> bool:
        """Return whether there is a committed document."""
        return bool(self._rows("SELECT 1 FROM documents LIMIT 1"))

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
                self._execute_many("UPDATE documents SET content_hash = ?", [("",)])
                self.set_settings(**{CHUNKING_ALGORITHM: str(version)})

    def text(self, source: str) -> str | None:
        """Return the text of a document; ``None`` if it is not in the index."""
        return self._value("SELECT text FROM documents WHERE source = ?", source)

    def chunk_ids(self, source: str | None = None) -> set[str]:
        """Return the ids of the committed chunks, of one document or of all."""
        if source is None:
            return {row[0] for row in self._rows("SELECT id FROM chunks")}
        return {row[0] for row in self._rows("SELECT id FROM chunks WHERE source = ?", [source])}

    def chunk_ids_of(self, sources: Iterable[str]) -> set[str]:
        """Return the ids of the committed chunks of some documents."""
        return {
            row[0] for row in self._rows(f"SELECT id FROM chunks WHERE source {self._among}", [_json(sources)])
        }

    def select_ids(self, condition: str, values: Sequence[Any], limit: int = NO_LIMIT) -> list[str]:
        """Return the ids of chunks that satisfy an SQL condition on ``c`` (chunks) and ``d`` (documents)."""
        statement = f"SELECT c.id FROM chunks c JOIN documents d USING (source) WHERE {condition} LIMIT ?"
        return sorted(row[0] for row in self._rows(statement, [*values, limit]))

    def metadata_keys(self) -> list[str]:
        """Return the keys of the metadata of some chunks of each document, sorted."""
        rows = self._rows(
            "SELECT DISTINCT j.key FROM chunks c JOIN (SELECT min(id) AS id FROM chunks GROUP BY source) f"
            f" USING (id), {self.KEYS} ORDER BY j.key"
        )
        return [row[0] for row in rows]

    def select_among(self, ids: Iterable[str], condition: str, values: Sequence[Any]) -> set[str]:
        """Return those of some ids that ``select_ids`` returns."""
        return set(self.select_ids(f"c.id {self._among} AND {condition}", [_json(ids), *values]))

    def chunks(self, ids: Iterable[str]) -> dict[str, Document]:
        """Return the committed chunks among these ids, by id."""
        found: dict[str, Document] = {}
        rows = self._rows(
            "SELECT c.id, substr(d.text, c.start + 1, c.end - c.start), c.metadata"
            f" FROM chunks c JOIN documents d USING (source) WHERE c.id {self._among}",
            [_json(ids)],
        )
        for chunk_id, text, metadata in rows:
            try:
                found[chunk_id] = Document(id=chunk_id, page_content=text, metadata=json.loads(metadata))
            except (ValueError, TypeError) as error:
                raise damaged_ledger(self.path, f"chunk {chunk_id!r}: {error}") from error
        return found

    def ordered_ids(self) -> list[str]:
        """Return the ids of the committed chunks, in the order in which they were committed."""
        rows = self._rows(
            "SELECT c.id FROM chunks c JOIN documents d USING (source) ORDER BY d.rowid, c.start, c.id"
        )
        return [row[0] for row in rows]

    def origins(self, ids: Iterable[str]) -> dict[str, tuple[str, Language]]:
        """Return the source and the language of the committed chunks among these ids, by id."""
        rows = self._rows(
            "SELECT c.id, c.source, d.language FROM chunks c JOIN documents d USING (source)"
            f" WHERE c.id {self._among}",
            [_json(ids)],
        )
        return {chunk_id: (source, language) for chunk_id, source, language in rows}

    def term_lines(self, ids: Iterable[str]) -> dict[str, TermLines]:
        """Return the stored terms of chunks, by id; none that is damaged or was stored by another version.

        The checksums of the documents do not cover them: they can be computed from the text.
        """
        if "term_lines" not in self._tables():
            return {}
        rows = self._rows(f"SELECT id, packed FROM term_lines WHERE id {self._among}", [_json(ids)])
        return {chunk_id: lines for chunk_id, packed in rows if (lines := TermLines.unpack(packed)) is not None}

    def set_term_lines(self, packed: Iterable[tuple[str, bytes]]) -> None:
        """Store the terms of committed chunks."""
        self._execute_many(
            "INSERT INTO term_lines VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET packed = excluded.packed",
            list(packed),
        )

    def commit(self, *documents: PreparedDocument) -> None:
        """Replace the committed versions of documents, their chunks and parts; call it in a transaction."""
        rows = [_document_rows(each) for each in documents]
        self.forget(*(each.source for each in documents))
        self._execute_many(
            f"INSERT INTO documents ({DOCUMENT_COLUMNS}) VALUES (?, ?, ?, ?, ?)",
            [document for document, _ in rows],
        )
        self._execute_many(
            f"INSERT INTO chunks ({CHUNK_COLUMNS}) VALUES (?, ?, ?, ?, ?)",
            [chunk for _, chunks in rows for chunk in chunks],
        )
        self._execute_many(
            "INSERT INTO checksums VALUES (?, ?)",
            [(document[0], checksum(document, chunks)) for document, chunks in rows],
        )
        self.set_term_lines(
            (str(chunk.id), packed)
            for each in documents
            for chunk, packed in zip(each.chunks, each.lines, strict=bool(each.lines))
        )
        self._execute_many(
            "INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (each.source, number, part.id, part.start, part.end, json.dumps(part.metadata), int(part.named))
                for each in documents
                for number, part in enumerate(each.parts)
            ],
        )

    def parts(self, source: str) -> list[Part]:
        """Return the LangChain documents that a source was made of; none if it is a file's."""
        if "parts" not in self._tables():
            return []
        rows = self._rows(
            'SELECT id, start, "end", metadata, named FROM parts WHERE source = ? ORDER BY position', [source]
        )
        return [Part(id_, start, end, json.loads(data), bool(named)) for id_, start, end, data, named in rows]

    def sources_of_parts(self, ids: Iterable[str]) -> set[str]:
        """Return the sources that have a LangChain document with one of these ids."""
        rows = self._rows(f"SELECT DISTINCT source FROM parts WHERE named = 1 AND id {self._among}", [_json(ids)])
        return {row[0] for row in rows}

    def stamps(self) -> dict[str, str]:
        """Return what the file system said of each file when it was read, by source."""
        return dict(self._rows("SELECT source, stamp FROM stamps")) if "stamps" in self._tables() else {}

    def set_stamps(self, stamps: Mapping[str, str]) -> None:
        """Store what the file system said of files that are committed."""
        with self.transaction():
            self._execute_many(
                "INSERT INTO stamps VALUES (?, ?) ON CONFLICT (source) DO UPDATE SET stamp = excluded.stamp",
                list(stamps.items()),
            )

    def forget(self, *sources: str) -> None:
        """Remove documents and their chunks; call it in a transaction."""
        self._execute_many("DELETE FROM documents WHERE source = ?", [(source,) for source in sources])

    def advance(self) -> None:
        """Increase the generation; call it in the transaction of a commit."""
        self.set_settings(generation=str(self.generation + 1))

    def uncommitted(self) -> set[str]:
        """Return the ids that the stores may hold although no committed document contains them."""
        return {row[0] for row in self._rows("SELECT id FROM uncommitted")}

    def set_uncommitted(self, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Add ids to the uncommitted ones, or remove them."""
        with self.joined():
            self._execute_many("INSERT INTO uncommitted VALUES (?) ON CONFLICT DO NOTHING", [(i,) for i in add])
            self._execute_many("DELETE FROM uncommitted WHERE id = ?", [(i,) for i in remove])

    # Vectors to come.

    def waiting(self, limit: int) -> list[str]:
        """Return the ids of committed chunks that wait for their vectors, those of the newest documents first."""
        if "waiting" not in self._tables():
            return []
        rows = self._rows(
            "SELECT w.id FROM waiting w JOIN chunks c USING (id) JOIN documents d USING (source)"
            " ORDER BY d.rowid DESC, c.start, c.id LIMIT ?",
            [limit],
        )
        return [row[0] for row in rows]

    def waiting_among(self, ids: Sequence[str]) -> set[str]:
        """Return those of some ids that wait for their vectors."""
        if "waiting" not in self._tables():
            return set()
        return {row[0] for row in self._rows(f"SELECT id FROM waiting WHERE id {self._among}", [_json(ids)])}

    def count_waiting(self) -> int:
        """Return the number of committed chunks that wait for their vectors."""
        return int(self._rows("SELECT count(*) FROM waiting")[0][0]) if "waiting" in self._tables() else 0

    def set_waiting(self, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Note committed chunks as waiting for their vectors, or as having them."""
        with self.joined():
            self._execute_many("INSERT INTO waiting VALUES (?) ON CONFLICT DO NOTHING", [(i,) for i in add])
            self._execute_many("DELETE FROM waiting WHERE id = ?", [(i,) for i in remove])

    # Checks, and what is left of the past.

    def known_ids(self) -> tuple[set[str], set[str], set[str]]:
        """Return the ids of the committed chunks, the uncommitted ones and the waiting ones, at one moment."""
        waiting = " UNION ALL SELECT id, 2 FROM waiting" if "waiting" in self._tables() else ""
        rows = self._rows(f"SELECT id, 0 FROM chunks UNION ALL SELECT id, 1 FROM uncommitted{waiting}")
        found: tuple[set[str], set[str], set[str]] = set(), set(), set()
        for chunk_id, kind in rows:
            found[kind].add(chunk_id)
        return found

    def fingerprints(self, ids: Iterable[str] | None = None) -> dict[str, float]:
        """Return the fingerprints of all vectors or some, by chunk id; none of those of an earlier version."""
        if "fingerprints" not in self._tables():
            return {}
        among, values = ("", []) if ids is None else (f" WHERE id {self._among}", [_json(ids)])
        return dict(self._rows(f"SELECT id, fingerprint FROM fingerprints{among}", values))

    def set_fingerprints(self, add: Mapping[str, float] | None = None, remove: Iterable[str] = ()) -> None:
        """Store the fingerprints of vectors, or remove them."""
        with self.joined():
            self._execute_many(
                "INSERT INTO fingerprints VALUES (?, ?)"
                " ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint",
                list((add or {}).items()),
            )
            self._execute_many("DELETE FROM fingerprints WHERE id = ?", [(i,) for i in remove])


def _document_rows(prepared: PreparedDocument) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return the row of a document, and those of its chunks."""
    metadata, source = prepared.document.metadata, prepared.source
    title, text = str(metadata.get("title") or source), prepared.document.page_content
    chunks = [
        (
            each.id,
            source,
            each.metadata["start"],
            each.metadata["end"],
            json.dumps(each.metadata, ensure_ascii=False),
        )
        for each in prepared.chunks
    ]
    return (source, prepared.content_hash, title, metadata["language"], text), chunks


def _json(ids: Iterable[str]) -> str:
    return json.dumps(list(ids))
