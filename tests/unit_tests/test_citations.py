import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from lince_rag.chain.grounding import Attribution, attribute

SOURCE = "Acta de la junta.\n\nEl ascensor costará 46.900 euros. " + (
    "La obra empieza el 3 de marzo de 2026 y la dirige Ana Ruiz."
)


def chunk(start: int, end: int, **metadata: object) -> Document:
    base = {"source": "acta.txt", "title": "Acta", "start": start, "end": end, "language": "es"}
    return Document(SOURCE[start:end], metadata=base | metadata)


WHOLE = chunk(19, len(SOURCE))


def test_verbatim_sentence_has_exact_offsets() -> None:
    found = attribute("El ascensor costará 46.900 euros.", [WHOLE], "es")
    (citation,) = found.citations
    assert found.grounded
    assert SOURCE[citation.start : citation.end] == citation.quote == "El ascensor costará 46.900 euros."
    assert (citation.answer_start, citation.answer_end) == (0, 33)
    assert (citation.source, citation.title, citation.page) == ("acta.txt", "Acta", None)


def test_white_space_may_differ() -> None:
    document = Document("El ascensor\n  costará mucho.", metadata={"source": "s", "start": 5})
    found = attribute("El ascensor costará mucho.", [document], "es")
    assert found.grounded
    (citation,) = found.citations
    assert citation.quote == "El ascensor\n  costará mucho."
    assert (citation.start, citation.end) == (5, 5 + len(citation.quote))


def test_a_paraphrase_is_attributed_to_its_sentence() -> None:
    found = attribute("La dirige Ana Ruiz, y la obra empezará el 3 de marzo de 2026.", [WHOLE], "es")
    assert found.grounded
    (citation,) = found.citations
    assert citation.quote.startswith("La obra empieza")
    assert SOURCE[citation.start : citation.end] == citation.quote


@pytest.mark.parametrize(
    "answer",
    ["El ascensor costará 49.600 euros.", "La obra empieza el 4 de marzo de 2026.", "Los gatos duermen mucho."],
)
def test_a_wrong_figure_or_another_subject_has_no_support(answer: str) -> None:
    found = attribute(answer, [WHOLE], "es")
    assert found == Attribution([], [(0, len(answer))])
    assert not found.grounded


def test_one_unsupported_sentence_makes_the_answer_ungrounded() -> None:
    answer = "El ascensor costará 46.900 euros. Los marcianos pagan."
    found = attribute(answer, [WHOLE], "es")
    assert len(found.citations) == 1
    (span,) = found.unsupported
    assert answer[slice(*span)] == "Los marcianos pagan."
    assert not found.grounded


def test_an_item_is_cited_without_its_mark() -> None:
    """Where a document has a list, our text has marks that need not be in the file."""
    text = "Pasos:\n\n- 1. Pulse Menú.\n- Elija Sistema."
    found = attribute(text, [Document(text, metadata={"source": "s", "start": 0})], "es")
    assert found.grounded
    assert [citation.quote for citation in found.citations][-1] == "Elija Sistema."
    assert not any(citation.quote.startswith("-") for citation in found.citations)
    assert all(text[citation.start : citation.end] == citation.quote for citation in found.citations)


def test_nothing_to_cite() -> None:
    nothing = attribute("", [WHOLE], "es")
    assert nothing == Attribution([], [])
    assert not nothing.grounded
    assert attribute("Hola.", [], "es") == Attribution([], [(0, 5)])


def test_the_page_is_the_quotes_own() -> None:
    start = SOURCE.index("La obra")
    document = chunk(19, len(SOURCE), page=4, page_starts=[[start, 5]])
    first, second = attribute("El ascensor costará 46.900 euros. " + SOURCE[start:], [document], "es").citations
    assert (first.page, second.page) == (4, 5)


def test_the_heading_is_the_chunks() -> None:
    answer = "El ascensor costará 46.900 euros."
    under = chunk(19, len(SOURCE), heading="Acuerdos › Obras")
    for document, heading in ((under, "Acuerdos › Obras"), (WHOLE, ""), (chunk(19, 60, heading=None), "")):
        (citation,) = attribute(answer, [document], "es").citations
        assert citation.heading == heading


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=120), st.text(max_size=200), st.integers(0, 50))
def test_quotes_are_always_slices_of_the_source(answer: str, text: str, offset: int) -> None:
    source = "x" * offset + text
    document = Document(text, metadata={"source": "s", "start": offset})
    for said in (answer, text, text[: len(text) // 2]):
        for citation in attribute(said, [document], "es").citations:
            assert source[citation.start : citation.end] == citation.quote != ""
            assert 0 <= citation.answer_start < citation.answer_end <= len(said)
