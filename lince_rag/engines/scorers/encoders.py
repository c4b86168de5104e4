"""What rerankers and classifiers share: an encoder's files found and checked, and how much text it reads."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lince_rag.engines.checkpoints import memory
from lince_rag.engines.checkpoints.configuration import declared_window, explained
from lince_rag.engines.checkpoints.files import (
    DEFAULT_REVISION,
    Checkpoint,
    LoadingOptions,
    fetch_weights,
    find_checkpoint,
)
from lince_rag.errors import ConfigurationError, EngineError

Texts = Sequence[str] | Sequence[tuple[str, str]]

# Inputs of a forward pass: sentence-transformers' own default.
DEFAULT_BATCH: Final = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScorerOptions:
    """Which encoder to load and how it runs; every value is checked at once.

    Attributes:
        model: A folder or a hub id.
        revision: Branch, tag or commit of a hub id; ``None`` takes ``main``.
        device: ``"auto"`` (CUDA, else MPS, else CPU), ``"cpu"``, ``"mps"``, ``"cuda"`` or ``"cuda:N"``.
        batch_size: Inputs of a forward pass.
        max_length: Tokens of an input at most; ``None`` takes all that the model can read.
    """

    model: str
    revision: str | None = None
    device: str = "auto"
    batch_size: int = DEFAULT_BATCH
    max_length: int | None = None

    def __post_init__(self) -> None:
        LoadingOptions(device=self.device)
        for name, value in (("batch_size", self.batch_size), ("max_length", self.max_length)):
            if value is not None and value < 1:
                raise ConfigurationError(f"{name}={value} is not a positive number.")
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            # The model is loaded later, perhaps from another working directory.
            object.__setattr__(self, "model", os.path.abspath(folder))


@dataclass(frozen=True)
class Encoder:
    """The checked files of an encoder, and where and in what it will run.

    Attributes:
        checkpoint: Its files.
        files: The safetensors files among them.
        device: A torch device.
        dtype: What ``from_pretrained`` takes: float32 on the CPU, where half precision is slow, else the
            checkpoint's own.
    """

    checkpoint: Checkpoint
    files: list[Path]
    device: str
    dtype: str


def find_encoder(options: ScorerOptions) -> Encoder:
    """Find the files of an encoder, download what is missing, and check that it is safe, whole and fits.

    Args:
        options: Which one.

    Returns:
        What to load.

    Raises:
        ConfigurationError: The model is neither a folder nor a hub id.
        EngineError: It is missing, an adapter, damaged, not in safetensors, or too large for this machine.
    """
    checkpoint = find_checkpoint(options.model, options.revision or DEFAULT_REVISION)
    if checkpoint.is_adapter:
        # Its base would be fetched from wherever the adapter says, past all of these checks.
        raise EngineError(
            f"{checkpoint.label} is an adapter.", hint="Merge it into its base model and save that (peft can)."
        )
    files = fetch_weights(checkpoint)
    with explained(checkpoint.label):
        device = _pick_device(options.device)
        dtype = "float32" if device == "cpu" else "auto"
        needed = memory.bytes_needed(files, "float32" if device == "cpu" else None)
        available = memory.available_bytes(device)
    if available is not None and needed > available:
        raise EngineError(
            f"{checkpoint.label} needs {memory.as_gigabytes(needed)} of memory and "
            f"{memory.as_gigabytes(available)} are free on {device}.",
            hint="Use a smaller model or another device.",
        )
    return Encoder(checkpoint, files, device, dtype)


def longest_input(model: Any, tokenizer: Any, checkpoint: Checkpoint, asked: int | None) -> int:
    """Compute how many tokens an encoder can read.

    Args:
        model: The transformers model.
        tokenizer: Its tokenizer, which may declare a shorter length.
        checkpoint: Its files, whose configuration declares the window.
        asked: The length that the user wants, which counts where it is shorter.

    Returns:
        Tokens of an input, special tokens counted.
    """
    # Models of the RoBERTa kind number positions from padding_idx + 1, so as many rows of their table are out of
    # reach; a tokenizer does not always know, and the position after the last one would be an index error.
    offsets = [
        module.padding_idx + 1
        for module in model.modules()
        if isinstance(getattr(module, "padding_idx", None), int) and hasattr(module, "position_embeddings")
    ]
    window = declared_window(checkpoint)
    known = [asked, window - max(offsets, default=0) if window else None, tokenizer.model_max_length]
    return int(min([sys.maxsize, *(length for length in known if length)]))


def columns(inputs: Texts) -> tuple[list[str], ...]:
    """Return texts, or the first and the second texts of pairs, as a tokenizer takes them.

    Raises:
        ConfigurationError: Texts and pairs are mixed, or it is one text alone.
    """
    if not isinstance(inputs, str):
        if all(isinstance(entry, str) for entry in inputs):
            return ([str(entry) for entry in inputs],)
        if all(not isinstance(entry, str) and len(entry) == 2 for entry in inputs):
            return [str(entry[0]) for entry in inputs], [str(entry[1]) for entry in inputs]
    raise ConfigurationError(f"{inputs!r:.80} is no list of texts and no list of pairs of texts.")


def report_truncation(name: str, tokenizer: Any, inputs: Texts, length: int) -> None:
    """Log at debug level how many inputs the tokenizer is going to cut.

    Args:
        name: The model.
        tokenizer: Its tokenizer.
        inputs: Texts or pairs.
        length: Tokens of an input at most.
    """
    if not logger.isEnabledFor(logging.DEBUG) or not inputs:
        return
    found = tokenizer(*columns(inputs), truncation=False, verbose=False)["input_ids"]
    cut = sum(len(ids) > length for ids in found)
    if cut:
        logger.debug("%s: %d of %d inputs are longer than %d tokens and are cut.", name, cut, len(found), length)


def _pick_device(device: str) -> str:
    """Choose one device; an encoder is small enough not to be spread over several."""
    import torch

    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
