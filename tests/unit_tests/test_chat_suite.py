"""LangChain's own unit tests of chat models, unchanged, on the engine that needs no weights.

Nothing of the suite is overridden but what says which features there are. What it skips by itself:

- ``test_serdes``: ``ChatLince`` is not LangChain-serialisable (its settings may name files of this machine);
- ``test_init_from_env``: no setting is read from an environment variable.
"""

from typing import Any

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
