"""HybridRetriever: BM25 and vectors over one index, fused by normalised scores."""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean, pstdev
from typing import Any, Final, Protocol, runtime_checkable

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict, Field

from lince_rag.errors import ConfigurationError
from lince_rag.language import Language, detect_language
from lince_rag.lexical import LexicalHit

# Candidates of each kind that take part in the fusion. Fewer loses answers that one side ranks low; more only
# costs time (XQuAD-es and FaQuAD do not change from 50 up).
DEFAULT_FETCH: Final = 50


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

    def chunks(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return committed chunks by id."""


def fuse(lexical: Mapping[str, float], vectors: Mapping[str, float], lexical_weight: float) -> dict[str, float]:
    """Add the z-scores of two rankings, weighted.

    A chunk that one side did not return gets that side's lowest score. (Fusing by rank instead costs up to 25
    points of MRR when one side is weak: the size of a lead is information, and ranks throw it away.)

    Args:
        lexical: Lexical score by chunk id.
        vectors: Cosine similarity by chunk id.
        lexical_weight: Share of the lexical side, 0 to 1.

    Returns:
        Fused score by chunk id, for the union of both.
    """
    together = list(dict.fromkeys([*lexical, *vectors]))
    fused = dict.fromkeys(together, 0.0)
    for scores, weight in ((lexical, lexical_weight), (vectors, 1.0 - lexical_weight)):
        if not scores or not weight:
            continue
        lowest = min(scores.values())
        filled = {chunk_id: scores.get(chunk_id, lowest) for chunk_id in together}
        mean, spread = fmean(filled.values()), pstdev(filled.values())
        if spread:
            for chunk_id, score in filled.items():
                fused[chunk_id] += weight * (score - mean) / spread
    return fused


class HybridRetriever(BaseRetriever):
    """Retrieves the chunks of an ``Index`` that best match a question.

    Every returned document carries, next to the chunk's own metadata (``source``, ``title``, ``page``,
    ``heading``, ``start``, ``end`` …), ``score`` (the fused score, comparable within one answer) and
    ``relevance`` (0 to 1, comparable between questions: what abstention looks at).

    Args:
        index: The index to search.
        k: Chunks to return; also a keyword of ``invoke``.
        fetch_k: Candidates taken from each side before fusion.
        lexical_weight: Share of the BM25 score, 0 to 1; ``None`` takes the weight that suits the embedder.
        filter: Metadata filter in Chroma's notation; also a keyword of ``invoke``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    index: SearchableIndex = Field(exclude=True)
    k: int = Field(default=5, ge=1)
    fetch_k: int = Field(default=DEFAULT_FETCH, ge=1)
    lexical_weight: float | None = Field(default=None, ge=0.0, le=1.0)
    filter: dict[str, Any] | None = None

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
        limit = max(self.fetch_k, count)
        while True:
            documents, exhausted = self._search(query, limit, ids)
            if len(documents) >= count or exhausted:
                return documents[:count]
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
        hits = self.index.search_terms(query, detect_language(query), limit, ids) if weight > 0.0 else []
        vectors = dict(self.index.search_vectors(query, limit, ids)) if weight < 1.0 else {}
        fused = fuse({hit.id: hit.score for hit in hits}, vectors, weight)
        relevance = {hit.id: hit.relevance for hit in hits}
        ranked = sorted(fused, key=lambda chunk_id: (-fused[chunk_id], chunk_id))
        chunks = self.index.chunks(ranked)
        documents = []
        for chunk_id in ranked:
            if (chunk := chunks.get(chunk_id)) is None:
                continue
            chunk.metadata["score"] = fused[chunk_id]
            if weight > 0.0:
                chunk.metadata["relevance"] = relevance.get(chunk_id, 0.0)
            documents.append(chunk)
        return documents, len(hits) < limit and len(vectors) < limit
