from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from lince_rag.chain.grounding import attribute
from lince_rag.documents.chunking import TOLERANCE, ChunkingSettings, chunk_document
from lince_rag.documents.files import FileLoader
from lince_rag.documents.kinds import is_heading
from lince_rag.errors import ConfigurationError
from tests.unit_tests.file_samples import SENTENCE, pdf_bytes

SMALL = ChunkingSettings(max_characters=100)


def make(text: str, **metadata: object) -> Document:
    return Document(page_content=text, metadata={"source": "a.txt", "language": "es"} | metadata)


def texts(document: Document, chunking: ChunkingSettings = SMALL) -> list[str]:
    return [chunk.page_content for chunk in chunk_document(document, chunking)]


def divide(parts: list[tuple[str, str, int | None]]) -> Document:
    """A document whose sections have these texts, headings and pages."""
    sections, start = [], 0
    for text, heading, page in parts:
        sections.append({"start": start, "end": start + len(text), "heading": heading, "page": page})
        start += len(text)
    return make("".join(text for text, _, _ in parts), sections=sections)


def test_a_short_document_is_one_chunk() -> None:
    (chunk,) = chunk_document(make("  Hola. Adiós.\n", title="T", author="Ana", tags=["x"], none=None, year=1999))
    assert chunk.page_content == "Hola. Adiós."
    assert chunk.metadata == {
        "source": "a.txt",
        "title": "T",
        "author": "Ana",
        "year": 1999,
        "language": "es",
        "content_hash": chunk.metadata["content_hash"],
        "start": 2,
        "end": 14,
        "kind": "prose",
    }
    assert chunk.id is not None
    assert len(chunk.id) == 32


def test_sentences_stay_whole_and_abbreviations_do_not_end_them() -> None:
    text = "El Sr. Pérez vive en la calle Mayor desde 1999 y trabaja cerca. " * 4
    assert texts(make(text), ChunkingSettings(max_characters=70)) == [text[:63]] * 4


def test_paragraph_ends_are_preferred() -> None:
    one, two = (
        "Primera frase de aquí. Segunda frase de aquí. Tercera.",
        "Otro párrafo. Que no cabe entero. Y sigue más.",
    )
    assert texts(make(f"{one}\n\n{two}"), ChunkingSettings(max_characters=80)) == [one, two]


def test_a_chunk_never_crosses_a_heading_but_crosses_a_page() -> None:
    document = divide([("A uno. ", "A", 1), ("A dos. ", "A", 2), ("B uno.", "A › B", 2), (" B dos.", "A › B", 3)])
    chunks = chunk_document(document, SMALL)
    assert [(chunk.page_content, chunk.metadata["heading"], chunk.metadata["page"]) for chunk in chunks] == [
        ("A uno. A dos.", "A", 1),
        ("B uno. B dos.", "A › B", 2),
    ]
    assert [chunk.metadata["page_starts"] for chunk in chunks] == [[[7, 2]], [[20, 3]]]


def test_page_starts_are_the_further_pages_only() -> None:
    (chunk,) = chunk_document(divide([("Uno.", "A", 1), (" Dos.", "A", 1)]))
    assert "page_starts" not in chunk.metadata
    (chunk,) = chunk_document(divide([("Uno. ", "A", 3), ("Dos. ", "A", 5), ("Tres.", "A", 6), ("\n", "A", 7)]))
    assert chunk.metadata["page"] == 3
    assert chunk.metadata["page_starts"] == [[5, 5], [10, 6]]
    # Where an application leaves a page unknown, the page before is not claimed for it.
    (chunk,) = chunk_document(divide([("Uno. ", "A", None), ("Dos. ", "A", 2), ("Tres.", "A", None)]))
    assert "page" not in chunk.metadata
    assert chunk.metadata["page_starts"] == [[5, 2], [10, None]]


def test_a_heading_without_text_joins_what_follows() -> None:
    document = divide([("Uno\n\n", "Uno", None), ("Dos\n\nHola.\n\n", "Dos", None), ("Fin", "Fin", None)])
    (chunk,) = chunk_document(document)
    assert chunk.page_content == "Uno\n\nDos\n\nHola.\n\nFin"
    assert (chunk.metadata["heading"], chunk.metadata["kind"]) == ("Dos", "prose")
    # An outline is text, too.
    outline = [(f"Punto {number}\n", f"Punto {number}", None) for number in range(30)]
    chunks = chunk_document(divide(outline), SMALL)
    assert "\n".join(chunk.page_content for chunk in chunks) == "\n".join(text.strip() for text, _, _ in outline)
    assert len(chunks) < 5


