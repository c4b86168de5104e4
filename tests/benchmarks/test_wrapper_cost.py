"""What ChatLince costs beyond the model: time over bare ``model.generate``, and memory of whole processes."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest
import torch
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from transformers import AutoTokenizer

from lince_rag import ChatLince, LinceLLM, NativePrompt, create_rag_chain
from tests.benchmarks.giants import Giant, Load
from tests.benchmarks.llamas import KIND, QUESTION, SAVES_NOTHING, interleave, save_llama
from tests.benchmarks.tables import table
from tests.benchmarks.watching import free_memory, host_memory
from tests.checkpoints import SENTENCES

TOKENS: Final = 64


def test_time(tmp_path: Path, results: list[str]) -> None:
    rows: list[list[object]] = []
    threads = torch.get_num_threads()
    # Threads that wait for each other make the times of such small layers a matter of luck.
    torch.set_num_threads(1)
    try:
        for layers, hidden, rounds in ((4, 256, 61), (6, 512, 21)):
            folder = save_llama(tmp_path / f"{layers}x{hidden}", layers, hidden)
            fields = {"model": KIND, "model_path": str(folder), "device": "cpu", "temperature": 0}
            chat = ChatLince(**fields, **SAVES_NOTHING, max_tokens=TOKENS)
            ids = chat.encode([HumanMessage(QUESTION)])
            # The same weights in the same place: of two copies, one may be some percent slower than the other.
            model, tokenizer = chat.runtime.loaded.model, AutoTokenizer.from_pretrained(folder)
            input_ids = torch.tensor([ids])
            mask = torch.ones_like(input_ids)

            def bare(model: Any = model, input_ids: Any = input_ids, mask: Any = mask) -> Any:
                with torch.inference_mode():
                    return model.generate(
                        input_ids=input_ids,
                        attention_mask=mask,
                        do_sample=False,
                        max_new_tokens=TOKENS,
                        pad_token_id=2,
                    )

            def ours(chat: ChatLince = chat) -> Any:
                return chat.invoke(QUESTION)

            answer = bare()[0, len(ids) :]
            assert len(answer) == TOKENS == ours().usage_metadata["output_tokens"]
            assert tokenizer.decode(answer, skip_special_tokens=True).strip() == ours().text
            clock, processor = interleave([ours, bare], rounds)
            paired = median(mine / theirs for mine, theirs in zip(*processor, strict=True))
            size = f"{layers} layers of {hidden}, {len(ids)} + {TOKENS} tokens"
            ours_median, bare_median = map(median, clock)
            rows.append([size, rounds, bare_median, ours_median, ours_median / bare_median, paired])
    finally:
        torch.set_num_threads(threads)
    header = [
        "Llama",
        "rounds",
        "model.generate ms",
        "ChatLince.invoke ms",
        "ratio",
        "ratio of processor time",
    ]
    note = (
        "Greedy, float32, CPU, one thread, the same prompt ids, the same answer; medians, taken in turns. Of the "
        "processor's time, which other work on the machine disturbs less, the median of each round's ratio."
    )
    results.append(f"## Wrapper: time\n\n{table(header, rows)}\n\n{note}")


BATCH: Final = 32
ANSWER: Final = 24


def test_batches(tmp_path: Path, results: list[str]) -> None:
    folder = save_llama(tmp_path / "llama", 8, 768)
    fields = {"model": KIND, "model_path": str(folder), "device": "cpu", "temperature": 0, "max_tokens": ANSWER}
    chat, llm = ChatLince(**fields), LinceLLM(**fields)
    giant = Giant(KIND, folder, chat, llm, Load(tokens=ANSWER, long=0, prompt=0, batch=BATCH, rounds=1))
    passages = [" ".join(SENTENCES[at : at + 1 + at % 4]) for at in range(BATCH)]
    prompt = NativePrompt(instruction="{question}", context="{passage}")
    questions = [f"{at}: {QUESTION}" for at in range(BATCH)]
    prompts: list[Any] = [
        prompt.format_prompt(question=question, passage=passage)
        for question, passage in zip(questions, passages, strict=True)
    ]
    found = RunnableLambda(lambda question: [Document(passages[int(question.partition(":")[0])])])
    chain = create_rag_chain(chat, found, rewriting="off", language="es")
    said: dict[str, list[str]] = {}
    peaks: dict[str, int] = {}

    async def at_once() -> list[Any]:
        return await asyncio.gather(*map(chat.ainvoke, prompts))

    ways: dict[str, Callable[[], list[Any]]] = {
        "ChatLince, one by one": lambda: [chat.invoke(each) for each in prompts],
        "ChatLince.batch": lambda: chat.batch(prompts),
        "ChatLince.batch, again": lambda: chat.batch(prompts),
        "ChatLince.ainvoke, all at once": lambda: asyncio.run(at_once()),
        "LinceLLM.batch": lambda: llm.batch(prompts),
        "create_rag_chain, one by one": lambda: [chain.invoke(each) for each in questions],
        "create_rag_chain(…).batch": lambda: chain.batch(questions),
        **peer_ways(giant, list(map(giant.text, prompts))),
    }

    def noting(way: str) -> None:
        if not way.endswith("again"):
            # What an earlier way has read is not for this one.
            chat.runtime._decoder.reader.prefixes.clear()  # type: ignore[attr-defined]
        free_memory()
        before = resident()
        host_memory(reset=True)
        said[way] = [str(getattr(each, "text", each)) for each in ways[way]()]
        peaks[way] = host_memory() - before

    threads = torch.get_num_threads()
    # Several would wait for each other, longer in one thread of Python than in another.
    torch.set_num_threads(1)
    try:
        for warm in (chat.invoke, llm.invoke):
            warm(prompts[0])
        clock: list[list[float]] = []
        processor: list[list[float]] = []
        for way in ways:
            # One after the other, because one of them needs what the one before has read.
            (times,), (work,) = interleave([partial(noting, way)], giant.load.rounds)
            clock.append(times)
            processor.append(work)
    finally:
        torch.set_num_threads(threads)
    rows: list[list[object]] = []
    for way, times, work in zip(ways, clock, processor, strict=True):
        first = next(each for each in ways if ("rag_chain" in each) == ("rag_chain" in way))
        same = sum(answer.strip() in text for answer, text in zip(said[first], said[way], strict=True))
        peak = f"{peaks[way] / 2**20:.0f}"
        rows.append([way, median(times) / 1000, median(work) / 1000, peak, f"{same} of {BATCH}"])
    lengths = sorted(len(giant.ids(each)) for each in prompts)
    note = (
        f"{BATCH} prompts of {lengths[0]} to {lengths[-1]} tokens, {ANSWER} tokens of answer each, greedy; a "
        f"Llama of 8 layers of 768 (75 million weights) in float32, one thread; {giant.load.rounds} round, each "
        "way from an empty cache, but for the one that comes again. The processor's time is disturbed less by "
        "other work on the machine. Memory: the peak above what the process had before, the kept keys and values "
        "included. "
        "Same answers: as one by one, in the chain as the chain's own. LlamaIndex's ``complete`` and Haystack's "
        f"``run`` take one prompt at a time. Load of the machine {os.getloadavg()[0]:.1f}."
    )
    header = ["by", "seconds", "seconds of the processor", "memory, MiB", "same answers"]
    results.append(f"## Batches: time\n\n{table(header, rows)}\n\n{note}")


def resident() -> int:
    """Resident memory of this process in bytes, 0 where it cannot be measured."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def peer_ways(giant: Giant, texts: list[str]) -> dict[str, Callable[[], list[Any]]]:
    """The peers that are installed, on the same weights."""
    ways: dict[str, Callable[[], list[Any]]] = {}
    with suppress(ImportError):
        for size in (1, BATCH):
            ways[f"HuggingFacePipeline.batch, batch_size={size}"] = partial(giant.peer(ANSWER, size).batch, texts)
    with suppress(ImportError):
        from llama_index.llms.huggingface import HuggingFaceLLM

        index_llm = HuggingFaceLLM(
            model=giant.model,
            tokenizer=giant.tokenizer,
            max_new_tokens=ANSWER,
            generate_kwargs={"do_sample": False, "pad_token_id": giant.tokenizer.pad_token_id},
        )
        ways["LlamaIndex HuggingFaceLLM.complete"] = lambda: [index_llm.complete(each).text for each in texts]
    with suppress(ImportError):
        from haystack.dataclasses import ChatMessage
        from haystack_integrations.components.generators.transformers import TransformersChatGenerator

        generator = TransformersChatGenerator(
            model=str(giant.folder),
            task="text-generation",
            # The texts are prompts already.
            chat_template="{{ messages[0]['content'] }}",
            generation_kwargs={"do_sample": False, "max_new_tokens": ANSWER},
            huggingface_pipeline_kwargs={"device": "cpu", "model_kwargs": {"dtype": torch.float32}},
        )
        generator.warm_up()
        ways["Haystack TransformersChatGenerator.run"] = lambda: [
            generator.run([ChatMessage.from_user(each)])["replies"][0].text for each in texts
        ]
    return ways


