"""The vector store over a real Chroma server on this machine."""

import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

import chromadb
import pytest
from chromadb.config import Settings

from lince_rag import LinceEmbeddings
from lince_rag.index.storage import SEARCH_EF, open_vector_store
from tests.database_servers import chroma

COMMAND = shutil.which("chroma", path=str(Path(sys.executable).parent)) or shutil.which("chroma")

pytestmark = pytest.mark.skipif(COMMAND is None, reason="the chroma command is not installed")

TEXTS = ["El contrato vence en mayo.", "La paella lleva azafrán.", "El gato duerme en el tejado."]


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with chroma(tmp_path_factory.mktemp("server")) as address:
        yield urlsplit(address).port


def connect(port):
    return chromadb.HttpClient(host="127.0.0.1", port=port, settings=Settings(anonymized_telemetry=False))


def open_store(port, collection):
    return open_vector_store(LinceEmbeddings(), client=connect(port), collection=collection)


def test_adding_searching_and_deleting(port):
    store = open_store(port, "first")
    ids = ["contrato", "paella", "gato"]
    metadatas = [{"source": chunk_id} for chunk_id in ids]
    assert store.add_texts(TEXTS, metadatas=metadatas, ids=ids) == ids
    (found,) = store.similarity_search("¿Cuándo vence el contrato?", k=1)
    assert (found.id, found.page_content, found.metadata) == ("contrato", TEXTS[0], {"source": "contrato"})
    vector = LinceEmbeddings().embed_query(TEXTS[1])
    ((same, distance),) = store.similarity_search_by_vector_with_relevance_scores(vector, k=1)
    assert same.id == "paella"
    # Cosine distance: nothing between a text and itself, at most two.
    assert distance == pytest.approx(0.0, abs=1e-5)
    store.delete(ids=["contrato"])
    assert {document.id for document in store.similarity_search("contrato", k=9)} == {"paella", "gato"}


def test_another_client_sees_the_same_at_once(port):
    writer, reader = open_store(port, "second"), open_store(port, "second")
    assert reader.similarity_search("gato", k=1) == []
    writer.add_texts(TEXTS[2:], ids=["gato"], metadatas=[{"source": "gato"}])
    assert [document.id for document in reader.similarity_search("gato", k=1)] == ["gato"]
    writer.add_texts(["El perro come."], ids=["gato"], metadatas=[{"source": "gato"}])
    assert reader.get_by_ids(["gato"])[0].page_content == "El perro come."


def test_the_collection_is_set_up_for_our_vectors(port):
    open_store(port, "third")
    collection = connect(port).get_collection("third", embedding_function=None)
    assert collection.configuration["hnsw"]["space"] == "cosine"
    assert collection.configuration["hnsw"]["ef_search"] == SEARCH_EF


def test_a_text_without_terms_can_be_stored(port):
    store = open_store(port, "fourth")
    store.add_texts(["…", *TEXTS], ids=["none", "a", "b", "c"], metadatas=[{"source": "x"}] * 4)
    assert len(store.similarity_search("gato", k=9)) == 4
