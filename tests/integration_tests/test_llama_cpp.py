"""GGUF files in this process: how they are chosen, checked and freed; what they say is tested with the servers."""

import gc
import os
import shutil
import weakref
from pathlib import Path
from typing import Final

import gguf
import httpx
import pytest

from lince_rag import ChatLince
from lince_rag.engines.server.llama_cpp import LlamaCppEngine
from lince_rag.errors import ConfigurationError, EngineError
from tests.engines import engine_fields
from tests.gguf_files import shared_gguf

KIND: Final = "lince-zero"
QUESTION: Final = "¿Cuánto es la fianza?"


def test_a_gguf_file_chooses_its_engine():
    model = ChatLince(**engine_fields("llama.cpp", KIND))
    assert isinstance(model.runtime, LlamaCppEngine)
    # The file is loaded once, whoever asks for it.
    assert ChatLince(**engine_fields("llama.cpp", KIND)).runtime is model.runtime


def test_four_bits():
    file = shared_gguf(KIND, quantization=gguf.GGMLQuantizationType.Q4_0)
    assert os.path.getsize(file) < os.path.getsize(shared_gguf(KIND)) / 3
    reply = ChatLince(model=KIND, model_path=str(file), max_tokens=12).invoke(QUESTION, temperature=0)
    assert reply.text
    assert reply.usage_metadata["output_tokens"] == 12


def test_a_name_with_another_suffix_needs_the_engine_by_name(tmp_path: Path):
    file = shutil.copy(shared_gguf(KIND), tmp_path / "weights.bin")
    assert ChatLince(model=KIND, model_path=str(file), engine="llama.cpp", max_tokens=3).invoke(QUESTION).text


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"GGUF" + bytes(range(256))])
def test_what_is_no_model(content, tmp_path: Path):
    file = tmp_path / "m.gguf"
    if content is not None:
        file.write_bytes(content)
    model = ChatLince(model=KIND, model_path=str(file))
    model.check()
    with pytest.raises(EngineError, match=r"m\.gguf"):
        model.invoke(QUESTION)


@pytest.mark.parametrize("option", [{"quantization": "int8"}, {"dtype": "float16"}, {"base_model_path": "x"}])
def test_options_of_other_weights_are_refused(option):
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        ChatLince(**engine_fields("llama.cpp", KIND), **option).check()


def test_other_programs_cannot_use_it():
    model = ChatLince(**engine_fields("llama.cpp", KIND), max_tokens=2)
    model.invoke(QUESTION)
    engine = model.runtime
    assert isinstance(engine, LlamaCppEngine)
    base_url = engine._client.base_url
    assert base_url.startswith("http://127.0.0.1:")
    assert httpx.post(f"{base_url}/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code == 401
    assert engine._client._key not in repr(vars(engine))


def test_the_weights_go_with_the_last_model(tmp_path: Path):
    file = shutil.copy(shared_gguf(KIND), tmp_path / "once.gguf")
    model = ChatLince(model=KIND, model_path=str(file), max_tokens=2)
    model.invoke(QUESTION)
    engine = model.runtime
    assert isinstance(engine, LlamaCppEngine)
    base_url, gone = engine._client.base_url, weakref.ref(engine)
    del model, engine
    gc.collect()
    assert gone() is None
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{base_url}/health")
