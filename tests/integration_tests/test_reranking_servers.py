"""LinceReranker on servers: a real tiny cross-encoder behind the interfaces of TEI, vLLM and Cohere."""

import json
import math
from typing import Any

import pytest
from langchain_core.documents import Document

from lince_rag import Index, LinceReranker
from lince_rag.cli.options import AnswerOptions
from lince_rag.engines.server import client as client_module
from lince_rag.errors import ConfigurationError, EngineError
from tests.gguf_files import shared_gguf
from tests.integration_tests.classifier_samples import save_tiny_classifier
from tests.integration_tests.commands import run
from tests.scoring_servers import MOST_TEXTS, RERANKS, Scoring, llama_scorer, scoring_server
from tests.servers import API_KEY, Reply, llama_server

QUESTION = "¿Cuándo vence el contrato?"
WANTED = {
    "El contrato vence cuando lo dice el contrato.": 0.05,
    "Cuándo vence un contrato es cosa del contrato.": 0.3,
    "El plazo del piso acaba en mayo, según el contrato.": 0.95,
    "La fianza del alquiler se devuelve en junio.": 0.7,
}
TEXTS = list(WANTED)
PAIRS = [(QUESTION, text) for text in TEXTS]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    examples = list(zip(PAIRS, WANTED.values(), strict=True))
    return save_tiny_classifier(tmp_path_factory.mktemp("rerankers") / "tiny", examples)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    with Index.open(tmp_path_factory.mktemp("index")) as index:
        index.ingest([Document(text, metadata={"source": f"doc-{number}"}) for number, text in enumerate(TEXTS)])
        yield index


def on(server: Scoring, folder: str, **options: Any) -> LinceReranker:
    return LinceReranker(folder, base_url=server.base_url, **options)


@pytest.mark.parametrize("kind", RERANKS)
def test_scores_are_those_of_the_model_here(kind, folder):
    pairs = [*PAIRS, ("¿Qué fianza hay?", TEXTS[3]), ("¿Qué fianza hay?", TEXTS[0]), *PAIRS * 4]
    with scoring_server(kind, reranker=folder) as server:
        reranker = on(server, folder)
        scores = reranker.score(pairs)
        assert scores == pytest.approx(LinceReranker(folder, device="cpu").score(pairs), abs=1e-5)
        assert reranker.score([]) == []
        first = len(server.received)
        assert reranker.score(PAIRS[:1]) == pytest.approx(scores[:1], abs=1e-5)
        # The form that the server understands is remembered.
        assert len(server.received) == first + 1
    if kind == "tei":
        assert all(len(each.payload["texts"]) <= MOST_TEXTS for each in server.received)


@pytest.mark.parametrize("kind", RERANKS)
def test_the_retrievers_order_is_the_servers(kind, index, folder):
    with scoring_server(kind, reranker=folder) as server:
        found = index.as_retriever(k=4, reranker=on(server, folder)).invoke(QUESTION)
    assert [each.page_content for each in found] == sorted(TEXTS, key=WANTED.get, reverse=True)
    expected = LinceReranker(folder, device="cpu").score([(QUESTION, each.page_content) for each in found])
    assert [each.metadata["rerank_score"] for each in found] == pytest.approx(expected, abs=1e-5)


def test_a_tei_that_says_nothing_of_itself_is_understood(folder):
    # As behind a gateway that passes on /rerank only.
    with scoring_server("tei", reranker=folder, silent=True) as server:
        scores = on(server, folder).score(PAIRS)
    assert scores == pytest.approx(LinceReranker(folder, device="cpu").score(PAIRS), abs=1e-5)
    assert [each.path for each in server.received] == ["/v1/rerank", "/rerank", "/rerank"]


def test_llama_server_scores_with_its_own_model():
    server = llama_scorer(shared_gguf("llama-2-7b-spanish"), "RANK")
    reranker = LinceReranker("llama-2-7b-spanish", base_url=server.base_url, api_key=API_KEY)
    first, second, again, long = reranker.score([*PAIRS[:2], PAIRS[0], (QUESTION, "hola " * 2000)])
    assert first == pytest.approx(again, abs=1e-4)
    assert first != pytest.approx(second, abs=1e-4)
    assert math.isfinite(long)
    assert reranker.score(PAIRS[1:2]) == [pytest.approx(second, abs=1e-4)]


def test_a_server_that_does_not_rerank_says_so():
    server = llama_server(shared_gguf("llama-2-7b-spanish"))
    with pytest.raises(EngineError, match="501: This server does not support reranking"):
        LinceReranker("llama-2-7b-spanish", base_url=server.base_url, api_key=API_KEY).score(PAIRS)


