"""The question side as one LangChain Runnable: question → retrieve → pack → generate → cite → ``Answer``."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Final, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessageChunk
from langchain_core.retrievers import RetrieverLike
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, patch_config, run_in_executor
from langchain_core.runnables.graph import Graph
from langchain_core.runnables.utils import ConfigurableFieldSpec, get_unique_config_specs

from lince_rag.chain.answer import Answer
from lince_rag.chain.bindings import (
    AnyModel,
    check_model,
    check_retriever,
    inner_runnables,
    is_resolved,
    narrow_retriever,
    resolve_model,
    unwrap,
)
from lince_rag.chain.flow import ChainSettings, Generate, Retrieve, advance, answer_flow, last_pieces
from lince_rag.chain.grounding import OnUnsupported
from lince_rag.chain.packing import native_model
from lince_rag.chain.question import Conversation, RagInput, Rewriting
from lince_rag.index.retriever import HybridRetriever
from lince_rag.models.call_settings import batch_configs
from lince_rag.text.evidence import MINIMUM_CONFIDENCE
from lince_rag.text.language import Language

# Chunks of a document that are read for a summary of it.
SUMMARY_CHUNKS: Final = 40


class RagChain(Runnable[RagInput, Any]):
    """Answers questions from documents; ``create_rag_chain`` creates it and explains its parts.

    Its input is a question (``str``), or a ``Conversation`` or a dict with its keys: ``question`` and ``history``.
    """

    def __init__(self, llm: AnyModel, retriever: RetrieverLike, settings: ChainSettings) -> None:
        self.llm = llm
        self.retriever = retriever
        self.settings = settings
        self._is_resolved = is_resolved(llm)
        self._model = unwrap(llm)

    def __repr__(self) -> str:
        return f"RagChain(llm={self.llm!r}, retriever={self.retriever!r}, settings={self.settings!r})"

    def with_filter(
        self,
        filter: Mapping[str, Any] | None,  # noqa: A002 - the retriever's name
        *,
        k: int | None = None,
    ) -> "RagChain":
        """Return this chain over what also passes a metadata filter.

        Args:
            filter: The filter; ``None`` leaves out nothing.
            k: Number of chunks to read; ``None`` keeps the retriever's.

        A filter that a call's ``config`` gives to a configurable retriever takes the place of this one.

        Raises:
            ConfigurationError: The retriever is not that of an ``Index``, nor wraps such ones only.
        """
        if filter is None and k is None:
            return self
        return RagChain(self.llm, narrow_retriever(self.retriever, filter, k), self.settings)

    @property
    def InputType(self) -> Any:  # noqa: N802 - LangChain's name.
        """A question, or a ``Conversation`` or a dict with its keys."""
        return str | Conversation

    @property
    def OutputType(self) -> type[Answer]:  # noqa: N802 - LangChain's name.
        """What ``invoke`` returns and what a stream yields last."""
        return Answer

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """What can be configured of the model and of the retriever."""
        return get_unique_config_specs([*self.llm.config_specs, *self.retriever.config_specs])

    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """Return the graph from the question to the answer: retriever and model, each with its fallbacks."""
        graph, config = Graph(), ensure_config(config)
        question, answer = map(graph.add_node, (self.get_input_schema(config), self.get_output_schema(config)))
        models = [graph.add_node(each) for each in inner_runnables(self.llm, config)]
        for retriever in [graph.add_node(each) for each in inner_runnables(self.retriever, config)]:
            graph.add_edge(question, retriever)
            graph.add_edge(retriever, answer, "abstains", conditional=True)
            for model in models:
                graph.add_edge(retriever, model)
        for model in models:
            graph.add_edge(model, answer)
        return graph

    def invoke(self, input: RagInput, config: RunnableConfig | None = None, **kwargs: Any) -> Answer:  # noqa: A002
        """Answer a question.

        Args:
            input: A question, a ``Conversation``, or a dict with ``question`` and ``history``.
            config: LangChain's configuration of the run: callbacks, tags, ``configurable`` values.
            **kwargs: None are accepted; the parameter is LangChain's.

        Returns:
            The answer, with its citations.

        Raises:
            ConfigurationError: The input has no question, or it has unknown keys.
            ContextWindowError: The question does not fit into the model's window, even without history and chunks.
            EngineError: The model cannot be loaded, or cannot generate.
        """
        if not self._is_resolved:
            return cast(Answer, self._resolved(config).invoke(input, config, **kwargs))
        return cast(Answer, self._call_with_config(self._invoke, input, config, **kwargs))

    async def ainvoke(self, input: RagInput, config: RunnableConfig | None = None, **kwargs: Any) -> Answer:  # noqa: A002
        """Answer a question asynchronously; arguments, result and errors are those of ``invoke``."""
        if not self._is_resolved:
            chain = await run_in_executor(config, self._resolved, config)
            return cast(Answer, await chain.ainvoke(input, config, **kwargs))
        return cast(Answer, await self._acall_with_config(self._ainvoke, input, config, **kwargs))

    def batch(
        self, inputs: list[RagInput], config: RunnableConfig | list[RunnableConfig] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Answer several questions; a ``ChatLince`` in this process decodes up to its ``batch_size`` at once.

        Args:
            inputs: What ``invoke`` takes.
            config: LangChain's configuration, of all or of each. ``max_concurrency`` limits how many are asked at
                once.
            **kwargs: ``return_exceptions``.

        Returns:
            An answer for each question, in order.
        """
        models = map(native_model, inner_runnables(self.llm, ensure_config()))
        if native := next(filter(None, models), None):
            config = batch_configs(config, len(inputs), native.batch_size)
        return super().batch(inputs, config, **kwargs)

    def stream(
        self,
        input: RagInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[str | Answer]:
        """Stream an answer; arguments and errors are those of ``invoke``.

        The first eight words are held back until their language is known, unless the model only quotes. With
        ``on_unsupported`` other than ``"flag"``, the text of a model that writes comes in one piece, after the
        check.

        Yields:
            Pieces of the answer's text and, last, the ``Answer``. Its ``text`` differs from the pieces if the
            chain corrected text that had gone out already: see ``Answer.corrections``.
        """
        if self._is_resolved:
            yield from self._transform_stream_with_config(iter([input]), self._stream_flow, config, **kwargs)
        else:
            yield from self._resolved(config).stream(input, config, **kwargs)

    async def astream(
        self,
        input: RagInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[str | Answer]:
        """Stream an answer asynchronously; arguments, pieces and errors are those of ``stream``."""

        async def inputs() -> AsyncIterator[RagInput]:
            yield input

        if self._is_resolved:
            steps = self._atransform_stream_with_config(inputs(), self._astream_flow, config, **kwargs)
        else:
            chain = await run_in_executor(config, self._resolved, config)
            steps = chain.astream(input, config, **kwargs)
        async for step in steps:
            yield step

    def _invoke(self, given: RagInput, run_manager: Any, config: RunnableConfig) -> Answer:
        child = patch_config(config, callbacks=run_manager.get_child())
        flow = answer_flow(self._model, self.settings, given)
        step = advance(flow)
        while not isinstance(step, Answer):
            step = advance(flow, self._carry_out(step, child))
        return step

    async def _ainvoke(self, given: RagInput, run_manager: Any, config: RunnableConfig) -> Answer:
        child = patch_config(config, callbacks=run_manager.get_child())
        flow = answer_flow(self._model, self.settings, given)
        step = await run_in_executor(child, advance, flow)
        while not isinstance(step, Answer):
            step = await run_in_executor(child, advance, flow, await self._acarry_out(step, child))
        return step

    def _stream_flow(
        self, inputs: Iterator[RagInput], run_manager: Any, config: RunnableConfig
    ) -> Iterator[str | Answer]:
        child = patch_config(config, callbacks=run_manager.get_child())
        flow = answer_flow(self._model, self.settings, next(inputs))
        step, stream = advance(flow), None
        while not isinstance(step, Answer):
            if isinstance(step, Retrieve) or step.stream is None:
                step = advance(flow, self._carry_out(step, child))
                continue
            stream = step.stream
            for chunk in self.llm.stream(step.messages, child, **step.options):
                if text := stream.take(cast(BaseMessageChunk, chunk)):
                    yield text
                if stream.switched_language:
                    break
            step = advance(flow, stream.reply)
        yield from last_pieces(stream, step)

    async def _astream_flow(
        self, inputs: AsyncIterator[RagInput], run_manager: Any, config: RunnableConfig
    ) -> AsyncIterator[str | Answer]:
        child = patch_config(config, callbacks=run_manager.get_child())
        flow = answer_flow(self._model, self.settings, await anext(inputs))
        step, stream = await run_in_executor(child, advance, flow), None
        while not isinstance(step, Answer):
            if isinstance(step, Retrieve) or step.stream is None:
                step = await run_in_executor(child, advance, flow, await self._acarry_out(step, child))
                continue
            stream = step.stream
            # Closed at once if the language switches, so that the model is free to be asked again.
            async with aclosing(cast(Any, self.llm.astream(step.messages, child, **step.options))) as chunks:
                async for chunk in chunks:
                    if text := stream.take(chunk):
                        yield text
                    if stream.switched_language:
                        break
            step = await run_in_executor(child, advance, flow, stream.reply)
        for piece in last_pieces(stream, step):
            yield piece

    def _carry_out(self, step: Retrieve | Generate, config: RunnableConfig) -> Any:
        if isinstance(step, Retrieve):
            return self._retriever_for(step).invoke(step.question, config)
        return self.llm.invoke(step.messages, config, **step.options)

    async def _acarry_out(self, step: Retrieve | Generate, config: RunnableConfig) -> Any:
        if isinstance(step, Retrieve):
            return await self._retriever_for(step).ainvoke(step.question, config)
        return await self.llm.ainvoke(step.messages, config, **step.options)

    def _retriever_for(self, step: Retrieve) -> RetrieverLike:
        """Return the retriever, confined to one document if the step is; others have no way in common."""
        if not step.source or not isinstance(self.retriever, HybridRetriever):
            return self.retriever
        return narrow_retriever(self.retriever, {"source": step.source}, SUMMARY_CHUNKS)

    def _resolved(self, config: RunnableConfig | None) -> Runnable[RagInput, Any]:
        """Return the chain over the model that ``config`` chooses, with a chain for each of its fallbacks."""

        def make(llm: AnyModel) -> RagChain:
            return RagChain(llm, self.retriever, self.settings)

        return resolve_model(self.llm, ensure_config(config), make)


def create_rag_chain(
    llm: Runnable[LanguageModelInput, Any],
    retriever: RetrieverLike,
    *,
    language: Language | None = None,
    max_context_tokens: int | None = None,
    on_unsupported: OnUnsupported = "flag",
    minimum_confidence: float = MINIMUM_CONFIDENCE,
    rewriting: Rewriting = "auto",
    instructions: str = "",
) -> RagChain:
    """Create the chain that answers questions from documents, with citations.

    For each question the chain:

    1. rewrites a follow-up question as a standalone one, with the help of the conversation (``rewriting``);
    2. retrieves chunks with the standalone question;
    3. abstains, without asking the model, if they are unlikely to hold the answer (``minimum_confidence``);
    4. packs the history and the chunks into the model's window (``max_context_tokens``). What does not fit is left
       out and listed in the ``Answer``;
    5. asks the model, with instructions in the language of the question;
    6. checks the language of the answer. If it is not the question's, the chain asks once more, with a reminder,
       and then quotes the documents instead;
    7. looks for a citation for every sentence of the answer, and treats unsupported sentences as
       ``on_unsupported`` says.

    Args:
        llm: A ``ChatLince``, which reads the chunks where its native prompt format has them (Contexto or Entrada);
            or any other LangChain chat model, which reads them in the human message. The Runnables that ``bind``,
            ``with_retry``, ``with_fallbacks``, ``configurable_fields`` and ``configurable_alternatives`` make of a
            chat model are accepted too.
        retriever: The ``HybridRetriever`` of ``Index.as_retriever``, or any other LangChain retriever. Citations
            need ``source`` and ``start`` (the chunk's character offset in the document) in the chunks' metadata.
        language: Language of instructions, answers and abstentions: ``"es"``, ``"pt"`` or ``"en"``. ``None`` takes
            the question's; if the question is too short to tell, the history's, and then Spanish.
        max_context_tokens: Maximum number of tokens that the chunks take in the prompt. ``None`` takes all that
            the window leaves; for models other than ``ChatLince``, whose window is not known, about 1,500.
        on_unsupported: What to do with sentences of the answer that are in no document: ``"flag"`` lists them in
            ``Answer.unsupported``, ``"drop"`` removes them, and ``"extract"`` replaces the whole answer with
            sentences quoted from the documents. With the last two, a model that writes its answers streams them in
            one piece, after the check.
        minimum_confidence: The chain abstains if the chance that the retrieved chunks hold the answer
            (``Answer.confidence``, 0 to 1) is lower; 0 always asks the model. A ``HybridRetriever`` calibrates it:
            at 0.5, passages quoted from the chunks are as likely to hold the answer as not. Other retrievers do
            not measure it: then the chain abstains only if nothing is retrieved.
        rewriting: How to rewrite a follow-up question ("¿Y en 2020?"): ``"model"`` asks the model; ``"rules"``
            takes what is missing from the question before, without a model; ``"auto"`` is the model, or rules for
            the embedded default, which only quotes; ``"off"`` searches for the question as it is.
        instructions: How to answer, in words of your own that follow the chain's instructions: the tone, the form,
            whom the answer is for. A model that only quotes does not read them.

    Returns:
        A LangChain Runnable. Its input is a question, or a dict with ``question`` and ``history``, the earlier
        messages. ``invoke`` and ``ainvoke`` return an ``Answer``; ``stream`` and ``astream`` yield pieces of its
        text as they are generated and, last, the ``Answer``.

    Raises:
        ConfigurationError: A setting is out of its range, or one of the first two arguments is something else.
        UnknownModelError: The ``ChatLince`` names no known model.
        EngineError: No engine can run the ``ChatLince``.

    Example:
        >>> from lince_rag import ChatLince, Index, create_rag_chain
        >>> with Index.open("contracts") as index:
        ...     index.ingest("~/Documents/contracts")
        ...     chain = create_rag_chain(ChatLince(), index.as_retriever(k=5))
        ...     answer = chain.invoke("¿Cuándo vence el contrato?")
        >>> print(answer.text)
        >>> for citation in answer.citations:
        ...     print(citation.source, citation.page, citation.quote)
    """
    settings = ChainSettings(
        language, max_context_tokens, on_unsupported, minimum_confidence, rewriting, instructions
    )
    check_model(llm)
    check_retriever(retriever)
    return RagChain(llm, retriever, settings)
