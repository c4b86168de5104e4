"""An agent over an index: LangChain's ``create_agent``, which searches, answers with citations, and abstains."""

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

    It decides whether to search, searches again in other words where what it found holds no answer, and then
    answers with citations or abstains. The embedded default searches with the question and with less around it;
    models with weights are held to valid calls while they decode.

    Args:
        llm: A ``ChatLince`` or any other chat model that calls tools.
        index: The documents.
        tools: More tools for the model; the embedded default only searches. An answer may rest on what they
            return: its citation then has the tool's name for a source.
        language: Answer in this language whatever the question's.
        system_prompt: More instructions for the model.
        max_searches: Searches for one question at most; all tools together are called at most 8 times.
        on_unsupported: ``"flag"``, ``"drop"`` or ``"extract"``, as in ``create_rag_chain``. But for the first, the
            agent begins with a search.
        minimum_confidence: As in ``create_rag_chain``; below it the agent searches again, and then abstains.
        max_context_tokens: Tokens that the chunks may take; ``None`` takes what the window leaves.
        search_options: Fields of the ``HybridRetriever`` behind the search: ``k``, ``filter`` …
        middleware: More of LangChain's agent middleware.
        **options: Keywords of ``langchain.agents.create_agent``: ``checkpointer``, ``store``, ``name`` …

    Returns:
        A LangGraph graph. Its state has ``messages`` and, in the end, ``answer``, an ``Answer``. It streams its
        steps (``stream_mode="updates"``) and its tokens (``"messages"``); with a ``checkpointer`` it remembers.

    Raises:
        ConfigurationError: A number is out of its range.
        UnknownModelError: The ``ChatLince`` names no model.

    Example:
        >>> agent = create_document_agent(ChatLince(), index)
        >>> agent.invoke({"messages": [("human", "¿Cuándo vence el contrato?")]})["answer"].text
    """
    if not isinstance(llm, BaseChatModel) or type(llm).bind_tools is BaseChatModel.bind_tools:
        raise ConfigurationError(
            f"{type(llm).__name__} is no chat model that calls tools.",
            hint="Give a ChatLince, or one that does.",
        )
    if not isinstance(max_searches, int) or max_searches < 1:
        raise ConfigurationError(f"max_searches={max_searches!r} is no number from 1 up.", hint="Let it search.")
    settings = ChainSettings(language, max_context_tokens, on_unsupported, minimum_confidence, rewriting="auto")
    check_model(llm)
    answering = AnswerFromDocuments(llm, settings, system_prompt=system_prompt, max_searches=max_searches)
    search = index.as_tool(name=SEARCH_TOOL, **(search_options or {}))
    graph: CompiledStateGraph[Any, Any, Any, Any] = create_agent(
        llm, [search, *tools], middleware=[*middleware, answering], **options
    )
    return graph
