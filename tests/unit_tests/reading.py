"""Reading a file that a test writes, and what holds for every document."""

import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from langchain_core.documents import Document

from lince_rag.documents.files import FileLoader
from lince_rag.errors import DocumentError

ALWAYS = {"source", "title", "content_hash", "media_type", "language", "sections", "kinds"}
SOMETIMES = {"pages_without_text", "left_out"}


def load(folder: Path, name: str, content: str | bytes) -> Document:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (document,) = FileLoader(path).load()
    check(document)
    return document


def check(document: Document) -> None:
    """What holds for every document."""
    text, sections = document.page_content, document.metadata["sections"]
    assert text.strip()
    assert text == unicodedata.normalize("NFC", text)
    assert sections[0]["start"] == 0
    assert sections[-1]["end"] == len(text)
    assert all(one["end"] == two["start"] for one, two in pairwise(sections))
    assert all(section["start"] < section["end"] for section in sections)
    assert all(0 <= item["start"] < item["end"] <= len(text) for item in document.metadata["kinds"])
    assert set(document.metadata) - SOMETIMES == ALWAYS


def reason(folder: Path, name: str, content: str | bytes) -> str:
    """Why a file cannot be read."""
    with pytest.raises(DocumentError) as caught:
        load(folder, name, content)
    assert caught.value.source == str(folder / name)
    return caught.value.reason
