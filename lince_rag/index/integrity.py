"""Checks of the stores' files: does each still hold what its library wrote?"""

import hashlib
import json
import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from lince_rag.index.storage import CHROMA_FILE, first_line

# Files of an hnswlib index. Chroma writes the last one when it writes the graph for the first time.
_HEADER: Final = "header.bin"
_LEVEL_0: Final = "data_level0.bin"
_UPPER_LEVELS: Final = "link_lists.bin"
_LENGTHS: Final = "length.bin"
_GRAPH_FILES: Final = (_HEADER, _LEVEL_0, _LENGTHS, _UPPER_LEVELS, "index_metadata.pickle")

# header.bin: version, offset of level 0, capacity, elements, bytes per element, offset of the label, offset of the
# vector, highest level, entry point, links on upper levels, links on level 0, M, level factor, ef_construction.
_HEADER_FORMAT: Final = struct.Struct("<i6Qii3QdQ")

# tantivy ends every file with a JSON footer, its length and this number.
_FOOTER_MAGIC: Final = 1337

# Vectors are unit vectors of float32, whose sums of squares differ from 1 by less than 1e-6.
_TOLERANCE: Final = 1e-4

# What the checksum of a document covers, in the ledger.
DOCUMENT_COLUMNS: Final = "source, content_hash, title, language, text"
CHUNK_COLUMNS: Final = 'id, source, start, "end", metadata'

# Elements of a graph to check at once.
_BATCH: Final = 20_000


def database_damage(path: Path) -> str:
    """Return what is wrong with the structure of an SQLite file; the empty text if nothing is."""
    try:
        with closing(_connect(path)) as connection:
            return connection_damage(connection)
    except sqlite3.DatabaseError as error:
        return f"{path.name}: {_damage_of(error)}"


def _connect(path: Path) -> sqlite3.Connection:
    # Not mode=ro: if a writer was interrupted, SQLite must first undo what it did.
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=30)


def connection_damage(connection: sqlite3.Connection) -> str:
    """Return what is wrong with the structure of an open database; the empty text if nothing is."""
    try:
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        found = _damage_of(error)
    return "" if found == "ok" else " ".join(str(found).split())


