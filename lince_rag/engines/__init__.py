"""Engines: what turns a rendered prompt into text; only this room and the embedder import model libraries."""

from threading import Lock
from weakref import WeakValueDictionary

from lince_rag.engines.base import Engine, Generation, GenerationSettings
from lince_rag.engines.checkpoints.files import LoadingOptions
from lince_rag.engines.extractive import EXTRACTIVE, ExtractiveEngine
from lince_rag.prompting.registry import ModelSpec

__all__ = ["Engine", "Generation", "GenerationSettings", "LoadingOptions", "create_engine"]

_engines: WeakValueDictionary[tuple[ModelSpec, LoadingOptions], Engine] = WeakValueDictionary()
_lock = Lock()


def create_engine(spec: ModelSpec, options: LoadingOptions) -> Engine:
    """Return the engine that runs a model; equal arguments share one engine, so weights are in memory once."""
    if spec.engine == EXTRACTIVE:
        return ExtractiveEngine(spec.context_window)
    from lince_rag.engines.generation.ctranslate2 import CTranslate2Engine
    from lince_rag.engines.generation.transformers import TransformersEngine

    is_converted = options.choose_engine(spec.repo) == "ctranslate2"
    with _lock:
        engine = _engines.get((spec, options))
        if engine is None:
            engine_class = CTranslate2Engine if is_converted else TransformersEngine
            engine = _engines[spec, options] = engine_class(spec, options)
        return engine
