"""The licences of what the package depends on."""

import importlib.util
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def licences() -> Any:
    spec = importlib.util.spec_from_file_location("licences", PROJECT / ".ci" / "licences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_dependency_has_an_accepted_licence(licences: Any) -> None:
    extras = licences.user_extras()
    assert {"models", "serve", "e5"} <= set(extras)
    assert not {"dev", "all"} & set(extras)
    found = licences.dependencies(extras)
    assert {"chromadb", "torch", "onnxruntime", "fastapi", "certifi"} <= found.keys()
    told = {name: licences.licence(name, package) for name, package in found.items()}
    assert {name: each for name, each in told.items() if not licences.reason(name, each)} == {}


def test_the_base_install_has_no_exception(licences: Any) -> None:
    assert not licences.dependencies([]).keys() & licences.EXCEPTIONS.keys()


@pytest.mark.parametrize(
    ("expression", "accepted"),
    [
        ("MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0-only", False),
        ("MIT AND AGPL-3.0-or-later", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_other_licences_are_refused(licences: Any, expression: str, accepted: bool) -> None:
    assert bool(licences.reason("some-package", expression)) is accepted


class Package(Distribution):
    """A package with this metadata."""

    def __init__(self, metadata: str) -> None:
        self._text = metadata

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(path)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("License-Expression: MIT-0\nClassifier: License :: OSI Approved :: BSD License\n", "MIT-0"),
        ("License: see LICENSE\nClassifier: License :: OSI Approved :: MIT License\n", "MIT"),
        ("License: Apache 2.0 License\n", "Apache-2.0"),
        ("Name: silent\n", "unknown"),
    ],
)
def test_what_a_package_declares(licences: Any, metadata: str, expected: str) -> None:
    assert licences.licence("some-package", Package(metadata)) == expected
