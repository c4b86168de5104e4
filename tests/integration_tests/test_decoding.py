"""Token ids to text, on every kind of tokenizer: however the ids are grouped, the text is the same and final."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lince_rag.engines.generation.decoding import TextAssembler, assemble
from tests.checkpoints import shared_checkpoint

KINDS = ["lince-zero", "aira-2-portuguese-1b7", "llama-2-7b-spanish"]

pieces = st.sampled_from(
    ["El niño", " está ", "aquí", "¿Qué?", "🦊", "ção", "\n", "\n\n", "  ", "### Fin", "a", "é", "中"]
)
texts = st.lists(pieces | st.text(max_size=4), max_size=12).map("".join)


@cache
def tokenizer_of(kind: str) -> Any:
    checkpoint = shared_checkpoint(kind)
    return AutoTokenizer.from_pretrained(checkpoint.base_path or checkpoint.path)


def ids_of(kind: str, text: str) -> list[int]:
    ids: list[int] = tokenizer_of(kind)(text, add_special_tokens=False)["input_ids"]
    return ids


def plain(kind: str, text: str) -> str:
    """What the tokenizer itself makes of the text, there and back, without the white space around it."""
    decoded: str = tokenizer_of(kind).decode(
        ids_of(kind, text), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return decoded.strip()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200)
@given(text=texts, sizes=st.lists(st.integers(1, 5), min_size=1), stop=st.lists(texts.filter(bool), max_size=2))
def test_pieces_add_up(kind: str, text: str, sizes: list[int], stop: list[str]) -> None:
    ids = ids_of(kind, text)
    assembler = TextAssembler(tokenizer_of(kind), stop)
    given_out, position = [], 0
    while position < len(ids):
        size = sizes[len(given_out) % len(sizes)]
        given_out.append(assembler.add(ids[position : position + size]))
        position += size
    streamed = "".join([*given_out, assembler.finish()])
    whole, stopped = assemble(tokenizer_of(kind), ids, stop)
    assert streamed == whole
    assert assembler.stopped == stopped
    if "\ufffd" not in text:
        assert "\ufffd" not in streamed
    assert not any(mark in streamed for mark in stop)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200)
@given(text=texts)
def test_without_a_stop_it_is_the_text(kind: str, text: str) -> None:
    assert assemble(tokenizer_of(kind), ids_of(kind, text), ())[0] == plain(kind, text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_possible_stop_is_held_back_and_let_go(kind: str) -> None:
    ids = ids_of(kind, "uno ## dos ### tres")
    assembler = TextAssembler(tokenizer_of(kind), ["### Fin"])
    assert "".join([assembler.add([token]) for token in ids] + [assembler.finish()]) == "uno ## dos ### tres"


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_given_out_early(kind: str) -> None:
    ids = ids_of(kind, "Una frase bastante larga que no termina nunca")
    assembler = TextAssembler(tokenizer_of(kind), ["###"])
    assert sum(bool(assembler.add([token])) for token in ids) > len(ids) / 2
