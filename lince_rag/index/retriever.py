"""HybridRetriever: BM25 and vectors over one index, fused by normalised scores."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict, Field, field_validator

from lince_rag.engines.scorers.rerankers import LinceReranker
from lince_rag.errors import ConfigurationError
from lince_rag.index.lexical import LexicalHit
from lince_rag.index.ranking import fuse, rescore
from lince_rag.text.confidence import Calibration, measure_confidence
from lince_rag.text.language import Language, detect_language

# Candidates of each kind that take part in the fusion. Fewer loses answers that one side ranks low; more only
# costs time (XQuAD-es and FaQuAD do not change from 50 up).
DEFAULT_FETCH: Final = 50

# Chunks over which the support is measured, whatever ``k`` is and a reranker does: it was calibrated with these.
MEASURED_CHUNKS: Final = 5

# Candidates that a reranker reads, at a forward pass each. Of XQuAD-es and FaQuAD the fusion has .98 of the
# answers among its first five already, so there is little to find further down.
DEFAULT_RERANK: Final = 20


@runtime_checkable
class SearchableIndex(Protocol):
    """What the retriever asks of an index."""

    @property
    def lexical_weight(self) -> float:
        """The share of the lexical score that suits the index's embedder (0 to 1)."""

    def search_terms(
        self, question: str, language: Language, limit: int, ids: Sequence[str] | None = None
    ) -> list[LexicalHit]:
        """Find chunks by their terms."""

    def search_vectors(
        self, question: str, limit: int, ids: Sequence[str] | None = None
    ) -> list[tuple[str, float]]:
        """Find chunks by their vectors: (id, cosine similarity)."""

    def select(self, filter_: Mapping[str, Any]) -> list[str]:
        """Return the ids of the chunks whose metadata passes a filter."""

    @property
    def calibration(self) -> Calibration:
        """What turns relevance into support, for the index's embedder."""

    def rarity(self, found: Iterable[str]) -> dict[str, float]:
        """Return the inverse document frequency of analyzer terms."""

    def chunks(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return committed chunks by id."""


class HybridRetriever(BaseRetriever):
    """Retrieves the chunks of an ``Index`` that best match a question.

    Every returned document carries, next to the chunk's own metadata (``source``, ``title``, ``page``,
    ``heading``, ``start``, ``end`` …), ``score`` (the fused score, comparable within one answer) and
    ``relevance`` (0 to 1, comparable between questions: what abstention looks at). A reranker changes the order
    only, and adds ``rerank_score``.

    Args:
        index: The index to search.
        k: Chunks to return; also a keyword of ``invoke``.
        fetch_k: Candidates taken from each side before fusion.
        lexical_weight: Share of the BM25 score, 0 to 1; ``None`` takes the weight that suits the embedder.
        filter: Metadata filter in Chroma's notation; also a keyword of ``invoke``.
        reranker: A cross-encoder that reads the best candidates with the question and orders them anew: any
            LangChain ``BaseCrossEncoder``, or the hub id or folder of one for ``LinceReranker``, which loads it at
            the first question. ``None`` keeps the order of the fused scores.
        rerank_k: Candidates that the reranker reads; where ``k`` is more, the others follow in the fused order.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    index: SearchableIndex = Field(exclude=True)
    k: int = Field(default=5, ge=1)
    fetch_k: int = Field(default=DEFAULT_FETCH, ge=1)
    lexical_weight: float | None = Field(default=None, ge=0.0, le=1.0)
    filter: dict[str, Any] | None = None
    reranker: BaseCrossEncoder | str | None = Field(default=None, exclude=True)
    rerank_k: int = Field(default=DEFAULT_RERANK, ge=1)

    @field_validator("reranker")
    @classmethod
    def _make_reranker(cls, reranker: BaseCrossEncoder | str | None) -> BaseCrossEncoder | None:
        return LinceReranker(reranker) if isinstance(reranker, str) else reranker

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: dict[str, Any] | None = None,  # noqa: A002
    ) -> list[Document]:
        count = self.k if k is None else k
        if count < 1:
            raise ConfigurationError(f"k={count} is not a positive number.")
        wanted = self.filter if filter is None else filter
        ids = self.index.select(wanted) if wanted else None
        candidates = max(count, self.rerank_k) if self.reranker else count
        limit = max(self.fetch_k, candidates)
        while True:
            documents, exhausted = self._search(query, limit, ids)
            if len(documents) >= candidates or exhausted:
                self._note_confidence(query, documents)
                return self._rerank(query, documents)[:count]
            # Some candidates are no longer committed (another process is writing): look further down.
            limit *= 2

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: dict[str, Any] | None = None,  # noqa: A002
    ) -> list[Document]:
        # langchain-core's own does not take keywords.
        search = partial(self._get_relevant_documents, run_manager=run_manager.get_sync(), k=k, filter=filter)
        return await run_in_executor(None, search, query)

    def _search(self, query: str, limit: int, ids: list[str] | None) -> tuple[list[Document], bool]:
        weight = self.index.lexical_weight if self.lexical_weight is None else self.lexical_weight
        language = detect_language(query)
        hits = self.index.search_terms(query, language, limit, ids) if weight > 0.0 else []
        vectors = dict(self.index.search_vectors(query, limit, ids)) if weight < 1.0 else {}
        chunks = self.index.chunks([*{hit.id: None for hit in hits} | vectors])
        fused = fuse(rescore(query, language, hits, chunks, self.index.rarity), vectors, weight)
        relevance = {hit.id: hit.relevance for hit in hits}
        ranked = sorted(fused, key=lambda chunk_id: (-fused[chunk_id], chunk_id))
        documents = []
        for chunk_id in ranked:
            if (chunk := chunks.get(chunk_id)) is None:
                continue
            chunk.metadata["score"] = fused[chunk_id]
            if weight > 0.0:
                chunk.metadata["relevance"] = relevance.get(chunk_id, 0.0)
            if chunk_id in vectors:
                chunk.metadata["similarity"] = vectors[chunk_id]
            documents.append(chunk)
        return documents, len(hits) < limit and len(vectors) < limit

    def _note_confidence(self, query: str, documents: list[Document]) -> None:
        """Note on every document how far the best ones carry an answer; without BM25 nothing is known of that."""
        best = documents[:MEASURED_CHUNKS]
        if best and "relevance" in best[0].metadata:
            described = [{"text": each.page_content, **each.metadata} for each in best]
            confidence = measure_confidence(query, detect_language(query), described, self.index.calibration)
            for document in documents:
                document.metadata["confidence"] = confidence

    def _rerank(self, query: str, documents: list[Document]) -> list[Document]:
        """Order the first ``rerank_k`` documents by how well they answer the question."""
        reranker = self._make_reranker(self.reranker)
        if reranker is None:
            return documents
        first, rest = documents[: self.rerank_k], documents[self.rerank_k :]
        scores = reranker.score([(query, document.page_content) for document in first])
        for document, score in zip(first, scores, strict=True):
            document.metadata["rerank_score"] = float(score)
        # Equal scores keep the fused order.
        return [*sorted(first, key=lambda document: -document.metadata["rerank_score"]), *rest]
