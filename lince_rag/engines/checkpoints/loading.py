"""Load checkpoints into memory: safetensors files only, and never code that comes with a checkpoint."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lince_rag.engines.checkpoints import memory
from lince_rag.engines.checkpoints.configuration import (
    context_window,
    engine_errors,
    load_configuration,
    read_tokenizer,
)
from lince_rag.engines.checkpoints.files import (
    ADAPTER_CONFIG,
    CONFIG,
    DEFAULT_REVISION,
    DTYPES,
    Checkpoint,
    LoadingOptions,
    fetch_weights,
    find_base,
    find_both,
    find_checkpoint,
    find_source,
)
from lince_rag.errors import EngineError, require
from lince_rag.prompting.registry import ModelSpec


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to generate, and its tokenizer, which pads on the left."""

    # The transformers model, or the PEFT model around it if an adapter is not merged.
    model: Any
    tokenizer: Any
    # Tokens of prompt and answer together.
    context_window: int


def load_model(spec: ModelSpec, options: LoadingOptions) -> LoadedModel:
    """Load a model, in evaluation mode, and its tokenizer."""
    checkpoint, base = find_both(spec, options)
    require("models", "torch", "transformers", "accelerate", *(["peft"] if checkpoint.is_adapter else []))
    if options.quantization:
        require("quantization", "bitsandbytes")
    device = memory.pick_device(options.device, spread=True)
    with engine_errors(base.label):
        configuration = load_configuration(base)
        if base.revision and not base.has_weights():
            # A download can take hours, so the memory is first checked with the registry's numbers.
            _pick_dtype(spec, options, device, configuration, None)
        files = fetch_weights(base)
        if checkpoint.is_adapter:
            fetch_weights(checkpoint)
        dtype = _pick_dtype(spec, options, device, configuration, files)
    merge = options.merge_adapter and not options.quantization
    return LoadedModel(
        model=load_causal_model(checkpoint, base, configuration, device, dtype, options.quantization, merge=merge),
        tokenizer=read_tokenizer(checkpoint, base),
        context_window=context_window(spec, base),
    )


def load_causal_model(
    checkpoint: Checkpoint,
    base: Checkpoint,
    configuration: Any,
    device: str,
    dtype: str,
    quantization: str | None = None,
    *,
    merge: bool = True,
) -> Any:
    """Load a model from weights that have been fetched, in evaluation mode, with its adapter if it is one."""
    with engine_errors(base.label):
        model = _load_base(base, configuration, device, dtype, quantization)
    if checkpoint.is_adapter:
        with engine_errors(checkpoint.label):
            model = _apply_adapter(model, checkpoint, merge=merge)
    return model.eval()


def load_tokenizer(spec: ModelSpec, options: LoadingOptions) -> Any:
    """Load a model's tokenizer without its weights: an adapter's own if it has one, else its base's."""
    require("models", "transformers")
    if options.tokenizer:
        return read_tokenizer(find_checkpoint(options.tokenizer, options.revision or DEFAULT_REVISION))
    checkpoint = find_source(spec, options)
    base_source = options.base_model_path or spec.base_model
    if checkpoint.has_tokenizer and not base_source:
        return read_tokenizer(checkpoint)
    return read_tokenizer(checkpoint, find_base(spec.name, base_source, checkpoint, spec.note))


def load_weights(
    model_class: Any, checkpoint: Checkpoint, configuration: Any, *, hint: str, **settings: Any
) -> Any:
    """Load a checkpoint into a class of transformers; the hint says what to do if it lacks some of the weights."""
    model, report = model_class.from_pretrained(
        str(checkpoint.folder),
        config=configuration,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **settings,
    )
    # transformers fills missing weights, and those of another size, with random numbers.
    if missing := sorted(report["missing_keys"]):
        raise EngineError(
            f"{checkpoint.label} lacks {len(missing)} of the weights of {type(model).__name__}, for example "
            f"{missing[0]}.",
            hint=hint,
        )
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise EngineError(
            f"{checkpoint.label}: the weight {name} has the shape {tuple(found)} and {CONFIG} asks for "
            f"{tuple(expected)}.",
            hint=f"Its {CONFIG} belongs to another model.",
        )
    return model


def _pick_dtype(
    spec: ModelSpec, options: LoadingOptions, device: str, configuration: Any, files: list[Path] | None
) -> str:
    """Choose the dtype, and refuse a model that does not fit; without its files, the registry's numbers count."""

    def needed(dtype: str) -> int | None:
        return memory.needed_by_spec(spec, dtype) if files is None else memory.bytes_needed(files, dtype)

    own = str(configuration.dtype or "bfloat16").removeprefix("torch.")
    dtype = options.dtype
    available = memory.available_bytes(device)
    if dtype == "auto" and (device != "cpu" or options.quantization):
        dtype = own if own in DTYPES else "bfloat16"
    elif dtype == "auto":
        size = needed("float32")
        dtype = "float32" if size is None or available is None or size <= available else "bfloat16"
    kind = options.quantization or dtype
    memory.check_memory(options.model_path or spec.name, needed(kind), available, device, kind)
    return dtype


def _load_base(base: Checkpoint, configuration: Any, device: str, dtype: str, quantization: str | None) -> Any:
    import torch
    import transformers

    torch_dtype = getattr(torch, dtype)
    settings: dict[str, Any] = {"dtype": torch_dtype} | ({} if device == "cpu" else {"device_map": device})
    if quantization:
        bitsandbytes: Any = transformers.BitsAndBytesConfig
        settings["quantization_config"] = (
            bitsandbytes(load_in_8bit=True)
            if quantization == "int8"
            else bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch_dtype)
        )
    hint = f"Its {CONFIG} belongs to another model, or a file is missing."
    return load_weights(transformers.AutoModelForCausalLM, base, configuration, hint=hint, **settings)


def _apply_adapter(model: Any, adapter: Checkpoint, *, merge: bool) -> Any:
    from peft import PeftModel

    kind = adapter.read_json(ADAPTER_CONFIG).get("peft_type")
    if kind != "LORA":
        raise EngineError(
            f"{adapter.label} is an adapter of type {kind}.",
            hint="Only LoRA adapters are supported.",
        )
    with warnings.catch_warnings():
        # PEFT only warns if a part of the adapter keeps its random initial values.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        adapted = PeftModel.from_pretrained(model, str(adapter.folder), torch_device=str(model.device))
    return adapted.merge_and_unload() if merge else adapted
