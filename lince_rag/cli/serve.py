"""``lince-rag serve``, ``mcp`` and ``keys``: indexes for other programs, and who may use them."""

import atexit
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from lince_rag.cli.localisation import LocalisedCommand, LocalisedGroup
from lince_rag.cli.options import (
    DEFAULT_INDEX,
    AnswerOptions,
    IndexOption,
    JsonOption,
    open_index,
    takes_answer_options,
)
from lince_rag.cli.remote import found_by_others, new_token
from lince_rag.index.locations import data_folder

if TYPE_CHECKING:
    from lince_rag.serve.collections import Collection
    from lince_rag.serve.guard import Guard
    from lince_rag.serve.state import ServerState

DEFAULT_PORT: Final = 8790

# What workers read their settings from: they are new processes.
SETTINGS_VARIABLE: Final = "LINCE_SERVE_SETTINGS"

IndexesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--index", metavar="[NAME=]DIR", envvar="LINCE_INDEX", help="Folder of an index; may be repeated."
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for keys, uploads and votes. Default: that of the first index, with .serve added.",
    ),
]


@takes_answer_options
def serve(
    index: IndexesOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine, keys are needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = DEFAULT_PORT,
    public_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:PORT]", help="Name that clients know the server by; may be repeated."),
    ] = None,
    data: DataOption = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Number of processes.")] = 1,
    rate: Annotated[str, typer.Option(help="Requests of a key: 600/minute, 10/second …")] = "600/minute",
    answers: Annotated[int, typer.Option(min=1, help="Questions that a process answers at once.")] = 4,
    seconds: Annotated[float, typer.Option(min=1, help="Longest time of an answer.")] = 120.0,
    upload_megabytes: Annotated[int, typer.Option(min=1, help="Largest upload.")] = 100,
    *,
    options: AnswerOptions,
) -> None:
    """Serve indexes: a page for the browser, an HTTP API (also OpenAI's) and MCP."""
    limits = {"rate": rate, "answers": answers, "seconds": seconds, "upload_bytes": upload_megabytes * 2**20}
    settings: dict[str, Any] = {
        "indexes": index or [str(DEFAULT_INDEX)],
        "options": asdict(options),
        "host": host,
        "port": port,
        "public": list(public_host or ()),
        "data": str(data) if data else None,
        "limits": limits,
    }
    _serve(settings, workers)


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
    from lince_rag.serve.mcp import create_server

    if http is not None:
        settings = {"indexes": [str(index)], "options": asdict(options), "host": "127.0.0.1", "port": http}
        _serve({**settings, "public": [], "data": None, "limits": {}, "with_page": False, "create": False}, 1)
        return
    with _collections([str(index)], options, index, create=False) as (collection,):
        create_server(collection).run("stdio")


def _serve(settings: dict[str, Any], workers: int) -> None:
    from lince_rag.errors import require
    from lince_rag.serve.app import check_exposure, check_port, run

    require("serve", "fastapi", "limits", "mcp", "prometheus_client", "uvicorn")
    state = _state(settings)
    settings |= {"needs_key": check_exposure(settings["host"], state), "token": new_token()}
    where = settings["host"], settings["port"]
    check_port(*where)
    if workers == 1:
        with _application(settings, state) as app, _announced(settings):
            run(app, *where)
        return
    with tempfile.TemporaryDirectory() as numbers:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = numbers
        os.environ[SETTINGS_VARIABLE] = json.dumps(settings)
        # A wrong setting is an error here, and not one of each worker, again and again.
        with _application(settings, state):
            pass
        with _announced(settings):
            run(f"{__name__}:worker", *where, workers)


def worker() -> "Guard":
    """Make the application of one of several workers."""
    settings = json.loads(os.environ[SETTINGS_VARIABLE])
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(_application(settings, _state(settings)))


def _state(settings: dict[str, Any]) -> "ServerState":
    from lince_rag.serve.collections import collection_indexes
    from lince_rag.serve.state import ServerState

    first = next(iter(collection_indexes(settings["indexes"]).values()))
    return ServerState(Path(settings["data"]).expanduser().resolve() if settings["data"] else data_folder(first))