def _damage_of(error: sqlite3.DatabaseError) -> str:
    """Return what an error says about the file; raise it again if it is not about the file, as a full disk."""
    name = getattr(error, "sqlite_errorname", None) or "SQLITE_ERROR"
    if not name.startswith(("SQLITE_ERROR", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR_SHORT_READ")):
        raise error
    return first_line(error)


def lexical_damage(folder: Path) -> str:
    """Compare tantivy's files with the checksums in them; return what is wrong, the empty text if nothing is."""
    while True:
        try:
            meta = (folder / "meta.json").read_bytes()
            for file in _segment_files(folder, json.loads(meta)):
                if problem := _checksum_damage(file):
                    return problem
        except FileNotFoundError as error:
            # A writer replaces segments, and deletes the old ones.
            if (folder / "meta.json").exists() and (folder / "meta.json").read_bytes() != meta:
                continue
            return f"{Path(error.filename).name} is missing"
        except (ValueError, LookupError, TypeError) as error:
            return f"meta.json: {first_line(error)}"
        return ""


def _segment_files(folder: Path, meta: Any) -> Iterator[Path]:
    for segment in meta["segments"]:
        name = segment["segment_id"].replace("-", "")
        for kind in ("term", "idx", "pos", "fieldnorm", "store", "fast"):
            yield folder / f"{name}.{kind}"
        if segment["deletes"]:
            yield folder / f"{name}.{segment['deletes']['opstamp']}.del"


def _checksum_damage(file: Path) -> str:
    content = memoryview(file.read_bytes())
    try:
        length, magic = struct.unpack("<II", content[-8:])
        wanted = json.loads(bytes(content[-8 - length : -8]))["crc"] if magic == _FOOTER_MAGIC else None
    except (struct.error, ValueError, LookupError):
        wanted = None
    return "" if wanted == zlib.crc32(content[: -8 - length]) else f"{file.name} does not match its checksum"


def vectors_damage(folder: Path) -> str:
    """Check the files of a Chroma folder; return what is wrong, the empty text if nothing is.

    Call it only while nobody writes to them, and while this process has not opened them.
    """
    return database_damage(folder / CHROMA_FILE) or graphs_damage(folder, vectors=True)


def graphs_damage(folder: Path, *, vectors: bool) -> str:
    """Check the graphs of a Chroma folder: their links, and on request the length of their vectors.

    The links are checked before Chroma opens a graph, because a wrong one ends the process (a segmentation fault).
    """
    try:
        segments = _written_graphs(folder / CHROMA_FILE)
    except sqlite3.DatabaseError as error:
        return f"{CHROMA_FILE}: {_damage_of(error)}"
    for segment in segments:
        missing = next((name for name in _GRAPH_FILES if not (folder / segment / name).is_file()), None)
        if missing:
            return f"{missing} is missing"
        try:
            problem = _graph_damage(folder / segment, vectors)
        except (ValueError, OSError) as error:
            problem = first_line(error)
        if problem:
            return problem
    return ""


def _written_graphs(database: Path) -> list[str]:
    """Return the names of the graphs that Chroma has written to files; small ones are only in its database."""
    with closing(_connect(database)) as connection:
        rows = connection.execute(
            "SELECT id FROM segments WHERE scope = 'VECTOR' AND id IN (SELECT segment_id FROM max_seq_id)"
        )
        return [str(row[0]) for row in rows]


def _graph_damage(folder: Path, vectors: bool) -> str:
    import numpy as np

    header = (folder / _HEADER).read_bytes()
    if len(header) < _HEADER_FORMAT.size:
        return f"{_HEADER} is too short"
    _, _, capacity, count, size, label_at, vector_at, highest, entry, upper_links, links, *_ = (
        _HEADER_FORMAT.unpack_from(header)
    )
    if not (0 < count <= capacity and 4 + 4 * links == vector_at < label_at == size - 8 and 0 <= entry < count):
        return f"{_HEADER} does not describe a graph"
    if (folder / _LEVEL_0).stat().st_size < count * size:
        return f"{_LEVEL_0} is too short"
    elements = np.memmap(folder / _LEVEL_0, dtype=np.uint8, mode="r", shape=(count, size))
    for first in range(0, count, _BATCH):
        part = elements[first : first + _BATCH]
        head = np.ascontiguousarray(part[:, :vector_at]).view(np.uint32)
        if not _are_links(head, count) or (vectors and not _are_distinct(head, isolated=count == 1)):
            return f"{_LEVEL_0} has links to elements that do not exist"
        if vectors and not _are_unit_vectors(np.ascontiguousarray(part[:, vector_at:label_at]).view(np.float32)):
            return f"{_LEVEL_0} has vectors of a wrong length"
    if vectors:
        labels = np.ascontiguousarray(elements[:, label_at:]).view(np.uint64)
        if len(np.unique(labels)) != count:
            return f"{_LEVEL_0} has labels that occur twice"
    return _upper_levels_damage((folder / _UPPER_LEVELS).read_bytes(), count, entry, highest, 4 + 4 * upper_links)


def erase_unused_memory(folder: Path) -> None:
    """Overwrite those parts of the graph files of a Chroma folder that hold no element.

    hnswlib writes all the memory that it has reserved, and what this process had there before is in it: also what
    was deleted. Call it only while nobody has the files open.
    """
    for header in folder.glob(f"*/{_HEADER}"):
        content = header.read_bytes()
        if len(content) < _HEADER_FORMAT.size:
            continue
        _, _, _, count, size, *_ = _HEADER_FORMAT.unpack_from(content)
        # A length is a float32.
        for name, used in ((_LEVEL_0, count * size), (_LENGTHS, count * 4)):
            with open(header.with_name(name), "r+b") as file:
                unused = file.seek(0, os.SEEK_END) - used
                file.seek(used)
                file.write(bytes(max(unused, 0)))


def _are_links(heads: Any, count: int) -> bool:
    """Return whether rows of a number of links and the links, all uint32, link to existing elements."""
    numbers, links = _numbers(heads), heads[:, 1:]
    if (numbers > links.shape[1]).any():
        return False
    # Compared as a whole first: what is in the unused places is nearly always a link of before.
    wrong = links >= count
    return not wrong.any() or not (wrong & _used(heads)).any()


def _are_distinct(heads: Any, *, isolated: bool) -> bool:
    """Return whether each row has a link, unless it may be isolated, and no link twice, as overwritten rows do."""
    import numpy as np

    # A number that no element has, so that unused places are never equal to a neighbour.
    unused = -1 - np.arange(heads.shape[1] - 1)
    ordered = np.sort(np.where(_used(heads), heads[:, 1:].astype(np.int64), unused), axis=1)
    return bool((isolated or (_numbers(heads) > 0).all()) and (ordered[:, 1:] != ordered[:, :-1]).all())


def _numbers(heads: Any) -> Any:
    # The upper half of the number is not used, except for a mark of deleted elements.
    return heads[:, 0] & 0xFFFF


def _used(heads: Any) -> Any:
    import numpy as np

    return np.arange(heads.shape[1] - 1) < _numbers(heads)[:, None]


def _are_unit_vectors(vectors: Any) -> bool:
    """Return whether all vectors have the length 1, or 0 for a text without terms."""
    import numpy as np

    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return bool(((np.abs(squares - 1) < _TOLERANCE) | (squares == 0)).all())


def _upper_levels_damage(content: bytes, count: int, entry: int, highest: int, size: int) -> str:
    """Check the lists of links above level 0: for each element their length in bytes, then one list per level."""
    import numpy as np

    lists: list[tuple[int, int]] = []
    levels = np.zeros(count, dtype=np.int64)
    position = 0
    for element in range(count):
        if position + 4 > len(content):
            return f"{_UPPER_LEVELS} is too short"
        (length,) = struct.unpack_from("<I", content, position)
        position += 4
        levels[element], rest = divmod(length, size)
        if rest or levels[element] > highest or position + length > len(content):
            return f"{_UPPER_LEVELS} has lists of a wrong length"
        lists += [(level, position + level * size) for level in range(levels[element])]
        position += length
    if levels[entry] != highest:
        return f"{_UPPER_LEVELS} has no links where a search begins"
    heads = np.array([np.frombuffer(content, np.uint32, size // 4, at) for _, at in lists], dtype=np.uint32)
    if not lists:
        return ""
    used, level = _used(heads), np.array([level for level, _ in lists])
    if not _are_links(heads, count) or (levels[np.where(used, heads[:, 1:], entry)] <= level[:, None]).any():
        return f"{_UPPER_LEVELS} has links to elements that do not exist"
    return ""


def fingerprints(vectors: Sequence[Sequence[float]]) -> list[float]:
    """Return one number for each vector, which does not depend on its length; a zero vector has 0."""
    import numpy as np

    matrix = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(matrix, axis=1)
    weights = np.sin(np.arange(1, matrix.shape[1] + 1) * 12.9898)
    found: list[float] = (matrix @ weights / np.where(lengths > 0, lengths, 1.0)).tolist()
    return found


def is_same_fingerprint(one: float, other: float) -> bool:
    """Return whether two fingerprints are those of one vector; Chroma rounds vectors to float32."""
    return abs(one - other) < _TOLERANCE


def checksum(document: Sequence[Any], chunks: Iterable[Sequence[Any]]) -> str:
    """Return the checksum of a row of ``documents``, without its content hash, and its rows of ``chunks``."""
    # The hash is forgotten when the chunking changes, and a wrong one only means that the file is read again.
    source, _, *others = document
    content = json.dumps([[source, *others], sorted(map(list, chunks))], ensure_ascii=False)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def document_damage(rows: Callable[[str, Sequence[Any]], Iterable[Sequence[Any]]]) -> str:
    """Return which document differs from its checksum; documents of an earlier version have none.

    ``rows`` runs a query with values; all queries see one state.
    """
    sums = dict(map(tuple, rows("SELECT source, checksum FROM checksums", ())))
    for document in rows(f"SELECT {DOCUMENT_COLUMNS} FROM documents", ()):
        chunks = rows(f"SELECT {CHUNK_COLUMNS} FROM chunks WHERE source = ?", [document[0]])
        if document[0] in sums and sums.pop(document[0]) != checksum(document, chunks):
            return f"the document {document[0]!r} differs from its checksum"
    return f"the document {next(iter(sums))!r} is missing" if sums else ""
