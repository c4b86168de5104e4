"""Imports point to a lower layer only, heavy packages are imported late, modules stay small."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lince_rag

PACKAGE = Path(lince_rag.__file__).parent

# Each room may import from the rooms after it in this list, and from itself.
ROOMS = [
    "cli",
    "serve",
    "evaluation",
    "agents",
    "chain",
    "models",
    "index",
    "engines",
    "documents",
    "prompting",
    "text",
]
ORDER = {name: position for position, name in enumerate([*ROOMS, "errors"])}

HEAVY = {"torch", "transformers", "sentence_transformers", "chromadb", "langchain_chroma", "tantivy", "pypdfium2"}
HEAVY |= {"docx", "lxml", "numpy", "sentencex", "Stemmer", "py3langid", "matplotlib", "scipy", "sklearn"}
HEAVY |= {"ir_measures", "jsonschema", "llguidance"}

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The room that a file is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, *, top_level: bool) -> list[str]:
    """Imported module names; those for type checkers only do not count."""
    found: list[str] = []
    nodes = [tree]
    while nodes:
        for node in ast.iter_child_nodes(nodes.pop()):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.Import):
                found += [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                found.append(node.module or "")
            nodes.append(node)
    return found


def test_every_file_is_in_a_room() -> None:
    assert {room_of(path) for path in FILES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for name in imports(ast.parse(path.read_text()), top_level=False):
        if name.startswith("lince_rag.") and (other := name.split(".")[1]) not in (room, "prompts"):
            assert ORDER[other] > ORDER[room], f"{room} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_needed(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(ast.parse(path.read_text()), top_level=True)}
    assert not roots & HEAVY


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_engines_and_embeddings_import_model_libraries(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(ast.parse(path.read_text()), top_level=False)}
    if room_of(path) != "engines" and path.name != "embeddings.py":
        assert not roots & {"torch", "transformers", "sentence_transformers"}


def test_public_names() -> None:
    assert lince_rag.__all__ == sorted(lince_rag.__all__)
    assert all(getattr(lince_rag, name).__name__ == name for name in lince_rag.__all__)
    assert set(lince_rag.__all__) <= set(dir(lince_rag))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = lince_rag.nonsense


def test_no_model_name_in_code() -> None:
    from lince_rag.prompting.registry import load_registry

    names = [spec.name for spec in load_registry().values() if spec.parameters]
    for path in FILES:
        assert not [name for name in names if name in path.read_text()], path


@pytest.mark.parametrize("command", [["--help"], ["ask", "--help"], ["eval", "--help"], ["models"]])
def test_the_command_line_starts_light(command: list[str]) -> None:
    code = (
        "import sys\nsys.argv = ['lince-rag'] + sys.argv[1:]\nfrom lince_rag.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'langchain_core', 'chromadb', 'torch', 'tantivy', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
