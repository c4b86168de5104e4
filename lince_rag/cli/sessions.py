"""Conversations that are kept: LangChain's message history on SQLite, in the folder of the index."""

import warnings
from pathlib import Path
from typing import Final

from langchain_core.chat_history import BaseChatMessageHistory

from lince_rag.errors import ConfigurationError, MissingExtraError

SESSIONS_FILE: Final = "sessions.sqlite"


def open_session(folder: Path, name: str | None) -> BaseChatMessageHistory:
    """Open a conversation, or begin one.

    Args:
        folder: The folder of the index that it is about.
        name: Its name; ``None`` keeps it in memory only.

    Returns:
        Its messages, oldest first; what is added is kept at once.

    Raises:
        ConfigurationError: The name is empty.
        MissingExtraError: langchain-community or SQLAlchemy is not installed.
    """
    if name is not None and not name.strip():
        raise ConfigurationError(f"{name!r} is not a name for a session.")
    with warnings.catch_warnings():
        # These classes are to go in langchain-core 2, which is not ours yet; until then they are what there is.
        warnings.simplefilter("ignore", DeprecationWarning)
        if name is None:
            from langchain_core.chat_history import InMemoryChatMessageHistory

            return InMemoryChatMessageHistory()
        try:
            from langchain_community.chat_message_histories import SQLChatMessageHistory
        except ImportError as error:
            raise MissingExtraError("langchain-community", "chat") from error
        return SQLChatMessageHistory(session_id=name.strip(), connection=f"sqlite:///{folder / SESSIONS_FILE}")
