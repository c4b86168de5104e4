"""Archives (zip, tar) and compressed files, read in memory, one member after the other."""

import bz2
import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePath, PurePosixPath
from typing import IO, Any, Final, NamedTuple

from lince_rag.documents.readers.blocks import Block, Content, Unreadable
from lince_rag.documents.readers.members import (
    MAXIMUM_MEMBER_BYTES,
    Budget,
    LimitReached,
    Members,
    as_section,
)

# What is known of each entry takes half a kilobyte to one, so that a list of millions would fill the memory.
MAXIMUM_ENTRIES: Final = 50_000

_ZIP_ENTRY: Final = b"PK\x01\x02"
_UTF8_NAME: Final = 0x800
_TAR_SUFFIXES: Final = (".tar", ".tgz", ".tbz", ".tbz2", ".txz")

# Zip-based documents that were renamed to .zip, by an entry that each must have.
_PACKAGES: Final = {
    "word/document.xml": ".docx",
    "xl/workbook.xml": ".xlsx",
    "ppt/presentation.xml": ".pptx",
    "META-INF/container.xml": ".epub",
}

_COMPRESSIONS: Final[tuple[tuple[bytes, Callable[[Any], Any]], ...]] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)

# What the modules of the standard library raise for a damaged file.
_DAMAGE: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
)


class _Entry(NamedTuple):
    """A regular file in an archive, which is unpacked when ``unpack`` is called."""

    name: str
    # As it declares; it may hold more or less.
    size: int
    unpack: Callable[[], bytes]


def read_archive(data: bytes, members: Members) -> Content:
    """Read the files in an archive that have a reader, each as a section, in the order of their names.

    A compressed file that is no archive is read as if it were not compressed.
    """
    try:
        if data.startswith(b"PK"):
            return _read_zip(data, members)
        if _is_tar(data, members.name):
            return _collect(_tar_entries(data, members.budget), members)
        return _read_compressed(data, members)
    except _DAMAGE:
        raise Unreadable("damaged or truncated archive") from None


def _collect(entries: Iterator[_Entry], members: Members) -> Content:
    """Read the entries that have a reader; those that cannot be read are left out, unless it is all of them."""
    found: dict[str, list[Block]] = {}
    failures: dict[str, str] = {}
    for name, size, unpack in entries:
        path = PurePosixPath(name.replace("\\", "/"))
        if not _is_inside(path) or not members.reads(path.name):
            continue
        try:
            if size > MAXIMUM_MEMBER_BYTES:
                raise Unreadable("too large once unpacked")
            found[str(path)] = members.read(str(path), unpack()).blocks
        except (LimitReached, MemoryError):
            raise
        except Exception as error:
            # Damage shows itself in many ways, and the other members may be whole.
            failures[str(path)] = str(error)
            members.budget.left_out.append(f"{path}: {error}")
    if not found:
        if not failures:
            raise Unreadable("no file of a supported kind in it")
        name, reason = next(iter(failures.items()))
        raise Unreadable(f"none of its files can be read ({name}: {reason})")
    blocks = [block for name in sorted(found) for block in as_section(name, found[name], level=1)]
    return Content(blocks, PurePath(members.name).stem.removesuffix(".tar"))


def _is_inside(path: PurePosixPath) -> bool:
    """Return whether a name stays in the archive, and neither the file nor a folder of it is hidden."""
    if path.is_absolute() or re.match("[A-Za-z]:", str(path)):
        return False
    # ".." begins with a dot, too. macOS adds a folder of what its file system knows of each file.
    return not any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


# --- zip


def _read_zip(data: bytes, members: Members) -> Content:
    """Read a zip archive, or the document that it really is."""
    if data.count(_ZIP_ENTRY) > MAXIMUM_ENTRIES:
        raise LimitReached(f"more than {MAXIMUM_ENTRIES} entries in it")
    archive = zipfile.ZipFile(io.BytesIO(data))
    names = set(archive.namelist())
    for needed, suffix in _PACKAGES.items():
        document = PurePath(members.name).stem + suffix
        if needed in names and members.reads(document):
            return members.read(document, data)
    if any(entry.flag_bits & 1 for entry in archive.infolist()):
        raise Unreadable("protected with a password")
    return _collect(_zip_entries(archive, members), members)


def _zip_entries(archive: zipfile.ZipFile, members: Members) -> Iterator[_Entry]:
    for entry in archive.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)
        # Systems other than Unix declare none.
        if not entry.is_dir() and kind in {0, stat.S_IFREG}:
            yield _Entry(_zip_name(entry), entry.file_size, partial(_unpack_entry, archive, entry, members))


def _unpack_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, members: Members) -> bytes:
    with archive.open(entry) as stream:
        return members.unpack(stream)


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """The name of an entry; without the mark of UTF-8 it may be that all the same, or the code page of DOS."""
    if entry.flag_bits & _UTF8_NAME:
        return entry.filename
    try:
        raw = entry.filename.encode("cp437")
    except UnicodeEncodeError:
        # The name is in another field of the entry.
        return entry.filename
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        # That of Western Europe, unlike cp437, has "ã" and "õ".
        return raw.decode("cp850")


# --- tar and compressed files


def _decompress(data: bytes) -> Any:
    """Open compressed data by its first bytes; anything else is opened unchanged."""
    for magic, opener in _COMPRESSIONS:
        if data.startswith(magic):
            return opener(io.BytesIO(data))
    return io.BytesIO(data)


def _is_tar(data: bytes, name: str) -> bool:
    if name.lower().removesuffix(PurePath(name).suffix.lower()).endswith(".tar"):
        return True
    # The first archives of the seventies do not have the mark.
    return name.lower().endswith(_TAR_SUFFIXES) or _decompress(data).read(512)[257:262] == b"ustar"


class _Counted:
    """A stream all of whose bytes count as unpacked, those of members that are skipped included."""

    def __init__(self, stream: IO[bytes], budget: Budget) -> None:
        self._stream = stream
        self._budget = budget

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._budget.add_bytes(len(data))
        return data


def _tar_entries(data: bytes, budget: Budget) -> Iterator[_Entry]:
    stream: Any = _Counted(_decompress(data), budget)
    # "r|" reads from the beginning to the end once, so that only one member is in memory.
    with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="replace") as archive:
        for number, entry in enumerate(archive):
            if number >= MAXIMUM_ENTRIES:
                raise LimitReached(f"more than {MAXIMUM_ENTRIES} entries in it")
            # A sparse file is made of holes, which are not in the archive, and no text has any.
            if entry.isreg() and not entry.issparse():
                yield _Entry(entry.name, entry.size, partial(_extract, archive, entry))


def _extract(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(entry)
    return stream.read() if stream else b""


def _read_compressed(data: bytes, members: Members) -> Content:
    """Read the one file that was compressed, which has the name without the last suffix."""
    stream, name = _decompress(data), PurePath(members.name).stem
    if isinstance(stream, io.BytesIO):
        raise Unreadable("damaged or truncated archive")
    if not members.reads(name):
        raise Unreadable(f"the compressed file, {name}, is not of a supported kind")
    return members.read(name, members.unpack(stream))
