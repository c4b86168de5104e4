"""The document agent: LangChain's ``create_agent`` over an index, with packing, limits on calls, citations.

A ``ChatLince`` gets the found documents as in the chain: packed into the window, in the model's own Contexto or
Entrada. The loop, its streams and its memory are LangGraph's.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, NotRequired, cast

from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.runnables.config import run_in_executor
from langchain_core.tools import BaseTool
from langgraph.channels.untracked_value import UntrackedValue
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime

from lince_rag.chain.answer import Answer
from lince_rag.chain.bindings import check_model
from lince_rag.chain.flow import ChainSettings, Flow, Generate, advance, conclude, refuse
from lince_rag.chain.grounding import OnUnsupported
from lince_rag.chain.packing import Prepared, only_quotes, prepare, reads_documents
from lince_rag.chain.question import Request, read_request, rewrite_by_rules
from lince_rag.errors import ConfigurationError
from lince_rag.index.index import Index
from lince_rag.models.messages import current_turn, found_documents, last_question, made_calls, without_calls
from lince_rag.models.search_policy import MOST_SEARCHES
from lince_rag.text.evidence import MINIMUM_CONFIDENCE, strongest_confidence
from lince_rag.text.language import Language, wording

SEARCH_TOOL: Final = "search_documents"

# Maximum number of calls of all tools together for one question; then the model must answer.
MOST_CALLS_PER_QUESTION: Final = 8


class DocumentAgentState(AgentState[Any]):
    """The state of a document agent: LangChain's, and the ``answer`` to the last question."""

    # Checkpoints do not keep it: they hold the messages, and read back only LangChain's own classes.
    answer: NotRequired[Annotated[Answer | None, UntrackedValue]]


