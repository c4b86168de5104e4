"""Where a model's files are (a folder or the hub's cache), and whether they are safe and complete.

``LoadingOptions`` say which weights to load and how. ``find_source``, ``find_base`` and ``find_both`` find the
small files (configuration and tokenizer) as a ``Checkpoint``; ``fetch_weights`` downloads and checks the weights.
Weights are read from safetensors files only: a pickle file (``pytorch_model.bin``) can run any code when it is
loaded.
"""

import json
import os
import platform
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lince_rag.engines.checkpoints.memory import check_device_name, read_tensors
from lince_rag.engines.server.options import ServerOptions
from lince_rag.errors import ConfigurationError, EngineError, require
from lince_rag.prompting.registry import ModelSpec

DTYPES: Final = ("float32", "bfloat16", "float16")
QUANTIZATIONS: Final = ("int8", "int4")
ENGINES: Final = ("transformers", "ctranslate2", "llama.cpp", "server")
# Those that cannot constrain an answer to a JSON schema, and so not to a tool call.
ENGINES_WITHOUT_SCHEMAS: Final = ("ctranslate2",)
GGUF_SUFFIX: Final = ".gguf"
DEFAULT_REVISION: Final = "main"

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
_ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"

# The weights that ``lince-rag convert --to ctranslate2`` writes.
CTRANSLATE2_WEIGHTS: Final = "model.bin"

TOKENIZER_FILES: Final = (
    "tokenizer*",
    "chat_template*",
    "additional_chat_templates/*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)

# Everything except the weights: small, and enough to write a prompt and count its tokens.
_SMALL_FILES: Final = (CONFIG, GENERATION_CONFIG, ADAPTER_CONFIG, _INDEX, *TOKENIZER_FILES)

# The most characters of another library's message that an error repeats.
_REASON_LENGTH: Final = 240


def load_ctranslate2() -> Any:
    """Import CTranslate2, set up so that its 8-bit integers are right.

    On processors that are not Intel's it multiplies with oneDNN, which without VNNI instructions adds products up
    in 16 bits, which overflow: logits of int8 models correlated by .72 with those of float32 on such a processor,
    and by .99 with MKL, which it has, too. It reads the variable when it is imported for the first time.
    """
    with suppress(OSError):
        if "vnni" not in Path("/proc/cpuinfo").read_text(encoding="utf-8") and platform.machine() == "x86_64":
            os.environ.setdefault("CT2_USE_MKL", "1")
    import ctranslate2

    return ctranslate2


@dataclass(frozen=True)
class LoadingOptions:
    """Which weights to load, and how; every value is checked at once.

    Attributes:
        model_path: Folder or hub id that replaces the registry's repository; the adapter's, for an adapter.
        base_model_path: Folder or hub id of the model that an adapter is applied to.
        revision: Branch, tag or commit of a hub id; ``None`` takes the registry's, or ``main`` with
            ``model_path``.
        device: ``"auto"`` (CUDA, else MPS, else CPU), ``"cpu"``, ``"mps"``, ``"cuda"`` or ``"cuda:N"``; ``"auto"``
            spreads a model over several CUDA devices.
        dtype: One of ``DTYPES``, or ``"auto"``: the checkpoint's own on an accelerator; on the CPU float32 if it
            fits, else bfloat16.
        quantization: One of ``QUANTIZATIONS``, with bitsandbytes.
        merge_adapter: Whether to merge an adapter into its base, which then runs as fast as without one. It is not
            merged into a quantized base, whose weights could only hold it rounded.
        engine: One of ``ENGINES``, or ``"auto"``: a server if there is one, else what fits the weights.
        server: The server that runs the model, for ``engine="server"``.
        tokenizer: Folder or hub id of the tokenizer for a server or a GGUF file, instead of their own.
    """

    model_path: str | None = None
    base_model_path: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    merge_adapter: bool = True
    engine: str = "auto"
    server: ServerOptions | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("dtype", self.dtype, ("auto", *DTYPES)),
            ("quantization", self.quantization, (None, *QUANTIZATIONS)),
            ("engine", self.engine, ("auto", *ENGINES)),
        ):
            if value not in known:
                raise ConfigurationError(
                    f"{name}={value!r} is not known.", hint=f"Use one of {', '.join(map(str, known))}."
                )
        check_device_name(self.device)
        if self.engine == "server" and self.server is None:
            raise ConfigurationError(
                "engine='server' needs the address of the server.",
                hint="Give base_url (--base-url, LINCE_BASE_URL).",
            )
        if self.server is not None and self.engine not in {"auto", "server"}:
            raise ConfigurationError(
                f"base_url={self.server.base_url!r} was given, but engine={self.engine!r} runs in this process.",
                hint="Leave one of them out.",
            )

    def choose_engine(self, source: str) -> str:
        """Return the engine for the model of a folder or hub id: the one named here, or what fits its files."""
        if self.engine != "auto":
            return self.engine
        if self.server is not None:
            return "server"
        if (self.model_path or "").endswith(GGUF_SUFFIX):
            return "llama.cpp"
        converted = Path(self.model_path or source).expanduser() / CTRANSLATE2_WEIGHTS
        return "ctranslate2" if converted.is_file() else "transformers"


