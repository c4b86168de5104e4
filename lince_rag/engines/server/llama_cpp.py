"""The engine of GGUF files: llama.cpp in this process, as a server that only this process can use.

Only the HTTP interface of xllamacpp, which it always opens on 127.0.0.1, has a tokenizer and can end a generation.
So it is asked like any other server, with a key that nobody else knows.
"""

import os
import secrets
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Final

from pydantic import SecretStr

from lince_rag.engines.checkpoints.files import LoadingOptions
from lince_rag.engines.server.client import ServerClient
from lince_rag.engines.server.engine import ServerEngine
from lince_rag.engines.server.options import ServerOptions
from lince_rag.errors import ConfigurationError, EngineError, require
from lince_rag.prompting.registry import ModelSpec

# The first bytes of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
_MAGIC: Final = b"GGUF"

# Answers that are written at the same time; each has the whole window.
_SLOTS: Final = 4

# What llama.cpp writes to stderr: errors only.
_VERBOSITY: Final = 1

# The options that say how to load other kinds of weights, and their defaults.
_OTHER_WEIGHTS: Final = {"base_model_path": None, "dtype": "auto", "quantization": None}


class LlamaCppEngine(ServerEngine):
    """Runs the model of a GGUF file in this process."""

    def __init__(self, spec: ModelSpec, options: LoadingOptions) -> None:
        super().__init__(spec, options)
        require("llamacpp", "xllamacpp")
        self.file = Path(options.model_path or "").expanduser()
        for name, default in _OTHER_WEIGHTS.items():
            if (value := getattr(options, name)) != default:
                raise ConfigurationError(
                    f"{name}={value!r} was given for {options.model_path!r}.",
                    hint=f"A GGUF file holds whole weights in one precision: leave {name} out.",
                )
        self._lock = Lock()
        self._server: Any = None

    @cached_property
    def _client(self) -> ServerClient:
        key = secrets.token_urlsafe()
        with self._lock:
            self._server = self._server or self._load(key)
        return ServerClient(ServerOptions(self._server.listening_address, SecretStr(key)), is_local=True)

    def _load(self, key: str) -> Any:
        """Load the weights and start the server."""
        import xllamacpp

        check_gguf(self.file)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(self.file)
        parameters.n_parallel = _SLOTS
        parameters.n_ctx = _SLOTS * self.spec.context_window
        parameters.api_keys = [key]
        parameters.ui = parameters.warmup = parameters.endpoint_slots = False
        parameters.verbosity = _VERBOSITY
        if self.options.device == "cpu":
            parameters.n_gpu_layers = 0
        if threads := os.environ.get("OMP_NUM_THREADS"):
            parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(threads)
        try:
            return xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise EngineError(
                f"llama.cpp cannot load {self.file}.",
                hint="It says why on stderr: a damaged file, an unknown architecture, too little memory.",
            ) from error


def check_gguf(file: Path) -> None:
    """Check that a path is a GGUF file."""
    try:
        with file.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
    except OSError as error:
        raise EngineError(f"There is no model file {str(file)!r}.", hint="Check the path.") from error
    if magic != _MAGIC:
        raise EngineError(
            f"{str(file)!r} is not a GGUF file.", hint="Name a file that begins with the bytes GGUF."
        )
