"""Cited answers about your own documents, in Spanish and Portuguese, with models on your own machine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lince_rag.agents import create_document_agent
    from lince_rag.answers import Answer
    from lince_rag.candidates import BestOf
    from lince_rag.chat_models import ChatLince
    from lince_rag.citations import Citation
    from lince_rag.embeddings import LinceEmbeddings
    from lince_rag.errors import LinceError
    from lince_rag.index import Index
    from lince_rag.llms import LinceLLM
    from lince_rag.messages import NativePrompt
    from lince_rag.rag import create_rag_chain
    from lince_rag.retrievers import HybridRetriever

__all__ = [
    "Answer",
    "BestOf",
    "ChatLince",
    "Citation",
    "HybridRetriever",
    "Index",
    "LinceEmbeddings",
    "LinceError",
    "LinceLLM",
    "NativePrompt",
    "create_document_agent",
    "create_rag_chain",
]

# Each name is imported when it is first used: `import lince_rag` and the command line's --help stay fast.
_MODULES = {
    "Answer": "answers",
    "BestOf": "candidates",
    "ChatLince": "chat_models",
    "Citation": "citations",
    "HybridRetriever": "retrievers",
    "Index": "index",
    "LinceEmbeddings": "embeddings",
    "LinceError": "errors",
    "LinceLLM": "llms",
    "NativePrompt": "messages",
    "create_document_agent": "agents",
    "create_rag_chain": "rag",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lince_rag' has no attribute {name!r}")
    return getattr(import_module(f"lince_rag.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
