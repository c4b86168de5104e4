"""Requests to a model server: pooled, repeated while nothing was answered, and with one kind of error.

All requests run in an event loop of their own, in a thread of this process. So callers with and without a loop
share the same connections, and no request occupies a thread. ``create_engine`` imports this module, and httpx with
it, when a server is first used.
"""

import asyncio
import email.utils
import json
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import aclosing
from functools import cache
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from lince_rag.engines.server.options import DEFAULT_MAX_RETRIES, DEFAULT_TIMEOUT, ServerOptions
from lince_rag.errors import ContextWindowError, EngineError

# Seconds: to open a connection; the first and the longest pause before a retry; the longest that a server may ask.
_CONNECT_TIMEOUT: Final = 10.0
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 8.0
_LONGEST_ASKED_PAUSE: Final = 60.0

# Seconds that an unused connection is kept; llama-server closes it after five.
_KEEPALIVE_SECONDS: Final = 3.0

# The most characters of a server's own message that an error repeats.
_MESSAGE_LENGTH: Final = 240

_DATA: Final = b"data:"
_OBJECT: Final = b"{"
_END: Final = b"[DONE]"

# What servers say of a request with too many or too long texts.
_TOO_LARGE: Final = re.compile(
    r"too (large|long|many|big)|maximum|exceed|less than \d+ tokens|context (length|size|window)", re.IGNORECASE
)

_Result = TypeVar("_Result")


class StatusError(EngineError):
    """A server answered with an error.

    Args:
        message: What went wrong.
        hint: How to fix it.
        status: The HTTP status.
        pause: The seconds that the server asks to wait, if it does.
    """

    def __init__(self, message: str, *, hint: str, status: int, pause: float | None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.pause = pause

    @property
    def is_too_large(self) -> bool:
        """Whether the server refuses the size of a request, so that smaller ones may be answered."""
        if self.status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            return True
        if self.status == httpx.codes.INTERNAL_SERVER_ERROR:
            # llama-server fails at a text that is longer than its batch.
            return "too large to process" in self.message
        refusals = (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)
        return self.status in refusals and bool(_TOO_LARGE.search(self.message))


class ServerClient:
    """Sends requests to one server; may be used from any thread and any event loop.

    Args:
        options: The server.
        is_local: Whether it is in this process; then no proxy is asked.
    """

    def __init__(self, options: ServerOptions, *, is_local: bool = False) -> None:
        self.base_url = options.base_url
        self._key_names = options.key_names
        self._key = options.api_key.get_secret_value() if options.api_key else ""
        self._attempts = 1 + (DEFAULT_MAX_RETRIES if options.max_retries is None else options.max_retries)
        self._timeout = DEFAULT_TIMEOUT if options.timeout is None else options.timeout
        self._trusts_environment = not is_local
        self._clients: dict[int, httpx.AsyncClient] = {}

    @property
    def _client(self) -> httpx.AsyncClient:
        """The connections of this process; a fork opens its own."""
        process = os.getpid()
        if process not in self._clients:
            self._clients[process] = self._connect()
        return self._clients[process]

    def _connect(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(self._timeout, connect=min(self._timeout, _CONNECT_TIMEOUT), pool=None),
            trust_env=self._trusts_environment,
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=100, keepalive_expiry=_KEEPALIVE_SECONDS
            ),
        )

    async def get(self, path: str) -> Any:
        """Return the JSON object that a path answers."""
        return await self._with_retries(self._send, "GET", path, None, dict)

    async def post(self, path: str, payload: dict[str, Any], kind: type = dict) -> Any:
        """Return the JSON object, or the list, that a path answers to a payload."""
        return await self._with_retries(self._send, "POST", path, payload, kind)

    async def events(
        self, path: str, payload: dict[str, Any], *, streamed: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of an answer, or its only reply; closing the generator closes the request."""
        if not streamed:
            yield await self.post(path, payload)
            return
        response, events, first = await self._with_retries(self._open, path, payload)
        try:
            if first is not None:
                yield first
            async for event in events:
                yield event
        except httpx.HTTPError as error:
            raise EngineError(
                f"The server {self.base_url} broke off in the middle of an answer: {_reason(error)}.",
                hint="Check that it still runs, and ask again.",
            ) from error
        finally:
            await response.aclose()

    async def _with_retries(self, send: Any, *args: Any) -> Any:
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._attempts),
            wait=_pause,
            retry=retry_if_exception(_may_retry),
            reraise=True,
        )
        try:
            return await retrying(send, *args)
        except httpx.TimeoutException as error:
            raise EngineError(
                f"The server {self.base_url} did not answer within {self._timeout:g} seconds.",
                hint="Set timeout higher, stream the answer, or look whether the server is overloaded.",
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineError(
                f"The server {self.base_url} cannot be reached: {_reason(error)}.",
                hint="Check base_url, and that the server runs.",
            ) from error

    async def _send(self, method: str, path: str, payload: dict[str, Any] | None, kind: type) -> Any:
        response = await self._client.request(method, path, json=payload)
        self._check(response, path)
        return self._read_event(response.content, kind)

    async def _open(self, path: str, payload: dict[str, Any]) -> tuple[httpx.Response, Any, dict[str, Any] | None]:
        """Send a request and wait for the first event of its answer."""
        response = await self._client.send(self._client.build_request("POST", path, json=payload), stream=True)
        try:
            if response.status_code != httpx.codes.OK:
                await response.aread()
            self._check(response, path)
            events = self._read_events(response)
            return response, events, await anext(events, None)
        except BaseException:
            await response.aclose()
            raise

    async def _read_events(self, response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the JSON objects of a stream of server-sent events, or of one with an object in each line."""
        # httpx's own iterator over lines also ends them at characters like U+2028, which JSON may contain.
        rest = b""
        async with aclosing(response.aiter_bytes()) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.startswith((_DATA, _OBJECT)) and (data := line.removeprefix(_DATA).strip()) != _END:
                        yield self._read_event(data)

    def _read_event(self, data: bytes, kind: type = dict) -> Any:
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, (kind, dict)):
            raise EngineError(
                f"The server {self.base_url} sent {self._shown(data.decode(errors='replace'))!r}, which is not the"
                " JSON of an answer.",
                hint="Check that base_url is the address of a model server.",
            )
        if isinstance(event, dict) and "error" in event:
            raise EngineError(
                f"The server {self.base_url} failed: {self._shown(_message(event))}.", hint="See the server's log."
            )
        return event

    def _check(self, response: httpx.Response, path: str) -> None:
        """Raise the error that a status stands for."""
        status = response.status_code
        if status < httpx.codes.MULTIPLE_CHOICES:
            return
        if response.has_redirect_location:
            # Nothing is followed: the key and the texts are meant for this host only.
            raise StatusError(
                f"{self.base_url}{path} answers {status}: look at {self._shown(response.headers['location'])}.",
                hint="If that is the server that is meant, give its address as base_url.",
                status=status,
                pause=None,
            )
        try:
            message = _message(response.json())
        except ValueError:
            message = response.text or response.reason_phrase
        message = self._shown(message)
        if status == httpx.codes.BAD_REQUEST and "context" in message:
            raise ContextWindowError(
                f"The server {self.base_url} refused the prompt: {message}.",
                hint="Give fewer or shorter documents, tools or turns.",
            )
        raise StatusError(
            f"{self.base_url}{path} answers {status}: {message}.",
            hint=_HINTS.get(status, "See the server's log.").format(key_names=self._key_names),
            status=status,
            pause=_asked_pause(response.headers.get("retry-after", "")),
        )

    def _shown(self, message: str) -> str:
        """Shorten a server's message, and take out the key if it repeats it."""
        message = message.replace(self._key, "…") if self._key else message
        return " ".join(message.split())[:_MESSAGE_LENGTH].rstrip(".")


