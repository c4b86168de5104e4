"""The command line: ``lince-rag ingest | ask | chat | eval | mcp | status | models | prompt | demo``.

Everything heavy is imported inside the command that needs it, so that ``--help`` is immediate.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lince_rag.cli.chat import chat
from lince_rag.cli.evaluate import evaluate_file
from lince_rag.cli.mcp import serve
from lince_rag.cli.options import (
    DEFAULT_INDEX,
    INTERRUPTED_STATUS,
    BasePathOption,
    ConfidenceOption,
    DeviceOption,
    DtypeOption,
    EmbeddingsOption,
    IndexOption,
    JsonOption,
    LanguageOption,
    ModelOption,
    ModelPathOption,
    ModelsFileOption,
    QuantizationOption,
    RerankerOption,
    UnsupportedOption,
    make_chain,
)
from lince_rag.errors import ConfigurationError, LinceError
from lince_rag.text.language import LANGUAGES, Language
from lince_rag.text.wording import wording

if TYPE_CHECKING:
    from lince_rag.index.index import Index

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
    """Take the options of all commands; ``main`` has acted on them already."""


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders: txt, md, html, pdf, docx.")],
    index: IndexOption = DEFAULT_INDEX,
    embeddings: EmbeddingsOption = None,
) -> None:
    """Read documents into an index. Run it again after changes: only what changed is read."""
    from lince_rag.cli.terminal import ingest_progress, print_ingest_report, print_plain, reader_language
    from lince_rag.index.index import Index

    language = reader_language()
    with Index.open(index, embeddings=embeddings) as opened:
        try:
            with ingest_progress(language) as progress:
                report = opened.ingest(list(paths), on_progress=progress)
        except KeyboardInterrupt:
            print_plain(wording("interrupted", language))
            raise typer.Exit(INTERRUPTED_STATUS) from None
    if not (report.added or report.changed or report.unchanged or report.removed or report.failed):
        given = ", ".join(str(path) for path in paths)
        raise ConfigurationError(wording("no_documents", language, paths=given))
    print_ingest_report(report, str(index), language)
    if report.failed:
        raise typer.Exit(1)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question, in Spanish, Portuguese or English.")],
    index: IndexOption = DEFAULT_INDEX,
    model: ModelOption = "extractive",
    model_path: ModelPathOption = None,
    base_model_path: BasePathOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of answer at most.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Passages to read.")] = 5,
    reranker: RerankerOption = None,
    on_unsupported: UnsupportedOption = "flag",
    minimum_confidence: ConfidenceOption = 0.5,
    language: LanguageOption = None,
    embeddings: EmbeddingsOption = None,
    models_file: ModelsFileOption = None,
    json_: JsonOption = False,
) -> None:
    """Answer a question from the documents of an index, with sources, or say that they do not hold it."""
    from lince_rag.cli.terminal import print_answer

    with _open(index, embeddings) as opened:
        chain = make_chain(
            opened,
            k=k,
            reranker=reranker,
            language=_language(language),
            on_unsupported=on_unsupported,
            minimum_confidence=minimum_confidence,
            model=model,
            models_file=models_file,
            model_path=model_path,
            base_model_path=base_model_path,
            device=device,
            dtype=dtype,
            quantization=quantization,
            max_tokens=max_tokens,
            seed=seed,
        )
        if json_:
            _print_json(chain.invoke(question).model_dump(mode="json"))
        else:
            print_answer(chain.stream(question))


app.command("chat")(chat)
app.command("eval")(evaluate_file)
app.command("mcp")(serve)


@app.command()
def status(
    index: IndexOption = DEFAULT_INDEX,
    repair: Annotated[bool, typer.Option("--repair", help="Put right what is missing or stray.")] = False,
    json_: JsonOption = False,
) -> None:
    """List the documents of an index and check that it is whole."""
    from dataclasses import asdict

    from lince_rag.cli.terminal import print_sources, reader_language
    from lince_rag.index.embeddings import embeddings_name

    with _open(index, None) as opened:
        sources, report = opened.sources(), opened.verify(repair=repair)
        name = embeddings_name(opened.embeddings)
    if json_:
        _print_json(
            {"embeddings": name, "sources": [asdict(source) for source in sources], "verify": asdict(report)}
        )
    else:
        print_sources(sources, report, name, str(index), reader_language())
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def models(models_file: ModelsFileOption = None, json_: JsonOption = False) -> None:
    """List the models: window, languages, licence, parameters, memory by number format."""
    from lince_rag.cli.terminal import print_models, reader_language
    from lince_rag.prompting.registry import load_registry

    specs = load_registry(models_file).values()
    if not json_:
        print_models(specs, reader_language())
        return
    names = ("name", "repo", "revision", "context_window", "languages", "licence", "parameters", "memory", "note")
    _print_json([{name: _plain(getattr(spec, name)) for name in names} for spec in specs])


@app.command()
def prompt(
    model: Annotated[str, typer.Argument(help="A model of `lince-rag models`.")],
    question: Annotated[str, typer.Option(help="The instruction or question.")],
    context: Annotated[list[str] | None, typer.Option(help="A document's text; may be repeated.")] = None,
    input_: Annotated[str | None, typer.Option("--input", help="The Entrada of instruction formats.")] = None,
    system: Annotated[str | None, typer.Option(help="A system text.")] = None,
    models_file: ModelsFileOption = None,
) -> None:
    """Print the exact prompt that a model reads, to the byte (a terminal gets one line break after it)."""
    from lince_rag.prompting.registry import get_model, load_registry
    from lince_rag.prompting.templates import ChatTemplate

    turn = {"role": "user", "content": question} | ({} if input_ is None else {"input": input_})
    messages = ([] if system is None else [{"role": "system", "content": system}]) + [turn]
    template = ChatTemplate.from_spec(get_model(model, load_registry(models_file)))
    rendered = template.render(messages, [{"text": text} for text in context or []])
    sys.stdout.write(rendered.text + ("\n" if sys.stdout.isatty() else ""))


@app.command()
def demo() -> None:
    """Answer six questions about a small set of documents that comes with the package."""
    from lince_rag.cli.demo import run_demo
    from lince_rag.cli.terminal import reader_language

    run_demo(reader_language())


def main() -> None:
    """Run the command line: our errors are one line and exit status 2, unless ``--debug`` is given."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if not debug:
        # Deprecations inside the libraries are nothing that a user can act on.
        warnings.simplefilter("ignore")
    try:
        app(arguments, prog_name="lince-rag")
    except LinceError as error:
        if debug:
            raise
        sys.stderr.write(f"lince-rag: {error}\n".replace("\n", " ").rstrip() + "\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED_STATUS) from None


def _open(index: Path, embeddings: str | None) -> "Index":
    from lince_rag.index.index import Index

    return Index.open(index, embeddings=embeddings, create=False)


def _language(code: str | None) -> Language | None:
    if code is None:
        return None
    for language in LANGUAGES:
        if code == language:
            return language
    raise ConfigurationError(f"--language {code} is not one of {', '.join(LANGUAGES)}.")


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "items") else value


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


if __name__ == "__main__":
    main()
