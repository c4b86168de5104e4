"""A checkpoint's configuration and tokenizer, and the description of a checkpoint that is not in a registry.

Nothing here runs code that comes with a checkpoint.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any, Final, cast

from lince_rag.engines.checkpoints.files import (
    ADAPTER_CONFIG,
    CONFIG,
    DEFAULT_REVISION,
    GENERATION_CONFIG,
    Checkpoint,
    LoadingOptions,
    find_base,
    find_checkpoint,
    reason,
)
from lince_rag.engines.checkpoints.memory import read_tensors
from lince_rag.errors import ConfigurationError, EngineError, LinceError, require
from lince_rag.prompting.registry import ModelSpec, check_row, memory_by_dtype
from lince_rag.prompting.templates import ChatTemplate

_TEMPLATE: Final = "chat_template.jinja"

# The keys under which configurations give their window; BLOOM and old Falcon ones may have none.
_WINDOWS: Final = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "max_sequence_length")

# A tokenizer without a limit says 10**30.
_LARGEST_WINDOW: Final = 10_000_000

# Falcon models of before July 2023 came with their own code, under these types and with these names; their weights
# are those that transformers reads today.
_OLD_FALCON_TYPES: Final = ("RefinedWeb", "RefinedWebModel")
_OLD_FALCON_NAMES: Final = {
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_head_kv": "num_kv_heads",
    "n_embed": "hidden_size",
    "torch_dtype": "dtype",
}
_OLD_FALCON_DROPPED: Final = ("architectures", "auto_map", "model_type", "transformers_version")


_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_SPECIAL_TOKENS: Final = "special_tokens_map.json"


@dataclass(frozen=True)
class TemplateText:
    """A chat template that is not in a file of this package; a ``ModelSpec`` reads it like one."""

    text: str

    def read_text(self, encoding: str | None = None) -> str:
        """Return the template."""
        return self.text


def describe_checkpoint(model: str, options: LoadingOptions) -> ModelSpec:
    """Describe a hub id or folder that is not in a registry, but whose tokenizer has a chat template."""
    require("models", "transformers")
    checkpoint = find_checkpoint(
        options.tokenizer or options.model_path or model, options.revision or DEFAULT_REVISION
    )
    base_model: str | None = checkpoint.read_json(ADAPTER_CONFIG).get("base_model_name_or_path")
    base = find_base(model, options.base_model_path or base_model, checkpoint)
    tokenizer = read_tokenizer(checkpoint, base)
    parameters = sum(
        tensor.count for file in base.weight_files() if file.is_file() for tensor in read_tensors(file)
    )
    special_tokens = tokenizer.special_tokens_map.items()
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
        special_tokens={name: str(token) for name, token in special_tokens if not isinstance(token, list)},
        control_tokens=tuple(str(token) for token in tokenizer.added_tokens_decoder.values()),
        generation=generation_settings(base.read_json(GENERATION_CONFIG)),
    )


def published_template(source: str) -> ChatTemplate:
    """Read the chat template that a folder or hub id comes with, and its special tokens, without transformers."""
    checkpoint = find_checkpoint(source, DEFAULT_REVISION)
    values = checkpoint.read_json(_TOKENIZER_CONFIG)
    found: Any = values.get("chat_template")
    if isinstance(found, list):
        # Several templates, each with a name.
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}.get(
            "default"
        )
    file = checkpoint.folder / _TEMPLATE
    if file.is_file():
        found = file.read_text(encoding="utf-8")
    if not isinstance(found, str):
        raise ConfigurationError(
            f"{checkpoint.label} comes with no chat template.",
            hint=f"Name the folder of a model with {_TEMPLATE}, or with a chat_template in {_TOKENIZER_CONFIG}.",
        )
    tokens = checkpoint.read_json(_SPECIAL_TOKENS) | values
    named = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in tokens.items()
        if name.endswith("_token")
    }
    special_tokens = {name: token for name, token in named.items() if isinstance(token, str)}
    return ChatTemplate(found, special_tokens=special_tokens, name=checkpoint.label)


def load_configuration(checkpoint: Checkpoint) -> Any:
    """Load the transformers configuration of a model."""
    from transformers import AutoConfig, FalconConfig

    values = checkpoint.read_json(CONFIG)
    if not values:
        raise EngineError(
            f"{checkpoint.label} has no {CONFIG}.",
            hint="Name a folder that was made by save_pretrained or hf download.",
        )
    if values.get("model_type") not in _OLD_FALCON_TYPES:
        return AutoConfig.from_pretrained(str(checkpoint.folder), trust_remote_code=False, local_files_only=True)
    kept = {key: value for key, value in values.items() if key not in _OLD_FALCON_DROPPED}
    renamed = {_OLD_FALCON_NAMES.get(key, key): value for key, value in kept.items()}
    return FalconConfig(**renamed, new_decoder_architecture="n_head_kv" in values)


def declared_window(checkpoint: Checkpoint) -> int | None:
    """Return the window, in tokens, that a model's configuration declares, if it does."""
    values = checkpoint.read_json(CONFIG)
    for section in (values, values.get("text_config")):
        for name in _WINDOWS:
            window = section.get(name) if isinstance(section, Mapping) else None
            if isinstance(window, int) and window > 0:
                return window
    return None


