"""A checkpoint that is in no registry, described by its own files."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any, Final, cast

from lince_rag.engines.checkpoints.configurations import declared_window, read_tokenizer
from lince_rag.engines.checkpoints.files import (
    ADAPTER_CONFIG,
    DEFAULT_REVISION,
    Checkpoint,
    LoadingOptions,
    find_base,
    find_checkpoint,
    require,
)
from lince_rag.engines.checkpoints.memory import memory_by_dtype
from lince_rag.engines.checkpoints.tensors import read_tensors
from lince_rag.errors import ConfigurationError
from lince_rag.prompting.registry import ModelSpec, check_row

_TEMPLATE: Final = "chat_template.jinja"

# Tokenizers without a limit of their own say 10**30.
_LARGEST_WINDOW: Final = 10_000_000


@dataclass(frozen=True)
class TemplateText:
    """A chat template that is in no file of ours; a ``ModelSpec`` reads it like one."""

    text: str

    def read_text(self, encoding: str | None = None) -> str:
        """Return the template."""
        return self.text


def describe_checkpoint(model: str, options: LoadingOptions) -> ModelSpec:
    """Describe a hub id or a folder that is in no registry, but whose tokenizer has a chat template.

    Args:
        model: The hub id or folder.
        options: Its revision, or a ``model_path`` to read instead; an adapter's base.

    Returns:
        The model; its licence and languages are unknown.

    Raises:
        ConfigurationError: It has no chat template, or nothing says how long its window is.
        EngineError: It is not on this machine and cannot be downloaded, or is damaged.
    """
    require("transformers")
    checkpoint = find_checkpoint(options.model_path or model, options.revision or DEFAULT_REVISION)
    base_model: str | None = checkpoint.read_json(ADAPTER_CONFIG).get("base_model_name_or_path")
    base = find_base(model, options.base_model_path or base_model, checkpoint)
    tokenizer = read_tokenizer(checkpoint if checkpoint.has_tokenizer else base, base)
    parameters = sum(
        tensor.count for file in base.weight_files() if file.is_file() for tensor in read_tensors(file)
    )
    return ModelSpec(
        name=model,
        repo=checkpoint.source,
        engine="transformers",
        template=_TEMPLATE,
        template_file=cast(Traversable, TemplateText(_chat_template(tokenizer, checkpoint))),
        context_window=_window(tokenizer, checkpoint, base),
        languages=(),
        licence="unknown",
        parameters=parameters,
        memory=memory_by_dtype(parameters),
        revision=checkpoint.revision or DEFAULT_REVISION,
        adapter=checkpoint.is_adapter,
        base_model=base_model,
        special_tokens=_special_tokens(tokenizer),
        control_tokens=tuple(str(token) for token in tokenizer.added_tokens_decoder.values()),
        generation=_generation_settings(base.read_json("generation_config.json")),
    )


def _count_parameters(base: Checkpoint) -> int:
    """Count the weights that are on this machine."""
    files = [file for file in base.weight_files() if file.is_file()]
    return sum(tensor.count for file in files for tensor in read_tensors(file))


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    tokens = tokenizer.special_tokens_map
    return {name: str(token) for name, token in tokens.items() if not isinstance(token, list)}


def _chat_template(tokenizer: Any, checkpoint: Checkpoint) -> str:
    try:
        # Of several templates, this is the default one.
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ConfigurationError(
            f"The tokenizer of {checkpoint.label} has no chat template, so its prompt format is not known.",
            hint="Write a row for it in a models.toml of your own, with its template, window and stop texts.",
        ) from error


def _window(tokenizer: Any, checkpoint: Checkpoint, base: Checkpoint) -> int:
    window = declared_window(base) or int(tokenizer.model_max_length)
    if not 0 < window <= _LARGEST_WINDOW:
        raise ConfigurationError(
            f"Neither the configuration nor the tokenizer of {checkpoint.label} says how many tokens it can read.",
            hint="Write a row for it in a models.toml of your own, with its context_window.",
        )
    return window


def _generation_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the settings that a row of the registry may have too."""
    kept = {}
    for name, value in values.items():
        with suppress(ConfigurationError):
            check_row({"generation": {name: value}}, "", "")
            kept[name] = value
    return kept
