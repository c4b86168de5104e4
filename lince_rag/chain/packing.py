"""Context packing: the question, its history and the retrieved chunks, fitted into a model's window."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeGuard

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool

from lince_rag.chain.best_of import BestOf
from lince_rag.chain.question import Request
from lince_rag.engines.base import DEFAULT_ANSWER_TOKENS
from lince_rag.text.confidence import EVEN_CONFIDENCE
from lince_rag.text.language import detect_language
from lince_rag.text.sentences import sentence_spans
from lince_rag.text.wording import wording

# Tokens of the number, the line breaks and the blank line that a template puts around a document's text.
TOKENS_AROUND: Final = 8


@dataclass(frozen=True)
class PackedContext:
    """What fits into a prompt, and what does not.

    Attributes:
        documents: The chunks as they go into the prompt, best first; the last one may be shortened.
        shortened: Chunks that were cut at a sentence end, whole as they were.
        omitted: Chunks that did not fit at all.
    """

    documents: list[Document] = field(default_factory=list)
    shortened: list[Document] = field(default_factory=list)
    omitted: list[Document] = field(default_factory=list)


def pack_context(documents: Sequence[Document], budget: int, count_tokens: Callable[[str], int]) -> PackedContext:
    """Choose the chunks that go into a prompt.

    Chunks are taken in order while they fit. The first that does not fit is cut after the last sentence that
    does; those behind it are left out. Nothing is lost silently: the result lists both.

    Args:
        documents: Retrieved chunks, best first.
        budget: Tokens that the context may take.
        count_tokens: Counts the tokens of a text the way the model does.

    Returns:
        The packed context.
    """
    packed = PackedContext()
    left = budget
    for position, document in enumerate(documents):
        around = TOKENS_AROUND + count_tokens(str(document.metadata.get("title") or ""))
        needed = around + count_tokens(document.page_content)
        if needed <= left:
            packed.documents.append(document)
            left -= needed
            continue
        rest = list(documents[position:])
        if (shorter := _shorten(document, left - around, count_tokens)) is not None:
            packed.documents.append(shorter)
            packed.shortened.append(rest.pop(0))
        packed.omitted.extend(rest)
        break
    return packed


def _shorten(document: Document, budget: int, count_tokens: Callable[[str], int]) -> Document | None:
    """Cut a chunk after the last sentence that fits; ``None`` when not even the first does."""
    text = document.page_content
    language = document.metadata.get("language") or detect_language(text)
    ends = [end for _, end in sentence_spans(text, language)]
    fitting, too_long = 0, len(ends)
    # Binary search: the token count grows with the text.
    while fitting < too_long:
        middle = (fitting + too_long + 1) // 2
        if count_tokens(text[: ends[middle - 1]]) <= budget:
            fitting = middle
        else:
            too_long = middle - 1
    if not fitting:
        return None
    cut = text[: ends[fitting - 1]]
    metadata: Mapping[str, Any] = document.metadata
    if "start" in metadata:
        metadata = {**metadata, "end": metadata["start"] + len(cut)}
    return document.model_copy(update={"page_content": cut, "metadata": metadata})


# Tokens of context for a model that does not say how long its window is.
DEFAULT_CONTEXT_TOKENS: Final = 1500


class DocumentReader(Protocol):
    """A chat model that takes ``documents`` and ``language`` in its call, and knows its window: ``ChatLince``."""

    @property
    def context_window(self) -> int:
        """Tokens of prompt and answer together."""

    @property
    def answer_tokens(self) -> int:
        """Tokens of answer at most."""

    def count_prompt_tokens(
        self, messages: Sequence[BaseMessage], documents: Sequence[Document] = (), **answer_format: Any
    ) -> int:
        """Count the tokens of a whole prompt."""

    def get_num_tokens(self, text: str) -> int:
        """Count the tokens of a text."""


def reads_documents(llm: object) -> TypeGuard[DocumentReader]:
    """Tell whether a chat model is a ``DocumentReader``: a ``BestOf`` is one if the model in it is."""
    return getattr(llm, "context_window", None) is not None


@dataclass(frozen=True)
class Prepared:
    """What the model gets, and what was left out.

    Attributes:
        messages: The instructions, the history and the question.
        options: Keywords of the call.
        packed: The chunks in the prompt, and those that did not fit.
        omitted_turns: Messages of the history that did not fit.
    """

    messages: list[BaseMessage]
    options: dict[str, Any]
    packed: PackedContext
    omitted_turns: int


def prepare(
    llm: Runnable[Any, Any],
    request: Request,
    documents: Sequence[Document],
    *,
    max_context_tokens: int | None,
    minimum_confidence: float,
    following: Sequence[BaseMessage] = (),
    further_instructions: str = "",
    tools: Sequence[BaseTool] = (),
) -> Prepared:
    """Fit history and chunks into the window, and write the messages.

    Args:
        llm: The model that will answer.
        request: The question.
        documents: The retrieved chunks, best first.
        max_context_tokens: Tokens that the chunks may take; ``None`` takes what the window leaves.
        minimum_confidence: Support below which an engine that measures it abstains.
        following: What came after the question: calls of tools and their results.
        further_instructions: What to tell the model besides how to answer.
        tools: The tools that the model will be told of.

    Returns:
        What the model gets.
    """
    abstention = wording("abstention", request.language)
    told = wording("answer_instructions", request.language, abstention=abstention)
    instructions = SystemMessage("\n".join(filter(None, (told, further_instructions))))
    # A model that only quotes goes by the words of the question; others read the conversation itself.
    asked = request.standalone if getattr(llm, "quotes", False) else request.question
    question = HumanMessage("\n".join(filter(None, (asked, request.reminder))))
    history = _whole_turns(request.history)
    while True:
        messages: list[BaseMessage] = [instructions, *history, question, *following]
        budget = _budget(llm, messages, max_context_tokens, tools)
        # A history may take half of what is left for it and the documents together.
        without = [instructions, question, *following]
        if not history or budget >= _budget(llm, without, max_context_tokens, tools) / 2:
            break
        history = _whole_turns(history[1:])
    packed = _pack(llm, messages, documents, budget, tools)
    options: dict[str, Any] = {}
    if reads_documents(llm):
        options = {"documents": packed.documents, "language": request.language}
        if minimum_confidence != EVEN_CONFIDENCE:
            options["minimum_confidence"] = minimum_confidence
    elif following:
        # The results of tools hold the documents.
        packed = PackedContext(list(documents))
    else:
        messages[-1] = HumanMessage(_with_context(str(question.text), packed.documents))
        if isinstance(llm, BestOf):
            # Not for the model in it, which reads them above, but to rank what it says.
            options = {"documents": packed.documents, "language": request.language}
    return Prepared(messages, options, packed, len(request.history) - len(history))


def _whole_turns(history: list[BaseMessage]) -> list[BaseMessage]:
    """Drop a first message that is not a person's: formats begin with a person."""
    first = next((at for at, turn in enumerate(history) if isinstance(turn, HumanMessage)), len(history))
    return history[first:]


