"""What a server costs: the engine beside a bare HTTP client, and GGUF files beside transformers."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import gguf
import httpx
import torch
from langchain_core.messages import HumanMessage
from transformers import AutoTokenizer

from lince_rag import ChatLince
from tests.benchmarks.llamas import KIND, QUESTION, interleave, save_llama
from tests.benchmarks.tables import installed, table
from tests.gguf_files import write_gguf
from tests.servers import LlamaServer, llama_server

TOKENS: Final = 64
PACKAGES: Final = ["xllamacpp", "httpx", "torch", "transformers"]

# How the matrices are stored; ``None`` keeps float32.
QUANTIZATIONS: Final = {
    "float32": None,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
}


def test_overhead_over_a_bare_client(tmp_path: Path, results: list[str]) -> None:
    rows: list[list[object]] = []
    for layers, hidden, rounds in ((4, 256, 31), (6, 512, 15)):
        folder = save_llama(tmp_path / f"{layers}x{hidden}", layers, hidden)
        file = write_gguf(folder, tmp_path / f"{layers}x{hidden}.gguf", 1024)
        calls, length = _calls(llama_server(file), folder, rounds)
        texts = [call().strip() for call in calls[:2] + calls[4:]]
        assert len(set(texts)) == 1
        clock, _ = interleave(calls, rounds)
        size = f"{layers} layers of {hidden}, {length} + {TOKENS} tokens"
        names = ("whole", "whole, new question", "stream")
        for name, theirs, mine in zip(names, clock[::2], clock[1::2], strict=True):
            added = median(one - other for one, other in zip(mine, theirs, strict=True))
            fastest = min(mine) - min(theirs)
            rows.append([size, name, rounds, median(theirs), median(mine), added, added / median(theirs), fastest])
    header = [
        "llama-server",
        "answer",
        "rounds",
        "bare httpx ms",
        "ChatLince ms",
        "added ms",
        "share",
        "fastest ms",
    ]
    note = (
        "Greedy, float32, one thread, the same prompt ids and answer, one request at a time; medians in turns; "
        "of what is added, the median of each round's difference, and the difference between the fastest rounds, "
        "which other processes disturb the least. For a new question the engine asks the server "
        "for its tokens, three times; the bare client has them. Server and clients are one process; the machine "
        f"had a load of {os.getloadavg()[0]:.1f} in all. {installed(PACKAGES)}."
    )
    results.append(f"## Server: overhead\n\n{table(header, rows)}\n\n{note}")


def _calls(server: LlamaServer, folder: Path, rounds: int) -> tuple[list[Callable[[], str]], int]:
    """Return pairs of calls, of a bare client and of the engine, and the length of their prompt in tokens."""
    chat = ChatLince(
        model=KIND, base_url=server.base_url, api_key=server.api_key, temperature=0, max_tokens=TOKENS
    )
    # Its tokens are not those that the engine keeps.
    local = ChatLince(model=KIND, model_path=str(folder), device="cpu")
    questions = [f"{QUESTION} {number}" for number in range(rounds)]
    new = iter([local.encode([HumanMessage(text)]) for text in questions])
    asked = iter(questions)
    ids = chat.encode([HumanMessage(QUESTION)])
    client = httpx.Client(
        base_url=server.base_url,
        headers={"Authorization": f"Bearer {server.api_key}"},
        timeout=60,
        # The server closes unused connections after five seconds.
        limits=httpx.Limits(keepalive_expiry=3),
    )

    def bare(prompt: list[int] | None = None) -> str:
        payload = {"prompt": prompt or ids, "max_tokens": TOKENS, "temperature": 0}
        try:
            reply = client.post("/v1/completions", json=payload)
        except httpx.RemoteProtocolError:
            # The server closed the connection when it was used again; the engine tries again, too.
            reply = client.post("/v1/completions", json=payload)
        return str(reply.json()["choices"][0]["text"])

    def bare_stream() -> str:
        payload = {"prompt": ids, "max_tokens": TOKENS, "temperature": 0, "stream": True}
        text = ""
        with client.stream("POST", "/v1/completions", json=payload) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
        return text

    return [
        bare,
        lambda: str(chat.invoke(QUESTION).text),
        lambda: bare(next(new)),
        lambda: str(chat.invoke(next(asked)).text),
        bare_stream,
        lambda: "".join(chunk.text for chunk in chat.stream(QUESTION)),
    ], len(ids)


def test_gguf_beside_transformers(tmp_path: Path, results: list[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows: list[list[object]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for layers, hidden, rounds in ((6, 512, 9), (8, 1024, 5)):
            folder = save_llama(tmp_path / f"{layers}x{hidden}", layers, hidden)
            files = {
                name: write_gguf(folder, tmp_path / f"{layers}x{hidden}-{name}.gguf", 1024, quantization)
                for name, quantization in QUANTIZATIONS.items()
            }
            fields = {
                "model": KIND,
                "device": "cpu",
                "temperature": 0,
                "max_tokens": TOKENS,
                "prompt_lookup": False,
            }
            chats = [ChatLince(model_path=str(folder), **fields)]
            chats += [ChatLince(model_path=str(file), **fields) for file in files.values()]
            texts = [chat.invoke(QUESTION).text for chat in chats]
            clock, _ = interleave([lambda chat=chat: chat.invoke(QUESTION) for chat in chats], rounds)
            base = median(clock[0])
            weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            sizes = [weights, *(file.stat().st_size for file in files.values())]
            names = ["transformers, float32", *(f"GGUF, {name}" for name in files)]
            tokenizer = AutoTokenizer.from_pretrained(folder)
            ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
            for name, size, times, said in zip(names, sizes, clock, ids, strict=True):
                equal = next((at for at, (a, b) in enumerate(zip(ids[0], said, strict=False)) if a != b), TOKENS)
                rows.append(
                    [
                        f"{layers} layers of {hidden}",
                        name,
                        f"{size / 2**20:.0f}",
                        f"{1000 * TOKENS / median(times):.0f}",
                        base / median(times),
                        min(equal / TOKENS, 1.0),
                    ]
                )
    finally:
        torch.set_num_threads(threads)
    header = [
        "Llama",
        "engine",
        "MiB",
        "tokens a second",
        "times as fast",
        "equal greedy tokens",
    ]
    note = (
        f"Whole answers of {TOKENS} tokens, prompt included (both keep its keys and values), one thread; "
        "medians, taken in turns. The weights are random, so close decisions between two tokens are more frequent "
        f"than in a trained model. {installed(PACKAGES)}."
    )
    results.append(f"## GGUF: speed\n\n{table(header, rows)}\n\n{note}")
