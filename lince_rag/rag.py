"""The question side as one LangChain Runnable: question → retrieve → pack → generate → cite → ``Answer``."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, cast

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, BaseMessageChunk
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import patch_config

from lince_rag.answers import Answer
from lince_rag.concluding import Conclusion, advance, check_options, conclude, refuse
from lince_rag.conversation import REWRITING_TOKENS, REWRITINGS, Rewriter, Rewriting
from lince_rag.errors import ConfigurationError
from lince_rag.grounding import OnUnsupported
from lince_rag.language import Language
from lince_rag.prompting import Prepared, prepare, reads_documents
from lince_rag.requests import RagInput, Request, read_request
from lince_rag.streaming import OutgoingText
from lince_rag.support import EVEN_SUPPORT


class RagChain(Runnable[RagInput, Any]):
    """Made by ``create_rag_chain``, which says what it takes and gives."""

    def __init__(
        self,
        llm: BaseChatModel,
        retriever: BaseRetriever,
        *,
        language: Language | None,
        max_context_tokens: int | None,
        on_unsupported: OnUnsupported,
        minimum_support: float,
        rewriting: Rewriting,
    ) -> None:
        self.llm = llm
        self.retriever = retriever
        self.language = language
        self.max_context_tokens = max_context_tokens
        self.on_unsupported = on_unsupported
        self.minimum_support = minimum_support
        self.rewriting = rewriting
        self._quotes = bool(getattr(llm, "quotes", False))
        self._rewriter = Rewriter(rewriting, self._quotes)

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
        child = patch_config(config, callbacks=run_manager.get_child())
        request = self._whole(read_request(given, self.language), child)
        documents = self.retriever.invoke(request.standalone, child)
        if (refusal := self._refuse(request, documents)) is not None:
            return refusal
        prepared = self._prepare(request, documents)
        reply = self.llm.invoke(prepared.messages, child, **prepared.options)
        return self._finish(self._conclude(request, prepared, documents, reply), child)

    async def _ainvoke(self, given: RagInput, run_manager: Any, config: RunnableConfig) -> Answer:
        child = patch_config(config, callbacks=run_manager.get_child())
        request = await self._awhole(read_request(given, self.language), child)
        documents = await self.retriever.ainvoke(request.standalone, child)
        if (refusal := self._refuse(request, documents)) is not None:
            return refusal
        prepared = self._prepare(request, documents)
        reply = await self.llm.ainvoke(prepared.messages, child, **prepared.options)
        return await self._afinish(self._conclude(request, prepared, documents, reply), child)

    def _stream_steps(
        self, inputs: Iterator[RagInput], run_manager: Any, config: RunnableConfig
    ) -> Iterator[str | Answer]:
        child = patch_config(config, callbacks=run_manager.get_child())
        request = self._whole(read_request(next(inputs), self.language), child)
        documents = self.retriever.invoke(request.standalone, child)
        if (refusal := self._refuse(request, documents)) is not None:
            yield from (refusal.text, refusal)
            return
        prepared = self._prepare(request, documents)
        outgoing = self._outgoing(request, prepared)
        for chunk in self.llm.stream(prepared.messages, child, **prepared.options):
            if text := outgoing.take(cast(BaseMessageChunk, chunk)):
                yield text
            if outgoing.slipped:
                break
        answer = self._finish(self._conclude(request, prepared, documents, outgoing.reply), child)
        yield from outgoing.finish(answer)

    async def _astream_steps(
        self, inputs: AsyncIterator[RagInput], run_manager: Any, config: RunnableConfig
    ) -> AsyncIterator[str | Answer]:
        child = patch_config(config, callbacks=run_manager.get_child())
        request = await self._awhole(read_request(await anext(inputs), self.language), child)
        documents = await self.retriever.ainvoke(request.standalone, child)
        if (refusal := self._refuse(request, documents)) is not None:
            yield refusal.text
            yield refusal
            return
        prepared = self._prepare(request, documents)
        outgoing = self._outgoing(request, prepared)
        async for chunk in self.llm.astream(prepared.messages, child, **prepared.options):
            if text := outgoing.take(cast(BaseMessageChunk, chunk)):
                yield text
            if outgoing.slipped:
                break
        answer = await self._afinish(self._conclude(request, prepared, documents, outgoing.reply), child)
        for step in outgoing.finish(answer):
            yield step

    def _whole(self, request: Request, config: RunnableConfig) -> Request:
        """Make a follow-up question whole."""
        asked = self._rewriter.prompt(request)
        reply = self.llm.invoke(asked, config, **self._rewriting_options) if asked else None
        return self._rewriter.rewrite(request, reply)

    async def _awhole(self, request: Request, config: RunnableConfig) -> Request:
        asked = self._rewriter.prompt(request)
        reply = await self.llm.ainvoke(asked, config, **self._rewriting_options) if asked else None
        return self._rewriter.rewrite(request, reply)

    @property
    def _rewriting_options(self) -> dict[str, Any]:
        return {"max_tokens": REWRITING_TOKENS} if reads_documents(self.llm) else {}

    def _refuse(self, request: Request, documents: Sequence[Document]) -> Answer | None:
        """Abstain without asking the model, where the retriever says that the chunks do not hold an answer.

        A question that follows others is often only half of one ("¿Y en 2020?"): unless it was made whole, the
        model decides there.
        """
        if not self.minimum_support or (request.history and self.rewriting == "off"):
            return None
        supports = [float(support) for each in documents if (support := each.metadata.get("support")) is not None]
        if not documents or (supports and max(supports) < self.minimum_support):
            return refuse(request, max(supports, default=None))
        return None

    def _prepare(self, request: Request, documents: Sequence[Document]) -> Prepared:
        return prepare(
            self.llm,
            request,
            documents,
            max_context_tokens=self.max_context_tokens,
            minimum_support=self.minimum_support,
        )

    def _outgoing(self, request: Request, prepared: Prepared) -> OutgoingText:
        documents = prepared.packed.documents
        return OutgoingText(request.language, documents, self.on_unsupported, quotes=self._quotes)

    def _conclude(
        self, request: Request, prepared: Prepared, documents: Sequence[Document], reply: BaseMessage
    ) -> Conclusion:
        return conclude(
            request, prepared, reply, self.on_unsupported, lambda reminded: self._prepare(reminded, documents)
        )

    def _finish(self, conclusion: Conclusion, config: RunnableConfig) -> Answer:
        """Turn the model's reply into the answer, asking the model again where that is wanted."""
        step = advance(conclusion, None)
        while isinstance(step, Prepared):
            step = advance(conclusion, self.llm.invoke(step.messages, config, **step.options))
        return step

    async def _afinish(self, conclusion: Conclusion, config: RunnableConfig) -> Answer:
        step = advance(conclusion, None)
        while isinstance(step, Prepared):
            step = advance(conclusion, await self.llm.ainvoke(step.messages, config, **step.options))
        return step


