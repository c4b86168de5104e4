"""The settings that an evaluation compares: how they are read, and the index and the chain of each one."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from langchain_core.embeddings import Embeddings
from pydantic import ValidationError

from lince_rag.chain.rag import RagChain, create_rag_chain
from lince_rag.errors import ConfigurationError
from lince_rag.index.embeddings import embeddings_name, named_embeddings
from lince_rag.index.index import Index
from lince_rag.index.ingestion import copy_documents, recorded_chunking
from lince_rag.models.chat_model import ChatLince

# The keys of a setting, and what converts the text of each value.
RETRIEVER_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {
    "k": int,
    "fetch_k": int,
    "lexical_weight": float,
    "reranker": str,
}
MODEL_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {
    "model": str,
    "model_path": str,
    "base_model_path": str,
    "device": str,
    "dtype": str,
    "quantization": str,
    "engine": str,
    "tokenizer": str,
    "base_url": str,
    "models_file": Path,
    "max_tokens": int,
    "seed": int,
}
CHAIN_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {
    "language": str,
    "on_unsupported": str,
    "minimum_confidence": float,
}
INDEX_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {"index": Path, "embeddings": str}

KEYS: Final = {**RETRIEVER_KEYS, **MODEL_KEYS, **CHAIN_KEYS, **INDEX_KEYS}

# What belongs to one model and would be wrong for another.
_WEIGHTS: Final = ("model_path", "base_model_path", "quantization", "engine", "tokenizer", "base_url", "api_key")

# A path may contain commas; only a comma before "key=" separates two pairs.
_SEPARATOR: Final = re.compile(r",(?=\s*\w+\s*=)")


@dataclass(frozen=True)
class Setting:
    """One way to answer, under the name that tables show."""

    name: str
    index: Path
    # An embedder other than the index's own means a copy of the index.
    embeddings: str | None = None
    # Fields of HybridRetriever, fields of ChatLince, and keywords of create_rag_chain.
    retriever: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    chain: Mapping[str, Any] = field(default_factory=dict)


def parse_setting(text: str, base: Setting) -> Setting:
    """Read changes to ``base`` from a text such as ``lexical_weight=1.0`` or ``k=3,model=NAME,model_path=DIR``.

    Another model does not inherit the weights of the base's model, nor does another index inherit its embedder.
    """
    values: dict[str, Any] = {}
    for part in _SEPARATOR.split(text):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ConfigurationError(f"The setting {text!r} is not of the form key=value.", hint=_known())
        if key not in KEYS:
            raise ConfigurationError(f"The setting {text!r} has an unknown key: {key!r}.", hint=_known())
        if key in values:
            raise ConfigurationError(f"The setting {text!r} has {key!r} twice.", hint="Give each key once.")
        try:
            values[key] = KEYS[key](value)
        except ValueError as error:
            kind = "a whole number" if KEYS[key] is int else "a number"
            raise ConfigurationError(f"The setting {text!r} has {key}={value}, which is not {kind}.") from error

    def chosen(keys: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key in keys}

    model = dict(base.model)
    if "model" in values:
        model = {key: value for key, value in model.items() if key not in _WEIGHTS}
    embeddings = None if "index" in values else base.embeddings
    return replace(
        base,
        name=text.strip(),
        index=values.get("index", base.index),
        embeddings=values.get("embeddings", embeddings),
        retriever={**base.retriever, **chosen(RETRIEVER_KEYS)},
        model={**model, **chosen(MODEL_KEYS)},
        chain={**base.chain, **chosen(CHAIN_KEYS)},
    )


def _known() -> str:
    return f"Known keys: {', '.join(sorted(KEYS))}."


def check_setting(setting: Setting) -> None:
    """Check what can be checked without loading a model: the index, the values, the model's name."""
    with Index.open(setting.index, create=False) as index:
        chat = make_chat(setting)
        make_chain(setting, index, chat)
        _ = chat.spec


def make_chat(setting: Setting) -> ChatLince:
    """Make the model of a setting; its weights are loaded at the first question."""
    try:
        return ChatLince(**setting.model)
    except ValidationError as error:
        raise _invalid(setting, error) from error


def make_chain(setting: Setting, index: Index, chat: ChatLince) -> RagChain:
    """Make the chain of a setting over the index that ``open_setting_index`` yields."""
    try:
        return create_rag_chain(chat, index.as_retriever(**setting.retriever), **setting.chain)
    except ValidationError as error:
        raise _invalid(setting, error) from error


def _invalid(setting: Setting, error: ValidationError) -> ConfigurationError:
    first = error.errors()[0]
    key, reason = ".".join(str(part) for part in first["loc"]), first["msg"]
    return ConfigurationError(f"The setting {setting.name!r} has {key}={first['input']!r}: {reason}.")


@contextmanager
def open_setting_index(
    setting: Setting, output: Path, on_progress: Callable[[int, int, str], None] | None = None
) -> Iterator[Index]:
    """Open the index of a setting, or the copy of it in ``output`` if the setting has another embedder."""
    with Index.open(setting.index, create=False) as index:
        wanted = None if setting.embeddings is None else named_embeddings(setting.embeddings)
        if wanted is None or wanted.name == embeddings_name(index.embeddings):
            yield index
            return
        # One copy for each index and embedder.
        identity = hashlib.blake2b(f"{index.folder}\0{wanted.name}".encode("utf-8", "replace"), digest_size=6)
        with copy_index(index, output / f"index-{identity.hexdigest()}", wanted, on_progress=on_progress) as copy:
            yield copy


def copy_index(
    index: Index,
    folder: str | Path,
    embeddings: Embeddings | str,
    *,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Index:
    """Copy the documents and chunks of an index into an index with another embedder, and return it open.

    Texts and chunks come from the ledger, so no file is read. An existing copy is brought up to date: only new and
    changed documents are embedded. An interrupted copy continues on the next call.
    """
    copy = Index.open(folder, embeddings=embeddings, chunking=recorded_chunking(index.ledger))
    try:
        copy_documents(index.ledger, copy.stores, on_progress)
        copy.add_vectors()
    except BaseException:
        copy.close()
        raise
    return copy
