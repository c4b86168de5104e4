"""A question, its history and the retrieved chunks, fitted into a model's window."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeGuard

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool

from lince_rag.chain.candidates import BestOf
from lince_rag.chain.context import PackedContext, pack_context
from lince_rag.chain.requests import Request
from lince_rag.engines.generation.sampling import DEFAULT_ANSWER_TOKENS
from lince_rag.text.confidence import EVEN_CONFIDENCE
from lince_rag.text.wording import wording

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
