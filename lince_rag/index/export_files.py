"""The file that an index is moved in: a ZIP archive of JSON Lines and float32 numbers, written and read in pieces.

``docs/moving.md`` describes it.
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, Final, Self
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from lince_rag.errors import ConfigurationError, ExportFileError
from lince_rag.index.exports import DOCUMENTS, EXPORT_FORMAT, LONGEST_LINE, VECTORS, Manifest, Record, require_that
from lince_rag.index.storage import first_line

# The first member, not compressed: what the file is can be read in its first bytes.
_KIND: Final = "mimetype"
_MEDIA_TYPE: Final = "application/x-lince-rag-index; format="
_MANIFEST: Final = "manifest.json"
_MEMBERS: Final = (_KIND, DOCUMENTS, VECTORS, _MANIFEST)

# The comment of the archive, which is its end: the digest of all bytes before the comment.
_COMMENT: Final = b"sha256:" + b"0" * 64

# What is read at once.
_BLOCK: Final = 2**20

_LONGEST_MANIFEST: Final = 2**20

# How many names of documents an error shows.
_SHOWN_NAMES: Final = 3

# The length of most vectors is 1. Chroma divides by it.
_LONGEST: Final = 1e6

# What reading a ZIP archive, JSON or a value of a wrong kind may raise.
_DAMAGES: Final = (
    BadZipFile, zlib.error, EOFError, ValueError, LookupError, TypeError, RecursionError, NotImplementedError,
    RuntimeError, OverflowError, AttributeError, struct.error,
)  # fmt: skip


# --------------------------------------------------------------------------------------------------------- writing


class _NewArchive(ZipFile):
    """An archive that is finished only by ``close``: one that Ctrl-C left behind has no file any more."""

    def __del__(self) -> None:
        pass


class ExportWriter:
    """Writes an export: its documents, its vectors, and at last what it says of itself."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._zip = _NewArchive(stream, "w", ZIP_DEFLATED)
        self._zip.comment = _COMMENT
        self.members: dict[str, dict[str, Any]] = {}
        self._zip.writestr(_entry(_KIND, ZIP_STORED), f"{_MEDIA_TYPE}{EXPORT_FORMAT}")

    def documents(self, records: Iterator[Record]) -> None:
        """Write the documents; raises ``ExportFileError`` if one could not be read again."""
        self._write(DOCUMENTS, map(_checked_line, records))

    def vectors(self, arrays: Iterator[Any]) -> None:
        """Write the vectors: arrays of a row for each chunk that has one, in the order of the documents."""
        self._write(VECTORS, (array.astype("<f4").tobytes() for array in arrays))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest and the digest of all."""
        text = json.dumps(manifest.to_json(), ensure_ascii=False, indent=1)
        self._zip.writestr(_entry(_MANIFEST, ZIP_DEFLATED), text)
        self._zip.close()
        end = self._stream.seek(-len(_COMMENT), os.SEEK_END)
        found = _digest(self._stream, end)
        self._stream.seek(end)
        self._stream.write(found)

    def _write(self, name: str, pieces: Iterator[bytes]) -> None:
        digest, size = hashlib.sha256(), 0
        with self._zip.open(_entry(name, ZIP_DEFLATED), "w", force_zip64=True) as member:
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                member.write(piece)
        self.members[name] = {"bytes": size, "sha256": digest.hexdigest()}


def _checked_line(record: Record) -> bytes:
    line = record.to_line()
    try:
        # It is known now, and not when it is needed.
        Record.from_line(line)
    except _DAMAGES as error:
        raise ExportFileError(
            f"The document {record.document.metadata['source']!r} cannot be exported: {first_line(error)}.",
            hint="Ingest it again, or remove it from the index.",
        ) from error
    return line


def _entry(name: str, compression: int) -> ZipInfo:
    # Without the time and the system, so that equal indexes give equal files.
    entry = ZipInfo(name)
    entry.compress_type, entry.create_system, entry.external_attr = compression, 3, 0o600 << 16
    return entry


def _digest(stream: IO[bytes], end: int) -> bytes:
    """Return the comment that belongs to the bytes of a file before ``end``."""
    digest = hashlib.sha256()
    stream.seek(0)
    while (left := end - stream.tell()) > 0 and (block := stream.read(min(left, _BLOCK))):
        digest.update(block)
    return b"sha256:" + digest.hexdigest().encode()


@contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """Write a file as a whole or not at all; only its owner may read it."""

    def check() -> None:
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder.", hint="Give the name of the file to write.")
        if path.exists() and not overwrite:
            raise ConfigurationError(
                f"The file {path} is there already.", hint="Give another name, or replace it with --force."
            )

    check()
    try:
        with ExitStack() as stack:
            stream = NamedTemporaryFile(dir=path.parent, prefix=".lince-export-", suffix=".part", delete=False)  # noqa: SIM115
            stack.callback(Path(stream.name).unlink, missing_ok=True)
            with stream:
                yield stream.file
                stream.flush()
                os.fsync(stream.fileno())
            check()
            os.replace(stream.name, path)
    except OSError as error:
        raise ExportFileError(
            f"The file {path} could not be written: {error.strerror or error}.",
            hint="Check the path, its permissions and the free space.",
        ) from error


# --------------------------------------------------------------------------------------------------------- reading


class _LimitedReader(BufferedReader):
    """A file that is never read as a whole, whatever a hostile archive says of the size of its parts."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 2 * _BLOCK:
            raise BadZipFile("a part of the archive is too long")
        return super().read(2 * _BLOCK if size is None or size < 0 else size)


