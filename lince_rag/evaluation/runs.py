"""Asking every question of a file, once, and measuring the answers."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import Runnable

from lince_rag.chain.answer import Answer, Citation
from lince_rag.chain.rag import RagChain
from lince_rag.errors import ConfigurationError, EvaluationError, LinceError
from lince_rag.evaluation.gold import GoldMap
from lince_rag.evaluation.metrics import RANKING_DEPTH, AbstentionCurve, Estimate, abstention_curve, measure
from lince_rag.evaluation.questions import Question
from lince_rag.evaluation.records import Cited, Passage, Record, RecordFile
from lince_rag.index.embeddings import embeddings_name
from lince_rag.index.index import Index
from lince_rag.index.retriever import HybridRetriever
from lince_rag.text.language import detect_language

# What says nothing of the answers, in the fields of LangChain's retrievers.
_UNRELATED_FIELDS: Final = {"tags", "metadata", "callbacks", "verbose", "name", "cache", "stores"}


def describe(chain: RagChain) -> dict[str, Any]:
    """Say what a chain consists of, as far as its answers depend on it, in what JSON can hold."""
    return {
        "model": _describe_model(chain.llm),
        "retriever": _describe_retriever(chain.retriever),
        "chain": asdict(chain.settings),
    }


def _describe_model(llm: Runnable[Any, Any]) -> dict[str, Any]:
    if not isinstance(llm, BaseChatModel):
        return {"class": type(llm).__name__, "repr": repr(llm)}
    # LangChain's own key for caching: what identifies a model, and no secret among it.
    identity = {name: value for name, value in llm._identifying_params.items() if _is_plain(value)}
    return {"class": type(llm).__name__, **identity}


def _describe_retriever(retriever: RetrieverLike) -> dict[str, Any]:
    if not isinstance(retriever, BaseRetriever):
        return {"class": type(retriever).__name__, "repr": repr(retriever)}
    names = type(retriever).model_fields.keys() - _UNRELATED_FIELDS
    fields = {name: getattr(retriever, name) for name in sorted(names)}
    return {
        "class": type(retriever).__name__,
        # A reranker names its model when it is written out.
        **{name: value if _is_plain(value) else repr(value) for name, value in fields.items()},
    }


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def fingerprint(settings: Mapping[str, Any], questions: Sequence[Question], index: Index) -> str:
    """Digest what the records of a run depend on.

    Args:
        settings: What ``describe`` returned, and what else was chosen.
        questions: The questions.
        index: The documents: their contents count, not where the index is.

    Returns:
        Sixteen hexadecimal digits; equal for equal runs of one version of this package.
    """
    whole = {
        "settings": settings,
        "questions": [asdict(question) for question in questions],
        "documents": index.ledger.content_hashes(),
        "chunking": index.ledger.setting("chunking"),
        "version": version("lince-rag"),
    }
    return hashlib.blake2b(json.dumps(whole, sort_keys=True).encode("utf-8", "replace"), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Evaluation:
    """A run over a file of questions.

    Attributes:
        name: What the run is called in tables.
        settings: The model, the retriever and the embedder with their options.
        fingerprint: A digest of settings, questions, documents and version: equal runs have equal ones.
        k: Chunks that the chain reads.
        records: The questions in the order of the file.
        metrics: The figures by name; see ``metrics.measure``.
        abstention: What each threshold of support would cost; ``None`` without unanswerable questions.
        path: Where the records are, if they were kept.
    """

    name: str
    settings: Mapping[str, Any]
    fingerprint: str
    k: int
    records: tuple[Record, ...]
    metrics: Mapping[str, Estimate]
    abstention: AbstentionCurve | None
    path: Path | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many questions there are, can be answered from this index, and name a place it does not have."""
        answerable = sum(record.answerable for record in self.records)
        return {
            "questions": len(self.records),
            "answerable": answerable,
            "unanswerable": len(self.records) - answerable,
            "not_in_index": sum(record.missing for record in self.records),
        }

    def to_dict(self, *, records: bool = True) -> dict[str, Any]:
        """Return it as what JSON can hold.

        Args:
            records: Whether every question and every threshold is in it, next to the figures.
        """
        values: dict[str, Any] = {
            "name": self.name,
            "settings": dict(self.settings),
            "fingerprint": self.fingerprint,
            "k": self.k,
            "counts": self.counts,
            "metrics": {name: asdict(estimate) for name, estimate in self.metrics.items()},
            "abstention": asdict(self.abstention) if self.abstention else None,
            "records_file": str(self.path) if self.path else None,
        }
        if records:
            return values | {"records": [record.to_dict() for record in self.records]}
        if self.abstention:
            del values["abstention"]["points"]
        return values


