"""What a user wants loaded and how, and which checkpoint on this machine that is."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from lince_rag.engines.checkpoints.files import Checkpoint, find_checkpoint
from lince_rag.errors import ConfigurationError, EngineError, MissingExtraError
from lince_rag.prompting.registry import ModelSpec

DTYPES: Final = ("float32", "bfloat16", "float16")
QUANTIZATIONS: Final = ("int8", "int4")

DEFAULT_REVISION: Final = "main"
_DEVICE: Final = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


@dataclass(frozen=True)
class LoadingOptions:
    """Which weights to load, and how; every value is checked at once.

    Attributes:
        model_path: Folder or hub id in place of the registry's repository; the adapter's, for an adapter.
        base_model_path: Folder or hub id of the model that an adapter is applied to.
        revision: Branch, tag or commit of a hub id; ``None`` takes the registry's, or
            ``main`` with a ``model_path``.
        device: ``"auto"`` (CUDA, else MPS, else CPU), ``"cpu"``, ``"mps"``, ``"cuda"`` or ``"cuda:N"``; ``"auto"``
            spreads a model over several CUDA devices.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: the checkpoint's own on an accelerator;
            on the CPU float32 where that fits, else bfloat16.
        quantization: ``"int8"`` or ``"int4"`` with bitsandbytes; ``None`` for none.
        merge_adapter: Whether to merge an adapter into its base, which then runs as fast as without one. It stays
            apart from a quantized base, whose weights could only hold it rounded.
    """

    model_path: str | None = None
    base_model_path: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    merge_adapter: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (
            ("dtype", self.dtype, ("auto", *DTYPES)),
            ("quantization", self.quantization, (None, *QUANTIZATIONS)),
        ):
            if value not in known:
                raise ConfigurationError(
                    f"{name}={value!r} is not known.", hint=f"Use one of {', '.join(map(str, known))}."
                )
        if not _DEVICE.fullmatch(self.device):
            raise ConfigurationError(
                f"device={self.device!r} is not known.", hint="Use one of auto, cpu, mps, cuda, cuda:0, cuda:1 …"
            )


def find_source(spec: ModelSpec, options: LoadingOptions) -> Checkpoint:
    """Find the small files of what the options name: the model, or the adapter.

    Args:
        spec: The model.
        options: Where it is.

    Returns:
        The checkpoint.

    Raises:
        ConfigurationError: There is nothing to look for.
        EngineError: It is not on this machine and cannot be downloaded.
    """
    source = options.model_path or spec.repo
    if not source:
        raise ConfigurationError(f"The model {spec.name!r} has no weights.", hint="Give model_path=FOLDER.")
    revision = options.revision or (DEFAULT_REVISION if options.model_path else spec.revision)
    return find_checkpoint(source, revision)


def find_base(name: str, source: str | None, checkpoint: Checkpoint, note: str = "") -> Checkpoint:
    """Find the model that an adapter is applied to; any other checkpoint is its own base.

    Args:
        name: The model, for an error.
        source: Folder or hub id of the base.
        checkpoint: The adapter, or a model.
        note: What the registry says about the base.

    Returns:
        The base.

    Raises:
        ConfigurationError: It is not named.
        EngineError: It is not on this machine and cannot be downloaded, or is an adapter too.
    """
    if not checkpoint.is_adapter:
        return checkpoint
    if not source:
        raise unnamed_base(name, note)
    base = find_checkpoint(source, DEFAULT_REVISION)
    if base.is_adapter:
        raise EngineError(
            f"The base model {base.label} is an adapter itself.", hint="Name the model that it was trained from."
        )
    return base


def unnamed_base(name: str, note: str) -> ConfigurationError:
    """Make the error for an adapter whose base nobody named."""
    return ConfigurationError(
        f"{name!r} is an adapter, and the model it is applied to is not named.",
        hint=f"Give base_model_path=FOLDER (--base-model-path FOLDER). {note}".strip(),
    )


def require(*packages: str) -> None:
    """Refuse to go on without some packages.

    Args:
        packages: Their import names.

    Raises:
        MissingExtraError: One is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, "models")