def create_rag_chain(
    llm: BaseChatModel,
    retriever: BaseRetriever,
    *,
    language: Language | None = None,
    max_context_tokens: int | None = None,
    on_unsupported: OnUnsupported = "flag",
    minimum_support: float = EVEN_SUPPORT,
    rewriting: Rewriting = "auto",
) -> RagChain:
    """Make the chain that answers questions about the documents behind a retriever.

    The question's language decides the language of the instructions and of the abstention. The chunks are
    packed into the model's window; the answer is attributed to them sentence by sentence. An answer in another
    language than the question's is asked for once more, and then replaced with a quotation.

    Args:
        llm: A ``ChatLince``, which gets the chunks in its native Contexto or Entrada, or any other LangChain
            chat model, which gets them in the human message.
        retriever: What finds the chunks: a ``HybridRetriever`` or any other.
        language: Answer in this language whatever the question's.
        max_context_tokens: Tokens that the chunks may take; ``None`` takes what the window leaves
            (for other models 1,500).
        on_unsupported: What to do with an answer of which some sentence is in no document: ``"flag"`` it
            (``Answer.unsupported``), ``"drop"`` those sentences, or ``"extract"`` an answer from the documents,
            word for word, in its place. The last two stream an answer in one piece, after the check.
        minimum_support: Below this ``Answer.support`` (0 to 1) the chain abstains without asking the model;
            0 never does. A ``HybridRetriever`` calibrates the support so that 0.5 separates questions that the
            documents answer from those that they do not; other retrievers do not measure it.
        rewriting: How a follow-up question ("¿Y en 2020?") is made whole before it is searched for: by the
            ``"model"``, by ``"rules"`` that carry over what the question before was about, ``"auto"`` by the model
            where there is one and by rules on the embedded default, or ``"off"``.

    Returns:
        A Runnable from a question, or ``{"question": …, "history": [messages]}``, to an ``Answer``. Its
        ``stream`` yields pieces of text and last the ``Answer``.

    Raises:
        ConfigurationError: ``language`` is not one of es, pt and en, or another value is out of its range.
        UnknownModelError: The ``ChatLince`` names no model.

    Example:
        >>> chain = create_rag_chain(ChatLince(), index.as_retriever(k=5))
        >>> answer = chain.invoke("¿Cuándo vence el contrato?")
        >>> answer.text, answer.citations[0].source
    """
    check_options(llm, language, on_unsupported, minimum_support)
    if rewriting not in REWRITINGS:
        raise ConfigurationError(f"rewriting={rewriting!r} is not one of {', '.join(REWRITINGS)}.")
    return RagChain(
        llm,
        retriever,
        language=language,
        max_context_tokens=max_context_tokens,
        on_unsupported=on_unsupported,
        minimum_support=minimum_support,
        rewriting=rewriting,
    )
