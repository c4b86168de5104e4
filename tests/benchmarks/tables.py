"""Markdown tables of results, and what they were measured with."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import torch

# What the times on a GPU depend on.
GPU_PACKAGES: Final = [
    "torch", "transformers", "langchain-core", "langchain-huggingface", "llguidance", "accelerate", "bitsandbytes",
    "sentence-transformers",
]  # fmt: skip


def table(header: list[str], rows: list[list[object]]) -> str:
    """A Markdown table; floats get three decimals."""
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def installed(packages: list[str]) -> str:
    """The versions of those packages that are there: a machine with a GPU may have only some."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def machine(device: str) -> str:
    """The GPU and its driver."""
    if device == "cpu":
        return "no GPU"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    return f"{torch.cuda.get_device_name(0)}, driver {driver}, CUDA {torch.version.cuda}"
