"""What a run depends on: described for people, and digested so that equal runs are recognised."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import Runnable

from lince_rag.chain.rag import RagChain
from lince_rag.evaluation.questions import Question
from lince_rag.index.index import Index

# What says nothing of the answers, in the fields of LangChain's retrievers.
_UNRELATED_FIELDS: Final = {"tags", "metadata", "callbacks", "verbose", "name", "cache", "index"}


def describe(chain: RagChain) -> dict[str, Any]:
    """Say what a chain consists of, as far as its answers depend on it, in what JSON can hold."""
    return {
        "model": _describe_model(chain.llm),
        "retriever": _describe_retriever(chain.retriever),
        "chain": asdict(chain.settings),
    }


def _describe_model(llm: Runnable[Any, Any]) -> dict[str, Any]:
    if not isinstance(llm, BaseChatModel):
        return {"class": type(llm).__name__, "repr": repr(llm)}
    # LangChain's own key for caching: what identifies a model, and no secret among it.
    identity = {name: value for name, value in llm._identifying_params.items() if _is_plain(value)}
    return {"class": type(llm).__name__, **identity}


def _describe_retriever(retriever: RetrieverLike) -> dict[str, Any]:
    if not isinstance(retriever, BaseRetriever):
        return {"class": type(retriever).__name__, "repr": repr(retriever)}
    names = type(retriever).model_fields.keys() - _UNRELATED_FIELDS
    fields = {name: getattr(retriever, name) for name in sorted(names)}
    return {
        "class": type(retriever).__name__,
        # A reranker names its model when it is written out.
        **{name: value if _is_plain(value) else repr(value) for name, value in fields.items()},
    }


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def fingerprint(settings: Mapping[str, Any], questions: Sequence[Question], index: Index) -> str:
    """Digest what the records of a run depend on.

    Args:
        settings: What ``describe`` returned, and what else was chosen.
        questions: The questions.
        index: The documents: their contents count, not where the index is.

    Returns:
        Sixteen hexadecimal digits; equal for equal runs of one version of this package.
    """
    whole = {
        "settings": settings,
        "questions": [asdict(question) for question in questions],
        "documents": index.ledger.content_hashes(),
        "chunking": index.ledger.setting("chunking"),
        "version": version("lince-rag"),
    }
    return hashlib.blake2b(json.dumps(whole, sort_keys=True).encode("utf-8", "replace"), digest_size=8).hexdigest()
