"""Checkpoints to models and tokenizers in memory: safetensors only, never code that comes with a checkpoint."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lince_rag.engines.checkpoints import memory
from lince_rag.engines.checkpoints.configuration import (
    declared_window,
    describe_checkpoint,
    explained,
    load_configuration,
    read_tokenizer,
)
from lince_rag.engines.checkpoints.files import (
    DTYPES,
    Checkpoint,
    LoadingOptions,
    fetch_weights,
    find_base,
    find_source,
    require,
    unnamed_base,
)
from lince_rag.errors import ConfigurationError, EngineError, MissingExtraError
from lince_rag.prompting.registry import ModelSpec

__all__ = ["LoadedModel", "LoadingOptions", "describe_checkpoint", "load_model", "load_tokenizer"]


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to generate.

    Attributes:
        model: The transformers model, or the PEFT model around it when an adapter stays apart.
        tokenizer: Its tokenizer, which pads on the left.
        context_window: Tokens of prompt and answer together.
    """

    model: Any
    tokenizer: Any
    context_window: int


def load_model(spec: ModelSpec, options: LoadingOptions) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        spec: The model.
        options: Which weights, and how.

    Returns:
        The model, in evaluation mode.

    Raises:
        ConfigurationError: An adapter lacks its base, or an option does not fit the model.
        MissingExtraError: A package is not installed.
        EngineError: The weights are missing, damaged, unsafe, or too large for this machine.
    """
    checkpoint, base = _find_both(spec, options)
    require("torch", "transformers", *(["accelerate", "peft"] if checkpoint.is_adapter else ["accelerate"]))
    if options.quantization and find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "quantization")
    device = _pick_device(options.device)
    with explained(base.label):
        configuration = load_configuration(base)
        if not base.has_weights():
            # Before a download, which can take hours, the registry's numbers must do.
            _pick_dtype(spec, options, device, configuration, None)
        files = fetch_weights(base)
        if checkpoint.is_adapter:
            fetch_weights(checkpoint)
        dtype = _pick_dtype(spec, options, device, configuration, files)
        model = _load_weights(base, configuration, device, dtype, options.quantization)
    if checkpoint.is_adapter:
        with explained(checkpoint.label):
            model = _apply_adapter(model, checkpoint, merge=options.merge_adapter and not options.quantization)
    window = declared_window(base)
    return LoadedModel(
        model=model.eval(),
        tokenizer=read_tokenizer(checkpoint if checkpoint.has_tokenizer else base, base),
        context_window=min(spec.context_window, window) if window else spec.context_window,
    )


def load_tokenizer(spec: ModelSpec, options: LoadingOptions) -> Any:
    """Load a model's tokenizer alone; an adapter's own where it has one, else its base's.

    Args:
        spec: The model.
        options: Where it is.

    Returns:
        The tokenizer, which pads on the left and has a padding token.

    Raises:
        ConfigurationError: An adapter without a tokenizer lacks its base.
        MissingExtraError: transformers is not installed.
        EngineError: The tokenizer is missing or damaged.
    """
    require("transformers")
    checkpoint = find_source(spec, options)
    base_source = options.base_model_path or spec.base_model
    if checkpoint.has_tokenizer and not base_source:
        return read_tokenizer(checkpoint)
    base = find_base(spec.name, base_source, checkpoint, spec.note)
    return read_tokenizer(checkpoint if checkpoint.has_tokenizer else base, base)


def _find_both(spec: ModelSpec, options: LoadingOptions) -> tuple[Checkpoint, Checkpoint]:
    """Find a model and, for an adapter, its base; without an adapter they are the same."""
    base_source = options.base_model_path or spec.base_model
    if spec.adapter and not (base_source or options.model_path):
        # Said before anything is looked for or downloaded.
        raise unnamed_base(spec.name, spec.note)
    checkpoint = find_source(spec, options)
    if options.base_model_path and not checkpoint.is_adapter:
        raise ConfigurationError(
            f"base_model_path={options.base_model_path!r} was given, but {checkpoint.label} is no adapter.",
            hint="Leave base_model_path out, or name an adapter with model_path.",
        )
    return checkpoint, find_base(spec.name, base_source, checkpoint, spec.note)


def _pick_device(device: str) -> str:
    """Choose where to run; ``"auto"`` stays only where there are several CUDA devices."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if device == "auto":
        return ("auto" if count > 1 else "cuda:0") if count else ("mps" if has_mps else "cpu")
    number = int(device.partition(":")[2] or 0)
    if (device.startswith("cuda") and number >= count) or (device == "mps" and not has_mps):
        known = [*(f"cuda:{found}" for found in range(count)), *(["mps"] if has_mps else []), "cpu"]
        raise EngineError(f"This machine has no device {device!r}.", hint=f"It has: {', '.join(known)}.")
    return f"cuda:{number}" if device == "cuda" else device


