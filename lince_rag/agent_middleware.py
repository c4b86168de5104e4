"""What makes LangChain's agent answer from documents: packing what it found, ending its searches, citing.

What searches find reaches a ``ChatLince`` as the chunks of the chain do: packed into the window, in the model's
own Contexto or Entrada. The loop, its streams and its memory are LangGraph's.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final, NotRequired, cast

from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.tools import BaseTool
from langgraph.channels.untracked_value import UntrackedValue
from langgraph.runtime import Runtime

from lince_rag.answer_formats import instruction
from lince_rag.answers import Answer
from lince_rag.concluding import Conclusion, advance, conclude, refuse
from lince_rag.conversation import Rewriter
from lince_rag.language import Language
from lince_rag.prompting import Prepared, prepare, reads_documents
from lince_rag.requests import Request, read_request
from lince_rag.searching import current_turn, found_documents, last_question, without_calls
from lince_rag.steps import ChainSettings

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
        self._quotes = bool(getattr(llm, "quotes", False))

    def before_agent(self, state: DocumentAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Forget the answer to the question before."""
        return {"answer": None}

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | AIMessage:
        """Ask the model with what was found, or abstain without asking it."""
        asked = self._ask(request)
        return asked if isinstance(asked, AIMessage) else handler(asked)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | AIMessage:
        """Ask the model with what was found, or abstain without asking it."""
        asked = self._ask(request)
        return asked if isinstance(asked, AIMessage) else await handler(asked)

    def after_agent(self, state: DocumentAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Cite what was said, asking again or quoting where that is wanted."""
        conclusion = self._conclude(state["messages"])
        step = advance(conclusion, None)
        while isinstance(step, Prepared):
            step = advance(conclusion, self.llm.invoke(step.messages, **step.options))
        return _update(state["messages"], step)

    async def aafter_agent(self, state: DocumentAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Cite what was said, asking again or quoting where that is wanted."""
        conclusion = self._conclude(state["messages"])
        step = advance(conclusion, None)
        while isinstance(step, Prepared):
            step = advance(conclusion, await self.llm.ainvoke(step.messages, **step.options))
        return _update(state["messages"], step)

    def _ask(self, request: ModelRequest[Any]) -> ModelRequest[Any] | AIMessage:
        """Fit the conversation into the window, and say which tools may still be called."""
        turn = current_turn(request.messages)
        calls = [call for message in turn if isinstance(message, AIMessage) for call in message.tool_calls]
        searches = [call for call in calls if call["name"] == SEARCH_TOOL]
        tools = [] if len(calls) >= MOST_CALLS else list(request.tools)
        if len(searches) >= self.max_searches:
            tools = [tool for tool in tools if _name(tool) != SEARCH_TOOL]
        asked = self._read(request.messages)
        may_search = SEARCH_TOOL in map(_name, tools)
        choice = request.tool_choice
        if self.settings.on_unsupported != "flag" and not calls and not self._quotes:
            # What is said without a search would be supported by nothing.
            choice = SEARCH_TOOL
        if len(searches) == len(calls) and self._is_unsupported(turn) and not self._quotes:
            if not may_search:
                return AIMessage(refuse(asked, None).text)
            choice = SEARCH_TOOL
        prepared = self._prepare(asked, turn, cast(list[BaseTool], tools))
        return request.override(
            messages=cast(Any, prepared.messages[1:]),
            system_message=cast(Any, prepared.messages[0]),
            tools=tools,
            tool_choice=choice if tools else None,
            model_settings={**request.model_settings, **prepared.options},
        )

    def _read(self, messages: Sequence[BaseMessage]) -> Request:
        """Read the last question; for a model that only quotes, a follow-up is made whole by rules."""
        before = messages[: len(messages) - len(current_turn(messages)) - 1]
        request = read_request(
            {"question": last_question(messages), "history": without_calls(before)}, self.settings.language
        )
        return Rewriter("rules" if self._quotes else "off", self._quotes).rewrite(request, None)

    def _is_unsupported(self, turn: Sequence[BaseMessage]) -> bool:
        """Tell whether something was searched for, and what was found holds no answer."""
        if not any(isinstance(message, ToolMessage) and message.artifact is not None for message in turn):
            return False
        supports = [each.metadata.get("support") for each in found_documents(turn)]
        measured = [float(support) for support in supports if support is not None]
        return not supports or (bool(measured) and max(measured) < self.settings.minimum_support)

    def _prepare(self, request: Request, turn: Sequence[BaseMessage], tools: Sequence[BaseTool]) -> Prepared:
        # A model that reads documents gets them there; what a search returned is only counted here.
        following = [self._noted(message, request.language) for message in turn]
        told = [instruction("search", request.language, tool=SEARCH_TOOL)] if tools and not self._quotes else []
        return prepare(
            self.llm,
            request,
            found_documents(turn),
            max_context_tokens=self.settings.max_context_tokens,
            minimum_support=self.settings.minimum_support,
            following=following if reads_documents(self.llm) else turn,
            further_instructions="\n".join(filter(None, (*told, self.system_prompt))),
            tools=tools,
        )

    def _noted(self, message: BaseMessage, language: Language) -> BaseMessage:
        if not isinstance(message, ToolMessage) or not _holds_documents(message):
            return message
        count = str(len(message.artifact))
        return message.model_copy(update={"content": instruction("found", language, count=count), "artifact": []})

    def _conclude(self, messages: Sequence[BaseMessage]) -> Conclusion:
        *before, reply = messages
        turn = current_turn(before)

        def prepared(request: Request) -> Prepared:
            return self._prepare(request, turn, ())

        request = self._read(before)
        return conclude(request, prepared(request), reply, self.settings.on_unsupported, prepared)


def _holds_documents(message: ToolMessage) -> bool:
    found = message.artifact
    return isinstance(found, list) and all(isinstance(each, Document) for each in found)


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
        update["messages"] = [AIMessage(answer.text, id=reply.id)]
    return update
