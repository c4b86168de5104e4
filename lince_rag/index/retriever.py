"""HybridRetriever: BM25 and vector search over one index, fused by normalised scores."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Final

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict, Field, field_validator

from lince_rag.documents.prepared import searchable_text
from lince_rag.engines.scorers.rerankers import LinceReranker
from lince_rag.errors import ConfigurationError
from lince_rag.index.filters import Selection
from lince_rag.index.ranking import (
    RESCORED_HITS,
    add_origins,
    compare_questions,
    distinct,
    fuse,
    lift_nearest,
    rescore,
)
from lince_rag.index.stores import ChunkStores
from lince_rag.text.evidence import Evidence
from lince_rag.text.language import detect_language
from lince_rag.text.questions import asks_for, function_words, spell_out
from lince_rag.text.sentences import remember_sentences
from lince_rag.text.words import cognate, differs_in_one_letter, words

logger = logging.getLogger(__name__)

# Candidates from each side of the fusion. With fewer, answers that one side ranks low are lost; more only take
# longer (the figures of XQuAD-es and FaQuAD do not change from 50 up).
DEFAULT_FETCH: Final = 50

# Candidates at most, if the best ones are copies of a few texts.
MAXIMUM_FETCH: Final = 1_000

# Chunks that the confidence is measured on, whatever ``k`` and the reranker are: it was calibrated with five.
MEASURED_CHUNKS: Final = 5

# Passages of these chunks that are compared with the question by their vectors (5 ms each on two cores). With 8, a
# hundredth of the answers are lost; more than 24 find no more.
COMPARED_PASSAGES: Final = 16

# Of these passages, those that are read together with the question. With 8 or with all, the confidence tells right
# answers from wrong ones no better.
READ_PASSAGES: Final = 4

# A shorter word of a question is not taken for another that differs in one letter: "casa" is not "cama".
CORRECTED_LETTERS: Final = 5

# Chunks that are read together. More are read only if some of these say the same.
CHUNKS_PER_READ: Final = 8

# Candidates that a reranker reads, with one forward pass each. On XQuAD-es and FaQuAD, the first five chunks of
# the fusion already contain .98 of the answers, so there is little to find further down.
DEFAULT_RERANK: Final = 20


@dataclass(frozen=True)
class _Ranking:
    """The committed candidates, best first."""

    # By id, what the metadata of the chunk get: "score", "relevance" and "similarity".
    measures: dict[str, dict[str, float | None]]
    # Whether neither side has more.
    exhausted: bool


class HybridRetriever(BaseRetriever):
    """Retrieves the chunks of an ``Index`` that best match a question; ``Index.as_retriever`` creates one.

    Each returned document has, besides the metadata of the chunk (``source``, ``title``, ``page``, ``heading``,
    ``start``, ``end`` …), ``score`` (the fused score, comparable within one result), ``relevance`` (0 to 1,
    comparable between questions), ``similarity`` (cosine; ``None`` if the chunk has no vector yet, absent if it
    was not among the nearest) and ``confidence`` (the calibrated chance, 0 to 1, that passages quoted from the
    chunks hold the answer: the basis of abstention). With an embedder whose ``similarity_spread`` was measured,
    the first five have ``passages``: [start, end, similarity in steps of that spread] of the likeliest ones, and,
    with an embedder that reads passages, how well those answer that it has read; ``confidence_unread`` leaves that
    out. If words of the question were written in another way to be found, they have the ``query``. A reranker
    changes only the order, and adds ``rerank_score``. A chunk that says nothing that a better one does
    not say takes no place among the ``k``: its source is in the better one's ``also_in``.

    Args:
        stores: The stores to search: ``Index.stores``.
        k: Number of chunks to return; also a keyword of ``invoke``.
        fetch_k: Number of candidates from each side of the fusion.
        lexical_weight: Share of the BM25 score, 0 to 1; ``None`` takes the weight that suits the embedder.
        filter: Metadata filter in Chroma's notation; also a keyword of ``invoke``.
        reranker: A cross-encoder that reads the best candidates together with the question and sorts them again:
            any LangChain ``BaseCrossEncoder``, or the hub id or folder of one for ``LinceReranker``, which loads
            it at the first question. ``None`` keeps the order of the fused scores.
        rerank_k: Number of candidates that the reranker reads; if ``k`` is larger, the rest keep the fused order.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    stores: ChunkStores = Field(exclude=True)
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
            raise ConfigurationError(f"k={count} must be at least 1.")
        wanted = self.filter if filter is None else filter
        selection = self.stores.select(wanted) if wanted else None
        candidates = max(count, MEASURED_CHUNKS, self.rerank_k if self.reranker else 0)
        given, query = query, spell_out(query, detect_language(query))
        documents = self._find(query, candidates, selection)
        corrected = self._correct(query, documents)
        if corrected != query:
            query, documents = corrected, self._find(corrected, candidates, selection)
        if query != given:
            for document in documents:
                document.metadata["query"] = query
        if not documents and not self.stores.ledger.has_documents():
            logger.warning("The index %s has no documents, so nothing is found in it.", self.stores.folder)
        evidence = self._add_confidence(query, documents)
        if evidence and selection is None and asks_for("comparisons", query, evidence.language):
            documents = self._with_other_side(evidence, documents)
        return self._rerank(query, documents)[:count]

    def _find(self, query: str, candidates: int, selection: Selection | None) -> list[Document]:
        """Return the best chunks, each of which says something that no better one says."""
        limit = max(self.fetch_k, candidates)
        while True:
            ranking = self._search(query, limit, selection)
            documents = distinct(self._read(ranking), candidates)
            if len(documents) >= candidates or ranking.exhausted or limit >= MAXIMUM_FETCH:
                return documents
            # Many candidates say the same, or are no longer committed (another process is writing): fetch more.
            limit *= 2

    def _correct(self, query: str, documents: list[Document]) -> str:
        """Write a word that the index does not have as one in the found chunks that is spelled nearly alike."""
        weight = self.stores.lexical_weight if self.lexical_weight is None else self.lexical_weight
        language = detect_language(query)
        asked = [word for word in words(query, language) if len(word.text) >= CORRECTED_LETTERS]
        unknown = self.stores.lexical.unknown(word.stem for word in asked) if weight > 0.0 and documents else set()
        ignored = function_words(language)
        wrong = [
            word for word in asked if word.stem in unknown and word.text.isalpha() and word.folded not in ignored
        ]
        # A word of another language is not another spelling, even if it differs in one letter only.
        known = sorted(
            {
                (word.text, word.folded)
                for document in documents[:MEASURED_CHUNKS]
                if wrong and document.metadata.get("language", language) == language
                for word in words(document.page_content, language)
                if len(word.text) >= CORRECTED_LETTERS and word.folded not in ignored
            }
        )
        for word in reversed(wrong):
            spelling = cognate(word.folded)
            same = (text for text, other in known if cognate(other) == spelling)
            near = (text for text, other in known if differs_in_one_letter(word.folded, other))
            if found := next(chain(same, near), None):
                query = query[: word.start] + found + query[word.end :]
        return query

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: dict[str, Any] | None = None,  # noqa: A002
    ) -> list[Document]:
        # The implementation in langchain-core does not accept keywords.
        search = partial(self._get_relevant_documents, run_manager=run_manager.get_sync(), k=k, filter=filter)
        return await run_in_executor(None, search, query)

    def _search(self, query: str, limit: int, selection: Selection | None) -> "_Ranking":
        """Rank the candidates of both sides."""
        weight = self.stores.lexical_weight if self.lexical_weight is None else self.lexical_weight
        language = detect_language(query)
        hits = self.stores.search_terms(query, language, limit, selection) if weight > 0.0 else []
        near = self.stores.search_vectors(query, limit, selection) if weight < 1.0 else []
        vectors = {hit.id: hit.score for hit in near}
        exhausted = len(hits) < limit and len(near) < limit
        origins = self.stores.ledger.origins({hit.id: None for hit in hits} | vectors)
        hits = [hit for hit in hits if hit.id in origins]
        lines = self.stores.term_lines([hit.id for hit in hits[:RESCORED_HITS]])
        lexical = rescore(query, language, hits, lines, self.stores.lexical.idf)
        spread = self.stores.similarity_spread
        waiting = self.stores.ledger.waiting_among([hit.id for hit in hits]) if weight < 1.0 else set()
        fused = fuse(compare_questions(lexical, hits) if spread else lexical, vectors, weight, spread, waiting)
        if spread:
            add_origins(fused, origins, language)
            lift_nearest(fused, vectors, MEASURED_CHUNKS)
        found: dict[str, dict[str, float | None]] = {
            each: {"score": fused[each]} for each in sorted(origins, key=lambda each: (-fused[each], each))
        }
        relevance = {hit.id: hit.relevance for hit in hits}
        similarities = {hit.id: hit.similarity for hit in near}
        for chunk_id, measures in found.items():
            if weight > 0.0:
                measures["relevance"] = relevance.get(chunk_id, 0.0)
            if chunk_id in similarities or chunk_id in waiting:
                measures["similarity"] = similarities.get(chunk_id)
        return _Ranking(found, exhausted)

    def _read(self, ranking: "_Ranking") -> Iterator[Document]:
        """Read the ranked chunks from the ledger, a few at a time: the first few are nearly always enough."""
        ledger, ids = self.stores.ledger, iter(ranking.measures)
        while part := list(islice(ids, CHUNKS_PER_READ)):
            chunks, lines = ledger.chunks(part), ledger.term_lines(part)
            for chunk in (chunks[chunk_id] for chunk_id in part if chunk_id in chunks):
                chunk.metadata.update(ranking.measures[str(chunk.id)])
                if chunk.id in lines and "language" in chunk.metadata:
                    remember_sentences(chunk.page_content, chunk.metadata["language"], lines[chunk.id])
                yield chunk

    def _add_confidence(self, query: str, documents: list[Document]) -> Evidence | None:
        """Add the confidence to every document; it cannot be measured without BM25."""
        best = documents[:MEASURED_CHUNKS]
        if not best or "relevance" not in best[0].metadata:
            return None
        spread = self.stores.similarity_spread
        if spread is not None:
            for each in best:
                each.metadata["passages"] = []
        # They share the lists of passages.
        measured = [{"text": each.page_content, **each.metadata} for each in best]
        evidence = Evidence(query, detect_language(query), measured, spread or 1.0)
        if spread is not None:
            self._compare_passages(query, evidence, best)
            self._read_passages(evidence, best)
        for document in documents:
            document.metadata["confidence"] = evidence.confidence
            document.metadata["confidence_unread"] = evidence.confidence_unread
        return evidence

    def _with_other_side(self, evidence: Evidence, documents: list[Document]) -> list[Document]:
        """Put beside the chunk that answers a comparison the one of another document with the likest sentence.

        What is compared is described with the same words in both, and only one of them may be near the question.
        """
        if not evidence.chosen:
            return documents
        chosen = evidence.candidates[evidence.chosen[0]]
        place, chunk = chosen.document, documents[chosen.document]
        sources = [str(each.metadata["source"]) for each in documents]
        other_source = next((each for each in sources if each != sources[place]), None)
        ids = sorted(self.stores.ledger.chunk_ids(other_source)) if other_source else []
        language = chunk.metadata.get("language") or evidence.language
        hits = self.stores.lexical.search(chosen.sentence.text, language, 1, ids)
        for other in self.stores.ledger.chunks(hit.id for hit in hits).values():
            if all(other.id != document.id for document in documents):
                # The question itself did not find it, so it has the measures of the chunk that did.
                measures = {"score", "relevance", "confidence", "confidence_unread"} & chunk.metadata.keys()
                other.metadata |= {name: chunk.metadata[name] for name in measures}
                # In the place of the last of the others.
                last = place == len(documents) - 1
                return [*documents[: place - last], chunk, other, *documents[place + 1 : -1]]
        return documents

    def _compare_passages(self, query: str, evidence: Evidence, documents: list[Document]) -> None:
        """Compare the question with the likeliest passages by their vectors, and note how near they are."""
        windows = evidence.windows(COMPARED_PASSAGES)
        texts = [passage_text(documents[window.document], window.start, window.end) for window in windows]
        similarities = self.stores.similarities(query, texts) if texts else []
        for window, similarity in zip(windows, similarities, strict=True):
            passage = [window.start, window.end, similarity / evidence.spread]
            documents[window.document].metadata["passages"].append(passage)

    def _read_passages(self, evidence: Evidence, documents: list[Document]) -> None:
        """Read the likeliest of the compared passages with the question, and note how well they answer it."""
        likeliest = evidence.likeliest_compared(READ_PASSAGES)
        passages = [documents[number].metadata["passages"][place] for number, place in likeliest]
        texts = [
            passage_text(documents[number], start, end)
            for (number, _), (start, end, *_) in zip(likeliest, passages, strict=True)
        ]
        # An embedder without a reader returns no scores.
        scores = self.stores.read(evidence.last_question, texts) if texts else []
        for passage, score in zip(passages, scores, strict=False):
            passage.append(score)

    def _rerank(self, query: str, documents: list[Document]) -> list[Document]:
        reranker = self._make_reranker(self.reranker)
        if reranker is None:
            return documents
        first, rest = documents[: self.rerank_k], documents[self.rerank_k :]
        scores = reranker.score([(query, document.page_content) for document in first])
        for document, score in zip(first, scores, strict=True):
            document.metadata["rerank_score"] = float(score)
        # Equal scores keep the fused order.
        return [*sorted(first, key=lambda document: -document.metadata["rerank_score"]), *rest]


def passage_text(chunk: Document, start: int, end: int) -> str:
    """Return the searchable text of a part of a chunk."""
    return searchable_text(chunk.model_copy(update={"page_content": chunk.page_content[start:end]}))
