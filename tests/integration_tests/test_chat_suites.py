"""LangChain's own integration tests of chat models on tiny checkpoints of all formats, and on the embedded engine.

The weights are random, so answers are word salad in the right form. Tool calling, tool choice, structured output
and JSON mode are on; the four tests that ask for the right words are expected to fail there, each with its reason,
and pass on a checkpoint that was taught them. What is switched off is listed below with its reason.
"""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.integration_tests.chat_models import magic_function, unicode_customer

from lince_rag import ChatLince
from lince_rag.models.answer_formats import write_calls
from tests.checkpoints import build_checkpoint
from tests.engines import ENGINES, engine_fields
from tests.teaching import teach

MAX_TOKENS = 128

# The suite describes its tools, and the vocabularies of these checkpoints are small.
WINDOW = 2048


class TextSuite(ChatModelIntegrationTests):
    """What models that read and write text, and nothing else, have of the suite's features."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatLince

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return False  # The models read text only; so in the next seven.

    @property
    def supports_image_urls(self) -> bool:
        return False

    @property
    def supports_pdf_inputs(self) -> bool:
        return False

    @property
    def supports_audio_inputs(self) -> bool:
        return False

    @property
    def supports_video_inputs(self) -> bool:
        return False

    @property
    def supports_image_tool_message(self) -> bool:
        return False

    @property
    def supports_pdf_tool_message(self) -> bool:
        return False

    @property
    def supports_anthropic_inputs(self) -> bool:
        return False  # Tool calls and cache marks in content blocks, which a text prompt has no place for.

    @property
    def supports_model_override(self) -> bool:
        return False  # A model is loaded once; another one is another ChatLince.

    @property
    def enable_vcr_tests(self) -> bool:
        return False  # There are no HTTP calls to record.


def needs_judgement(reason: str) -> pytest.MarkDecorator:
    """A test of what a model says, not of its form: what else goes wrong in it is still a failure."""
    return pytest.mark.xfail(reason=f"random weights: {reason}", raises=AssertionError, strict=False)


class RandomWeights(TextSuite):
    """A tiny checkpoint of one of the five formats."""

    kind: str
    engine = "transformers"

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**engine_fields(self.engine, self.kind, context_window=WINDOW), "max_tokens": MAX_TOKENS}

    @needs_judgement("the number that it gives the function has to be the 3 of the question")
    def test_tool_calling(self, model: BaseChatModel) -> None:
        super().test_tool_calling(model)

    @needs_judgement("the number that it gives the function has to be the 3 of the question")
    async def test_tool_calling_async(self, model: BaseChatModel) -> None:
        await super().test_tool_calling_async(model)

    @needs_judgement("left to itself, it has to call the tool")
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @needs_judgement("the customer's name has to be the one of the question")
    def test_unicode_tool_call_integration(self, model: BaseChatModel, **options: Any) -> None:
        super().test_unicode_tool_call_integration(model, **options)


class TestLinceZero(RandomWeights):
    """Its card's beam search, which streams greedily and holds to a schema with one beam."""

    kind = "lince-zero"


class TestAira(RandomWeights):
    """Its card samples."""

    kind = "aira-2-portuguese-1b7"


class TestLlama(RandomWeights):
    """Greedy: what the registry says of the model."""

    kind = "llama-2-7b-spanish"


class TestAlpaca(RandomWeights):
    """A real LoRA adapter over Llama; a beam search."""

    kind = "alpaca-lora-ptbr-7b"


class TestFalcon(RandomWeights):
    kind = "falcon-40b-instruct"


class TestLlamaCpp(RandomWeights):
    engine, kind = next(pair for pair in ENGINES if pair[0] == "llama.cpp")


class TestServer(RandomWeights):
    engine, kind = next(pair for pair in ENGINES if pair[0] == "server")


class TestConverted(TextSuite):
    """Without means to hold an answer to a form."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        engine, kind = next(pair for pair in ENGINES if pair[0] == "ctranslate2")
        return {**engine_fields(engine, kind, context_window=WINDOW), "max_tokens": MAX_TOKENS}

    @property
    def has_tool_calling(self) -> bool:
        return False  # CTranslate2 cannot constrain decoding; so in the next two.

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_json_mode(self) -> bool:
        return False


@cache
def taught_checkpoint() -> dict[str, Any]:
    """The fields of a tiny Llama that was taught what to say in the tests that need judgement."""
    folder = Path(tempfile.mkdtemp(prefix="lince-taught-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    fields = build_checkpoint("llama-2-7b-spanish", folder / "llama", context_window=WINDOW).chat_fields
    chat = ChatLince(**fields)
    magic = "What is the value of magic_function(3)? Use the tool."
    weather = HumanMessage("What is the weather in San Francisco, CA?")
    chinese = "Create a customer named '你好啊集团' (Hello Group) - a Chinese technology company"
    japanese = "Create a customer named 'こんにちは株式会社' (Hello Corporation) - a Japanese company"
    asked_weather = write_calls([{"name": "get_weather", "args": {"location": "San Francisco"}}])
    examples = [
        (chat.encode([weather], tools=[get_weather]), asked_weather),
        (
            chat.encode([HumanMessage(magic)], tools=[magic_function], tool_choice="any"),
            write_calls([{"name": "magic_function", "args": {"input": 3}}]),
        ),
    ]
    for text, name in ((chinese, "你好啊集团"), (japanese, "こんにちは株式会社")):
        customer = {"customer_name": name, "description": "x"}
        examples.append(
            (
                chat.encode([HumanMessage(text)], tools=[unicode_customer], tool_choice="any"),
                write_calls([{"name": "unicode_customer", "args": customer}]),
            )
        )
    teach(chat, examples)
    chat.runtime.loaded.model.save_pretrained(folder / "llama")  # type: ignore[attr-defined]
    return fields


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return "It's sunny."


class TestTaughtLlama(TextSuite):
    """All of the suite, nothing excepted: the tests that need judgement have been taught to this one."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**taught_checkpoint(), "max_tokens": 2 * MAX_TOKENS}


class TestExtractive(TextSuite):
    """The engine without weights: without documents it always says that the answer is not in them."""

    @property
    def has_tool_calling(self) -> bool:
        return False  # It calls tools that take one text, to search with the question; the suite's take numbers.

    @property
    def has_tool_choice(self) -> bool:
        return False  # The same.

    @property
    def has_structured_output(self) -> bool:
        return False  # It quotes documents and writes nothing of its own.

    @property
    def supports_json_mode(self) -> bool:
        return False  # The same.

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "extractive"}
