"""Engines: what turns a rendered prompt into text; only this room and the embedder import model libraries."""

from threading import Lock
from weakref import WeakValueDictionary

from lince_rag.engines.base import Engine, Generation, GenerationSettings
from lince_rag.engines.checkpoints.files import LoadingOptions
from lince_rag.engines.extractive import EXTRACTIVE, ExtractiveEngine
from lince_rag.errors import ConfigurationError
from lince_rag.prompting.registry import ModelSpec

__all__ = ["Engine", "Generation", "GenerationSettings", "LoadingOptions", "create_engine"]

_engines: WeakValueDictionary[tuple[ModelSpec, LoadingOptions], Engine] = WeakValueDictionary()
_lock = Lock()


def create_engine(spec: ModelSpec, options: LoadingOptions) -> Engine:
    """Return the engine that runs a model; equal arguments share one engine, so weights are in memory once."""
    if spec.engine == EXTRACTIVE:
        if options.server is not None:
            raise ConfigurationError(
                f"base_url={options.server.base_url!r} was given, but {spec.name!r} needs no server.",
                hint="Name the model that the server runs; lince-rag models lists those that are known.",
            )
        return ExtractiveEngine(spec.context_window)
    with _lock:
        engine = _engines.get((spec, options))
        if engine is None:
            engine = _engines[spec, options] = _new_engine(spec, options)
        return engine


def _new_engine(spec: ModelSpec, options: LoadingOptions) -> Engine:
    """Create an engine; each import needs its own packages."""
    if options.server is not None:
        from lince_rag.engines.server.engine import ServerEngine

        return ServerEngine(spec, options)
    chosen = options.choose_engine(spec.repo)
    if chosen == "llama.cpp":
        from lince_rag.engines.server.llama_cpp import LlamaCppEngine

        return LlamaCppEngine(spec, options)
    if options.tokenizer:
        raise ConfigurationError(
            f"tokenizer={options.tokenizer!r} was given, but engine={chosen!r} reads the one beside its weights.",
            hint="Leave tokenizer out, or give it with a GGUF file or base_url.",
        )
    if chosen == "ctranslate2":
        from lince_rag.engines.generation.ctranslate2 import CTranslate2Engine

        return CTranslate2Engine(spec, options)
    from lince_rag.engines.generation.transformers import TransformersEngine

    return TransformersEngine(spec, options)
