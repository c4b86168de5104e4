"""Settings to compare: what ``--compare`` takes, and the index and the chain that each one means."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from lince_rag.chain.rag import RagChain, create_rag_chain
from lince_rag.errors import ConfigurationError
from lince_rag.index.copying import copy_index
from lince_rag.index.embeddings import LinceEmbeddings, embeddings_name
from lince_rag.index.index import Index
from lince_rag.models.chat_model import ChatLince

# How the texts of a setting become values, for the fields of HybridRetriever and of ChatLince.
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
    "max_tokens": int,
    "seed": int,
}
INDEX_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {"index": Path, "embeddings": str}

KEYS: Final = {**RETRIEVER_KEYS, **MODEL_KEYS, **INDEX_KEYS}

# What belongs to one model and would be wrong for another.
_WEIGHTS: Final = ("model_path", "base_model_path", "quantization")

# A comma may be part of a path; one before "key=" is not.
_SEPARATOR: Final = re.compile(r",(?=\s*\w+\s*=)")


@dataclass(frozen=True)
class Setting:
    """A way to answer: an index, an embedder, a retriever, a model.

    Attributes:
        name: What it is called in tables.
        index: The index's folder.
        embeddings: The embedder: one other than the index's own means a copy of the index.
        retriever: Fields of ``HybridRetriever``.
        model: Fields of ``ChatLince``.
    """

    name: str
    index: Path
    embeddings: str | None = None
    retriever: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)


def parse_setting(text: str, base: Setting) -> Setting:
    """Read a setting such as ``lexical_weight=1.0`` or ``k=3,model=NAME,model_path=DIR``.

    Args:
        text: Pairs of key and value, with commas between them.
        base: What it differs from. Another model does not inherit the weights of the base's, nor another index
            its embedder.

    Returns:
        The setting, named by its text.

    Raises:
        ConfigurationError: A key is unknown or given twice, or a value is not of its kind.
    """
    values: dict[str, Any] = {}
    for part in _SEPARATOR.split(text):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ConfigurationError(f"The setting {text!r} is not of the form key=value.", hint=_known())
        if key not in KEYS:
            raise ConfigurationError(f"The setting {text!r} has an unknown key: {key!r}.", hint=_known())
        if key in values:
            raise ConfigurationError(f"The setting {text!r} has {key!r} twice.")
        try:
            values[key] = KEYS[key](value)
        except ValueError as error:
            kind = "a whole number" if KEYS[key] is int else "a number"
            raise ConfigurationError(f"The setting {text!r} has {key}={value}: not {kind}.") from error
    model = dict(base.model)
    if "model" in values:
        model = {key: value for key, value in model.items() if key not in _WEIGHTS}
    embeddings = None if "index" in values else base.embeddings
    return replace(
        base,
        name=text.strip(),
        index=values.get("index", base.index),
        embeddings=values.get("embeddings", embeddings),
        retriever={**base.retriever, **{key: values[key] for key in RETRIEVER_KEYS if key in values}},
        model={**model, **{key: values[key] for key in MODEL_KEYS if key in values}},
    )


def _known() -> str:
    return f"Known keys: {', '.join(sorted(KEYS))}."


@contextmanager
def open_setting_index(
    setting: Setting, output: Path, on_progress: Callable[[int, int, str], None] | None = None
) -> Iterator[Index]:
    """Open the index of a setting; under another embedder than its own, a copy of it.

    Args:
        setting: The setting.
        output: Folder where the copies are; one that is there is brought up to date and used again.
        on_progress: Called with (documents done, documents in all, name of the current one) while it is copied.

    Yields:
        The index.

    Raises:
        IndexFolderError: There is no index in the setting's folder.
        ConfigurationError: The embedder cannot be loaded.
    """
    with Index.open(setting.index, create=False) as index:
        wanted = None if setting.embeddings is None else LinceEmbeddings(setting.embeddings)
        if wanted is None or wanted.name == embeddings_name(index.embeddings):
            yield index
            return
        # One copy for each index and embedder.
        identity = hashlib.blake2b(f"{index.folder}\0{wanted.name}".encode("utf-8", "replace"), digest_size=6)
        with copy_index(index, output / f"index-{identity.hexdigest()}", wanted, on_progress=on_progress) as copy:
            yield copy


def make_chain(setting: Setting, index: Index, chat: ChatLince) -> RagChain:
    """Make the chain of a setting.

    Args:
        setting: The setting.
        index: What ``open_setting_index`` gave.
        chat: What ``make_chat`` returned.

    Raises:
        ConfigurationError: A value is out of its range.
    """
    try:
        return create_rag_chain(chat, index.as_retriever(**setting.retriever))
    except ValidationError as error:
        raise _invalid(setting, error) from error


def make_chat(setting: Setting) -> ChatLince:
    """Make the model of a setting; its weights are loaded when it is first asked.

    Args:
        setting: The setting.

    Raises:
        ConfigurationError: A value is out of its range.
        UnknownModelError: There is no such model.
    """
    try:
        return ChatLince(**setting.model)
    except ValidationError as error:
        raise _invalid(setting, error) from error


def check_setting(setting: Setting) -> None:
    """Check what can be checked without loading a model: the index, the values, the model's name.

    Args:
        setting: The setting.

    Raises:
        IndexFolderError: There is no index in its folder.
        ConfigurationError: A value is out of its range.
        UnknownModelError: There is no such model.
    """
    with Index.open(setting.index, create=False) as index:
        chat = make_chat(setting)
        make_chain(setting, index, chat)
        _ = chat.spec


def _invalid(setting: Setting, error: ValidationError) -> ConfigurationError:
    first = error.errors()[0]
    key, reason = ".".join(str(part) for part in first["loc"]), first["msg"]
    return ConfigurationError(f"The setting {setting.name!r} has {key}={first['input']!r}: {reason}.")
