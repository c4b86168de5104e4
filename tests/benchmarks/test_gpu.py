"""Speed and memory on a GPU, against bare transformers and HuggingFacePipeline on the same weights.

The models have real shapes and random weights (``giants.py``). All answers are greedy and of a fixed length.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest
import torch
from transformers import AutoModelForCausalLM

from lince_rag import ChatLince, LinceLLM
from lince_rag.engines.generation.reading import without_cudnn_attention
from tests.benchmarks.giants import (
    FULL_LOAD,
    QUESTION,
    SHAPES,
    TINY_LOAD,
    UNSAVED,
    Giant,
    bandwidth,
    place,
    save_giant,
)
from tests.benchmarks.llamas import CONTRACT, CONTRACT_TOKENS, SAVES_NOTHING, interleave
from tests.benchmarks.tables import GPU_PACKAGES, installed, machine, table
from tests.benchmarks.watching import (
    Arrivals,
    Passes,
    allocated,
    cancel_call,
    close_stream,
    free_memory,
    host_memory,
    recorded,
    timed_stream,
)

peers = pytest.importorskip("langchain_huggingface")

PEER: Final = "HuggingFacePipeline"
BARE: Final = "model.generate"

HEADERS: Final[dict[str, tuple[list[str], str]]] = {
    "loading": (
        ["model", "loaded by", "weights, GB", "peak GPU memory, GB", "ratio", "peak host memory, GB", "seconds"],
        "bfloat16, one load each in one process; the peak of the host counts the mapped files. "
        "AutoModelForCausalLM with device_map, HuggingFacePipeline.from_model_id with device=0.",
    ),
    "one answer, streamed": (
        [
            "model",
            "by",
            "first text, ms",
            "tokens a second",
            "the first time",
            "share of the bandwidth limit",
            "time / model.generate",
            "same tokens",
        ],
        "A prompt of about {load.prompt} tokens, {load.tokens} of answer; medians of {load.rounds} rounds in "
        "turns, the ratio of each round. The first time: before the rounds, when no kernel has met these lengths. "
        "The limit: each token after the first reads all weights once, as fast as the memory was copied here. "
        "The first text is what a reader sees; of model.generate, its first token. Same tokens: as model.generate "
        "with the attention kernels that the package uses.",
    ),
    "batch": (
        ["model", "longest prompt", "by", "tokens a second", "time / model.generate", "same tokens"],
        "{load.batch} different prompts, {load.tokens} tokens of answer each; HuggingFacePipeline and its "
        "pipeline with batch_size={load.batch}; medians of {load.rounds} rounds in turns, after one before which "
        "no kernel had met these lengths. Same tokens: as above.",
    ),
    "prompts that begin alike": (
        ["model", "tokens", "first text, ms", "of another question, ms", "times as soon", "same answer"],
        "ChatLince.stream of a new prompt, and then of one with another question on the same passages (LINCE's "
        "format has the question first); medians of {load.rounds} prompts. Same answer: as with "
        "prefix_cache_bytes=0.",
    ),
    "stop": (
        ["model", "by", "tokens until the stop is complete", "tokens generated", "past the stop", "ms"],
        "A stop text from the middle of ChatLince's answer of {load.tokens} tokens; one run each. "
        "HuggingFacePipeline has other attention kernels, which may lead to another answer, "
        "where that text is never said.",
    ),
    "cancelled": (
        ["model", "by", "tokens before", "tokens after", "ms until the GPU was free", "memory kept, MiB"],
        "An answer of {load.long} tokens, cancelled after its first tokens; one run each.",
    ),
    "JSON schema": (
        ["model", "vocabulary", "rows", "free, ms a token", "constrained, ms a token", "ratio"],
        "The contract of four members of the benchmark of masks; the free answers have as many tokens after the "
        "question alone. Medians of {load.rounds} rounds in turns.",
    ),
    "quantized": (
        ["model", "weights", "GPU memory, GB", "peak while loading, GB", "tokens a second", "time / bfloat16"],
        "bitsandbytes, ChatLince.invoke of {load.tokens} tokens; medians of {load.rounds} rounds in turns with "
        "bfloat16.",
    ),
}

Rows = dict[str, list[list[object]]]


@pytest.fixture(scope="module")
def rows(device: str, tiny: bool, results: list[str]) -> Iterator[Rows]:
    """The rows of each table, which its tests fill shape by shape."""
    found: Rows = {name: [] for name in HEADERS}
    yield found
    where = f"{machine(device)}; {installed(GPU_PACKAGES)}"
    for name, (header, note) in HEADERS.items():
        if found[name]:
            note = note.format(load=TINY_LOAD if tiny else FULL_LOAD)
            results.append(f"## GPU: {name}\n\n{table(header, found[name])}\n\n{note} {where}.")


@pytest.fixture(scope="module", params=SHAPES)
def giant(
    request: pytest.FixtureRequest, device: str, tiny: bool, rows: Rows, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Giant]:
    kind = request.param
    folder = tmp_path_factory.mktemp("giants") / kind
    count, model = save_giant(kind, folder, device, tiny=tiny)
    free_memory()
    fields = {
        "model": kind, "model_path": str(folder), "device": device, "dtype": "bfloat16", "temperature": 0,
        **SAVES_NOTHING,
    }  # fmt: skip
    chat = ChatLince(**fields)
    assert tiny or count == chat.spec.parameters
    if model is not None:
        place(chat, model)
        del model
    else:
        load = lambda: getattr(chat.runtime, "loaded")  # noqa: B009, E731
        rows["loading"].append(measure_loading(kind, "ChatLince", folder, load))
    made = Giant(kind, folder, chat, LinceLLM(**fields), TINY_LOAD if tiny else FULL_LOAD)
    made.generate([made.ids(made.prompt(0))], 8)
    yield made
    for holder in (made.chat, made.llm):
        holder.__dict__.pop("runtime", None)
    free_memory()


def measure_loading(kind: str, name: str, folder: Path, load: Callable[[], Any]) -> list[object]:
    """Load a checkpoint once."""
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    free_memory()
    before, host = allocated(reset=True), host_memory(reset=True)
    started = time.perf_counter()
    load()
    seconds = time.perf_counter() - started
    peak, host = allocated(peak=True) - before, max(host_memory() - host, 0)
    return [kind, name, weights / 1e9, peak / 1e9, peak / weights, host / 1e9, seconds]


def test_loading(giant: Giant, rows: Rows, device: str) -> None:
    if giant.kind in UNSAVED:
        pytest.skip("it is not on the disk")
    peer = {
        "model_id": str(giant.folder), "task": "text-generation", "device": 0 if device != "cpu" else -1,
        "model_kwargs": {"dtype": torch.bfloat16},
    }  # fmt: skip
    ways: dict[str, Callable[[], Any]] = {
        "AutoModelForCausalLM": lambda: AutoModelForCausalLM.from_pretrained(
            giant.folder, dtype=torch.bfloat16, device_map=device
        ),
        PEER: lambda: peers.HuggingFacePipeline.from_model_id(**peer),
    }
    rows["loading"] += [measure_loading(giant.kind, name, giant.folder, load) for name, load in ways.items()]


def test_stream(giant: Giant, rows: Rows, device: str, tiny: bool) -> None:
    load = giant.load
    # The milliseconds that reading all weights once takes.
    weights = sum(part.nbytes for part in giant.model.parameters())
    limit = 1000 * weights / bandwidth(device, tiny=tiny)
    prompt = giant.prompt(0)
    ids, text, peer = giant.ids(prompt), giant.text(prompt), giant.peer(load.tokens)
    firsts: dict[str, list[float]] = {BARE: [], "ChatLince": [], "LinceLLM": [], PEER: []}

    def bare() -> None:
        arrivals, started = Arrivals(), time.perf_counter()
        giant.generate([ids], load.tokens, arrivals)
        firsts[BARE].append(1000 * (arrivals.times[1] - started))

    streams: dict[str, Callable[[], Iterator[Any]]] = {
        "ChatLince": lambda: giant.chat.stream(prompt, max_tokens=load.tokens),
        "LinceLLM": lambda: giant.llm.stream(prompt, max_tokens=load.tokens),
        PEER: lambda: peer.stream(text),
    }
    calls = {BARE: bare} | {name: timed_stream(chunks, firsts[name]) for name, chunks in streams.items()}
    with recorded(giant.model) as answers:
        cold = [times[0] for times in interleave(list(calls.values()), 1)[0]]
        while len(answers) < len(calls):
            time.sleep(0.001)
    for noted in firsts.values():
        noted.clear()
    expected = reference(giant, [ids])
    clock, _ = interleave(list(calls.values()), load.rounds)
    for name, first, times, answer in zip(calls, cold, clock, answers, strict=True):
        ratio = median(mine / theirs for mine, theirs in zip(times, clock[0], strict=True))
        speeds = [f"{1000 * load.tokens / milliseconds:.1f}" for milliseconds in (median(times), first)]
        same, until = matching([answer], expected), median(firsts[name])
        share = limit * (load.tokens - 1) / (median(times) - until)
        rows["one answer, streamed"].append([giant.kind, name, f"{until:.1f}", *speeds, share, ratio, same])
    check_same(answers[1:3], expected * 2)


def reference(giant: Giant, prompts: list[list[int]]) -> list[list[int]]:
    """The ids of bare ``model.generate`` with the attention that the package uses; none if they vary."""
    with without_cudnn_attention(giant.model.device.type):
        one, two = (giant.generate(prompts, giant.load.tokens).tolist() for _ in range(2))
    return one if one == two else []


def matching(answers: list[list[int]], expected: list[list[int]]) -> str:
    if not expected:
        return "model.generate varies"
    return f"{sum(mine == theirs for mine, theirs in zip(answers, expected, strict=True))} of {len(expected)}"


def check_same(answers: list[list[int]], expected: list[list[int]]) -> None:
    """Where bare ``model.generate`` repeats itself, ours has its tokens."""
    assert not expected or answers == expected


def test_batch(giant: Giant, rows: Rows) -> None:
    load = giant.load
    prompts = [giant.prompt(number, 0.4 + 0.5 * number / load.batch) for number in range(load.batch)]
    ids, texts = [giant.ids(prompt) for prompt in prompts], [giant.text(prompt) for prompt in prompts]
    peer = giant.peer(load.tokens, load.batch)
    calls: dict[str, Callable[[], Any]] = {
        BARE: lambda: giant.generate(ids, load.tokens),
        "LinceLLM": lambda: giant.llm.batch(prompts, max_tokens=load.tokens),
        PEER: lambda: peer.batch(texts),
    }
    answers = []
    for call in calls.values():
        with recorded(giant.model) as found:
            call()
        answers.append(found)
    expected = reference(giant, ids)
    clock, _ = interleave(list(calls.values()), load.rounds)
    for name, times, answer in zip(calls, clock, answers, strict=True):
        ratio = median(mine / theirs for mine, theirs in zip(times, clock[0], strict=True))
        same = matching(answer, expected)
        speed = f"{1000 * load.batch * load.tokens / median(times):.0f}"
        rows["batch"].append([giant.kind, max(map(len, ids)), name, speed, ratio, same])
    check_same(answers[1], expected)


def test_prompts_that_begin_alike(giant: Giant, rows: Rows) -> None:
    load, keeps = giant.load, giant.chat.model_copy(update={"prefix_cache_bytes": 2**32})
    firsts: tuple[list[float], list[float]] = ([], [])
    same = 0
    for number in range(load.rounds):
        prompt = giant.prompt(number + 3)
        messages = prompt.to_messages()
        other = [
            *messages[:-1],
            messages[-1].model_copy(update={"content": f"{messages[-1].content} ¿Y qué más?"}),
        ]
        for asked, found in zip((messages, other), firsts, strict=True):
            timed_stream(lambda asked=asked: keeps.stream(asked, max_tokens=load.tokens), found)()  # type: ignore[misc]
        told = [chat.invoke(other, max_tokens=load.tokens).text for chat in (keeps, giant.chat)]
        same += told[0] == told[1]
    new, known = map(median, firsts)
    length = len(giant.ids(prompt))
    keeps.runtime._decoder.reader.prefixes.clear()  # type: ignore[attr-defined]
    row = [giant.kind, length, f"{new:.1f}", f"{known:.1f}", f"{new / known:.1f}", f"{same} of {load.rounds}"]
    rows["prompts that begin alike"].append(row)


def test_stop(giant: Giant, rows: Rows) -> None:
    load = giant.load
    prompt = giant.prompt(1, 0.3)
    text, peer = giant.text(prompt), giant.peer(load.tokens)
    whole = giant.chat.invoke(prompt, max_tokens=load.tokens).text
    stop = whole[len(whole) // 2 :].split()[1]
    ours = {"max_tokens": load.tokens, "stop": [stop]}
    calls: dict[str, Callable[[], Any]] = {
        "ChatLince.invoke": lambda: giant.chat.invoke(prompt, **ours).text,
        "ChatLince.stream": lambda: "".join(chunk.text for chunk in giant.chat.stream(prompt, **ours)),
        "LinceLLM.batch": lambda: giant.llm.batch([prompt], **ours)[0],
        f"{PEER}.invoke": lambda: peer.invoke(text, stop=[stop]),
        f"{PEER}.stream": lambda: "".join(peer.stream(text, stop=[stop])),
    }
    for name, call in calls.items():
        started = time.perf_counter()
        with Passes(giant.model) as passes, recorded(giant.model) as answers:
            text = call()
            milliseconds = 1000 * (time.perf_counter() - started)
            while not answers:
                time.sleep(0.001)
        needed = stop_at(giant, answers[0], stop)
        past = "" if needed is None else passes.count - needed
        rows["stop"].append([giant.kind, name, needed or "never said", passes.count, past, f"{milliseconds:.0f}"])
        if not name.startswith(PEER) and needed:
            assert stop not in text
            # A stream learns of the stop from its reader, while the next token is on its way.
            assert passes.count - needed <= (2 if name.endswith("stream") else 0)


def stop_at(giant: Giant, ids: list[int], stop: str) -> int | None:
    """The number of tokens that a stop text is complete after."""
    texts = (giant.tokenizer.decode(ids[:size]) for size in range(1, len(ids) + 1))
    return next((size for size, text in enumerate(texts, 1) if stop in text), None)


def test_cancelled(giant: Giant, rows: Rows, tiny: bool) -> None:
    load = giant.load
    prompt = giant.prompt(2)
    text, peer = giant.text(prompt), giant.peer(load.long)
    ours = {"max_tokens": load.long}
    calls: dict[str, Callable[[Passes], tuple[int, float, float]]] = {
        "ChatLince.stream, closed": lambda passes: close_stream(giant.chat.stream(prompt, **ours), passes),
        "ChatLince.ainvoke": lambda passes: cancel_call(giant.chat, prompt, passes, **ours),
        "LinceLLM.ainvoke": lambda passes: cancel_call(giant.llm, prompt, passes, **ours),
        f"{PEER}.stream, closed": lambda passes: close_stream(peer.stream(text), passes),
        f"{PEER}.ainvoke": lambda passes: cancel_call(peer, text, passes),
    }
    for name, call in calls.items():
        before = allocated()
        with Passes(giant.model) as passes:
            count, started, ended = call(passes)
        kept, late = (allocated() - before) / 2**20, passes.count - count
        milliseconds = 1000 * max(ended - started, 0)
        rows["cancelled"].append([giant.kind, name, count, late, f"{milliseconds:.0f}", f"{kept:.0f}"])
        if not name.startswith(PEER) and not tiny:
            assert late <= 3
            assert kept < 1


def test_json_schema(giant: Giant, rows: Rows) -> None:
    load = giant.load
    for size in (1, load.batch):
        prompts = [f"{QUESTION} ({number})" for number in range(size)]

        def constrained(prompts: list[str] = prompts) -> Any:
            return giant.llm.batch(prompts, response_format=CONTRACT, max_tokens=CONTRACT_TOKENS)

        with Passes(giant.model) as passes:
            constrained()

        def free(prompts: list[str] = prompts, count: int = passes.count) -> Any:
            return giant.llm.batch(prompts, max_tokens=count)

        free()
        clock, _ = interleave([constrained, free], load.rounds)
        ours, bare = (median(times) / passes.count for times in clock)
        row: list[object] = [giant.kind, len(giant.tokenizer), size, f"{bare:.2f}", f"{ours:.2f}", ours / bare]
        rows["JSON schema"].append(row)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized(giant: Giant, rows: Rows, device: str, quantization: str) -> None:
    load = giant.load
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    if giant.kind != SHAPES[0]:
        pytest.skip("measured on one shape only")
    prompt = giant.prompt(0, 0.3)
    free_memory()
    before = allocated(reset=True)
    small = ChatLince(
        model=giant.kind,
        model_path=str(giant.folder),
        device=device,
        temperature=0,
        quantization=quantization,
        **SAVES_NOTHING,
    )
    small.invoke(prompt, max_tokens=4)
    peak = (allocated(peak=True) - before) / 1e9
    held = (allocated() - before) / 1e9
    whole = sum(weights.numel() * weights.element_size() for weights in giant.model.parameters()) / 1e9
    chats = [giant.chat, small]
    clock, _ = interleave(
        [lambda chat=chat: chat.invoke(prompt, max_tokens=load.tokens) for chat in chats], load.rounds
    )
    full, ours = map(median, clock)
    found = rows["quantized"]
    if not found:
        found.append([giant.kind, "bfloat16", whole, "as above", f"{1000 * load.tokens / full:.1f}", 1.0])
    found.append([giant.kind, quantization, held, peak, f"{1000 * load.tokens / ours:.1f}", ours / full])
    small.__dict__.pop("runtime")
    free_memory()
