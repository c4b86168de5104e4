"""Where a model's files are, a folder or the hub's cache, and whether they can be trusted and are whole.

Weights are read from safetensors files only: a pickle file (``pytorch_model.bin``) can run any code when it is
loaded.
"""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from lince_rag.engines.checkpoints.memory import read_tensors
from lince_rag.errors import ConfigurationError, EngineError, LinceError, MissingExtraError
from lince_rag.prompting.registry import ModelSpec

ADAPTER_CONFIG: Final = "adapter_config.json"
_ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"

# Everything but the weights: small, and enough to write a prompt and count its tokens.
_SMALL_FILES: Final = (
    "config.json",
    "generation_config.json",
    ADAPTER_CONFIG,
    _INDEX,
    "tokenizer*",
    "chat_template*",
    "additional_chat_templates/*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)

# How much of another library's message an error repeats.
_REASON_LENGTH: Final = 240


@dataclass(frozen=True)
class Checkpoint:
    """The files of a model or an adapter on this machine.

    Attributes:
        source: The folder or hub id that the user gave.
        revision: The hub revision; empty for a folder.
        folder: Where the files are.
    """

    source: str
    revision: str
    folder: Path

    @property
    def label(self) -> str:
        """What to call it in an error."""
        return f"{self.source}@{self.revision}" if self.revision else self.source

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter, which needs a base model."""
        return (self.folder / ADAPTER_CONFIG).is_file()

    @property
    def has_tokenizer(self) -> bool:
        """Whether it brings a tokenizer of its own."""
        return any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of its JSON files.

        Args:
            name: The file.

        Returns:
            The object in it; empty when there is no such file.

        Raises:
            EngineError: It is no JSON object.
        """
        try:
            value = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise EngineError(
                f"{self.label}: {name} is damaged: {reason(error)}.", hint="Copy or download it again."
            ) from error
        if not isinstance(value, dict):
            raise EngineError(f"{self.label}: {name} is no JSON object.", hint="Copy or download it again.")
        return value

    def weight_files(self) -> list[Path]:
        """Return the files that hold the weights, whether they are there or not."""
        if self.is_adapter:
            return [self.folder / _ADAPTER_WEIGHTS]
        if (self.folder / _WEIGHTS).is_file() or not (self.folder / _INDEX).is_file():
            return [self.folder / _WEIGHTS]
        return [self.folder / name for name in sorted(set(self.read_json(_INDEX).get("weight_map", {}).values()))]

    def has_weights(self) -> bool:
        """Tell whether every file of the weights is there."""
        files = self.weight_files()
        return bool(files) and all(file.is_file() for file in files)


def reason(error: Exception) -> str:
    """Return an error's message as one short line, or its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # A first line that ends with a colon only announces what is said in the next.
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text.rstrip(".!") if len(text) <= _REASON_LENGTH else f"{text[:_REASON_LENGTH]}…"


def find_checkpoint(source: str, revision: str) -> Checkpoint:
    """Find a model's small files: configuration and tokenizer, not the weights.

    Args:
        source: A folder or a hub id.
        revision: The branch, tag or commit, for a hub id.

    Returns:
        The checkpoint.

    Raises:
        ConfigurationError: The source is neither a folder nor a hub id.
        EngineError: It is not on this machine and cannot be downloaded.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return Checkpoint(source, "", folder)
    if folder.is_absolute() or source.startswith((".", "~")) or "\\" in source or folder.exists():
        raise EngineError(f"There is no model folder {source!r}.", hint="Check the path.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise ConfigurationError(
            f"{source!r} is neither a folder nor a hub id.", hint="Give a folder that exists, or owner/name."
        )
    return Checkpoint(source, revision, _download(source, revision, _SMALL_FILES))


def fetch_weights(checkpoint: Checkpoint) -> list[Path]:
    """Download the weights where they are not here yet, and check that they are safe and whole.

    Args:
        checkpoint: Its small files.

    Returns:
        The safetensors files.

    Raises:
        EngineError: There are none, or only pickle files, or one is cut short.
    """
    if checkpoint.revision and not checkpoint.has_weights():
        names = [file.name for file in checkpoint.weight_files()]
        _download(checkpoint.source, checkpoint.revision, names)
    if not checkpoint.has_weights():
        raise _without_weights(checkpoint)
    files = checkpoint.weight_files()
    for file in files:
        read_tensors(file)
    return files


def _download(repo: str, revision: str, patterns: Sequence[str]) -> Path:
    """Bring files of a hub repository into the cache, and return the folder they are in."""
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "models") from error
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        raise _missing(repo, revision, Path(constants.HF_HUB_CACHE)) from error
    except Exception as error:
        # An unknown or gated repository, an unknown revision, a full disk: the hub's own words say which.
        raise EngineError(
            f"{repo}@{revision} cannot be downloaded: {reason(error)}.",
            hint="Check the name and the revision; for a gated repository accept its terms and run: hf auth login",
        ) from error


def _missing(repo: str, revision: str, folder: Path) -> LinceError:
    return EngineError(
        f"The model {repo}@{revision} is not on this machine: it was looked for in {folder}, and there is no "
        f"folder of the name {repo!r}.",
        hint=f"While online, run: hf download {repo} --revision {revision} (or name a folder that holds it with "
        "model_path, base_model_path for an adapter's base)",
    )


def _without_weights(checkpoint: Checkpoint) -> LinceError:
    """Explain why a checkpoint whose small files are here has no weights that may be loaded."""
    pattern = "adapter_model.bin" if checkpoint.is_adapter else "pytorch_model*.bin"
    pickles = sorted(file.name for file in checkpoint.folder.glob(pattern))
    if pickles:
        folder = checkpoint.source.split("/")[-1] if checkpoint.revision else str(checkpoint.folder)
        steps = [f"python -m lince_rag.engines.checkpoints.conversion {shlex.quote(folder)}"]
        if checkpoint.revision:
            # The cache's files are links that must not be written to.
            steps.insert(
                0, f"hf download {checkpoint.source} --revision {checkpoint.revision} --local-dir {folder}"
            )
        return EngineError(
            f"{checkpoint.label}: the weights are in a pickle file ({pickles[0]}), which can run any code when it "
            "is loaded; only safetensors are read.",
            hint=f"If you trust its author, convert it once with: {' && '.join(steps)}"
            + (f" (then model_path={folder!r})" if checkpoint.revision else ""),
        )
    if checkpoint.revision:
        return EngineError(
            f"There are no safetensors weights of {checkpoint.label} in {checkpoint.folder}.",
            hint=f"While online, run: hf download {checkpoint.source} --revision {checkpoint.revision} (should it "
            "bring only .bin files, loading it again says how to convert them)",
        )
    files = checkpoint.weight_files()
    absent = next((file.name for file in files if not file.is_file()), _WEIGHTS)
    return EngineError(
        f"The folder {checkpoint.label} has no {absent}.",
        hint="Copy or download the model again, all of its files.",
    )


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
