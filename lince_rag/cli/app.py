"""The command line: ``lince-rag ingest | remove | export | import | ask | search | chat | eval | serve …``.

Each command imports what it needs when it runs, so that ``--help`` answers at once.
"""

import os
import sys
import warnings
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.exceptions import TyperException

from lince_rag.cli.chat import chat
from lince_rag.cli.convert import convert
from lince_rag.cli.evaluate import draft_file, evaluate_file
from lince_rag.cli.ingest import ingest, remove
from lince_rag.cli.localisation import LocalisedCommand, LocalisedGroup, print_error, print_usage_error
from lince_rag.cli.move import export_file, import_file
from lince_rag.cli.options import (
    DEFAULT_INDEX,
    INTERRUPTED_STATUS,
    AnswerOptions,
    EmbeddingsOption,
    EmbeddingsUrlOption,
    FilterOption,
    IndexOption,
    JsonOption,
    ModelsFileOption,
    RerankerOption,
    RerankerUrlOption,
    SearchCountOption,
    SourceOption,
    check_has_documents,
    choose_reranker,
    open_index,
    takes_answer_options,
)
from lince_rag.cli.serve import keys, mcp, serve
from lince_rag.errors import ConfigurationError, LinceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lince_rag.cli.answers import Places
    from lince_rag.prompting.registry import ModelSpec

# What the retriever measures of a passage; see ``HybridRetriever``.
_MEASURES: Final = ("score", "relevance", "similarity", "rerank_score", "confidence")

app = typer.Typer(
    help="Cited answers about your own documents, in Spanish and Portuguese, on your own machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    cls=LocalisedGroup,
)
command = partial(app.command, cls=LocalisedCommand)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"lince-rag {version('lince-rag')}\n")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Document the options of all commands in ``--help``; ``main`` has already read them."""


command("ingest")(ingest)
command("remove")(remove)
command("export")(export_file)
command("import")(import_file)


@command()
@takes_answer_options
def ask(
    question: Annotated[str, typer.Argument(help="The question, in Spanish, Portuguese or English.")],
    index: IndexOption = DEFAULT_INDEX,
    embeddings: EmbeddingsOption = None,
    json_: JsonOption = False,
    *,
    options: AnswerOptions,
) -> None:
    """Answer a question from the documents of an index, with sources; abstain if they do not hold the answer."""
    from lince_rag.cli.answers import Places
    from lince_rag.cli.remote import running_server

    server = None if embeddings or options.embeddings_url else running_server(index, options)
    if server and (steps := server.ask(question)):
        # The default engine only quotes.
        _print(steps, Places(), json_=json_, whole=options.model == AnswerOptions.model)
        return
    from lince_rag.index.embeddings import warm_up

    with open_index(index, embeddings, options.embeddings_url, create=False) as opened:
        check_has_documents(opened)
        # The weights are loaded while the packages that the answer needs are imported.
        warm_up(opened.embeddings)
        from lince_rag.chain.packing import only_quotes
        from lince_rag.cli.terminal import print_waiting

        chain = options.make_chain(opened)
        answer = _print(chain.stream(question), Places(opened), json_=json_, whole=only_quotes(chain.llm))
        if not json_:
            print_waiting(opened.ledger.count_waiting(), answer.language)


def _print(steps: Any, places: "Places", *, json_: bool, whole: bool) -> Any:
    """Print an answer as it comes, or as JSON; return it."""
    from lince_rag.cli.answers import print_answer
    from lince_rag.cli.terminal import print_json

    if not json_:
        return print_answer(steps, places, whole=whole)
    *_, answer = steps
    print_json(answer.model_dump(mode="json"))
    return answer


@command()
def search(
    question: Annotated[str, typer.Argument(help="The question, or words to search for.")],
    index: IndexOption = DEFAULT_INDEX,
    embeddings: EmbeddingsOption = None,
    embeddings_url: EmbeddingsUrlOption = None,
    k: SearchCountOption = 5,
    reranker: RerankerOption = None,
    reranker_url: RerankerUrlOption = None,
    source: SourceOption = None,
    filter_: FilterOption = None,
    json_: JsonOption = False,
) -> None:
    """Find the passages that best match a question, best first, without answering it."""
    from lince_rag.cli.answers import Places, print_passages
    from lince_rag.cli.localisation import reader_language
    from lince_rag.cli.terminal import print_json, print_waiting

    if not question.strip():
        raise ConfigurationError(f"{question!r} is not a question.", hint="Give some words to search for.")
    chosen = choose_reranker(reranker, reranker_url)
    with open_index(index, embeddings, embeddings_url, create=False) as opened:
        check_has_documents(opened)
        wanted = opened.make_filter(source or (), filter_ or ())
        found = opened.as_retriever(k=k, reranker=chosen, filter=wanted).invoke(question)
        if json_:
            names = ("source", "title", "page", "heading", "start", "end", *_MEASURES, "also_in")
            rows = [{name: each.metadata.get(name) for name in names} for each in found]
            print_json([{**row, "text": each.page_content} for row, each in zip(rows, found, strict=True)])
        else:
            print_passages(found, Places(opened), reader_language())
            print_waiting(opened.ledger.count_waiting(), reader_language())


command("chat")(chat)
command("shell", hidden=True)(chat)
command("eval")(evaluate_file)
command("questions")(draft_file)
command("serve")(serve)
command("mcp")(mcp)
app.add_typer(keys, name="keys")


@command()
def status(
    index: IndexOption = DEFAULT_INDEX,
    list_: Annotated[bool, typer.Option("--list", help="List all documents.")] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Restore missing chunks, delete stray ones, build damaged stores again."),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Summarise an index and check its files; it works while another process ingests."""
    from dataclasses import asdict

    from lince_rag.cli.localisation import reader_language
    from lince_rag.cli.terminal import print_json, print_sources, print_status
    from lince_rag.index.index import Index

    with Index.open(index, create=False) as opened:
        report = opened.verify(repair=repair)
        # A damaged ledger has no documents to list.
        sources = [] if report.damaged_ledger else opened.sources()
        summary = {} if report.damaged_ledger else opened.summary()
    language = reader_language()
    if json_:
        print_json({**summary, "sources": [asdict(each) for each in sources], "verify": asdict(report)})
    else:
        if list_:
            print_sources(sources, language)
        print_status(summary, report, str(index), language)
    if not report.ok:
        raise typer.Exit(1)


