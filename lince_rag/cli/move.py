"""``lince-rag export`` and ``import``: an index in one file, for another machine or version."""

from pathlib import Path
from typing import Annotated

import typer

from lince_rag.cli.options import (
    DEFAULT_INDEX,
    INTERRUPTED_STATUS,
    EmbeddingsOption,
    IndexOption,
    says_interrupted,
)
from lince_rag.errors import ConfigurationError, EmbeddingsMismatchError
from lince_rag.index.locations import index_argument
from lince_rag.text.language import wording


def export_file(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    index: IndexOption = DEFAULT_INDEX,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write an index into one file, for another machine or version: texts, passages, vectors and settings."""
    from lince_rag.cli.localisation import reader_language
    from lince_rag.cli.terminal import print_plain, progress_bar
    from lince_rag.index.index import Index

    language = reader_language()
    try:
        found = Index.open(index, create=False)
    except EmbeddingsMismatchError:
        # An application's own embedder, or one of an earlier version: the vectors are only copied.
        found = Index.open_as_stored(index)
    with found as opened:
        try:
            with progress_bar(wording("exporting", language)) as progress:
                report = opened.export(file, overwrite=force, on_progress=progress)
        except KeyboardInterrupt:
            print_plain(wording("export_interrupted", language, file=file))
            raise typer.Exit(INTERRUPTED_STATUS) from None
    counts = {"documents": report.documents, "chunks": report.chunks, "megabytes": report.bytes / 2**20}
    print_plain(wording("exported", language, file=file, **counts, seconds=report.seconds))
    if report.waiting:
        print_plain(wording("exported_waiting", language, count=report.waiting))


@says_interrupted
def import_file(
    file: Annotated[Path, typer.Argument(help="A file that `lince-rag export` has written.")],
    index: IndexOption = DEFAULT_INDEX,
    embeddings: EmbeddingsOption = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help="Where the documents of a folder are on this machine: /home/ana=/home/luz; may be repeated.",
        ),
    ] = None,
) -> None:
    """Bring an exported index into an index: its documents replace those of the same names, and others stay."""
    from lince_rag.cli.localisation import reader_language
    from lince_rag.cli.terminal import print_plain, progress_bar
    from lince_rag.index.index import Index

    language = reader_language()
    renamed = dict(map(_renaming, rename or ()))
    with progress_bar(wording("importing", language)) as progress:
        report = Index.restore(file, index, embeddings=embeddings, rename=renamed, on_progress=progress)
    counts = {name: getattr(report, name) for name in ("added", "changed", "unchanged")}
    print_plain(wording("imported", language, **counts, seconds=report.seconds))
    if report.waiting:
        print_plain(wording("vectors_to_come", language, count=report.waiting, index=index_argument(index)))


def _renaming(given: str) -> tuple[str, str]:
    old, sign, new = given.partition("=")
    if not (old and sign and new):
        raise ConfigurationError(
            f"--rename {given!r} does not say what becomes what.", hint="Write it as --rename OLD=NEW."
        )
    return old, new
