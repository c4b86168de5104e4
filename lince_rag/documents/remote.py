"""Files of other file systems (``s3://``, ``gs://`` …), which pyarrow opens: which are read, and their bytes."""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlsplit

from lince_rag.documents.files import MAXIMUM_BINARY_BYTES, is_settled
from lince_rag.documents.selection import LEDGER_FILE, FileSelection, FoundFiles, Walk
from lince_rag.errors import ConfigurationError, DocumentError, require

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo

_REMOTE: Final = re.compile(r"(?!(?:file|https?|ftp):)[a-z][a-z0-9.+-]*://", re.IGNORECASE)

# What may stand in an address as it is; people write the rest, as accents and spaces, as it is, too.
_OF_ADDRESSES: Final = "!#$%&'()*+,/:;=?@[]~"


@dataclass(frozen=True)
class RemoteFile:
    """A file of another file system.

    Args:
        address: The address that was given, which says how to open the file system.
        path: The file's path in that file system.
        source: The document's name: the file's address without a password and options.
        size: Its size in bytes; 0 if it is not there.
        stamp: What the file system says of it, which is another when it changes; "" if it does not say that.
    """

    address: str
    path: str
    source: str
    size: int = 0
    stamp: str = ""

    @property
    def suffix(self) -> str:
        """The end of its name, from the last point on."""
        return os.path.splitext(self.path)[1]

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Bring the file to a temporary folder, under its name, because a document may be called by that.

        Raises:
            DocumentError: The file cannot be fetched, or is larger than any that is read.
        """
        if self.size > MAXIMUM_BINARY_BYTES:
            size, limit = self.size / 2**20, MAXIMUM_BINARY_BYTES // 2**20
            raise DocumentError(self.source, f"too large: {size:.0f} MiB, the limit is {limit} MiB")
        try:
            with TemporaryDirectory(prefix="lince-rag-") as folder:
                local = Path(folder) / os.path.basename(self.path)
                try:
                    system, _ = _open(self.address)
                    with system.open_input_stream(self.path) as stream, open(local, "wb") as file:
                        shutil.copyfileobj(stream, file, 2**20)
                except FileNotFoundError:
                    raise DocumentError(self.source, "no such file") from None
                except (OSError, ValueError) as error:
                    raise DocumentError(self.source, _reason(error, self.address)) from None
                yield local
        except ConfigurationError as error:
            raise DocumentError(self.source, error.message) from None


def is_remote(item: object) -> bool:
    """Return whether an item is an address of another file system."""
    return isinstance(item, str) and bool(_REMOTE.match(item)) and not os.path.exists(item)


def find_remote_files(
    addresses: Iterable[str], selection: FileSelection, found: FoundFiles
) -> tuple[dict[str, RemoteFile], set[str]]:
    """List the files to read below addresses as ``find_files`` does, and note in ``found`` what is not read.

    Returns:
        The files by their sources, and the sources of all files that are there, read or not.

    Raises:
        ConfigurationError: A file system cannot be opened or listed.
        MissingExtraError: pyarrow is not installed.
    """
    files: dict[str, RemoteFile] = {}
    present: set[str] = set()
    for address in addresses:
        require("ray", "pyarrow")
        folder = _RemoteFolder(address, selection)
        files |= {file.source: file for file in folder.remote_files()}
        present |= folder.present
        for reason, paths in folder.skipped.items():
            found.skipped.setdefault(reason, []).extend(paths)
    return files, present


def address_name(address: str) -> str:
    """Return the name of what an address points to: without a password and options, with spaces and accents."""
    parts = urlsplit(address)
    user, _, place = parts.netloc.rpartition("@")
    # Of abfs://container@account, the container is no password.
    shown = place if ":" in user or not user else parts.netloc
    return unquote(f"{parts.scheme}://{shown}{parts.path.rstrip('/')}")


class _RemoteFolder(Walk):
    """Lists a folder, or the one file, of another file system."""

    def __init__(self, address: str, selection: FileSelection) -> None:
        self._address = address
        self._system, path = _open(address)
        self._infos = _list(address, self._system, path)
        self._noted = FoundFiles()
        super().__init__(path, self._noted, selection)

    @property
    def present(self) -> set[str]:
        """The sources of all files that are there."""
        return {self._source(path) for path, info in self._infos.items() if info.is_file}

    @property
    def skipped(self) -> dict[str, list[str]]:
        """The sources of the files that are not read, by the reason."""
        return {reason: list(map(self._source, paths)) for reason, paths in self._noted.skipped.items()}

    def remote_files(self) -> list[RemoteFile]:
        """Return the files to read; what is no folder is kept, so that reading it reports what is wrong."""
        is_folder = self._folder not in self._infos
        return [self._file(path) for path in (self.files() if is_folder else [self._folder])]

    def _file(self, path: str) -> RemoteFile:
        info = self._infos[path]
        size, changed = info.size or 0, info.mtime_ns or 0
        stamp = f"{size} {changed}" if changed and is_settled(changed) else ""
        return RemoteFile(self._address, path, self._source(path), size, stamp)

    def _source(self, path: str) -> str:
        return address_name(self._address) + path.removeprefix(self._folder)

    def _walk(self, unreadable: Callable[[OSError], None]) -> Iterable[tuple[str, list[str], list[str]]]:
        below: dict[str, tuple[list[str], list[str]]] = {self._folder: ([], [])}
        for path, info in self._infos.items():
            # Not every bucket has entries for its folders.
            child, is_file = path, info.is_file
            while child and child != self._folder:
                parent, _, name = child.rpartition("/")
                folders, names = below.setdefault(parent, ([], []))
                kind = names if is_file else folders
                if name in kind:
                    break
                kind.append(name)
                child, is_file = parent, False
        waiting = [self._folder]
        while waiting:
            parent = waiting.pop()
            folders, names = below.get(parent, ([], []))
            # The caller takes out the folders that are not read.
            yield parent, folders, names
            waiting += [f"{parent}/{name}" for name in folders]

    def _enters(self, path: str, name: str) -> bool:
        if name.startswith("."):
            self._found.skip("hidden", path + "/")
        elif f"{path}/{LEDGER_FILE}" in self._infos:
            self._found.skip("unsupported", path + "/")
        elif reason := self._left_out(path + "/"):
            self._found.skip(reason, path + "/")
        else:
            return True
        return False

    def _leads_out(self, path: str) -> bool:
        return False

    def _modified(self, path: str) -> float:
        return (self._infos[path].mtime_ns or 0) / 10**9

    def _is_empty(self, path: str) -> bool:
        return not self._infos[path].size

    def _read(self, path: str) -> bytes:
        with self._system.open_input_stream(path) as stream:
            content: bytes = stream.read()
        return content


@lru_cache(maxsize=16)
def _open(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(quote(address, safe=_OF_ADDRESSES))
    except (OSError, ValueError, ImportError) as error:
        raise _not_opened(address, error) from error
    return system, path.rstrip("/")


def _list(address: str, system: Any, path: str) -> "dict[str, FileInfo]":
    """Return what is below a folder, or the one file, by its path."""
    from pyarrow.fs import FileSelector, FileType

    try:
        info = system.get_file_info(path)
        if info.type != FileType.Directory:
            return {path: info}
        return {each.path: each for each in system.get_file_info(FileSelector(path, recursive=True))}
    except (OSError, ValueError) as error:
        raise _not_opened(address, error) from error


def _not_opened(address: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{address_name(address)} cannot be opened: {_reason(error, address)}.",
        hint="Check the address and the credentials: it is one that pyarrow.fs.FileSystem.from_uri understands.",
    )


def _reason(error: Exception, address: str) -> str:
    """Say what an error of a file system says, in one line and without passwords of the address."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    for secret in (quote(address, safe=_OF_ADDRESSES), address):
        line = line.replace(secret, address_name(address))
    return line.rstrip(".")
