"""LangChain's own unit tests of chat models, unchanged, on the engine that needs no weights.

Nothing of the suite is overridden but what says which features there are. It skips ``test_init_from_env`` by
itself: no setting is read from an environment variable. Of ``test_serdes`` the half that writes down passes.
"""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.unit_tests import ChatModelUnitTests

from lince_rag import ChatLince


class TestChatLince(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatLince

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "extractive"}

    @property
    def has_tool_calling(self) -> bool:
        return False  # There is no bind_tools yet: these models were never trained to call tools.

    @property
    def has_structured_output(self) -> bool:
        return False  # It would need tool calling, or decoding under a grammar; neither is there yet.

    @pytest.mark.xfail(
        reason="It loads what langchain-core lists, and there are no other packages on its list; with"
        " allowed_objects=[ChatLince] it loads (test_citizenship.py).",
        raises=ValueError,
        strict=True,
    )
    def test_serdes(self, model: BaseChatModel, snapshot: Any) -> None:
        super().test_serdes(model, snapshot)
