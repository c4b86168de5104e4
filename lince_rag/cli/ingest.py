"""``lince-rag ingest`` and ``remove``: what is in an index, kept in step with folders."""

import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from lince_rag.cli.options import (
    DEFAULT_INDEX,
    EmbeddingsOption,
    EmbeddingsUrlOption,
    FileMemoryOption,
    FilePagesOption,
    FileSecondsOption,
    IndexOption,
    WorkersOption,
    open_index,
    says_interrupted,
    use_address,
)
from lince_rag.errors import ConfigurationError
from lince_rag.index.locations import find_location, index_argument
from lince_rag.text.language import wording

if TYPE_CHECKING:
    from langchain_core.documents import Document

    from lince_rag.index.index import Index
    from lince_rag.text.language import Language

# The argument that stands for standard input.
STANDARD_INPUT: Final = "-"


@says_interrupted
def ingest(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="Files and folders, also s3://… and gs://…; - reads a text from standard input. None: only go on "
            "with the vectors.",
        ),
    ] = None,
    index: IndexOption = DEFAULT_INDEX,
    embeddings: EmbeddingsOption = None,
    embeddings_url: EmbeddingsUrlOption = None,
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
    watch: Annotated[
        bool, typer.Option("--watch", help="Then keep the index in step with the folders until Ctrl-C.")
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Read only these files of folders (as in .gitignore); may be repeated."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave these files or folders out; may be repeated. A .linceignore file in a folder lasts.",
        ),
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(metavar="DATE", help="Read only files of folders changed since: 2026-01-31.")
    ] = None,
    ocr: Annotated[
        bool, typer.Option("--ocr", help="Read the text of scanned pages and of pictures, with Tesseract.")
    ] = False,
    password: Annotated[
        str | None, typer.Option(envvar="LINCE_PASSWORD", help="What opens PDFs protected with a password.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the text from standard input.")] = "stdin",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List the files that are not read.")] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Also read what links of a folder lead to outside it.")
    ] = False,
    file_seconds: FileSecondsOption = None,
    file_memory: FileMemoryOption = None,
    file_pages: FilePagesOption = None,
    workers: WorkersOption = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Who reads and embeds: this machine, or a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The Ray cluster; without it, that in RAY_ADDRESS, or else Ray is started on this machine.",
        ),
    ] = None,
) -> None:
    """Read documents into an index. Run it again after changes: it reads only what has changed."""
    from lince_rag.cli.localisation import reader_language
    from lince_rag.cli.terminal import print_plain
    from lince_rag.documents.workers import ReadingLimits
    from lince_rag.index.opening import record_address

    language = reader_language()
    given = {"seconds": file_seconds, "memory_mib": file_memory, "pages": file_pages, "workers": workers}
    chosen: dict[str, Any] = {option: value for option, value in given.items() if value is not None}
    options: dict[str, Any] = {
        "limits": ReadingLimits(**chosen),
        "include": include or (),
        "exclude": exclude or (),
        "since": since,
        "follow_links": follow_links,
        "ocr": ocr,
        "password": password,
        "engine": engine,
        "address": address,
    }
    if rebuild:
        use_address(embeddings_url)
        _rebuild(index, embeddings, language)
        if not paths:
            return
    _check_paths(paths or [], index, language)
    with open_index(index, embeddings, embeddings_url, create=bool(paths)) as opened:
        if embeddings_url is not None:
            record_address(opened.ledger, opened.embeddings)
        # A cluster embeds what it reads; here, documents can be asked about before.
        read_options = {**options, "vectors": vectors if engine == "ray" else "later"}
        failed = paths and _read(opened, index, _items(paths, name), language, read_options, verbose=verbose)
        if not paths and not watch and not opened.ledger.count_waiting():
            print_plain(wording("nothing_waits", language))
        if vectors == "now":
            _embed(opened, index, language)
        elif waiting := opened.ledger.count_waiting():
            print_plain(wording("vectors_to_come", language, count=waiting, index=index_argument(index)))
        if watch:
            _watch(opened, index, paths or [], language, options)
    if failed:
        raise typer.Exit(1)


def _check_paths(paths: list[str], index: Path, language: "Language") -> None:
    """Refuse paths of which none exists, before a new index is made for them; in an old one they may be gone."""
    from lince_rag.documents.remote import is_remote
    from lince_rag.documents.selection import local_path

    location = find_location(index)
    if paths and isinstance(location, Path) and not location.exists():
        missing = [each for each in paths if each != STANDARD_INPUT and not is_remote(each)]
        missing = [each for each in missing if not local_path(each).exists()]
        if len(missing) == len(paths):
            raise ConfigurationError(wording("no_such_paths", language, paths=", ".join(missing)))


