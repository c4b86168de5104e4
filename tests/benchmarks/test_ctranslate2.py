"""Converted weights on a CPU against transformers: speed and memory, and what rounding costs."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import pytest
import torch

from lince_rag import ChatLince
from lince_rag.engines.checkpoints.conversion import convert_to_ctranslate2
from tests.benchmarks.llamas import KIND, QUESTION, SAVES_NOTHING, interleave, save_llama
from tests.benchmarks.squad import load
from tests.benchmarks.tables import installed, table

PEER: Final = "transformers, float32"
PACKAGES: Final = ["ctranslate2", "torch", "transformers"]

# 1.07 billion weights, 4.3 GB in float32.
LAYERS, HIDDEN = 16, 2048
TOKENS: Final = 16
ROUNDS: Final = 3

# Of the small model that is trained, and of what it is trained on and measured with.
SMALL_LAYERS, SMALL_HIDDEN = 3, 128
STEPS, BATCH, LENGTH = 300, 8, 128
MEASURED: Final = 30


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Give torch as many threads as CTranslate2 has: OMP_NUM_THREADS or, here, one for each core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    yield
    torch.set_num_threads(threads)


def chats(folder: Path) -> dict[str, dict[str, Any]]:
    """The fields of ``ChatLince`` of every way to run a checkpoint, by name."""
    original = {"model": KIND, "model_path": str(folder), "device": "cpu"}
    converted = {
        quantization: {
            "model": KIND,
            "model_path": str(convert_to_ctranslate2(str(folder), quantization=quantization)),
        }
        for quantization in ("float32", "int8")
    }
    return {
        PEER: {**original, "dtype": "float32"},
        "CTranslate2, float32": converted["float32"],
        "CTranslate2, int8": converted["int8"],
    }


PEAK: Final = """
import re, sys
from lince_rag import ChatLince
chat = ChatLince(**eval(sys.argv[1]), temperature=0, max_tokens=8)
chat.invoke(sys.argv[2])
status = open("/proc/self/status").read()
print("MEMORY", *(re.search(rf"{name}:\\s+(\\d+)", status).group(1) for name in ("VmRSS", "VmHWM")))
"""


def memory(fields: dict[str, Any]) -> tuple[float, float]:
    """Resident and peak memory of a process that answers once, in GiB."""
    command = [sys.executable, "-c", PEAK, repr(fields), QUESTION]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    resident, peak = done.stdout.rpartition("MEMORY")[2].split()
    return int(resident) / 2**20, int(peak) / 2**20


def read_gigabytes() -> tuple[Callable[[], Any], float]:
    """A call that reads memory as fast as it goes, and the gigabytes that it reads."""
    block = torch.ones(2**28)
    return block.sum, block.nbytes / 1e9


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_billion_weights(tmp_path: Path, results: list[str]) -> None:
    folder = save_llama(tmp_path / "llama", LAYERS, HIDDEN)
    fields = chats(folder)
    used = {name: memory(each) for name, each in fields.items()}
    models = {name: ChatLince(**each, **SAVES_NOTHING, temperature=0) for name, each in fields.items()}
    read, gigabytes = read_gigabytes()
    calls = [
        lambda chat=chat, tokens=tokens: chat.invoke(QUESTION, max_tokens=tokens)
        for chat in models.values()
        for tokens in (1, 1 + TOKENS)
    ]
    for chat in models.values():
        assert chat.invoke(QUESTION, max_tokens=2).usage_metadata["output_tokens"] == 2
    clock, processor = interleave([*calls, read], ROUNDS)
    # Of the processor's time, too: on the clock, other work would count as slow memory.
    bandwidth = gigabytes / (median(processor[-1]) / 1000)
    sizes = {
        name: sum(file.stat().st_size for file in weight_files(Path(each["model_path"]))) / 1e9
        for name, each in fields.items()
    }
    rows: list[list[object]] = []
    for at, name in enumerate(models):
        seconds, busy = (token_seconds(times, at) for times in (clock, processor))
        faster, less = (
            median(
                other / own for own, other in zip(token_seconds(times, at), token_seconds(times, 0), strict=True)
            )
            for times in (clock, processor)
        )
        rate = 1 / median(seconds)
        share = sizes[name] / median(busy) / bandwidth
        rows.append([name, rate, faster, less, *used[name], used[name][0] / used[PEER][0], sizes[name], share])
    header = [
        "weights", "tokens/s", "times as fast", "less processor time", "memory, GiB", "peak, GiB", "memory, ratio",
        "GB read a token", "of the limit",
    ]  # fmt: skip
    note = (
        f"A Llama of {LAYERS} layers of {HIDDEN} with random weights, {installed(PACKAGES)}, threads: "
        f"{torch.get_num_threads()}; greedy, {TOKENS} tokens after the first, {ROUNDS} rounds in turns in one "
        "process; medians, of the ratios those of each round. The machine was shared with other work, which "
        "disturbs the time of the processor less than the clock. Memory: of whole processes that answer once, "
        "imports included; the peak is that of loading. The limit of decoding is reading all weights for each "
        f"token: reading memory and adding it up, and nothing else, made {bandwidth:.1f} GB for each second of "
        "the processor in the same rounds."
    )
    results.append(f"## CTranslate2: speed and memory\n\n{table(header, rows)}\n\n{note}")


def weight_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.safetensors"), *folder.glob("model.bin")]


def token_seconds(times: list[list[float]], model: int) -> list[float]:
    """Seconds of a token after the first in each round: that of the prompt is not part of it."""
    short, long = times[2 * model], times[2 * model + 1]
    return [(after - before) / 1000 / TOKENS for before, after in zip(short, long, strict=True)]


def train(chat: ChatLince, texts: list[str], folder: Path) -> None:
    """Train a small model on texts, and save it where it came from."""
    model, tokenizer = chat.runtime.loaded.model, chat.runtime.tokenizer  # type: ignore[attr-defined]
    ids = torch.tensor([token for text in texts for token in tokenizer.encode(text)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    random = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(STEPS):
        starts = torch.randint(len(ids) - LENGTH, (BATCH,), generator=random).tolist()
        batch = torch.stack([ids[at : at + LENGTH] for at in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)


def logits(chat: ChatLince, ids: list[int]) -> Any:
    """The logits after each token, from whatever runs the model."""
    runtime: Any = chat.runtime
    if hasattr(runtime, "generator"):
        return np.array(runtime.generator.forward_batch([runtime.tokenizer.convert_ids_to_tokens(ids)]))[0]
    with torch.inference_mode():
        return runtime.loaded.model(input_ids=torch.tensor([ids])).logits[0].float().numpy()


def losses(found: Any, ids: list[int]) -> Any:
    """The negative log probability of each token but the first."""
    return np.log(np.exp(found[:-1]).sum(-1)) - found[np.arange(len(ids) - 1), ids[1:]]


def test_what_rounding_costs(data: Path, tmp_path: Path, results: list[str]) -> None:
    paragraphs = load(data / "faquad.json").paragraphs
    folder = save_llama(tmp_path / "llama", SMALL_LAYERS, SMALL_HIDDEN)
    small = ChatLince(model=KIND, model_path=str(folder), device="cpu")
    train(small, paragraphs[MEASURED:], folder)
    models = {
        name: ChatLince(**each, **SAVES_NOTHING, temperature=0, max_tokens=64)
        for name, each in chats(folder).items()
    }
    tokenizer: Any = small.runtime.tokenizer  # type: ignore[attr-defined]
    encoded = [tokenizer.encode(text)[:512] for text in paragraphs[:MEASURED]]
    expected: list[Any] = []
    answers: list[list[int]] = []
    rows: list[list[object]] = []
    for name, chat in models.items():
        found = [logits(chat, ids) for ids in encoded]
        texts = [chat.invoke(text[:80]).text for text in paragraphs[:MEASURED]]
        generated = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        expected, answers = expected or found, answers or generated
        same = np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in zip(found, expected, strict=True)])
        begun = [equal_start(a, b) / len(b) for a, b in zip(generated, answers, strict=True)]
        lost = np.concatenate([losses(each, ids) for each, ids in zip(found, encoded, strict=True)])
        rows.append([name, float(same.mean()), float(np.mean(begun)), float(np.exp(lost.mean()))])
    header = ["weights", "same most likely next token", "answer before the first difference", "perplexity"]
    note = (
        f"A Llama of {SMALL_LAYERS} layers of {SMALL_HIDDEN} with a vocabulary of {len(tokenizer)}, trained here "
        f"for {STEPS} steps on the paragraphs of FaQuAD but the {MEASURED} that are measured. No real weights can "
        "be had here: the perplexity itself says nothing, only its difference does. The next token is that after "
        "every token of those paragraphs; the answers to their first 80 characters are greedy and of 64 tokens."
    )
    results.append(f"## CTranslate2: what rounding costs\n\n{table(header, rows)}\n\n{note}")


def equal_start(one: list[int], other: list[int]) -> int:
    """The number of tokens before the first difference."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
