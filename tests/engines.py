"""The engines that the same tests run on: for each engine and kind, the fields of a ``ChatLince``.

transformers runs every kind; each other engine runs those that show what is special about it, because all of them
generate through the same code.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from tests.checkpoints import KINDS, converted_checkpoint, shared_checkpoint
from tests.gguf_files import shared_gguf
from tests.servers import llama_server

# llama.cpp's threads wait for one another at every token, which takes long on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"


def _transformers(kind: str, **options: Any) -> dict[str, Any]:
    return shared_checkpoint(kind, **options).chat_fields


def _ctranslate2(kind: str, **options: Any) -> dict[str, Any]:
    return converted_checkpoint(kind, **options)


def _llama_cpp(kind: str, **options: Any) -> dict[str, Any]:
    return {"model": kind, "model_path": str(shared_gguf(kind, **options)), "device": "cpu"}


def _server(kind: str, **options: Any) -> dict[str, Any]:
    """llama-server, which has its own tokenizer."""
    server = llama_server(shared_gguf(kind, **options))
    return {"model": kind, "base_url": server.base_url, "api_key": server.api_key}


_FIELDS: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "transformers": _transformers,
    "ctranslate2": _ctranslate2,
    "llama.cpp": _llama_cpp,
    "server": _server,
}

# The pairs of engine and kind that can repeat an answer with its seed.
SEEDED_ENGINES: Final = [
    *(("transformers", kind) for kind in KINDS),
    ("llama.cpp", "lince-zero"),
    ("server", "llama-2-7b-spanish"),
]

# The pairs of engine and kind that the tests of stops, streams, windows, injection and LangChain's suites run on.
ENGINES: Final = [*SEEDED_ENGINES, ("ctranslate2", "aira-2-portuguese-1b7")]

# All pairs of the engines that give the same greedy tokens as transformers.
EQUAL_ENGINES: Final = [(engine, kind) for engine in ("llama.cpp", "server") for kind in KINDS]


@cache
def engine_fields(engine: str, kind: str, **options: Any) -> dict[str, Any]:
    """The fields of ``ChatLince`` for a tiny checkpoint; the options are those of ``build_checkpoint``."""
    return _FIELDS[engine](kind, **options)
