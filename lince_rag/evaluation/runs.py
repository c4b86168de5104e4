"""Runs: ask a chain every question once, keep a record of each answer, and measure them."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import Runnable

from lince_rag.chain.rag import RagChain
from lince_rag.errors import ConfigurationError, EvaluationError, LinceError, require
from lince_rag.evaluation.gold import GoldMap
from lince_rag.evaluation.metrics import RANKING_DEPTH, AbstentionCurve, Estimate, abstention_curve, measure
from lince_rag.evaluation.questions import Question
from lince_rag.evaluation.records import Cited, Passage, Record, RecordFile, read_run
from lince_rag.index.embeddings import embeddings_name
from lince_rag.index.index import Index
from lince_rag.index.retriever import HybridRetriever
from lince_rag.text.language import detect_language

# The packages of the extra "evaluation", by import name.
PACKAGES: Final = ("ir_measures", "matplotlib", "scipy", "sklearn")

# Fields of LangChain's retrievers that do not determine the answers.
_UNRELATED_FIELDS: Final = {"tags", "metadata", "callbacks", "verbose", "name", "cache", "stores"}


@dataclass(frozen=True)
class Evaluation:
    """The result of asking every question of a file.

    Attributes:
        name: What the run is called in tables.
        settings: The model, the retriever, the chain and the embedder with their options.
        fingerprint: A digest of settings, questions, documents and version; equal runs have equal fingerprints.
        k: Number of chunks that the chain reads.
        records: One record for each question, in the order of the file.
        metrics: The metrics by name; see ``metrics.measure``.
        abstention: The effect of each confidence threshold; ``None`` without both answerable and unanswerable
            questions.
        path: The file of the records; ``None`` if they were not saved.
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
        """Numbers of questions: all, answerable, unanswerable, and with an answer that is not in this index."""
        answerable = sum(record.answerable for record in self.records)
        return {
            "questions": len(self.records),
            "answerable": answerable,
            "unanswerable": len(self.records) - answerable,
            "not_in_index": sum(record.missing for record in self.records),
        }

    def to_dict(self, *, records: bool = True) -> dict[str, Any]:
        """Return plain values for JSON.

        Args:
            records: Whether to include every record and every threshold, besides the metrics.
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
        chain: A chain made by ``create_rag_chain`` over a retriever of ``index``.
        questions: Questions with unique ids, as ``load_questions`` returns them.
        index: The index that is searched for the place of each answer. A question about a paragraph or document
            that the index does not have counts as unanswerable: the right answer is an abstention.
        depth: Number of chunks in the ranking that is measured; used with a ``HybridRetriever`` only.
        output: Folder for the records; ``None`` does not save them. An interrupted run continues there with the
            remaining questions if settings, questions, documents and version are the same.
        name: Name of the run in tables.
        on_progress: Called with (questions done, questions in total, next question).

    Returns:
        The records and the metrics.

    Raises:
        EvaluationError: A question could not be answered; the records before it are saved in ``output``.
        ConfigurationError: There are no questions, two of them have the same id, or a source matches several
            documents.
        MissingExtraError: A package of the extra ``evaluation`` is not installed.
    """
    require("evaluation", *PACKAGES)
    if len({question.id for question in questions}) < max(1, len(questions)):
        raise ConfigurationError(
            "There are no questions, or two of them have the same id.", hint="Give unique ids."
        )
    k = int(getattr(chain.retriever, "k", depth))
    settings = {**_describe(chain), "embeddings": embeddings_name(index.embeddings), "depth": max(depth, k)}
    header = {"name": name, "fingerprint": _fingerprint(settings, questions, index), "settings": settings}
    ask = partial(_ask, chain, GoldMap(questions, index), k, max(depth, k))
    if output is None:
        path, done = None, _ask_all(ask, questions, {}, on_progress)
    else:
        path = Path(output).expanduser() / f"records-{header['fingerprint']}.jsonl"
        file = RecordFile(path, header)
        with file.appending():
            done = _ask_all(ask, questions, file.records, on_progress, file.append)
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


def earlier_evaluation(path: str | Path, questions: Sequence[Question], name: str) -> Evaluation | None:
    """Measure the records of an earlier run, those of questions that are asked again; ``None`` if it has none.

    Raises:
        ConfigurationError: The file cannot be read, or holds no records of this version.
    """
    header, found = read_run(path)
    records = tuple(found[question.id] for question in questions if question.id in found)
    if not records:
        return None
    settings = header["settings"]
    k = int(settings["retriever"].get("k", settings["depth"]))
    return Evaluation(name, settings, header["fingerprint"], k, records, measure(records, k), None, Path(path))


