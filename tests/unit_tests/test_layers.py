"""The layout of the package: eleven rooms, imports downwards only, no circles, heavy packages imported late."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import lince_rag

PACKAGE = Path(lince_rag.__file__).parent
TESTS = Path(__file__).parents[1]

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
HEAVY |= {
    "docx",
    "pptx",
    "python_calamine",
    "striprtf",
    "lxml",
    "numpy",
    "sentencex",
    "Stemmer",
    "py3langid",
    "matplotlib",
    "scipy",
    "sklearn",
}
HEAVY |= {"ir_measures", "jsonschema", "llguidance", "pathspec", "watchfiles", "pytesseract", "PIL", "ctranslate2"}
HEAVY |= {"xllamacpp", "fastapi", "starlette", "uvicorn", "mcp", "limits", "prometheus_client"}
HEAVY |= {"sqlalchemy", "psycopg", "ray", "pyarrow"}

MODEL_LIBRARIES = {"torch", "transformers", "sentence_transformers", "peft", "accelerate", "safetensors"}
MODEL_LIBRARIES |= {"ctranslate2"}

# prompts/ is data, which importlib.resources reads.
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "prompts" not in path.relative_to(PACKAGE).parts)
TEST_FILES = sorted(TESTS.rglob("*.py"))

by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


class Import(NamedTuple):
    """One imported name: ``from module import name``, or ``import module`` with an empty name."""

    module: str
    name: str
    level: int  # dots of a relative import


def imports(tree: ast.AST, *, at_start: bool = False) -> Iterator[Import]:
    """Every import of a file, those for type checkers and inside functions included.

    ``at_start`` leaves out just these two: what remains runs when the module is imported.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(node.module or "", alias.name, node.level) for alias in node.names)
        elif at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif at_start and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (found for branch in node.orelse for found in imports(branch, at_start=True))
        else:
            yield from imports(node, at_start=at_start)


