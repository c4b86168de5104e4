"""One question of an evaluation: its ranking, its answer, and how they stand to the gold."""

import time
from collections.abc import Sequence
from typing import Any

from langchain_core.documents import Document

from lince_rag.chain.answers import Answer
from lince_rag.chain.citations import Citation
from lince_rag.chain.rag import RagChain
from lince_rag.evaluation.gold import GoldMap
from lince_rag.evaluation.questions import Question
from lince_rag.evaluation.records import Cited, Passage, Record
from lince_rag.index.retriever import HybridRetriever
from lince_rag.text.language import detect_language


class Asker:
    """Asks one question at a time.

    Args:
        chain: The chain.
        gold: Where the answers are.
        k: Chunks that the chain reads: the texts of so many are kept.
        depth: Chunks of the ranking.
    """

    def __init__(self, chain: RagChain, gold: GoldMap, k: int, depth: int) -> None:
        self._chain = chain
        self._gold = gold
        self._k = k
        self._depth = depth

    def ask(self, question: Question) -> Record:
        """Ask a question; only the chain's own time is measured."""
        retriever = self._chain.retriever
        options: dict[str, Any] = {"k": self._depth} if isinstance(retriever, HybridRetriever) else {}
        ranking = retriever.invoke(question.text, **options)
        started = time.perf_counter()
        answer = self._chain.invoke(question.text)
        milliseconds = 1000 * (time.perf_counter() - started)
        return self._record(question, ranking, answer, milliseconds)

    def _record(
        self, question: Question, ranking: Sequence[Document], answer: Answer, milliseconds: float
    ) -> Record:
        gold = self._gold.gold(question)
        language = detect_language(question.text)
        return Record(
            id=question.id,
            question=question.text,
            language=language,
            answers=question.answers,
            answerable=question.answerable and not gold.missing,
            missing=gold.missing,
            units=tuple(sorted(gold.units)),
            retrieved=tuple(
                self._passage(question, chunk, rank < self._k) for rank, chunk in enumerate(ranking[: self._depth])
            ),
            answer=answer.text,
            short=answer.short,
            # A year or a name is of no language: it is not counted as a wrong one.
            answer_language=detect_language(answer.text, language),
            abstained=answer.abstained,
            grounded=answer.grounded,
            confidence=answer.confidence,
            citations=tuple(self._cited(question, citation) for citation in answer.citations),
            corrections=tuple(answer.corrections),
            milliseconds=milliseconds,
        )

    def _cited(self, question: Question, citation: Citation) -> Cited:
        gold = self._gold.holds(question, citation.source, citation.start, citation.end)
        return Cited(citation.source, citation.page, citation.quote, gold)

    def _passage(self, question: Question, chunk: Document, is_read: bool) -> Passage:
        metadata = chunk.metadata
        source, start = str(metadata.get("source", "")), int(metadata.get("start", 0))
        end = int(metadata.get("end", start + len(chunk.page_content)))
        unit = self._gold.unit(question, source, start, end)
        return Passage(
            source=source,
            title=str(metadata.get("title") or ""),
            start=start,
            end=end,
            text=chunk.page_content if is_read else "",
            unit=unit,
            gold=unit in self._gold.gold(question).units,
        )