class AnswerFromDocuments(AgentMiddleware[DocumentAgentState, Any, Any]):
    """Packs the found documents into the prompt, limits the searches, and cites the answer."""

    state_schema = DocumentAgentState

    def __init__(
        self, llm: BaseChatModel, settings: ChainSettings, *, system_prompt: str, max_searches: int
    ) -> None:
        super().__init__()
        self.llm = llm
        self.settings = settings
        self.system_prompt = system_prompt
        self.max_searches = max_searches

    def before_agent(self, state: DocumentAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Remove the answer to the previous question."""
        return {"answer": None}

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | AIMessage:
        """Call the model with the found documents, or abstain without calling it."""
        prepared = self._prepare_request(request)
        if isinstance(prepared, AIMessage):
            return prepared
        return self._limit_calls(handler(prepared), request.messages)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | AIMessage:
        """Call the model with the found documents, or abstain without calling it."""
        prepared = await run_in_executor(None, self._prepare_request, request)
        if isinstance(prepared, AIMessage):
            return prepared
        return self._limit_calls(await handler(prepared), request.messages)

    def after_agent(self, state: DocumentAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Cite the answer; depending on ``on_unsupported``, ask again or quote the documents."""
        if (returned := self._tool_answer(state["messages"])) is not None:
            return returned
        flow = self._conclude(state["messages"])
        step = advance(flow)
        while isinstance(step, Generate):
            step = advance(flow, self.llm.invoke(step.messages, **step.options))
        return _update(state["messages"], cast(Answer, step))

    async def aafter_agent(self, state: DocumentAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Cite the answer; depending on ``on_unsupported``, ask again or quote the documents."""
        if (returned := await run_in_executor(None, self._tool_answer, state["messages"])) is not None:
            return returned
        flow = await run_in_executor(None, self._conclude, state["messages"])
        step = await run_in_executor(None, advance, flow)
        while isinstance(step, Generate):
            reply = await self.llm.ainvoke(step.messages, **step.options)
            step = await run_in_executor(None, advance, flow, reply)
        return _update(state["messages"], cast(Answer, step))

    def _prepare_request(self, model_request: ModelRequest[Any]) -> ModelRequest[Any] | AIMessage:
        """Pack the conversation into the window with the tools that may still be called, or abstain."""
        llm, messages = model_request.model, model_request.messages
        calls = made_calls(current_turn(messages))
        searches = _count_searches(calls)
        tools = [] if len(calls) >= MOST_CALLS_PER_QUESTION else list(model_request.tools)
        if searches >= self.max_searches:
            tools = [tool for tool in tools if _name(tool) != SEARCH_TOOL]
        request = self._read_request(messages, llm)
        choice = model_request.tool_choice
        if only_quotes(llm):
            # It would call any tool that takes a text, but only a search is useful to it.
            tools = [tool for tool in tools if _name(tool) == SEARCH_TOOL]
        elif searches == len(calls) and self._search_failed(messages):
            if SEARCH_TOOL not in map(_name, tools):
                return AIMessage(refuse(request, None).text)
            choice = SEARCH_TOOL
        elif self.settings.on_unsupported != "flag" and not calls:
            # Without a search, every sentence of the answer would be unsupported.
            choice = SEARCH_TOOL
        system = [model_request.system_message] if model_request.system_message else []
        prepared = self._pack(llm, request, messages, cast(list[BaseTool], tools), system)
        # Other middleware may still change the messages, so the prompt is rendered when the model is called.
        options = {name: value for name, value in prepared.options.items() if name != "prompt"}
        return model_request.override(
            messages=cast(Any, prepared.messages[1:]),
            system_message=cast(Any, prepared.messages[0]),
            tools=tools,
            tool_choice=choice if tools else None,
            model_settings={**model_request.model_settings, **options},
        )

    def _limit_calls(self, response: ModelResponse[Any], messages: Sequence[BaseMessage]) -> ModelResponse[Any]:
        """Remove the calls of an answer that exceed the limits."""
        before = made_calls(current_turn(messages))
        for at, message in enumerate(response.result):
            if not isinstance(message, AIMessage) or not message.tool_calls:
                continue
            kept: list[Any] = []
            for call in message.tool_calls:
                made = [*before, *kept]
                may_search = call["name"] != SEARCH_TOOL or _count_searches(made) < self.max_searches
                if len(made) < MOST_CALLS_PER_QUESTION and may_search:
                    kept.append(call)
            response.result[at] = message.model_copy(update={"tool_calls": kept})
        return response

    def _read_request(self, messages: Sequence[BaseMessage], llm: BaseChatModel) -> Request:
        """Read the last question; if the model only quotes, rules rewrite a follow-up as a standalone question.

        Earlier calls stay in the history, except searches: what they found is out of date.
        """
        before = messages[: len(messages) - len(current_turn(messages)) - 1]
        history = [turn for turn in without_calls(before, SEARCH_TOOL) if not isinstance(turn, SystemMessage)]
        request = read_request({"question": last_question(messages), "history": history}, self.settings.language)
        if not only_quotes(llm):
            return request
        return replace(request, standalone=rewrite_by_rules(request.question, request.history, request.language))

    def _search_failed(self, messages: Sequence[BaseMessage]) -> bool:
        """Return whether a search was made and its documents do not hold the answer."""
        turn = current_turn(messages)
        if not any(map(_is_search, turn)) or _attached_documents(messages):
            return False
        documents = found_documents(turn)
        confidence = strongest_confidence(document.metadata for document in documents)
        return not documents or (confidence is not None and confidence < self.settings.minimum_confidence)

    def _pack(
        self,
        llm: BaseChatModel,
        request: Request,
        messages: Sequence[BaseMessage],
        tools: Sequence[BaseTool],
        system: Sequence[BaseMessage] = (),
    ) -> Prepared:
        turn, attached = current_turn(messages), _attached_documents(messages)
        documents = found_documents(turn)
        if attached:
            # The confidence of the search does not take the attached documents into account.
            unmeasured = [
                each.model_copy(update={"metadata": {**each.metadata, "confidence": None}}) for each in documents
            ]
            documents = [*attached, *unmeasured]
        search = wording("search", request.language, tool=SEARCH_TOOL) if tools and not only_quotes(llm) else ""
        instructions = [str(each.text) for each in (*system, *messages) if isinstance(each, SystemMessage)]
        in_prompt = reads_documents(llm)
        prepared = prepare(
            llm,
            request,
            documents,
            max_context_tokens=self.settings.max_context_tokens,
            minimum_confidence=self.settings.minimum_confidence,
            following=[_without_passages(each, request.language, llm) for each in turn] if in_prompt else turn,
            further_instructions="\n".join(filter(None, (search, self.system_prompt, *instructions))),
            tools=tools,
        )
        if not in_prompt and not request.reminder:
            # The model reads attached documents in the question's own message.
            prepared.messages[-1 - len(turn)] = messages[-1 - len(turn)]
        return prepared

    def _tool_answer(self, messages: Sequence[BaseMessage]) -> dict[str, Any] | None:
        """Return the result of a tool that ends the run, uncited because no model wrote it."""
        if not isinstance(messages[-1], ToolMessage):
            return None
        request = self._read_request(messages, self.llm)
        return {"answer": Answer(text=str(messages[-1].text), language=request.language)}

    def _conclude(self, messages: Sequence[BaseMessage]) -> Flow:
        *before, reply = messages
        results = [each for each in current_turn(before) if isinstance(each, ToolMessage) and not _is_search(each)]
        texts = [Document(str(each.text), metadata={"source": each.name}) for each in results if each.text]

        def pack(request: Request) -> Prepared:
            prepared = self._pack(self.llm, request, before, ())
            # Results of other tools are evidence as well as the found documents.
            documents = [*prepared.packed.documents, *texts]
            return replace(prepared, packed=replace(prepared.packed, documents=documents))

        request = self._read_request(before, self.llm)
        return conclude(request, pack(request), reply, self.settings.on_unsupported, pack)


def _name(tool: BaseTool | dict[str, Any]) -> str:
    return tool.name if isinstance(tool, BaseTool) else str(tool.get("name"))


def _is_search(message: BaseMessage) -> bool:
    return isinstance(message, ToolMessage) and message.name == SEARCH_TOOL


def _count_searches(calls: Sequence[Any]) -> int:
    return sum(call["name"] == SEARCH_TOOL for call in calls)


def _attached_documents(messages: Sequence[BaseMessage]) -> list[Document]:
    """Return the documents inside the last question: its ``text-plain`` blocks and its ``input``."""
    question = next((each for each in reversed(messages) if isinstance(each, HumanMessage)), None)
    if question is None:
        return []
    blocks = [each for each in question.content if isinstance(each, dict)]
    texts = [each.get("text") for each in blocks if each.get("type") == "text-plain"]
    return [Document(text) for text in [*texts, question.additional_kwargs.get("input")] if text]


def _without_passages(message: BaseMessage, language: Language, llm: BaseChatModel) -> BaseMessage:
    """Reduce a search result to the number of passages: the prompt has them as documents."""
    if not isinstance(message, ToolMessage) or not _is_search(message) or not isinstance(message.artifact, list):
        return message
    count = str(len(message.artifact))
    content = "" if only_quotes(llm) else wording("found", language, count=count)
    return message.model_copy(update={"content": content, "artifact": []})


def _update(messages: Sequence[BaseMessage], answer: Answer) -> dict[str, Any]:
    """Return the state with the answer, whose text replaces the model's if the two differ."""
    reply, usage = messages[-1], cast(UsageMetadata | None, None)
    for message in current_turn(messages)[:-1]:
        if isinstance(message, AIMessage) and message.usage_metadata:
            usage = add_usage(usage, message.usage_metadata)
    usage = add_usage(usage, answer.usage) if usage or answer.usage else None
    update: dict[str, Any] = {"answer": answer.model_copy(update={"usage": usage})}
    if answer.text != str(reply.text).strip():
        update["messages"] = [reply.model_copy(update={"content": answer.text})]
    return update


def create_document_agent(
    llm: BaseChatModel,
    index: Index,
    tools: Sequence[BaseTool | Callable[..., Any]] = (),
    *,
    language: Language | None = None,
    system_prompt: str = "",
    max_searches: int = MOST_SEARCHES,
    on_unsupported: OnUnsupported = "flag",
    minimum_confidence: float = MINIMUM_CONFIDENCE,
    max_context_tokens: int | None = None,
    search_options: dict[str, Any] | None = None,
    middleware: Sequence[AgentMiddleware[Any, Any, Any]] = (),
    **options: Any,
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Make an agent that answers questions about the documents of an index.

    It decides whether to search, searches again in other words if the documents it found do not hold the answer,
    and then answers with citations or abstains. The embedded default searches with the question, then with its
    content words; the decoding of models with weights is constrained to valid calls.

    Args:
        llm: A ``ChatLince`` or any other chat model that can call tools.
        index: The index to search.
        tools: More tools for the model; the embedded default only searches. Their results are evidence too: a
            citation of one has the tool's name as its source.
        language: Language of the answer; ``None`` answers in the question's.
        system_prompt: More instructions for the model.
        max_searches: Maximum number of searches for one question; all tools together are called at most 8 times.
        on_unsupported: ``"flag"``, ``"drop"`` or ``"extract"``, as in ``create_rag_chain``. With ``"drop"`` and
            ``"extract"`` the agent always starts with a search.
        minimum_confidence: As in ``create_rag_chain``; below it the agent searches again, and then abstains.
        max_context_tokens: Maximum number of tokens for the chunks; ``None`` takes the rest of the window.
        search_options: Fields of the ``HybridRetriever`` behind the search: ``k``, ``filter`` …
        middleware: More LangChain agent middleware.
        **options: Keywords of ``langchain.agents.create_agent``: ``checkpointer``, ``store``, ``name`` …

    Returns:
        A LangGraph graph. Its state has ``messages`` and, at the end, ``answer``, an ``Answer``. It streams its
        steps (``stream_mode="updates"``) and its tokens (``"messages"``); with a ``checkpointer`` it keeps the
        conversation.

    Raises:
        ConfigurationError: The model cannot call tools, or a number is out of its range.
        UnknownModelError: The registry does not have the model of the ``ChatLince``.

    Example:
        >>> agent = create_document_agent(ChatLince(), index)
        >>> agent.invoke({"messages": [("human", "¿Cuándo vence el contrato?")]})["answer"].text
    """
    if not isinstance(llm, BaseChatModel) or type(llm).bind_tools is BaseChatModel.bind_tools:
        raise ConfigurationError(
            f"{type(llm).__name__} is not a chat model that can call tools.",
            hint="Use a ChatLince, or a LangChain chat model that implements bind_tools.",
        )
    if not isinstance(max_searches, int) or max_searches < 1:
        raise ConfigurationError(
            f"max_searches={max_searches!r} must be an integer of at least 1.",
            hint=f"Set the maximum number of searches for one question; the default is {MOST_SEARCHES}.",
        )
    settings = ChainSettings(language, max_context_tokens, on_unsupported, minimum_confidence, rewriting="auto")
    check_model(llm)
    answering = AnswerFromDocuments(llm, settings, system_prompt=system_prompt, max_searches=max_searches)
    search = index.as_tool(name=SEARCH_TOOL, **(search_options or {}))
    graph: CompiledStateGraph[Any, Any, Any, Any] = create_agent(
        llm, [search, *tools], middleware=[*middleware, answering], **options
    )
    return graph
