"""LangChain documents → one document for each source, which keeps the parts that it was given in."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from langchain_core.documents import Document

from lince_rag.documents.chunking import ChunkingSettings, chunk_document
from lince_rag.documents.prepared import Part, PreparedDocument
from lince_rag.errors import ConfigurationError, DocumentError
from lince_rag.text.language import LANGUAGES, detect_language

# Between parts whose places in the text are not known.
SEPARATOR: Final = "\n\n"

# What may be missing between two parts, or before the first: white space that a splitter has cut off, or pieces
# that were left out. Line breaks take their place, so that the offsets stay those of the text that was split.
LARGEST_GAP: Final = 10_000

# What LangChain's splitters note (``add_start_index``): where a piece begins in the document it was cut from.
START_INDEX: Final = "start_index"

# What SQLite cannot store in a text: NUL and lone surrogates.
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


def source_of(document: Document) -> str:
    """Return the source of a LangChain document; raises ``ConfigurationError`` if it has none."""
    source = document.metadata.get("source")
    if not isinstance(source, str) or not source:
        raise ConfigurationError(
            f"A document without a source cannot be ingested: {document.page_content[:60]!r}",
            hint="Set metadata['source'] to a unique name.",
        )
    return source


def by_source(documents: Iterable[Document]) -> dict[str, list[Document]]:
    """Group documents by source, in order."""
    found: dict[str, list[Document]] = {}
    for document in documents:
        found.setdefault(source_of(document), []).append(document)
    return found


def document_id(document: Document) -> str:
    """Return the id of a document, or a digest of its content, which is the same each time."""
    return document.id or hash_documents([document])


def hash_documents(documents: Sequence[Document]) -> str:
    """Return the digest of documents and their metadata, which tells whether a source has changed."""
    digest = hashlib.blake2b(digest_size=16)
    for document in documents:
        metadata = json.dumps(document.metadata, sort_keys=True, default=str)
        given = [document.id] if document.id else []
        digest.update("\0".join([metadata, document.page_content, *given]).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def prepare_documents(
    source: str, documents: Sequence[Document], content_hash: str, settings: ChunkingSettings
) -> PreparedDocument:
    """Join the documents of a source, and cut each of them into chunks.

    No chunk crosses two documents, as no page or splitter's piece does; each has the metadata of its own. Pieces
    with ``start_index`` are put where they were in the document that they were cut from, so that what two of them
    share is there once.

    Raises:
        DocumentError: There is no text in them.
    """
    filled = [document for document in documents if document.page_content.strip()]
    if not filled:
        raise DocumentError(source, "no text in it")
    text, starts = _join(filled)
    language = next((each.metadata["language"] for each in filled if "language" in each.metadata), None)
    whole = {
        "source": source,
        "title": next((each.metadata["title"] for each in filled if each.metadata.get("title")), source),
        "language": language or detect_language(text),
        "content_hash": content_hash,
    }
    parts, chunks = [], dict[str, Document]()
    for document, start in zip(filled, starts, strict=True):
        named = {"document_id": document.id} if document.id else {}
        metadata = {"language": whole["language"]} | document.metadata | _page(document) | named
        metadata |= {"source": source, "content_hash": content_hash}
        for chunk in chunk_document(document.model_copy(update={"metadata": metadata}), settings, offset=start):
            # The same piece twice is one.
            chunks[str(chunk.id)] = chunk
        end = start + len(document.page_content)
        parts.append(Part(document_id(document), start, end, document.metadata, named=bool(named)))
    whole_document = Document(page_content=text, metadata=whole)
    ordered = sorted(chunks.values(), key=lambda chunk: (chunk.metadata["start"], chunk.metadata["end"]))
    return PreparedDocument.of(whole_document, ordered, parts)


def stored_documents(source: str, text: str, parts: Iterable[Part]) -> list[Document]:
    """Return the documents that a source was made of."""
    return [
        Document(
            id=part.id if part.named else None,
            page_content=text[part.start : part.end],
            metadata={**part.metadata, "source": source},
        )
        for part in parts
    ]


def merge_documents(known: Sequence[Document], added: Sequence[Document]) -> list[Document]:
    """Return known documents with added ones, which replace those with their id."""
    found = {document_id(document): document for document in known}
    return list((found | {document_id(document): document for document in added}).values())


def _storable(text: str) -> str:
    """Replace what SQLite cannot store, keeping the length and so the offsets."""
    return _UNSTORABLE.sub("\ufffd", text)


def clean_document(document: Document) -> Document:
    """Copy a document with text and metadata that SQLite and JSON can store."""
    given = document.metadata.items()
    metadata = {_storable(str(key)): _clean_value(value) for key, value in given if value is not None}
    # What is read as a part of the text.
    metadata |= {key: str(metadata[key] or "") for key in ("title", "heading") if key in metadata}
    if metadata.get("language") not in LANGUAGES:
        metadata.pop("language", None)
    kept = {
        key: value
        for key, value in metadata.items()
        if not (isinstance(value, float) and not math.isfinite(value))
    }
    return Document(
        id=_storable(document.id) if document.id else None,
        page_content=_storable(document.page_content),
        metadata=kept,
    )


def _page(document: Document) -> dict[str, int]:
    """The page of a document, from 1."""
    metadata = document.metadata
    if isinstance(page := metadata.get("page"), int):
        # LangChain's loaders of PDFs count from 0.
        return {"page": page + 1} if {"page_label", "total_pages"} & metadata.keys() else {}
    number = metadata.get("page_number")
    return {"page": number} if isinstance(number, int) else {}


def _clean_value(value: Any) -> Any:
    """Return a value as it comes back from JSON."""
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, bool | int | float):
        return value
    return json.loads(_storable(json.dumps(value, default=str)))


def _join(documents: Sequence[Document]) -> tuple[str, list[int]]:
    """Return the text of documents together, and the offset of each in it."""
    pieces, starts, length = list[str](), list[int](), 0
    for number, document in enumerate(documents):
        separator = SEPARATOR if number else _gap_before(document)
        piece, start = separator + document.page_content, length + len(separator)
        before = documents[number - 1]
        if number and (found := _start_in_original(before, starts[-1], document)) is not None:
            gap, shared = found - length, before.page_content[found - starts[-1] :]
            if 0 <= gap <= LARGEST_GAP:
                piece, start = "\n" * gap + document.page_content, found
            elif len(shared) == -gap and document.page_content.startswith(shared):
                piece, start = document.page_content[len(shared) :], found
        pieces.append(piece)
        starts.append(start)
        length += len(piece)
    return "".join(pieces), starts


def _gap_before(document: Document) -> str:
    """Return what stands for the text before the first piece."""
    first = document.metadata.get(START_INDEX)
    return "\n" * first if isinstance(first, int) and 0 < first <= LARGEST_GAP else ""


def _start_in_original(before: Document, start: int, document: Document) -> int | None:
    """Return where a piece begins if it is of the same document as the one before, which begins at ``start``."""
    one, two = before.metadata.get(START_INDEX), document.metadata.get(START_INDEX)
    if not (isinstance(one, int) and isinstance(two, int) and one <= two):
        return None
    same = before.metadata | {START_INDEX: two} == document.metadata
    return start + two - one if same else None