def _items(paths: list[str], name: str) -> "list[str | Document]":
    """Return the paths, with the text of standard input in the place of "-"."""
    from langchain_core.documents import Document

    from lince_rag.documents.readers.blocks import Unreadable
    from lince_rag.documents.readers.text import read_text

    items: list[str | Document] = []
    for path in paths:
        if path != STANDARD_INPUT:
            items.append(path)
            continue
        try:
            blocks = read_text(sys.stdin.buffer.read()).blocks
        except Unreadable as error:
            raise ConfigurationError(f"The text from standard input cannot be read: {error}.") from None
        items.append(Document("".join(block.text for block in blocks), metadata={"source": name, "title": name}))
    return items


def _rebuild(folder: Path, embeddings: str | None, language: "Language") -> None:
    from lince_rag.cli.terminal import print_plain, progress_bar
    from lince_rag.index.index import Index

    with progress_bar(wording("embedding", language)) as progress:
        Index.rebuild(folder, embeddings=embeddings, on_vectors=lambda done, total: progress(done, total, ""))
    print_plain(wording("rebuilt", language, index=index_argument(folder)))


def _read(
    index: "Index",
    folder: Path,
    items: "list[str | Document]",
    language: "Language",
    options: dict[str, Any],
    *,
    verbose: bool,
) -> bool:
    """Read documents and print the report; return whether some could not be read."""
    from lince_rag.cli.terminal import print_ingest_report, print_plain, print_skipped, progress_bar, short_path
    from lince_rag.documents.selection import is_inside

    with progress_bar(wording("ingesting", language)) as progress:
        report = index.ingest(items, on_progress=progress, **options)
    found = report.added or report.changed or report.unchanged or report.removed or report.failed
    if not found:
        print_skipped(report.skipped, language, verbose=verbose)
        named = ", ".join(item for item in items if isinstance(item, str))
        raise ConfigurationError(wording("no_documents", language, paths=named))
    print_ingest_report(report, str(folder), language, verbose=verbose)
    known = index.ledger.content_hashes() if report.failed else {}
    for problem in report.failed:
        # A folder that is not there may be on a disk that is not mounted.
        kept = sum(is_inside(source, problem.source) for source in known)
        if kept:
            path, at = short_path(problem.source), index_argument(folder)
            print_plain(wording("kept_of_folder", language, path=path, count=kept, index=at))
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
        print_plain(wording("vectors_to_come", language, count=remaining, index=index_argument(folder)))
        raise
    if remaining := index.ledger.count_waiting():
        # Another process has the lock.
        print_plain(wording("vectors_elsewhere", language, count=remaining))
    else:
        print_plain(wording("embedded", language, count=waiting, seconds=time.monotonic() - started))


def _watch(index: "Index", folder: Path, paths: list[str], language: "Language", options: dict[str, Any]) -> None:
    """Ingest again whenever files change, and say what changed."""
    from lince_rag.cli.localisation import translate_reason, visible
    from lince_rag.cli.terminal import print_plain, short_path

    watched = [path for path in paths if path != STANDARD_INPUT]
    if not watched:
        raise ConfigurationError(wording("nothing_to_watch", language))
    print_plain(wording("watching", language, paths=", ".join(watched)))
    for report in index.watch(watched, **options):
        for kind in ("added", "changed", "removed"):
            for source in getattr(report, kind):
                print_plain(wording(f"watch_{kind}", language, source=short_path(source)))
        for problem in report.failed:
            print_plain(f"{short_path(problem.source)}: {visible(translate_reason(problem.reason, language))}")


def remove(
    sources: Annotated[
        list[str], typer.Argument(help="Documents: their names or paths, or the ends of their paths.")
    ],
    index: IndexOption = DEFAULT_INDEX,
    purge: Annotated[
        bool,
        typer.Option(
            help="Also delete every trace from the files of the index, which writes them anew. With --no-purge, "
            "what was deleted can be recovered from them until the next purge."
        ),
    ] = True,
) -> None:
    """Remove documents from an index; a file that stays in its folder comes back when that is read again."""
    from lince_rag.cli.localisation import reader_language
    from lince_rag.cli.terminal import print_plain, short_path
    from lince_rag.index.index import Index

    language = reader_language()
    with Index.open(index, create=False) as opened:
        names = [opened.find_source(source) for source in sources]
        for name in dict.fromkeys(names):
            chunks = opened.delete(name, purge=False)
            print_plain(wording("removed", language, source=short_path(name), chunks=chunks))
        if purge:
            report = opened.purge()
            print_plain(wording("purged", language, seconds=report.seconds, megabytes=report.freed / 2**20))
