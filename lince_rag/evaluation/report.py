"""The report of an evaluation: one HTML file with the figures, the plots and the worst failures."""

import os
import re
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Final

import jinja2
from markupsafe import Markup, escape

from lince_rag.evaluation.estimates import Estimate
from lince_rag.evaluation.failures import FAILURES, count_failures, worst_failures
from lince_rag.evaluation.metrics import RECALL_DEPTH
from lince_rag.evaluation.plots import plot_confidence, plot_latency, plot_metrics
from lince_rag.evaluation.records import Record
from lince_rag.evaluation.runs import Evaluation
from lince_rag.text.language import Language
from lince_rag.text.wording import wording

# Failures of each kind that are shown for each setting.
SHOWN_FAILURES: Final = 10

# Characters of a retrieved chunk that are shown.
EXCERPT_CHARACTERS: Final = 400

RECALL_AT_K: Final = "recall@k"


def metric_labels(evaluations: Sequence[Evaluation], language: Language) -> dict[str, str]:
    """Name the metrics of some runs for a reader.

    Args:
        evaluations: The runs.
        language: The reader's language.

    Returns:
        What to call each metric, in the order of a table.
    """
    labels = {name: wording(f"metric_{_key(name)}", language) for name in evaluations[0].metrics}
    depths = {evaluation.k for evaluation in evaluations}
    if depths == {RECALL_DEPTH}:
        # It would be the row above it once more.
        del labels[RECALL_AT_K]
    elif len(depths) == 1:
        labels[RECALL_AT_K] = labels[RECALL_AT_K].replace("@k", f"@{depths.pop()}")
    return labels


def _key(name: str) -> str:
    return name.replace("@", "_at_")


def format_value(name: str, estimate: Estimate) -> str:
    """Write a figure: milliseconds with one decimal, shares with three; a dash where there is none."""
    if estimate.value is None:
        return "–"
    return f"{estimate.value:.1f}" if name.endswith("_ms") else f"{estimate.value:.3f}"


def format_interval(name: str, estimate: Estimate) -> str:
    """Write an interval, or nothing where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{estimate.low:.3f}, {estimate.high:.3f}]"


def write_report(
    evaluations: Sequence[Evaluation], path: str | Path, *, language: Language, questions_file: str = ""
) -> Path:
    """Write the report of some runs over the same questions.

    The page holds all it needs, loads nothing, and escapes whatever documents and questions hold.

    Args:
        evaluations: The runs, side by side in its tables.
        path: The file to write; an older one is replaced whole.
        language: The reader's language.
        questions_file: Name of the file of questions, as a heading.

    Returns:
        The file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    labels = metric_labels(evaluations, language)
    shares = {name: label for name, label in labels.items() if not name.endswith("_ms")}
    page = _template().render(
        evaluations=evaluations,
        language=language,
        say=partial(_say, language),
        questions_file=questions_file,
        labels=labels,
        figure=format_value,
        interval=format_interval,
        metrics_plot=plot_metrics(evaluations, shares),
        confidence_plots=[plot_confidence(evaluation, language) for evaluation in evaluations],
        latency_plot=plot_latency(evaluations, language),
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


def _say(language: Language, key: str, **values: object) -> str:
    return wording(key, language, **values)


def _template() -> jinja2.Template:
    text = (files("lince_rag.evaluation") / "report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)


def _pattern(record: Record) -> re.Pattern[str] | None:
    """What finds the answers that count in a text, longest first; white space may differ."""
    words = sorted((answer.split() for answer in record.answers), key=len, reverse=True)
    found = [r"\s+".join(map(re.escape, answer)) for answer in words if answer]
    return re.compile(rf"(?<!\w)(?:{'|'.join(found)})(?!\w)", re.IGNORECASE) if found else None


def mark_answers(text: str, record: Record) -> Markup:
    """Escape a text, with the answers that count marked.

    Args:
        text: An answer or a quote.
        record: The question.

    Returns:
        HTML.
    """
    pattern = _pattern(record)
    pieces, at = [], 0
    for match in pattern.finditer(text) if pattern else ():
        pieces += [escape(text[at : match.start()]), Markup("<mark>{}</mark>").format(match[0])]
        at = match.end()
    return Markup("").join([*pieces, escape(text[at:])])


def excerpt(text: str, record: Record) -> str:
    """Cut a chunk to the length that is shown: around an answer that counts, else its beginning.

    Args:
        text: The chunk.
        record: The question.

    Returns:
        The piece, with an ellipsis where it was cut.
    """
    pattern = _pattern(record)
    match = pattern.search(text) if pattern else None
    first = max(0, match.start() - EXCERPT_CHARACTERS // 2) if match else 0
    last = first + EXCERPT_CHARACTERS
    return ("… " if first else "") + text[first:last] + (" …" if last < len(text) else "")
