"""Options of the benchmarks, and the table they leave behind."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.benchmarks.tables import installed

PACKAGES = ["lince-rag", "langchain-core", "chromadb", "tantivy", "PyStemmer", "sentencex", "numpy"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data", type=Path, default=None, help="folder with xquad.es.json and faquad.json")
    parser.addoption("--real", type=Path, default=None, help="folder with the fetched corpus of data/real")
    parser.addoption("--results", type=Path, default=None, help="Markdown file to write")
    parser.addoption("--tiny", action="store_true", help="try the GPU benchmarks with tiny models, on any device")


@pytest.fixture(scope="session")
def data(request: pytest.FixtureRequest) -> Path:
    folder: Path | None = request.config.getoption("--data")
    if folder is None or not (folder / "xquad.es.json").is_file():
        pytest.skip(f"the evaluation data is not there: --data {folder}")
    return folder


@pytest.fixture(scope="session")
def real(request: pytest.FixtureRequest) -> Path:
    """The documents of the development set."""
    folder: Path | None = request.config.getoption("--real")
    if folder is None or not (folder / "corpus").is_dir():
        pytest.skip(f"the corpus of the development set is not there: --real {folder} (see its fetch.sh)")
    return folder / "corpus"


@pytest.fixture(scope="session")
def tiny(request: pytest.FixtureRequest) -> bool:
    """Whether the GPU benchmarks only show that they run."""
    return bool(request.config.getoption("--tiny"))


@pytest.fixture(scope="session")
def device(tiny: bool) -> str:
    """The GPU; without one its benchmarks are skipped, or with ``--tiny`` run on the CPU."""
    if torch.cuda.is_available():
        return "cuda:0"
    if not tiny:
        pytest.skip("torch sees no CUDA device; --tiny tries the GPU benchmarks on the CPU")
    return "cpu"


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Sections of Markdown; printed, and written to --results when the benchmarks have run."""
    sections: list[str] = []
    yield sections
    machine = (
        f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    )
    head = "# Results\n\nPrinted by `make bench`; the data is XQuAD-es and FaQuAD.\n\n"
    head += f"{installed(PACKAGES)}; {machine}."
    print("\n\n".join([f"\n{head}", *sections]))
    if path := request.config.getoption("--results"):
        kept = Path(path).read_text(encoding="utf-8").split("\n\n## ")[1:] if Path(path).is_file() else []
        Path(path).write_text("\n\n".join([head, *merge_sections(kept, sections)]) + "\n", encoding="utf-8")


def merge_sections(kept: list[str], new: list[str]) -> list[str]:
    """Put new sections in the place of those with their headings, the others behind: one file can run alone."""
    merged = {section.partition("\n")[0]: f"## {section.strip()}" for section in kept}
    merged |= {section.removeprefix("## ").partition("\n")[0]: section for section in new}
    return list(merged.values())
