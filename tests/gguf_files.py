"""GGUF files of the tiny checkpoints: the same weights as float32, or 4 bits, and the same tokenizer.

What llama.cpp's own converter does to these three architectures, on a folder of ``tests.checkpoints``.
"""

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import gguf
import numpy
from safetensors.numpy import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.checkpoints import Checkpoint, shared_checkpoint

_ARCHITECTURES: Final = {
    "falcon": gguf.MODEL_ARCH.FALCON,
    "bloom": gguf.MODEL_ARCH.BLOOM,
    "llama": gguf.MODEL_ARCH.LLAMA,
}


def write_gguf(
    folder: Path, file: Path, context_window: int, quantization: gguf.GGMLQuantizationType | None = None
) -> Path:
    """Write the model of a folder as a GGUF file.

    Args:
        folder: A tiny checkpoint, which is not an adapter.
        file: The file to write.
        context_window: The window that the file declares, in tokens.
        quantization: How to store the matrices; ``None`` keeps float32.

    Returns:
        The file.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = _ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    _write_sizes(writer, config, context_window)
    _write_tokenizer(writer, AutoTokenizer.from_pretrained(folder), config["model_type"])
    names = gguf.get_tensor_name_map(architecture, _layers(config))
    for name, values in _tensors(folder, config):
        # llama.cpp knows the tensors of BLOOM by the names without the prefix.
        known = name.removeprefix("transformer.") if config["model_type"] == "bloom" else name
        written = names.get_name(known, try_suffixes=(".weight", ".bias"))
        if quantization is None or values.ndim < 2:
            writer.add_tensor(written, values)
        else:
            writer.add_tensor(written, gguf.quants.quantize(values, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@cache
def shared_gguf(kind: str, **options: Any) -> Path:
    """Write the GGUF file of a shared checkpoint once for all tests of a run; the options are those of both."""
    quantization = options.pop("quantization", None)
    checkpoint: Checkpoint = shared_checkpoint(kind, **options)
    parent = Path(tempfile.mkdtemp(prefix="lince-gguf-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    folder = checkpoint.path
    if checkpoint.base_path:
        # The adapter is merged into its base.
        model, tokenizer = checkpoint.load()
        folder = parent / kind
        model.merge_and_unload().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return write_gguf(folder, parent / f"{kind}.gguf", checkpoint.context_window, quantization)


def _layers(config: dict[str, Any]) -> int:
    layers: int = config.get("num_hidden_layers") or config["n_layer"]
    return layers


def _heads(config: dict[str, Any]) -> int:
    heads: int = config.get("num_attention_heads") or config["n_head"]
    return heads


def _key_value_heads(config: dict[str, Any]) -> int:
    if config["model_type"] != "falcon":
        return config.get("num_key_value_heads") or _heads(config)
    return config["num_kv_heads"] if config["new_decoder_architecture"] else 1


def _write_sizes(writer: gguf.GGUFWriter, config: dict[str, Any], context_window: int) -> None:
    size = config["hidden_size"]
    writer.add_context_length(context_window)
    writer.add_embedding_length(size)
    writer.add_block_count(_layers(config))
    writer.add_head_count(_heads(config))
    writer.add_head_count_kv(_key_value_heads(config))
    writer.add_feed_forward_length(config.get("intermediate_size") or 4 * size)
    if config["model_type"] == "llama":
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_dimension_count(size // _heads(config))
        writer.add_vocab_size(config["vocab_size"])
    else:
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, model_type: str) -> None:
    added = tokenizer.added_tokens_decoder
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    kinds = [gguf.TokenType.CONTROL if token in added else gguf.TokenType.NORMAL for token in range(len(tokens))]
    if model_type == "llama":
        writer.add_tokenizer_model("llama")
        # Pieces are merged in the order in which they were learnt.
        writer.add_token_scores([-float(token) for token in range(len(tokens))])
        writer.add_add_space_prefix(True)
        kinds = [
            gguf.TokenType.BYTE if text.startswith("<0x") else kind
            for text, kind in zip(tokens, kinds, strict=True)
        ]
        kinds[0] = gguf.TokenType.UNKNOWN
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(model_type)
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_add_bos_token(model_type == "llama")
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)


def _tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, numpy.ndarray]]:
    """The weights with the heads in the order in which llama.cpp reads them."""
    for name, values in load_file(folder / "model.safetensors").items():
        if name.endswith((".q_proj.weight", ".k_proj.weight")):
            yield name, _rotate(values, _heads(config) if ".q_proj" in name else _key_value_heads(config))
        elif ".query_key_value." in name:
            yield name, _regroup(values, config)
        else:
            yield name, values


def _rotate(values: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Llama: the two halves of a head, which are rotated together, become neighbours."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return numpy.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _regroup(values: numpy.ndarray, config: dict[str, Any]) -> numpy.ndarray:
    """Falcon and BLOOM: queries, keys and values of each group become all queries, all keys, all values."""
    heads = _heads(config)
    groups = heads if config["model_type"] == "bloom" else _key_value_heads(config)
    grouped = values.reshape(groups, heads // groups + 2, config["hidden_size"] // heads, *values.shape[1:])
    parts = (grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:])
    return numpy.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])
