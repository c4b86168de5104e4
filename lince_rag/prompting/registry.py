"""The models that lince_rag knows by name: every row of a models.toml, checked and frozen."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from lince_rag.errors import ConfigurationError, UnknownModelError

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


_FILE_NAME: Final = "models.toml"


@dataclass(frozen=True)
class ModelSpec:
    """One model: where it is, what it can do and the format it was trained to read.

    Attributes:
        name: The registry name.
        repo: The Hugging Face repository, the adapter's where ``adapter`` is true; empty without weights.
        revision: The branch, tag or commit.
        adapter: Whether ``repo`` is an adapter, which needs a base model.
        base_model: What the adapter is applied to; ``None`` when there is none or the user must name it.
        note: A sentence that the user must know.
        engine: One of ``model_rows.ENGINES``.
        template: The file name of the chat template.
        template_file: The chat template itself.
        context_window: Tokens of prompt and answer together.
        languages: Language codes, the strongest first.
        licence: The licence of the weights.
        parameters: The number of weights.
        memory: Bytes needed to run, by dtype (the keys of ``model_rows.WEIGHT_BITS``).
        stop: The texts that end an answer.
        special_tokens: Values of the template's ``bos_token`` and the like when no tokenizer is at hand.
        control_tokens: Every text that the model's tokenizer turns into a control id.
        markers: Section markers that count anywhere in a text.
        line_markers: Section markers that count only at the start of a line.
        generation: The model card's own generation settings, under transformers' names.
    """

    name: str
    repo: str
    engine: str
    template: str
    template_file: Traversable = field(repr=False, compare=False)
    context_window: int
    languages: tuple[str, ...]
    licence: str
    parameters: int
    memory: Mapping[str, int] = field(hash=False)
    revision: str = "main"
    adapter: bool = False
    base_model: str | None = None
    note: str = ""
    stop: tuple[str, ...] = ()
    special_tokens: Mapping[str, str] = field(default_factory=dict, hash=False)
    control_tokens: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    line_markers: tuple[str, ...] = ()
    generation: Mapping[str, bool | int | float] = field(default_factory=dict, hash=False)

    def template_text(self) -> str:
        """Read the chat template.

        Returns:
            The Jinja source.
        """
        return self.template_file.read_text(encoding="utf-8")


def _memory(parameters: int, given: Mapping[str, int]) -> dict[str, int]:
    """Bytes by dtype: what the row says, and for the rest the weights and a tenth more to work in."""
    computed = {dtype: parameters * bits // 8 * 11 // 10 for dtype, bits in WEIGHT_BITS.items()}
    return computed | dict(given)


def _spec(name: str, row: Mapping[str, Any], folders: tuple[Traversable, ...], source: str) -> ModelSpec:
    """Freeze a checked row; its template is taken from the first folder that has it."""
    for key in REQUIRED:
        if key not in row:
            raise ConfigurationError(
                f"{source}: row {name!r} lacks the key {key!r}.", hint=f"A row needs: {', '.join(REQUIRED)}."
            )
    template_file = next(
        (folder / row["template"] for folder in folders if (folder / row["template"]).is_file()), None
    )
    if template_file is None:
        raise ConfigurationError(
            f"{source}: row {name!r}, key 'template': there is no file {row['template']!r}.",
            hint="Put the template beside the models.toml.",
        )
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in row.items()
    }
    values["memory"] = _memory(row["parameters"], row.get("memory", {}))
    values["base_model"] = row.get("base_model") or None
    return ModelSpec(name=name, template_file=template_file, **values)


def _read(file: Traversable, source: str) -> dict[str, dict[str, Any]]:
    """Read and check a models.toml, without freezing its rows."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{source}: {error.strerror or error}.", hint="Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{source}: not valid TOML: {error}.", hint="Correct the file.") from error
    return {name: check_row(row, name, source) for name, row in table.items()}


@cache
def _built_in() -> Mapping[str, ModelSpec]:
    folder = files("lince_rag.prompts")
    rows = _read(folder / _FILE_NAME, _FILE_NAME)
    return {name: _spec(name, row, (folder,), _FILE_NAME) for name, row in rows.items()}


def load_registry(path: Path | None = None) -> Mapping[str, ModelSpec]:
    """Load the built-in models, and a models.toml of the user's own over them.

    A row of the user's file that has the name of a built-in one changes only the keys it gives. A template
    that it names is looked for beside the file first, then among the built-in templates.

    Args:
        path: The user's models.toml.

    Returns:
        The models by name.

    Raises:
        ConfigurationError: The file cannot be read, or a row of it has a wrong, missing or unknown key.
    """
    if path is None:
        return dict(_built_in())
    built_in_folder = files("lince_rag.prompts")
    built_in_rows = _read(built_in_folder / _FILE_NAME, _FILE_NAME)
    registry = dict(_built_in())
    for name, row in _read(path, str(path)).items():
        folders = (path.parent, built_in_folder) if "template" in row else (built_in_folder,)
        registry[name] = _spec(name, {**built_in_rows.get(name, {}), **row}, folders, str(path))
    return registry


def get_model(name: str, registry: Mapping[str, ModelSpec] | None = None) -> ModelSpec:
    """Look up a model by its registry name.

    Args:
        name: The registry name.
        registry: Where to look; the built-in models unless given.

    Returns:
        The model.

    Raises:
        UnknownModelError: There is no such model; the hint lists close names.
    """
    models = load_registry() if registry is None else registry
    if name in models:
        return models[name]
    close = get_close_matches(name, models, n=3)
    raise UnknownModelError(
        f"There is no model named {name!r}.",
        hint=f"Did you mean {' or '.join(close)}?" if close else f"The models are: {', '.join(models)}.",
    )
