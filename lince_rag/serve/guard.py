"""What every request passes: host, origin, key, rate and size are checked before anything else sees it."""

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from lince_rag.errors import ConfigurationError
from lince_rag.serve.metrics import Metrics
from lince_rag.serve.state import ANYONE, OWNER, Key, ServerState

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# What needs no key: whether the server is there, and the page, which holds nothing of anybody's.
OPEN_PATHS: Final = frozenset({"/", "/healthz", "/readyz", "/favicon.ico", "/v1/openapi.json"})
OPEN_FOLDER: Final = "/page/"

UPLOAD_PATH: Final = "/v1/documents"

# Wrong keys of one address in a minute; a right key is always accepted.
WRONG_KEYS: Final = "20/minute"

# The page loads nothing but its own files, and documents are shown as text, never as pages.
SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

logger = logging.getLogger(__name__)


class RefusedError(Exception):
    """A request that is not carried out.

    Args:
        status: The status of HTTP.
        code: What programs know the reason by.
        message: What people are told.
        retry_after: The seconds after which it may be tried again.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = {} if retry_after is None else {"retry-after": str(max(1, round(retry_after)))}
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the JSON of the response, in the form that clients of OpenAI's API read."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "code": self.code, "request_id": request_id}}


@dataclass(frozen=True)
class Limits:
    """What one request, one client and all of them together may take.

    Attributes:
        body_bytes: The longest body, but for uploads.
        upload_bytes: The longest upload, all its files together.
        body_seconds: How long a client may take to send a body, or the next part of an upload.
        answers: Questions that are answered at once.
        waiting: Questions that may wait for their turn.
        seconds: How long an answer may take, waiting included.
        rate: Requests of one key (without keys, of one address): ``"600/minute"``.
    """

    body_bytes: int = 256 * 1024
    upload_bytes: int = 100 * 2**20
    body_seconds: float = 30.0
    answers: int = 4
    waiting: int = 32
    seconds: float = 120.0
    rate: str = "600/minute"


class Places:
    """The questions that are answered at once, and those that wait for their turn."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(limits.answers)
        self._waiting = 0

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a place and hold it; whatever happens in it must end in time.

        Raises:
            RefusedError: Too many wait (503), or it took too long (503).
        """
        if self._free.locked() and self._waiting >= self._limits.waiting:
            raise RefusedError(503, "busy", "Too many questions are waiting. Try again later.", retry_after=5)
        try:
            async with asyncio.timeout(self._limits.seconds):
                self._waiting += 1
                try:
                    await self._free.acquire()
                finally:
                    self._waiting -= 1
                try:
                    yield
                finally:
                    self._free.release()
        except TimeoutError:
            message = f"The answer took more than {self._limits.seconds:g} seconds."
            raise RefusedError(503, "timeout", message, retry_after=5) from None


class Guard:
    """The ASGI application around the server's.

    Args:
        app: The server's application.
        state: What has the keys.
        hosts: The values of ``Host`` that are answered, in small letters, with their port.
        limits: The limits.
        metrics: What counts the requests.
        needs_key: Whether only keys are answered; if not, keys are needed as soon as there is one.
        token: What a program of the same user gives instead of a key; empty if there is none.

    Raises:
        ConfigurationError: The rate cannot be understood.
    """

    def __init__(
        self,
        app: App,
        state: ServerState,
        hosts: frozenset[str],
        limits: Limits,
        metrics: Metrics,
        *,
        needs_key: bool = False,
        token: str = "",
    ) -> None:
        from limits import parse
        from limits.aio.storage import MemoryStorage
        from limits.aio.strategies import MovingWindowRateLimiter

        self._app = app
        self._state = state
        self._hosts = hosts
        self._needs_key = needs_key
        self._token = token
        self._limits = limits
        self._metrics = metrics
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        try:
            self._rate = parse(limits.rate)
        except ValueError as error:
            raise ConfigurationError(
                f"rate={limits.rate!r} cannot be understood.", hint="Write it like this: 600/minute."
            ) from error
        self._wrong_keys = parse(WRONG_KEYS)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Carry out one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        request = _Request(scope, send)
        try:
            request.key = scope["state"]["key"] = await self._check(scope, request.headers)
            scope["state"]["request_id"] = request.id
            await self._app(scope, await self._bounded(scope, request.headers, receive), request.send)
        except RefusedError as refused:
            await request.refuse(refused)
        except GoneError:
            request.status = request.status or 499
        except Exception:
            logger.exception("The request %s failed.", request.id)
            await request.refuse(RefusedError(500, "internal", f"The server failed (request {request.id})."))
        finally:
            self._metrics.count(scope["method"], route_of(scope), request.status, request.seconds)
            request.log(scope)

    async def _check(self, scope: MutableMapping[str, Any], headers: Mapping[str, list[str]]) -> Key:
        """Refuse what comes from elsewhere, or too often; return who asks."""
        hosts = headers.get("host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            raise RefusedError(421, "wrong_host", "This server is not known under the name in Host.")
        origins = headers.get("origin", [])
        if origins and (len(origins) > 1 or origins[0].lower().partition("://")[2] not in self._hosts):
            raise RefusedError(403, "wrong_origin", "Pages of other servers may not use this one.")
        lengths = headers.get("content-length", [])
        if len(lengths) > 1 or (lengths and "transfer-encoding" in headers):
            raise RefusedError(400, "wrong_length", "The length of the body is not clear.")
        if is_open(scope["path"]):
            return ANYONE
        address = (scope.get("client") or ("",))[0]
        key = await self._key(headers, address)
        # Without keys, whoever is at one address is one client.
        client = address if key is ANYONE else key.id
        if not await self._limiter.hit(self._rate, client):
            stats = await self._limiter.get_window_stats(self._rate, client)
            raise RefusedError(429, "rate", "Too many requests.", retry_after=stats.reset_time - time.time())
        return key

    async def _key(self, headers: Mapping[str, list[str]], address: str) -> Key:
        given = headers.get("authorization", [])
        kind, _, value = (given[0] if len(given) == 1 else "").partition(" ")
        if self._token and hmac.compare_digest(value.encode(), self._token.encode()):
            return OWNER
        if kind.lower() == "bearer" and (key := await asyncio.to_thread(self._state.find_key, value.strip())):
            return key
        # Some clients must send a key; a server without keys is not made safer by refusing it.
        if not self._needs_key and not await asyncio.to_thread(self._state.has_keys):
            return ANYONE
        if given and not await self._limiter.hit(self._wrong_keys, f"wrong {address}"):
            raise RefusedError(429, "wrong_keys", "Too many wrong keys.", retry_after=60)
        raise RefusedError(401, "wrong_key", "A key is needed: Authorization: Bearer lince_…")

    async def _bounded(
        self, scope: MutableMapping[str, Any], headers: Mapping[str, list[str]], receive: Receive
    ) -> Receive:
        """Return what the application gets the body from: all of it at once, or, of an upload, bounded parts."""
        is_upload = scope["method"] == "POST" and scope["path"] == UPLOAD_PATH
        limit = self._limits.upload_bytes if is_upload else self._limits.body_bytes
        declared = headers.get("content-length", ["0"])[0]
        if not declared.isdecimal() or int(declared) > limit:
            raise RefusedError(413, "too_large", f"The body may have at most {limit} bytes.")
        read = 0

        async def part() -> Message:
            nonlocal read
            try:
                message = await asyncio.wait_for(receive(), self._limits.body_seconds)
            except TimeoutError:
                raise RefusedError(408, "slow", "The body did not come in time.") from None
            if message["type"] == "http.disconnect":
                raise GoneError
            read += len(message.get("body", b""))
            if read > limit:
                raise RefusedError(413, "too_large", f"The body may have at most {limit} bytes.")
            return message

        if is_upload:
            return _then(part, receive)
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                more = True
                while more:
                    message = await part()
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RefusedError(408, "slow", "The body did not come in time.") from None
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return replay


class GoneError(Exception):
    """The client has closed the connection before it had sent everything."""


def _then(part: Receive, receive: Receive) -> Receive:
    """Return the parts of a body and, after the last, what else happens."""
    ended = False

    async def following() -> Message:
        nonlocal ended
        if ended:
            return await receive()
        message = await part()
        ended = not message.get("more_body", False)
        return message

    return following


class _Request:
    """One request: its id, its headers, and what became of it."""

    def __init__(self, scope: MutableMapping[str, Any], send: Send) -> None:
        self.id = uuid.uuid4().hex
        self.key: Key | None = None
        self.status = 0
        self.started = time.monotonic()
        self.headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            self.headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        scope.setdefault("state", {})
        self._send = send
        self._is_private = not is_open(scope["path"])

    async def send(self, message: Message) -> None:
        """Send a message with the security headers and the id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {**SECURITY_HEADERS, "x-request-id": self.id}
            if self._is_private:
                own["cache-control"] = "no-store"
            known = {name.lower() for name, _ in message.get("headers", [])}
            added = [(name.encode(), value.encode()) for name, value in own.items() if name.encode() not in known]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await self._send(message)

    async def refuse(self, refused: RefusedError) -> None:
        """Say why it is not carried out, if nothing has been said yet."""
        if self.status:
            return
        body = json.dumps(refused.body(self.id)).encode()
        # What is left of the body is not read.
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        pairs = [(name.encode(), value.encode()) for name, value in {**headers, **refused.headers}.items()]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": pairs})
        await self._send({"type": "http.response.body", "body": body})

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def log(self, scope: Mapping[str, Any]) -> None:
        """Log what became of it; neither questions nor the addresses of documents."""
        said = {
            "request": self.id,
            "method": scope["method"],
            "route": route_of(scope),
            "status": self.status,
            "milliseconds": round(1000 * self.seconds, 1),
            "key": self.key.id if self.key else None,
        }
        logger.info("request", extra={"fields": said})


def is_open(path: str) -> bool:
    """Return whether a path needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def route_of(scope: Mapping[str, Any]) -> str:
    """Return the route that a request took, without what clients put into it."""
    route = scope.get("route")
    return str(getattr(route, "path", "other"))
