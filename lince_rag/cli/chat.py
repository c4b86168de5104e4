"""``lince-rag chat``: a conversation about the documents of an index, on the terminal."""

import shlex
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lince_rag.cli.options import (
    DEFAULT_INDEX,
    INTERRUPTED_STATUS,
    AnswerOptions,
    IndexOption,
    check_has_documents,
    open_index,
    takes_answer_options,
)
from lince_rag.errors import ConfigurationError, LinceError, require
from lince_rag.text.language import Language, wording

if TYPE_CHECKING:
    from langchain_core.chat_history import BaseChatMessageHistory

    from lince_rag.chain.rag import RagChain
    from lince_rag.index.index import Index

SESSIONS_FILE: Final = "sessions.sqlite"

# What may be typed instead of a question; each also has a name in the reader's language (``command_…``).
COMMANDS: Final = ("help", "sources", "source", "filter", "clear", "exit")


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
    """Ask questions one after another; a follow-up may be incomplete. /help lists the commands, Ctrl-D ends it."""
    from lince_rag.cli.localisation import reader_language
    from lince_rag.cli.terminal import print_plain, print_waiting

    with open_index(index, None, options.embeddings_url, create=False) as opened:
        check_has_documents(opened)
        chain = replace(options, source=None, filter=None).make_chain(opened)
        if session is not None and opened.ledger.read_only:
            raise ConfigurationError(
                f"The conversation {session!r} cannot be saved: the index {opened.folder} cannot be written.",
                hint="Leave out --session to chat without saving.",
            )
        history = open_session(opened.folder, session)
        language = reader_language()
        shell = Shell(opened, chain, history, language, list(options.source or ()), list(options.filter or ()))
        shell.choose()
        if session is not None and history.messages:
            print_plain(wording("session_goes_on", language, name=session, count=len(history.messages) // 2))
        print_waiting(opened.ledger.count_waiting(), language)
        shell.run()


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


@dataclass
class Shell:
    """A conversation, and the documents that it is about."""

    index: "Index"
    chain: "RagChain"
    history: "BaseChatMessageHistory"
    language: Language
    sources: list[str] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)
    # The chain over the documents that were chosen.
    chosen: "RagChain" = field(init=False)

    def choose(self) -> None:
        """Ask from now on only what the sources and filters name."""
        self.chosen = self.chain.with_filter(self.index.make_filter(self.sources, self.filters))

    def run(self) -> None:
        """Answer questions and follow commands until there are no more."""
        from lince_rag.cli.localisation import print_error

        names = self._names()
        own = [f"/{wording(f'command_{command}', self.language)}" for command in COMMANDS]
        _complete(own, lambda: [each.source for each in self.index.sources()])
        while (line := _read_line(wording("question", self.language))) is not None:
            try:
                if names.get(line.lower()) == "exit":
                    # The word alone is no question about documents.
                    return
                if line.startswith("/"):
                    if not self._follow(line, names):
                        return
                elif line:
                    self._answer(line)
            except LinceError as error:
                # What reads from a file must learn that something went wrong.
                if not sys.stdin.isatty():
                    raise
                print_error(error)

    def _names(self) -> dict[str, str]:
        """Return what may be typed for each command, in English and in the reader's language."""
        return {
            name: command
            for command in COMMANDS
            for name in (command, wording(f"command_{command}", self.language))
        }

    def _answer(self, question: str) -> None:
        """Answer a question; an interrupted answer is not saved."""
        from langchain_core.messages import AIMessage, HumanMessage

        from lince_rag.chain.packing import only_quotes
        from lince_rag.cli.answers import Places, print_answer
        from lince_rag.cli.terminal import print_plain

        try:
            steps = self.chosen.stream({"question": question, "history": self.history.messages})
            answer = print_answer(steps, Places(self.index), whole=only_quotes(self.chosen.llm))
        except KeyboardInterrupt:
            print_plain("\n" + wording("answer_interrupted", self.language))
            return
        self.history.add_messages([HumanMessage(question), AIMessage(answer.text)])

    def _follow(self, line: str, names: dict[str, str]) -> bool:
        """Follow a command; return whether the conversation goes on."""
        from lince_rag.cli.terminal import print_plain

        typed, _, rest = line[1:].partition(" ")
        command = names.get(typed.lower())
        if command is None:
            near = get_close_matches(typed.lower(), names, n=1)
            hint = wording("command_near", self.language, near=near[0]) if near else ""
            print_plain(wording("command_unknown", self.language, typed=typed) + f" {hint}".rstrip())
            print_plain(wording("command_list", self.language, names=" ".join(f"/{name}" for name in names)))
        elif command == "help":
            print_plain(wording("chat_commands", self.language))
        elif command == "sources":
            self._list()
        elif command == "clear":
            self.history.clear()
            print_plain(wording("chat_cleared", self.language))
        elif command in ("source", "filter"):
            self._narrow(command, rest)
        return command != "exit"

    def _narrow(self, command: str, rest: str) -> None:
        """Read only some documents, or all again; a wrong name or condition changes nothing."""
        from lince_rag.cli.terminal import print_plain

        before = self.sources, self.filters
        if command == "source":
            self.sources = _split(rest)
        else:
            self.filters = [rest.strip()] if rest.strip().startswith("{") else _split(rest)
        try:
            self.choose()
        except ConfigurationError:
            self.sources, self.filters = before
            raise
        shown = " ".join([*self.sources, *self.filters])
        print_plain(wording("chat_reads" if shown else "chat_reads_all", self.language, chosen=shown))

    def _list(self) -> None:
        """Print the documents that questions are asked of."""
        from lince_rag.cli.terminal import print_sources

        named = {found for name in self.sources for found in self.index.find_sources(name)}
        print_sources([each for each in self.index.sources() if not named or each.source in named], self.language)


def _split(text: str) -> list[str]:
    """Split words as a shell does; a quotation mark without its partner is a letter."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _complete(commands: list[str], sources: Callable[[], list[str]]) -> None:
    """Complete commands and the names of documents with the tab key, where the terminal has readline."""
    if not sys.stdin.isatty():
        return
    try:
        # Importing it gives ``input`` line editing and a history.
        import readline
    except ImportError:
        return

    def find(typed: str, state: int) -> str | None:
        line = readline.get_line_buffer().lstrip()
        if line.startswith("/") and " " not in line:
            found = [f"{name} " for name in commands if name.startswith(typed)]
        elif line.startswith("/"):
            names = [name for source in sources() for name in (Path(source).name, source)]
            found = [shlex.quote(name) for name in dict.fromkeys(names) if name.startswith(typed)]
        else:
            found = []
        return found[state] if state < len(found) else None

    readline.set_completer(find)
    readline.set_completer_delims(" \t\n")
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")


def _read_line(label: str) -> str | None:
    """Read a line, with a prompt on a terminal; return ``None`` at the end of the input."""
    try:
        if sys.stdin.isatty():
            return input(f"{label}: ").strip()
        line = sys.stdin.readline()
        return line.strip() if line else None
    except EOFError:
        return None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED_STATUS) from None
