"""The report of an evaluation: one HTML file with the metrics, the plots and the worst failures."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal, get_args

import jinja2
from markupsafe import Markup, escape

from lince_rag.evaluation.metrics import (
    RECALL_DEPTH,
    TYPE_METRICS,
    Comparison,
    Estimate,
    cites_gold,
    compare_runs,
    holds_answer,
    measure_types,
    word_overlap,
)
from lince_rag.evaluation.plots import plot_confidence, plot_latency, plot_metrics, plot_risk
from lince_rag.evaluation.records import Record
from lince_rag.evaluation.runs import Evaluation
from lince_rag.text.language import Language, wording, write_number

Failure = Literal["not_retrieved", "wrongly_abstained", "not_cited", "wrong_sentence", "answered_unanswerable"]

FAILURES: Final[tuple[Failure, ...]] = get_args(Failure)

# Failures of each kind shown for each run.
SHOWN_FAILURES: Final = 10

# Characters of a retrieved chunk shown.
EXCERPT_CHARACTERS: Final = 400

RECALL_AT_K: Final = "recall@k"


def metric_labels(evaluations: Sequence[Evaluation], language: Language) -> dict[str, str]:
    """Return the label of each metric in the reader's language, in the order of a table."""
    names = evaluations[0].metrics
    labels = {name: wording(f"metric_{name.replace('@', '_at_')}", language) for name in names}
    depths = {evaluation.k for evaluation in evaluations}
    if depths == {RECALL_DEPTH}:
        # The row would repeat recall@5.
        del labels[RECALL_AT_K]
    elif len(depths) == 1:
        labels[RECALL_AT_K] = labels[RECALL_AT_K].replace("@k", f"@{depths.pop()}")
    return labels


def format_value(name: str, estimate: Estimate, language: Language) -> str:
    """Format milliseconds with one decimal and shares with three; a dash if there is no value."""
    if estimate.value is None:
        return "–"
    return write_number(estimate.value, ".1f" if name.endswith("_ms") else ".3f", language)


