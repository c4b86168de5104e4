"""Context packing: the question, its history and the retrieved chunks, fitted into a model's window."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.tools import BaseTool

from lince_rag.chain.best_of import BestOf
from lince_rag.chain.bindings import AnyModel, strip_bindings
from lince_rag.chain.question import Request
from lince_rag.engines.base import DEFAULT_ANSWER_TOKENS
from lince_rag.models.chat_model import ChatLince
from lince_rag.models.messages import as_template_documents
from lince_rag.prompting.templates import Prompt
from lince_rag.text.evidence import MINIMUM_CONFIDENCE, Evidence
from lince_rag.text.language import detect_language, wording
from lince_rag.text.sentences import sentence_spans

# Tokens of context for a model whose window is not known.
DEFAULT_CONTEXT_TOKENS: Final = 1500

# Tokens of the number, the line breaks and the blank line that a template puts around a document's text.
TOKENS_AROUND: Final = 8


@dataclass(frozen=True)
class PackedContext:
    """What fits into a prompt, and what does not."""

    # The chunks as they go into the prompt, best first; the last one may be shortened.
    documents: list[Document] = field(default_factory=list)
    # The full text of the chunk that was cut at a sentence end, if one was.
    shortened: list[Document] = field(default_factory=list)
    omitted: list[Document] = field(default_factory=list)


@dataclass(frozen=True)
class Prepared:
    """The model's call: messages and keywords, with the packed chunks and the number of messages left out."""

    messages: list[BaseMessage]
    options: dict[str, Any]
    packed: PackedContext
    omitted_turns: int


def native_model(llm: AnyModel) -> ChatLince | None:
    """Return the ``ChatLince`` that a chat model is, or that a ``BestOf`` asks: its window is known."""
    llm = strip_bindings(llm)
    inner = llm.llm if isinstance(llm, BestOf) else llm
    return inner if isinstance(inner, ChatLince) else None


def reads_documents(llm: AnyModel) -> bool:
    """Return whether a chat model puts the ``documents`` and the ``language`` of its call into its prompt."""
    return native_model(llm) is not None


def only_quotes(llm: AnyModel) -> bool:
    """Return whether a chat model only quotes; to know that may take reading its checkpoint."""
    return bool(getattr(llm, "quotes", False))


def prepare(
    llm: AnyModel,
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

    ``following`` holds the tool calls after the question and their results. With ``max_context_tokens=None`` the
    chunks may take all that the window leaves.
    """
    native = native_model(llm)
    if not only_quotes(llm):
        documents = order_by_evidence(request, documents)
    abstention = wording("abstention", request.language)
    basic = wording("answer_instructions", request.language, abstention=abstention)
    instructions = SystemMessage("\n".join(filter(None, (basic, further_instructions))))
    # A model that only quotes is based on the words of the question; others read the conversation itself.
    asked = request.standalone if only_quotes(llm) else request.question
    question = HumanMessage("\n".join(filter(None, (asked, request.reminder))))
    history = _drop_leading_replies(request.history)
    prompt: Prompt | None = None
    if native is None:
        packed = pack_context(documents, max_context_tokens or DEFAULT_CONTEXT_TOKENS, _approximate_tokens)
    else:
        rest = [question, *following]
        history, packed, prompt = _fit(native, instructions, history, rest, documents, max_context_tokens, tools)
    messages: list[BaseMessage] = [instructions, *history, question, *following]
    options: dict[str, Any] = {}
    if native is not None:
        options = {"documents": packed.documents, "language": request.language}
        if not tools and not following:
            # The model need not render and count it again.
            options["prompt"] = prompt
        if minimum_confidence != MINIMUM_CONFIDENCE:
            options["minimum_confidence"] = minimum_confidence
    elif following:
        # The results of tools contain the documents.
        packed = PackedContext(list(documents))
    else:
        messages[-1] = HumanMessage(_with_context(str(question.text), packed.documents))
        if isinstance(llm, BestOf):
            # To rank the candidates: the model itself reads the documents in the message.
            options = {"documents": packed.documents, "language": request.language}
    return Prepared(messages, options, packed, len(request.history) - len(history))


def order_by_evidence(request: Request, documents: Sequence[Document]) -> list[Document]:
    """Put the chunks first that are the likeliest to hold the answer, so that a model reads it first.

    The chunk with the answer was the first of five for .45 to .50 of the questions of three sets, and for .40 to
    .45 in the order of retrieval (hashed embedder); for XQuAD-es and FaQuAD .01 to .02 less.
    """
    evidence = Evidence(request.standalone, request.language, as_template_documents(documents))
    ranked = sorted(zip(evidence.document_chances, documents, strict=True), key=lambda each: -each[0])
    return [document for _, document in ranked]


def pack_context(documents: Sequence[Document], budget: int, count_tokens: Callable[[str], int]) -> PackedContext:
    """Choose the chunks that go into a prompt, within a budget of tokens.

    Chunks are taken in order while they fit. The first that does not fit is cut after the last sentence that does;
    the ones after it are left out. The result lists both.
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
    """Cut a chunk after the last sentence that fits; ``None`` if not even the first does."""
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


def _drop_leading_replies(history: list[BaseMessage]) -> list[BaseMessage]:
    """Start the history at its first human message: prompt formats begin with one."""
    first = next((at for at, turn in enumerate(history) if isinstance(turn, HumanMessage)), len(history))
    return history[first:]


def _approximate_tokens(text: str) -> int:
    return count_tokens_approximately([HumanMessage(text)])


def _fit(
    native: ChatLince,
    instructions: BaseMessage,
    history: list[BaseMessage],
    rest: Sequence[BaseMessage],
    documents: Sequence[Document],
    max_context_tokens: int | None,
    tools: Sequence[BaseTool],
) -> tuple[list[BaseMessage], PackedContext, Prompt]:
    """Return the history, the chunks and the measured prompt that fit the window.

    If everything fits, the prompt is rendered and counted once. Otherwise the oldest messages go until the history
    takes at most half of what the window leaves for it and the chunks together; then the chunks are packed, and
    packed tighter as long as the whole prompt is too long.
    """
    limit = native.context_window - max(native.answer_tokens, DEFAULT_ANSWER_TOKENS if tools else 0)

    def measure(history: list[BaseMessage], chunks: Sequence[Document]) -> tuple[Prompt, int]:
        prompt = native.measure([instructions, *history, *rest], chunks, tools=tools)
        return prompt, prompt.length or 0

    def budget(history: list[BaseMessage]) -> int:
        left = limit - measure(history, ())[1]
        return left if max_context_tokens is None else min(left, max_context_tokens)

    packed = PackedContext(list(documents))
    if max_context_tokens is not None:
        packed = pack_context(documents, max_context_tokens, native.get_num_tokens)
    prompt, length = measure(history, packed.documents)
    if length <= limit:
        return history, packed, prompt
    half = budget([]) / 2 if history else 0
    while history and budget(history) < half:
        history = _drop_leading_replies(history[1:])
    left = budget(history)
    while True:
        packed = pack_context(documents, left, native.get_num_tokens)
        prompt, length = measure(history, packed.documents)
        if length <= limit or not packed.documents:
            return history, packed, prompt
        left -= length - limit


def _with_context(question: str, documents: Sequence[Document]) -> str:
    numbered = [
        f"[{number}] {document.metadata.get('title') or ''}\n{document.page_content}"
        for number, document in enumerate(documents, 1)
    ]
    return "\n\n".join([*numbered, question])
