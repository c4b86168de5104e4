"""What an exported index consists of: what it says of itself, and its documents; checked when they are read.

A file may come from anywhere, so nothing of it is believed; ``docs/moving.md`` describes it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from langchain_core.documents import Document

from lince_rag.documents.chunking import ChunkingSettings, chunk_id
from lince_rag.documents.prepared import Part
from lince_rag.errors import ExportFileError
from lince_rag.text.language import LANGUAGES

# Raise it when an earlier version could not read what this one writes.
EXPORT_FORMAT: Final = 1

# The members of the archive that the manifest describes.
DOCUMENTS: Final = "documents.jsonl"
VECTORS: Final = "vectors.f32"

# A line holds a document; files of more than 64 MiB of text are not ingested.
LONGEST_LINE: Final = 256 * 2**20
_LONGEST_VECTOR: Final = 2**16

# What an embedder is made with; see ``LinceEmbeddings.options``.
_OPTIONS: Final = frozenset({"model", "revision", "query_prompt", "passage_prompt", "base_url"})

# Chunks overlap where the settings say so: characters of all chunks of a document, unless its text is longer.
_MOST_CHARACTERS: Final = 100_000_000
_MOST_OVERLAP: Final = 10


@dataclass(frozen=True)
class Manifest:
    """What an export says of itself: the settings of the index, the numbers and digests of what follows."""

    embeddings: str
    embeddings_options: dict[str, Any]
    chunking: dict[str, Any]
    # The version of the chunking, where the documents have a content hash.
    chunking_algorithm: str
    documents: int
    chunks: int
    vectors: int
    # How many numbers a vector has.
    dimension: int
    # The bytes and the SHA-256 of each other member, by name.
    members: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return what is written."""
        return {"format": EXPORT_FORMAT, **vars(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Check what was read; raises ``ValueError`` and its like."""
        if values.pop("format") != EXPORT_FORMAT:
            raise ValueError("the manifest has another format")
        found = cls(**values)
        texts = (found.embeddings, found.chunking_algorithm)
        numbers = (found.documents, found.chunks, found.vectors, found.dimension)
        require_that(all(isinstance(each, str) for each in texts), "its settings are no texts")
        require_that(all(_is_count(each) for each in numbers), "its numbers are no numbers")
        options = found.embeddings_options
        require_that(options.keys() <= _OPTIONS, "its options are unknown")
        require_that(all(value is None or isinstance(value, str) for value in options.values()), "its options")
        ChunkingSettings(**found.chunking)
        require_that(
            found.dimension <= _LONGEST_VECTOR and found.vectors <= found.chunks, "its numbers do not fit"
        )
        require_that((found.dimension > 0) == (found.vectors > 0), "its numbers do not fit")
        require_that(found.members.keys() == {DOCUMENTS, VECTORS}, "it names other members")
        sizes = {name: found.members[name]["bytes"] for name in (DOCUMENTS, VECTORS)}
        require_that(all(map(_is_count, sizes.values())), "its sizes are no numbers")
        require_that(sizes[VECTORS] == found.vectors * found.dimension * 4, "its vectors have another size")
        return found


class Record(NamedTuple):
    """One document of an export."""

    document: Document
    # The metadata of each chunk, and whether its vector is in the file.
    chunks: list[tuple[dict[str, Any], bool]]
    parts: list[Part]
    # With which options a file was read.
    options: str

    def to_line(self) -> bytes:
        """Return the line of the file."""
        metadata = self.document.metadata
        values = {
            **{name: metadata[name] for name in ("source", "title", "language", "content_hash")},
            "options": self.options,
            "text": self.document.page_content,
            "chunks": [
                {"vector": vector, "metadata": {key: each[key] for key in each if key != "source"}}
                for each, vector in self.chunks
            ],
            "parts": [vars(part) for part in self.parts],
        }
        try:
            line = json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            # Half a character in the metadata of a part, which UTF-8 cannot write but JSON can.
            line = json.dumps(values).encode()
        if len(line) >= LONGEST_LINE:
            raise ExportFileError(
                f"The document {metadata['source']!r} is too long for an export: {len(line) // 2**20} MiB.",
                hint="Divide it into several sources.",
            )
        return line + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Check what was read; raises ``ValueError`` and its like."""
        values = json.loads(line)
        source, text = values["source"], values["text"]
        names = ("source", "content_hash", "text", "options")
        require_that(all(_is_storable(values[name]) for name in names), "a text cannot be stored")
        require_that(bool(values["title"].encode()), "no title")
        require_that(bool(source) and values["language"] in LANGUAGES, "a document without a name or a language")
        require_that(set(values["options"]) <= set("op"), "unknown options")
        require_that(len(values) == len(names) + 4, "unknown keys")
        chunks = [_check_chunk(each, source, len(text)) for each in values["chunks"]]
        spans = [metadata["end"] - metadata["start"] for metadata, _ in chunks]
        require_that(sum(spans) <= max(_MOST_CHARACTERS, _MOST_OVERLAP * len(text)), "chunks that repeat the text")
        require_that(
            len({chunk_id(metadata) for metadata, _ in chunks}) == len(chunks), "a chunk that is there twice"
        )
        parts = [_check_part(each, len(text)) for each in values["parts"]]
        metadata = {name: values[name] for name in ("source", "title", "language", "content_hash")}
        return cls(Document(page_content=text, metadata=metadata), chunks, parts, values["options"])

    def renamed(self, source: str) -> Self:
        """Return the record with another name of the document, and what follows from it."""
        before = self.document.metadata["source"]
        if source == before:
            return self

        def change(metadata: Mapping[str, Any]) -> dict[str, Any]:
            # A document without a title has its name as the title.
            title = {"title": source} if metadata.get("title") == before else {}
            return {**metadata, "source": source, **title}

        document = Document(page_content=self.document.page_content, metadata=change(self.document.metadata))
        chunks = [(change(metadata), vector) for metadata, vector in self.chunks]
        parts = [Part(each.id, each.start, each.end, change(each.metadata), each.named) for each in self.parts]
        return type(self)(document, chunks, parts, self.options)


def _check_chunk(values: dict[str, Any], source: str, length: int) -> tuple[dict[str, Any], bool]:
    vector, metadata = values["vector"], values["metadata"]
    require_that(len(values) == 2 and isinstance(vector, bool), "a chunk with unknown keys")
    require_that(
        "source" not in metadata and _is_storable(metadata["content_hash"]), "a chunk of another document"
    )
    require_that(metadata.get("language") in (None, *LANGUAGES), "a chunk in an unknown language")
    require_that(isinstance(metadata.get("heading", ""), str), "a heading that is no text")
    _check_span(metadata["start"], metadata["end"], length)
    require_that(metadata["start"] < metadata["end"], "an empty chunk")
    for key, value in metadata.items():
        scalar = value is None or isinstance(value, str | bool | int) or _is_finite(value)
        require_that(scalar or (key == "page_starts" and _are_pairs(value)), f"a chunk whose {key!r} is no value")
    # Raises UnicodeEncodeError, a ValueError, for half a character.
    json.dumps(metadata, ensure_ascii=False).encode()
    return {"source": source, **metadata}, vector


def _check_part(values: dict[str, Any], length: int) -> Part:
    part = Part(**values)
    require_that(_is_storable(part.id) and isinstance(part.named, bool), "a part without a name")
    require_that(isinstance(part.metadata, dict), "a part without metadata")
    _check_span(part.start, part.end, length)
    return part


def _check_span(start: Any, end: Any, length: int) -> None:
    require_that(_is_count(start) and _is_count(end) and start <= end <= length, "offsets outside the text")


def require_that(holds: bool, otherwise: str) -> None:
    """Raise a ``ValueError``."""
    if not holds:
        raise ValueError(otherwise)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _are_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and _is_count(pair[0])
        and (pair[1] is None or _is_count(pair[1]))
        for pair in value
    )


def _is_storable(value: Any) -> bool:
    # Raises UnicodeEncodeError, a ValueError, for half a character.
    return isinstance(value, str) and "\0" not in value and bool(value.encode() or True)
