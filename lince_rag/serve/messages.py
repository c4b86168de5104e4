"""What the HTTP API takes and returns."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from pydantic import BaseModel, ConfigDict, Field

from lince_rag.chain.answer import Answer
from lince_rag.serve.collections import Collection, PublicDocument, document_id

QUESTION_CHARACTERS: Final = 4_000
TURN_CHARACTERS: Final = 20_000
MOST_TURNS: Final = 40
MOST_PASSAGES: Final = 20
MOST_FILTERED: Final = 200

_COLLECTION: Final = Field(default=None, max_length=64, description="May be left out if there is only one.")


class Input(BaseModel):
    """What clients send: an unknown key is an error, not a wish that is silently ignored."""

    model_config = ConfigDict(extra="forbid")


class Turn(Input):
    """A message of the conversation before a question."""

    role: Literal["user", "assistant"]
    content: str = Field(max_length=TURN_CHARACTERS)


class SearchRequest(Input):
    """A question whose passages are looked for."""

    question: str = Field(min_length=1, max_length=QUESTION_CHARACTERS, pattern=r"\S")
    collection: str | None = _COLLECTION
    documents: list[str] = Field(default=[], max_length=MOST_FILTERED, description="Ids; none stand for all.")
    k: int | None = Field(default=None, ge=1, le=MOST_PASSAGES, description="Number of passages.")


class AskRequest(SearchRequest):
    """A question that is to be answered."""

    history: list[Turn] = Field(default=[], max_length=MOST_TURNS, description="The conversation, oldest first.")
    stream: bool = Field(default=False, description="Server-sent events: text, then citations, then done.")


class VoteRequest(Input):
    """What a reader thinks of an answer."""

    question: str = Field(min_length=1, max_length=QUESTION_CHARACTERS)
    collection: str | None = _COLLECTION
    vote: Literal[1, -1]
    history: list[Turn] = Field(default=[], max_length=MOST_TURNS)
    answer: str = Field(default="", max_length=TURN_CHARACTERS)
    quote: str = Field(default="", max_length=TURN_CHARACTERS, description="What was cited first.")
    document: str = Field(default="", max_length=64, description="The id of the document of that citation.")


class CitationOut(BaseModel):
    """A span of a document that supports one sentence of an answer."""

    document: str = Field(description="Id of the document.")
    name: str
    title: str
    page: int | None = Field(description="From 1; null if the document has no pages.")
    heading: str = Field(description="Headings above it, outermost first.")
    start: int = Field(description="Character offset in the document's text.")
    end: int
    quote: str
    answer_start: int = Field(description="Character offset, in the answer, of the sentence that it supports.")
    answer_end: int


class AnswerOut(BaseModel):
    """An answer and the passages that it is based on."""

    text: str
    short: str | None = Field(description="The span of the text that answers; null if there is none.")
    language: str
    abstained: bool = Field(description="Whether the documents do not hold the answer.")
    doubtful: bool = Field(description="Whether it may be wrong: a confidence below 0.4.")
    grounded: bool = Field(description="Whether every sentence has a citation.")
    confidence: float | None = Field(description="Calibrated chance that the documents hold the answer.")
    standalone: str = Field(description="The question that was searched for.")
    citations: list[CitationOut]
    usage: dict[str, Any] | None = Field(description="Tokens of the prompt and of the answer.")


class PassageOut(BaseModel):
    """A passage of a document."""

    document: str
    name: str
    title: str
    page: int | None
    heading: str
    start: int
    end: int
    text: str
    score: float = Field(description="Comparable within one result.")
    relevance: float | None = Field(description="How well its words match the question, 0 to 1.")
    also_in: list[str] = Field(description="Names of other documents with the same text.")


class DocumentOut(BaseModel):
    """A document of a collection."""

    id: str
    name: str
    title: str
    language: str
    passages: int
    characters: int
    has_file: bool = Field(description="Whether its file is there, to be read again or shown.")


class DocumentsOut(BaseModel):
    """Some of the documents of a collection, by name."""

    documents: list[DocumentOut]
    total: int
    offset: int


class TextOut(BaseModel):
    """A part of the text of a document."""

    id: str
    name: str
    title: str
    language: str
    start: int
    end: int
    characters: int = Field(description="Of the whole text.")
    text: str


class JobOut(BaseModel):
    """An ingestion in the background."""

    id: str
    collection: str
    status: str = Field(description="queued, running, done or failed.")
    done: int
    total: int
    report: dict[str, Any] = Field(description="What was added, changed and failed, by name.")
    error: str


class CollectionOut(BaseModel):
    """A collection."""

    name: str
    documents: int
    passages: int
    languages: dict[str, int]
    waiting: int = Field(description="Passages that are found by their words only, so far.")
    model: str
    right: str = Field(description="What this key may do: read or write.")


def history_of(turns: list[Turn]) -> list[BaseMessage]:
    """Return the messages of a conversation."""
    return [(HumanMessage if turn.role == "user" else AIMessage)(turn.content) for turn in turns]


def public_answer(collection: Collection, answer: Answer) -> AnswerOut:
    """Return an answer for clients."""
    known = collection.by_source
    citations = []
    for each in answer.citations:
        named = _named(known, each.source, each.title)
        own = each.model_dump(include={"page", "heading", "start", "end", "quote", "answer_start", "answer_end"})
        citations.append(CitationOut(**named, **own))
    same = {"text", "short", "language", "abstained", "grounded", "confidence", "standalone"}
    usage = dict(answer.usage) if answer.usage else None
    return AnswerOut(**answer.model_dump(include=same), doubtful=answer.doubtful, citations=citations, usage=usage)


def public_passage(collection: Collection, found: Document) -> PassageOut:
    """Return a passage for clients."""
    known, metadata = collection.by_source, found.metadata
    start = int(metadata.get("start", 0))
    return PassageOut(
        **_named(known, str(metadata["source"]), str(metadata.get("title") or "")),
        page=metadata.get("page"),
        heading=str(metadata.get("heading") or ""),
        start=start,
        end=int(metadata.get("end", start + len(found.page_content))),
        text=found.page_content,
        score=float(metadata.get("score") or 0.0),
        relevance=metadata.get("relevance"),
        also_in=[_named(known, source, "")["name"] for source in metadata.get("also_in", [])],
    )


def public_document(collection: Collection, document: PublicDocument) -> DocumentOut:
    """Return a document for clients."""
    same = {
        name: getattr(document, name) for name in ("id", "name", "title", "language", "passages", "characters")
    }
    return DocumentOut(**same, has_file=collection.file(document) is not None)


def _named(known: Mapping[str, PublicDocument], source: str, title: str) -> dict[str, Any]:
    """Return what clients call a document; one that was just deleted has no name any more."""
    document = known.get(source)
    name = document.name if document else ""
    return {"document": document_id(source), "name": name, "title": name if title == source else title}
