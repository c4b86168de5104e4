"""The question side as one LangChain Runnable: question → retrieve → pack → generate → cite → ``Answer``."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, BaseMessageChunk, HumanMessage, SystemMessage
from langchain_core.messages.utils import convert_to_messages, count_tokens_approximately
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import patch_config
from langchain_core.runnables.utils import add

from lince_rag.answers import Answer, is_abstention
from lince_rag.chat_models import ChatLince
from lince_rag.citations import attribute
from lince_rag.context import PackedContext, pack_context
from lince_rag.errors import ConfigurationError
from lince_rag.language import DEFAULT_LANGUAGE, LANGUAGES, Language, detect_language, message
from lince_rag.templates import load_answer_instructions

# Tokens of context for a model that does not say how long its window is.
DEFAULT_CONTEXT_TOKENS: Final = 1500

RagInput = str | Mapping[str, Any]


@dataclass(frozen=True)
class _Request:
    """One question on its way to the model."""

    question: str
    language: Language
    history: list[BaseMessage]


@dataclass(frozen=True)
class _Prepared:
    """What the model gets, and what was left out."""

    messages: list[BaseMessage]
    options: dict[str, Any]
    packed: PackedContext
    omitted_turns: int


class RagChain(Runnable[RagInput, Any]):
    """Made by ``create_rag_chain``, which says what it takes and gives."""

    def __init__(
        self,
        llm: BaseChatModel,
        retriever: BaseRetriever,
        *,
        language: Language | None,
        max_context_tokens: int | None,
    ) -> None:
        self.llm = llm
        self.retriever = retriever
        self.language = language
        self.max_context_tokens = max_context_tokens

    def invoke(self, input: RagInput, config: RunnableConfig | None = None, **kwargs: Any) -> Answer:  # noqa: A002
        """Answer a question."""
        answer: Answer = self._call_with_config(self._invoke, input, config, **kwargs)
        return answer

    async def ainvoke(self, input: RagInput, config: RunnableConfig | None = None, **kwargs: Any) -> Answer:  # noqa: A002
        """Answer a question."""
        answer: Answer = await self._acall_with_config(self._ainvoke, input, config, **kwargs)
        return answer

    def stream(
        self,
        input: RagInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[str | Answer]:
        """Yield the text of the answer as it is made, then the ``Answer``."""
        yield from self._transform_stream_with_config(iter([input]), self._stream_steps, config, **kwargs)

    async def astream(
        self,
        input: RagInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[str | Answer]:
        """Yield the text of the answer as it is made, then the ``Answer``."""

        async def inputs() -> AsyncIterator[RagInput]:
            yield input

        steps = self._atransform_stream_with_config(inputs(), self._astream_steps, config, **kwargs)
        async for step in steps:
            yield step

    def _invoke(self, given: RagInput, run_manager: Any, config: RunnableConfig) -> Answer:
        request = self._read(given)
        child = patch_config(config, callbacks=run_manager.get_child())
        prepared = self._prepare(request, self.retriever.invoke(request.question, child))
        reply = self.llm.invoke(prepared.messages, child, **prepared.options)
        return self._finish(request, prepared, reply)

    async def _ainvoke(self, given: RagInput, run_manager: Any, config: RunnableConfig) -> Answer:
        request = self._read(given)
        child = patch_config(config, callbacks=run_manager.get_child())
        prepared = self._prepare(request, await self.retriever.ainvoke(request.question, child))
        reply = await self.llm.ainvoke(prepared.messages, child, **prepared.options)
        return self._finish(request, prepared, reply)

    def _stream_steps(
        self, inputs: Iterator[RagInput], run_manager: Any, config: RunnableConfig
    ) -> Iterator[str | Answer]:
        request = self._read(next(inputs))
        child = patch_config(config, callbacks=run_manager.get_child())
        prepared = self._prepare(request, self.retriever.invoke(request.question, child))
        chunks: list[BaseMessageChunk] = []
        for chunk in self.llm.stream(prepared.messages, child, **prepared.options):
            chunks.append(cast(BaseMessageChunk, chunk))
            if text := str(chunk.text):
                yield text
        yield self._finish(request, prepared, add(chunks) or AIMessage(""))

    async def _astream_steps(
        self, inputs: AsyncIterator[RagInput], run_manager: Any, config: RunnableConfig
    ) -> AsyncIterator[str | Answer]:
        request = self._read(await anext(inputs))
        child = patch_config(config, callbacks=run_manager.get_child())
        prepared = self._prepare(request, await self.retriever.ainvoke(request.question, child))
        chunks: list[BaseMessageChunk] = []
        async for chunk in self.llm.astream(prepared.messages, child, **prepared.options):
            chunks.append(cast(BaseMessageChunk, chunk))
            if text := str(chunk.text):
                yield text
        yield self._finish(request, prepared, add(chunks) or AIMessage(""))

    def _read(self, given: RagInput) -> _Request:
        """Check the input and settle the language."""
        if isinstance(given, str):
            given = {"question": given}
        question = given.get("question")
        if not isinstance(question, str) or not question.strip():
            raise ConfigurationError(
                f"{question!r} is not a question.", hint="Give a text, or a dict with 'question' and 'history'."
            )
        if unknown := given.keys() - {"question", "history"}:
            raise ConfigurationError(
                f"The input has unknown keys: {', '.join(sorted(unknown))}.", hint="It takes question and history."
            )
        history = convert_to_messages(given.get("history") or [])
        earlier = [str(turn.text) for turn in history if isinstance(turn, HumanMessage)]
        default = detect_language(" ".join(earlier)) if earlier else DEFAULT_LANGUAGE
        return _Request(question, self.language or detect_language(question, default), history)

    def _prepare(self, request: _Request, documents: Sequence[Document]) -> _Prepared:
        """Fit history and chunks into the window, and write the messages."""
        instructions = load_answer_instructions(request.language, message("abstention", request.language))
        history = _whole_turns(request.history)
        while True:
            messages = [SystemMessage(instructions), *history, HumanMessage(request.question)]
            budget = self._budget(messages)
            # A history may take half of what is left for it and the documents together.
            if not history or budget >= self._budget([messages[0], messages[-1]]) / 2:
                break
            history = history[2:]
        packed = self._pack(messages, documents, budget)
        options: dict[str, Any] = {}
        if isinstance(self.llm, ChatLince):
            options = {"documents": packed.documents, "language": request.language}
        else:
            messages[-1] = HumanMessage(_with_context(request.question, packed.documents))
        return _Prepared(messages, options, packed, len(request.history) - len(history))

    def _budget(self, messages: list[BaseMessage]) -> int:
        """Tokens left for documents."""
        if not isinstance(self.llm, ChatLince):
            return self.max_context_tokens or DEFAULT_CONTEXT_TOKENS
        used = self.llm.count_prompt_tokens(messages)
        left = self.llm.context_window - self.llm.answer_tokens - used
        return left if self.max_context_tokens is None else min(left, self.max_context_tokens)

    def _pack(self, messages: list[BaseMessage], documents: Sequence[Document], budget: int) -> PackedContext:
        """Pack the documents; the whole prompt is measured, and packed tighter while it is too long."""
        if not isinstance(self.llm, ChatLince):
            return pack_context(documents, budget, lambda text: count_tokens_approximately([HumanMessage(text)]))
        room = self.llm.context_window - self.llm.answer_tokens
        while True:
            packed = pack_context(documents, budget, self.llm.get_num_tokens)
            length = self.llm.count_prompt_tokens(messages, packed.documents)
            if length <= room or not packed.documents:
                return packed
            budget -= length - room

    def _finish(self, request: _Request, prepared: _Prepared, reply: BaseMessage) -> Answer:
        """Cite what was said."""
        text = str(reply.text).strip()
        abstained = is_abstention(text) or bool(reply.response_metadata.get("abstained"))
        citations, grounded = (
            ([], False) if abstained else attribute(text, prepared.packed.documents, request.language)
        )
        return Answer(
            text=text,
            language=request.language,
            citations=citations,
            documents=prepared.packed.documents,
            grounded=grounded,
            abstained=abstained,
            shortened=prepared.packed.shortened,
            omitted=prepared.packed.omitted,
            omitted_turns=prepared.omitted_turns,
            usage=reply.usage_metadata if isinstance(reply, AIMessage) else None,
        )


def create_rag_chain(
    llm: BaseChatModel,
    retriever: BaseRetriever,
    *,
    language: Language | None = None,
    max_context_tokens: int | None = None,
) -> RagChain:
    """Make the chain that answers questions about the documents behind a retriever.

    The question's language decides the language of the instructions and of the abstention. The chunks are
    packed into the model's window; the answer is attributed to them sentence by sentence.

    Args:
        llm: A ``ChatLince``, which gets the chunks in its native Contexto or Entrada, or any other LangChain
            chat model, which gets them in the human message.
        retriever: What finds the chunks: a ``HybridRetriever`` or any other.
        language: Answer in this language whatever the question's.
        max_context_tokens: Tokens that the chunks may take; ``None`` takes what the window leaves
            (for other models 1,500).

    Returns:
        A Runnable from a question, or ``{"question": …, "history": [messages]}``, to an ``Answer``. Its
        ``stream`` yields pieces of text and last the ``Answer``.

    Raises:
        ConfigurationError: ``language`` is not one of es, pt and en.

    Example:
        >>> chain = create_rag_chain(ChatLince(), index.as_retriever(k=5))
        >>> answer = chain.invoke("¿Cuándo vence el contrato?")
        >>> answer.text, answer.citations[0].source
    """
    if language is not None and language not in LANGUAGES:
        raise ConfigurationError(f"language={language!r} is not one of {', '.join(LANGUAGES)}.")
    return RagChain(llm, retriever, language=language, max_context_tokens=max_context_tokens)


def _whole_turns(history: list[BaseMessage]) -> list[BaseMessage]:
    """Drop a first message that is not a person's: formats begin with a person."""
    first = next((at for at, turn in enumerate(history) if isinstance(turn, HumanMessage)), len(history))
    return history[first:]


def _with_context(question: str, documents: Sequence[Document]) -> str:
    numbered = [
        f"[{number}] {document.metadata.get('title') or ''}\n{document.page_content}"
        for number, document in enumerate(documents, 1)
    ]
    return "\n\n".join([*numbered, question])