def test_contents_are_in_no_chunk_unless_there_is_nothing_else() -> None:
    text = "Inicio | Siguiente\n\nManual\n\nUno\n\nHola a todos.\n\nManual 1"
    spans = [("Inicio | Siguiente", "contents"), ("Uno", "contents"), ("Manual 1", "repeated")]
    kinds = [
        {"start": text.index(span), "end": text.index(span) + len(span), "kind": kind} for span, kind in spans
    ]
    # A title that stands alone between the parts that are left out is left out, too.
    (chunk,) = chunk_document(make(text, kinds=kinds, title="Manual"))
    assert chunk.page_content == "Hola a todos."
    assert "kinds" not in chunk.metadata
    kinds = [{"start": 0, "end": len(text), "kind": "contents"}]
    (chunk,) = chunk_document(make(text, kinds=kinds))
    assert (chunk.page_content, chunk.metadata["kind"]) == (text, "contents")
    # The "kinds" of another application may mean anything.
    for other in ("x", [1], [{"kind": "code"}]):
        assert texts(make("Hola.", kinds=other)) == ["Hola."]


def test_code_is_named() -> None:
    code = "```\nrm -r carpeta\nls -l carpeta\n```"
    (chunk,) = chunk_document(make(f"Así:\n\n{code}"))
    assert chunk.metadata["kind"] == "code"


def test_unknown_page_and_heading_are_left_out() -> None:
    (chunk,) = chunk_document(divide([("Hola.", "", None)]))
    assert {"page", "heading", "sections"}.isdisjoint(chunk.metadata)


def test_a_long_sentence_is_cut_between_words_and_rows() -> None:
    words = "palabra " * 30
    pieces = texts(make(words.strip()))
    assert " ".join(pieces) == words.strip()
    assert all(piece.split() == ["palabra"] * len(piece.split()) for piece in pieces)
    rows = [f"fila {number} | columna con algo más | {number * 7}" for number in range(12)]
    for piece in texts(make("\n".join(rows))):
        assert set(piece.split("\n")) <= set(rows)
    assert [len(piece) for piece in texts(make("x" * 230))] == [100, 100, 30]


def test_a_small_remainder_joins_the_chunk_before() -> None:
    text = f"{'a' * 48}. {'b' * 48}. Fin."
    assert texts(make(text)) == [text]
    text = f"{'a' * 48}. {'b' * 48}. {'c' * 30}."
    assert texts(make(text)) == [text[:99], text[100:]]


def test_overlap_repeats_sentences_as_far_as_they_fit() -> None:
    text = " ".join(f"Frase número {number} de prueba." for number in range(9))
    chunks = texts(make(text), ChunkingSettings(max_characters=90, overlap_sentences=1))
    for one, two in pairwise(chunks):
        assert two.startswith(one.rpartition(". ")[2])
    assert all(len(chunk) <= 90 * (1 + TOLERANCE) for chunk in chunks)
    # A sentence of the limit's length leaves no room for another.
    assert len(texts(make(f"Corta. {'x' * 99}. Corta."), ChunkingSettings(100, 3))) == 2


def test_a_pdf_from_end_to_end(tmp_path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf_bytes([SENTENCE * 6, SENTENCE * 6]))
    (document,) = FileLoader(tmp_path / "a.pdf").load()
    chunks = chunk_document(document, ChunkingSettings(max_characters=300))
    assert [chunk.metadata["page"] for chunk in chunks] == [1, 1, 2, 2]
    assert all(chunk.page_content.endswith("mañana.") for chunk in chunks)


def test_a_sentence_of_the_second_page_is_cited_from_a_chunk_that_began_on_the_first(tmp_path) -> None:
    second = "El museo abre los martes por la tarde."
    (tmp_path / "a.pdf").write_bytes(pdf_bytes([SENTENCE * 2, f"{second} Cierra en agosto."]))
    (document,) = FileLoader(tmp_path / "a.pdf").load()
    (chunk,) = chunk_document(document)
    start = document.page_content.index(second)
    assert chunk.metadata["page"] == 1
    assert chunk.metadata["page_starts"] == [[start, 2]]
    found = attribute(f"{SENTENCE} {second}", [chunk], "es")
    citations = found.citations
    assert found.grounded
    assert [(citation.quote, citation.page) for citation in citations] == [(SENTENCE.strip(), 1), (second, 2)]
    assert citations[1].start == start


