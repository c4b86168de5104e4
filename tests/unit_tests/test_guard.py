"""What the guard of a server refuses: the application behind it never sees these requests."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.documents import Document

from lince_rag import ChatLince, Index
from lince_rag.errors import ConfigurationError
from lince_rag.serve.app import allowed_hosts, check_exposure, create_app, is_loopback
from lince_rag.serve.collections import Collection
from lince_rag.serve.guard import SECURITY_HEADERS, Guard, Limits, Places, RefusedError
from lince_rag.serve.state import ServerState

HOST = "127.0.0.1:8790"
HOSTS = allowed_hosts("127.0.0.1", 8790, ["docs.example.org"])
RENT = "La renta mensual es de 815 euros. El contrato vence el 30 de junio de 2027."
XSS = "<script>alert(1)</script><img src=x onerror=alert(2)>"
BODY = {"question": "¿Cuánto es la renta mensual?", "collection": "papeles"}

Headers = list[tuple[bytes, bytes]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard")
    with Index.open(folder / "index") as index:
        index.ingest(
            [
                Document(RENT, metadata={"source": "/home/ana/secreto/contrato.txt"}),
                Document(
                    f"Acta con {XSS} dentro.", metadata={"source": "/home/ana/secreto/acta.txt", "title": XSS}
                ),
            ]
        )
    return folder


@pytest.fixture(scope="module")
def collection(folder: Path) -> Iterator[Collection]:
    with Index.open(folder / "index", create=False) as index:
        yield Collection("papeles", index, ChatLince(), index.as_retriever(), folder / "uploads")


@pytest.fixture
def state(tmp_path: Path) -> ServerState:
    return ServerState(tmp_path / "data")


def guarded(collection: Collection, state: ServerState, **options: Any) -> Guard:
    return create_app([collection], state, hosts=HOSTS, **options)


async def call(
    app: Guard, method: str, path: str, headers: Headers | None = None, parts: Any = (b"",), query: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """Send a request with exactly these headers, and a body in these parts; None ends it before its end."""
    sent, given = list[dict[str, Any]](), iter(parts)
    rest = len(parts)

    async def receive() -> dict[str, Any]:
        nonlocal rest
        if rest == 0:
            # The client waits for the response.
            await asyncio.Event().wait()
        part = next(given)
        rest -= 1
        if part is None:
            return {"type": "http.disconnect"}
        if callable(part):
            await part()
            part = b""
        return {"type": "http.request", "body": part, "more_body": rest > 0}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode("utf-8", "surrogateescape"), "query_string": query, "root_path": "",
        "headers": [(b"host", HOST.encode())] if headers is None else headers, "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 8790),
    }  # fmt: skip
    await app(scope, receive, send)
    if not sent:
        return 0, {}, b""
    start = sent[0]
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


def with_headers(*pairs: tuple[str, str]) -> Headers:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]


OWN = ("host", HOST)
JSON = ("content-type", "application/json")
QUESTION = json.dumps(BODY).encode()


def form(name: str, content: bytes = b"hola", field: str = "files") -> tuple[Headers, list[bytes]]:
    body = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
    return with_headers(OWN, ("content-type", "multipart/form-data; boundary=x")), [
        body + content + b"\r\n--x--\r\n"
    ]


WRONG_HOSTS = [
    "127.0.0.1:8790.evil.com", "evil.com", "127.0.0.1", "127.0.0.1:8791", "localhost", "localhost:8790.evil.com",
    "127.0.0.1:8790@evil.com", "127.0.0.1:8790, evil.com", "", "[::1]", "docs.example.org.evil.com",
    "0.0.0.0:8790", "127.0.0.1:8790/", "xdocs.example.org", " 127.0.0.1:8790x",
]  # fmt: skip
WRONG_ORIGINS = [
    "http://evil.com", "https://evil.com", "null", "http://127.0.0.1:8790.evil.com", "http://127.0.0.1", "file://",
    "http://localhost:8791", "http://docs.example.org.evil.com", "chrome-extension://x", "127.0.0.1:8790",
    "http://127.0.0.1:8790, http://evil.com",
]  # fmt: skip
TRAVERSALS = [
    "/page/../state.sqlite", "/page/../../pyproject.toml", "/page/%2e%2e/app.py", "/page/..%2f..%2fapp.py",
    "/page//etc/passwd", "/page/....//app.py", "/page/..\\app.py", "/v1/documents/../../etc/passwd/text",
    "/v1/documents/%2fhome%2fana%2fsecreto%2fcontrato.txt/text", "//evil.com/v1/ask", "/v1/jobs/..%2f..",
    "/.git/config", "/v1/../healthz/../metrics/x", "/mcp/../v1",
]  # fmt: skip
WRONG_BODIES = {
    "no body": b"", "no JSON": b"{", "list": b"[]", "null": b"null", "nothing": b"{}",
    "spaces": b'{"question": "  "}',
    "number": b'{"question": 3}', "unknown key": b'{"question": "x", "qestion": "y"}',
    "long": json.dumps({"question": "x" * 4_001}).encode(), "k": b'{"question": "x", "k": 1000000}',
    "k below": b'{"question": "x", "k": 0}',
    "role": b'{"question": "x", "history": [{"role": "root", "content": ""}]}',
    "turns": json.dumps({"question": "x", "history": [{"role": "user", "content": "x"}] * 41}).encode(),
    "deep": b'{"question": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "NaN": b'{"question": "x", "k": NaN}', "not UTF-8": b'{"question": "\xff\xfe"}',
    "document": b'{"question": "x", "documents": ["../../etc/passwd"]}',
    "documents": json.dumps({"question": "x", "documents": ["x"] * 201}).encode(),
    "collection": b'{"question": "x", "collection": "../otra"}',
    "surrogate": b'{"question": "\\ud800", "collection": "x"}',
}  # fmt: skip
WRONG_KEYS = [
    "Bearer", "Bearer ", "Bearer x", "Bearer lince__", "Basic YTpi", "bearer lince_0_0", "Bearer null",
    "lince_a_b", "Bearer ' OR 1=1 --", "Bearer \xff\xfe", "Bearer " + "x" * 8_000,
]  # fmt: skip


@pytest.mark.parametrize("host", WRONG_HOSTS)
async def test_another_host(collection: Collection, state: ServerState, host: str) -> None:
    app = guarded(collection, state)
    for path in ("/", "/healthz", "/v1/collections"):
        status, _, body = await call(app, "GET", path, with_headers(("host", host)))
        assert (status, json.loads(body)["error"]["code"]) == (421, "wrong_host")


async def test_no_host_and_two_hosts(collection: Collection, state: ServerState) -> None:
    app = guarded(collection, state)
    for headers in (with_headers(), with_headers(OWN, OWN), with_headers(OWN, ("host", "evil.com"))):
        assert (await call(app, "GET", "/v1/collections", headers))[0] == 421


@pytest.mark.parametrize("host", sorted(HOSTS))
async def test_own_hosts_and_origins(collection: Collection, state: ServerState, host: str) -> None:
    app = guarded(collection, state)
    for scheme in ("http", "https"):
        headers = with_headers(("host", host.upper()), ("origin", f"{scheme}://{host}"))
        assert (await call(app, "GET", "/v1/collections", headers))[0] == 200


@pytest.mark.parametrize("origin", WRONG_ORIGINS)
async def test_another_origin(collection: Collection, state: ServerState, origin: str) -> None:
    headers = with_headers(OWN, JSON, ("origin", origin))
    status, found, body = await call(guarded(collection, state), "POST", "/v1/ask", headers, [QUESTION])
    assert (status, json.loads(body)["error"]["code"]) == (403, "wrong_origin")
    assert not [name for name in found if name.startswith("access-control")]


@pytest.mark.parametrize("path", TRAVERSALS)
async def test_other_paths(collection: Collection, state: ServerState, path: str) -> None:
    status, _, body = await call(guarded(collection, state), "GET", path)
    assert status in (404, 405)
    assert b"SQLite" not in body
    assert b"import" not in body
    # A request id has digits, too.
    assert b"815 euros" not in body


@pytest.mark.parametrize("name", WRONG_BODIES)
async def test_wrong_bodies(collection: Collection, state: ServerState, name: str) -> None:
    app = guarded(collection, state)
    for path in ("/v1/ask", "/v1/search"):
        if path == "/v1/search" and name in ("role", "turns"):
            continue
        status, _, body = await call(app, "POST", path, with_headers(OWN, JSON), [WRONG_BODIES[name]])
        assert status in (400, 404, 422), body
        assert "/home/" not in body.decode()
        assert len(body) < 3_000


@pytest.mark.parametrize("value", WRONG_KEYS)
async def test_wrong_keys(collection: Collection, state: ServerState, value: str) -> None:
    state.add_key("ana", {"*": "write"})
    app = guarded(collection, state)
    for path in ("/v1/collections", "/metrics", "/mcp", "/mcp/papeles", "/v1/documents"):
        for headers in (with_headers(OWN, ("authorization", value)), with_headers(OWN)):
            status, found, body = await call(app, "GET", path, headers)
            assert status in (401, 429)
            assert json.loads(body)["error"]["code"] in ("wrong_key", "wrong_keys")
        assert found["www-authenticate"] == "Bearer"


async def test_guessing_keys_is_slow_and_right_keys_are_still_taken(
    collection: Collection, state: ServerState
) -> None:
    token = state.add_key("ana", {"papeles": "read"})
    app = guarded(collection, state)
    guesses = [with_headers(OWN, ("authorization", f"Bearer lince_{number:012x}_x")) for number in range(40)]
    statuses = [(await call(app, "GET", "/v1/collections", each))[0] for each in guesses]
    assert statuses == [401] * 20 + [429] * 20
    right = with_headers(OWN, ("authorization", f"Bearer {token}"))
    assert (await call(app, "GET", "/v1/collections", right))[0] == 200


async def test_rights_of_keys(collection: Collection, state: ServerState) -> None:
    app = guarded(collection, state)
    tokens = {right: state.add_key(right, {"papeles": right}) for right in ("read", "write")}
    other = state.add_key("other", {"otra": "write"})

    async def status(token: str, method: str, path: str, body: bytes = b"") -> int:
        headers = with_headers(OWN, JSON, ("authorization", f"Bearer {token}"))
        return (await call(app, method, path, headers, [body]))[0]

    listed = json.loads(
        (
            await call(
                app, "GET", "/v1/documents", with_headers(OWN, ("authorization", f"Bearer {tokens['read']}"))
            )
        )[2]
    )
    document = listed["documents"][0]["id"]
    assert await status(tokens["read"], "POST", "/v1/ask", QUESTION) == 200
    changes = [("DELETE", f"/v1/documents/{document}"), ("POST", f"/v1/documents/{document}/read")]
    changes += [("POST", "/v1/documents"), ("GET", "/v1/votes")]
    for method, path in changes:
        assert await status(tokens["read"], method, path) == 403
    reads = [("GET", f"/v1/documents/{document}/text"), ("GET", "/v1/documents"), ("GET", "/v1/jobs"), *changes]
    for method, path in reads:
        assert await status(other, method, path) == 404
    assert await status(other, "POST", "/v1/ask", QUESTION) == 404
    assert await status(other, "POST", "/mcp/papeles", b"{}") == 404
    assert await status(other, "GET", "/v1/models/papeles") == 404
    # The file is not there: it may be read again, but cannot.
    assert await status(tokens["write"], "POST", f"/v1/documents/{document}/read") == 409


async def test_bodies_are_bounded(collection: Collection, state: ServerState) -> None:
    limits = Limits(body_bytes=1_000, upload_bytes=5_000, body_seconds=0.2)
    app = guarded(collection, state, limits=limits)
    declared = with_headers(OWN, JSON, ("content-length", "1001"))
    assert (await call(app, "POST", "/v1/ask", declared, [b"x"]))[0] == 413
    for path in ("/v1/ask", "/v1/chat/completions", "/mcp", "/v1/votes"):
        chunked = with_headers(OWN, JSON, ("transfer-encoding", "chunked"))
        assert (await call(app, "POST", path, chunked, [b"x" * 600] * 2))[0] == 413
    headers, parts = form("a.txt", b"x" * 6_000)
    status, _, body = await call(app, "POST", "/v1/documents", headers, parts)
    assert (status, json.loads(body)["error"]["code"]) == (413, "too_large")
    assert not list(collection.uploads.glob("*")) if collection.uploads.exists() else True


@pytest.mark.parametrize(
    "lengths", [["5", "6"], ["5", "5"], ["-1"], ["abc"], ["1e3"], ["+5"], ["5, 5"], ["99999999999999999999"]]
)
async def test_unclear_lengths(collection: Collection, state: ServerState, lengths: list[str]) -> None:
    headers = with_headers(OWN, JSON, *(("content-length", each) for each in lengths))
    assert (await call(guarded(collection, state), "POST", "/v1/ask", headers, [b"{}"]))[0] in (400, 413)


async def test_a_length_beside_chunks(collection: Collection, state: ServerState) -> None:
    headers = with_headers(OWN, JSON, ("content-length", "5"), ("transfer-encoding", "chunked"))
    assert (await call(guarded(collection, state), "POST", "/v1/ask", headers, [b"{}"]))[0] == 400


async def test_slow_bodies(collection: Collection, state: ServerState) -> None:
    app = guarded(collection, state, limits=Limits(body_seconds=0.1))

    async def wait() -> None:
        await asyncio.sleep(0.06)

    headers, (body,) = form("a.txt")
    stalled = [body[:20], lambda: asyncio.sleep(9), b""]
    assert (await call(app, "POST", "/v1/ask", with_headers(OWN, JSON), [b"{", *[wait] * 9]))[0] == 408
    assert (await call(app, "POST", "/v1/documents", headers, stalled))[0] == 408


async def test_a_client_that_goes_away(
    collection: Collection, state: ServerState, caplog: pytest.LogCaptureFixture
) -> None:
    app = guarded(collection, state)
    headers, (body,) = form("a.txt")
    for path, given in (
        ("/v1/ask", with_headers(OWN, JSON)),
        ("/mcp", with_headers(OWN, JSON)),
        ("/v1/documents", headers),
    ):
        status, _, _ = await call(app, "POST", path, given, [body[:20], None])
        assert status in (0, 499)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("a.exe", 415), ("a.pdf.exe", 415), ("a", 415), ("../../a.so", 415), (".txt", 415), ("a.txt/", 415),
        ("", 415), ("a.txt%00.exe", 415),
    ],
)  # fmt: skip
async def test_files_that_are_not_read(collection: Collection, state: ServerState, name: str, status: int) -> None:
    headers, parts = form(name)
    assert (await call(guarded(collection, state), "POST", "/v1/documents", headers, parts))[0] == status
    assert state.unfinished() == 0


async def test_wrong_forms(collection: Collection, state: ServerState) -> None:
    app = guarded(collection, state)
    whole, (body,) = form("a.txt")
    no_boundary = with_headers(OWN, ("content-type", "multipart/form-data"))
    many = b"".join(form("a.txt")[1][0][: -len(b"--x--\r\n")] for _ in range(101)) + b"--x--\r\n"
    for headers, part in [
        (no_boundary, body), (with_headers(OWN, JSON), b"{}"), (whole, b""), (whole, b"--x\r\n"), (whole, many),
        (form("a.txt", field="other")[0], form("a.txt", field="other")[1][0]),
    ]:  # fmt: skip
        assert (await call(app, "POST", "/v1/documents", headers, [part]))[0] in (400, 422)
    assert state.unfinished() == 0


async def test_an_upload_stays_in_its_folder(collection: Collection, state: ServerState) -> None:
    headers, parts = form("../../../fuera.txt")
    status, _, body = await call(guarded(collection, state), "POST", "/v1/documents", headers, parts)
    assert status == 202
    job = state.job(json.loads(body)["id"])
    assert job
    assert list(job.files) == [str(collection.uploads / "fuera.txt")]
    assert "/" not in body.decode()
    (collection.uploads / "fuera.txt").unlink()


async def test_too_many_requests(collection: Collection, state: ServerState) -> None:
    app = guarded(collection, state, limits=Limits(rate="5/minute"))
    statuses = [(await call(app, "GET", "/v1/collections"))[0] for _ in range(8)]
    assert statuses == [200] * 5 + [429] * 3
    _, headers, _ = await call(app, "GET", "/v1/collections")
    assert 1 <= int(headers["retry-after"]) <= 60
    # Whether the server is there may always be asked.
    assert (await call(app, "GET", "/healthz"))[0] == 200
    with pytest.raises(ConfigurationError, match="600/minute"):
        guarded(collection, state, limits=Limits(rate="many"))


async def test_too_many_questions_and_too_long_answers() -> None:
    places = Places(Limits(answers=1, waiting=1, seconds=0.3))

    async def hold(seconds: float) -> str:
        try:
            async with places.take():
                await asyncio.sleep(seconds)
        except RefusedError as refused:
            return refused.code
        return "answered"

    assert await asyncio.gather(hold(0.1), hold(0.1), hold(0.1)) == ["answered", "answered", "busy"]
    assert await asyncio.gather(hold(9), hold(0)) == ["timeout", "timeout"]
    assert await hold(0) == "answered"


async def test_every_response_has_the_security_headers(collection: Collection, state: ServerState) -> None:
    app = guarded(collection, state)
    for path, headers in (
        ("/healthz", None),
        ("/v1/collections", None),
        ("/nothing", None),
        ("/", with_headers()),
    ):
        _, found, _ = await call(app, "GET", path, headers)
        assert found.items() >= SECURITY_HEADERS.items()
        assert "server" not in found
    _, found, _ = await call(app, "GET", "/v1/collections")
    assert found["cache-control"] == "no-store"


async def test_nothing_of_the_machine_is_told(collection: Collection, state: ServerState) -> None:
    app = guarded(collection, state)
    listed = (await call(app, "GET", "/v1/documents"))[2].decode()
    assert {each["name"] for each in json.loads(listed)["documents"]} == {"contrato.txt", "acta.txt"}
    answers = [listed]
    for path, body in (("/v1/ask", QUESTION), ("/v1/search", QUESTION), ("/v1/collections", b"")):
        answers.append(
            (await call(app, "POST" if body else "GET", path, with_headers(OWN, JSON), [body]))[2].decode()
        )
    chat = {"model": "papeles", "messages": [{"role": "user", "content": BODY["question"]}]}
    answers.append(
        (await call(app, "POST", "/v1/chat/completions", with_headers(OWN, JSON), [json.dumps(chat).encode()]))[
            2
        ].decode()
    )
    assert all("815" in answer for answer in [answers[1], answers[2], answers[4]])
    assert not [
        answer
        for answer in answers
        if "/home" in answer or "secreto" in answer or str(collection.uploads) in answer
    ]


async def test_documents_are_data_and_never_a_page(collection: Collection, state: ServerState) -> None:
    app = guarded(collection, state)
    (found,) = [each for each in collection.documents() if each.name == "acta.txt"]
    status, headers, body = await call(app, "GET", f"/v1/documents/{found.id}/text")
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert XSS in json.loads(body)["text"]


async def test_questions_and_keys_are_not_logged(
    collection: Collection, state: ServerState, caplog: pytest.LogCaptureFixture
) -> None:
    token = state.add_key("ana", {"*": "read"})
    headers = with_headers(OWN, JSON, ("authorization", f"Bearer {token}"))
    with caplog.at_level("DEBUG", "lince_rag.serve"):
        await call(guarded(collection, state), "POST", "/v1/ask", headers, [QUESTION], b"q=secreto")
    logged = "".join(
        f"{record.getMessage()}{vars(record)}" for record in caplog.records if "lince_rag.serve" in record.name
    )
    assert "/v1/ask" in logged
    assert not [word for word in ("renta", "secreto", token.rpartition("_")[2]) if word in logged]


async def test_the_owner_gets_the_answer_of_the_chain(collection: Collection, state: ServerState) -> None:
    app = guarded(collection, state, token="de-la-casa")
    headers = with_headers(OWN, JSON, ("authorization", "Bearer de-la-casa"))
    body = json.dumps({**BODY, "stream": True}).encode()
    *_, done = (await call(app, "POST", "/v1/ask", headers, [body]))[2].decode().strip().split("\n\n")
    assert json.loads(done.partition("data: ")[2])["citations"][0]["source"] == "/home/ana/secreto/contrato.txt"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "docs.example.org"])
def test_other_machines_need_keys(state: ServerState, host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigurationError, match="keys add"):
        check_exposure(host, state)
    state.add_key("ana", {"*": "read"})
    assert check_exposure(host, state)
    assert not check_exposure("127.0.0.1", state)


def test_a_websocket_is_closed(collection: Collection, state: ServerState) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guarded(collection, state)({"type": "websocket", "path": "/"}, lambda: asyncio.sleep(0), send))  # type: ignore[arg-type, return-value]
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_answers_stream_and_end(collection: Collection, state: ServerState) -> None:
    transport = httpx.ASGITransport(guarded(collection, state))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
        whole = (await client.post("/v1/ask", json=BODY)).json()
        streamed = (await client.post("/v1/ask", json={**BODY, "stream": True})).text
        events = [each.split("\n", 1) for each in streamed.strip().split("\n\n")]
        assert {name for name, _ in events} == {"event: text", "event: citations", "event: done"}
        data = [(name, json.loads(value.removeprefix("data: "))) for name, value in events]
        assert "".join(value["text"] for name, value in data if name == "event: text") == whole["text"]
        assert data[-1] == ("event: done", whole)
        assert whole["citations"][0]["name"] == "contrato.txt"
        foreign = (
            await client.post("/v1/ask", json={"question": "¿Cómo se llama el gato de Schrödinger?"})
        ).json()
        assert foreign["abstained"]
        assert foreign["citations"] == []
