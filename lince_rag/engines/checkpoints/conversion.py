"""Convert the weights of a model: pickle files to safetensors, and a checkpoint to CTranslate2.

Loading a model never reads a pickle file. ``convert_to_safetensors`` reads one on request, with torch's loader
that builds only tensors, and needs no code from the model. ``convert_to_ctranslate2`` writes a folder that
``engines/generation/ctranslate2.py`` runs on a CPU, in less memory and faster.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from lince_rag.engines.checkpoints import memory
from lince_rag.engines.checkpoints.configuration import engine_errors, load_configuration, read_tokenizer
from lince_rag.engines.checkpoints.files import (
    ADAPTER_CONFIG,
    CONFIG,
    DEFAULT_REVISION,
    DTYPES,
    GENERATION_CONFIG,
    TOKENIZER_FILES,
    Checkpoint,
    fetch_weights,
    find_base,
    find_checkpoint,
    load_ctranslate2,
)
from lince_rag.engines.checkpoints.loading import load_causal_model
from lince_rag.errors import ConfigurationError, EngineError, require
from lince_rag.prompting.registry import WEIGHT_BITS

Step = Literal["loading", "writing", "checking"]

CTRANSLATE2_QUANTIZATIONS: Final = ("int8", "float32")

_PICKLE_INDEX: Final = "pytorch_model.bin.index.json"

# What a conversion that was killed leaves behind; it is not looked for when models are loaded.
_UNFINISHED: Final = ".unfinished"

# The number of tokens after which the logits of a converted model are compared with those of the original, and the
# least correlation. Tiny checkpoints of the five formats have .9999999 or more in float32, .971 or more in int8;
# one whose rotary positions were converted with 10,000 instead of 500,000 as their base has .859 in both.
_PROBE_TOKENS: Final = 48
_LEAST_CORRELATION: Final = {"int8": 0.9, "float32": 0.99}


def convert_to_safetensors(folder: Path) -> list[Path]:
    """Write the weights of a folder (``pytorch_model*.bin``, ``adapter_model.bin``) as safetensors files in it.

    Args:
        folder: Where the pickle files are.

    Returns:
        The files that were written.

    Raises:
        EngineError: There is no such file, or it contains more than tensors.
        MissingExtraError: torch or safetensors is not installed.
    """
    require("models", "torch", "safetensors")
    import torch
    from safetensors.torch import save_file

    files = sorted([*folder.glob("pytorch_model*.bin"), *folder.glob("adapter_model.bin")])
    if not files:
        raise EngineError(
            f"The folder {folder} has no pytorch_model.bin or adapter_model.bin.", hint="Check the path."
        )
    written = []
    for file in files:
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            # Safetensors does not store one tensor under two names, so shared tensors (tied weights) are copied.
            copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        except Exception as error:
            raise EngineError(
                f"{file} contains more than tensors, or is damaged.",
                hint="Do not load it; look for a safetensors version.",
            ) from error
        written.append(folder / _safetensors_name(file.name))
        with engine_errors(str(file), "cannot be converted"), _replacing(written[-1]) as unfinished:
            save_file(copies, unfinished, metadata={"format": "pt"})
    if (folder / _PICKLE_INDEX).is_file():
        # The index says which of several files holds each weight.
        index = json.loads((folder / _PICKLE_INDEX).read_text(encoding="utf-8"))
        index["weight_map"] = {name: _safetensors_name(file) for name, file in index["weight_map"].items()}
        with _replacing(folder / _safetensors_name(_PICKLE_INDEX)) as unfinished:
            unfinished.write_text(json.dumps(index, indent=2), encoding="utf-8")
    return written


def convert_to_ctranslate2(
    source: str,
    output: Path | None = None,
    *,
    quantization: str = "int8",
    base_source: str | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Path:
    """Convert a causal language model, an adapter merged into its base included, to a folder for CTranslate2.

    The folder also holds the tokenizer and the configuration, and appears only when it is complete and its logits
    have been compared with the original's.

    Args:
        source: Folder or hub id of the model or of a LoRA adapter.
        output: The folder to create; ``None`` adds the quantization to the name of the source.
        quantization: One of ``CTRANSLATE2_QUANTIZATIONS``: a byte for each weight, or four.
        base_source: Folder or hub id of the model that an adapter is applied to.
        on_step: Called when a step begins.

    Returns:
        The folder.

    Raises:
        ConfigurationError: The folder exists, or a value is not known.
        EngineError: The model cannot be loaded or converted, or there is no room for it.
        MissingExtraError: ctranslate2, torch or another package is not installed.
    """
    if quantization not in CTRANSLATE2_QUANTIZATIONS:
        raise ConfigurationError(
            f"quantization={quantization!r} is not known.", hint=f"Use {' or '.join(CTRANSLATE2_QUANTIZATIONS)}."
        )
    require("ctranslate2", "ctranslate2")
    checkpoint, base = _find(source, base_source)
    require("models", "torch", "transformers", "accelerate", *(["peft"] if checkpoint.is_adapter else []))
    name = Path(source).expanduser().name
    output = output or Path(source).expanduser().with_name(f"{name}-{quantization}")
    files = fetch_weights(base)
    if checkpoint.is_adapter:
        fetch_weights(checkpoint)
    with engine_errors(checkpoint.label, "cannot be converted"), _new_folder(output) as unfinished:
        _check_room(unfinished, files, quantization)
        on_step("loading")
        model = _load(checkpoint, base, files)
        tokenizer = read_tokenizer(checkpoint, base)
        probe, expected = _logits(model, len(tokenizer))
        _write_settings(model, checkpoint, base, unfinished)
        on_step("writing")
        _write_weights(model, tokenizer, unfinished, quantization)
        del model
        on_step("checking")
        _compare(unfinished, tokenizer.convert_ids_to_tokens(probe), expected, quantization)
    return output


def _find(source: str, base_source: str | None) -> tuple[Checkpoint, Checkpoint]:
    """Find the model or adapter, and its base; without a base that is named, the adapter's own."""
    checkpoint = find_checkpoint(source, DEFAULT_REVISION)
    if base_source and not checkpoint.is_adapter:
        raise ConfigurationError(
            f"The base {base_source!r} was given, but {checkpoint.label} is not an adapter.",
            hint="Leave the base out, or name an adapter to convert.",
        )
    declared: str | None = checkpoint.read_json(ADAPTER_CONFIG).get("base_model_name_or_path")
    return checkpoint, find_base(source, base_source or declared, checkpoint)


