"""LangChain documents that share a source: joined, put where they were, cut at exact offsets."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from lince_rag.documents.chunking import ChunkingSettings
from lince_rag.documents.parts import (
    by_source,
    clean_document,
    document_id,
    hash_documents,
    merge_documents,
    prepare_documents,
    stored_documents,
)
from lince_rag.errors import DocumentError

SMALL = ChunkingSettings(max_characters=60)


def prepared(documents, chunking=SMALL):
    (cleaned,) = by_source(map(clean_document, documents)).values()
    return prepare_documents("nota", cleaned, hash_documents(cleaned), chunking)


def check_offsets(made):
    text = made.document.page_content
    for chunk in made.chunks:
        assert text[chunk.metadata["start"] : chunk.metadata["end"]] == chunk.page_content


def split(text, size, overlap, **metadata):
    """What a splitter with ``add_start_index`` makes of a text: pieces without white space at their ends."""
    pieces = []
    for start in range(0, max(len(text), 1), size - overlap):
        piece = text[start : start + size]
        begin = start + len(piece) - len(piece.lstrip())
        if piece.strip():
            pieces.append(Document(piece.strip(), metadata={"source": "nota", "start_index": begin, **metadata}))
    return pieces


def test_every_page_is_kept_with_its_own_metadata():
    pages = [
        Document(f"La página {number} trata de la fianza.", metadata={"source": "nota", "page_number": number})
        for number in range(1, 11)
    ]
    made = prepared(pages)
    assert [chunk.metadata["page"] for chunk in made.chunks] == list(range(1, 11))
    text = made.document.page_content
    check_offsets(made)
    assert stored_documents("nota", text, made.parts) == pages


def test_pages_counted_from_0_are_counted_from_1():
    page = Document("Hola a todos.", metadata={"source": "nota", "page": 0, "page_label": "i", "total_pages": 3})
    assert prepared([page]).chunks[0].metadata["page"] == 1
    own = Document("Hola a todos.", metadata={"source": "nota", "page": 7})
    assert prepared([own]).chunks[0].metadata["page"] == 7


@settings(deadline=None)
@given(
    text=st.text(alphabet="abc de.\n", min_size=1, max_size=400),
    size=st.integers(5, 80),
    overlap=st.integers(0, 4),
)
def test_the_pieces_of_a_splitter_give_the_text_back(text, size, overlap):
    pieces = split(text, size, overlap)
    if not pieces:
        return
    made = prepared(pieces, ChunkingSettings())
    joined = made.document.page_content
    # Only white space may differ: the splitter has cut it off.
    assert joined.split() == text.split()
    for piece, part in zip(pieces, made.parts, strict=True):
        assert joined[part.start : part.end] == piece.page_content
        assert part.start == piece.metadata["start_index"]
    check_offsets(made)


def test_pieces_of_two_pages_are_not_mixed():
    one, two = (split(f"Página {n}. " + "La fianza es de mil euros. " * 6, 60, 20, page=n) for n in (1, 2))
    made = prepared([*one, *two])
    assert made.document.page_content.count("Página 1.") == made.document.page_content.count("Página 2.") == 1
    assert {chunk.metadata["page"] for chunk in made.chunks} == {1, 2}


def test_pieces_that_do_not_fit_are_kept_apart():
    pieces = [
        Document("uno dos tres", metadata={"source": "nota", "start_index": 0}),
        Document("otra cosa", metadata={"source": "nota", "start_index": 4}),
    ]
    assert prepared(pieces).document.page_content == "uno dos tres\n\notra cosa"


def test_ids():
    named = Document("La fianza es de mil euros.", id="abc", metadata={"source": "nota"})
    unnamed = named.model_copy(update={"id": None})
    made = prepared([named])
    assert made.chunks[0].metadata["document_id"] == "abc"
    assert "document_id" not in prepared([unnamed]).chunks[0].metadata
    assert document_id(unnamed) == document_id(unnamed.model_copy()) != document_id(named) == "abc"
    newer = Document("La fianza es de dos mil euros.", id="abc", metadata={"source": "nota"})
    assert merge_documents([named, unnamed], [newer, unnamed]) == [newer, unnamed]


def test_values_that_cannot_be_stored():
    metadata = {"source": "nota", "n": float("nan"), "x": None, "s": {1, 2}, "k\0": "v\0", 7: "siete"}
    strange = Document("Hola\0 \ud800.", id="i\0", metadata=metadata)
    (chunk,) = prepared([strange]).chunks
    assert chunk.page_content == "Hola\ufffd \ufffd."
    assert chunk.metadata["document_id"] == "i\ufffd"
    assert "n" not in chunk.metadata
    assert chunk.metadata["k\ufffd"] == "v\ufffd"


def test_headings_and_titles_that_are_no_text():
    given = [Document("Los olivos.", metadata={"source": "nota", "heading": 5, "title": ["Acta", 7]})]
    made = prepared(given)
    (chunk,) = made.chunks
    assert (chunk.metadata["heading"], made.document.metadata["title"]) == ("5", "['Acta', 7]")
    # No heading is none, whatever it is written as.
    for empty in (None, "", 0, False, []):
        (chunk,) = prepared([Document("Los olivos.", metadata={"source": "nota", "heading": empty})]).chunks
        assert chunk.metadata.get("heading", "") == ""


def test_no_text_is_an_error():
    with pytest.raises(DocumentError, match="no text in it"):
        prepared([Document(" \n", metadata={"source": "nota"})])
