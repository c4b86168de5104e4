"""The models that lince_rag knows by name: the rows of a models.toml, validated and frozen."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError

from lince_rag.errors import ConfigurationError, UnknownModelError

# The size of one weight in each dtype, in bits.
WEIGHT_BITS: Final = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}

REQUIRED: Final = ("repo", "engine", "template", "context_window", "languages", "licence", "parameters")

_FILE_NAME: Final = "models.toml"


@dataclass(frozen=True)
class ModelSpec:
    """One model: where it is, what it can do and the format it was trained to read.

    ``prompts/models.toml`` explains the fields that are keys of a row.
    """

    # The registry name.
    name: str
    repo: str
    engine: str
    template: str
    # The chat template itself; ``template`` is only its file name.
    template_file: Traversable = field(repr=False, compare=False)
    context_window: int
    languages: tuple[str, ...]
    licence: str
    parameters: int
    memory: Mapping[str, int] = field(hash=False)
    revision: str = "main"
    adapter: bool = False
    # What the adapter is applied to; ``None`` if there is none or the user must name it.
    base_model: str | None = None
    note: str = ""
    stop: tuple[str, ...] = ()
    special_tokens: Mapping[str, str] = field(default_factory=dict, hash=False)
    control_tokens: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    line_markers: tuple[str, ...] = ()
    generation: Mapping[str, bool | int | float] = field(default_factory=dict, hash=False)

    def template_text(self) -> str:
        """Read the Jinja source of the chat template."""
        return self.template_file.read_text(encoding="utf-8")


def load_registry(path: Path | None = None) -> Mapping[str, ModelSpec]:
    """Load the built-in models by name, and a models.toml of the user's own over them.

    A row of the user's file with the name of a built-in one changes only the keys it gives. A template that it
    names is looked for next to the file first, then among the built-in templates.
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
    """Look up a model by name, among the built-in models unless a registry is given."""
    models = load_registry() if registry is None else registry
    if name in models:
        return models[name]
    close = get_close_matches(name, models, n=3)
    raise UnknownModelError(
        f"There is no model named {name!r}.",
        hint=f"Did you mean {' or '.join(close)}?" if close else f"The models are: {', '.join(models)}.",
    )


def running_bytes(weights: int) -> int:
    """Return the bytes to run that number of bytes of weights: a tenth more, for activations and the cache."""
    return weights + weights // 10


def memory_by_dtype(parameters: int) -> dict[str, int]:
    """Compute the bytes to run that number of weights, by dtype; empty if the number is unknown (0)."""
    if not parameters:
        return {}
    return {dtype: running_bytes(parameters * bits // 8) for dtype, bits in WEIGHT_BITS.items()}


@cache
def _built_in() -> Mapping[str, ModelSpec]:
    folder = files("lince_rag.prompts")
    rows = _read(folder / _FILE_NAME, _FILE_NAME)
    return {name: _spec(name, row, (folder,), _FILE_NAME) for name, row in rows.items()}


def _read(file: Traversable, source: str) -> dict[str, dict[str, Any]]:
    """Read and validate the rows of a models.toml."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{source}: {error.strerror or error}.", hint="Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{source}: not valid TOML: {error}.", hint="Correct the file.") from error
    return {name: check_row(row, name, source) for name, row in table.items()}


def _spec(name: str, row: Mapping[str, Any], folders: tuple[Traversable, ...], source: str) -> ModelSpec:
    """Freeze a complete row; its template is taken from the first folder that has it."""
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
            hint="Put the template next to the models.toml.",
        )
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in row.items()
    }
    # An engine without weights needs none.
    computed = memory_by_dtype(row["parameters"]) or dict.fromkeys(WEIGHT_BITS, 0)
    values["memory"] = computed | row.get("memory", {})
    values["base_model"] = row.get("base_model") or None
    return ModelSpec(name=name, template_file=template_file, **values)


def _check_file_name(value: str) -> str:
    if Path(value).name != value:
        raise ValueError("Input should be a file name without a folder")
    return value


def _check_marker(value: str) -> str:
    # A marker is broken by one backslash after its first character, so it must have a second character and no
    # backslash.
    if len(value.strip()) < 2 or "\\" in value:
        raise ValueError("Input should have two characters or more and no backslash")
    return value


_Text = Annotated[str, Field(min_length=1)]
_Marker = Annotated[str, AfterValidator(_check_marker)]


class _Generation(BaseModel, extra="forbid", strict=True):
    max_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 0.0
    top_p: float = 0.0
    top_k: int = 0
    num_beams: int = 0
    early_stopping: bool = False
    repetition_penalty: float = 0.0


class _Row(BaseModel, extra="forbid", strict=True):
    """What a row may hold. No key is required here: a user's row may change only some keys of a built-in one."""

    repo: str = ""
    revision: str = ""
    adapter: bool = False
    base_model: str = ""
    note: str = ""
    engine: Literal["transformers", "extractive"] = "transformers"
    template: Annotated[str, AfterValidator(_check_file_name)] = ""
    context_window: PositiveInt = 1
    languages: list[_Text] = []
    licence: str = ""
    parameters: NonNegativeInt = 0
    memory: dict[Literal["float32", "bfloat16", "int8", "int4"], NonNegativeInt] = {}
    stop: list[_Text] = []
    special_tokens: dict[Literal["bos_token", "eos_token", "sep_token", "pad_token", "unk_token"], str] = {}
    control_tokens: list[_Text] = []
    markers: list[_Marker] = []
    line_markers: list[_Marker] = []
    generation: _Generation = _Generation()


def check_row(row: object, name: str, source: str) -> dict[str, Any]:
    """Validate what one file (``source`` in an error) gives for one model, and return it."""
    if not isinstance(row, dict):
        raise ConfigurationError(
            f"{source}: {name} = {row!r} is not a table.",
            hint=f"Write the model's keys under a line [{name}].",
        )
    try:
        _Row.model_validate(row)
    except ValidationError as error:
        problem = error.errors()[0]
    else:
        return row
    path = [str(part) for part in problem["loc"] if part != "[key]"]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = (_Row if len(path) == 1 else _Generation).model_fields
        close = get_close_matches(path[-1], known, n=1)
        raise ConfigurationError(
            f"{source}: row {name!r} has an unknown key {key!r}.",
            hint=f"Did you mean {close[0]!r}?" if close else f"The keys are: {', '.join(known)}.",
        )
    is_table = problem["type"] in {"dict_type", "model_type"}
    expected = "Input should be a table" if is_table else problem["msg"].removeprefix("Value error, ")
    raise ConfigurationError(
        f"{source}: row {name!r}, key {key!r}: {problem['input']!r} is not valid.", hint=f"{expected}."
    )