def format_interval(estimate: Estimate, language: Language) -> str:
    """Format an interval; empty if there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = (write_number(each, ".3f", language) for each in (estimate.low, estimate.high))
    return f"[{low}{', ' if language == 'en' else '; '}{high}]"


def write_report(
    evaluations: Sequence[Evaluation],
    path: str | Path,
    *,
    language: Language,
    questions_file: str = "",
    earlier: Mapping[str, Record] | None = None,
) -> Path:
    """Write the report of runs over the same questions, replacing an older one; return its path.

    The runs are compared question by question with ``earlier``, the records of an earlier run, or else with the
    first of them. The page loads nothing from elsewhere, and escapes all text from documents and questions.
    """
    labels = metric_labels(evaluations, language)
    shares = {name: label for name, label in labels.items() if not name.endswith("_ms")}
    page = _template().render(
        evaluations=evaluations,
        language=language,
        say=lambda key, **values: wording(key, language, **values),
        questions_file=questions_file,
        labels=labels,
        figure=partial(format_value, language=language),
        interval=partial(format_interval, language=language),
        number=partial(write_number, spec=".3f", language=language),
        metrics_plot=plot_metrics(evaluations, shares),
        confidence_plots=[plot_confidence(evaluation, language) for evaluation in evaluations],
        latency_plot=plot_latency(evaluations, language),
        risk_plot=plot_risk(evaluations, language),
        types=[measure_types(evaluation.records) for evaluation in evaluations],
        type_columns=TYPE_METRICS,
        comparisons=_changes(evaluations, earlier),
        kinds=FAILURES,
        failure_counts=[count_failures(evaluation.records, evaluation.k) for evaluation in evaluations],
        failures=[worst_failures(e.records, e.k, SHOWN_FAILURES) for e in evaluations],
        marked=mark_answers,
        excerpt=excerpt,
        short=lambda source: Path(source).name,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(page, encoding="utf-8", errors="replace")
    os.replace(unfinished, path)
    return path


def compare_evaluations(
    evaluations: Sequence[Evaluation], earlier: Mapping[str, Record] | None
) -> list[tuple[str, Comparison]]:
    """Compare each run with the records of an earlier one, or each but the first with the first."""
    if earlier is not None:
        return [(each.name, compare_runs(list(earlier.values()), each.records)) for each in evaluations]
    return [(each.name, compare_runs(evaluations[0].records, each.records)) for each in evaluations[1:]]


def _changes(
    evaluations: Sequence[Evaluation], earlier: Mapping[str, Record] | None
) -> list[tuple[str, Comparison, dict[str, list[tuple[Record, Record]]]]]:
    """Return each comparison with the records, before and after, of the questions that it names."""
    first = earlier if earlier is not None else {record.id: record for record in evaluations[0].records}
    later = {each.name: {record.id: record for record in each.records} for each in evaluations}
    return [
        (
            name,
            comparison,
            {
                "fixed": [(first[each], later[name][each]) for each in comparison.fixed],
                "broken": [(first[each], later[name][each]) for each in comparison.broken],
            },
        )
        for name, comparison in compare_evaluations(evaluations, earlier)
    ]


def _template() -> jinja2.Template:
    text = (files("lince_rag.evaluation") / "report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)


def _pattern(record: Record) -> re.Pattern[str] | None:
    """Return a pattern for the accepted answers, longest first, with any white space between words."""
    words = sorted((answer.split() for answer in record.answers), key=len, reverse=True)
    found = [r"\s+".join(map(re.escape, answer)) for answer in words if answer]
    return re.compile(rf"(?<!\w)(?:{'|'.join(found)})(?!\w)", re.IGNORECASE) if found else None


def mark_answers(text: str, record: Record) -> Markup:
    """Escape a text and mark the accepted answers in it."""
    pattern = _pattern(record)
    pieces, at = [], 0
    for match in pattern.finditer(text) if pattern else ():
        pieces += [escape(text[at : match.start()]), Markup("<mark>{}</mark>").format(match[0])]
        at = match.end()
    return Markup("").join([*pieces, escape(text[at:])])


def excerpt(text: str, record: Record) -> str:
    """Cut a chunk to ``EXCERPT_CHARACTERS`` around an accepted answer, else from its beginning."""
    pattern = _pattern(record)
    match = pattern.search(text) if pattern else None
    first = max(0, match.start() - EXCERPT_CHARACTERS // 2) if match else 0
    last = first + EXCERPT_CHARACTERS
    return ("… " if first else "") + text[first:last] + (" …" if last < len(text) else "")


def failure_of(record: Record, k: int) -> Failure | None:
    """Return the first failure of a question in the order of the chain.

    - ``not_retrieved``: the place of the answer is not among the chunks that the chain reads;
    - ``wrongly_abstained``: it is, and the chain abstained;
    - ``not_cited``: it is, and the answer does not contain the right text and cites other places;
    - ``wrong_sentence``: the answer cites the right place (or the place is unknown) without the right text;
    - ``answered_unanswerable``: the documents do not hold the answer, and the chain did not abstain;
    - ``None``: the answer contains the right text, or the abstention is right.
    """
    if not record.answerable:
        return None if record.abstained else "answered_unanswerable"
    if holds_answer(record):
        return None
    if record.located and not any(passage.gold for passage in record.retrieved[:k]):
        return "not_retrieved"
    if record.abstained:
        return "wrongly_abstained"
    return "wrong_sentence" if cites_gold(record) or not record.located else "not_cited"


def count_failures(records: Iterable[Record], k: int) -> dict[Failure, int]:
    """Count the questions of each kind of failure."""
    counts = Counter(failure_of(record, k) for record in records)
    return {failure: counts[failure] for failure in FAILURES}


def worst_failures(records: Sequence[Record], k: int, limit: int) -> list[tuple[Failure, list[Record]]]:
    """Return the kinds of failure that occur, each with its worst questions, at most ``limit``.

    The worst answers share the fewest words with the right one and have the highest confidence; the worst
    abstentions have the lowest confidence.
    """
    kinds: dict[Failure, list[Record]] = {failure: [] for failure in FAILURES}
    for record in records:
        if failure := failure_of(record, k):
            kinds[failure].append(record)

    def badness(record: Record) -> tuple[float, float]:
        confidence = record.confidence or 0.0
        return word_overlap(record), confidence if record.abstained else -confidence

    return [(kind, sorted(found, key=badness)[:limit]) for kind, found in kinds.items() if found]
