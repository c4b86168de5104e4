from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document

from lince_rag.chain.packing import TOKENS_AROUND, pack_context
from lince_rag.models.messages import as_template_documents


def count(text: str) -> int:
    return len(text.split())


def chunk(text: str, title: str = "t", start: int = 0) -> Document:
    metadata = {"source": "s", "title": title, "start": start, "end": start + len(text), "language": "es"}
    return Document(text, metadata=metadata)


def test_all_fit() -> None:
    documents = [chunk("Uno dos tres."), chunk("Cuatro cinco.")]
    packed = pack_context(documents, 100, count)
    assert packed.documents == documents
    assert not packed.shortened
    assert not packed.omitted


def test_what_does_not_fit_is_cut_at_a_sentence_end_and_reported() -> None:
    first, second, third = (
        chunk("Uno dos."),
        chunk("La casa es azul. El perro ladra mucho.", start=10),
        chunk("No."),
    )
    budget = (TOKENS_AROUND + 1 + 2) + (TOKENS_AROUND + 1 + 5)
    packed = pack_context([first, second, third], budget, count)
    assert [document.page_content for document in packed.documents] == ["Uno dos.", "La casa es azul."]
    assert packed.shortened == [second]
    assert packed.omitted == [third]
    assert packed.documents[1].metadata["end"] == 10 + len("La casa es azul.")


def test_nothing_fits() -> None:
    documents = [chunk("Una sola frase sin punto que no cabe"), chunk("Otra.")]
    packed = pack_context(documents, TOKENS_AROUND + 3, count)
    assert not packed.documents
    assert not packed.shortened
    assert packed.omitted == documents


sentences = st.lists(
    st.sampled_from(["La casa es azul.", "Hay tres perros.", "Llueve.", "¿Vienes hoy?"]), min_size=1, max_size=6
)


@given(st.lists(sentences.map(" ".join), max_size=6), st.integers(-5, 120))
def test_budget_order_and_nothing_lost(texts: list[str], budget: int) -> None:
    documents = [chunk(text) for text in texts]
    packed = pack_context(documents, budget, count)
    used = sum(TOKENS_AROUND + 1 + count(document.page_content) for document in packed.documents)
    assert used <= max(budget, 0)
    whole = packed.documents[: len(packed.documents) - len(packed.shortened)]
    assert whole + packed.shortened + packed.omitted == documents
    for shortened, original in zip(packed.documents[len(whole) :], packed.shortened, strict=True):
        assert original.page_content.startswith(shortened.page_content)
        assert shortened.page_content.endswith((".", "?"))


def test_template_documents() -> None:
    document = chunk("Texto.", title="Título")
    document.metadata |= {"heading": "", "confidence": 0.0, "passages": [[0, 6, 50.0]], "other": 1}
    expected = {"text": "Texto.", "title": "Título", "language": "es", "confidence": 0.0}
    expected["passages"] = [[0, 6, 50.0]]
    assert as_template_documents([document, Document("Solo")]) == [expected, {"text": "Solo"}]