def evaluate(
    chain: RagChain,
    questions: Sequence[Question],
    index: Index,
    *,
    depth: int = RANKING_DEPTH,
    output: str | Path | None = None,
    name: str = "",
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """Ask a chain every question and measure rankings, answers, citations, abstentions and times.

    Args:
        chain: What ``create_rag_chain`` returned, over a retriever of ``index``.
        questions: What ``load_questions`` returned.
        index: Where the answers are looked up. A question about a paragraph or document that it does not have
            counts as unanswerable: the right answer is an abstention.
        depth: Chunks of the ranking that is judged, if the retriever takes a number.
        output: Folder for the records. Stopped at any moment, a run with the same settings, questions, documents
            and version goes on there with the questions that are left; ``None`` keeps nothing.
        name: What the run is called in tables.
        on_progress: Called with (questions done, questions in all, the question that is next).

    Returns:
        The records and the figures.

    Raises:
        EvaluationError: A question could not be answered; those before it are kept in ``output``.
        ConfigurationError: There are no questions, two have one id, or a source fits several documents.
        MissingExtraError: A package of the extra ``evaluation`` is not installed.
    """
    if len({question.id for question in questions}) < max(1, len(questions)):
        raise ConfigurationError("There are no questions, or two of them have the same id.")
    k = int(getattr(chain.retriever, "k", depth))
    settings = {**describe(chain), "embeddings": embeddings_name(index.embeddings), "depth": max(depth, k)}
    header = {"name": name, "fingerprint": fingerprint(settings, questions, index), "settings": settings}
    asker = Asker(chain, GoldMap(questions, index), k, max(depth, k))
    if output is None:
        path, done = None, _ask_all(asker, questions, {}, on_progress)
    else:
        path = Path(output).expanduser() / f"records-{header['fingerprint']}.jsonl"
        file = RecordFile(path, header)
        with file.appending():
            done = _ask_all(asker, questions, file.records, on_progress, file.append)
    records = tuple(done[question.id] for question in questions)
    return Evaluation(
        name=name,
        settings=settings,
        fingerprint=str(header["fingerprint"]),
        k=k,
        records=records,
        metrics=measure(records, k),
        abstention=abstention_curve(records),
        path=path,
    )


def _ask_all(
    asker: "Asker",
    questions: Sequence[Question],
    done: Mapping[str, Record],
    on_progress: Callable[[int, int, str], None] | None,
    keep: Callable[[Record], None] = lambda record: None,
) -> dict[str, Record]:
    records = dict(done)
    for question in questions:
        if question.id in records:
            continue
        if on_progress:
            on_progress(len(records), len(questions), question.text)
        try:
            record = asker.ask(question)
        except Exception as error:
            hint = error.hint if isinstance(error, LinceError) else ""
            reason = error.message if isinstance(error, LinceError) else f"{type(error).__name__}: {error}"
            raise EvaluationError(f"Question {question.id} ({question.text!r}): {reason}", hint=hint) from error
        keep(record)
        records[question.id] = record
    if on_progress:
        on_progress(len(questions), len(questions), "")
    return records


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
