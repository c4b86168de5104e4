"""Old pickle weights to safetensors: ``python -m lince_rag.engines.checkpoints.conversion FOLDER``.

Loading a model never reads a pickle file. This reads one when it is asked to, with torch's loader that builds
tensors and nothing else, and needs no code of the model's.
"""

import json
import sys
from pathlib import Path
from typing import Final

from lince_rag.errors import EngineError, MissingExtraError

_INDEX: Final = "pytorch_model.bin.index.json"


def new_name(name: str) -> str:
    """Return what the safetensors file in place of a pickle file is called."""
    return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")


def convert_folder(folder: Path) -> list[Path]:
    """Write the weights of a folder as safetensors, beside the pickle files.

    Args:
        folder: A folder with ``pytorch_model*.bin`` or ``adapter_model.bin``.

    Returns:
        The files it wrote.

    Raises:
        MissingExtraError: torch or safetensors is not installed.
        EngineError: There are no such files, or one holds more than tensors.
    """
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "models") from error
    files = sorted([*folder.glob("pytorch_model*.bin"), *folder.glob("adapter_model.bin")])
    if not files:
        raise EngineError(
            f"The folder {folder} has no pytorch_model.bin or adapter_model.bin.", hint="Check the path."
        )
    written = []
    for file in files:
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            # Safetensors stores no tensor twice under two names, so what is shared (tied weights) is copied.
            copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        except Exception as error:
            raise EngineError(
                f"{file} holds more than tensors, or is damaged.", hint="Do not load it; find it as safetensors."
            ) from error
        written.append(folder / new_name(file.name))
        save_file(copies, written[-1], metadata={"format": "pt"})
    _convert_index(folder)
    return written


def _convert_index(folder: Path) -> None:
    """Write which file holds which weight, where there are several."""
    if (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        index["weight_map"] = {name: new_name(file) for name, file in index["weight_map"].items()}
        (folder / new_name(_INDEX)).write_text(json.dumps(index, indent=2), encoding="utf-8")


if __name__ == "__main__":
    for path in convert_folder(Path(sys.argv[1])):
        sys.stdout.write(f"{path}\n")
