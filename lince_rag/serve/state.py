"""What a server keeps beside its indexes, for all its workers: keys, jobs and votes, in a SQLite file."""

import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from lince_rag.errors import ConfigurationError

Right = Literal["read", "write"]
RIGHTS: Final[tuple[Right, ...]] = ("read", "write")

# Stands for all collections in the rights of a key.
EVERY_COLLECTION: Final = "*"

# "lince_<id>_<secret>": the first part finds the key, the second, of 256 random bits, proves it. Being random, it
# needs no slow hash.
KEY_PREFIX: Final = "lince"
SECRET_BYTES: Final = 32

STATE_FILE: Final = "state.sqlite"

# How long a statement waits for another worker.
BUSY_SECONDS: Final = 30

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, digest TEXT NOT NULL, rights TEXT NOT NULL,
    created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, collection TEXT NOT NULL,
    files TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'queued', done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0,
    report TEXT, error TEXT NOT NULL DEFAULT '', owner INTEGER, created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE IF NOT EXISTS votes (
    number INTEGER PRIMARY KEY AUTOINCREMENT, collection TEXT NOT NULL, question TEXT NOT NULL,
    vote INTEGER NOT NULL, answer TEXT NOT NULL, created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
"""


@dataclass(frozen=True)
class Key:
    """Who asks, and what they may do.

    Attributes:
        id: What tells the key from others; it is in the logs.
        name: What it was called when it was made.
        rights: By collection (or ``"*"`` for all), ``"read"`` or ``"write"``, which includes reading.
    """

    id: str
    name: str
    rights: Mapping[str, str]

    def may(self, right: Right, collection: str) -> bool:
        """Return whether the key gives a right to a collection."""
        given = {self.rights.get(collection), self.rights.get(EVERY_COLLECTION)}
        return "write" in given or right in given


# Who asks a server on the own machine that has no keys.
ANYONE: Final = Key("local", "local", {EVERY_COLLECTION: "write"})

# A program of the user who runs the server: it may know where the documents are.
OWNER: Final = Key("owner", "owner", {EVERY_COLLECTION: "write"})


@dataclass(frozen=True)
class Job:
    """An ingestion that a server was asked for.

    Attributes:
        id: Its id.
        collection: The collection that the files go to.
        files: The uploaded files.
        status: ``"queued"``, ``"running"``, ``"done"`` or ``"failed"``.
        done: Files that have been read.
        total: Files that are to be read.
        report: What the ingestion did, when it is done.
        error: Why it failed.
    """

    id: str
    collection: str
    files: Sequence[str]
    status: str
    done: int = 0
    total: int = 0
    report: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


class ServerState:
    """The keys, jobs and votes of a server.

    Args:
        folder: Where they are kept; made if it is missing, readable for its owner only.

    Raises:
        ConfigurationError: The folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / STATE_FILE
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            with self._connected() as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"The server's folder {folder} cannot be used: {error}.", hint="Give another one with --data."
            ) from error

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        connection.row_factory = sqlite3.Row
        try:
            # Deleted questions and answers are overwritten.
            connection.execute("PRAGMA secure_delete = ON")
            yield connection
        finally:
            connection.close()

    def _rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        with self._connected() as connection:
            return connection.execute(statement, values).fetchall()

    def add_key(self, name: str, rights: Mapping[str, str]) -> str:
        """Make a key, and return it: it is not kept, only its digest is.

        Args:
            name: What to call it.
            rights: By collection (or ``"*"``), ``"read"`` or ``"write"``.

        Raises:
            ConfigurationError: There is a key of that name, or a right is unknown.
        """
        if not name.strip() or not rights or not set(rights.values()) <= set(RIGHTS):
            raise ConfigurationError(
                f"A key needs a name and rights ({name!r}, {dict(rights)!r}).",
                hint="Rights are given with --read COLLECTION and --write COLLECTION; * stands for all.",
            )
        identity, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)
        try:
            self._rows(
                "INSERT INTO keys (id, name, digest, rights) VALUES (?, ?, ?, ?)",
                identity,
                name,
                _digest(secret),
                json.dumps(dict(rights)),
            )
        except sqlite3.IntegrityError:
            raise ConfigurationError(f"There is a key named {name!r}.", hint="Choose another name.") from None
        return f"{KEY_PREFIX}_{identity}_{secret}"

    def list_keys(self) -> list[Key]:
        """Return all keys, by name."""
        return [_key(row) for row in self._rows("SELECT * FROM keys ORDER BY name")]

    def has_keys(self) -> bool:
        """Return whether there is a key."""
        return bool(self._rows("SELECT 1 FROM keys LIMIT 1"))

    def remove_key(self, name: str) -> None:
        """Remove a key; running servers refuse it from now on.

        Raises:
            ConfigurationError: There is no key of that name.
        """
        if not self._rows("DELETE FROM keys WHERE name = ? RETURNING id", name):
            raise ConfigurationError(f"There is no key named {name!r}.", hint="`lince-rag keys list` lists them.")

    def find_key(self, given: str) -> Key | None:
        """Return the key that a client gave, compared in constant time; ``None`` if there is none like it."""
        prefix, _, rest = given.partition("_")
        identity, _, secret = rest.partition("_")
        rows = self._rows("SELECT * FROM keys WHERE id = ?", identity)
        expected = str(rows[0]["digest"]) if rows else _digest("")
        same = hmac.compare_digest(_digest(secret), expected)
        return _key(rows[0]) if rows and same and prefix == KEY_PREFIX else None

    def add_job(self, collection: str, files: Sequence[str], *, identity: str = "") -> Job:
        """Note files to be ingested; none stand for a purge of what was deleted, of which one may wait."""
        identity = identity or uuid.uuid4().hex
        waiting = "SELECT * FROM jobs WHERE collection = ? AND status = 'queued' AND files = '[]'"
        if not files and (rows := self._rows(waiting, collection)):
            return _job(rows[0])
        statement = "INSERT INTO jobs (id, collection, files, total) VALUES (?, ?, ?, ?) RETURNING *"
        return _job(self._rows(statement, identity, collection, json.dumps(list(files)), len(files))[0])

    def job(self, identity: str) -> Job | None:
        """Return a job; ``None`` if there is none with this id."""
        rows = self._rows("SELECT * FROM jobs WHERE id = ?", identity)
        return _job(rows[0]) if rows else None

    def jobs(self, collection: str, count: int) -> list[Job]:
        """Return the last jobs of a collection, newest first."""
        statement = "SELECT * FROM jobs WHERE collection = ? ORDER BY number DESC LIMIT ?"
        return [_job(row) for row in self._rows(statement, collection, count)]

    def unfinished(self) -> int:
        """Return the number of jobs that are queued or running."""
        return int(self._rows("SELECT COUNT(*) FROM jobs WHERE status IN ('queued', 'running')")[0][0])

    def take_job(self) -> Job | None:
        """Take the oldest job that waits; no other worker gets it. ``None`` if none waits."""
        rows = self._rows(
            "UPDATE jobs SET status = 'running', owner = ? WHERE number = "
            "(SELECT MIN(number) FROM jobs WHERE status = 'queued') RETURNING *",
            os.getpid(),
        )
        return _job(rows[0]) if rows else None

    def progress(self, identity: str, done: int, total: int) -> None:
        """Note how far a job is."""
        self._rows("UPDATE jobs SET done = ?, total = ? WHERE id = ?", done, total, identity)

    def finish_job(self, identity: str, *, report: Mapping[str, Any] | None = None, error: str = "") -> None:
        """Note what a job did, or why it failed."""
        status = "failed" if error else "done"
        statement = "UPDATE jobs SET status = ?, report = ?, error = ?, owner = NULL WHERE id = ?"
        self._rows(statement, status, json.dumps(report or {}), error, identity)

    def release_jobs(self, *, own: bool = False) -> None:
        """Let the jobs of workers that have ended, and also this one's own, be taken again."""
        owners = self._rows("SELECT DISTINCT owner FROM jobs WHERE status = 'running'")
        for (owner,) in owners:
            if own if owner == os.getpid() else not _is_alive(owner):
                self._rows(
                    "UPDATE jobs SET status = 'queued', owner = NULL WHERE status = 'running' AND owner IS ?",
                    owner,
                )

    def vote(self, collection: str, question: str, answer: Mapping[str, Any], vote: int) -> None:
        """Keep what a reader thinks of an answer: 1 or -1."""
        statement = "INSERT INTO votes (collection, question, vote, answer) VALUES (?, ?, ?, ?)"
        self._rows(statement, collection, question, vote, json.dumps(answer, ensure_ascii=False))

    def votes(self, collection: str) -> list[dict[str, Any]]:
        """Return the votes of a collection, oldest first: ``question``, ``vote`` and ``answer``."""
        rows = self._rows("SELECT * FROM votes WHERE collection = ? ORDER BY number", collection)
        return [
            {"question": row["question"], "vote": row["vote"], "answer": json.loads(row["answer"])} for row in rows
        ]


def _is_alive(process: int | None) -> bool:
    try:
        os.kill(process or 0, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process is not None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _key(row: sqlite3.Row) -> Key:
    return Key(row["id"], row["name"], json.loads(row["rights"]))


def _job(row: sqlite3.Row) -> Job:
    return Job(
        row["id"],
        row["collection"],
        json.loads(row["files"]),
        row["status"],
        row["done"],
        row["total"],
        json.loads(row["report"] or "{}"),
        row["error"],
    )
