"""Convert pickled weights to safetensors: ``python -m lince_rag.engines.checkpoints.conversion FOLDER``.

Loading a model never reads a pickle file. This program reads one on request, with torch's loader that builds only
tensors, and needs no code from the model.
"""

import json
import sys
from pathlib import Path
from typing import Final

from lince_rag.errors import EngineError, require

_INDEX: Final = "pytorch_model.bin.index.json"


def convert_folder(folder: Path) -> list[Path]:
    """Write the weights of a folder (``pytorch_model*.bin``, ``adapter_model.bin``) as safetensors files in it."""
    require("models", "torch", "safetensors")
    import torch
    from safetensors.torch import save_file

    files = sorted([*folder.glob("pytorch_model*.bin"), *folder.glob("adapter_model.bin")])
    if not files:
        raise EngineError(
            f"The folder {folder} has no pytorch_model.bin or adapter_model.bin.", hint="Check the path."
        )
    written = []
    for file in files:
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            # Safetensors does not store one tensor under two names, so shared tensors (tied weights) are copied.
            copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        except Exception as error:
            raise EngineError(
                f"{file} contains more than tensors, or is damaged.",
                hint="Do not load it; look for a safetensors version.",
            ) from error
        written.append(folder / _safetensors_name(file.name))
        save_file(copies, written[-1], metadata={"format": "pt"})
    if (folder / _INDEX).is_file():
        # The index says which of several files holds each weight.
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        index["weight_map"] = {name: _safetensors_name(file) for name, file in index["weight_map"].items()}
        (folder / _safetensors_name(_INDEX)).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return written


def _safetensors_name(pickle_name: str) -> str:
    return pickle_name.replace("pytorch_model", "model").replace(".bin", ".safetensors")


if __name__ == "__main__":
    for path in convert_folder(Path(sys.argv[1])):
        sys.stdout.write(f"{path}\n")
