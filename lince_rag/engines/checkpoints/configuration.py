"""A checkpoint's configuration and tokenizer, and the description of a checkpoint that is in no registry."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any, Final, cast

from lince_rag.engines.checkpoints.files import (
    ADAPTER_CONFIG,
    DEFAULT_REVISION,
    Checkpoint,
    LoadingOptions,
    find_base,
    find_checkpoint,
    reason,
    require,
)
from lince_rag.engines.checkpoints.memory import memory_by_dtype, read_tensors
from lince_rag.errors import ConfigurationError, EngineError, LinceError
from lince_rag.prompting.registry import ModelSpec, check_row

CONFIG: Final = "config.json"

# Under what names configurations give their window; BLOOM and old Falcon ones may give none.
_WINDOWS: Final = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "max_sequence_length")

# Falcon models of before July 2023 came with code of their own, under these types and with these names; the
# weights are those that transformers reads today.
_OLD_FALCON_TYPES: Final = ("RefinedWeb", "RefinedWebModel")
_OLD_FALCON_NAMES: Final = {
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_head_kv": "num_kv_heads",
    "n_embed": "hidden_size",
    "torch_dtype": "dtype",
}
_OLD_FALCON_DROPPED: Final = ("architectures", "auto_map", "model_type", "transformers_version")


def load_configuration(checkpoint: Checkpoint) -> Any:
    """Load the configuration of a model, without running any code of the checkpoint's.

    Args:
        checkpoint: The model.

    Returns:
        The transformers configuration.

    Raises:
        EngineError: There is none.
        ValueError: It needs code that comes with the checkpoint, or is of an unknown architecture.
    """
    from transformers import AutoConfig, FalconConfig

    values = checkpoint.read_json(CONFIG)
    if not values:
        raise EngineError(
            f"{checkpoint.label} has no {CONFIG}.", hint="Name a folder that save_pretrained or hf download made."
        )
    if values.get("model_type") not in _OLD_FALCON_TYPES:
        return AutoConfig.from_pretrained(str(checkpoint.folder), trust_remote_code=False, local_files_only=True)
    kept = {key: value for key, value in values.items() if key not in _OLD_FALCON_DROPPED}
    renamed = {_OLD_FALCON_NAMES.get(key, key): value for key, value in kept.items()}
    return FalconConfig(**renamed, new_decoder_architecture="n_head_kv" in values)


def declared_window(checkpoint: Checkpoint) -> int | None:
    """Read the window that a model's configuration declares.

    Args:
        checkpoint: The model.

    Returns:
        The tokens, or ``None`` when it declares none.
    """
    values = checkpoint.read_json(CONFIG)
    for section in (values, values.get("text_config")):
        for name in _WINDOWS:
            window = section.get(name) if isinstance(section, Mapping) else None
            if isinstance(window, int) and window > 0:
                return window
    return None


def read_tokenizer(checkpoint: Checkpoint, base: Checkpoint | None = None) -> Any:
    """Load the tokenizer of a checkpoint.

    Args:
        checkpoint: What brings the tokenizer.
        base: The model it will feed, whose vocabulary bounds the padding token.

    Returns:
        The tokenizer.

    Raises:
        EngineError: It is missing or damaged, or needs code of its own.
    """
    from transformers import AutoTokenizer

    with explained(f"The tokenizer of {checkpoint.label}"):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(checkpoint.folder), padding_side="left", trust_remote_code=False, local_files_only=True
        )
    size = (base or checkpoint).read_json("config.json").get("vocab_size")
    padding = tokenizer.pad_token_id
    # A padding token that was added after training has no embedding.
    if padding is None or (isinstance(size, int) and padding >= size):
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever the libraries raise while they load into one line that says what could not be loaded.

    Args:
        what: What is being loaded.

    Raises:
        EngineError: It needs code of its own, or cannot be loaded for another reason.
    """
    try:
        yield
    except LinceError:
        raise
    except Exception as error:
        # OSError, ValueError, KeyError, SafetensorError …: the loaders agree on no type of error.
        if "trust_remote_code" in str(error):
            raise EngineError(
                f"{what} needs code that comes with the checkpoint, which is never run here.",
                hint="Use a checkpoint of an architecture that transformers itself has.",
            ) from error
        raise EngineError(
            f"{what} cannot be loaded: {reason(error)}.", hint="Check that its files are whole and of one model."
        ) from error


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
