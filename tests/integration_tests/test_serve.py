"""`lince-rag serve` as a process of its own, with the clients that people have."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from langchain_core.documents import Document
from langchain_openai import ChatOpenAI
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from openai import OpenAI

from lince_rag import ChatLince, Index
from lince_rag.cli.localisation import translate
from lince_rag.errors import ConfigurationError
from lince_rag.serve.app import check_port, create_app
from lince_rag.serve.collections import Collection
from lince_rag.serve.state import ServerState
from tests.integration_tests.commands import COMMAND, environment
from tests.servers import Served, free_port, serving

QUESTION = "¿Cuánto es la renta mensual?"
RENT = "La renta mensual es de 815 euros. El contrato vence el 30 de junio de 2027."
SECRET = "La contraseña de la caja es violeta-nocturna-77."


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    make_index(folder / "index")
    with serving(folder / "index", "--rate", "100000/minute", log=folder / "log") as served:
        yield served


def make_index(folder: Path) -> None:
    with Index.open(folder) as index:
        index.ingest([Document(RENT, metadata={"source": "contrato", "title": "Contrato"})])


def test_clients_of_openai(served: Served) -> None:
    client = OpenAI(base_url=f"{served.url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["papeles"]
    messages: Any = [{"role": "system", "content": "Sé breve."}, {"role": "user", "content": QUESTION}]
    whole = client.chat.completions.create(model="papeles", messages=messages, temperature=0.2)
    message = whole.choices[0].message
    assert message.content == "La renta mensual es de 815 euros."
    assert message.annotations
    cited = message.annotations[0].url_citation
    assert (cited.title, cited.start_index, cited.end_index) == ("Contrato", 0, len(message.content))
    assert cited.url.startswith(f"{served.url}/#collection=papeles&document=")
    assert whole.usage
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 0
    assert whole.model_extra
    assert whole.model_extra["lince"]["citations"][0]["quote"] == message.content
    stream = client.chat.completions.create(
        model="papeles", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(filter(None, texts)) == message.content
    assert len([text for text in texts if text]) > 1
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage


def test_langchain_openai_streams(served: Served) -> None:
    model = ChatOpenAI(base_url=f"{served.url}/v1", api_key="none", model="papeles")  # type: ignore[arg-type]
    pieces = [chunk.text for chunk in model.stream(QUESTION)]
    assert len(pieces) > 2
    assert "".join(pieces) == model.invoke(QUESTION).text == "La renta mensual es de 815 euros."


def test_a_document_comes_is_found_and_is_gone(served: Served) -> None:
    question = {"question": "¿Cuál es la contraseña de la caja?"}
    with served.client() as client:
        job = client.post("/v1/documents", files={"files": ("notas.txt", SECRET)}).json()
        report = served.wait_for_job(client, job["id"])["report"]
        assert report["added"] == ["notas.txt"]
        answer = client.post("/v1/ask", json=question).json()
        assert answer["text"] == SECRET
        document = answer["citations"][0]["document"]
        again = client.post(f"/v1/documents/{document}/read").json()
        assert served.wait_for_job(client, again["id"])["report"]["unchanged"] == ["notas.txt"]
        assert client.delete(f"/v1/documents/{document}").status_code == 204
        assert client.get(f"/v1/documents/{document}").status_code == 404
        assert "violeta" not in client.post("/v1/ask", json=question).text
        for each in client.get("/v1/jobs").json():
            served.wait_for_job(client, each["id"])
    kept = [*served.index.rglob("*"), *served.index.with_name("index.serve").rglob("*")]
    assert not [path for path in kept if path.is_file() and b"violeta-nocturna" in path.read_bytes()]


def test_what_cannot_be_read_is_said(served: Served) -> None:
    with served.client() as client:
        files = [("files", ("mala.pdf", b"%PDF-1.7 nothing")), ("files", ("buena.txt", "El gato se llama Félix."))]
        job = client.post("/v1/documents", files=files).json()
        found = served.wait_for_job(client, job["id"])
        assert found["report"]["added"] == ["buena.txt"]
        (failed,) = found["report"]["failed"]
        assert failed["name"] == "mala.pdf"
        assert failed["reason"]
        assert str(served.index.parent) not in json.dumps(found)


async def test_mcp_with_a_key(tmp_path: Path) -> None:
    make_index(tmp_path / "index")
    keys = [sys.executable, "-m", "lince_rag.cli.app", "keys", "add", "ana", "--index", str(tmp_path / "index")]
    token = subprocess.run([*keys, "--read", "papeles"], capture_output=True, check=True, text=True).stdout.strip()
    with serving(tmp_path / "index", log=tmp_path / "log") as served:
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(headers=headers) as http:
            async with Client(streamable_http_client(f"{served.url}/mcp/papeles", http_client=http)) as client:
                answer = (await client.call_tool("ask", {"question": QUESTION})).structured_content
            assert answer
            assert answer["text"] == "La renta mensual es de 815 euros."
            assert (
                await http.post(f"{served.url}/v1/documents", files={"files": ("a.txt", "x")})
            ).status_code == 403
        assert httpx.get(f"{served.url}/v1/documents").status_code == 401
        assert httpx.get(f"{served.url}/metrics", headers=headers).status_code == 200


def test_aborted_uploads_do_not_block_it(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    lines = [
        "POST /v1/documents HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Content-Type: multipart/form-data; boundary=x",
        "Content-Length: 90000",
        "",
        "--x",
        'Content-Disposition: form-data; name="files"; filename="a.txt"',
        "\r\n",
    ]
    begun = "\r\n".join(lines)

    def abort(_: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(begun.encode() + b"x" * 1_000)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(abort, range(500)))
    with served.client() as client:
        assert client.post("/v1/ask", json={"question": QUESTION}).json()["text"].startswith("La renta")
        assert "Traceback" not in served.log.read_text()
        assert "notas.txt" not in client.get("/v1/documents").text


def test_many_clients_get_answers_or_are_told_to_wait(served: Served) -> None:
    with served.client() as client, ThreadPoolExecutor(40) as pool:
        ask = lambda _: client.post("/v1/ask", json={"question": QUESTION})  # noqa: E731
        found = list(pool.map(ask, range(120)))
        assert {each.status_code for each in found} <= {200, 429, 503}
        answers = {each.json()["text"] for each in found if each.status_code == 200}
        assert answers == {"La renta mensual es de 815 euros."}
        assert all(each.headers["retry-after"] for each in found if each.status_code != 200)
        counted = client.get("/metrics").text
        assert 'lince_answers_total{collection="papeles",outcome="answered"}' in counted


def test_the_command_asks_the_server(served: Served) -> None:
    command = [sys.executable, "-m", "lince_rag.cli.app", "ask", QUESTION, "--index", str(served.index)]

    def ask(*options: str) -> str:
        return subprocess.run([*command, *options], capture_output=True, check=True, text=True).stdout

    def asked() -> int:
        return served.log.read_text().count('"/v1/ask"')

    before = asked()
    through = ask()
    assert asked() == before + 1
    # With other options, the command opens the index itself.
    itself = ask("-k", "4")
    assert asked() == before + 1
    assert through == itself
    assert json.loads(ask("--json"))["citations"][0]["source"] == "contrato"
    assert asked() == before + 2


def test_several_workers_see_the_same_documents(tmp_path: Path) -> None:
    make_index(tmp_path / "index")
    with serving(tmp_path / "index", "--workers", "2", log=tmp_path / "log") as served:
        with served.client() as client:
            job = client.post("/v1/documents", files={"files": ("notas.txt", SECRET)}).json()
            served.wait_for_job(client, job["id"])
        for _ in range(8):
            # Each connection may be another worker's.
            with served.client() as client:
                assert client.get("/v1/documents").json()["total"] == 2
                assert client.post("/v1/ask", json={"question": QUESTION}).json()["grounded"]
        with served.client() as client:
            asked = 'lince_requests_total{method="POST",route="/v1/ask",status="200"} 8.0'
            assert asked in client.get("/metrics").text


def test_a_killed_server_finishes_what_it_was_given(tmp_path: Path) -> None:
    make_index(tmp_path / "index")
    names = [f"nota-{number}.txt" for number in range(30)]
    files = [("files", (name, f"El número {name} dice: {'palabra ' * 2_000}")) for name in names]
    with serving(tmp_path / "index", log=tmp_path / "log") as served, served.client() as client:
        job = client.post("/v1/documents", files=files).json()
        os.kill(served.process.pid, signal.SIGKILL)
        served.process.wait(15)
    with serving(tmp_path / "index", log=tmp_path / "log") as served, served.client() as client:
        assert served.wait_for_job(client, job["id"])["status"] == "done"
        listed = client.get("/v1/documents", params={"limit": 100}).json()["documents"]
        assert {each["name"] for each in listed} == {*names, "contrato"}
    with Index.open(tmp_path / "index", create=False) as index:
        assert index.verify().ok


def test_it_ends_in_time_while_it_works(tmp_path: Path) -> None:
    make_index(tmp_path / "index")
    text = "Una frase larga sobre la casa, el perro y la tarde. " * 200
    files = [("files", (f"nota-{number}.txt", f"{number} {text}")) for number in range(80)]
    with serving(tmp_path / "index", log=tmp_path / "log") as served, served.client() as client:
        client.post("/v1/documents", files=files)
        started = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(10) in (0, -signal.SIGTERM)
        assert time.monotonic() - started < 10
        assert not (tmp_path / "index.serve" / "server.json").exists()
    assert ServerState(tmp_path / "index.serve").unfinished() == 1


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    make_index(tmp_path / "index")
    options = ["--model", "lince-zero", "--model-path", str(tmp_path / "nowhere")]
    with serving(tmp_path / "index", *options, log=tmp_path / "log", awaited="failed") as served:
        with served.client() as client:
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 503
            assert client.post("/v1/search", json={"question": QUESTION}).status_code == 200
            refused = client.post("/v1/ask", json={"question": QUESTION})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
            assert str(tmp_path) not in refused.text
        assert "nowhere" in served.log.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "keys add"),
        (["--rate", "often"], "600/minute"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--index", "otra carpeta=x"], "otra carpeta"),
    ],
)
def test_wrong_options_end_it_at_once(tmp_path: Path, options: list[str], said: str) -> None:
    command = [sys.executable, "-m", "lince_rag.cli.app", "serve", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_shows_where_it_is_and_how_to_end_it(tmp_path: Path) -> None:
    make_index(tmp_path / "index")
    leader, terminal = pty.openpty()
    port = free_port()
    command = [*COMMAND, "serve", "--index", str(tmp_path / "index"), "--port", str(port)]
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment(), start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(terminal)
    url = f"http://127.0.0.1:{port}/"
    for _ in range(600):
        time.sleep(0.1)
        try:
            if httpx.get(f"{url}readyz").json()["status"] == "ready":
                break
        except httpx.TransportError:
            assert process.poll() is None
    httpx.get(url)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 0
    shown = os.read(leader, 100_000).decode()
    os.close(leader)
    assert shown == f"Escucha en {url} (Ctrl-C para terminar).\r\n"


def test_no_request_of_the_documented_form_fails_the_server(tmp_path: Path) -> None:
    make_index(tmp_path / "index")
    with Index.open(tmp_path / "index", create=False) as index:
        collection = Collection("papeles", index, ChatLince(), index.as_retriever(), tmp_path / "uploads")
        app = create_app(
            [collection], ServerState(tmp_path / "data"), hosts=frozenset({"testserver", "localhost"})
        )
        schema = schemathesis.openapi.from_asgi("/v1/openapi.json", app)
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) > 15
        statuses: set[int] = set()
        for operation in operations:

            @given(case=operation.as_strategy())
            @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            def check(case: Any) -> None:
                response = case.call()
                statuses.add(response.status_code)
                # 503 while it loads, or while too many questions wait.
                assert response.status_code < 500 or response.status_code == 503, (case, response.text)

            check()
        assert {200, 404, 422} <= statuses
        assert 421 not in statuses


def test_a_port_in_use_is_refused_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}: Address already in use") as caught:
            check_port("127.0.0.1", port)
        assert "--port" in caught.value.hint
        assert "otro programa" in translate(caught.value.message, "es")
    check_port("127.0.0.1", port)
    with pytest.raises(ConfigurationError, match=r"no-such-host\.invalid"):
        check_port("no-such-host.invalid", port)