def test_what_refuses_says_why_and_not_only_that_an_address_is_missing(folder):
    refused = pytest.raises(EngineError, match="422: documents and model are required")
    with scoring_server("cohere", reranker=folder, name="other") as server, refused:
        on(server, folder).score(PAIRS)


def test_a_passage_that_is_too_long_is_cut(folder, caplog):
    long = (QUESTION, "el contrato vence en mayo " * 200)
    refused = Reply('{"error": {"message": "input is too large to process"}}', 500)
    fault = lambda _, payload: refused if any(len(text) > 300 for text in payload["documents"]) else None  # noqa: E731
    with scoring_server("vllm", reranker=folder, fault=fault) as server, caplog.at_level("WARNING", "lince_rag"):
        scores = on(server, folder).score([PAIRS[0], long])
    assert scores == pytest.approx(LinceReranker(folder, device="cpu").score([PAIRS[0], long]), abs=1e-5)
    assert "only its first" in caplog.text


def _rank(index: Any, score: Any = 0.5, name: str = "relevance_score") -> dict[str, Any]:
    return {"index": index, name: score}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"results": [_rank(0)]}, "1 rows for 4 texts"),
        ({"results": [_rank(0)] * 4}, "not one for each"),
        ({"results": [_rank(number + 1) for number in range(4)]}, "not one for each"),
        ({"results": [_rank(number, math.nan) for number in range(4)]}, "not a finite number"),
        ({"results": [_rank(number, None) for number in range(4)]}, "not a finite number"),
        ({"results": [_rank(number, "high") for number in range(4)]}, "not a finite number"),
        ({"results": [_rank(number, 0.5, "other") for number in range(4)]}, "not a finite number"),
        ({"results": None}, "0 rows"),
        ([], "0 rows"),
        ({}, "0 rows"),
        (7, "not the JSON"),
    ],
)
def test_scores_that_are_wrong_are_refused(body, word, folder):
    with scoring_server("vllm", reranker=folder, fault=lambda *_: Reply(json.dumps(body))) as server:
        with pytest.raises(EngineError, match=word) as caught:
            on(server, folder).score(PAIRS)
        assert server.base_url in str(caught.value)


def test_failures_are_tried_again_and_then_named(folder):
    busy = Reply("", 429)
    with scoring_server("tei", reranker=folder, fault=lambda number, _: busy if number < 2 else None) as server:
        assert len(on(server, folder).score(PAIRS)) == 4
    with scoring_server("tei", reranker=folder, fault=lambda *_: Reply("", 503)) as server:
        with pytest.raises(EngineError, match="/rerank answers 503"):
            on(server, folder, max_retries=1).score(PAIRS)
        assert len(server.received) == 2
    with pytest.raises(EngineError, match="cannot be reached"):
        on(server, folder).score(PAIRS)
    with scoring_server("tei", reranker=folder, api_key="another") as server:
        with pytest.raises(EngineError, match=r"401.*LINCE_RERANKER_API_KEY") as caught:
            on(server, folder, api_key=API_KEY).score(PAIRS)
        assert API_KEY not in str(caught.value) + repr(on(server, folder, api_key=API_KEY))


@pytest.mark.parametrize("wrong", [{"device": "cpu"}, {"revision": "v1"}, {"max_length": 3}, {"timeout": -1}])
def test_options_of_a_model_here_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        LinceReranker("a/b", base_url="http://h", **wrong)
    with pytest.raises(ConfigurationError, match="api_key"):
        LinceReranker("a/b", api_key="k")


def test_the_command_line(index, folder, monkeypatch):
    where = ("--index", str(index.folder), "-k", "4", "--json")
    with scoring_server("tei", reranker=folder, api_key=API_KEY) as server:
        options = ("--reranker", folder, "--reranker-url", server.base_url)
        out, _ = run("search", QUESTION, *where, *options, LINCE_RERANKER_API_KEY=API_KEY)
        assert [row["text"] for row in json.loads(out)] == sorted(TEXTS, key=WANTED.get, reverse=True)
        out, _ = run("ask", QUESTION, *where, *options, LINCE_RERANKER_API_KEY=API_KEY)
        assert json.loads(out)["documents"][0]["page_content"] == TEXTS[2]
    _, err = run("search", QUESTION, *where, "--reranker-url", server.base_url, status=2)
    assert "--reranker" in err
    monkeypatch.setenv("LINCE_RERANKER_API_KEY", API_KEY)
    chosen = AnswerOptions(reranker="a/b", reranker_url="http://h/v1")
    assert repr(chosen.retriever_fields()["reranker"]) == "LinceReranker('a/b', base_url='http://h')"
    assert "reranker_url" not in chosen.model_fields()
