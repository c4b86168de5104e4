"""The fenced code blocks of Markdown pages, found with Sybil.

Sybil is used because it knows every form of fence and comment, keeps the line numbers for tracebacks, and needs no
other package. mktestdocs has no marks for blocks that cannot run; pytest-examples reads Python only.
"""

import ast
import builtins
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from sybil import Document, Example, Region, Sybil
from sybil.parsers.abstract.lexers import LexerCollection
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer

PROJECT: Final = Path(__file__).parents[2]
DOCS: Final = PROJECT / "docs"

# Pages in which code stands: those of the site, and those that the repository shows.
PAGES: Final = sorted(
    [*PROJECT.glob("README*.md"), PROJECT / "CONTRIBUTING.md", PROJECT / "SECURITY.md", *DOCS.rglob("*.md")]
)

_FENCES: Final = RawFencedCodeBlockLexer(
    re.compile(r"(?P<language>[\w-]*)(?:[ ]+(?:title=)?\"(?P<title>[^\"\n]+)\")?[ ]*$\n", re.MULTILINE)
)
_MARKS: Final = DirectiveInHTMLCommentLexer(r"not run", arguments=r".+?")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The path of its page, from the project's folder.
        line: The line of its fence, from 1.
        language: The word after the fence.
        title: The name of the file that it shows, if it is one.
        text: What is in it.
        not_run: Why it cannot run here; empty if it can.
    """

    page: str
    line: int
    language: str
    title: str
    text: str
    not_run: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def _read(document: Document) -> Iterator[Region]:
    marks = {
        document.text.index("-->", region.end) + len("-->"): str(region.lexemes["arguments"]).strip()
        for region in LexerCollection([_MARKS])(document)
    }
    for region in _FENCES(document):
        before = len(document.text[: region.start].rstrip())
        region.parsed = Block(
            str(Path(document.path).relative_to(PROJECT)),
            document.text[: region.start].count("\n") + 1,
            region.lexemes["language"],
            region.lexemes["title"] or "",
            str(region.lexemes["source"]),
            marks.pop(before, ""),
        )
        region.evaluator = _nothing
        yield region
    assert not marks, f"{document.path}: a mark stands before no block: {marks}"


def _nothing(example: Example) -> None:
    """What a block does is in ``test_pages.py``."""


@cache
def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    document = Sybil(parsers=[_read], path=str(PROJECT)).parse(page)
    return [example.parsed for example in document.examples()]


def all_blocks(chosen: Callable[[Block], bool]) -> list[Block]:
    """Those blocks of all pages that fulfil a condition."""
    return [block for page in PAGES for block in blocks(page) if chosen(block)]


def undefined_names(code: str) -> list[str]:
    """The names that code uses and does not define."""
    nodes = list(ast.walk(ast.parse(code)))
    defined = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    defined |= {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    defined |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return sorted(used - defined - set(dir(builtins)))