def roots(path: Path, *, at_start: bool = False) -> set[str]:
    """The top-level packages that a file imports."""
    return {found.module.split(".")[0] for found in imports(parse(path), at_start=at_start)}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room that a module is in; ``lince_rag`` for the public face."""
    return [*module.split("."), "lince_rag"][1] if "." in module else "lince_rag"


MODULES = {module_of(path): path for path in FILES}


def imported_modules(path: Path) -> set[str]:
    """The modules of this package that a file imports, anywhere in it; itself not counted."""
    found = set()
    for module, name, _ in imports(parse(path)):
        whole = f"{module}.{name}"
        found.add(whole if whole in MODULES else module)
    return (found & set(MODULES)) - {module_of(path)}


# Every import between two modules of the package, type-checking imports and imports inside functions included.
MODULE_GRAPH = {module: imported_modules(path) for module, path in MODULES.items()}

# The same between rooms. The public face, lince_rag/__init__.py, is not in it: it imports only to re-export, and
# nothing imports it. Its edges, one for each room it takes a name from, are counted by themselves in FACE.
ROOM_GRAPH = {
    room: {
        room_of(other) for module, others in MODULE_GRAPH.items() if room_of(module) == room for other in others
    }
    - {room}
    for room in ORDER
}
FACE = {room_of(module) for module in MODULE_GRAPH["lince_rag"]}


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """The level of each node: 1 where it imports nothing, else one more than the highest that it imports."""
    found: dict[str, int] = {}
    for node in TopologicalSorter(graph).static_order():
        found[node] = 1 + max((found[other] for other in graph[node]), default=0)
    return found


# ---------------------------------------------------------------------------------------------------------- rooms


def test_every_file_is_in_a_room() -> None:
    assert {room_of(module) for module in MODULES} - {"lince_rag"} == set(ORDER)


def test_every_room_says_in_one_sentence_what_is_in_it() -> None:
    for path in FILES:
        if path.name == "__init__.py":
            sentence = ast.get_docstring(parse(path)) or ""
            assert re.fullmatch(r"[A-Z][^\n]*[^.\n]\.", sentence), path
            assert not re.search(r"\. [A-Z]", sentence), f"{path}: more than one sentence"


def test_imports_are_absolute() -> None:
    for path in FILES:
        assert not [found for found in imports(parse(path)) if found.level], path


@by_file
def test_imports_point_down(path: Path) -> None:
    room = room_of(module_of(path))
    for module, _, _ in imports(parse(path)):
        if room != "lince_rag" and module.split(".")[0] == "lince_rag":
            assert module != "lince_rag", f"{path} imports the public face"
            other = room_of(module)
            assert other == room or ORDER[other] > ORDER[room], f"{room} imports {other}"


def test_models_and_index_do_not_know_each_other() -> None:
    assert "index" not in ROOM_GRAPH["models"]
    assert "models" not in ROOM_GRAPH["index"]


def test_the_index_needs_no_prompts() -> None:
    assert "prompting" not in ROOM_GRAPH["index"]


def test_no_modules_import_each_other_in_a_circle() -> None:
    # A type-checking import closes a circle, too. CycleError names the modules.
    TopologicalSorter(MODULE_GRAPH).prepare()


def test_the_graph_of_rooms_stays_small() -> None:
    # With the public face: one node and one level more.
    assert len(ROOM_GRAPH) + 1 <= 13
    assert max(levels(ROOM_GRAPH).values()) + 1 <= 8
    assert sum(map(len, ROOM_GRAPH.values())) <= 45
    assert len(FACE) <= 7


def test_the_package_has_at_most_174_files() -> None:
    # 100 before the readers of a dozen formats and the engines, 138 before the HTTP server, 150 before its page,
    # 155 before indexes on servers, moving them, other file systems and Ray, and servers that embed and rerank,
    # 170 before tables and forms in PDFs, and calendars.
    assert len(FILES) <= 174


# ------------------------------------------------------------------------------------------------------- packages


@by_file
def test_heavy_packages_are_imported_where_they_are_needed(path: Path) -> None:
    assert not roots(path, at_start=True) & HEAVY


@by_file
def test_only_engines_and_embeddings_import_model_libraries(path: Path) -> None:
    module = module_of(path)
    if room_of(module) != "engines" and module != "lince_rag.index.embeddings":
        assert not roots(path) & MODEL_LIBRARIES


# ---------------------------------------------------------------------------------------------------- public names


def test_public_names() -> None:
    assert lince_rag.__all__ == sorted(lince_rag.__all__)
    assert all(getattr(lince_rag, name).__name__ == name for name in lince_rag.__all__)
    assert set(lince_rag.__all__) <= set(dir(lince_rag))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = lince_rag.nonsense


def test_type_checkers_see_the_public_names_where_they_are() -> None:
    declared = {
        found.name: found.module.removeprefix("lince_rag.")
        for found in imports(parse(PACKAGE / "__init__.py"))
        if found.module.startswith("lince_rag.")
    }
    assert declared == lince_rag._MODULES
    assert sorted(declared) == lince_rag.__all__


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


# ------------------------------------------------------------------------------------------------------ the tests


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_tests_import_helpers_by_their_full_name_and_no_other_test(path: Path) -> None:
    local = {helper.stem for helper in TEST_FILES} | {folder.parent.name for folder in TEST_FILES}
    for module, name, level in imports(parse(path)):
        assert level == 0, f"a relative import of {module or name}"
        if module.split(".")[0] == "tests":
            last_names = {module.split(".")[-1], name}
            assert not [part for part in last_names if part.startswith("test_")], f"imports {module}"
            assert "conftest" not in last_names, "what a conftest holds is for pytest"
        else:
            assert module.split(".")[0] not in local, f"{module} without the name of its folder"


def test_test_folders_are_packages() -> None:
    # So that each helper has one name, tests.folder.helper, and is loaded once.
    assert all((path.parent / "__init__.py").is_file() for path in TEST_FILES)
