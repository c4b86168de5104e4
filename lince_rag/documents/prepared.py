"""What ingestion writes: a document with its chunks, their terms, and the parts that it was given in."""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from langchain_core.documents import Document

from lince_rag.documents.chunking import DEFAULT_SETTINGS, ChunkingSettings, chunk_document
from lince_rag.text.language import detect_language
from lince_rag.text.sentences import TermLines
from lince_rag.text.words import terms_line


@dataclass(frozen=True)
class Part:
    """One LangChain document of a source: [start, end) of the source's text, and its metadata."""

    id: str
    start: int
    end: int
    metadata: dict[str, Any]
    # Whether the application gave the id.
    named: bool = False


@dataclass(frozen=True)
class PreparedDocument:
    """A document that is ready to be written, with its chunks, which have ids and offsets."""

    # The whole text, with source, title and language in its metadata.
    document: Document
    chunks: Sequence[Document]
    # What the lexical index holds of each chunk.
    terms: Sequence[str]
    # The packed ``TermLines`` of each chunk.
    lines: Sequence[bytes]
    # The LangChain documents that it was made of, if it was.
    parts: Sequence[Part] = ()
    # The vectors of the chunks, if they are known.
    vectors: Sequence[Any] = ()

    @classmethod
    def of(cls, document: Document, chunks: Sequence[Document], parts: Sequence[Part] = ()) -> Self:
        """Find the terms of a document's chunks."""
        found = list(map(analyze_chunk, chunks))
        return cls(document, chunks, [terms for _, terms in found], [lines.pack() for lines, _ in found], parts)

    @property
    def source(self) -> str:
        """The document's name."""
        return str(self.document.metadata["source"])

    @property
    def content_hash(self) -> str:
        """The digest of what was read, which tells whether it has changed."""
        return str(self.document.metadata["content_hash"])

    def to_json(self) -> dict[str, Any]:
        """Return the values from which ``from_json`` makes an equal document, without sections and parts."""
        used = {"sections", "kinds"}
        metadata = {key: value for key, value in self.document.metadata.items() if key not in used}
        return {
            "text": self.document.page_content,
            "metadata": metadata,
            "chunks": [(chunk.id, chunk.metadata) for chunk in self.chunks],
            "terms": self.terms,
            "lines": [b64encode(packed).decode() for packed in self.lines],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Make a document from the values of ``to_json``."""
        text = values["text"]
        chunks = [
            Document(id=id_, page_content=text[metadata["start"] : metadata["end"]], metadata=metadata)
            for id_, metadata in values["chunks"]
        ]
        document = Document(page_content=text, metadata=values["metadata"])
        return cls(document, chunks, values["terms"], [b64decode(packed) for packed in values["lines"]])


def prepare(document: Document, settings: ChunkingSettings = DEFAULT_SETTINGS) -> PreparedDocument:
    """Cut a document into chunks and find their terms."""
    return PreparedDocument.of(document, chunk_document(document, settings))


def searchable_text(chunk: Document) -> str:
    """Return the text that is indexed for a chunk: its headings, then its text."""
    heading = chunk.metadata.get("heading")
    return f"{heading}\n{chunk.page_content}" if heading else chunk.page_content


def index_terms(chunk: Document) -> str:
    """Return the terms of a chunk's searchable text, with spaces between them."""
    return analyze_chunk(chunk)[1]


def term_lines(chunk: Document) -> TermLines:
    """Return the terms of a chunk's sentences."""
    return analyze_chunk(chunk)[0]


def analyze_chunk(chunk: Document) -> tuple[TermLines, str]:
    """Return the terms of a chunk's sentences, and the terms of its searchable text with spaces between them."""
    text = chunk.page_content
    language = chunk.metadata.get("language") or detect_language(text)
    lines, terms = TermLines.with_terms(text, language)
    heading = chunk.metadata.get("heading")
    return lines, f"{terms_line(heading, language)} {terms}" if heading else terms
