"""What version 0.1.0 dumped does not load by itself, and loads with the code that the changelog gives."""

import re
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumps, loads

from lince_rag import ChatLince, LinceLLM, NativePrompt

CHANGELOG = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
CLASSES = [ChatLince, LinceLLM, NativePrompt]

# Written by 0.1.0, character for character.
OLD_CHAT = (
    '{"lc": 1, "type": "constructor", "id": ["lince_rag", "chat_models", "ChatLince"], "kwargs": {"model": '
    '"extractive", "device": "auto", "dtype": "auto", "seed": 3, "n": 1}, "name": "ChatLince"}'
)
OLD_LLM = (
    '{"lc": 1, "type": "constructor", "id": ["lince_rag", "llms", "LinceLLM"], "kwargs": {"model": "lince-zero", '
    '"device": "auto", "dtype": "auto", "n": 1}, "name": "LinceLLM"}'
)
OLD_PROMPT = (
    '{"lc": 1, "type": "constructor", "id": ["lince_rag", "messages", "NativePrompt"], "kwargs": '
    '{"input_variables": ["x", "y"], "instruction": "Hola {x}", "context": "{y}"}, "name": "NativePrompt"}'
)
DUMPS = pytest.mark.parametrize("text", [OLD_CHAT, OLD_LLM, OLD_PROMPT], ids=["chat", "llm", "prompt"])


def restore(text: str) -> Any:
    """Run the changelog's code."""
    code = re.search(r"^  ```python\n(.*?)^  ```", CHANGELOG, flags=re.MULTILINE | re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"text": text}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loads is in beta
        exec(textwrap.dedent(code[1]), names)
    return names["restored"]


@DUMPS
@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_they_do_not_load_without_the_mapping(text: str) -> None:
    with pytest.raises((ValueError, ImportError)):
        loads(text, allowed_objects=CLASSES, valid_namespaces=["lince_rag"])


def test_they_load_with_the_mapping() -> None:
    chat, llm, prompt = map(restore, [OLD_CHAT, OLD_LLM, OLD_PROMPT])
    assert isinstance(chat, ChatLince)
    assert (chat.model, chat.seed) == ("extractive", 3)
    assert isinstance(llm, LinceLLM)
    assert llm.model == "lince-zero"
    assert isinstance(prompt, NativePrompt)
    assert prompt.invoke({"x": "Eva", "y": "Nota."}).to_messages() == (
        NativePrompt(instruction="Hola {x}", context="{y}").invoke({"x": "Eva", "y": "Nota."}).to_messages()
    )


@DUMPS
@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_dumped_again_they_need_no_mapping(text: str) -> None:
    restored = restore(text)
    assert loads(dumps(restored), allowed_objects=CLASSES, valid_namespaces=["lince_rag"]) == restored
