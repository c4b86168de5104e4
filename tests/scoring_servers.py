"""Servers that embed and rerank with real tiny models, in the words of TEI, vLLM, Cohere and a plain one."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Final

import numpy as np
import xllamacpp
from sentence_transformers import CrossEncoder, SentenceTransformer

from tests.servers import API_KEY, LlamaServer, Received, Reply, Stub, StubHandler, answering

# The texts that a request to TEI or to the plain server may have.
MOST_TEXTS: Final = 8

# The kinds that embed, and those that rerank.
EMBEDS: Final = ("tei", "vllm", "plain")
RERANKS: Final = ("tei", "vllm", "cohere")

Fault = Callable[[int, dict[str, Any]], Reply | None]

# Threads share the models, whose tokenizers keep their settings as state.
_LOCK = Lock()


@cache
def load_embedder(folder: str) -> SentenceTransformer:
    model = SentenceTransformer(folder, device="cpu")
    model.default_prompt_name = None
    return model


@cache
def load_reranker(folder: str) -> CrossEncoder:
    return CrossEncoder(folder, device="cpu")


@dataclass
class Scoring:
    """A running server.

    Attributes:
        base_url: Its address.
        received: The requests that were posted.
        most_at_once: The most requests that were under way at the same time.
    """

    base_url: str
    received: list[Received] = field(default_factory=list)
    most_at_once: int = 0

    @property
    def texts(self) -> list[str]:
        """The texts of all requests for vectors."""
        return [
            text for each in self.received for text in each.payload.get("inputs", each.payload.get("input", []))
        ]


class _RefusalError(Exception):
    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.reply = Reply(json.dumps(body), status)


class _Handler(StubHandler, BaseHTTPRequestHandler):
    """Answers one connection; the attributes are set by ``scoring_server``."""

    # The parts of a reply would wait 40 ms for each other.
    disable_nagle_algorithm = True

    scoring: ClassVar[Scoring]
    kind: ClassVar[str]
    embedder: ClassVar[str]
    reranker: ClassVar[str]
    name: ClassVar[str]
    api_key: ClassVar[str]
    silent: ClassVar[bool]
    fault: ClassVar[Any]
    under_way: ClassVar[list[str]]

    def do_GET(self) -> None:
        kind = type(self).kind
        facts = {
            ("vllm", "/v1/models"): {"data": [{"id": self.name, "owned_by": "vllm", "max_model_len": 64}]},
            ("tei", "/info"): {
                "model_id": self.name,
                "model_type": {"embedding": {"pooling": "mean"}},
                "max_client_batch_size": MOST_TEXTS,
            },
        }
        found = None if self.silent else facts.get((kind, self.path))
        self._answer(Reply(json.dumps({"error": "no such address"}), 404) if found is None else _json(found))

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.under_way.append(self.path)
        self.scoring.most_at_once = max(self.scoring.most_at_once, len(self.under_way))
        self.scoring.received.append(Received(self.path, headers, payload))
        try:
            self._answer(type(self).fault(len(self.scoring.received) - 1, payload) or self._reply(payload))
        except _RefusalError as refusal:
            self._answer(refusal.reply)
        finally:
            self.under_way.remove(self.path)

    def _reply(self, payload: dict[str, Any]) -> Reply:
        if self.api_key and self.headers["authorization"] != f"Bearer {self.api_key}":
            raise _RefusalError(401, {"error": {"message": f"Invalid key {self.headers['authorization']}"}})
        replies = {
            ("tei", "/embed"): self._embed_as_tei,
            ("vllm", "/v1/embeddings"): self._embed_as_openai,
            ("plain", "/v1/embeddings"): self._embed_as_openai,
            ("tei", "/rerank"): self._rerank_as_tei,
            ("vllm", "/v1/rerank"): self._rerank_as_cohere,
            ("cohere", "/v2/rerank"): self._rerank_as_cohere,
        }
        known = replies.get((type(self).kind, self.path))
        if known is None:
            raise _RefusalError(404, {"error": "no such address"})
        with _LOCK:
            return known(payload)

    def _embed_as_tei(self, payload: dict[str, Any]) -> Reply:
        self._check_size(payload["inputs"], cuts=payload["truncate"])
        return _json(_vectors(self.embedder, payload["inputs"]).tolist())

    def _embed_as_openai(self, payload: dict[str, Any]) -> Reply:
        if payload["model"] != self.name:
            raise _RefusalError(404, {"error": {"message": f"The model {payload['model']} does not exist."}})
        self._check_size(payload["input"], cuts=payload.get("truncate_prompt_tokens") == -1)
        written = payload["encoding_format"]
        rows = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if written == "base64"
                else vector.tolist(),
            }
            for index, vector in enumerate(_vectors(self.embedder, payload["input"]))
        ]
        # The order says nothing: each row has its index.
        return _json({"object": "list", "data": rows[::-1], "model": self.name})

    def _rerank_as_tei(self, payload: dict[str, Any]) -> Reply:
        if "texts" not in payload:
            raise _RefusalError(422, "missing field `texts`")
        self._check_size(payload["texts"], cuts=payload["truncate"])
        rows = [
            {"index": index, "score": score} for index, score in self._scores(payload["query"], payload["texts"])
        ]
        return _json(rows)

    def _rerank_as_cohere(self, payload: dict[str, Any]) -> Reply:
        if "documents" not in payload or payload["model"] != self.name:
            raise _RefusalError(422, {"message": "documents and model are required"})
        texts = payload["documents"]
        found = [
            {"index": index, "relevance_score": score, "document": {"text": texts[index]}}
            for index, score in self._scores(payload["query"], texts)
        ]
        return _json({"id": "1", "results": found})

    def _scores(self, question: str, texts: list[str]) -> list[tuple[int, float]]:
        found = load_reranker(self.reranker).predict([[question, text] for text in texts]).tolist()
        return sorted(enumerate(found), key=lambda pair: -pair[1])

    def _check_size(self, texts: list[str], *, cuts: bool) -> None:
        if type(self).kind != "vllm" and len(texts) > MOST_TEXTS:
            raise _RefusalError(
                413, {"error": f"batch size {len(texts)} > maximum allowed batch size {MOST_TEXTS}"}
            )
        model = load_embedder(self.embedder) if self.embedder else None
        for text in texts if model and not cuts else []:
            tokens = len(model.tokenizer(text, verbose=False)["input_ids"])
            if tokens > model.max_seq_length:
                message = f"maximum context length is {model.max_seq_length} tokens, not {tokens}"
                raise _RefusalError(400, {"error": {"message": message}})


def _json(value: Any) -> Reply:
    return Reply(json.dumps(value))


def _vectors(folder: str, texts: list[str]) -> np.ndarray:
    """Vectors that do not have length 1, as some servers leave them."""
    return 3.0 * load_embedder(folder).encode(texts, prompt="", normalize_embeddings=True)


@cache
def llama_scorer(file: Path, pooling: str) -> LlamaServer:
    """Run one llama-server that embeds (``"MEAN"``) or reranks (``"RANK"``), until the tests end."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.embedding, parameters.warmup, parameters.verbosity = True, False, 0
    parameters.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{pooling}")
    parameters.n_ctx, parameters.api_keys = 1024, [API_KEY]
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    return LlamaServer(server.listening_address, API_KEY, server)


@contextmanager
def scoring_server(
    kind: str,
    *,
    embedder: str = "",
    reranker: str = "",
    name: str = "",
    api_key: str = "",
    silent: bool = False,
    fault: Fault = lambda number, payload: None,
) -> Iterator[Scoring]:
    """Run a server.

    Args:
        kind: ``"tei"``, ``"vllm"``, ``"cohere"``, or ``"plain"``: one that says nothing of itself.
        embedder: The folder of its embedder.
        reranker: The folder of its reranker.
        name: The name under which it runs it; by default the folder.
        api_key: The key that it asks for.
        silent: Whether it says nothing of itself.
        fault: What it answers instead to a request, given its number, from 0 up, and its payload; ``None`` for
            what the model says.

    Yields:
        The server.
    """
    scoring = Scoring("")
    attributes = {
        "scoring": scoring,
        "kind": kind,
        "embedder": embedder,
        "reranker": reranker,
        "name": name or embedder or reranker,
        "api_key": api_key,
        "silent": silent,
        "fault": staticmethod(fault),
        "under_way": [],
        "stub": Stub(""),
    }
    with answering(_Handler, attributes) as address:
        scoring.base_url = address + ("/v2" if kind == "cohere" else "")
        yield scoring
