"""Which files of folders are read: patterns, .linceignore, dates, addresses."""

import os
from pathlib import Path

import pytest

from lince_rag.documents.selection import FileSelection, find_files, local_path
from lince_rag.errors import ConfigurationError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ["a.txt", "b.md", "viejo/c.txt", "viejo/d.md", "contratos/e.txt", "contratos/viejo/f.txt", "g.rare"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("Hola.")
    return tmp_path


def names(folder: Path, **options: object) -> list[str]:
    found = find_files(folder, FileSelection(**options))  # type: ignore[arg-type]
    return [str(path.relative_to(folder)) for path in found.files]


def test_include_and_exclude(folder: Path) -> None:
    assert names(folder, include=["*.md"]) == ["b.md", "viejo/d.md"]
    assert names(folder, include=["contratos/"]) == ["contratos/e.txt", "contratos/viejo/f.txt"]
    assert names(folder, exclude=["viejo/"]) == ["a.txt", "b.md", "contratos/e.txt"]
    assert names(folder, exclude=["/viejo/"]) == ["a.txt", "b.md", "contratos/e.txt", "contratos/viejo/f.txt"]
    assert names(folder, include=["*.txt"], exclude=["viejo"]) == ["a.txt", "contratos/e.txt"]
    assert names(folder, readable=["*.rare"]) == sorted([*names(folder), "g.rare"])


def test_an_ignore_file_counts_below_its_folder_and_the_nearest_decides(folder: Path) -> None:
    (folder / ".linceignore").write_text("# viejos\nviejo/\n*.md\n!b.md\n")
    assert names(folder) == ["a.txt", "b.md", "contratos/e.txt"]
    (folder / "contratos" / ".linceignore").write_text("!viejo/\n")
    assert names(folder) == ["a.txt", "b.md", "contratos/e.txt", "contratos/viejo/f.txt"]
    skipped = find_files(folder).skipped
    # A file in it could be let in by the line with "!".
    assert skipped["ignored"] == [str(folder / "viejo" / name) for name in ("d.md", "c.txt")]
    (folder / ".linceignore").write_text("viejo/\n")
    assert str(folder / "viejo") + os.sep in find_files(folder).skipped["ignored"]
    (folder / ".linceignore").write_text("viejo/**\n!viejo/d.md\n")
    assert "viejo/d.md" in names(folder)
    assert "viejo/c.txt" not in names(folder)
    assert "hidden" not in skipped


def test_since(folder: Path) -> None:
    os.utime(folder / "a.txt", (1_000, 1_000))
    assert "a.txt" not in names(folder, since=2_000.0)
    assert "b.md" in names(folder, since=2_000.0)
    assert "a.txt" in names(folder, since=1_000.0)


def test_an_index_inside_a_folder_is_not_read(folder: Path) -> None:
    (folder / "contratos" / "ledger.sqlite").write_bytes(b"")
    assert names(folder) == ["a.txt", "b.md", "viejo/c.txt", "viejo/d.md"]


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_path("file:///tmp/mi%20carpeta/a.txt") == Path("/tmp/mi carpeta/a.txt")
    assert local_path("file://localhost/tmp/a.txt") == Path("/tmp/a.txt")
    assert local_path("año: notas.txt") == tmp_path / "año: notas.txt"
    assert local_path(Path("a/../b.txt")) == tmp_path / "b.txt"
    for elsewhere in ("file://servidor/a.txt", "https://example.org/a.pdf"):
        with pytest.raises(ConfigurationError, match="not on this machine"):
            local_path(elsewhere)


def test_an_impossible_pattern(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="list of patterns"):
        names(folder, exclude=["!"])
    (folder / ".linceignore").write_text("!\n")
    with pytest.raises(ConfigurationError, match=r"\.linceignore has a line"):
        names(folder)


def test_an_empty_module_is_not_a_failure(folder: Path) -> None:
    (folder / "__init__.py").write_bytes(b"")
    (folder / "a.py").write_text("print(1)")
    found = find_files(folder)
    assert [path.name for path in found.files if path.suffix == ".py"] == ["a.py"]
