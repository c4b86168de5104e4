"""The memory that a model needs, read from its files, and the devices and free memory of this machine."""

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from lince_rag.errors import ConfigurationError, EngineError
from lince_rag.prompting.registry import WEIGHT_BITS, ModelSpec, running_bytes

_DEVICE: Final = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_INTEGER_DTYPES: Final = ("I", "U", "BOOL")

# The number formats that a user is offered for a model, the widest first.
_OFFERED: Final = ("bfloat16", "int8", "int4")

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")


def check_device_name(device: str) -> None:
    """Refuse a device name that is not ``"auto"``, ``"cpu"``, ``"mps"``, ``"cuda"`` or ``"cuda:N"``."""
    if not _DEVICE.fullmatch(device):
        raise ConfigurationError(
            f"device={device!r} is not known.", hint="Use one of auto, cpu, mps, cuda, cuda:0, cuda:1 …"
        )


def pick_device(device: str, *, spread: bool = False) -> str:
    """Resolve a name to a device of this machine; ``spread`` keeps ``"auto"`` if it has several CUDA devices."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if device == "auto":
        if count:
            return "auto" if spread and count > 1 else "cuda:0"
        return "mps" if has_mps else "cpu"
    number = int(device.partition(":")[2] or 0)
    if (device.startswith("cuda") and number >= count) or (device == "mps" and not has_mps):
        known = [*(f"cuda:{found}" for found in range(count)), *(["mps"] if has_mps else []), "cpu"]
        raise EngineError(f"This machine has no device {device!r}.", hint=f"It has: {', '.join(known)}.")
    return f"cuda:{number}" if device == "cuda" else device


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file: its name, number of elements and size in bytes."""

    name: str
    count: int
    size: int
    # True in a checkpoint that is quantized already.
    is_integer: bool


def read_tensors(file: Path) -> list[Tensor]:
    """List the tensors of a safetensors file without reading their values, and refuse a damaged file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise EngineError(f"{file} is a Git LFS pointer, not the weights.", hint="Run: git lfs pull")
        try:
            header: dict[str, Any] = json.loads(stream.read(length)) if 8 + length <= size else {}
            header.pop("__metadata__", None)
            ends = [8 + length + int(entry["data_offsets"][1]) for entry in header.values()]
            tensors = [_tensor(name, entry) for name, entry in header.items()]
        except (ValueError, LookupError, TypeError, AttributeError):
            ends, tensors = [], []
    if not ends or max(ends) != size:
        raise EngineError(
            f"{file} is truncated or not a safetensors file: it has {size} bytes"
            + (f" and should have {max(ends)}." if ends else "."),
            hint="Copy or download it again.",
        )
    return tensors


def _tensor(name: str, entry: dict[str, Any]) -> Tensor:
    start, end = entry["data_offsets"]
    return Tensor(name, math.prod(entry["shape"]), end - start, entry["dtype"].startswith(_INTEGER_DTYPES))


def bytes_needed(files: Iterable[Path], dtype: str | None = None) -> int:
    """Compute the memory to load and run a model's files, cast or quantized to a dtype; ``None`` keeps theirs."""
    tensors = [tensor for file in files for tensor in read_tensors(file)]
    if dtype is None:
        return running_bytes(sum(tensor.size for tensor in tensors))
    bits = _bits(dtype)
    # Integers are not cast: they are weights that were quantized before.
    return running_bytes(sum(t.size if t.is_integer else t.count * bits // 8 for t in tensors))


def needed_by_spec(spec: ModelSpec, dtype: str) -> int | None:
    """Return the bytes that the registry says a model needs, if it does; float16 needs as many as bfloat16."""
    return spec.memory.get("bfloat16" if dtype == "float16" else dtype)


def fits(spec: ModelSpec, dtype: str) -> bool | None:
    """Return whether a model fits into the memory that is free now; ``None`` if either number is unknown."""
    needed, available = needed_by_spec(spec, dtype), machine_bytes()
    return None if needed is None or available is None else needed <= available


def formats_that_fit(spec: ModelSpec) -> list[str]:
    """Return the number formats in which a model fits into the memory that is free now, the widest first."""
    return [dtype for dtype in _OFFERED if spec.parameters and fits(spec, dtype)]


def largest_that_fits(specs: Iterable[ModelSpec], language: str) -> ModelSpec | None:
    """Return the model with the most parameters that fits in some format and was made for a language."""
    fitting = [spec for spec in specs if language in spec.languages and formats_that_fit(spec)]
    return max(fitting, key=lambda spec: spec.parameters, default=None)


def check_memory(
    name: str, needed: int | None, available: int | None, device: str, dtype: str | None = None
) -> None:
    """Refuse a model that needs more bytes than are available (``None``: unknown, no check).

    A ``dtype`` that the user can choose adds the smaller ones to the hint.
    """
    if needed is None or available is None or needed <= available:
        return
    alternatives = ["a smaller model", "another device"]
    if dtype:
        smaller = [f"quantization={kind!r}" for kind in ("int8", "int4") if _bits(kind) < _bits(dtype)]
        if _bits(dtype) > _bits("bfloat16"):
            smaller.insert(0, "dtype='bfloat16'")
        name, alternatives = f"{name} in {dtype}", [*smaller, "a smaller model", "a server that runs it"]
    place = "the CUDA devices" if device == "auto" else device
    raise EngineError(
        f"{name} needs {_gigabytes(needed)} of memory and {_gigabytes(available)} are free on {place}.",
        hint=f"Use {', '.join(alternatives[:-1])} or {alternatives[-1]}.",
    )


def available_bytes(device: str) -> int | None:
    """Measure the free memory of a device (``"auto"``: of all CUDA devices); ``None`` if it cannot be measured."""
    if device == "auto" or device.startswith("cuda"):
        import torch

        numbers = range(torch.cuda.device_count()) if device == "auto" else [torch.device(device).index or 0]
        # PyTorch keeps the memory of freed tensors for the next ones: the driver calls it used, but it is free.
        return sum(
            torch.cuda.mem_get_info(number)[0]
            + torch.cuda.memory_reserved(number)
            - torch.cuda.memory_allocated(number)
            for number in numbers
        )
    # MPS shares the memory of the machine.
    known = [size for size in (_system_bytes(), _container_bytes()) if size is not None]
    return min(known, default=None)


def machine_bytes() -> int | None:
    """Measure the free memory of the machine or its NVIDIA devices, whichever is more, without importing torch."""
    known = [size for size in (available_bytes("cpu"), _nvidia_bytes()) if size is not None]
    return max(known, default=None)


def _bits(dtype: str) -> int:
    """Bits of one weight; 16 for a dtype that the registry does not have, such as float16."""
    return WEIGHT_BITS.get(dtype, WEIGHT_BITS["bfloat16"])


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e9:.6f} GB"


def _system_bytes() -> int | None:
    """Free memory on Linux; elsewhere all memory, which at least shows what can never fit."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
        if match:
            return int(match[1]) * 1024
    except (OSError, UnicodeDecodeError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _container_bytes() -> int | None:
    """Free memory within the limit of a container (cgroup v2), if there is one."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        # The kernel frees these cached pages of files before it kills a process.
        cached = re.search(r"^inactive_file (\d+)", (_CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return max(limit - used + (int(cached[1]) if cached else 0), 0)


@cache
def _nvidia_bytes() -> int | None:
    """Free memory of all NVIDIA devices according to their driver, since importing torch takes seconds."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return sum(int(line) for line in done.stdout.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
