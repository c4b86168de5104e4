"""The README's Python code as a user's script: mypy and pyright find the package, its types, and no errors."""

import ast
import builtins
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.slow

README: Final = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS: Final = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)

# The names that a block takes from the text around it, with the types that the package gives them.
DECLARATIONS: Final = """
from langchain_core.documents import Document

from lince_rag import ChatLince, HybridRetriever, Index, NativePrompt, create_document_agent, create_rag_chain

chat: ChatLince
index: Index
retriever: HybridRetriever
documents: list[Document]
"""

# Where a type is Unknown or Any, no checker finds an error. So these must be errors.
WRONG: Final = """
from lince_rag import Answer, ChatLince, Index, NativePrompt, create_rag_chain

chain = create_rag_chain(ChatLince(), Index.open("i").as_retriever())
answer: Answer = chain.invoke("?")
answer.nonsense
ChatLince(temperature="hot")
NativePrompt(instruction=1)
number: int = Index.open("i").text("a")
"""
WRONG_LINES: Final = {6, 7, 8, 9}


def undefined_names(code: str) -> list[str]:
    """The names that code uses and does not define."""
    nodes = list(ast.walk(ast.parse(code)))
    defined = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    defined |= {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return sorted(used - defined - set(dir(builtins)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with one script for each block."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "readme.pyi").write_text(DECLARATIONS, encoding="utf-8")
    declared = set(undefined_names(DECLARATIONS)) | set(re.findall(r"^(\w+): ", DECLARATIONS, re.MULTILINE))
    public = re.findall(r"\b[A-Za-z_]+\b", DECLARATIONS.split("import")[-1].split("\n")[0])
    for number, block in enumerate(BLOCKS):
        names = undefined_names(block)
        head = [
            f"from {'lince_rag' if name in public else 'readme'} import {name}\n"
            for name in names
            if name in declared or name in public
        ]
        (folder / f"block_{number}.py").write_text("".join([*head, block]), encoding="utf-8")
    (folder / "wrong.py").write_text(WRONG.lstrip(), encoding="utf-8")
    return folder


def mypy(folder: Path, *files: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(folder / ".mypy")]
    return subprocess.run([*command, *files], cwd=folder, capture_output=True, text=True)


def pyright(folder: Path, *files: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    return subprocess.run([*command, *files], cwd=folder, capture_output=True, text=True)


CHECKERS: Final = {"mypy": mypy, "pyright": pyright}


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 8


@pytest.mark.parametrize("checker", CHECKERS)
def test_every_block_is_well_typed(checker: str, folder: Path) -> None:
    done = CHECKERS[checker](folder, *sorted(path.name for path in folder.glob("block_*.py")))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("checker", CHECKERS)
def test_wrong_code_is_found(checker: str, folder: Path) -> None:
    done = CHECKERS[checker](folder, "wrong.py")
    found = {int(line) for line in re.findall(r"wrong\.py:(\d+):.*error", done.stdout)}
    assert found == WRONG_LINES, done.stdout + done.stderr
