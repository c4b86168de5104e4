"""LangChain's own integration tests of chat models, unchanged, on a tiny Llama checkpoint.

The weights are random, so answers are word salad; the suite asks only that there is one. What is switched off is
listed below with its reason, and no test is overridden.
"""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from lince_rag import ChatLince
from tests.checkpoints import shared_checkpoint

MAX_TOKENS = 24


class TextSuite(ChatModelIntegrationTests):
    """What models that read and write text, and nothing else, have of the suite's features."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatLince

    @property
    def has_tool_calling(self) -> bool:
        return False  # There is no bind_tools yet: these models were never trained to call tools.

    @property
    def has_tool_choice(self) -> bool:
        return False  # Without tools there is none to choose.

    @property
    def has_structured_output(self) -> bool:
        return False  # It would need tool calling, or decoding under a grammar; neither is there yet.

    @property
    def supports_json_mode(self) -> bool:
        return False  # The same.

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


class TestLlama(TextSuite):
    """The Llama 2 format, greedy: what the registry says of the model."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**shared_checkpoint("llama-2-7b-spanish").chat_fields, "max_tokens": MAX_TOKENS}


class TestAlpaca(TextSuite):
    """A real LoRA adapter over Llama; its card's beam search, which streams greedily."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**shared_checkpoint("alpaca-lora-ptbr-7b").chat_fields, "max_tokens": MAX_TOKENS}


class TestExtractive(TextSuite):
    """The engine without weights: without documents it always says that the answer is not in them."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "extractive"}
