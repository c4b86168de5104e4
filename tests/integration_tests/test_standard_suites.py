"""LangChain's own test suites, unchanged: no test is overridden or skipped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_chroma import Chroma
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)

from lince_rag import HybridRetriever, Index, LinceEmbeddings
from lince_rag.index.storage import close_vector_store, open_vector_store
from tests.integration_tests.embedder_samples import save_tiny_embedder

ANIMALS = ["gato", "perro", "caballo", "burro", "zorro", "lince", "lobo", "oso"]


class TestHybridRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _index(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        folder = tmp_path_factory.mktemp("documents")
        for animal in ANIMALS:
            (folder / f"{animal}.txt").write_text(
                f"El {animal} duerme en el monte. El {animal} come por la noche."
            )
        with Index.open(tmp_path_factory.mktemp("index") / "index") as index:
            index.ingest(folder)
            cls.index = index
            yield

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return HybridRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"stores": self.index.stores}

    @property
    def retriever_query_example(self) -> str:
        return "¿Dónde duerme el lince?"


class TestEmbedded(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return LinceEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "embedded"}


class TestSentenceTransformers(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.folder = save_tiny_embedder(tmp_path_factory.mktemp("models") / "multilingual-e5-tiny")

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return LinceEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": self.folder, "device": "cpu"}


class TestVectorStoreOnDisk(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[Chroma]:
        store = open_vector_store(self.get_embeddings(), tmp_path / "chroma")
        yield store
        close_vector_store(store)


class TestVectorStoreInMemory(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Iterator[Chroma]:
        store = open_vector_store(self.get_embeddings())
        yield store
        store.delete_collection()
        close_vector_store(store)
