"""The ledger of a shared index: a schema of a PostgreSQL database, for several writers and machines."""

import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lince_rag.documents.prepared import PreparedDocument
from lince_rag.errors import IndexLockedError, IndexServerError, LinceError, check_process, require
from lince_rag.index.conditions import POSTGRESQL_SYNTAX
from lince_rag.index.integrity import document_damage
from lince_rag.index.ledger import Ledger
from lince_rag.index.locations import SharedLocation
from lince_rag.index.storage import first_line, not_writable

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# The tables that SQLite has, and what changed in which commit. ``fields`` is the metadata for filters; their text
# is kept because the checksum of a document covers it. Texts are ordered by their code points, as in SQLite.
_TABLES: Final = (
    "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    'CREATE TABLE documents (source TEXT COLLATE "C" PRIMARY KEY, content_hash TEXT NOT NULL, title TEXT NOT NULL,'
    " language TEXT NOT NULL, text TEXT NOT NULL, ingested_at TIMESTAMPTZ NOT NULL DEFAULT now(),"
    " rowid BIGINT GENERATED ALWAYS AS IDENTITY)",
    'CREATE TABLE chunks (id TEXT COLLATE "C" PRIMARY KEY,'
    ' source TEXT COLLATE "C" NOT NULL REFERENCES documents(source) ON DELETE CASCADE,'
    ' start INTEGER NOT NULL, "end" INTEGER NOT NULL, metadata TEXT NOT NULL,'
    " fields JSONB GENERATED ALWAYS AS (metadata::jsonb) STORED)",
    "CREATE INDEX chunks_by_source ON chunks(source, start)",
    'CREATE TABLE term_lines (id TEXT COLLATE "C" PRIMARY KEY REFERENCES chunks(id) ON DELETE CASCADE,'
    " packed BYTEA NOT NULL)",
    'CREATE TABLE uncommitted (id TEXT COLLATE "C" PRIMARY KEY)',
    'CREATE TABLE checksums (source TEXT COLLATE "C" PRIMARY KEY REFERENCES documents(source) ON DELETE CASCADE,'
    " checksum TEXT NOT NULL)",
    'CREATE TABLE fingerprints (id TEXT COLLATE "C" PRIMARY KEY, fingerprint DOUBLE PRECISION NOT NULL)',
    'CREATE TABLE waiting (id TEXT COLLATE "C" PRIMARY KEY REFERENCES chunks(id) ON DELETE CASCADE)',
    'CREATE TABLE parts (source TEXT COLLATE "C" NOT NULL REFERENCES documents(source) ON DELETE CASCADE,'
    ' position INTEGER NOT NULL, id TEXT NOT NULL, start INTEGER NOT NULL, "end" INTEGER NOT NULL,'
    " metadata TEXT NOT NULL, named INTEGER NOT NULL, PRIMARY KEY (source, position))",
    'CREATE TABLE stamps (source TEXT COLLATE "C" PRIMARY KEY REFERENCES documents(source) ON DELETE CASCADE,'
    " stamp TEXT NOT NULL)",
    'CREATE TABLE changes (id TEXT COLLATE "C" PRIMARY KEY, generation BIGINT NOT NULL)',
    "CREATE INDEX changes_by_generation ON changes(generation)",
    # A truth value counts as a number, as SQLite reads it.
    "CREATE FUNCTION field_value(fields jsonb, name text) RETURNS jsonb LANGUAGE sql IMMUTABLE AS"
    " $$ SELECT CASE jsonb_typeof(fields -> name) WHEN 'boolean' THEN"
    " CASE WHEN fields -> name = 'true'::jsonb THEN '1'::jsonb ELSE '0'::jsonb END"
    " WHEN 'null' THEN NULL ELSE fields -> name END $$",
)
_NAMES: Final = frozenset(statement.split()[2] for statement in _TABLES if statement.startswith("CREATE TABLE"))

# The setting with the commit from which on ``changes`` knows of deleted chunks.
_CHANGES_SINCE: Final = "changes_since"

# The locks of an index: who writes (many, or one alone), who commits, who embeds.
WRITING: Final = 1
COMMITTING: Final = 2
EMBEDDING: Final = 3

_CONNECT_SECONDS: Final = 10

# SQLSTATEs of PostgreSQL.
_LOCK_NOT_AVAILABLE: Final = "55P03"
_NOT_ALLOWED: Final = ("42501", "25006")