_HINTS: Final = {
    401: "Give the server's key as api_key ({key_names}).",
    403: "The key in api_key may not use this model.",
    404: "Check base_url, and that the server runs the model.",
    429: "The server is overloaded: ask less often, or set max_retries higher.",
}


def _message(body: Any) -> str:
    """Return the message in a body like ``{"error": {"message": …}}``, or the whole body."""
    found = body.get("error", body) if isinstance(body, dict) else body
    found = found.get("message", found) if isinstance(found, dict) else found
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__


def _may_retry(error: BaseException) -> bool:
    if isinstance(error, StatusError):
        failed = error.status >= httpx.codes.INTERNAL_SERVER_ERROR and error.status != httpx.codes.NOT_IMPLEMENTED
        return error.status == httpx.codes.TOO_MANY_REQUESTS or (failed and not error.is_too_large)
    return isinstance(error, httpx.TransportError)


def _pause(state: RetryCallState) -> float:
    """Return the seconds before the next attempt: what the server asks for, else a random time that doubles."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, httpx.RemoteProtocolError) and state.attempt_number == 1:
        # Most likely the server closed an unused connection at the moment when it was used again.
        return 0.0
    asked = error.pause if isinstance(error, StatusError) else None
    return wait_random_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE)(state) if asked is None else asked


def _asked_pause(header: str) -> float | None:
    """Read a Retry-After header: seconds, or a date."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _LONGEST_ASKED_PAUSE)


# ------------------------------------------------------------------------------------------------- the event loop


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """Start the loop of all requests, in a thread that ends with the process."""
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name="lince-requests", daemon=True).start()
    return loop


if hasattr(os, "register_at_fork"):
    # A fork has no such thread.
    os.register_at_fork(after_in_child=_event_loop.cache_clear)


def start(coroutine: Coroutine[Any, Any, _Result]) -> "Future[_Result]":
    """Run a coroutine in the loop of all requests; cancelling its future cancels it there."""
    return asyncio.run_coroutine_threadsafe(coroutine, _event_loop())


def wait_for(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine in the loop of all requests and wait for its result."""
    future = start(coroutine)
    try:
        return future.result()
    except BaseException:
        # Ctrl-C while waiting.
        future.cancel()
        raise


def iterate(steps: AsyncGenerator[_Result, None]) -> Generator[_Result, None, None]:
    """Iterate over steps that are generated in the loop of all requests; closing this closes them."""
    received: SimpleQueue[_Result | None] = SimpleQueue()
    generated = start(_pass_on(steps, received.put))
    try:
        while (step := received.get()) is not None:
            yield step
        generated.result()
    finally:
        generated.cancel()


async def aiterate(steps: AsyncGenerator[_Result, None]) -> AsyncGenerator[_Result, None]:
    """Do the same in another event loop."""
    received: asyncio.Queue[_Result | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    generated = start(_pass_on(steps, lambda step: loop.call_soon_threadsafe(received.put_nowait, step)))
    try:
        while (step := await received.get()) is not None:
            yield step
        await asyncio.wrap_future(generated)
    finally:
        generated.cancel()


async def _pass_on(steps: AsyncGenerator[_Result, None], put: Callable[[_Result | None], Any]) -> None:
    """Put each step as soon as it is there, and then ``None``, also before an error; a reader need not ask for it.

    A thread that asks for every step and waits for it takes as long as a fast model for a token.
    """
    try:
        async with aclosing(steps):
            async for step in steps:
                put(step)
    except Exception:
        put(None)
        raise
    put(None)
