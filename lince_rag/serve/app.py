"""One ASGI application: the HTTP API, MCP and the page, behind the guard."""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import tomllib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lince_rag.chain.packing import only_quotes
from lince_rag.errors import ConfigurationError, LinceError, require
from lince_rag.serve import chat_completions, documents, pictures, questions
from lince_rag.serve.collections import Collection
from lince_rag.serve.guard import GoneError, Guard, Limits, RefusedError
from lince_rag.serve.jobs import Ingestion
from lince_rag.serve.mcp import create_server
from lince_rag.serve.metrics import Metrics
from lince_rag.serve.server import Server, key_of, refusal
from lince_rag.serve.state import ServerState

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

# A server that is told to end has ten seconds: some for the answers that are under way, some for the ingestion.
ANSWER_SECONDS: Final = 6
INGESTION_SECONDS: Final = 3.0

# What loads all that a question needs.
TRIAL_QUESTION: Final = "¿Qué dice el documento?"

PAGE_FOLDER: Final = Path(__file__).with_name("page")

logger = logging.getLogger(__name__)


def create_app(
    collections: Sequence[Collection],
    state: ServerState,
    *,
    hosts: frozenset[str],
    needs_key: bool = False,
    token: str = "",
    limits: Limits | None = None,
    with_page: bool = True,
    fitting_models: Callable[[], list[dict[str, Any]]] = list,
) -> Guard:
    """Make the application.

    Args:
        collections: What it answers from, with different names.
        state: Its keys, jobs and votes.
        hosts: The values of ``Host`` that it answers, in small letters, with their port.
        needs_key: Whether it answers only keys; if not, it does so as soon as there is one.
        token: What a program of the same user gives instead of a key; empty if there is none.
        limits: Its limits.
        with_page: Whether it has the API and the page, or MCP only.
        fitting_models: What names the models that fit into the free memory of this machine.

    Returns:
        The ASGI application.

    Raises:
        ConfigurationError: A limit cannot be understood.
        MissingExtraError: The extra ``serve`` is not installed.
    """
    require("serve", "fastapi", "limits", "mcp", "prometheus_client", "multipart")
    limits, metrics = limits or Limits(), Metrics()
    named = {each.name: each for each in collections}
    server = Server(named, state, Ingestion(named, state), limits, metrics)
    app = _create_fastapi(server)
    if with_page:
        for each in (questions, documents, pictures, chat_completions):
            app.include_router(each.create_router(server))
        _add_page(app)
        _add_machine(app, server, fitting_models)
    _add_health(app, server)
    return Guard(app, state, hosts, limits, metrics, needs_key=needs_key, token=token)


