"""The question side as one LangChain Runnable: question → retrieve → pack → generate → cite → ``Answer``."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessageChunk
from langchain_core.retrievers import RetrieverLike
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, patch_config
from langchain_core.runnables.graph import Graph
from langchain_core.runnables.utils import ConfigurableFieldSpec, get_unique_config_specs

from lince_rag.chain.answer import Answer
from lince_rag.chain.bindings import AnyModel, check_model, innermost, is_settled, settle, unwrap
from lince_rag.chain.flow import ChainSettings, Conclusion, Steps, advance
from lince_rag.chain.grounding import OnUnsupported
from lince_rag.chain.packing import Prepared
from lince_rag.chain.question import Conversation, RagInput, Request, Rewriting, read_request
from lince_rag.text.confidence import EVEN_CONFIDENCE
from lince_rag.text.language import Language


class RagChain(Runnable[RagInput, Any]):
    """Made by ``create_rag_chain``, which says what it takes and gives."""

    def __init__(self, llm: AnyModel, retriever: RetrieverLike, settings: ChainSettings) -> None:
        self.llm = llm
        self.retriever = retriever
        self.settings = settings
        self._is_settled = is_settled(llm)
        self._steps = Steps(unwrap(llm), settings)

    def __repr__(self) -> str:
        return f"RagChain(llm={self.llm!r}, retriever={self.retriever!r}, settings={self.settings!r})"

    @property
    def InputType(self) -> Any:  # noqa: N802 - LangChain's name.
        """A question, or a dict with it and what was said before."""
        return str | Conversation

    @property
    def OutputType(self) -> type[Answer]:  # noqa: N802 - LangChain's name.
        """What ``invoke`` gives, and a stream gives last."""
        return Answer

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """What of the model and of the retriever can be configured."""
        return get_unique_config_specs([*self.llm.config_specs, *self.retriever.config_specs])

    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """Draw retriever and model, with their fallbacks, between the question and the answer."""
        graph, config = Graph(), ensure_config(config)
        question, answer = map(graph.add_node, (self.get_input_schema(config), self.get_output_schema(config)))
        models = [graph.add_node(each) for each in innermost(self.llm, config)]
        for retriever in [graph.add_node(each) for each in innermost(self.retriever, config)]:
            graph.add_edge(question, retriever)
            graph.add_edge(retriever, answer, "abstains", conditional=True)
            for model in models:
                graph.add_edge(retriever, model)
        for model in models:
            graph.add_edge(model, answer)
        return graph

    def invoke(self, input: RagInput, config: RunnableConfig | None = None, **kwargs: Any) -> Answer:  # noqa: A002
        """Answer a question."""
        if not self._is_settled:
            return cast(Answer, self._settled(config).invoke(input, config, **kwargs))
        return cast(Answer, self._call_with_config(self._invoke, input, config, **kwargs))

    async def ainvoke(self, input: RagInput, config: RunnableConfig | None = None, **kwargs: Any) -> Answer:  # noqa: A002
        """Answer a question."""
        if not self._is_settled:
            return cast(Answer, await self._settled(config).ainvoke(input, config, **kwargs))
        return cast(Answer, await self._acall_with_config(self._ainvoke, input, config, **kwargs))

    def stream(
        self,
        input: RagInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[str | Answer]:
        """Yield the text of the answer as it is made, then the ``Answer``."""
        if self._is_settled:
            yield from self._transform_stream_with_config(iter([input]), self._stream_steps, config, **kwargs)
        else:
            yield from self._settled(config).stream(input, config, **kwargs)

    async def astream(
        self,
        input: RagInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[str | Answer]:
        """Yield the text of the answer as it is made, then the ``Answer``."""

        async def inputs() -> AsyncIterator[RagInput]:
            yield input

        if self._is_settled:
            steps = self._atransform_stream_with_config(inputs(), self._astream_steps, config, **kwargs)
        else:
            steps = self._settled(config).astream(input, config, **kwargs)
        async for step in steps:
            yield step

    def _invoke(self, given: RagInput, run_manager: Any, config: RunnableConfig) -> Answer:
        child = patch_config(config, callbacks=run_manager.get_child())
        request = self._whole(read_request(given, self.settings.language), child)
        documents = self.retriever.invoke(request.standalone, child)
        if (refusal := self._steps.refuse(request, documents)) is not None:
            return refusal
        prepared = self._steps.prepare(request, documents)
        reply = self.llm.invoke(prepared.messages, child, **prepared.options)
        return self._finish(self._steps.conclude(request, prepared, documents, reply), child)

    async def _ainvoke(self, given: RagInput, run_manager: Any, config: RunnableConfig) -> Answer:
        child = patch_config(config, callbacks=run_manager.get_child())
        request = await self._awhole(read_request(given, self.settings.language), child)
        documents = await self.retriever.ainvoke(request.standalone, child)
        if (refusal := self._steps.refuse(request, documents)) is not None:
            return refusal
        prepared = self._steps.prepare(request, documents)
        reply = await self.llm.ainvoke(prepared.messages, child, **prepared.options)
        return await self._afinish(self._steps.conclude(request, prepared, documents, reply), child)

    def _stream_steps(
        self, inputs: Iterator[RagInput], run_manager: Any, config: RunnableConfig
    ) -> Iterator[str | Answer]:
        child = patch_config(config, callbacks=run_manager.get_child())
        request = self._whole(read_request(next(inputs), self.settings.language), child)
        documents = self.retriever.invoke(request.standalone, child)
        if (refusal := self._steps.refuse(request, documents)) is not None:
            yield from (refusal.text, refusal)
            return
        prepared = self._steps.prepare(request, documents)
        outgoing = self._steps.outgoing(request, prepared)
        for chunk in self.llm.stream(prepared.messages, child, **prepared.options):
            if text := outgoing.take(cast(BaseMessageChunk, chunk)):
                yield text
            if outgoing.slipped:
                break
        answer = self._finish(self._steps.conclude(request, prepared, documents, outgoing.reply), child)
        yield from outgoing.finish(answer)

    async def _astream_steps(
        self, inputs: AsyncIterator[RagInput], run_manager: Any, config: RunnableConfig
    ) -> AsyncIterator[str | Answer]:
        child = patch_config(config, callbacks=run_manager.get_child())
        request = await self._awhole(read_request(await anext(inputs), self.settings.language), child)
        documents = await self.retriever.ainvoke(request.standalone, child)
        if (refusal := self._steps.refuse(request, documents)) is not None:
            yield refusal.text
            yield refusal
            return
        prepared = self._steps.prepare(request, documents)
        outgoing = self._steps.outgoing(request, prepared)
        async for chunk in self.llm.astream(prepared.messages, child, **prepared.options):
            if text := outgoing.take(cast(BaseMessageChunk, chunk)):
                yield text
            if outgoing.slipped:
                break
        answer = await self._afinish(self._steps.conclude(request, prepared, documents, outgoing.reply), child)
        for step in outgoing.finish(answer):
            yield step

    def _whole(self, request: Request, config: RunnableConfig) -> Request:
        """Make a follow-up question whole."""
        asked = self._steps.ask_to_rewrite(request)
        reply = self.llm.invoke(asked[0], config, **asked[1]) if asked else None
        return self._steps.rewrite(request, reply)

    async def _awhole(self, request: Request, config: RunnableConfig) -> Request:
        asked = self._steps.ask_to_rewrite(request)
        reply = await self.llm.ainvoke(asked[0], config, **asked[1]) if asked else None
        return self._steps.rewrite(request, reply)

    def _settled(self, config: RunnableConfig | None) -> Runnable[RagInput, Any]:
        """The chain over the model that is meant by a configuration, with its fallbacks."""
        return settle(self.llm, ensure_config(config), lambda llm: RagChain(llm, self.retriever, self.settings))

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
    llm: Runnable[LanguageModelInput, Any],
    retriever: RetrieverLike,
    *,
    language: Language | None = None,
    max_context_tokens: int | None = None,
    on_unsupported: OnUnsupported = "flag",
    minimum_confidence: float = EVEN_CONFIDENCE,
    rewriting: Rewriting = "auto",
) -> RagChain:
    """Make the chain that answers questions about the documents behind a retriever.

    The question's language decides the language of the instructions and of the abstention. The chunks are
    packed into the model's window; the answer is attributed to them sentence by sentence. An answer in another
    language than the question's is asked for once more, and then replaced with a quotation.

    Args:
        llm: A ``ChatLince``, which gets the chunks in its native Contexto or Entrada, or any other LangChain
            chat model, which gets them in the human message. What ``bind``, ``with_retry``, ``with_fallbacks``,
            ``configurable_fields`` and the like make of one is as good.
        retriever: What finds the chunks: a ``HybridRetriever`` or any other.
        language: Answer in this language whatever the question's.
        max_context_tokens: Tokens that the chunks may take; ``None`` takes what the window leaves
            (for other models 1,500).
        on_unsupported: What to do with an answer of which some sentence is in no document: ``"flag"`` it
            (``Answer.unsupported``), ``"drop"`` those sentences, or ``"extract"`` an answer from the documents,
            word for word, in its place. The last two stream an answer in one piece, after the check.
        minimum_confidence: Below this ``Answer.confidence`` (0 to 1) the chain abstains without asking the model;
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
    settings = ChainSettings(language, max_context_tokens, on_unsupported, minimum_confidence, rewriting)
    check_model(llm)
    return RagChain(llm, retriever, settings)