@command()
def models(
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="FOLDER",
            help="Compare the chat template of a folder (or hub id) with those here: which one writes the same"
            " prompts, or where the nearest one differs.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --check: compare with this model only.")] = None,
    models_file: ModelsFileOption = None,
    json_: JsonOption = False,
) -> None:
    """List the models: window, languages, licence, memory by number format, the largest that fits here."""
    from lince_rag.cli.localisation import reader_language
    from lince_rag.cli.terminal import print_json, print_models
    from lince_rag.engines.checkpoints.memory import formats_that_fit, largest_that_fits
    from lince_rag.prompting.registry import get_model, load_registry

    registry = load_registry(models_file)
    language = reader_language()
    if check is not None:
        known = {name: spec for name, spec in registry.items() if spec.parameters}
        same = _check_template(check, known if model is None else {model: get_model(model, registry)}, json_)
        if not same:
            raise typer.Exit(1)
        return
    if model is not None:
        raise ConfigurationError(
            "--model goes with --check FOLDER.", hint="Name the folder, or leave --model out."
        )
    specs = registry.values()
    if not json_:
        print_models(specs, language)
        return
    names = ("name", "repo", "revision", "context_window", "languages", "licence", "parameters", "memory", "note")
    largest = largest_that_fits(specs, language)
    print_json(
        [
            {name: _plain(getattr(spec, name)) for name in names}
            | {"fits": formats_that_fit(spec), "largest": spec is largest}
            for spec in specs
        ]
    )


command("convert")(convert)


@command()
def prompt(
    model: Annotated[str, typer.Argument(help="A model that `lince-rag models` lists.")],
    question: Annotated[str, typer.Option(help="The instruction or question.")],
    context: Annotated[list[str] | None, typer.Option(help="The text of a document; may be repeated.")] = None,
    input_: Annotated[str | None, typer.Option("--input", help="The Entrada of instruction formats.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    models_file: ModelsFileOption = None,
) -> None:
    """Print the exact prompt that a model reads, byte for byte (on a terminal, followed by a line break)."""
    from lince_rag.prompting.registry import get_model, load_registry
    from lince_rag.prompting.templates import ChatTemplate

    turn = {"role": "user", "content": question} | ({} if input_ is None else {"input": input_})
    messages = ([] if system is None else [{"role": "system", "content": system}]) + [turn]
    template = ChatTemplate.from_spec(get_model(model, load_registry(models_file)))
    rendered = template.render(messages, [{"text": text} for text in context or []])
    sys.stdout.write(rendered.text + ("\n" if sys.stdout.isatty() else ""))


@command()
def demo() -> None:
    """Answer six questions about a small set of documents that is part of the package."""
    from lince_rag.cli.demo import run_demo
    from lince_rag.cli.localisation import reader_language

    run_demo(reader_language())


def main() -> None:
    """Run the command line; without ``--debug``, a ``LinceError`` prints one line and exits with status 2."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if not debug:
        # A user can do nothing about deprecations inside the libraries.
        warnings.simplefilter("ignore")
    try:
        status = app(arguments, prog_name="lince-rag", standalone_mode=False)
        sys.stdout.flush()
    except TyperException as error:
        print_usage_error(error)
        raise SystemExit(getattr(error, "exit_code", 1)) from None
    except LinceError as error:
        if debug:
            raise
        print_error(error)
        raise SystemExit(2) from None
    except OSError as error:
        if debug:
            raise
        # What is still to be written would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            place = f" {error.filename}" if error.filename else ""
            print_error(LinceError(f"Could not read or write{place}: {error.strerror or error}."))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED_STATUS) from None
    # What ``typer.Exit`` carries; a command that ends returns nothing.
    raise SystemExit(status or 0)


def _check_template(folder: str, specs: "Mapping[str, ModelSpec]", json_: bool) -> list[str]:
    """Print which models read the prompts that a folder's chat template writes, and return their names."""
    from dataclasses import asdict

    from lince_rag.cli.localisation import reader_language
    from lince_rag.cli.terminal import print_json, print_template_check
    from lince_rag.engines.checkpoints.configuration import published_template
    from lince_rag.prompting.templates import CONVERSATIONS, ChatTemplate

    published = published_template(folder)
    found = {name: ChatTemplate.from_spec(spec).difference(published) for name, spec in specs.items()}
    same = [name for name, difference in found.items() if difference is None]
    order = list(CONVERSATIONS)
    different = {name: each for name, each in found.items() if each is not None}
    nearest = max(
        different,
        key=lambda name: (order.index(different[name].conversation), different[name].position),
        default=None,
    )
    # Where one model or more are the same, the others are of no interest.
    difference = None if same or nearest is None else different[nearest]
    if json_:
        other = {"nearest": nearest, **asdict(difference)} if difference else {}
        print_json({"folder": folder, "same": same, **other})
    else:
        print_template_check(folder, same, nearest or "", difference, reader_language())
    return same


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "items") else value


if __name__ == "__main__":
    main()