def _create_fastapi(server: Server) -> "FastAPI":
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response

    stack = AsyncExitStack()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with stack:
            for manager in managers:
                await stack.enter_async_context(manager.run())
            server.ingestion.start()
            threading.Thread(target=_warm_up, args=[server], name="warm-up", daemon=True).start()
            yield
            await asyncio.to_thread(server.ingestion.stop, INGESTION_SECONDS)

    app = FastAPI(
        title="lince-rag",
        version=version("lince-rag"),
        description="Cited answers about one's own documents, in Spanish and Portuguese.",
        openapi_url="/v1/openapi.json",
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    managers = _add_mcp(app, server)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return _response(request, error)

    @app.exception_handler(GoneError)
    async def gone(request: Request, error: GoneError) -> Response:
        # Nobody reads it. The number is nginx's, for the log.
        return Response(status_code=499)

    @app.exception_handler(LinceError)
    async def failed(request: Request, error: LinceError) -> Response:
        logger.warning("The request %s: %s", request.state.request_id, error)
        return _response(request, refusal(error, next(iter(server.collections.values()))))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        said = [f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors()]
        return _response(request, RefusedError(422, "invalid", "; ".join(said)[:2_000]))

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> Response:
        response = _response(request, RefusedError(error.status_code, "http", str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    return app


def _response(request: "Request", refused: RefusedError) -> "Response":
    from starlette.responses import JSONResponse

    return JSONResponse(refused.body(request.state.request_id), refused.status, refused.headers)


def _add_mcp(app: "FastAPI", server: Server) -> list[Any]:
    """Add an MCP server for each collection, below ``/mcp/NAME``; the first is also ``/mcp``."""
    from mcp.server.transport_security import TransportSecuritySettings
    from starlette.routing import Route

    managers = []
    for number, collection in enumerate(server.collections.values()):
        mcp = create_server(collection, server.places)
        inner = mcp.streamable_http_app(
            stateless_http=True,
            max_request_body_size=server.limits.body_bytes,
            # The guard has checked Host and Origin.
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        managers.append(mcp.session_manager)
        (endpoint,) = [each.endpoint for each in inner.routes if isinstance(each, Route)]
        for path in [f"/mcp/{collection.name}", *(["/mcp"] if number == 0 else [])]:
            app.router.routes.append(Route(path, _Readable(endpoint, collection.name)))
    return managers


class _Readable:
    """An ASGI application for keys that may read a collection."""

    def __init__(self, app: Any, collection: str) -> None:
        self._app = app
        self._collection = collection

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not scope["state"]["key"].may("read", self._collection):
            raise RefusedError(404, "no_collection", "There is no such collection.")
        await self._app(scope, receive, send)


def _add_health(app: "FastAPI", server: Server) -> None:
    from starlette.responses import JSONResponse, Response

    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """Say that the server is there."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"])
    async def readyz() -> Response:
        """Say whether questions are answered without loading anything first (200), or not yet (503)."""
        return JSONResponse({"status": server.readiness}, 200 if server.readiness == "ready" else 503)

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """Return the metrics, for Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: "FastAPI") -> None:
    """Add the page: its files, and its texts in all languages."""
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.staticfiles import StaticFiles

    # A browser asks each time whether a file has changed, so that the files of two versions never mix.
    always_asked = {"cache-control": "no-cache"}
    texts = tomllib.loads((files("lince_rag.prompts") / "page.toml").read_text(encoding="utf-8"))

    class Files(StaticFiles):
        def file_response(self, *args: Any, **options: Any) -> Response:
            response = super().file_response(*args, **options)
            response.headers.update(always_asked)
            return response

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE_FOLDER / "index.html", headers=always_asked)

    @app.get("/page/wording.json", include_in_schema=False)
    async def wording() -> Response:
        return JSONResponse(texts, headers=always_asked)

    app.mount("/page", Files(directory=PAGE_FOLDER), name="page")


def _add_machine(app: "FastAPI", server: Server, fitting_models: Callable[[], list[dict[str, Any]]]) -> None:
    from starlette.requests import Request

    @app.get("/v1/machine", tags=["health"])
    async def machine(request: Request) -> dict[str, list[dict[str, Any]]]:
        """Name the models that fit into the free memory, the largest first, with their number formats.

        Only for keys that may write a collection.
        """
        key = key_of(request)
        if not any(key.may("write", name) for name in server.collections):
            raise RefusedError(403, "read_only", "This key may only read.")
        return {"models": await asyncio.to_thread(fitting_models)}


def _warm_up(server: Server) -> None:
    """Search every collection and run the model, so that the first question finds everything loaded."""
    try:
        for collection in server.collections.values():
            collection.chain.retriever.invoke(TRIAL_QUESTION)
        # All collections have the same model.
        llm = next(iter(server.collections.values())).chain.llm
        if not only_quotes(llm):
            llm.invoke(TRIAL_QUESTION, max_tokens=1)
    except LinceError as error:
        logger.error("Not everything can be loaded: %s", error)
        server.readiness = "failed"
    else:
        server.readiness = "ready"


def is_loopback(host: str) -> bool:
    """Return whether an address is of this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str, port: int, public: Sequence[str]) -> frozenset[str]:
    """Return the values of ``Host`` that a server answers: those of this machine, and the public ones."""
    own = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
    if not is_loopback(host) and host not in ("0.0.0.0", "::"):
        own.add(f"{host}:{port}")
    return frozenset({*own, *(each.lower() for each in public)})


def check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on, before anything is loaded for it.

    Raises:
        ConfigurationError: Another program listens there, or the address is not one of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            if os.name == "posix":
                # As the server does: a port that was used a moment ago is free.
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.",
            hint="Choose another port with --port, or end the program that uses this one.",
        ) from None


def run(app: Any, host: str, port: int, workers: int = 1, **options: Any) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        app: The application, or, for several workers, where its factory is: ``"module:function"``.
        host: The address to listen on.
        port: The port.
        workers: The number of processes.
        **options: Further options of uvicorn.
    """
    import uvicorn

    # uvicorn raises the signal again when it has ended: then the caller must still put away what it has open.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        app,
        host=host,
        port=port,
        workers=workers,
        factory=isinstance(app, str),
        log_config=log_settings(for_people=sys.stderr.isatty()),
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=ANSWER_SECONDS,
        # A client that sends its headers slowly holds a connection, and nothing else.
        limit_concurrency=1_000,
        h11_max_incomplete_event_size=32 * 1024,
        **options,
    )


def log_settings(*, for_people: bool) -> dict[str, Any]:
    """Return how to log: a JSON object a line, or for people only what goes wrong, in plain text."""
    json_lines = {"()": "lince_rag.serve.metrics.JsonFormatter"}
    levels = {"lince_rag": "WARNING" if for_people else "INFO", "uvicorn": "WARNING", "mcp": "WARNING"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(levelname)s: %(message)s"} if for_people else json_lines},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {
            name: {"level": level, "handlers": ["stderr"], "propagate": False} for name, level in levels.items()
        },
    }


def check_exposure(host: str, state: ServerState) -> bool:
    """Return whether keys are needed.

    Raises:
        ConfigurationError: Other machines can reach the address, and there is no key.
    """
    if is_loopback(host):
        return False
    if not state.has_keys():
        raise ConfigurationError(
            f"Other machines can reach {host}, and there is no key.",
            hint="Make one first: lince-rag keys add NAME --read COLLECTION.",
        )
    return True