def _load(checkpoint: Checkpoint, base: Checkpoint, files: Sequence[Path]) -> Any:
    """Load the model in its own dtype, which loses nothing; an adapter is merged in float32, as for generation."""
    with engine_errors(base.label):
        configuration = load_configuration(base)
    own = str(configuration.dtype).removeprefix("torch.")
    dtype = own if own in DTYPES and not checkpoint.is_adapter else "float32"
    needed, free = memory.bytes_needed(files, dtype), memory.available_bytes("cpu")
    memory.check_memory(f"The conversion of {checkpoint.label}", needed, free, "cpu")
    return load_causal_model(checkpoint, base, configuration, "cpu", dtype)


def _check_room(folder: Path, files: Sequence[Path], quantization: str) -> None:
    """Refuse to write a model for which the disk has no room."""
    count = sum(tensor.count for file in files for tensor in memory.read_tensors(file))
    needed, free = count * WEIGHT_BITS[quantization] // 8, shutil.disk_usage(folder).free
    if needed > free:
        raise EngineError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, and the converted model needs {needed / 1e9:.1f} GB.",
            hint="Make room, or choose a folder on another disk.",
        )


def _logits(model: Any, tokens: int) -> tuple[list[int], Any]:
    """Return ids from all over a vocabulary of that number of tokens, and the logits after each of them."""
    import torch

    ids = torch.linspace(0, min(tokens, model.config.vocab_size) - 1, _PROBE_TOKENS).long()
    with torch.inference_mode():
        return ids.tolist(), model(ids[None]).logits[0].float().numpy()


