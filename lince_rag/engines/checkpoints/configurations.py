"""A checkpoint's configuration and tokenizer, and its errors in one line; never code that comes with it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from lince_rag.engines.checkpoints.files import Checkpoint, reason
from lince_rag.errors import EngineError, LinceError

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
