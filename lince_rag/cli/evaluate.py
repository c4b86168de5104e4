"""The command ``lince-rag eval``: questions with known answers, asked under one setting or several."""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lince_rag.cli.options import (
    DEFAULT_INDEX,
    INTERRUPTED_STATUS,
    BasePathOption,
    DeviceOption,
    DtypeOption,
    EmbeddingsOption,
    IndexOption,
    JsonOption,
    ModelPathOption,
    QuantizationOption,
)
from lince_rag.text.language import Language
from lince_rag.text.wording import wording

if TYPE_CHECKING:
    from lince_rag.evaluation import Evaluation, Question
    from lince_rag.evaluation.settings import Setting

DEFAULT_OUTPUT: Final = Path("lince-eval")

REPORT_FILE: Final = "report.html"

BASE_NAME: Final = "base"


def evaluate_file(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Questions: SQuAD JSON, or JSON lines with question, answers and source."
        ),
    ],
    index: IndexOption = DEFAULT_INDEX,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the records, the report and copies of the index.")
    ] = DEFAULT_OUTPUT,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING",
            help="One more setting, as changes to the options: 'k=3', 'lexical_weight=1.0', 'embeddings=NAME', "
            "'model=NAME,model_path=DIR' …; may be repeated.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Passages to read.")] = 5,
    model: Annotated[
        str, typer.Option(help="A model of `lince-rag models`, or a hub id or folder with a chat template.")
    ] = "extractive",
    model_path: ModelPathOption = None,
    base_model_path: BasePathOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
    embeddings: EmbeddingsOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only the first questions.")] = None,
    json_: JsonOption = False,
) -> None:
    """Ask the questions of a file and measure the answers; run it again to go on after a stop."""
    from lince_rag.cli.terminal import print_plain, reader_language
    from lince_rag.evaluation.extras import check_extras
    from lince_rag.evaluation.questions import load_questions
    from lince_rag.evaluation.report import write_report
    from lince_rag.evaluation.settings import Setting, parse_setting

    language = reader_language()
    weights = {"model_path": model_path, "base_model_path": base_model_path, "quantization": quantization}
    options = {"model": model, **weights, "device": device, "dtype": dtype}
    base = Setting(BASE_NAME, index, embeddings, {"k": k}, options)
    settings = [base, *(parse_setting(text, base) for text in compare or ())]
    questions = load_questions(file)[:limit]
    check_extras()
    try:
        evaluations = _evaluate_all(settings, questions, output, language)
    except KeyboardInterrupt:
        print_plain(wording("eval_interrupted", language, output=output))
        raise typer.Exit(INTERRUPTED_STATUS) from None
    report = write_report(evaluations, output / REPORT_FILE, language=language, questions_file=file.name)
    if json_:
        values = [evaluation.to_dict(records=False) for evaluation in evaluations]
        whole = {"report": str(report), "evaluations": values}
        sys.stdout.write(json.dumps(whole, ensure_ascii=False, indent=2) + "\n")
    else:
        _print_evaluations(evaluations, language)
        print_plain(wording("eval_report", language, path=report))


def _evaluate_all(
    settings: "Sequence[Setting]", questions: "Sequence[Question]", output: Path, language: Language
) -> "list[Evaluation]":
    """Run the settings one after the other; neighbours with one model share it."""
    from lince_rag.cli.terminal import ingest_progress, progress_bar
    from lince_rag.evaluation import evaluate
    from lince_rag.evaluation.settings import check_setting, make_chain, make_chat, open_setting_index

    # A wrong value of the last setting shows now, not after an hour with the others.
    for setting in settings:
        check_setting(setting)
    evaluations = []
    chat, model = None, None
    for setting in settings:
        if chat is None or setting.model != model:
            chat, model = make_chat(setting), setting.model
        with ExitStack() as stack:
            with ingest_progress(language) as copied:
                index = stack.enter_context(open_setting_index(setting, output, copied))
            asked = stack.enter_context(progress_bar(wording("evaluating", language, name=setting.name)))
            chain = make_chain(setting, index, chat)
            evaluations.append(
                evaluate(chain, questions, index, output=output, name=setting.name, on_progress=asked)
            )
    return evaluations


def _print_evaluations(evaluations: "Sequence[Evaluation]", language: Language) -> None:
    """Print a table with the metrics as rows and the settings as columns, and how many questions count."""
    from rich.markup import escape
    from rich.table import Table

    from lince_rag.cli.terminal import output, print_plain
    from lince_rag.evaluation.report import format_interval, format_value, metric_labels

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(wording("eval_metric", language), no_wrap=True)
    for evaluation in evaluations:
        table.add_column(escape(evaluation.name), overflow="fold")
    for name, label in metric_labels(evaluations, language).items():
        found = [evaluation.metrics[name] for evaluation in evaluations]
        cells = (f"{format_value(name, one)} {format_interval(name, one)}".rstrip() for one in found)
        table.add_row(escape(label), *map(escape, cells))
    output().print(table)
    seen: dict[str, None] = {}
    for evaluation in evaluations:
        seen.setdefault(wording("eval_counts", language, **evaluation.counts))
        if missing := evaluation.counts["not_in_index"]:
            seen.setdefault(wording("eval_not_in_index", language, count=missing))
    for line in seen:
        print_plain(line)
