"""LangChain documents in an index: several for one source, in one call or many, with ids and loaders."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from langchain_text_splitters import RecursiveCharacterTextSplitter

from lince_rag import ChatLince, Index, create_rag_chain
from lince_rag.errors import ConfigurationError

PAGES = [
    "El alquiler es de 950 euros al mes.",
    "La fianza es de 1.900 euros y se devuelve al final.",
    "El contrato dura tres años y se prorroga cada año.",
]


def pages(*numbers: int) -> list[Document]:
    """What a loader of PDF pages makes; it counts them from 0."""
    return [
        Document(PAGES[number], metadata={"source": "contrato.pdf", "page": number, "page_label": str(number + 1)})
        for number in numbers
    ]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "index", embeddings="embedded") as opened:
        yield opened


def test_every_page_of_one_source_is_found_and_cited(index: Index) -> None:
    index.ingest(pages(0, 1, 2))
    assert [each.source for each in index.sources()] == ["contrato.pdf"]
    answer = create_rag_chain(ChatLince(), index.as_retriever()).invoke("¿De cuánto es la fianza?")
    (citation,) = answer.citations
    assert (citation.source, citation.page) == ("contrato.pdf", 2)
    assert index.text("contrato.pdf")[citation.start : citation.end] == citation.quote == PAGES[1]
    assert index.ingest(pages(0, 1, 2)).unchanged == ["contrato.pdf"]
    assert index.ingest(pages(0, 2)).changed == ["contrato.pdf"]
    assert "fianza" not in index.text("contrato.pdf")


def test_added_in_several_calls(index: Index) -> None:
    one = index.add_documents(pages(0))
    rest = index.add_documents(pages(1, 2))
    assert len({*one, *rest}) == 3
    assert [chunk.metadata["page"] for chunk in index.as_retriever(k=3).invoke("contrato fianza alquiler")]
    assert index.text("contrato.pdf") == "\n\n".join(PAGES)
    generation = index.ledger.generation
    # The same documents again change nothing.
    assert index.add_documents(pages(1)) == rest[:1]
    assert index.ledger.generation == generation


def test_a_known_id_replaces(index: Index) -> None:
    document = Document("La cuota es de 20 euros.", id="cuota", metadata={"source": "club"})
    assert index.add_documents([document, Document("Abre los lunes.", metadata={"source": "club"})])[0] == "cuota"
    index.add_documents([Document("La cuota es de 25 euros.", metadata={"source": "club"})], ids=["cuota"])
    assert index.text("club") == "La cuota es de 25 euros.\n\nAbre los lunes."
    (chunk,) = index.as_retriever(k=5, filter={"document_id": "cuota"}).invoke("¿Cuánto es la cuota?")
    assert chunk.page_content == "La cuota es de 25 euros."
    # Also in another source: the document has moved there.
    index.add_documents([Document("La cuota es de 30 euros.", id="cuota", metadata={"source": "otro"})])
    assert index.text("club") == "Abre los lunes."
    index.add_documents([Document("La cuota es de 35 euros.", id="cuota", metadata={"source": "club"})])
    assert [each.source for each in index.sources()] == ["club"]
    assert index.verify().ok
    with pytest.raises(ConfigurationError, match="ids is 2, that of documents 1"):
        index.add_documents([document], ids=["a", "b"])


async def test_async_twins(index: Index) -> None:
    await index.aadd_documents(pages(0))
    report = await index.aingest(pages(0, 1))
    assert report.changed == ["contrato.pdf"]


def test_the_pieces_of_a_splitter_have_the_offsets_of_the_text(index: Index) -> None:
    text = "\n\n".join(f"{page} " * 3 for page in PAGES).strip()
    splitter = RecursiveCharacterTextSplitter(chunk_size=120, chunk_overlap=40, add_start_index=True)
    pieces = splitter.split_documents([Document(text, metadata={"source": "texto"})])
    assert len(pieces) > 4
    index.add_documents(pieces)
    # All but the white space that the splitter cut off.
    assert (len(index.text("texto")), index.text("texto").split()) == (len(text), text.split())
    for chunk in index.as_retriever(k=20).invoke("fianza alquiler contrato euros"):
        assert text[chunk.metadata["start"] : chunk.metadata["end"]] == chunk.page_content


def test_documents_cannot_be_added_to_a_file(index: Index, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Hola a todos.")
    index.ingest(tmp_path / "a.txt")
    with pytest.raises(ConfigurationError, match="was read from a file"):
        index.add_documents([Document("Más.", metadata={"source": str(tmp_path / "a.txt")})])


def test_a_rebuilt_index_keeps_the_parts(index: Index) -> None:
    index.add_documents(pages(0, 1))
    folder = index.folder
    index.close()
    Index.rebuild(folder)
    with Index.open(folder) as again:
        again.add_documents(pages(2))
        assert again.text("contrato.pdf") == "\n\n".join(PAGES)


class LinesLoader(BaseLoader):
    """Reads a file of the application's own format: a document for each line."""

    def __init__(self, path: str) -> None:
        self.path = path

    def lazy_load(self) -> Iterator[Document]:
        for number, line in enumerate(Path(self.path).read_text().split("\n")):
            if line == "!":
                raise ValueError("a line is wrong")
            yield Document(line, metadata={"source": "overwritten", "line": number})


def test_a_reader_of_the_application(index: Index, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.lines").write_text("\n".join(PAGES))
    (folder / "b.lines").write_text("Hola\n!")
    report = index.ingest(folder, loaders={"*.lines": LinesLoader})
    assert report.added == [str(folder / "a.lines")]
    assert [(error.source, error.reason) for error in report.failed] == [
        (str(folder / "b.lines"), "ValueError: a line is wrong")
    ]
    (chunk, *_) = index.as_retriever(filter={"line": 1}).invoke("¿De cuánto es la fianza?")
    assert chunk.page_content == PAGES[1]
    assert index.ingest(folder, loaders={"*.lines": LinesLoader}).unchanged == [str(folder / "a.lines")]
