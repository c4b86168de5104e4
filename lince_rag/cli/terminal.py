"""What the command line prints, in the reader's language: consoles, reports, tables, progress."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lince_rag.cli.localisation import translate_reason, visible
from lince_rag.index.locations import index_argument
from lince_rag.text.language import LANGUAGES, Language, wording, write_number

if TYPE_CHECKING:
    from lince_rag.chain.answer import Answer
    from lince_rag.index.ingestion import IngestReport
    from lince_rag.index.ledger import Source
    from lince_rag.index.verification import VerifyReport
    from lince_rag.prompting.registry import ModelSpec
    from lince_rag.prompting.templates import Difference

# Suffixes that are counted one by one among the files of unknown kinds.
_SHOWN_SUFFIXES = 8

# Files that are named where all of their kind get the same advice.
_SHOWN_NAMES = 8

# Characters of a prompt that are shown from where it differs from another.
_SHOWN_CHARACTERS = 80


def output() -> Console:
    """Return the console for results."""
    return Console(highlight=False, soft_wrap=True)


def diagnostics() -> Console:
    """Return the console for errors and progress, kept apart from results."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def short_path(source: str) -> str:
    """Return a path to print: relative to the working folder if it is below it, on one line."""
    path = Path(source)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        source = str(path.relative_to(Path.cwd()))
    return visible(source).replace("\n", "\\n").replace("\t", "\\t")


def print_waiting(count: int, language: Language) -> None:
    """Say that passages have been searched by their words only, if their vectors are still to come."""
    if count:
        output().print(f"  [dim]{escape(wording('searched_by_words', language, count=count))}[/]")


def answer_notes(answer: "Answer") -> Iterator[str]:
    """Yield what the reader of an answer should know: another language, doubts, what was not read."""
    found = [document.metadata.get("language") for document in answer.documents]
    used = {citation.source for citation in answer.citations}
    languages = {
        language
        for document, language in zip(answer.documents, found, strict=True)
        if document.metadata.get("source") in used and language in LANGUAGES
    }
    for language in sorted(languages - {answer.language}) if answer.language not in languages else ():
        yield wording(f"source_in_{language}", answer.language)
    if answer.doubtful:
        yield wording("doubtful", answer.language, confidence=answer.confidence)
    if not answer.grounded and not answer.abstained:
        yield wording("unsupported", answer.language)
    if answer.omitted:
        yield wording("omitted", answer.language, count=len(answer.omitted))
    if answer.shortened:
        yield wording("shortened", answer.language, count=len(answer.shortened))


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar on the terminal; yield a callback that takes (done, total, name of the current item)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[name]}", markup=False),
    )
    console = diagnostics()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=None, name="")

        def report(done: int, total: int, name: str) -> None:
            progress.update(task, completed=done, total=total, name=short_path(name) if name else "")

        yield report


def print_ingest_report(report: "IngestReport", index: str, language: Language, *, verbose: bool) -> None:
    """Print what an ingestion did; files that failed go to the error stream, each with the reason.

    The files that were not read are counted by the reason; ``verbose`` lists them.
    """
    counts = {name: len(getattr(report, name)) for name in ("added", "changed", "unchanged", "removed", "failed")}
    print_plain(wording("ingested", language, **counts, chunks=report.chunks, seconds=report.seconds))
    if report.failed:
        console = diagnostics()
        console.print(f"[yellow]{wording('not_indexed', language)}[/]")
        for problem in report.failed:
            console.print(
                f"  {short_path(problem.source)}: {visible(translate_reason(problem.reason, language))}",
                markup=False,
            )
    for source, pages in report.pages_without_text.items():
        numbers = ", ".join(map(str, pages))
        print_plain(wording("pages_without_text", language, source=short_path(source), pages=numbers))
    for source, parts in report.left_out.items():
        print_plain(
            wording(
                "left_out",
                language,
                source=short_path(source),
                parts=visible("; ".join(translate_reason(part, language) for part in parts)),
            )
        )
    print_skipped(report.skipped, language, verbose=verbose)
    if not report.failed:
        print_plain(wording("ask_next", language, index=index_argument(index)))


def print_skipped(skipped: dict[str, list[str]], language: Language, *, verbose: bool) -> None:
    """Print how many files of the folders were not read, by the reason; ``verbose`` lists them."""
    if not skipped:
        return
    from lince_rag.documents.files import IMAGE_FORMATS

    suffixes = Counter(Path(path).suffix.lower() for path in skipped.get("unsupported", []))
    kinds = ", ".join(
        f"{visible(suffix) or '–'} {count}" for suffix, count in suffixes.most_common(_SHOWN_SUFFIXES)
    )
    if not IMAGE_FORMATS.keys().isdisjoint(suffixes):
        kinds += "; " + wording("skipped_pictures", language)
    parts = {
        reason: wording(f"skipped_{reason}", language, count=len(skipped[reason]), kinds=kinds)
        for reason in ("unsupported", "hidden", "link", "ignored", "excluded")
        if reason in skipped
    }
    print_plain(wording("skipped", language, parts="; ".join(parts.values())))
    _print_saved_as(skipped.get("unsupported", []), language)
    if not verbose:
        print_plain(wording("skipped_verbose", language))
        return
    for reason, part in parts.items():
        print_plain(f"  {part}")
        for path in sorted(skipped[reason]):
            print_plain(f"    {short_path(path)}")


