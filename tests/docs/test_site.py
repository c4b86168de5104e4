"""The built site: nothing is loaded from other machines, every public name and command is in it."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import pytest

import lince_rag
from tests.docs.blocks import PROJECT

SITE: Final = PROJECT / "build" / "site"

# Where a browser loads something without being asked; links of `a` it follows only when they are pressed.
LOADED: Final = {
    ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("object", "data"),
    ("embed", "src"), ("link", "href"), ("form", "action"),
}  # fmt: skip


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (tag, name) in LOADED and value:
                self.loaded.append(value)
            if name == "id" and value:
                self.ids.add(value)


def read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def pages() -> list[Path]:
    return sorted(SITE.rglob("*.html"))


def test_the_site_is_built() -> None:
    assert len(pages()) > 20, "Run `make docs`, which builds it first."


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(SITE)))
def test_nothing_is_loaded_from_another_machine(path: Path) -> None:
    loaded = read(path).loaded
    assert [each for each in loaded if re.match(r"(?:\w+:)?//", each)] == []
    local = [each for each in loaded if not each.startswith(("data:", "#"))]
    missing = [each for each in local if not (path.parent / re.split(r"[?#]", each)[0]).exists()]
    # The theme's page for unknown addresses has those of a server.
    assert path.name == "404.html" or missing == []


def test_styles_load_nothing_from_another_machine() -> None:
    for path in SITE.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)]*", text) == [], path


def test_every_public_name_is_described() -> None:
    found = read(SITE / "reference" / "python.html").ids
    assert {f"lince_rag.{name}" for name in lince_rag.__all__} <= found


def test_every_command_is_described_in_english() -> None:
    import typer.main

    from lince_rag.cli.app import app

    text = (SITE / "reference" / "cli.html").read_text(encoding="utf-8")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        assert (f"<code>{name}</code>" in text) is not command.hidden, name
    assert "Folder of the index." in text


def test_every_route_is_described() -> None:
    text = (SITE / "reference" / "http.html").read_text(encoding="utf-8")
    for route in ("POST /v1/ask", "GET /v1/documents/{document}/text", "POST /v1/chat/completions", "GET /readyz"):
        assert f"<code>{route}</code>" in text


def test_prompts_are_those_of_the_templates() -> None:
    text = (SITE / "explanation" / "prompt-formats.html").read_text(encoding="utf-8")
    for line in ("### Instrucción:", "&lt;|startofinstruction|&gt;", "[INST]", "### Instruções:", "User:"):
        assert line in text