@dataclass(frozen=True)
class Checkpoint:
    """The files of a model or an adapter on this machine."""

    # The folder or hub id that the user gave.
    source: str
    # The hub revision; empty for a folder.
    revision: str
    folder: Path

    @property
    def label(self) -> str:
        """Its name in errors."""
        return f"{self.source}@{self.revision}" if self.revision else self.source

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter, which needs a base model."""
        return (self.folder / ADAPTER_CONFIG).is_file()

    @property
    def has_tokenizer(self) -> bool:
        """Whether it contains a tokenizer."""
        return any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of its JSON files; a missing file reads as an empty object."""
        try:
            value = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise EngineError(
                f"{self.label}: {name} is damaged: {reason(error)}.", hint="Copy or download it again."
            ) from error
        if not isinstance(value, dict):
            raise EngineError(f"{self.label}: {name} is not a JSON object.", hint="Copy or download it again.")
        return value

    def weight_files(self) -> list[Path]:
        """Return the files that should hold the weights, whether they exist or not."""
        if self.is_adapter:
            return [self.folder / _ADAPTER_WEIGHTS]
        if (self.folder / _WEIGHTS).is_file() or not (self.folder / _INDEX).is_file():
            return [self.folder / _WEIGHTS]
        return [self.folder / name for name in sorted(set(self.read_json(_INDEX).get("weight_map", {}).values()))]

    def has_weights(self) -> bool:
        """Return whether every file of the weights exists."""
        files = self.weight_files()
        return bool(files) and all(file.is_file() for file in files)


def find_source(spec: ModelSpec, options: LoadingOptions) -> Checkpoint:
    """Find the small files of the model or adapter that the options name."""
    source = options.model_path or spec.repo
    if not source:
        raise ConfigurationError(f"The model {spec.name!r} has no weights.", hint="Give model_path=FOLDER.")
    revision = options.revision or (DEFAULT_REVISION if options.model_path else spec.revision)
    return find_checkpoint(source, revision)


def find_base(name: str, source: str | None, checkpoint: Checkpoint, note: str = "") -> Checkpoint:
    """Find the base of an adapter; any other checkpoint is its own base. An error repeats the registry's note."""
    if not checkpoint.is_adapter:
        return checkpoint
    if not source:
        raise _unnamed_base(name, note)
    base = find_checkpoint(source, DEFAULT_REVISION)
    if base.is_adapter:
        raise EngineError(
            f"The base model {base.label} is an adapter itself.", hint="Name the model that it was trained from."
        )
    return base


def find_both(spec: ModelSpec, options: LoadingOptions) -> tuple[Checkpoint, Checkpoint]:
    """Find a model and, for an adapter, its base; a model that is not an adapter is its own base."""
    base_source = options.base_model_path or spec.base_model
    if spec.adapter and not (base_source or options.model_path):
        # Raised before anything is looked for or downloaded.
        raise _unnamed_base(spec.name, spec.note)
    checkpoint = find_source(spec, options)
    if options.base_model_path and not checkpoint.is_adapter:
        raise ConfigurationError(
            f"base_model_path={options.base_model_path!r} was given, but {checkpoint.label} is not an adapter.",
            hint="Leave base_model_path out, or name an adapter with model_path.",
        )
    return checkpoint, find_base(spec.name, base_source, checkpoint, spec.note)