@contextmanager
def _application(settings: dict[str, Any], state: "ServerState") -> Iterator["Guard"]:
    from lince_rag.serve.app import allowed_hosts, create_app
    from lince_rag.serve.guard import Limits

    options = AnswerOptions(**settings["options"])
    create = settings.get("create", True)
    with _collections(settings["indexes"], options, state.folder, create=create) as collections:
        yield create_app(
            collections,
            state,
            hosts=allowed_hosts(settings["host"], settings["port"], settings["public"]),
            needs_key=settings["needs_key"],
            token=settings["token"],
            limits=Limits(**settings["limits"]),
            with_page=settings.get("with_page", True),
            fitting_models=lambda: _fitting_models(options.models_file),
        )


def _fitting_models(models_file: Path | None) -> list[dict[str, Any]]:
    """Return the models that fit into the memory that is free now, the largest first."""
    from lince_rag.engines.checkpoints.memory import formats_that_fit
    from lince_rag.prompting.registry import load_registry

    found = [(spec, formats_that_fit(spec)) for spec in load_registry(models_file).values()]
    found.sort(key=lambda each: -each[0].parameters)
    return [
        {"name": spec.name, "languages": list(spec.languages), "formats": formats}
        for spec, formats in found
        if formats
    ]


@contextmanager
def _collections(
    indexes: Sequence[str], options: AnswerOptions, data: Path, *, create: bool
) -> Iterator[list["Collection"]]:
    """Open indexes, which share one model."""
    from lince_rag.models.chat_model import ChatLince
    from lince_rag.serve.collections import Collection, collection_indexes

    llm = ChatLince(**options.model_fields())
    found = []
    with ExitStack() as stack:
        for name, given in collection_indexes(indexes).items():
            index = stack.enter_context(open_index(given, None, options.embeddings_url, create=create))
            retriever = index.as_retriever(**options.retriever_fields(), filter=options.make_filter(index))
            uploads = data / "uploads" / name
            found.append(Collection(name, index, llm, retriever, uploads, **options.chain_fields()))
        yield found


@contextmanager
def _announced(settings: dict[str, Any]) -> Iterator[None]:
    """Say where the server is: to the reader, and to `lince-rag ask`."""
    from lince_rag.cli.localisation import reader_language
    from lince_rag.cli.terminal import print_plain
    from lince_rag.serve.app import is_loopback
    from lince_rag.serve.collections import collection_indexes
    from lince_rag.text.language import wording

    host, port = settings["host"], settings["port"]
    with_page = settings.get("with_page", True)
    address = f"[{host}]" if ":" in host else host
    key = "serving" if with_page else "serving_mcp"
    print_plain(wording(key, reader_language(), url=f"http://{address}:{port}/"))
    if not (with_page and is_loopback(host)):
        yield
        return
    with found_by_others(
        collection_indexes(settings["indexes"]), host, port, settings["options"], settings["token"]
    ):
        yield


keys = typer.Typer(
    help="Make, list and remove the keys of a server.",
    no_args_is_help=True,
    rich_markup_mode=None,
    cls=LocalisedGroup,
)

KeyName = Annotated[str, typer.Argument(help="Name of the key.")]


@keys.command("add", cls=LocalisedCommand)
def add_key(
    name: KeyName,
    index: IndexesOption = None,
    data: DataOption = None,
    read: Annotated[list[str] | None, typer.Option(metavar="COLLECTION", help="May read it; * for all.")] = None,
    write: Annotated[
        list[str] | None, typer.Option(metavar="COLLECTION", help="May read it and change its documents.")
    ] = None,
) -> None:
    """Make a key and print it: it is shown only now."""
    rights = dict.fromkeys(read or (), "read") | dict.fromkeys(write or (), "write")
    sys.stdout.write(_keys_state(index, data).add_key(name, rights) + "\n")


@keys.command("list", cls=LocalisedCommand)
def list_keys(index: IndexesOption = None, data: DataOption = None, json_: JsonOption = False) -> None:
    """List the keys."""
    from lince_rag.cli.terminal import print_json, print_plain

    found = _keys_state(index, data).list_keys()
    if json_:
        print_json([asdict(each) for each in found])
    for each in [] if json_ else found:
        print_plain(
            f"{each.name}  {each.id}  {', '.join(f'{right} {name}' for name, right in each.rights.items())}"
        )


@keys.command("remove", cls=LocalisedCommand)
def remove_key(name: KeyName, index: IndexesOption = None, data: DataOption = None) -> None:
    """Remove a key; running servers refuse it from now on."""
    _keys_state(index, data).remove_key(name)


def _keys_state(index: Sequence[str] | None, data: Path | None) -> "ServerState":
    return _state({"indexes": index or [str(DEFAULT_INDEX)], "data": str(data) if data else None})
