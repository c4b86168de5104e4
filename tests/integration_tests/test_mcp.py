"""`lince-rag mcp` with the SDK's own client: in process, over a real process's standard streams, and over HTTP."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from lince_rag import ChatLince, Index
from lince_rag.errors import MissingExtraError, installation
from lince_rag.serve.collections import Collection
from lince_rag.serve.mcp import create_server
from tests.servers import free_port

TEXTS = {
    "contrato": "La renta mensual es de 815 euros. El contrato vence el 30 de junio de 2027.",
    "ata": "A reunião foi no dia 12 de maio. O elevador custa 1.100 euros.",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mcp") / "index"
    with Index.open(folder) as index:
        index.ingest([Document(text, metadata={"source": name}) for name, text in TEXTS.items()])
    return folder


def collection(index: Index) -> Collection:
    return Collection("papeles", index, ChatLince(), index.as_retriever(), index.folder.with_suffix(".uploads"))


async def check(client: Client) -> None:
    names = {tool.name for tool in (await client.list_tools()).tools}
    assert names == {"search", "ask", "documents"}
    answer = await result(client, "ask", question="¿Cuánto es la renta mensual?")
    assert answer["text"] == "La renta mensual es de 815 euros."
    assert answer["short"] == "815 euros"
    (citation,) = answer["citations"]
    assert TEXTS[citation["source"]][citation["start"] : citation["end"]] == citation["quote"]
    found = (await result(client, "search", question="¿Quanto custa o elevador?", k=1))["result"]
    assert [passage["source"] for passage in found] == ["ata"]
    listed = (await result(client, "documents"))["result"]
    assert {document["source"] for document in listed} == set(TEXTS)
    foreign = await result(client, "ask", question="¿Quién ganó el mundial de ajedrez?")
    assert foreign["abstained"]
    assert foreign["citations"] == []


async def result(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    called = await client.call_tool(tool, arguments)
    assert not called.is_error, called.content
    found: dict[str, Any] = called.structured_content
    return found


async def test_in_process(folder: Path) -> None:
    with Index.open(folder, create=False) as index:
        server = create_server(collection(index))
        async with Client(server) as client:
            await check(client)
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools.values())


async def test_only_some_documents_are_read(folder: Path) -> None:
    with Index.open(folder, create=False) as index:
        only_ata = index.make_filter(["ata"])
        uploads = index.folder.with_suffix(".uploads")
        narrow = Collection("papeles", index, ChatLince(), index.as_retriever(filter=only_ata), uploads)
        async with Client(create_server(collection(index))) as client:
            question = "¿Cuánto cuesta el elevador?"
            found = (await result(client, "search", question=question, source=["contr*"]))["result"]
            assert {passage["source"] for passage in found} == {"contrato"}
            found = (await result(client, "search", question=question, filter=["language=pt"]))["result"]
            assert {passage["source"] for passage in found} == {"ata"}
            answer = await result(client, "ask", question="¿Cuánto es la renta mensual?", source=["ata"])
            assert "815" not in answer["text"]
        async with Client(create_server(narrow)) as client:
            # What the server was started with holds for every call.
            for more in ({}, {"source": ["contrato", "ata"]}):
                found = (await result(client, "search", question="¿Cuánto es la renta mensual?", **more))["result"]
                assert {passage["source"] for passage in found} == {"ata"}


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("search", {"question": "x", "k": 0}),
        ("search", {"k": 1, "question": "x", "source": ["the source"]}),
        ("ask", {"question": "x", "filter": ["filter"]}),
        ("ask", {"question": " "}),
        ("ask", {"question": "x" * 1_000_000}),
        ("ask", {"question": "x", "filter": ["source>=/home"]}),
        ("ask", {"question": "x", "filter": ['{"$or": [{"page": 1}, {"source": {"$gt": "/home"}}]}']}),
        ("documents", {"limit": 0}),
        ("documents", {"offset": -1}),
    ],
)
async def test_a_wrong_call_is_an_error_that_says_why(folder: Path, tool: str, arguments: dict[str, Any]) -> None:
    with Index.open(folder, create=False) as index:
        server = create_server(collection(index))
        async with Client(server) as client:
            called = await client.call_tool(tool, arguments)
    assert called.is_error
    assert list(arguments)[-1] in str(called.content)
    assert len(str(called.content)) < 1_000


@pytest.mark.parametrize("package", ["mcp", "mcp_types"])
def test_a_missing_sdk_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    missing = pytest.raises(MissingExtraError, match=re.escape(installation("mcp")))
    with Index.open(folder, create=False) as index, missing:
        create_server(collection(index))


async def test_standard_streams(folder: Path) -> None:
    command = ["-m", "lince_rag.cli.app", "mcp", "--index", str(folder)]
    parameters = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))
    async with Client(stdio_client(parameters)) as client:
        await check(client)


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "lince_rag.cli.app", "mcp", "--index", str(folder), "--http", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(10)


async def test_streamable_http(address: str) -> None:
    async with Client(address) as client:
        await check(client)
