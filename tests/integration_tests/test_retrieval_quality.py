"""What the retriever finds, in what order, and how sure it is of it."""

from pathlib import Path

import pytest
from langchain_core.documents import Document

from lince_rag import ChatLince, Index, create_rag_chain

DOCUMENTS = {
    "caldera": "La presión de la caldera en frío debe estar entre 1,2 y 1,5 bar. El técnico la revisa cada año.",
    "universidade": "A universidade foi fundada em 1927 pelo governador do estado. Tem doze faculdades.",
    "council": "The council approved the municipal transportation plan in 2019. It costs two million euros.",
    "palabras": "El frío es malo. La caldera es vieja. Cada presión es distinta. Debe llover. Hay 9 bares.",
}


@pytest.fixture
def index(tmp_path: Path) -> Index:
    opened = Index.open(tmp_path / "index")
    opened.ingest([Document(text, metadata={"source": name}) for name, text in DOCUMENTS.items()])
    return opened


@pytest.mark.parametrize(
    ("question", "source"),
    [
        ("¿En qué año se fundó la universidad?", "universidade"),
        ("Qual é a pressão da caldeira a frio?", "caldera"),
        ("¿Cuándo se aprobó el plan de transporte municipal?", "council"),
        ("When was the university founded?", "universidade"),
    ],
)
def test_a_question_in_one_language_finds_a_document_in_another(index: Index, question: str, source: str) -> None:
    with index:
        found = index.as_retriever().invoke(question)
    assert found[0].metadata["source"] == source


def test_a_sentence_that_says_it_goes_before_scattered_words(index: Index) -> None:
    question = "¿Qué presión debe tener la caldera en frío?"
    with index:
        found = [each.metadata["source"] for each in index.as_retriever(lexical_weight=1.0).invoke(question)]
    assert found.index("caldera") < found.index("palabras")


def test_confidence_tells_what_the_documents_hold_from_what_they_do_not(index: Index) -> None:
    with index:
        chain = create_rag_chain(ChatLince(), index.as_retriever())
        held = chain.invoke("¿Qué presión debe tener la caldera en frío?")
        foreign = chain.invoke("¿Quién ganó el campeonato mundial de ajedrez?")
        insisted = create_rag_chain(ChatLince(), index.as_retriever(), minimum_confidence=0.0).invoke(
            "¿Quién ganó el campeonato mundial de ajedrez?"
        )
    assert held.confidence is not None
    assert foreign.confidence is not None
    assert held.confidence > 0.5 > foreign.confidence
    assert not held.abstained
    assert foreign.abstained
    assert not insisted.abstained


def test_every_document_of_an_answer_has_the_same_confidence(index: Index) -> None:
    with index:
        found = index.as_retriever().invoke("¿Qué presión debe tener la caldera en frío?")
        vectors_only = index.as_retriever(lexical_weight=0.0).invoke("¿Qué presión?")
    assert len({each.metadata["confidence"] for each in found}) == 1
    assert all(0 <= each.metadata["relevance"] <= 1 and "similarity" in each.metadata for each in found)
    assert all("confidence" not in each.metadata for each in vectors_only)


async def test_the_index_is_a_tool(index: Index) -> None:
    """Also where a document's text or name looks like a template."""
    with index:
        index.ingest([Document("La clave {secreta} del {{armario}} es azul.", metadata={"source": "notas {x}"})])
        tool = index.as_tool(k=1)
        call = {
            "name": tool.name,
            "args": {"query": "¿De qué color es la clave secreta?"},
            "id": "1",
            "type": "tool_call",
        }
        for said in (tool.invoke(call), await tool.ainvoke(call)):
            assert said.content == "[notas {x}]\nLa clave {secreta} del {{armario}} es azul."
            assert [each.metadata["source"] for each in said.artifact] == ["notas {x}"]
        assert list(tool.args) == ["query"]


@pytest.mark.parametrize(
    ("question", "both"),
    [
        ("¿Qué cafetera tiene más presión, la C200 o la C500?", True),
        ("¿Qué presión tiene la cafetera C200?", False),
    ],
)
def test_a_comparison_finds_the_same_part_of_another_document(tmp_path: Path, question: str, both: bool) -> None:
    filling = "Guarde el manual con la factura y la garantía. " * 20
    advice = [f"La presión de la C500 está en la parte {number}. {filling}" for number in range(6)]
    documents = {
        "C200": f"La presión de la cafetera C200 es de 15 bar, con 1350 vatios. {filling}",
        "C500": "\n\n".join([*advice, f"Es de 19 bar, con 1500 vatios. {filling}"]),
    }
    with Index.open(tmp_path / "index", embeddings="embedded") as opened:
        opened.ingest(Document(text, metadata={"source": name}) for name, text in documents.items())
        found = opened.as_retriever().invoke(question)
        answer = create_rag_chain(ChatLince(), opened.as_retriever()).invoke(question)
    assert len(found) == 5
    assert any("19 bar" in each.page_content for each in found) is both
    assert "15 bar" in answer.text
    assert ("19 bar" in answer.text) is both
