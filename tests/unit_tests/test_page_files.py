"""The files of the page of a server: texts in three languages, nothing that becomes HTML or leaves the machine."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

import lince_rag.serve
from lince_rag.text.language import LANGUAGES

FOLDER = Path(lince_rag.serve.__file__).with_name("page")
PARTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.iterdir())}
SCRIPTS = "\n".join(text for name, text in PARTS.items() if name.endswith(".js"))
TEXTS = tomllib.loads((files("lince_rag.prompts") / "page.toml").read_text(encoding="utf-8"))

# Keys that are put together from what the API says, or from a name.
BUILT = re.compile(r"error_\w+|vote_(good|bad)")


def test_every_text_has_all_languages_and_their_placeholders() -> None:
    for key, said in TEXTS.items():
        assert set(said) == set(LANGUAGES), key
        placeholders = [sorted(set(re.findall(r"\{(\w+)", text))) for text in said.values()]
        assert all(text.strip() for text in said.values()), key
        assert all(each == placeholders[0] for each in placeholders), key


def test_the_texts_are_those_of_the_page() -> None:
    used = set(re.findall(r'data-(?:text|label|placeholder)="(\w+)"', PARTS["index.html"]))
    assert used <= set(TEXTS)
    quoted = set(re.findall(r'"(\w+)"', SCRIPTS))
    assert {key for key in TEXTS if key not in used | quoted and not BUILT.fullmatch(key)} == set()
    # What is said by a key of its own is there.
    said = re.findall(r'(?:say|label)\([^"\n;{]*, "(\w+)"|announce\("(\w+)"|text\("(\w+)"', SCRIPTS)
    assert {key for found in said for key in found if key} <= set(TEXTS)


@pytest.mark.parametrize("name", PARTS)
def test_nothing_becomes_html_or_comes_from_elsewhere(name: str) -> None:
    text = PARTS[name].replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://", text)
    assert not re.search(
        r"(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", text
    )
    if name == "index.html":
        # The policy of the server forbids what is inline.
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


@pytest.mark.parametrize("name", [name for name in PARTS if name.endswith(".js")])
def test_modules_are_short(name: str) -> None:
    assert PARTS[name].count("\n") <= 300
