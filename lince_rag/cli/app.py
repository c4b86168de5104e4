"""The command line: ``lince-rag ingest | ask | chat | eval | questions | mcp | status | models | prompt | demo``.

Each command imports what it needs when it runs, so that ``--help`` answers at once.
"""

import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lince_rag.cli.chat import chat
from lince_rag.cli.evaluate import draft_file, evaluate_file
from lince_rag.cli.options import (
    DEFAULT_INDEX,
    INTERRUPTED_STATUS,
    AnswerOptions,
    EmbeddingsOption,
    FileMemoryOption,
    FilePagesOption,
    FileSecondsOption,
    IndexOption,
    JsonOption,
    ModelsFileOption,
    WorkersOption,
    takes_answer_options,
)
from lince_rag.errors import ConfigurationError, LinceError
from lince_rag.text.language import wording

if TYPE_CHECKING:
    from lince_rag.documents.workers import ReadingLimits
    from lince_rag.index.index import Index
    from lince_rag.text.language import Language

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


@app.command()
def ingest(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Files and folders: txt, md, html, pdf, docx. None: only go on with the vectors."),
    ] = None,
    index: IndexOption = DEFAULT_INDEX,
    embeddings: EmbeddingsOption = None,
    vectors: Annotated[
        Literal["now", "later"],
        typer.Option(help="When to embed what was read; until then it is found by its words only."),
    ] = "now",
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="First build the index again beside the old one, with --embeddings if given."
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List the files that are not read.")] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Also read what links of a folder lead to outside it.")
    ] = False,
    file_seconds: FileSecondsOption = None,
    file_memory: FileMemoryOption = None,
    file_pages: FilePagesOption = None,
    workers: WorkersOption = None,
) -> None:
    """Read documents into an index. Run it again after changes: it reads only what has changed."""
    from lince_rag.cli.terminal import print_plain, reader_language
    from lince_rag.documents.workers import ReadingLimits
    from lince_rag.index.index import Index

    language = reader_language()
    given = {"seconds": file_seconds, "memory_mib": file_memory, "pages": file_pages, "workers": workers}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    limits = ReadingLimits(**chosen)
    if rebuild:
        _rebuild(index, embeddings, language)
        if not paths:
            return
    with Index.open(index, embeddings=embeddings, create=bool(paths)) as opened:
        try:
            failed = paths and _read(
                opened, index, paths, language, limits, follow_links=follow_links, verbose=verbose
            )
            if not paths and not opened.ledger.count_waiting():
                raise ConfigurationError(wording("nothing_waits", language))
            if vectors == "now":
                _embed(opened, index, language)
            elif waiting := opened.ledger.count_waiting():
                print_plain(wording("vectors_to_come", language, count=waiting, index=index))
        except KeyboardInterrupt:
            print_plain(wording("interrupted", language))
            raise typer.Exit(INTERRUPTED_STATUS) from None
    if failed:
        raise typer.Exit(1)


def _rebuild(folder: Path, embeddings: str | None, language: "Language") -> None:
    from lince_rag.cli.terminal import print_plain, progress_bar
    from lince_rag.index.index import Index

    try:
        with progress_bar(wording("embedding", language)) as progress:
            Index.rebuild(folder, embeddings=embeddings, on_vectors=lambda done, total: progress(done, total, ""))
    except KeyboardInterrupt:
        print_plain(wording("interrupted", language))
        raise typer.Exit(INTERRUPTED_STATUS) from None
    print_plain(wording("rebuilt", language, index=folder))


def _read(
    index: "Index",
    folder: Path,
    paths: list[Path],
    language: "Language",
    limits: "ReadingLimits",
    *,
    follow_links: bool,
    verbose: bool,
) -> bool:
    """Read documents, without their vectors, and print the report; return whether some could not be read."""
    from lince_rag.cli.terminal import print_ingest_report, print_skipped, progress_bar

    with progress_bar(wording("ingesting", language)) as progress:
        report = index.ingest(
            paths, on_progress=progress, limits=limits, follow_links=follow_links, vectors="later"
        )
    found = report.added or report.changed or report.unchanged or report.removed or report.failed
    if not found:
        print_skipped(report.skipped, language, verbose=verbose)
        raise ConfigurationError(wording("no_documents", language, paths=", ".join(map(str, paths))))
    print_ingest_report(report, str(folder), language, verbose=verbose)
    return bool(report.failed)


def _embed(index: "Index", folder: Path, language: "Language") -> None:
    """Go on with the vectors that are still to come, and say what remains."""
    from lince_rag.cli.terminal import print_plain, progress_bar

    waiting = index.ledger.count_waiting()
    if not waiting:
        return
    started = time.monotonic()
    print_plain(wording("embedding_begins", language, count=waiting))
    try:
        with progress_bar(wording("embedding", language)) as progress:
            index.add_vectors(lambda done, total: progress(done, total, ""))
    except KeyboardInterrupt:
        remaining = index.ledger.count_waiting()
        print_plain(wording("vectors_to_come", language, count=remaining, index=folder))
        raise
    if remaining := index.ledger.count_waiting():
        # Another process has the lock.
        print_plain(wording("vectors_elsewhere", language, count=remaining))
    else:
        print_plain(wording("embedded", language, count=waiting, seconds=time.monotonic() - started))


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
    from lince_rag.chain.packing import only_quotes
    from lince_rag.cli.terminal import print_answer, print_json, print_waiting
    from lince_rag.index.index import Index

    with Index.open(index, embeddings=embeddings, create=False) as opened:
        chain = options.make_chain(opened)
        if json_:
            print_json(chain.invoke(question).model_dump(mode="json"))
        else:
            answer = print_answer(chain.stream(question), whole=only_quotes(chain.llm))
            print_waiting(opened.ledger.count_waiting(), answer.language)


app.command("chat")(chat)
app.command("eval")(evaluate_file)
app.command("questions")(draft_file)


@app.command()
@takes_answer_options
def mcp(
    index: IndexOption = DEFAULT_INDEX,
    http: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=1, max=65535, help="Serve streamable HTTP on this port of 127.0.0.1."),
    ] = None,
    *,
    options: AnswerOptions,
) -> None:
    """Serve an index to MCP clients, over standard input and output, or over HTTP."""
    from lince_rag.index.index import Index
    from lince_rag.serve.mcp import create_server

    with Index.open(index, create=False) as opened:
        server = create_server(opened, options.make_chain(opened))
        if http is None:
            server.run("stdio")
        else:
            # Loopback only: there is no authentication. The server itself refuses requests from foreign web pages.
            server.run("streamable-http", host="127.0.0.1", port=http)


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
def models(models_file: ModelsFileOption = None, json_: JsonOption = False) -> None:
    """List the models: window, languages, licence, parameters, memory by number format."""
    from lince_rag.cli.terminal import print_json, print_models, reader_language
    from lince_rag.prompting.registry import load_registry

    specs = load_registry(models_file).values()
    if not json_:
        print_models(specs, reader_language())
        return
    names = ("name", "repo", "revision", "context_window", "languages", "licence", "parameters", "memory", "note")
    print_json([{name: _plain(getattr(spec, name)) for name in names} for spec in specs])


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


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "items") else value


if __name__ == "__main__":
    main()
