"""A file of vectors that a server has computed, so that no text is sent twice."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from lince_rag.errors import ConfigurationError

# The most bytes of the file: some 150,000 vectors of 768 numbers.
MOST_BYTES: Final = 512 * 2**20

# The share of the vectors that goes, those that were not asked for longest, when the file is full.
_FORGOTTEN_SHARE: Final = 0.2

_SECONDS_OF_A_DAY: Final = 86_400

# The most values of a statement that every SQLite takes.
_MOST_VALUES: Final = 500

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL, day INTEGER NOT NULL)
WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS days ON vectors (day);
"""


class VectorCache:
    """A SQLite file that several processes may share; it holds digests of texts and their vectors, no texts.

    Args:
        file: The file; it is made, for its owner only, if it is missing.
        most_bytes: How large it may become.

    Raises:
        ConfigurationError: The file cannot be used (when it is first used).
    """

    def __init__(self, file: str | Path, most_bytes: int = MOST_BYTES) -> None:
        self.file = Path(file).expanduser().absolute()
        self._most_bytes = most_bytes

    def vectors(
        self, model: str, texts: Sequence[str], embed: Callable[[list[str]], list[list[float]]]
    ) -> list[list[float]]:
        """Return the vectors of texts: those that are kept, and for the others new ones.

        Args:
            model: What identifies the model, wherever it runs.
            texts: The texts, with their prompts.
            embed: Computes vectors.
        """
        keys = [blake2b(f"{model}\0{text}".encode("utf-8", "replace"), digest_size=16).digest() for text in texts]
        known = self.read(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            new = dict(zip(missing, embed(list(missing.values())), strict=True))
            self.write(new)
            known |= new
        return [known[key] for key in keys]

    def read(self, keys: Sequence[bytes]) -> dict[bytes, list[float]]:
        """Return the vectors that are known."""
        import numpy as np

        today, found = self._today(), {}
        with self._open() as connection:
            for first in range(0, len(keys), _MOST_VALUES):
                part = keys[first : first + _MOST_VALUES]
                marks = ",".join("?" * len(part))
                for key, vector, day in connection.execute(f"SELECT * FROM vectors WHERE key IN ({marks})", part):
                    found[key] = (np.frombuffer(vector, dtype="<f4").tolist(), day)
            used = [(today, key) for key, (_, day) in found.items() if day != today]
            if used:
                connection.executemany("UPDATE vectors SET day = ? WHERE key = ?", used)
        return {key: vector for key, (vector, _) in found.items()}

    def write(self, vectors: dict[bytes, list[float]]) -> None:
        """Keep vectors; if the file is full, those that were not asked for longest go."""
        import numpy as np

        today = self._today()
        rows = [(key, np.asarray(vector, dtype="<f4").tobytes(), today) for key, vector in vectors.items()]
        with self._open() as connection:
            if _bytes(connection) > self._most_bytes:
                (count,) = connection.execute("SELECT COUNT(*) FROM vectors").fetchone()
                connection.execute(
                    "DELETE FROM vectors WHERE key IN (SELECT key FROM vectors ORDER BY day LIMIT ?)",
                    [int(count * _FORGOTTEN_SHARE) + 1],
                )
            connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one transaction: no thread and no fork shares a connection."""
        try:
            if not self.file.exists():
                self.file.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self.file, os.O_CREAT | os.O_RDWR, 0o600))
            with closing(sqlite3.connect(self.file, timeout=30)) as connection, connection:
                connection.executescript(_TABLES)
                yield connection
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"The file of vectors {self.file} cannot be used: {error}.",
                hint="Delete it if it is damaged, name another one, or none.",
            ) from error

    @staticmethod
    def _today() -> int:
        return int(time.time()) // _SECONDS_OF_A_DAY


def _bytes(connection: sqlite3.Connection) -> int:
    """Return the bytes of the file that are in use."""
    values: list[Any] = [
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    ]
    return int((values[0] - values[1]) * values[2])
