"""The cost of constrained decoding: reading the tokenizer, compiling the schema, masks."""

import json
import random
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from langchain_core.messages import HumanMessage
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lince_rag import ChatLince
from lince_rag.engines.json_schema.constraints import Constraints
from tests.benchmarks.llamas import (
    CONTRACT,
    CONTRACT_TOKENS,
    KIND,
    QUESTION,
    SAVES_NOTHING,
    interleave,
    save_llama,
)
from tests.benchmarks.tables import table
from tests.checkpoints import KINDS, shared_checkpoint

# As many tokens as Falcon has.
LARGE_VOCABULARY: Final = 65_024


def large_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary of a real model's size, made of syllables: only its bytes matter to a grammar."""
    pieces = [*pre_tokenizers.ByteLevel.alphabet()]
    syllables = ["".join(pair) for pair in product("bcdfghjlmnprstvz", "aeiou")]
    words = ("".join(parts) for size in (1, 2, 3) for parts in product(syllables, repeat=size))
    seen = dict.fromkeys(pieces)
    for word in words:
        for piece in (word, f"Ġ{word}"):
            if len(seen) < LARGE_VOCABULARY - 1:
                seen[piece] = None
    vocabulary = {piece: number for number, piece in enumerate([*seen, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def milliseconds(since: float) -> float:
    return 1000 * (time.perf_counter() - since)


def walk(constraints: Constraints, schema: str, size: int, end: int) -> list[float]:
    """Milliseconds that each mask of one random answer takes."""
    generator = random.Random(0)
    processor = constraints.processor(schema, CONTRACT_TOKENS)
    scores, ids, times = torch.zeros(1, size), [0], []
    while ids[-1] != end:
        started = time.perf_counter()
        allowed = processor(torch.tensor([ids]), scores)[0]
        times.append(milliseconds(started))
        ids.append(generator.choice(torch.isfinite(allowed).nonzero()[:, 0].tolist()))
    assert len(times) <= CONTRACT_TOKENS
    return times


def test_masks(results: list[str]) -> None:
    tokenizers: dict[str, Any] = {
        kind: ChatLince(**shared_checkpoint(kind).chat_fields).runtime.tokenizer  # type: ignore[attr-defined]
        for kind in KINDS
    }
    tokenizers["a vocabulary of Falcon's size"] = large_tokenizer()
    rows: list[list[object]] = []
    for name, tokenizer in tokenizers.items():
        end = tokenizer.eos_token_id
        started = time.perf_counter()
        constraints = Constraints(tokenizer, [end])
        reading = milliseconds(started)
        compiling = []
        for number in range(9):
            # Another title is another schema, so none is kept from before.
            schema = json.dumps({**CONTRACT, "title": f"{name} {number}"})
            started = time.perf_counter()
            constraints.processor(schema, CONTRACT_TOKENS)
            compiling.append(milliseconds(started))
        times = sorted(walk(constraints, json.dumps(CONTRACT), len(tokenizer), end))
        rows.append([name, len(tokenizer), reading, median(compiling), median(times), times[-len(times) // 20]])
    header = [
        "tokenizer",
        "tokens",
        "reading it, once, ms",
        "a schema, once, ms",
        "a mask, ms",
        "95% of masks, ms",
    ]
    note = f"A contract of four members, {CONTRACT_TOKENS} tokens at most, answered at random."
    results.append(f"## Structured output: masks\n\n{table(header, rows)}\n\n{note}")


def test_time(tmp_path: Path, results: list[str]) -> None:
    rows: list[list[object]] = []
    for layers, hidden, rounds in ((4, 256, 21), (6, 512, 9)):
        folder = save_llama(tmp_path / f"{layers}x{hidden}", layers, hidden)
        fields = {"model": KIND, "model_path": str(folder), "device": "cpu", "temperature": 0, **SAVES_NOTHING}
        chat = ChatLince(**fields, max_tokens=CONTRACT_TOKENS)
        held = chat.invoke(QUESTION, response_format=CONTRACT)
        json.loads(held.text)
        tokens = held.usage_metadata["output_tokens"] if held.usage_metadata else 0
        messages = [HumanMessage(QUESTION)]
        prompt = chat.render(messages, response_format=CONTRACT).text
        free = ChatLince(**fields, max_tokens=tokens + 1)

        def constrained(chat: ChatLince = chat) -> Any:
            return chat.invoke(QUESTION, response_format=CONTRACT)

        def unconstrained(chat: ChatLince = free, prompt: str = prompt) -> Any:
            return chat.invoke(prompt)

        clock, processor = interleave([constrained, unconstrained], rounds)
        ours, bare = map(median, clock)
        paired = median(mine / theirs for mine, theirs in zip(*processor, strict=True))
        rows.append([f"{layers} layers of {hidden}", tokens, bare / tokens, ours / tokens, ours / bare, paired])
    header = ["Llama", "tokens", "free, ms a token", "constrained, ms a token", "ratio", "of processor time"]
    note = (
        "Greedy, CPU; the free answer is of as many tokens after the same instructions. Taken in turns, medians."
    )
    results.append(f"## Structured output: time\n\n{table(header, rows)}\n\n{note}")