def _pick_dtype(
    spec: ModelSpec, options: LoadingOptions, device: str, configuration: Any, files: list[Path] | None
) -> str:
    """Choose the dtype, and refuse a model that does not fit in it.

    Args:
        spec: The model, whose ``memory`` counts while its files are not here.
        options: The dtype and quantization that the user wants.
        device: Where it will run.
        configuration: The checkpoint's, which names its own dtype.
        files: Its weights, once they are here.

    Returns:
        One of ``DTYPES``.
    """

    def needed(dtype: str) -> int | None:
        if files is not None:
            return memory.bytes_needed(files, dtype)
        return spec.memory.get("bfloat16" if dtype == "float16" else dtype)

    own = str(configuration.dtype or "bfloat16").removeprefix("torch.")
    dtype = options.dtype
    available = memory.available_bytes(device)
    if dtype == "auto" and (device != "cpu" or options.quantization):
        dtype = own if own in DTYPES else "bfloat16"
    elif dtype == "auto":
        size = needed("float32")
        dtype = "float32" if size is None or available is None or size <= available else "bfloat16"
    kind = options.quantization or dtype
    memory.check_memory(options.model_path or spec.name, needed(kind), available, kind)
    return dtype


def _load_weights(base: Checkpoint, configuration: Any, device: str, dtype: str, quantization: str | None) -> Any:
    """Load the model itself, and refuse a checkpoint that lacks some of its weights."""
    import torch
    import transformers

    settings: dict[str, Any] = {} if device == "cpu" else {"device_map": device}
    torch_dtype = getattr(torch, dtype)
    if quantization:
        bitsandbytes: Any = transformers.BitsAndBytesConfig
        settings["quantization_config"] = (
            bitsandbytes(load_in_8bit=True)
            if quantization == "int8"
            else bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch_dtype)
        )
    auto: Any = transformers.AutoModelForCausalLM
    model, report = auto.from_pretrained(
        str(base.folder),
        config=configuration,
        dtype=torch_dtype,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **settings,
    )
    # Without these checks what is missing, or has another size, would be random numbers.
    if missing := sorted(report["missing_keys"]):
        raise EngineError(
            f"{base.label} lacks {len(missing)} of the weights of a {type(model).__name__}, {missing[0]} for one.",
            hint="Its config.json belongs to another model, or a file is missing.",
        )
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise EngineError(
            f"{base.label}: the weight {name} has the shape {tuple(found)} and config.json asks for "
            f"{tuple(expected)}.",
            hint="Its config.json belongs to another model.",
        )
    return model


def _apply_adapter(model: Any, adapter: Checkpoint, *, merge: bool) -> Any:
    from peft import PeftModel

    kind = adapter.read_json("adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise EngineError(
            f"{adapter.label} is an adapter of the kind {kind}.", hint="Only LoRA adapters are read."
        )
    with warnings.catch_warnings():
        # PEFT only warns when it leaves a part of the adapter at its random start.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        adapted = PeftModel.from_pretrained(model, str(adapter.folder), torch_device=str(model.device))
    return adapted.merge_and_unload() if merge else adapted
