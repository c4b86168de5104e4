"""What tensors a safetensors file holds, read from its header, and whether the file is whole."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lince_rag.errors import EngineError

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