def find_checkpoint(source: str, revision: str) -> Checkpoint:
    """Find the small files of a folder or hub id; those of a hub id are downloaded if necessary."""
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
    """Download the weights if they are missing, check that they are safe and complete, and return their files."""
    if checkpoint.revision and not checkpoint.has_weights():
        names = [file.name for file in checkpoint.weight_files()]
        _download(checkpoint.source, checkpoint.revision, names)
    if not checkpoint.has_weights():
        raise _missing_weights(checkpoint)
    files = checkpoint.weight_files()
    for file in files:
        read_tensors(file)
    return files


def reason(error: Exception) -> str:
    """Return an error's message as one short line, or the name of its type if it has no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # If the first line ends with a colon, the reason is in the second one.
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text.rstrip(".!") if len(text) <= _REASON_LENGTH else f"{text[:_REASON_LENGTH]}…"


def _unnamed_base(name: str, note: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name!r} is an adapter, and the model it is applied to is not named.",
        hint=f"Give base_model_path=FOLDER (--base-model-path FOLDER). {note}".strip(),
    )


def _download(repo: str, revision: str, patterns: Sequence[str]) -> Path:
    """Download files of a hub repository into the cache, and return the folder they are in."""
    require("models", "huggingface_hub")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        raise EngineError(
            f"The model {repo}@{revision} is not on this machine: it is not in {constants.HF_HUB_CACHE}, and "
            f"there is no folder named {repo!r}.",
            hint=f"While online, run: hf download {repo} --revision {revision} (or name a folder that holds it "
            "with model_path, or base_model_path for an adapter's base)",
        ) from error
    except Exception as error:
        # An unknown or gated repository, an unknown revision, a full disk: the hub's own message says which.
        raise EngineError(
            f"{repo}@{revision} cannot be downloaded: {reason(error)}.",
            hint="Check the name and the revision; for a gated repository accept its terms and run: hf auth login",
        ) from error


def _missing_weights(checkpoint: Checkpoint) -> EngineError:
    """Explain why a checkpoint whose small files exist has no weights that may be loaded."""
    pattern = "adapter_model.bin" if checkpoint.is_adapter else "pytorch_model*.bin"
    pickles = sorted(file.name for file in checkpoint.folder.glob(pattern))
    if pickles:
        folder = checkpoint.source.split("/")[-1] if checkpoint.revision else str(checkpoint.folder)
        steps = [f"lince-rag convert {shlex.quote(folder)} --to safetensors"]
        if checkpoint.revision:
            # The files in the cache are links that must not be written to.
            steps.insert(
                0, f"hf download {checkpoint.source} --revision {checkpoint.revision} --local-dir {folder}"
            )
        return EngineError(
            f"{checkpoint.label}: the weights are in a pickle file ({pickles[0]}), which can run any code when it "
            "is loaded; only safetensors files are read.",
            hint=f"If you trust its author, convert it once with: {' && '.join(steps)}"
            + (f" (then model_path={folder!r})" if checkpoint.revision else ""),
        )
    if checkpoint.revision:
        return EngineError(
            f"There are no safetensors weights of {checkpoint.label} in {checkpoint.folder}.",
            hint=f"While online, run: hf download {checkpoint.source} --revision {checkpoint.revision} (if it "
            "downloads only .bin files, load the model again to see how to convert them)",
        )
    if (checkpoint.folder / CTRANSLATE2_WEIGHTS).is_file():
        return EngineError(
            f"The folder {checkpoint.label} holds weights of CTranslate2.",
            hint="Leave engine out or use engine='ctranslate2', or name the folder that it was converted from.",
        )
    files = checkpoint.weight_files()
    missing = next((file.name for file in files if not file.is_file()), _WEIGHTS)
    return EngineError(
        f"The folder {checkpoint.label} has no {missing}.", hint="Copy or download all files of the model again."
    )
