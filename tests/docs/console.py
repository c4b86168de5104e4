"""Console transcripts: each command is run as its reader would, and its output is what is shown of it."""

import itertools
import re
import shlex
import signal
import subprocess
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import typer.main

from lince_rag.cli.app import app
from tests.docs.blocks import PROJECT, Block
from tests.integration_tests.commands import COMMAND, IMPORTED, environment, run
from tests.servers import free_port

SERVE_ADDRESS: Final = "http://127.0.0.1:8790"

# What a line begins with that the reader types while a command runs.
TYPED: Final = re.compile(r"^(?:Pregunta|Pergunta|Question): ")

# How long a command that runs until Ctrl-C is left to run, and a server may take to start and to end, in seconds.
WATCH_SECONDS: Final = 3.0
SERVER_SECONDS: Final = 60

# More that a process of a command has already: importing it takes seconds.
IMPORTED.extend(["ir_measures", "matplotlib.figure", "scipy.stats", "sklearn.metrics", "torch", "transformers"])

_PROMPT = re.compile(r"^(?:[a-z ]+)?\$ +")


def _catches_interrupts(process: int) -> bool:
    """Whether a process has a handler of its own for SIGINT."""
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> (signal.SIGINT - 1) & 1)


@dataclass
class Command:
    """A command of a transcript, and the lines below it."""

    line: str
    shown: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line, comments=True)


def commands(block: Block) -> list[Command]:
    """The commands of a transcript; a line that ends in a backslash goes on."""
    found: list[Command] = []
    unfinished = False
    for line in block.text.splitlines():
        if unfinished:
            found[-1].line += f"\n{line}"
        elif match := _PROMPT.match(line):
            found.append(Command(line[match.end() :]))
        else:
            assert found, f"{block.place}: output before the first command"
            found[-1].shown.append(line)
        unfinished = found[-1].line.endswith("\\") and not found[-1].shown
    for each in found:
        each.line = each.line.replace("\\\n", " ")
    return found


def check_options(words: list[str]) -> None:
    """Fail for a command of lince-rag with an option that does not exist, or with a value of the wrong kind."""
    group: Any = typer.main.get_command(app)
    arguments = words[1:]
    while hasattr(group, "commands") and arguments and not arguments[0].startswith("-"):
        group, arguments = group.commands[arguments[0]], arguments[1:]
    if "--help" not in arguments and "--version" not in arguments:
        group.make_context("lince-rag", list(arguments))