class _Member(RawIOBase):
    """A member of the archive, whose digest is found while it is read."""

    def __init__(self, stream: IO[bytes], digest: str) -> None:
        self._stream = stream
        self._wanted = digest
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        block = self._stream.read(len(buffer))
        buffer[: len(block)] = block
        self._digest.update(block)
        return len(block)

    def close(self) -> None:
        self._stream.close()
        super().close()

    def check(self) -> None:
        """Compare what was read with its digest."""
        require_that(self._digest.hexdigest() == self._wanted, "a member does not match its digest")


class ExportFile:
    """An export that was opened to be read; also a context manager.

    Args:
        path: The file.

    Raises:
        ExportFileError: It is no export, is damaged or cut, or has a newer format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with ExitStack() as stack:
            try:
                self._stream = stack.enter_context(_LimitedReader(path.open("rb", buffering=0), _BLOCK))
                self._check_kind()
                self._check_digest()
            except OSError as error:
                raise self._unreadable(error) from error
            with self._reporting():
                self._zip = stack.enter_context(ZipFile(self._stream))
                entries = self._zip.infolist()
                require_that(tuple(entry.filename for entry in entries) == _MEMBERS, "it has other members")
                require_that(
                    all(entry.compress_type in (ZIP_STORED, ZIP_DEFLATED) for entry in entries), "its compression"
                )
                with self._zip.open(_MANIFEST) as member:
                    self.manifest = Manifest.from_json(json.loads(member.read(_LONGEST_MANIFEST)))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def size(self) -> int:
        """How many bytes it holds when they are not compressed."""
        return sum(entry.file_size for entry in self._zip.infolist())

    def _check_kind(self) -> None:
        head = self._stream.read(_BLOCK)
        wanted, found = _KIND.encode() + _MEDIA_TYPE.encode(), head[30:]
        digits = found[len(wanted) :].split(b"PK", 1)[0]
        if not (head.startswith(b"PK\3\4") and found.startswith(wanted) and digits.isdigit()):
            raise ExportFileError(
                f"{self.path} is not an export of an index, or its beginning is damaged.",
                hint="Give a file that `lince-rag export` has written.",
            )
        if digits != str(EXPORT_FORMAT).encode():
            raise ExportFileError(
                f"{self.path} has the export format {digits.decode()}; this version reads formats up to"
                f" {EXPORT_FORMAT}.",
                hint="Update lince_rag.",
            )

    def _check_digest(self) -> None:
        end = self._stream.seek(0, os.SEEK_END) - len(_COMMENT)
        found = _digest(self._stream, end)
        if self._stream.read(2 * len(_COMMENT)) != found:
            raise self._damaged("its digest is not that of its contents; it may have been cut")

    def _damaged(self, reason: object) -> ExportFileError:
        return ExportFileError(
            f"The export {self.path} is damaged: {first_line(reason)}.",
            hint="Copy or export it again. Nothing was changed.",
        )

    def _unreadable(self, error: OSError) -> ExportFileError:
        return ExportFileError(
            f"The file {self.path} cannot be read: {error.strerror or error}.",
            hint="Check the path and its permissions.",
        )

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGES as error:
            raise self._damaged(error) from error
        except OSError as error:
            raise self._unreadable(error) from error

    def records(self) -> Iterator[tuple[Record, Any]]:
        """Yield each document with an array of the vectors of its chunks; raises ``ExportFileError``."""
        with ExitStack() as stack:
            members = [stack.enter_context(self._open(name)) for name in (DOCUMENTS, VECTORS)]
            lines, numbers = (BufferedReader(member, _BLOCK) for member in members)
            while True:
                with self._reporting():
                    if not (line := lines.readline(LONGEST_LINE)):
                        break
                    require_that(line.endswith(b"\n"), "a line is too long, or has no end")
                    record = Record.from_line(line)
                    vectors = self._read_vectors(numbers, sum(vector for _, vector in record.chunks))
                yield record, vectors
            with self._reporting():
                require_that(not numbers.read(1), "it has too many vectors")
                for member in members:
                    member.check()

    def _open(self, name: str) -> "_Member":
        with self._reporting():
            return _Member(self._zip.open(name), self.manifest.members[name]["sha256"])

    def _read_vectors(self, numbers: IO[bytes], count: int) -> Any:
        import numpy as np

        dimension = self.manifest.dimension
        content = bytearray()
        while left := count * dimension * 4 - len(content):
            block = numbers.read(min(left, _BLOCK))
            require_that(bool(block), "it has too few vectors")
            content += block
        array = np.frombuffer(content, "<f4").reshape(count, dimension)
        lengths = np.linalg.norm(array.astype(np.float64), axis=1)
        # A text without terms has the zero vector. What is no number is not smaller.
        possible = (lengths == 0) | ((lengths > 1 / _LONGEST) & (lengths < _LONGEST))
        require_that(bool(possible.all()), "a vector has numbers that cannot be")
        return array

    def check(self, rename: Callable[[str], str]) -> list[str]:
        """Read everything, so that nothing is begun that cannot be finished; return some names of documents.

        Raises:
            ExportFileError: Something is damaged, or does not fit to the rest.
            ConfigurationError: Two documents would get the same name.
        """
        names: dict[str, str] = {}
        documents = chunks = vectors = 0
        for record, array in self.records():
            source = record.document.metadata["source"]
            if (other := names.setdefault(rename(source), source)) != source:
                raise ConfigurationError(
                    f"The documents {other!r} and {source!r} would both get the name {rename(source)!r}.",
                    hint="Rename one of them to another name.",
                )
            chunks, vectors = chunks + len(record.chunks), vectors + len(array)
            documents += 1
        wanted = self.manifest
        with self._reporting():
            require_that(len(names) == documents, "a document is in it twice")
            found = (documents, chunks, vectors)
            require_that(found == (wanted.documents, wanted.chunks, wanted.vectors), "its numbers are others")
        return list(names.values())[:_SHOWN_NAMES]