PEAK = """
import re, sys
folder, question = sys.argv[1:]
{body}
print("PEAK", re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
"""

BARE = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
ids = tokenizer(f"<s>[INST] {question.strip()} [/INST]", add_special_tokens=False, return_tensors="pt")
with torch.inference_mode():
    model.generate(**ids, do_sample=False, max_new_tokens=64, pad_token_id=2)
"""

OURS = """
from lince_rag import ChatLince
chat = ChatLince(model="llama-2-7b-spanish", model_path=folder, device="cpu", temperature=0, max_tokens=64)
chat.invoke(question)
"""


def peak(body: str, folder: Path) -> int:
    """Peak resident memory of a process, in KiB."""
    command = [sys.executable, "-c", PEAK.format(body=body), str(folder), QUESTION]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return int(done.stdout.rpartition("PEAK")[2])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory(tmp_path: Path, results: list[str]) -> None:
    folder = save_llama(tmp_path / "llama", 8, 1024)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    measured = [(peak(BARE, folder), peak(OURS, folder)) for _ in range(3)]
    bare, ours = (median(column) for column in zip(*measured, strict=True))
    ratio = ours / bare
    row: list[object] = [f"{weights / 2**20:.0f} MiB", f"{bare / 1024:.0f}", f"{ours / 1024:.0f}", ratio]
    header = ["weights", "transformers alone, MiB", "ChatLince, MiB", "ratio"]
    note = "Peak resident memory of whole processes, imports included; medians of 3."
    results.append(f"## Wrapper: memory\n\n{table(header, [row])}\n\n{note}")
