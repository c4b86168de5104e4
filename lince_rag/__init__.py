"""Cited answers about your own documents, in Spanish and Portuguese, with models on your own machine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lince_rag.agents.agent import create_document_agent
    from lince_rag.chain.answer import Answer, Citation
    from lince_rag.chain.best_of import BestOf
    from lince_rag.chain.rag import create_rag_chain
    from lince_rag.documents.chunking import ChunkingSettings
    from lince_rag.documents.workers import ReadingLimits
    from lince_rag.engines.scorers.classifiers import SequenceClassifier
    from lince_rag.engines.scorers.rerankers import LinceReranker
    from lince_rag.errors import LinceError
    from lince_rag.index.embeddings import LinceEmbeddings
    from lince_rag.index.index import Index
    from lince_rag.index.retriever import HybridRetriever
    from lince_rag.models.chat_model import ChatLince
    from lince_rag.models.llm import LinceLLM
    from lince_rag.models.native_prompt import NativePrompt

    __version__: str

__all__ = [
    "Answer",
    "BestOf",
    "ChatLince",
    "ChunkingSettings",
    "Citation",
    "HybridRetriever",
    "Index",
    "LinceEmbeddings",
    "LinceError",
    "LinceLLM",
    "LinceReranker",
    "NativePrompt",
    "ReadingLimits",
    "SequenceClassifier",
    "create_document_agent",
    "create_rag_chain",
]

# Each name is imported when it is first used: `import lince_rag` and the command line's --help stay fast.
_MODULES = {
    "Answer": "chain.answer",
    "BestOf": "chain.best_of",
    "ChatLince": "models.chat_model",
    "ChunkingSettings": "documents.chunking",
    "Citation": "chain.answer",
    "HybridRetriever": "index.retriever",
    "Index": "index.index",
    "LinceEmbeddings": "index.embeddings",
    "LinceError": "errors",
    "LinceLLM": "models.llm",
    "LinceReranker": "engines.scorers.rerankers",
    "NativePrompt": "models.native_prompt",
    "ReadingLimits": "documents.workers",
    "SequenceClassifier": "engines.scorers.classifiers",
    "create_document_agent": "agents.agent",
    "create_rag_chain": "chain.rag",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Its only place is pyproject.toml.
        from importlib.metadata import version

        return version("lince-rag")
    if name not in _MODULES:
        raise AttributeError(f"module 'lince_rag' has no attribute {name!r}")
    return getattr(import_module(f"lince_rag.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
