"""The Python code of README and docs as a user's script: mypy and pyright find the package and no errors."""

import re
import shutil
import subprocess
import sys
from typing import Final

import pytest

from tests.docs.blocks import PROJECT, blocks, undefined_names

pytestmark = pytest.mark.slow

PAGES: Final = ("README.md", "docs/langchain.md", "docs/evaluation.md", "docs/models.md", "docs/e5.md")
# One block is for an environment of its own.
BLOCKS: Final = [
    each.text
    for page in PAGES
    for each in blocks(PROJECT / page)
    if each.language == "python" and "langchain_mcp_adapters" not in each.text
]

# A stub of the names that a block takes from what is before it, with the types that the package gives them.
NAMES: Final = """
from langchain_core.documents import Document
from lince_rag import ChatLince as ChatLince, HybridRetriever, Index as Index, create_rag_chain as create_rag_chain
from lince_rag.chain.rag import RagChain

chain: RagChain
chat: ChatLince
index: Index
retriever: HybridRetriever
documents: list[Document]
"""

# Where a type is Unknown or Any, a checker finds no error. So it must find one in each of the last four lines.
WRONG: Final = """\
from lince_rag import Answer, ChatLince, Index, NativePrompt, create_rag_chain

chain = create_rag_chain(ChatLince(), Index.open("i").as_retriever())
answer: Answer = chain.invoke("?")
answer.nonsense
ChatLince(temperature="hot")
NativePrompt(instruction=1)
number: int = Index.open("i").text("a")
"""
WRONG_LINES: Final = {5, 6, 7, 8}

CHECKERS: Final = {
    "mypy": ["mypy", "--strict", "--no-error-summary"],
    "pyright": ["pyright", "--pythonpath", sys.executable],
}


@pytest.fixture(scope="module", params=CHECKERS)
def errors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, str]]:
    """What a checker says of a user's scripts, one for each block and the wrong one: file → line → error."""
    folder = tmp_path_factory.mktemp("user")
    if (PROJECT / ".mypy_cache").is_dir():
        # What `make lint` knows of other packages saves a minute; this package is at another path, and read again.
        shutil.copytree(PROJECT / ".mypy_cache", folder / ".mypy_cache")
    (folder / "readme.pyi").write_text(NAMES, encoding="utf-8")
    scripts = {"wrong.py": WRONG}
    for number, block in enumerate(BLOCKS, 1):
        names = undefined_names(block)
        head = f"from readme import {', '.join(names)}\n\n" if names else ""
        scripts[f"block_{number}.py"] = head + block
    for name, code in scripts.items():
        (folder / name).write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", *CHECKERS[request.param], *scripts], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, dict[int, str]] = {name: {} for name in scripts}
    for line in done.stdout.splitlines():
        if match := re.search(r"(\w+\.pyi?):(\d+)\S*( - | )error\b.*", line):
            found.setdefault(match[1], {})[int(match[2])] = line.strip()
    return found


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 8


def test_the_blocks_have_no_errors(errors: dict[str, dict[int, str]]) -> None:
    assert {name: lines for name, lines in errors.items() if lines and name != "wrong.py"} == {}


def test_wrong_code_has(errors: dict[str, dict[int, str]]) -> None:
    assert set(errors["wrong.py"]) == WRONG_LINES