def context_window(spec: ModelSpec, base: Checkpoint) -> int:
    """Return the maximum tokens of prompt and answer together: the registry's, or fewer if the model has fewer."""
    window = declared_window(base)
    return min(spec.context_window, window) if window else spec.context_window


def generation_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the settings that a row of the registry may contain too."""
    kept = {}
    for name, value in values.items():
        with suppress(ConfigurationError):
            check_row({"generation": {name: value}}, "", "")
            kept[name] = value
    return kept


def read_tokenizer(checkpoint: Checkpoint, base: Checkpoint | None = None) -> Any:
    """Load the tokenizer of a checkpoint, or of its base if it has none; it pads on the left."""
    from transformers import AutoTokenizer

    base = base or checkpoint
    source = checkpoint if checkpoint.has_tokenizer else base
    with engine_errors(f"The tokenizer of {source.label}"):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(source.folder), padding_side="left", trust_remote_code=False, local_files_only=True
        )
    size = base.read_json(CONFIG).get("vocab_size")
    padding = tokenizer.pad_token_id
    # A padding token that was added after training has no embedding in the base.
    if padding is None or (isinstance(size, int) and padding >= size):
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


@contextmanager
def engine_errors(what: str, failed: str = "cannot be loaded") -> Iterator[None]:
    """Turn any error of the loading libraries into an ``EngineError`` of one line that names what was loaded."""
    try:
        yield
    except LinceError:
        raise
    except Exception as error:
        # OSError, ValueError, KeyError, SafetensorError …: the loaders have no common type of error.
        if "trust_remote_code" in str(error):
            raise EngineError(
                f"{what} needs code that comes with the checkpoint, which is never run here.",
                hint="Use a checkpoint whose architecture is part of transformers.",
            ) from error
        raise EngineError(
            f"{what} {failed}: {reason(error)}.",
            hint="Check that its files are complete and belong to one model.",
        ) from error


def _chat_template(tokenizer: Any, checkpoint: Checkpoint) -> str:
    try:
        # If there are several templates, this is the default one.
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ConfigurationError(
            f"The tokenizer of {checkpoint.label} has no chat template, so its prompt format is not known.",
            hint="Write a row for it in your own models.toml, with its template, window and stop texts.",
        ) from error


def _window(tokenizer: Any, checkpoint: Checkpoint, base: Checkpoint) -> int:
    window = declared_window(base) or int(tokenizer.model_max_length)
    if not 0 < window <= _LARGEST_WINDOW:
        raise ConfigurationError(
            f"Neither the configuration nor the tokenizer of {checkpoint.label} says how many tokens it can read.",
            hint="Write a row for it in your own models.toml, with its context_window.",
        )
    return window
