"""Running the command line in a process of its own, in Spanish and without colours.

The processes are forked from one that has imported the large libraries already, which saves about two seconds of
processor time each. Other tests start the interpreter as a user does.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from lince_rag.errors import LinceError

COMMAND = [sys.executable, "-m", "lince_rag.cli.app"]

TIMEOUT = 120

# What a forked process has already. None of these starts a thread when it is imported.
IMPORTED = ["lince_rag.cli.app", "lince_rag.chain.rag", "lince_rag.index.index", "langchain_chroma", "tantivy"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "LC_ALL": "es_ES.UTF-8", "NO_COLOR": "1", "COLUMNS": "200", "PYTHONUTF8": "1", **more}


@cache
def _forks() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def _command(arguments: tuple[str, ...], folder: str | None, variables: dict[str, str], streams: str) -> None:
    """Be the process of a command, whose standard streams are three files of a folder."""
    from lince_rag.cli.app import main

    os.environ.clear()
    os.environ.update(variables)
    for number, name, mode in ((0, "in", "r"), (1, "out", "w"), (2, "err", "w")):
        stream = open(Path(streams) / name, mode, encoding="utf-8")  # noqa: SIM115  # open to the end
        os.dup2(stream.fileno(), number)
        setattr(sys, f"std{name}", stream)
    if folder is not None:
        os.chdir(folder)
    sys.argv = ["lince-rag", *arguments]
    main()


def run(
    *arguments: str, status: int = 0, cwd: Path | None = None, given: str = "", **more: str
) -> tuple[str, str]:
    """Run a command with a text as its standard input; return what it wrote to its output and its errors."""
    with tempfile.TemporaryDirectory() as streams:
        (Path(streams) / "in").write_text(given, encoding="utf-8")
        folder = None if cwd is None else str(cwd)
        process = _forks().Process(target=_command, args=(arguments, folder, environment(**more), streams))
        process.start()
        process.join(TIMEOUT)
        out, err = ((Path(streams) / name).read_text(encoding="utf-8") for name in ("out", "err"))
        if process.exitcode is None:
            process.kill()
    assert process.exitcode == status, (process.exitcode, out, err)
    assert "Traceback" not in err or "--debug" in arguments
    return out, err


def in_a_fork(function: Callable[[], str]) -> str:
    """What a function returns in a fork of this process, or the name of the ``LinceError`` that it raises."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        try:
            sender.send(function())
        except LinceError as error:
            sender.send(type(error).__name__)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    try:
        assert receiver.poll(30), "It waits for ever."
        return str(receiver.recv())
    finally:
        process.kill()
        process.join()
