"""``lince-rag eval`` and ``questions``: questions with known answers, asked under settings, and drafted."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lince_rag.cli.options import (
    DEFAULT_INDEX,
    INTERRUPTED_STATUS,
    AnswerOptions,
    EmbeddingsOption,
    IndexOption,
    JsonOption,
    check_address,
    open_index,
    takes_answer_options,
    use_address,
)
from lince_rag.errors import ConfigurationError, require
from lince_rag.index.locations import index_argument
from lince_rag.text.language import Language, wording

if TYPE_CHECKING:
    from lince_rag.evaluation import Evaluation, Question
    from lince_rag.evaluation.settings import Setting

DEFAULT_OUTPUT: Final = Path("lince-eval")

REPORT_FILE: Final = "report.html"

BASE_NAME: Final = "base"


@takes_answer_options
def evaluate_file(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Questions: SQuAD JSON, or JSON lines with question, answers, source and, if known, type, all_of "
            "and history.",
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
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RECORDS", help="Compare with an earlier run, question by question: its records-….jsonl file."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only this number of questions.")] = None,
    embeddings: EmbeddingsOption = None,
    json_: JsonOption = False,
    *,
    options: AnswerOptions,
) -> None:
    """Ask the questions of a file and measure the answers. After an interruption, run it again to continue."""
    from lince_rag.cli.localisation import reader_language
    from lince_rag.cli.terminal import print_json, print_plain
    from lince_rag.evaluation import load_questions
    from lince_rag.evaluation.report import compare_evaluations, write_report
    from lince_rag.evaluation.runs import PACKAGES, earlier_evaluation
    from lince_rag.evaluation.settings import Setting, parse_setting

    if options.source or options.filter:
        raise ConfigurationError("eval asks all documents: --source and --filter cannot be used with it.")
    _check_embedder(index, embeddings, options.embeddings_url)
    language = reader_language()
    base = Setting(
        BASE_NAME,
        index,
        embeddings,
        options.retriever_fields(),
        options.model_fields(),
        options.chain_fields(),
    )
    settings = [base, *(parse_setting(text, base) for text in compare or ())]
    questions = load_questions(file)[:limit]
    require("evaluation", *PACKAGES)
    before = earlier_evaluation(against, questions, wording("eval_before", language)) if against else None
    # None lets the runs be compared with each other; an earlier run may share no question with this one.
    earlier = {record.id: record for record in (before.records if before else ())} if against else None
    try:
        evaluations = _evaluate_all(settings, questions, output, language)
    except KeyboardInterrupt:
        print_plain(wording("eval_interrupted", language, output=output))
        raise typer.Exit(INTERRUPTED_STATUS) from None
    report = write_report(
        evaluations, output / REPORT_FILE, language=language, questions_file=file.name, earlier=earlier
    )
    comparisons = compare_evaluations(evaluations, earlier)
    if json_:
        values = [evaluation.to_dict(records=False) for evaluation in evaluations]
        compared = [{"name": name, **asdict(comparison)} for name, comparison in comparisons]
        print_json({"report": str(report), "evaluations": values, "comparisons": compared})
    else:
        _print_evaluations(evaluations, language, before)
        _print_types(evaluations, language)
        for name, changes in comparisons:
            if changes.unlike:
                print_plain(f"{name}: " + wording("eval_unlike", language, count=len(changes.unlike)))
            counts = {"fixed": len(changes.fixed), "broken": len(changes.broken), "count": changes.count}
            print_plain(f"{name}: " + wording("eval_changes", language, **counts, p=changes.p_value))
        print_plain(wording("eval_report", language, path=report))


def _check_embedder(index: Path, embeddings: str | None, url: str | None) -> None:
    """Let embedders ask the server at an address, if one is given, and check that the first setting does."""
    from lince_rag.index.embeddings import named_embeddings

    use_address(url)
    if embeddings is not None:
        check_address(url, named_embeddings(embeddings))
    elif url is not None:
        with open_index(index, None, url, create=False):
            pass


def draft_file(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, as JSON lines.")],
    index: IndexOption = DEFAULT_INDEX,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of questions at most.")] = 20,
    seed: Annotated[int, typer.Option(help="Another seed drafts other questions.")] = 7,
) -> None:
    """Draft questions about the documents of an index, to be corrected by you and then asked by `eval`."""
    from lince_rag.cli.localisation import reader_language
    from lince_rag.cli.terminal import print_plain
    from lince_rag.evaluation.questions import draft_questions
    from lince_rag.index.index import Index

    language = reader_language()
    with Index.open(index, create=False) as opened:
        drafts = draft_questions(opened, count, seed=seed)
    if not drafts:
        raise ConfigurationError(
            f"No document of {index_argument(index)} has a sentence with a date, a number, a name or a place.",
            hint="Write the questions yourself: see `lince-rag eval --help`.",
        )
    lines = "".join(json.dumps(draft, ensure_ascii=False) + "\n" for draft in drafts)
    try:
        with open(output, "x", encoding="utf-8") as file:
            file.write(lines)
    except FileExistsError as error:
        # It may hold an hour of corrections.
        raise ConfigurationError(f"{output} exists already.", hint="Choose another name.") from error
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror}.") from error
    print_plain(wording("drafted", language, count=len(drafts), path=output, index=index_argument(index)))


def _evaluate_all(
    settings: "Sequence[Setting]", questions: "Sequence[Question]", output: Path, language: Language
) -> "list[Evaluation]":
    """Run the settings one after the other; consecutive settings with the same model share it."""
    from lince_rag.cli.terminal import progress_bar
    from lince_rag.evaluation import evaluate
    from lince_rag.evaluation.settings import check_setting, make_chain, make_chat, open_setting_index

    # A wrong value in the last setting must show now, not after an hour with the others.
    for setting in settings:
        check_setting(setting)
    evaluations = []
    chat, model = None, None
    for setting in settings:
        if chat is None or setting.model != model:
            chat, model = make_chat(setting), setting.model
        with ExitStack() as stack:
            with progress_bar(wording("ingesting", language)) as copied:
                index = stack.enter_context(open_setting_index(setting, output, copied))
            asked = stack.enter_context(progress_bar(wording("evaluating", language, name=setting.name)))
            chain = make_chain(setting, index, chat)
            evaluations.append(
                evaluate(chain, questions, index, output=output, name=setting.name, on_progress=asked)
            )
    return evaluations


def _print_evaluations(
    asked: "Sequence[Evaluation]", language: Language, earlier: "Evaluation | None" = None
) -> None:
    """Print a table with the metrics as rows and the settings as columns, then the numbers of questions."""
    from rich.markup import escape
    from rich.table import Table

    from lince_rag.cli.terminal import output, print_plain
    from lince_rag.evaluation.report import format_interval, format_value, metric_labels

    evaluations = [*asked, *([earlier] if earlier else [])]
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(wording("eval_metric", language), no_wrap=True)
    for evaluation in evaluations:
        table.add_column(escape(evaluation.name), overflow="fold")
    for name, label in metric_labels(evaluations, language).items():
        found = [evaluation.metrics[name] for evaluation in evaluations]
        cells = (f"{format_value(name, one, language)} {format_interval(one, language)}".rstrip() for one in found)
        table.add_row(escape(label), *map(escape, cells))
    output().print(table)
    # Settings over the same index have the same counts: each line is printed once.
    lines: dict[str, None] = {}
    for evaluation in asked:
        lines.setdefault(wording("eval_counts", language, **evaluation.counts))
        if missing := evaluation.counts["not_in_index"]:
            lines.setdefault(wording("eval_not_in_index", language, count=missing))
    for line in lines:
        print_plain(line)


def _print_types(evaluations: "Sequence[Evaluation]", language: Language) -> None:
    """Print a table of the types of questions for each run, if the question file names types."""
    from rich.markup import escape
    from rich.table import Table

    from lince_rag.cli.terminal import output
    from lince_rag.evaluation.metrics import TYPE_METRICS, measure_types
    from lince_rag.evaluation.report import format_value

    for evaluation in evaluations:
        types = measure_types(evaluation.records)
        if not types:
            continue
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), title=escape(evaluation.name))
        table.add_column(wording("eval_type", language), no_wrap=True)
        table.add_column("n", justify="right")
        for name in TYPE_METRICS:
            table.add_column(escape(wording(f"metric_{name}", language)), justify="right")
        for kind, metrics in types.items():
            count = sum(record.type == kind for record in evaluation.records)
            cells = (format_value(name, metrics[name], language) for name in TYPE_METRICS)
            table.add_row(escape(kind), str(count), *cells)
        output().print(table)