def _write_settings(model: Any, checkpoint: Checkpoint, base: Checkpoint, folder: Path) -> None:
    """Write what is needed beside the weights: the tokenizer, the configuration and the generation settings."""
    source = (checkpoint if checkpoint.has_tokenizer else base).folder
    for file in (file for pattern in TOKENIZER_FILES for file in source.glob(pattern)):
        target = folder / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    _write_json(folder / CONFIG, base.read_json(CONFIG))
    ends = {"eos_token_id": model.generation_config.eos_token_id}
    _write_json(folder / GENERATION_CONFIG, base.read_json(GENERATION_CONFIG) | ends)


def _write_weights(model: Any, tokenizer: Any, folder: Path, quantization: str) -> None:
    """Write the weights and the vocabulary; the configuration then has the values of both libraries."""
    ctranslate2 = load_ctranslate2()
    import numpy as np
    import torch
    from ctranslate2.converters.transformers import _MODEL_LOADERS

    kind = type(model.config).__name__
    loader = _MODEL_LOADERS.get(kind)
    if loader is None:
        raise ConfigurationError(
            f"CTranslate2 {ctranslate2.__version__} cannot run a model with a {kind}.",
            hint=f"It can run: {', '.join(sorted(_MODEL_LOADERS))}.",
        )
    is_falcon = kind == "FalconConfig"
    if is_falcon and model.config.new_decoder_architecture:
        # The newer decoder does not look at multi_query, which its configurations set; the converter does.
        model.config.multi_query = False
    with torch.inference_mode():
        weights = loader(model, tokenizer)
        if is_falcon and model.config.rotary:
            # The converter takes 10,000 for all.
            for layer in weights.decoder.layer:
                layer.self_attention.rotary_base = np.float32(model.config.rope_parameters["rope_theta"])
        # A token for each row of the embeddings: the converter's list is wrong if ids are missing or have no row.
        names = {number: token for token, number in tokenizer.get_vocab().items()}
        weights.register_vocabulary([names.get(at, f"<unused {at}>") for at in range(model.config.vocab_size)])
        weights.validate()
        weights.optimize(quantization=quantization)
        configuration = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights.save(str(folder))
    own = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    _write_json(folder / CONFIG, configuration | {key: value for key, value in own.items() if value is not None})


def _compare(folder: Path, tokens: Sequence[str], expected: Any, quantization: str) -> None:
    """Refuse a converted model that does not compute what the original does."""
    import numpy as np

    ctranslate2 = load_ctranslate2()

    generator = ctranslate2.Generator(str(folder), "cpu")
    found = np.array(generator.forward_batch([list(tokens)]))[0]
    least = min(float(np.corrcoef(one, other)[0, 1]) for one, other in zip(found, expected, strict=True))
    if not least >= _LEAST_CORRELATION[quantization]:
        raise EngineError(
            f"The converted model differs from the original: their logits correlate by {least:.3f} only.",
            hint="CTranslate2 does not support something in this model; run it with engine='transformers'.",
        )


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Create a folder under another name, which it loses when it is complete; otherwise it is removed."""
    unfinished = folder.with_name(f"{folder.name}{_UNFINISHED}")
    if folder.exists():
        raise ConfigurationError(f"{folder} exists.", hint="Delete it, or choose another folder for the output.")
    if unfinished.exists():
        raise ConfigurationError(
            f"{unfinished} exists: another conversion is writing it, or was killed.",
            hint="Wait for the other one, or delete this folder.",
        )
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """Write a file under another name, and give it its own name when it is complete."""
    unfinished = file.with_name(f"{file.name}{_UNFINISHED}")
    try:
        yield unfinished
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")


def _safetensors_name(pickle_name: str) -> str:
    return pickle_name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
