"""The command line: ``lince-rag ingest | remove | ask | chat | eval | questions | serve | mcp | status …``.

Each command imports what it needs when it runs, so that ``--help`` answers at once.
"""

import sys
import warnings
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lince_rag.cli.chat import chat
from lince_rag.cli.convert import convert
from lince_rag.cli.evaluate import draft_file, evaluate_file
from lince_rag.cli.ingest import ingest, remove
from lince_rag.cli.options import (
    DEFAULT_INDEX,
    INTERRUPTED_STATUS,
    AnswerOptions,
    EmbeddingsOption,
    IndexOption,
    JsonOption,
    ModelsFileOption,
    takes_answer_options,
)
from lince_rag.cli.serve import keys, mcp, serve
from lince_rag.errors import ConfigurationError, LinceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lince_rag.prompting.registry import ModelSpec

app = typer.Typer(
    help="Cited answers about your own documents, in Spanish and Portuguese, on your own machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Document the options of all commands in ``--help``; ``main`` has already read them."""


app.command("ingest")(ingest)
app.command("remove")(remove)


@app.command()
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
    from lince_rag.cli.remote import running_server

    server = None if embeddings else running_server(index, options)
    if server and (steps := server.ask(question)):
        _print(steps, json_=json_)
        return
    from lince_rag.index.embeddings import warm_up
    from lince_rag.index.index import Index

    with Index.open(index, embeddings=embeddings, create=False) as opened:
        # The weights are loaded while the packages that the answer needs are imported.
        warm_up(opened.embeddings)
        from lince_rag.chain.packing import only_quotes
        from lince_rag.cli.terminal import print_waiting

        chain = options.make_chain(opened)
        answer = _print(chain.stream(question), json_=json_, whole=only_quotes(chain.llm))
        if not json_:
            print_waiting(opened.ledger.count_waiting(), answer.language)


def _print(steps: Any, *, json_: bool, whole: bool = False) -> Any:
    """Print an answer as it comes, or as JSON; return it."""
    from lince_rag.cli.terminal import print_answer, print_json

    if not json_:
        return print_answer(steps, whole=whole)
    *_, answer = steps
    print_json(answer.model_dump(mode="json"))
    return answer


app.command("chat")(chat)
app.command("eval")(evaluate_file)
app.command("questions")(draft_file)


app.command("serve")(serve)
app.command("mcp")(mcp)
app.add_typer(keys, name="keys")


@app.command()
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

    from lince_rag.cli.terminal import print_json, print_sources, print_status, reader_language
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


@app.command()
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
    from lince_rag.cli.terminal import print_json, print_models, reader_language
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


app.command("convert")(convert)


@app.command()
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


@app.command()
def demo() -> None:
    """Answer six questions about a small set of documents that is part of the package."""
    from lince_rag.cli.demo import run_demo
    from lince_rag.cli.terminal import reader_language

    run_demo(reader_language())


def main() -> None:
    """Run the command line; without ``--debug``, a ``LinceError`` prints one line and exits with status 2."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if not debug:
        # A user can do nothing about deprecations inside the libraries.
        warnings.simplefilter("ignore")
    try:
        app(arguments, prog_name="lince-rag")
    except LinceError as error:
        if debug:
            raise
        from lince_rag.cli.terminal import visible

        sys.stderr.write(visible(f"lince-rag: {error}".replace("\n", " ").rstrip()) + "\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED_STATUS) from None


def _check_template(folder: str, specs: "Mapping[str, ModelSpec]", json_: bool) -> list[str]:
    """Print which models read the prompts that a folder's chat template writes, and return their names."""
    from dataclasses import asdict

    from lince_rag.cli.terminal import print_json, print_template_check, reader_language
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