def _ask_all(
    ask: Callable[[Question], Record],
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
            record = ask(question)
        except Exception as error:
            hint = error.hint if isinstance(error, LinceError) else ""
            reason = error.message if isinstance(error, LinceError) else f"{type(error).__name__}: {error}"
            raise EvaluationError(f"Question {question.id} ({question.text!r}): {reason}", hint=hint) from error
        keep(record)
        records[question.id] = record
    if on_progress:
        on_progress(len(questions), len(questions), "")
    return records


def _ask(chain: RagChain, gold: GoldMap, k: int, depth: int, question: Question) -> Record:
    """Ask a question and judge the answer; only the chain's own time is measured."""
    retriever = chain.retriever
    options: dict[str, Any] = {"k": depth} if isinstance(retriever, HybridRetriever) else {}
    started = time.perf_counter()
    answer = chain.invoke({"question": question.text, "history": list(question.history)})
    milliseconds = 1000 * (time.perf_counter() - started)
    ranking = retriever.invoke(answer.standalone or question.text, **options)[:depth]
    place = gold.gold(question)
    language = question.language or detect_language(question.text)
    return Record(
        id=question.id,
        question=question.text,
        language=language,
        answers=question.answers,
        answerable=question.answerable and not place.missing,
        missing=place.missing,
        units=tuple(sorted(place.units)),
        all_of=question.all_of,
        type=question.type,
        standalone=answer.standalone or question.text,
        retrieved=tuple(_passage(gold, question, chunk, rank < k) for rank, chunk in enumerate(ranking)),
        answer=answer.text,
        short=answer.short,
        # A year or a name has no language of its own: it counts as the question's.
        answer_language=detect_language(answer.text, language),
        abstained=answer.abstained,
        grounded=answer.grounded,
        confidence=answer.confidence,
        citations=tuple(
            Cited(
                cited.source, cited.page, cited.quote, gold.holds(question, cited.source, cited.start, cited.end)
            )
            for cited in answer.citations
        ),
        corrections=tuple(answer.corrections),
        milliseconds=milliseconds,
    )


def _passage(gold: GoldMap, question: Question, chunk: Document, is_read: bool) -> Passage:
    metadata = chunk.metadata
    source, start = str(metadata.get("source", "")), int(metadata.get("start", 0))
    end = int(metadata.get("end", start + len(chunk.page_content)))
    # A copy of a passage in another document has the same answer; a paragraph is the same unit everywhere.
    copies = metadata.get("also_in", ()) if question.context is None else ()
    units = [gold.unit(question, name, start, end) for name in (source, *copies)]
    unit = next((unit for unit in units if unit in gold.gold(question).units), units[0])
    return Passage(
        source=source,
        title=str(metadata.get("title") or ""),
        start=start,
        end=end,
        text=chunk.page_content if is_read else "",
        unit=unit,
        gold=unit in gold.gold(question).units,
    )


def _describe(chain: RagChain) -> dict[str, Any]:
    """Return what the answers of a chain depend on, as plain values for JSON."""
    return {
        "model": _describe_model(chain.llm),
        "retriever": _describe_retriever(chain.retriever),
        "chain": asdict(chain.settings),
    }


def _describe_model(llm: Runnable[Any, Any]) -> dict[str, Any]:
    if not isinstance(llm, BaseChatModel):
        return {"class": type(llm).__name__, "repr": repr(llm)}
    # LangChain's own key for caching: it identifies a model and holds no secret.
    identity = {name: value for name, value in llm._identifying_params.items() if _is_plain(value)}
    return {"class": type(llm).__name__, **identity}


def _describe_retriever(retriever: RetrieverLike) -> dict[str, Any]:
    if not isinstance(retriever, BaseRetriever):
        return {"class": type(retriever).__name__, "repr": repr(retriever)}
    names = type(retriever).model_fields.keys() - _UNRELATED_FIELDS
    fields = {name: getattr(retriever, name) for name in sorted(names)}
    return {
        "class": type(retriever).__name__,
        # The repr of a reranker names its model.
        **{name: value if _is_plain(value) else repr(value) for name, value in fields.items()},
    }


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _fingerprint(settings: Mapping[str, Any], questions: Sequence[Question], index: Index) -> str:
    """Digest what the records of a run depend on; the contents of the index count, not where its folder is."""
    whole = {
        "settings": settings,
        "questions": [asdict(question) for question in questions],
        "documents": index.ledger.content_hashes(),
        "chunking": index.ledger.setting("chunking"),
        "version": version("lince-rag"),
    }
    return hashlib.blake2b(json.dumps(whole, sort_keys=True).encode("utf-8", "replace"), digest_size=8).hexdigest()
