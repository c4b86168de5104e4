"""What a row of a models.toml may hold, and the checks that say which key is wrong and how."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from lince_rag.errors import ConfigurationError

# The size of one weight in each dtype, in bits.
WEIGHT_BITS: Final = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}

ENGINES: Final = ("transformers", "extractive")

_SPECIAL_TOKENS: Final = ("bos_token", "eos_token", "sep_token", "pad_token", "unk_token")

_GENERATION_TYPES: Final[Mapping[str, type]] = {
    "max_new_tokens": int,
    "do_sample": bool,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "num_beams": int,
    "early_stopping": bool,
    "repetition_penalty": float,
}


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_window(value: object) -> bool:
    return type(value) is int and value > 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _is_markers(value: object) -> bool:
    # One backslash after the first character is what breaks a marker, so there must be a second character and
    # no backslash of the marker's own.
    if not isinstance(value, list) or not _is_texts(value):
        return False
    return all(len(item.strip()) > 1 and "\\" not in item for item in value)


def _is_memory(value: object) -> bool:
    return isinstance(value, dict) and all(key in WEIGHT_BITS and _is_count(item) for key, item in value.items())


def _is_special_tokens(value: object) -> bool:
    return isinstance(value, dict) and all(
        key in _SPECIAL_TOKENS and isinstance(item, str) for key, item in value.items()
    )


def _is_generation(value: object) -> bool:
    if not isinstance(value, dict) or not value.keys() <= _GENERATION_TYPES.keys():
        return False
    return all(
        type(item) is _GENERATION_TYPES[key] or (_GENERATION_TYPES[key] is float and type(item) is int)
        for key, item in value.items()
    )


# What each key of a row must hold: a test, and the words for it.
_KEYS: Final[Mapping[str, tuple[Callable[[object], bool], str]]] = {
    "repo": (_is_text, "a text"),
    "revision": (_is_text, "a text"),
    "adapter": (lambda value: isinstance(value, bool), "true or false"),
    "base_model": (_is_text, "a text"),
    "note": (_is_text, "a text"),
    "engine": (lambda value: value in ENGINES, f"one of {', '.join(ENGINES)}"),
    "template": (
        lambda value: _is_text(value) and Path(str(value)).name == value,
        "a file name without a folder",
    ),
    "context_window": (_is_window, "a whole number above zero"),
    "languages": (_is_texts, "a list of language codes"),
    "licence": (_is_text, "a text"),
    "parameters": (_is_count, "a whole number"),
    "memory": (_is_memory, f"whole numbers under {', '.join(WEIGHT_BITS)}"),
    "stop": (_is_texts, "a list of texts"),
    "special_tokens": (_is_special_tokens, f"texts under {', '.join(_SPECIAL_TOKENS)}"),
    "control_tokens": (_is_texts, "a list of texts"),
    "markers": (_is_markers, "a list of texts of two characters or more, without a backslash"),
    "line_markers": (_is_markers, "a list of texts of two characters or more, without a backslash"),
    "generation": (_is_generation, f"numbers or booleans under {', '.join(_GENERATION_TYPES)}"),
}

REQUIRED: Final = ("repo", "engine", "template", "context_window", "languages", "licence", "parameters")


def check_row(row: object, name: str, source: str) -> dict[str, Any]:
    """Check the keys and values that one file gives for one model.

    Args:
        row: What the file holds under the model's name.
        name: The model.
        source: What to call the file in an error.

    Returns:
        The row.

    Raises:
        ConfigurationError: It is no table, or has an unknown key or a wrong value.
    """
    if not isinstance(row, dict):
        raise ConfigurationError(
            f"{source}: {name} = {row!r} is not a table.",
            hint=f"Write the model's keys under a line [{name}].",
        )
    for key, value in row.items():
        if key not in _KEYS:
            close = get_close_matches(key, _KEYS, n=1)
            raise ConfigurationError(
                f"{source}: row {name!r} has an unknown key {key!r}.",
                hint=f"Did you mean {close[0]!r}?" if close else f"The keys are: {', '.join(_KEYS)}.",
            )
        is_right, expected = _KEYS[key]
        if not is_right(value):
            raise ConfigurationError(
                f"{source}: row {name!r}, key {key!r}: {value!r} is not {expected}.",
                hint=f"Write {expected}.",
            )
    return row
