"""What rerankers and classifiers share: finding and checking the files of an encoder, and limiting its inputs."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lince_rag.engines.checkpoints import memory
from lince_rag.engines.checkpoints.configuration import declared_window, engine_errors
from lince_rag.engines.checkpoints.files import DEFAULT_REVISION, Checkpoint, fetch_weights, find_checkpoint
from lince_rag.errors import ConfigurationError, EngineError

Texts = Sequence[str] | Sequence[tuple[str, str]]

# The default number of inputs of a forward pass; it is also sentence-transformers' default.
DEFAULT_BATCH: Final = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScorerOptions:
    """Which encoder to load and how it runs; every value is checked at once."""

    # A folder or a hub id.
    model: str
    # Branch, tag or commit of a hub id; None takes main.
    revision: str | None = None
    # "auto" (CUDA, else MPS, else CPU), "cpu", "mps", "cuda" or "cuda:N".
    device: str = "auto"
    # Inputs of a forward pass.
    batch_size: int = DEFAULT_BATCH
    # The most tokens of an input; None takes all that the model can read.
    max_length: int | None = None

    def __post_init__(self) -> None:
        memory.check_device_name(self.device)
        for name, value in (("batch_size", self.batch_size), ("max_length", self.max_length)):
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {value}.")
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            # The model is loaded later, perhaps from another working directory.
            object.__setattr__(self, "model", os.path.abspath(folder))


@dataclass(frozen=True)
class Encoder:
    """The checked files of an encoder, and the torch device it will run on."""

    checkpoint: Checkpoint
    # Its safetensors files.
    files: list[Path]
    device: str

    @property
    def dtype(self) -> str:
        """The dtype to load it in: float32 on the CPU, where half precision is slow, else the checkpoint's own."""
        return "float32" if self.device == "cpu" else "auto"


def find_encoder(options: ScorerOptions) -> Encoder:
    """Find the files of an encoder, download missing ones, and check that it is safe and complete and fits."""
    checkpoint = find_checkpoint(options.model, options.revision or DEFAULT_REVISION)
    if checkpoint.is_adapter:
        # Its base would be downloaded from wherever the adapter says, without any of these checks.
        raise EngineError(
            f"{checkpoint.label} is an adapter.", hint="Merge it into its base model and save that (peft can)."
        )
    device = memory.pick_device(options.device)
    found = Encoder(checkpoint, fetch_weights(checkpoint), device)
    with engine_errors(checkpoint.label):
        needed = memory.bytes_needed(found.files, None if found.dtype == "auto" else found.dtype)
        memory.check_memory(checkpoint.label, needed, memory.available_bytes(device), device)
    return found


def longest_input(model: Any, tokenizer: Any, checkpoint: Checkpoint, wanted: int | None) -> int:
    """Return the most tokens of an input, special tokens included: the wanted number or the model's limit."""
    # Models like RoBERTa number positions from padding_idx + 1, so that number of rows of their table is never
    # used. A tokenizer does not always know this, and a position after the last one would be an index error.
    offsets = [
        module.padding_idx + 1
        for module in model.modules()
        if isinstance(getattr(module, "padding_idx", None), int) and hasattr(module, "position_embeddings")
    ]
    window = declared_window(checkpoint)
    known = [wanted, window - max(offsets, default=0) if window else None, tokenizer.model_max_length]
    return int(min([sys.maxsize, *(length for length in known if length)]))


def columns(inputs: Texts) -> tuple[list[str], ...]:
    """Return the texts, or the first and the second texts of the pairs, as a tokenizer takes them."""
    if not isinstance(inputs, str):
        if all(isinstance(entry, str) for entry in inputs):
            return ([str(entry) for entry in inputs],)
        if all(not isinstance(entry, str) and len(entry) == 2 for entry in inputs):
            return [str(entry[0]) for entry in inputs], [str(entry[1]) for entry in inputs]
    raise ConfigurationError(
        f"{inputs!r:.80} is neither a list of texts nor a list of pairs of texts.",
        hint="Do not mix texts and pairs, and put a single text in a list.",
    )


def log_truncation(name: str, tokenizer: Any, inputs: Texts, length: int) -> None:
    """Log at debug level how many inputs have more tokens than a model reads, so that the tokenizer cuts them."""
    if not logger.isEnabledFor(logging.DEBUG) or not inputs:
        return
    found = tokenizer(*columns(inputs), truncation=False, verbose=False)["input_ids"]
    cut = sum(len(ids) > length for ids in found)
    if cut:
        logger.debug("%s: %d of %d inputs are longer than %d tokens and are cut.", name, cut, len(found), length)
