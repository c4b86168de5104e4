"""``lince-rag chat``: a conversation about the documents of an index, on the terminal."""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lince_rag.cli.options import (
    DEFAULT_INDEX,
    INTERRUPTED_STATUS,
    AnswerOptions,
    IndexOption,
    takes_answer_options,
)
from lince_rag.errors import ConfigurationError, require
from lince_rag.text.language import wording

if TYPE_CHECKING:
    from langchain_core.chat_history import BaseChatMessageHistory

    from lince_rag.chain.rag import RagChain

SESSIONS_FILE: Final = "sessions.sqlite"


@takes_answer_options
def chat(
    index: IndexOption = DEFAULT_INDEX,
    session: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Save the conversation under this name, or continue it if it exists."),
    ] = None,
    *,
    options: AnswerOptions,
) -> None:
    """Ask questions one after another; a follow-up may be incomplete. An empty line ends the conversation."""
    from lince_rag.cli.terminal import print_plain, print_waiting, reader_language
    from lince_rag.index.index import Index

    with Index.open(index, create=False) as opened:
        chain = options.make_chain(opened)
        if session is not None and opened.ledger.read_only:
            raise ConfigurationError(
                f"The conversation {session!r} cannot be saved: the index {opened.folder} cannot be written.",
                hint="Leave out --session to chat without saving.",
            )
        history = open_session(opened.folder, session)
        if session is not None and history.messages:
            print_plain(
                wording("session_goes_on", reader_language(), name=session, count=len(history.messages) // 2)
            )
        print_waiting(opened.ledger.count_waiting(), reader_language())
        _converse(chain, history)


def open_session(folder: Path, name: str | None) -> "BaseChatMessageHistory":
    """Open or begin a conversation about the index in a folder; without a name it is kept in memory only."""
    if name is not None and not name.strip():
        raise ConfigurationError(
            f"The session name {name!r} is empty.", hint="Give a name with at least one visible character."
        )
    with warnings.catch_warnings():
        # Both classes are deprecated for langchain-core 2; version 1 has no replacement for them.
        warnings.simplefilter("ignore", DeprecationWarning)
        if name is None:
            from langchain_core.chat_history import InMemoryChatMessageHistory

            return InMemoryChatMessageHistory()
        require("chat", "langchain_community", "sqlalchemy")
        from langchain_community.chat_message_histories import SQLChatMessageHistory

        return SQLChatMessageHistory(session_id=name.strip(), connection=f"sqlite:///{folder / SESSIONS_FILE}")


def _converse(chain: "RagChain", history: "BaseChatMessageHistory") -> None:
    """Answer questions until there are no more; an interrupted answer is not saved."""
    from langchain_core.messages import AIMessage, HumanMessage

    from lince_rag.chain.packing import only_quotes
    from lince_rag.cli.terminal import print_answer, print_plain, reader_language

    language = reader_language()
    while question := _read_question(wording("question", language)):
        if question.startswith("/"):
            print_plain(wording("chat_commands", language))
            continue
        try:
            steps = chain.stream({"question": question, "history": history.messages})
            answer = print_answer(steps, whole=only_quotes(chain.llm))
        except KeyboardInterrupt:
            print_plain("\n" + wording("answer_interrupted", language))
            continue
        history.add_messages([HumanMessage(question), AIMessage(answer.text)])


def _read_question(label: str) -> str:
    """Read a line, with a prompt on a terminal; return the empty text at the end of the input."""
    try:
        if sys.stdin.isatty():
            # Importing it gives ``input`` line editing and a history.
            import readline  # noqa: F401

            return input(f"{label}: ").strip()
        return next((line.strip() for line in sys.stdin if line.strip()), "")
    except EOFError:
        return ""
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED_STATUS) from None
