"""Questions as people ask them, by type: over the documents in ``household/``, and over the development set."""

from collections.abc import Iterator
from pathlib import Path

from lince_rag import ChatLince, Index, create_rag_chain
from lince_rag.evaluation import Evaluation, evaluate, load_questions
from lince_rag.evaluation.metrics import TYPE_METRICS, measure_types
from tests.benchmarks.household import HOUSEHOLD, write_household
from tests.benchmarks.tables import table

EMBEDDERS = ["multilingual-e5-small", "embedded"]

# The answers that must hold the right text, by embedder.
BARS = {"multilingual-e5-small": 0.65, "embedded": 0.55}

MEASURES = ["contains_answer", "list_recall", "citation_recall", "false_abstention", "abstention_recall"]
MEASURES += ["confidence_auroc", "right_auroc", "calibration_error", "brier", "latency_p50_ms", "latency_p95_ms"]


def measure(documents: Path, questions: Path, folder: Path, embedder: str) -> Evaluation:
    with Index.open(folder, embeddings=embedder) as index:
        index.ingest(documents)
        chain = create_rag_chain(ChatLince(), index.as_retriever())
        return evaluate(chain, load_questions(questions), index, name=embedder)


def shown(evaluation: Evaluation, name: str) -> str:
    estimate = evaluation.metrics[name]
    if estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def tables(evaluations: list[Evaluation]) -> Iterator[str]:
    """All measures by embedder, and those of each type for each embedder."""
    names = [evaluation.name for evaluation in evaluations]
    rows: list[list[object]] = [[name, *(shown(each, name) for each in evaluations)] for name in MEASURES]
    yield table(["", *names], rows)
    for evaluation in evaluations:
        types = measure_types(evaluation.records)
        rows = [
            [kind, sum(record.type == kind for record in evaluation.records)]
            + ["–" if metrics[name].value is None else f"{metrics[name].value:.2f}" for name in TYPE_METRICS]
            for kind, metrics in types.items()
        ]
        yield f"By type, {evaluation.name}:\n\n{table(['type', 'questions', *TYPE_METRICS], rows)}"


def test_household(tmp_path: Path, results: list[str]) -> None:
    documents = write_household(tmp_path / "documents")
    found = [
        measure(documents, HOUSEHOLD / "questions.jsonl", tmp_path / embedder, embedder) for embedder in EMBEDDERS
    ]
    results.append("\n\n".join(["## Questions about documents of households", *tables(found)]))
    for evaluation in found:
        assert (evaluation.metrics["contains_answer"].value or 0) >= BARS[evaluation.name]


def test_development_set(data: Path, real: Path, tmp_path: Path, results: list[str]) -> None:
    questions = data / "real" / "questions.jsonl"
    found = [measure(real, questions, tmp_path / embedder, embedder) for embedder in EMBEDDERS]
    results.append("\n\n".join(["## Questions of the development set, the whole chain", *tables(found)]))