def _print_saved_as(paths: Sequence[str], language: Language) -> None:
    """Name the files that can be read once they are saved as another kind, by that kind."""
    from lince_rag.documents.files import SAVED_AS

    kinds: dict[str, list[str]] = {}
    for path in sorted(paths):
        if kind := SAVED_AS.get(Path(path).suffix.lower()):
            kinds.setdefault(kind, []).append(short_path(path))
    for kind, names in kinds.items():
        shown = ", ".join(names[:_SHOWN_NAMES]) + ("…" if len(names) > _SHOWN_NAMES else "")
        print_plain(wording("saved_as", language, kind=kind, files=shown))


def print_sources(sources: "Sequence[Source]", language: Language) -> None:
    """Print the documents of an index."""
    table = _table(wording("source_columns", language), right=2)
    for source in sources:
        cells = (short_path(source.source), source.language, source.chunks, source.characters)
        table.add_row(*(escape(str(cell)) for cell in cells))
    output().print(table)


def print_status(summary: Mapping[str, Any], report: "VerifyReport", index: str, language: Language) -> None:
    """Print a summary of an index, and whether it is in order or what is wrong with it."""
    if report.damaged_ledger:
        print_plain(
            wording("status_ledger_damaged", language, reason=translate_reason(report.damaged_ledger, language))
        )
        return
    address = summary["embeddings_url"]
    embeddings = f"{summary['embeddings']} ({address})" if address else summary["embeddings"]
    languages = ", ".join(f"{code} {count}" for code, count in summary["languages"].items())
    print_plain(
        wording("status", language, documents=report.documents, chunks=report.chunks, embeddings=embeddings)
    )
    print_plain(
        wording("status_details", language, languages=languages or "–", megabytes=summary["bytes"] / 1e6,
                chunking=", ".join(f"{name}={value}" for name, value in summary["chunking"].items()))
    )  # fmt: skip
    if report.waiting:
        print_plain(wording("vectors_to_come", language, count=report.waiting, index=index_argument(index)))
    damages = (("status_vectors", report.damaged_vectors), ("status_terms", report.damaged_terms))
    for key, reason in damages:
        if reason:
            print_plain(wording(key, language, reason=translate_reason(reason, language)))
    missing, stray = len({*report.missing_terms, *report.missing_vectors}), len(report.stray)
    key = "status_repaired" if report.repaired else "status_ok" if report.ok else "status_damaged"
    print_plain(wording(key, language, missing=missing, stray=stray, index=index_argument(index)))
    if report.gone:
        print_plain(wording("status_gone", language))
        for source_name in report.gone:
            print_plain(f"  {short_path(source_name)}")


def print_models(specs: "Iterable[ModelSpec]", language: Language) -> None:
    """Print the models, their memory in GB by number format, the widest that fits here, and the largest model."""
    from lince_rag.engines.checkpoints.memory import formats_that_fit, largest_that_fits, machine_bytes

    specs = list(specs)
    dtypes = {"bfloat16": "bf16", "int8": "int8", "int4": "int4"}
    names = [wording("model_columns", language), *dtypes.values(), wording("model_fits", language)]
    table = _table("|".join(names), right=2 + len(dtypes))
    table.columns[0].no_wrap = True
    table.columns[2].min_width = 12
    for spec in specs:
        sizes = (spec.memory.get(dtype) for dtype in dtypes)
        memory = [write_number(size / 1e9, ".1f", language) if size else "–" for size in sizes]
        fitting = formats_that_fit(spec)
        best = dtypes[fitting[0]] if fitting else "no" if spec.parameters else "–"
        cells = (
            spec.name, " ".join(spec.languages), spec.licence, spec.context_window, *memory, best
        )  # fmt: skip
        table.add_row(*(escape(str(cell)) for cell in cells))
    output().print(table)
    print_plain(wording("model_memory", language))
    free, largest = machine_bytes(), largest_that_fits(specs, language)
    if free is not None and largest is None:
        print_plain(wording("model_none", language, free=free / 1e9))
    elif free is not None and largest is not None:
        dtype = formats_that_fit(largest)[0]
        needed = largest.memory[dtype] / 1e9
        print_plain(
            wording(
                "model_largest", language, free=free / 1e9, name=largest.name, dtype=dtypes[dtype], needed=needed
            )
        )


def print_template_check(
    folder: str, same: Sequence[str], nearest: str, difference: "Difference | None", language: Language
) -> None:
    """Print which models read the prompts of a folder's template, or where those of the nearest one differ."""
    if difference is None:
        print_plain(wording("template_same", language, folder=folder, models=", ".join(same)))
        return
    conversation = wording(f"template_{difference.conversation}", language)
    position = difference.position
    print_plain(
        wording(
            "template_differs",
            language,
            folder=folder,
            model=nearest,
            conversation=conversation,
            position=position,
        )
    )
    for letter, text in (("A", difference.ours), ("B", difference.theirs)):
        print_plain(f"  {letter}: {visible(text[:_SHOWN_CHARACTERS])!r}")


def print_plain(text: str) -> None:
    """Print a line without interpreting markup."""
    output().print(text, markup=False)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def _table(columns: str, right: int) -> Table:
    """Make an empty table from column names with "|" between them; the last ``right`` columns hold numbers."""
    names = columns.split("|")
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for position, name in enumerate(names):
        number = position >= len(names) - right
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number)
    return table