def test_ids_depend_on_source_content_and_place_only() -> None:
    first, again = (
        chunk_document(make("Hola. " * 60), SMALL),
        chunk_document(make("Hola. " * 60, title="T"), SMALL),
    )
    assert [chunk.id for chunk in first] == [chunk.id for chunk in again]
    assert len({chunk.id for chunk in first}) == len(first)
    for other in (make("Hola. " * 61), make("Hola. " * 60, source="b.txt"), make("Hola. " * 60, content_hash="x")):
        assert chunk_document(other, SMALL)[0].id != first[0].id
    # Pinned: another value means that every index must be built again.
    assert first[0].id == "bcbf42fcf4f3f56949187c64c46d5e16"


@pytest.mark.parametrize("metadata", [{"source": None}, {"source": ""}])
def test_a_source_is_required(metadata: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r'Set metadata\["source"\]'):
        chunk_document(make("Hola.", **metadata))


def test_foreign_documents() -> None:
    assert chunk_document(make(" \n")) == []
    (chunk,) = chunk_document(Document(page_content="Olá, tudo bem com você?", metadata={"source": 7, "page": 3}))
    assert chunk.metadata["source"] == "7"
    assert chunk.metadata["page"] == 3
    assert chunk.metadata["language"] == "pt"
    assert len(texts(make("Hola.", sections=["intro", "fin"]))) == 1
    assert len(texts(make("Hola \ud800.", source="\udcf3.txt"))) == 1
    with pytest.raises(ConfigurationError, match="do not divide"):
        chunk_document(make("Hola.", sections=[{"start": 0, "end": 3}]))


@pytest.mark.parametrize("values", [(39, 0), (0, 0), (100, -1), (True, 0), (100.0, 0), ("100", 0), (100, None)])
def test_settings_are_checked(values: tuple[object, object]) -> None:
    with pytest.raises(ConfigurationError, match="Give a whole number"):
        ChunkingSettings(*values)  # type: ignore[arg-type]


def test_fingerprint() -> None:
    assert ChunkingSettings().fingerprint == "sentences-5-1200-0"
    assert ChunkingSettings(500, 2).fingerprint == "sentences-5-500-2"


pieces = st.sampled_from(
    [
        "Hola. ",
        "¿Qué? ",
        "una frase larga de prueba, ",
        "\n",
        "\n\n",
        "  ",
        "x" * 70,
        "Dr. ",
        "año ",
        "- uno\n",
        "e\u0301",
    ]
)
section_lists = st.lists(
    st.tuples(
        st.one_of(st.lists(pieces, max_size=25).map("".join), st.text(max_size=60)),
        st.sampled_from(["", "A", "A › B", "C"]),
        st.sampled_from([None, 1, 2]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(parts=section_lists, limit=st.integers(40, 150), overlap=st.integers(0, 3))
@example(parts=[("A", "A", None), ("\n", "", None), ("0", "A", None)], limit=40, overlap=0)
@example(parts=[("A", "A", None), ("", "", None), ("0", "A", None)], limit=40, overlap=0)
@example(parts=[("0", "A", None), ("\n", "", None), ("A", "A", None)], limit=40, overlap=0)
@example(parts=[("Hola. ", "", None), (":", "A › B", None), ("B", "A › B", None)], limit=40, overlap=0)
def test_properties(parts: list[tuple[str, str, int | None]], limit: int, overlap: int) -> None:
    document, chunking = divide(parts), ChunkingSettings(limit, overlap)
    chunks = chunk_document(document, chunking)
    assert [chunk.id for chunk in chunks] == [chunk.id for chunk in chunk_document(document, chunking)]
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    text = document.page_content
    uncovered = list(text)
    end_before = start_before = -1
    for chunk in chunks:
        start, end = chunk.metadata["start"], chunk.metadata["end"]
        assert chunk.page_content == text[start:end] == chunk.page_content.strip() != ""
        assert end - start <= limit * (1 + TOLERANCE)
        assert start > start_before
        assert end > end_before
        assert overlap or start >= end_before
        start_before, end_before = start, end
        uncovered[start:end] = " " * (end - start)
        touched = [
            section
            for section in document.metadata["sections"]
            if section["start"] < end and start < section["end"]
        ]
        # Marks without a letter belong to the heading that they stand beside.
        headings = {
            section["heading"]
            for section in touched
            if any(map(str.isalnum, text[section["start"] : section["end"]]))
            and not is_heading(text[section["start"] : section["end"]], section["heading"])
        }
        assert headings <= {chunk.metadata.get("heading", "")}
        pages = {start: chunk.metadata.get("page")} | dict(chunk.metadata.get("page_starts", []))
        place, places = start, sorted(pages)
        while place < end:
            (section,) = (section for section in touched if section["start"] <= place < section["end"])
            assert pages[max(begin for begin in places if begin <= place)] == section["page"]
            place = section["end"]
        assert "page_starts" not in chunk.metadata or len({section["page"] for section in touched}) > 1
    assert not "".join(uncovered).strip()