def check_installation(words: list[str]) -> None:
    """Fail for an installation of an extra that does not exist."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for word in words:
        if match := re.fullmatch(r"(?:lince-rag|\.|.*\.whl)\[(.*)\]", word):
            assert set(match[1].split(",")) <= set(extras), word


def assert_shown(shown: list[str], written: str, place: str) -> None:
    """Fail unless the shown lines are among the written ones, in this order; … stands for anything."""
    rest = [line.rstrip() for line in written.splitlines()]
    for line in filter(None, (each.rstrip() for each in shown)):
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        after = itertools.dropwhile(lambda each: not pattern.fullmatch(each), rest)  # noqa: B023 - used at once
        rest = list(after)
        assert rest, f"{place}: the output has no line {line!r} (any more):\n{written}"
        rest = rest[1:]


class Console:
    """A reader's shell, in a folder that is also their home.

    Args:
        home: The folder.
        variables: More environment variables.
    """

    def __init__(self, home: Path, variables: dict[str, str]) -> None:
        self.home = home
        self.folder = home
        self.variables = {"HOME": str(home), **variables}
        # Variables that the reader set, which other programs see, too.
        self.exported: list[str] = []
        # What addresses in the pages stand for.
        self.addresses: dict[str, str] = {}
        self.output = ""
        self._servers: list[subprocess.Popen[str]] = []

    def place(self, text: str) -> str:
        """Put the addresses of the servers that really run into a text."""
        for written, real in self.addresses.items():
            text = text.replace(written, real)
        return text

    def run_block(self, block: Block) -> None:
        """Run the commands of a block."""
        self.output = ""
        for command in commands(block):
            written = self._run(command, block.place)
            written = written.replace(str(self.home), "/home/ana")
            assert_shown([line for line in command.shown if not TYPED.match(line)], written, block.place)
            self.output += written

    def lince(self, *arguments: str) -> str:
        """Run lince-rag; return what it wrote."""
        return "".join(run(*arguments, cwd=self.folder, **self.variables))

    def _run(self, command: Command, place: str) -> str:
        command.line = self.place(command.line)
        words = command.words
        simple = not re.search(r"[|<>&;]", re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", command.line))
        if words[0] == "lince-rag" and simple:
            return self._lince([self._expand(word) for word in words], command.shown)
        if match := re.fullmatch(r"export (\w+)=\$\(([^)]*)\)\s*(?:#.*)?", command.line):
            self.variables[match[1]] = self._shell(match[2], place).strip()
            self.exported.append(match[1])
            return ""
        match words:
            case ["export", *values]:
                given = dict(value.split("=", 1) for value in values)
                self.variables |= given
                self.exported += given
                return ""
            case ["cd", folder]:
                self.folder = self.folder / self._expand(folder)
                return ""
            case [".", script] if script.endswith("bin/activate"):
                return ""
            case ["make", target]:
                return self._make(target)
            case ["pip", *_] | ["python3", "-m", "venv", *_]:
                # Nothing can be installed here, where everything is.
                check_installation(words)
                return ""
            case [path] if (PROJECT / path).is_file():
                # A script of this repository: only read, since it would run all tests.
                path = str(PROJECT / path)
                subprocess.run(["bash", "-n", path], check=True)
                return ""
        return self._shell(command.line, place)

    def _expand(self, word: str) -> str:
        word = re.sub(r"^~(?=/|$)", str(self.home), word)
        if re.fullmatch(r"\S+…\S*\.\w+", word):
            # A file whose name the page cannot know.
            word = next((str(found) for found in self.folder.glob(word.replace("…", "*"))), word)
        return re.sub(r"\$(\w+)", lambda match: self.variables.get(match[1], match[0]), word)

    def _make(self, target: str) -> str:
        """Check that a target exists; run what the last line of its recipe calls, if that is lince-rag."""
        told = ["make", "--dry-run", "--always-make", target]
        done = subprocess.run(told, cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        last = shlex.split(done.stdout.splitlines()[-1])
        if Path(last[0]).name != "lince-rag":
            return ""
        # With the embedder that make installs.
        return "".join(run(*last[1:], cwd=self.folder, **(self.variables | {"LINCE_EMBEDDINGS": ""})))

    def _shell(self, line: str, place: str) -> str:
        folder = self.home / ".bin"
        folder.mkdir(exist_ok=True)
        (folder / "lince-rag").write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n', encoding="utf-8")
        (folder / "lince-rag").chmod(0o755)
        variables = environment(**self.variables, PYTHONPATH=str(PROJECT))
        # Bash warns of locales that this machine does not have.
        variables |= {"LC_ALL": "", "LC_MESSAGES": variables["LC_ALL"]}
        variables["PATH"] = f"{folder}:{variables['PATH']}"
        done = subprocess.run(["bash", "-c", line], cwd=self.folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{place}: {line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _lince(self, words: list[str], shown: list[str]) -> str:
        check_options(words)
        if words[1] == "serve":
            return self._serve(words)
        if "--watch" in words:
            return self._until_interrupted(words)
        status = 1 if words[1:3] == ["models", "--check"] and "--model" in words else 0
        given = "".join(TYPED.sub("", line) + "\n" for line in shown if TYPED.match(line))
        return "".join(run(*words[1:], cwd=self.folder, status=status, given=given, **self.variables))

    def _start(self, words: list[str]) -> subprocess.Popen[str]:
        variables = environment(**self.variables, PYTHONPATH=str(PROJECT))
        return subprocess.Popen(
            [*COMMAND, *words[1:]],
            cwd=self.folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # A test run in the background of a shell ignores Ctrl-C, and would hand that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def _until_interrupted(self, words: list[str]) -> str:
        process = self._start(words)
        # Before Python is ready, the signal would end it without a word.
        while not _catches_interrupts(process.pid):
            assert process.poll() is None, (words, process.returncode)
            time.sleep(0.1)
        time.sleep(WATCH_SECONDS)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=SERVER_SECONDS)
        assert process.returncode == 130, (words, process.returncode, out)
        return out

    def _serve(self, words: list[str]) -> str:
        """Leave a server running until the page ends, or until the page starts the next one."""
        self.close()
        port = words[words.index("--port") + 1] if "--port" in words else "8790"
        free = str(free_port())
        if "--port" in words:
            words[words.index("--port") + 1] = free
        else:
            words += ["--port", free]
        if "--host" in words:
            # Not to be seen by other machines while it is tried.
            words[words.index("--host") + 1] = "127.0.0.1"
        process = self._start(words)
        self._servers.append(process)
        self.addresses[f"http://127.0.0.1:{port}"] = address = f"http://127.0.0.1:{free}"
        for _ in range(10 * SERVER_SECONDS):
            time.sleep(0.1)
            assert process.poll() is None, process.stdout and process.stdout.read()
            try:
                if httpx.get(f"{address}/readyz").status_code == 200:
                    return ""
            except httpx.TransportError:
                continue
        raise AssertionError(f"{words}: not ready")

    def close(self) -> None:
        """End the servers."""
        while self._servers:
            process = self._servers.pop()
            process.terminate()
            out, _ = process.communicate(timeout=SERVER_SECONDS)
            assert process.returncode in (0, -signal.SIGTERM), out