def _budget(
    llm: Runnable[Any, Any], messages: list[BaseMessage], max_context_tokens: int | None, tools: Sequence[BaseTool]
) -> int:
    """Tokens left for documents."""
    if not reads_documents(llm):
        return max_context_tokens or DEFAULT_CONTEXT_TOKENS
    left = _room(llm, tools) - _length(llm, messages, (), tools)
    return left if max_context_tokens is None else min(left, max_context_tokens)


def _room(llm: DocumentReader, tools: Sequence[BaseTool]) -> int:
    """Tokens of the window that the answer does not take."""
    return llm.context_window - max(llm.answer_tokens, DEFAULT_ANSWER_TOKENS if tools else 0)


def _length(
    llm: DocumentReader,
    messages: list[BaseMessage],
    documents: Sequence[Document],
    tools: Sequence[BaseTool],
) -> int:
    return llm.count_prompt_tokens(messages, documents, **({"tools": tools} if tools else {}))


def _pack(
    llm: Runnable[Any, Any],
    messages: list[BaseMessage],
    documents: Sequence[Document],
    budget: int,
    tools: Sequence[BaseTool],
) -> PackedContext:
    """Pack the documents; the whole prompt is measured, and packed tighter while it is too long."""
    if not reads_documents(llm):
        return pack_context(documents, budget, lambda text: count_tokens_approximately([HumanMessage(text)]))
    room = _room(llm, tools)
    while True:
        packed = pack_context(documents, budget, llm.get_num_tokens)
        length = _length(llm, messages, packed.documents, tools)
        if length <= room or not packed.documents:
            return packed
        budget -= length - room


def _with_context(question: str, documents: Sequence[Document]) -> str:
    numbered = [
        f"[{number}] {document.metadata.get('title') or ''}\n{document.page_content}"
        for number, document in enumerate(documents, 1)
    ]
    return "\n\n".join([*numbered, question])
