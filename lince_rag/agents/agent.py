"""create_document_agent: LangChain's ``create_agent`` over an index, with citations and abstention."""

from collections.abc import Callable, Sequence
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langgraph.graph.state import CompiledStateGraph

from lince_rag.agents.middleware import SEARCH_TOOL, AnswerFromDocuments
from lince_rag.chain.bindings import check_model
from lince_rag.chain.flow import ChainSettings
from lince_rag.chain.grounding import OnUnsupported
from lince_rag.errors import ConfigurationError
from lince_rag.index.index import Index
from lince_rag.models.search_policy import MOST_SEARCHES
from lince_rag.text.confidence import EVEN_CONFIDENCE
from lince_rag.text.language import Language


def create_document_agent(
    llm: BaseChatModel,
    index: Index,
    tools: Sequence[BaseTool | Callable[..., Any]] = (),
    *,
    language: Language | None = None,
    system_prompt: str = "",
    max_searches: int = MOST_SEARCHES,
    on_unsupported: OnUnsupported = "flag",
    minimum_confidence: float = EVEN_CONFIDENCE,
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
