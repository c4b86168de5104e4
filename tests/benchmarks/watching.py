"""What is watched while a model runs: passes, tokens, memory, and when texts arrive or the work ends."""

import asyncio
import gc
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lince_rag.engines.generation.batches import Row, RowDecoder


class Passes:
    """Counts the forward passes of a model, which are the tokens it has generated."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        self._hook = model.register_forward_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1

    def __enter__(self) -> "Passes":
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


@contextmanager
def recorded(model: Any) -> Iterator[list[list[int]]]:
    """Note the answers' ids, of ``model.generate`` and of what is decoded together, which are still growing."""
    answers: list[list[int]] = []
    generate, submit = model.generate, RowDecoder.submit

    def noted(*args: Any, **kwargs: Any) -> Any:
        found = generate(*args, **kwargs)
        if "custom_generate" not in kwargs:
            answers.extend(found[:, kwargs["input_ids"].shape[1] :].tolist())
        return found

    def noting(decoder: RowDecoder, submitted: Sequence[Row]) -> None:
        answers.extend(row.answer for row in submitted)
        submit(decoder, submitted)

    model.generate, RowDecoder.submit = noted, noting  # type: ignore[method-assign]
    try:
        yield answers
    finally:
        del model.generate
        RowDecoder.submit = submit  # type: ignore[method-assign]


def free_memory() -> None:
    """Give memory that nothing holds any more back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def host_memory(*, reset: bool = False) -> int:
    """Peak resident memory of this process in bytes, since the last reset; 0 where it cannot be measured."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def allocated(*, peak: bool = False, reset: bool = False) -> int:
    """Bytes of GPU memory that tensors hold, or held at most."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()


class Arrivals:
    """A streamer of transformers that notes when tokens arrive; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is waiting."""


def text_of(chunk: Any) -> str:
    return chunk if isinstance(chunk, str) else chunk.text


def timed_stream(chunks: Callable[[], Iterator[Any]], firsts: list[float]) -> Callable[[], None]:
    """A call that reads a stream to its end and notes the milliseconds to its first text."""

    def call() -> None:
        started = time.perf_counter()
        arrived = [time.perf_counter() for chunk in chunks() if text_of(chunk)]
        firsts.append(1000 * (arrived[0] - started))

    return call


def settle(passes: Passes) -> float:
    """Wait until no forward pass has come for a second, and return when the last one came."""
    count, last = passes.count, time.perf_counter()
    while time.perf_counter() - last < 1:
        time.sleep(0.002)
        if passes.count != count:
            count, last = passes.count, time.perf_counter()
    return last


def close_stream(chunks: Iterator[Any], passes: Passes) -> tuple[int, float, float]:
    """Leave a stream after three texts; the passes until then, and when the end was asked for and reached."""
    for _ in range(3):
        while not text_of(next(chunks)):
            pass
    count, started = passes.count, time.perf_counter()
    chunks.close()  # type: ignore[attr-defined]
    return count, started, settle(passes)


def cancel_call(model: Any, prompt: Any, passes: Passes, **options: Any) -> tuple[int, float, float]:
    """Cancel an ``ainvoke`` after some passes; as ``close_stream``."""

    async def run() -> tuple[int, float, float]:
        task = asyncio.create_task(model.ainvoke(prompt, **options))
        while passes.count < 4:
            await asyncio.sleep(0.001)
        task.cancel()
        count, started = passes.count, time.perf_counter()
        await asyncio.gather(task, return_exceptions=True)
        return count, started, settle(passes)

    return asyncio.run(run())
