"""Every code block of the documentation runs, in the order of its page, in a folder of its own."""

import ast
import asyncio
import configparser
import contextlib
import inspect
import io
import json
import os
import shlex
import sqlite3
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import jinja2.nodes
import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.docs.blocks import PAGES, PROJECT, Block, all_blocks, blocks, undefined_names
from tests.docs.console import Console, assert_shown, check_installation, check_options, commands
from tests.docs.world import make_world

# Blocks that cannot run here. A new one has to be argued for: raise this number only with a reason in the mark.
MARKED: Final = 18

# The locale of a page's reader, by the end of its name.
LOCALES: Final = {".es": "es_ES.UTF-8", ".pt": "pt_BR.UTF-8", "": "en_US.UTF-8"}

# Folders of pages whose readers have installed the extra e5.
PACKAGED_EMBEDDER: Final = {"tutorials", "how-to", "explanation"}

# The cache of whoever runs the tests, although the home is another one: it may have the converted encoder already.
CACHE: Final = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")


class Reader:
    """Somebody who types what stands on a page, from its top to its end."""

    def __init__(self, home: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        text = page.read_text(encoding="utf-8")
        suffix = Path(page.stem).suffix
        variables = {"LC_ALL": LOCALES[suffix], "XDG_CACHE_HOME": CACHE}
        # These pages say what the packaged embedder finds; elsewhere hashed words are enough, and faster.
        variables["LINCE_EMBEDDINGS"] = "" if page.parent.name in PACKAGED_EMBEDDER else "embedded"
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("LINCE_EMBEDDINGS", variables["LINCE_EMBEDDINGS"])
        monkeypatch.setenv("XDG_CACHE_HOME", CACHE)
        monkeypatch.chdir(home)
        self.console = Console(home, variables)
        self.console.addresses |= make_world(home, text, self.console.lince)
        self._setenv = monkeypatch.setenv
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.open: list[Any] = []

    def do(self, block: Block) -> None:
        """Do what a block says."""
        kinds: dict[str, Callable[[Block], object]] = {
            "console": self.console.run_block,
            "python": self._python,
            "text": self._text,
            "bash": lambda each: self.console._shell(each.text, each.place),
        }
        if block.title:
            self._write(block)
        if block.language in kinds:
            kinds[block.language](block)
        else:
            PARSERS[block.language](block.text)

    def _write(self, block: Block) -> None:
        file = self.console.folder / block.title
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.console.place(block.text), encoding="utf-8")

    def _text(self, block: Block) -> None:
        """Look for what a block shows in the output of what ran last."""
        if not block.title:
            assert_shown(block.text.splitlines(), self.console.output, block.place)

    def _python(self, block: Block) -> None:
        code = self.console.place(block.text)
        if block.title:
            # It is a file, which a later command runs.
            compile(code, block.place, "exec")
            return
        for name in self.console.exported:
            self._setenv(name, self.console.variables[name])
        for name in undefined_names(code):
            if name not in self.names or is_closed(self.names[name]):
                self.names[name] = self._given(name)
        # Tracebacks show the line of the page.
        compiled = compile("\n" * block.line + code, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with contextlib.redirect_stdout(io.StringIO()) as written:
            if compiled.co_flags & inspect.CO_COROUTINE:
                asyncio.run(eval(compiled, self.names))
            else:
                exec(compiled, self.names)
        self.console.output = written.getvalue()

    def _given(self, name: str) -> Any:
        """Make what a fragment takes from the text around it."""
        from langchain_core.documents import Document

        from lince_rag import ChatLince, Index, create_rag_chain

        if name == "index":
            self.open.append(index := Index.open("contracts"))
            return index
        if name == "chat":
            return ChatLince(model="lince-zero", model_path="models/lince-zero", max_tokens=8)
        if name == "documents":
            return [Document("O contrato vence em maio.", metadata={"source": "contrato.txt"})]
        if name == "retriever":
            return self._given("index").as_retriever(k=3)
        if name == "chain":
            return create_rag_chain(ChatLince(), self._given("retriever"))
        if name in ("ChatLince", "create_rag_chain", "Index"):
            return locals()[name]
        raise NameError(f"Nothing gives {name!r}.")

    def close(self) -> None:
        for index in self.open:
            index.close()
        self.console.close()


def is_closed(value: Any) -> bool:
    """Whether a value is an index that was closed, as at the end of a ``with``."""
    if type(value).__name__ != "Index":
        return False
    try:
        value.ledger.count_waiting()
    except sqlite3.ProgrammingError:
        return True
    return False


def _parse_json(text: str) -> None:
    """Read JSON, or JSON lines."""
    try:
        json.loads(text)
    except json.JSONDecodeError:
        for line in text.splitlines():
            json.loads(line)


def _parse_jinja(text: str) -> None:
    assert ImmutableSandboxedEnvironment().parse(text).find(jinja2.nodes.Output)


def _parse_dockerfile(text: str) -> None:
    """A Dockerfile, or Ollama's Modelfile: an instruction a line."""
    for line in text.replace("\\\n", " ").splitlines():
        assert not line or line.split()[0] in {"FROM", "RUN", "COPY", "CMD", "USER", "ENV", "PARAMETER"}, line


PARSERS: Final[dict[str, Callable[[str], object]]] = {
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
    "json": _parse_json,
    "ini": lambda text: configparser.ConfigParser().read_string(text),
    "jinja": _parse_jinja,
    "dockerfile": _parse_dockerfile,
    # A configuration of nginx or Caddy: no parser of theirs is here, so at least its braces are paired.
    "nginx": lambda text: _assert(text.count("{") == text.count("}") > 0),
}


def _assert(fulfilled: bool) -> None:
    assert fulfilled


@pytest.fixture
def reader(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    reader = Reader(tmp_path, request.param, monkeypatch)
    yield reader
    reader.close()


@pytest.mark.parametrize(
    ("reader", "page"),
    [(page, page) for page in PAGES if blocks(page)],
    ids=lambda page: str(page.relative_to(PROJECT)),
    indirect=["reader"],
)
def test_the_blocks_of_a_page_run(reader: Reader, page: Path) -> None:
    for block in blocks(page):
        if not block.not_run:
            try:
                reader.do(block)
            except Exception as error:
                raise AssertionError(f"{block.place}: {error!r}") from error


def test_few_blocks_cannot_run_and_each_says_why() -> None:
    marked = all_blocks(lambda block: bool(block.not_run))
    assert [block.place for block in marked if not block.not_run.startswith(("needs ", "installs "))] == []
    assert len(marked) == MARKED, [f"{block.place}: {block.not_run}" for block in marked]


@pytest.mark.parametrize("block", all_blocks(lambda each: bool(each.not_run)), ids=lambda each: each.place)
def test_what_cannot_run_is_well_formed_at_least(block: Block) -> None:
    if block.language == "python":
        compile(block.text, block.place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        return
    assert block.language == "console", block
    for command in commands(block):
        words = command.words
        if Path(words[0]).name == "lince-rag":
            check_options(words)
        check_installation(words)
        assert shlex.join(words)
