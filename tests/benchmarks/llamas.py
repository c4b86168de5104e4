"""Llamas of random weights to measure with, and times taken in turns."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.checkpoints import build_checkpoint

KIND: Final = "llama-2-7b-spanish"
QUESTION: Final = "Dame una lista de lugares que visitar en España, y di qué tiene de bueno cada uno. "

# For times of the same prompt again and again: it is read each time, and each token takes a pass. What is saved
# otherwise is measured in test_reuse.py.
SAVES_NOTHING: Final[dict[str, Any]] = {"prefix_cache_bytes": 0, "prompt_lookup": False}

# A schema, and the most tokens of its answer.
CONTRACT_TOKENS: Final = 256
CONTRACT: Final = {
    "type": "object",
    "properties": {
        "arrendatario": {"type": "string"},
        "mensualidad": {"type": "number", "minimum": 0},
        "estado": {"enum": ["vigente", "vencido", "añulado"]},
        "cláusulas": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
    },
    "required": ["arrendatario", "mensualidad", "estado", "cláusulas"],
    "additionalProperties": False,
}


def save_llama(folder: Path, layers: int, hidden: int) -> Path:
    """Save a Llama of a size at which a token takes some milliseconds; it never ends its answer by itself."""
    build_checkpoint(KIND, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            max_position_embeddings=1024,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    with torch.no_grad():
        # Never the greatest: ends of the answer, and bytes that are no characters.
        vocabulary = tokenizer.get_vocab().items()
        model.lm_head.weight[[number for token, number in vocabulary if token.startswith("<")]] = 0
    model.save_pretrained(folder)
    return folder


def interleave(calls: Sequence[Callable[[], Any]], rounds: int) -> tuple[list[list[float]], list[list[float]]]:
    """Milliseconds of each call in each round, on the clock and of the processor; each goes first in turn."""
    clock: list[list[float]] = [[] for _ in calls]
    processor: list[list[float]] = [[] for _ in calls]
    for number in range(rounds):
        for position in range(len(calls)):
            current = (number + position) % len(calls)
            started = time.perf_counter(), time.process_time()
            calls[current]()
            clock[current].append(1000 * (time.perf_counter() - started[0]))
            processor[current].append(1000 * (time.process_time() - started[1]))
    return clock, processor
