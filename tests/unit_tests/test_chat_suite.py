"""LangChain's own unit tests of chat models, unchanged, on the engine without weights and on all five models.

Tool calling and structured output are on. It skips ``test_init_from_env`` by itself: no setting is read from an
environment variable. Of ``test_serdes`` the half that writes down passes.
"""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.unit_tests import ChatModelUnitTests

from lince_rag import ChatLince


class Suite(ChatModelUnitTests):
    model_name: str

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatLince

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self.model_name}

    @pytest.mark.xfail(
        reason="It loads what langchain-core lists, and there are no other packages on its list; with"
        " allowed_objects=[ChatLince] it loads (test_langchain_integration.py).",
        raises=ValueError,
        strict=True,
    )
    def test_serdes(self, model: BaseChatModel, snapshot: Any) -> None:
        super().test_serdes(model, snapshot)


class TestExtractive(Suite):
    model_name = "extractive"


class TestLinceZero(Suite):
    model_name = "lince-zero"


class TestAira(Suite):
    model_name = "aira-2-portuguese-1b7"


class TestLlama(Suite):
    model_name = "llama-2-7b-spanish"


class TestAlpaca(Suite):
    model_name = "alpaca-lora-ptbr-7b"


class TestFalcon(Suite):
    model_name = "falcon-40b-instruct"