class SharedLedger(Ledger):
    """The ledger in a schema of a PostgreSQL database; see ``SharedLocation`` for where it is.

    Statements of one thread between ``connected`` run on one connection, others on any of a pool.
    """

    SYNTAX = POSTGRESQL_SYNTAX
    KEYS = "LATERAL jsonb_object_keys(c.fields) AS j(key)"

    def __init__(self, location: SharedLocation, *, create: bool = True) -> None:
        self.location = location
        self.path = Path(location.name)
        self._process = os.getpid()
        self._thread = threading.local()
        self._engine = _make_engine(location)
        # Different schemas have different locks.
        self._lock_space = zlib.crc32(location.schema.encode()) - 2**31
        try:
            self.read_only = self._prepare(create)
            self._check_format()
        except BaseException:
            self.close()
            raise

    def _prepare(self, create: bool) -> bool:
        """Create the tables, if they are missing; return whether this user may only read them."""
        schema = self.location.schema
        found = self._rows("SELECT 1 FROM information_schema.tables WHERE table_schema = ?", [schema])
        if not found and not create:
            raise IndexServerError(
                f"There is no collection {self.location.collection!r} in {self.location.name}.",
                hint=f"Create one first: lince-rag ingest YOUR-DOCUMENTS --index {self.location.argument}",
            )
        if not found:
            with self.connected(), self.transaction():
                # Two processes may create it at the same time.
                self._rows("SELECT pg_advisory_xact_lock(?, ?)", [self._lock_space, WRITING])
                if not self._rows("SELECT 1 FROM information_schema.tables WHERE table_schema = ?", [schema]):
                    if not self._rows("SELECT 1 FROM pg_namespace WHERE nspname = ?", [schema]):
                        self._execute(f'CREATE SCHEMA "{schema}"')
                    for statement in _TABLES:
                        self._execute(statement)
        ((writable,),) = self._rows(
            "SELECT has_table_privilege('documents', 'INSERT') AND NOT pg_is_in_recovery()"
            " AND current_setting('transaction_read_only') = 'off'"
        )
        return not writable

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    # Statements.

    @contextmanager
    def connected(self) -> Iterator["Connection"]:
        """Run the statements of this thread, inside the block, on one connection."""
        check_process(self._process, f"The index {self.path} was opened")
        connection = getattr(self._thread, "connection", None)
        if connection is not None:
            yield connection
            return
        with self._reporting(), self._engine.connect() as connection:
            self._thread.connection = connection
            try:
                yield connection
            finally:
                self._thread.connection = None

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self.connected() as connection, self._reporting():
            found = connection.exec_driver_sql(statement.replace("?", "%s"), tuple(values))
            return [tuple(row) for row in found]

    def _execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        if self.read_only:
            raise not_writable(self.path)
        if values := [tuple(row) for row in rows]:
            with self.connected() as connection, self._reporting():
                connection.exec_driver_sql(statement.replace("?", "%s"), values)

    def _execute(self, statement: str) -> None:
        with self.connected() as connection, self._reporting():
            connection.exec_driver_sql(statement)

    def _tables(self) -> set[str]:
        return set(_NAMES)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all writes of the block, or none."""
        with self.connected() as connection:
            self._execute("BEGIN")
            self._thread.transaction = True
            try:
                yield
                self._execute("COMMIT")
            except BaseException:
                # A lost connection has rolled back by itself.
                if not connection.invalidated and not connection.closed:
                    self._execute("ROLLBACK")
                raise
            finally:
                self._thread.transaction = False

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Make the writes of the block a part of this thread's transaction, or one of their own."""
        if getattr(self._thread, "transaction", False):
            yield
        else:
            with self.transaction():
                yield

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn errors of the database into a ``LinceError`` without the password."""
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        try:
            yield
        except LinceError:
            raise
        except SQLAlchemyError as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            state = getattr(cause, "sqlstate", None)
            if state == _LOCK_NOT_AVAILABLE:
                raise IndexLockedError(
                    f"Another process is writing to the index {self.path}.",
                    hint="Wait until it has finished. Questions can be asked in the meantime.",
                ) from error
            if state in _NOT_ALLOWED:
                raise not_writable(self.path) from error
            raise IndexServerError(
                f"The ledger of {self.location.name} cannot be used: {first_line(cause)}.",
                hint="Check that PostgreSQL runs there, and its address, user, password and database.",
            ) from error

    def settings_of(self, *keys: str) -> dict[str, str]:
        """Return some settings of the index as they are at one moment; none for those that are not set."""
        return dict(self._rows(f"SELECT key, value FROM settings WHERE key {self._among}", [json.dumps(keys)]))

    # Locks.

    @contextmanager
    def locked(self, kind: int, *, shared: bool = False, seconds: float = -1.0) -> Iterator[None]:
        """Hold a lock of this index on this thread's connection; ``seconds`` below 0 waits without a limit.

        PostgreSQL releases it if the connection ends, so what is committed inside uses the same one.

        Raises:
            IndexLockedError: Others hold it for longer.
        """
        suffix = "_shared" if shared else ""
        values = [self._lock_space, kind]
        with self.connected() as connection:
            # 0 waits without a limit.
            milliseconds = 0 if seconds < 0 else max(int(1000 * seconds), 1)
            self._execute(f"SET lock_timeout = {milliseconds}")
            try:
                self._rows(f"SELECT pg_advisory_lock{suffix}(?, ?)", values)
            finally:
                if not connection.invalidated:
                    self._execute("SET lock_timeout = 0")
            try:
                yield
            finally:
                if not connection.invalidated:
                    self._rows(f"SELECT pg_advisory_unlock{suffix}(?, ?)", values)

    # What changed, for copies of the terms on other machines.

    def commit(self, *documents: PreparedDocument) -> None:
        """Replace the committed versions of documents, their chunks and parts; call it in a transaction."""
        super().commit(*documents)
        self._note_changes(each.source for each in documents)

    def forget(self, *sources: str) -> None:
        """Remove documents and their chunks; call it in a transaction."""
        self._note_changes(sources)
        super().forget(*sources)

    def _note_changes(self, sources: Iterable[str]) -> None:
        self._execute_many(
            f"INSERT INTO changes SELECT id, ? FROM chunks WHERE source {self._among}"
            " ON CONFLICT (id) DO UPDATE SET generation = excluded.generation",
            [(self.generation + 1, json.dumps(list(sources)))],
        )

    def changed_ids(self, generation: int) -> tuple[list[str], list[str]] | None:
        """Return the chunks that were added after a commit, in the order of ingestion, and those deleted since.

        ``None`` if what was deleted since is not known any more.
        """
        if generation < int(self.setting(_CHANGES_SINCE) or "0"):
            return None
        rows = self._rows(
            "SELECT h.id, c.id FROM changes h LEFT JOIN chunks c USING (id) LEFT JOIN documents d USING (source)"
            " WHERE h.generation > ? ORDER BY d.rowid, c.start, h.id",
            [generation],
        )
        return [new for _, new in rows if new is not None], [old for old, new in rows if new is None]

    # Upkeep.

    def forget_vectors(self) -> None:
        """Delete what is known of all vectors, and let none be waited for; call it in a transaction."""
        for table in ("fingerprints", "waiting"):
            self._execute(f"DELETE FROM {table}")

    def compact(self) -> bool:
        """Write the tables anew without what was deleted; return whether nothing of it is left in them."""
        with self.transaction():
            self._execute_many("DELETE FROM changes WHERE generation <= ?", [(self.generation,)])
            self.set_settings(**{_CHANGES_SINCE: str(self.generation)})
        for table in sorted(_NAMES):
            self._execute(f"VACUUM (FULL, ANALYZE) {table}")
        return True

    def stored_bytes(self) -> int:
        """Return how much its tables and their indexes take on the server."""
        ((found,),) = self._rows(
            "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = ? AND c.relkind = 'r'",
            [self.location.schema],
        )
        return int(found)

    def damage(self) -> str:
        """Return which document differs from its checksum; the empty text if none does.

        PostgreSQL checks its own files (``initdb --data-checksums``).
        """
        with self._reporting(), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            found = document_damage(partial(_stream, connection))
            connection.exec_driver_sql("COMMIT")
            return found


def _stream(connection: "Connection", statement: str, values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query without reading all of them into memory."""
    options = {"stream_results": True, "max_row_buffer": 100}
    for row in connection.exec_driver_sql(statement.replace("?", "%s"), tuple(values), options):
        yield tuple(row)


def _make_engine(location: SharedLocation) -> "Engine":
    require("shared", "sqlalchemy", "psycopg")
    from sqlalchemy import create_engine, event
    from sqlalchemy.engine import make_url

    engine = create_engine(
        make_url(location.ledger).set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={"connect_timeout": _CONNECT_SECONDS, "application_name": "lince-rag"},
    )

    @event.listens_for(engine, "connect")
    def use_schema(connection: Any, _: Any) -> None:
        # No other schema, so that no statement reaches another collection.
        connection.execute(f'SET search_path = "{location.schema}"')

    return engine
