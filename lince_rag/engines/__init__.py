"""Engines: what turns a rendered prompt into text. Only this package may import torch or transformers."""

from lince_rag.engines.base import Engine, Generation, GenerationSettings
from lince_rag.errors import EngineError
from lince_rag.registry import ModelSpec

__all__ = ["Engine", "Generation", "GenerationSettings", "create_engine"]


def create_engine(spec: ModelSpec) -> Engine:
    """Make the engine that runs a model.

    Args:
        spec: The model.

    Returns:
        The engine, ready to generate.

    Raises:
        EngineError: This version has no engine for the model.
    """
    if spec.engine == "extractive":
        from lince_rag.engines.extractive import ExtractiveEngine

        return ExtractiveEngine(spec.context_window)
    raise EngineError(
        f"This version writes the prompts of {spec.name!r} but has no {spec.engine!r} engine to run it.",
        hint=f"Use model='extractive', or see its prompts with: lince-rag prompt {spec.name}",
    )
