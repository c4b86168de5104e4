"""The memory that a model needs, read from its files, and the memory that this machine has."""

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

from lince_rag.errors import EngineError
from lince_rag.prompting.registry import WEIGHT_BITS, ModelSpec

_INTEGER_DTYPES: Final = ("I", "U", "BOOL")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file.

    Attributes:
        name: Its name in the file.
        count: The number of its elements.
        size: Its bytes in the file.
        is_integer: Whether its elements are whole numbers, as in a checkpoint that is quantized already.
    """

    name: str
    count: int
    size: int
    is_integer: bool


def read_tensors(file: Path) -> list[Tensor]:
    """Read what tensors a safetensors file holds, without their values.

    Args:
        file: The file.

    Returns:
        Its tensors.

    Raises:
        EngineError: It is cut short or no safetensors file.
    """
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
            f"{file} is cut short or no safetensors file: it has {size} bytes"
            + (f" and should have {max(ends)}." if ends else "."),
            hint="Copy or download it again.",
        )
    return tensors


def _tensor(name: str, entry: dict[str, Any]) -> Tensor:
    start, end = entry["data_offsets"]
    return Tensor(name, math.prod(entry["shape"]), end - start, entry["dtype"].startswith(_INTEGER_DTYPES))


# What running adds to the weights: activations and the key-value cache (the same share as in the registry).
_WORKING_SHARE: Final = 10

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")


def as_gigabytes(size: int) -> str:
    """Write a number of bytes in gigabytes."""
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e9:.6f} GB"


def bits_of(dtype: str) -> int:
    """Return the size of one weight in a dtype, in bits; 16 for a dtype that is none of ours."""
    return WEIGHT_BITS.get(dtype, WEIGHT_BITS["bfloat16"])


def running_bytes(weights: int) -> int:
    """Return what a model of so many bytes of weights needs to run."""
    return weights + weights // _WORKING_SHARE


def bytes_needed(files: Iterable[Path], dtype: str | None = None) -> int:
    """Compute the memory that safetensors files need once they are loaded.

    Args:
        files: All files of the model.
        dtype: What they are cast or quantized to; ``None`` leaves them as they are.

    Returns:
        The bytes of the weights, and a tenth more to run.
    """
    tensors = [tensor for file in files for tensor in read_tensors(file)]
    if dtype is None:
        return running_bytes(sum(tensor.size for tensor in tensors))
    bits = bits_of(dtype)
    # Whole numbers are not cast: they are weights that were quantized before.
    return running_bytes(sum(t.size if t.is_integer else t.count * bits // 8 for t in tensors))


def memory_by_dtype(parameters: int) -> dict[str, int]:
    """Compute the memory that so many weights need to run, by dtype; nothing where their number is unknown."""
    if not parameters:
        return {}
    return {dtype: running_bytes(parameters * bits // 8) for dtype, bits in WEIGHT_BITS.items()}


def available_bytes(device: str = "cpu") -> int | None:
    """Measure the memory that a model may take.

    Args:
        device: ``"cpu"``, ``"mps"``, ``"cuda:0"``, or ``"auto"`` for all CUDA devices together.

    Returns:
        The free bytes, or ``None`` where they cannot be told.
    """
    if device == "auto" or device.startswith("cuda"):
        import torch

        numbers = range(torch.cuda.device_count()) if device == "auto" else [torch.device(device).index or 0]
        return sum(torch.cuda.mem_get_info(number)[0] for number in numbers)
    # What is not CUDA shares the memory of the machine.
    known = [size for size in (_system_bytes(), _container_bytes()) if size is not None]
    return min(known, default=None)


def _system_bytes() -> int | None:
    """Free memory on Linux; elsewhere all there is, which at least shows what can never fit."""
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
    """What the limit of a container leaves (cgroup v2), where there is one."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        # The kernel gives back the pages of files before it ends a process.
        cached = re.search(r"^inactive_file (\d+)", (_CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return max(limit - used + (int(cached[1]) if cached else 0), 0)


@cache
def _nvidia_bytes() -> int | None:
    """Free memory of all NVIDIA devices, asked of their driver, since importing torch takes seconds."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return sum(int(line) for line in done.stdout.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def machine_bytes() -> int | None:
    """Measure the memory of the machine or of its NVIDIA devices, whichever is more, without importing torch."""
    known = [size for size in (available_bytes("cpu"), _nvidia_bytes()) if size is not None]
    return max(known, default=None)


def fits(spec: ModelSpec, dtype: str) -> bool | None:
    """Tell whether a model fits into the memory that is free now.

    Args:
        spec: The model.
        dtype: A key of ``WEIGHT_BITS``, or ``"float16"``.

    Returns:
        Whether it fits; ``None`` when either number is unknown.
    """
    needed = spec.memory.get("bfloat16" if dtype == "float16" else dtype)
    available = machine_bytes()
    return None if needed is None or available is None else needed <= available


def check_memory(name: str, needed: int | None, available: int | None, dtype: str) -> None:
    """Refuse a model that is larger than the memory there is.

    Args:
        name: The model.
        needed: The bytes it needs; ``None`` skips the check.
        available: The bytes there are; ``None`` skips the check.
        dtype: In what it would be loaded.

    Raises:
        EngineError: It does not fit; the hint offers what does.
    """
    if needed is None or available is None or needed <= available:
        return
    smaller = [f"quantization={kind!r}" for kind in ("int8", "int4") if bits_of(kind) < bits_of(dtype)]
    if bits_of(dtype) > bits_of("bfloat16"):
        smaller.insert(0, "dtype='bfloat16'")
    ways = [*smaller, "a smaller model", "a server that runs it"]
    raise EngineError(
        f"{name} in {dtype} needs {as_gigabytes(needed)} of memory and {as_gigabytes(available)} are free.",
        hint=f"Use {', '.join(ways[:-1])} or {ways[-1]}.",
    )
