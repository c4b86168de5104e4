"""What makes LangChain's agent answer from documents: packing what it found, ending its searches, citing.

What searches find reaches a ``ChatLince`` as the chunks of the chain do: packed into the window, in the model's
own Contexto or Entrada. The loop, its streams and its memory are LangGraph's.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, NotRequired, cast

from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.runnables.config import run_in_executor
from langchain_core.tools import BaseTool
from langgraph.channels.untracked_value import UntrackedValue
from langgraph.runtime import Runtime

from lince_rag.chain.answer import Answer
from lince_rag.chain.flow import ChainSettings, Conclusion, advance, conclude, refuse
from lince_rag.chain.packing import Prepared, prepare, reads_documents
from lince_rag.chain.question import Request, Rewriter, read_request
from lince_rag.models.turns import current_turn, found_documents, last_question, made_calls, without_calls
from lince_rag.text.language import Language
from lince_rag.text.wording import wording

SEARCH_TOOL: Final = "search_documents"

# Calls of all tools together for one question, after which the model has to answer.
MOST_CALLS: Final = 8


class DocumentAgentState(AgentState[Any]):
    """The state of a document agent.

    Attributes:
        answer: The answer to the last question; ``None`` until there is one.
    """

    # Not kept in checkpoints: those hold the messages, and read back no classes but LangChain's own.
    answer: NotRequired[Annotated[Answer | None, UntrackedValue]]


class AnswerFromDocuments(AgentMiddleware[DocumentAgentState, Any, Any]):
    """Packs what searches find into the prompt, ends the searching, and cites the answer.

    Args:
        llm: The model.
        settings: How it answers.
        system_prompt: More instructions.
        max_searches: Searches for one question at most.
    """

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
        """Forget the answer to the question before."""
        return {"answer": None}

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | AIMessage:
        """Ask the model with what was found, or abstain without asking it."""
        asked = self._ask(request)
        return asked if isinstance(asked, AIMessage) else self._bound(handler(asked), request.messages)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | AIMessage:
        """Ask the model with what was found, or abstain without asking it."""
        asked = await run_in_executor(None, self._ask, request)
        return asked if isinstance(asked, AIMessage) else self._bound(await handler(asked), request.messages)

    def after_agent(self, state: DocumentAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Cite what was said, asking again or quoting where that is wanted."""
        if (given := self._given(state["messages"])) is not None:
            return given
        conclusion = self._conclude(state["messages"])
        step = advance(conclusion, None)
        while isinstance(step, Prepared):
            step = advance(conclusion, self.llm.invoke(step.messages, **step.options))
        return _update(state["messages"], step)

    async def aafter_agent(self, state: DocumentAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Cite what was said, asking again or quoting where that is wanted."""
        if (given := self._given(state["messages"])) is not None:
            return given
        conclusion = await run_in_executor(None, self._conclude, state["messages"])
        step = await run_in_executor(None, advance, conclusion, None)
        while isinstance(step, Prepared):
            step = advance(conclusion, await self.llm.ainvoke(step.messages, **step.options))
        return _update(state["messages"], step)

    def _ask(self, request: ModelRequest[Any]) -> ModelRequest[Any] | AIMessage:
        """Fit the conversation into the window, and say which tools may still be called."""
        llm, turn = request.model, current_turn(request.messages)
        calls = made_calls(turn)
        searches = [call for call in calls if call["name"] == SEARCH_TOOL]
        tools = [] if len(calls) >= MOST_CALLS else list(request.tools)
        if len(searches) >= self.max_searches:
            tools = [tool for tool in tools if _name(tool) != SEARCH_TOOL]
        asked = self._read(request.messages, llm)
        choice = request.tool_choice
        if _quotes(llm):
            # It would call any tool that takes a text; what it can do with one is search.
            tools = [tool for tool in tools if _name(tool) == SEARCH_TOOL]
        elif len(searches) == len(calls) and self._is_unsupported(request.messages):
            if SEARCH_TOOL not in map(_name, tools):
                return AIMessage(refuse(asked, None).text)
            choice = SEARCH_TOOL
        elif self.settings.on_unsupported != "flag" and not calls:
            # What is said without a search would be supported by nothing.
            choice = SEARCH_TOOL
        told = [request.system_message] if request.system_message else []
        prepared = self._prepare(llm, asked, request.messages, cast(list[BaseTool], tools), told)
        return request.override(
            messages=cast(Any, prepared.messages[1:]),
            system_message=cast(Any, prepared.messages[0]),
            tools=tools,
            tool_choice=choice if tools else None,
            model_settings={**request.model_settings, **prepared.options},
        )

    def _bound(self, response: ModelResponse[Any], messages: Sequence[BaseMessage]) -> ModelResponse[Any]:
        """Leave out the calls of an answer that are more than there may be."""
        before = made_calls(current_turn(messages))
        for at, message in enumerate(response.result):
            if not isinstance(message, AIMessage) or not message.tool_calls:
                continue
            kept: list[Any] = []
            for call in message.tool_calls:
                made = [*before, *kept]
                searches = sum(each["name"] == SEARCH_TOOL for each in made)
                if len(made) < MOST_CALLS and (call["name"] != SEARCH_TOOL or searches < self.max_searches):
                    kept.append(call)
            response.result[at] = message.model_copy(update={"tool_calls": kept})
        return response

    def _read(self, messages: Sequence[BaseMessage], llm: BaseChatModel) -> Request:
        """Read the last question; for a model that only quotes, a follow-up is made whole by rules.

        The calls that earlier questions led to are still shown, but for searches: what they found is out of date.
        """
        before = messages[: len(messages) - len(current_turn(messages)) - 1]
        said = [turn for turn in without_calls(before, SEARCH_TOOL) if not isinstance(turn, SystemMessage)]
        request = read_request({"question": last_question(messages), "history": said}, self.settings.language)
        return Rewriter("rules" if _quotes(llm) else "off", _quotes(llm)).rewrite(request, None)

    def _is_unsupported(self, messages: Sequence[BaseMessage]) -> bool:
        """Tell whether something was searched for, and what was found holds no answer."""
        turn = current_turn(messages)
        if not any(map(_is_search, turn)) or _enclosed(messages):
            return False
        confidences = [each.metadata.get("confidence") for each in found_documents(turn)]
        measured = [float(confidence) for confidence in confidences if confidence is not None]
        return not confidences or (bool(measured) and max(measured) < self.settings.minimum_confidence)

    def _prepare(
        self,
        llm: BaseChatModel,
        request: Request,
        messages: Sequence[BaseMessage],
        tools: Sequence[BaseTool],
        told: Sequence[BaseMessage] = (),
    ) -> Prepared:
        turn, enclosed = current_turn(messages), _enclosed(messages)
        documents = found_documents(turn)
        if enclosed:
            # Confidence was measured without them.
            bare = [
                each.model_copy(update={"metadata": {**each.metadata, "confidence": None}}) for each in documents
            ]
            documents = [*enclosed, *bare]
        search = wording("search", request.language, tool=SEARCH_TOOL) if tools and not _quotes(llm) else ""
        system = [str(each.text) for each in (*told, *messages) if isinstance(each, SystemMessage)]
        # A model that reads documents gets them there; what a search returned is only counted here.
        following = [_noted(message, request.language, llm) for message in turn]
        prepared = prepare(
            llm,
            request,
            documents,
            max_context_tokens=self.settings.max_context_tokens,
            minimum_confidence=self.settings.minimum_confidence,
            following=following if reads_documents(llm) else turn,
            further_instructions="\n".join(filter(None, (search, self.system_prompt, *system))),
            tools=tools,
        )
        if not reads_documents(llm) and not request.reminder:
            # It reads what came with the question where it came.
            prepared.messages[-1 - len(turn)] = messages[-1 - len(turn)]
        return prepared

    def _given(self, messages: Sequence[BaseMessage]) -> dict[str, Any] | None:
        """Take the result of a tool that ends the run as it stands: no model said it."""
        if not isinstance(messages[-1], ToolMessage):
            return None
        request = self._read(messages, self.llm)
        return {"answer": Answer(text=str(messages[-1].text), language=request.language)}

    def _conclude(self, messages: Sequence[BaseMessage]) -> Conclusion:
        *before, reply = messages
        turn = current_turn(before)
        results = [each for each in turn if isinstance(each, ToolMessage) and not _is_search(each)]
        texts = [Document(str(each.text), metadata={"source": each.name}) for each in results if each.text]

        def prepared(request: Request) -> Prepared:
            found = self._prepare(self.llm, request, before, ())
            # What other tools said supports an answer as well as what searches found.
            return replace(found, packed=replace(found.packed, documents=[*found.packed.documents, *texts]))

        request = self._read(before, self.llm)
        return conclude(request, prepared(request), reply, self.settings.on_unsupported, prepared)


def _quotes(llm: BaseChatModel) -> bool:
    return bool(getattr(llm, "quotes", False))


def _is_search(message: BaseMessage) -> bool:
    return isinstance(message, ToolMessage) and message.name == SEARCH_TOOL


def _enclosed(messages: Sequence[BaseMessage]) -> list[Document]:
    """Return the material that came with the last question."""
    question = next((each for each in reversed(messages) if isinstance(each, HumanMessage)), None)
    blocks = [each for each in question.content if isinstance(each, dict)] if question else []
    texts = [each["text"] for each in blocks if each.get("type") == "text-plain" and each.get("text")]
    entered = question.additional_kwargs.get("input") if question else None
    return [Document(text) for text in [*texts, *filter(None, [entered])]]


def _noted(message: BaseMessage, language: Language, llm: BaseChatModel) -> BaseMessage:
    """Say of what a search found how much it is; the passages themselves are documents of the prompt."""
    if not isinstance(message, ToolMessage) or not _is_search(message) or not isinstance(message.artifact, list):
        return message
    count = str(len(message.artifact))
    content = "" if _quotes(llm) else wording("found", language, count=count)
    return message.model_copy(update={"content": content, "artifact": []})


def _name(tool: BaseTool | dict[str, Any]) -> str:
    return tool.name if isinstance(tool, BaseTool) else str(tool.get("name"))


def _update(messages: Sequence[BaseMessage], answer: Answer) -> dict[str, Any]:
    """Put the answer into the state, and its text in place of the model's where that is another."""
    reply, usage = messages[-1], cast(UsageMetadata | None, None)
    for message in current_turn(messages)[:-1]:
        if isinstance(message, AIMessage) and message.usage_metadata:
            usage = add_usage(usage, message.usage_metadata)
    usage = add_usage(usage, answer.usage) if usage or answer.usage else None
    update: dict[str, Any] = {"answer": answer.model_copy(update={"usage": usage})}
    if answer.text != str(reply.text).strip():
        update["messages"] = [reply.model_copy(update={"content": answer.text})]
    return update
