"""The plots of a report, as data addresses of SVG images; every function returns one."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Final

from lince_rag.evaluation.metrics import confidences, risk_coverage
from lince_rag.evaluation.runs import Evaluation
from lince_rag.text.language import Language, wording

# Okabe and Ito's palette, which colour-blind people can distinguish.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

WIDTH_INCHES: Final = 8.0
_ROW_INCHES: Final = 0.2
_BINS: Final = 25


def _figure(height: float, **options: Any) -> tuple[Any, Any]:
    # Not pyplot, which keeps every figure in a global list and may look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = figure.subplots(**options)
    for one in getattr(axes, "flat", [axes]):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _image(figure: Any) -> str:
    """Encode a figure as an image: the page cannot reach into it, and it runs no script."""
    from matplotlib import rc_context

    buffer = BytesIO()
    # With a fixed salt and no date, equal reports are equal files.
    with rc_context({"svg.hashsalt": "lince"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _label(evaluation: Evaluation) -> str:
    # matplotlib leaves a label that begins with "_" out of the legend.
    return f" {_literal(evaluation.name)}"


def _literal(text: str) -> str:
    """Escape dollar signs, which matplotlib reads as mathematics."""
    return text.replace("$", r"\$")


def plot_metrics(evaluations: Sequence[Evaluation], labels: Mapping[str, str]) -> str:
    """Draw the metrics between 0 and 1 as bars with intervals, one colour for each run; ``labels`` name them."""
    height = 1.0 + _ROW_INCHES * len(labels) * (len(evaluations) + 0.6)
    figure, axes = _figure(height)
    thickness = 0.8 / len(evaluations)
    legend: dict[int, Any] = {}
    for number, evaluation in enumerate(evaluations):
        for row, name in enumerate(labels):
            found = evaluation.metrics[name]
            if found.value is None:
                continue
            place = row + (number + 0.5) * thickness - 0.4
            colour = COLOURS[number % len(COLOURS)]
            legend[number] = axes.barh(place, found.value, thickness, color=colour, alpha=0.75)
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [place, place], color="black", linewidth=1.2)
    axes.set_yticks(range(len(labels)), [_literal(label) for label in labels.values()])
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    if len(evaluations) > 1:
        names = [_label(evaluations[number]) for number in legend]
        figure.legend(legend.values(), names, loc="outside upper left", ncols=2, frameon=False)
    return _image(figure)


def plot_confidence(evaluation: Evaluation, language: Language) -> str | None:
    """Draw the confidence of answerable and unanswerable questions, and the errors at each threshold.

    ``None`` if the run has no abstention curve.
    """
    curve = evaluation.abstention
    if curve is None:
        return None
    figure, (above, below) = _figure(4.6, nrows=2, sharex=True)
    answerable, unanswerable = confidences(evaluation.records)
    lowest, highest = min(answerable + unanswerable), max(answerable + unanswerable)
    names = (wording("eval_answerable", language), wording("eval_unanswerable", language))
    for values, name, colour in zip((answerable, unanswerable), names, COLOURS, strict=False):
        share = [1 / len(values)] * len(values)
        span = (lowest, highest if highest > lowest else lowest + 1)
        above.hist(values, bins=_BINS, range=span, weights=share, alpha=0.6, color=colour, label=name)
    above.set_ylabel(wording("eval_share", language))
    thresholds, abstained, answered = zip(*curve.points, strict=True)
    below.step(
        thresholds, abstained, where="mid", color=COLOURS[0], label=wording("eval_false_abstention", language)
    )
    below.step(thresholds, answered, where="mid", color=COLOURS[1], label=wording("eval_false_answer", language))
    below.set_xlabel(wording("eval_confidence", language))
    for axes in (above, below):
        axes.axvline(curve.threshold, color="black", linestyle="--", linewidth=1)
        axes.legend(frameon=False)
    return _image(figure)


def plot_latency(evaluations: Sequence[Evaluation], language: Language) -> str:
    """Draw the share of questions that were answered within a time, one line for each run."""
    figure, axes = _figure(2.8)
    for number, evaluation in enumerate(evaluations):
        times = [record.milliseconds for record in evaluation.records]
        axes.ecdf(times, color=COLOURS[number % len(COLOURS)], label=_label(evaluation))
    axes.set_xscale("log")
    axes.set_xlabel(wording("eval_milliseconds", language))
    axes.set_ylabel(wording("eval_share", language))
    axes.grid(alpha=0.3)
    if len(evaluations) > 1:
        axes.legend(frameon=False)
    return _image(figure)


def plot_risk(evaluations: Sequence[Evaluation], language: Language) -> str | None:
    """Draw the share of wrong answers if only the most confident ones are given, one line for each run.

    ``None`` if no answer has a confidence.
    """
    curves = [risk_coverage(evaluation.records) for evaluation in evaluations]
    if not any(curves):
        return None
    figure, axes = _figure(2.8)
    for number, curve in enumerate(curves):
        if curve:
            label = _label(evaluations[number])
            axes.plot(*zip(*curve, strict=True), color=COLOURS[number % len(COLOURS)], label=label)
    axes.set_xlabel(wording("eval_coverage", language))
    axes.set_ylabel(wording("eval_risk", language))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    if len(evaluations) > 1:
        axes.legend(frameon=False)
    return _image(figure)
