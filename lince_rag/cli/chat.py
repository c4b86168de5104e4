"""``lince-rag chat``: a conversation about the documents of an index, on the terminal."""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lince_rag.cli.options import (
    DEFAULT_INDEX,
    INTERRUPTED_STATUS,
    BasePathOption,
    ConfidenceOption,
    DeviceOption,
    DtypeOption,
    IndexOption,
    ModelOption,
    ModelPathOption,
    ModelsFileOption,
    QuantizationOption,
    UnsupportedOption,
    make_chain,
)
from lince_rag.errors import ConfigurationError, MissingExtraError
from lince_rag.text.wording import wording

if TYPE_CHECKING:
    from langchain_core.chat_history import BaseChatMessageHistory

    from lince_rag.chain.rag import RagChain


def chat(
    index: IndexOption = DEFAULT_INDEX,
    session: Annotated[
        str | None, typer.Option(metavar="NAME", help="Keep the conversation under this name, and go on with it.")
    ] = None,
    model: ModelOption = "extractive",
    model_path: ModelPathOption = None,
    base_model_path: BasePathOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Passages to read.")] = 5,
    on_unsupported: UnsupportedOption = "flag",
    minimum_confidence: ConfidenceOption = 0.5,
    models_file: ModelsFileOption = None,
) -> None:
    """Ask one question after another; a follow-up may be half of one. An empty line ends it."""
    from lince_rag.cli.terminal import print_plain, reader_language
    from lince_rag.index.index import Index

    with Index.open(index, create=False) as opened:
        chain = make_chain(
            opened,
            k=k,
            on_unsupported=on_unsupported,
            minimum_confidence=minimum_confidence,
            model=model,
            models_file=models_file,
            model_path=model_path,
            base_model_path=base_model_path,
            device=device,
            dtype=dtype,
            quantization=quantization,
        )
        history = open_session(opened.folder, session)
        if session is not None and history.messages:
            print_plain(
                wording("session_goes_on", reader_language(), name=session, count=len(history.messages) // 2)
            )
        _converse(chain, history)


def _converse(chain: "RagChain", history: "BaseChatMessageHistory") -> None:
    """Read questions until there are no more; an answer that is interrupted is not kept."""
    from langchain_core.messages import AIMessage, HumanMessage

    from lince_rag.cli.terminal import print_answer, print_plain, reader_language

    language = reader_language()
    while question := _read_question(wording("question", language)):
        try:
            answer = print_answer(chain.stream({"question": question, "history": history.messages}))
        except KeyboardInterrupt:
            print_plain("\n" + wording("answer_interrupted", language))
            continue
        history.add_messages([HumanMessage(question), AIMessage(answer.text)])


def _read_question(label: str) -> str:
    """Read a line, with a prompt where somebody is at the keyboard; the empty text at the end of the input."""
    try:
        if sys.stdin.isatty():
            # With its editing of lines and its memory of the ones before.
            import readline  # noqa: F401

            return input(f"{label}: ").strip()
        return next((line.strip() for line in sys.stdin if line.strip()), "")
    except EOFError:
        return ""
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED_STATUS) from None


SESSIONS_FILE: Final = "sessions.sqlite"


def open_session(folder: Path, name: str | None) -> "BaseChatMessageHistory":
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
