"""Tiny models that are watched while they run: counted, slowed down, broken, or told what to say."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from tests.checkpoints import MODEL_CLASSES, shared_checkpoint


@cache
def bare(kind: str, **options: Any) -> tuple[Any, Any]:
    """Model and tokenizer without this package."""
    return shared_checkpoint(kind, **options).load()


def counted(usage: Any) -> dict[str, int]:
    """The tokens of a prompt and its answer; how many were kept from before depends on what was asked before."""
    return {name: usage[name] for name in ("input_tokens", "output_tokens", "total_tokens")}


@dataclass
class Meter:
    """What a model did while it was watched.

    Attributes:
        passes: Forward passes.
        rows: How many rows each pass computed.
        tokens: How many tokens each pass computed, padding included.
    """

    passes: int = 0
    rows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


@contextmanager
def watched(
    kind: str,
    *,
    delay: float = 0.0,
    fail_at: int | None = None,
    script: Sequence[int] | None = None,
    until: Callable[[], bool] = lambda: True,
) -> Iterator[Meter]:
    """Count the forward passes of every model of a kind; slow them down, break one, or dictate what they say.

    Args:
        kind: The kind.
        delay: Seconds that a pass takes longer.
        fail_at: The pass that raises.
        script: Ids of one answer, which are made certain, each in its place.
        until: The first pass waits for this, but not longer than ten seconds.
    """
    model_class = MODEL_CLASSES[kind]
    original = model_class.forward
    meter = Meter()
    # The length of the prompt, and so of the text before the answer.
    prompt: list[int] = []

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        meter.passes += 1
        meter.rows.append(len(kwargs["input_ids"]))
        meter.tokens.append(kwargs["input_ids"].numel())
        deadline = time.monotonic() + 10
        while meter.passes == 1 and not until() and time.monotonic() < deadline:
            time.sleep(0.001)
        if meter.passes == fail_at:
            raise RuntimeError("the model broke")
        time.sleep(delay)
        output = original(self, *args, **kwargs)
        if script:
            read = output.past_key_values.get_seq_length()
            prompt[:] = prompt or [read]
            count = output.logits.shape[1]
            output.logits = torch.full_like(output.logits, -1e4)
            for at in range(count):
                step = read - prompt[0] - (count - 1 - at)
                output.logits[:, at, script[max(min(step, len(script) - 1), 0)]] = 1e4
        return output

    model_class.forward = forward
    try:
        yield meter
    finally:
        model_class.forward = original


@contextmanager
def dictated(kind: str, text: str) -> Iterator[Meter]:
    """Make every model of a kind say a text and then end."""
    _, tokenizer = bare(kind)
    script = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    with watched(kind, script=script) as meter:
        yield meter
