"""Guessing that an answer quotes what was before: fewer passes, and the same answer."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessorList

from lince_rag import ChatLince
from lince_rag.engines.generation.batches import Guesses, Row, RowDecoder
from lince_rag.engines.generation.reading import TokenPrompt
from tests.checkpoints import KINDS, SENTENCES, shared_checkpoint
from tests.watched_models import bare, counted, dictated, watched

GREEDY: Final[dict[str, Any]] = {"temperature": 0}
QUESTION: Final = "¿Qué dice?"
DOCUMENTS: Final = [Document(" ".join(SENTENCES[:6]))]
# The only tokens that the narrow models say: so their answers have much in common with what was before.
SAID: Final = (40, 41, 42, 43)

by_kind = pytest.mark.parametrize("kind", KINDS)


# --------------------------------------------------------------------------------------- the ids, token by token


@cache
def narrow(kind: str) -> Any:
    """A model of a kind that says few tokens only."""
    model, _ = bare(kind)
    model = copy.deepcopy(model.get_base_model() if isinstance(model, PeftModel) else model)
    with torch.no_grad():
        weights = model.get_output_embeddings().weight
        kept = weights[list(SAID)].clone()
        weights.zero_()
        weights[list(SAID)] = kept
    return model


@contextmanager
def computing() -> Iterator[None]:
    with torch.inference_mode():
        yield


def few(ids: Any, scores: Any) -> Any:
    """A logits processor: like a schema, it leaves some tokens only, and which depends on the text."""
    allowed = SAID[: 2 + int(ids[0, -1]) % 2 + int(ids.shape[1] > 40)]
    limited = torch.full_like(scores, -float("inf"))
    limited[:, list(allowed)] = scores[:, list(allowed)]
    return limited


NONE: Final = LogitsProcessorList()
ROWS: Final = st.lists(
    st.fixed_dictionaries(
        {
            "ids": st.lists(st.sampled_from([*SAID, 7, 8]), min_size=1, max_size=50),
            "limit": st.integers(1, 40),
            "ends": st.sampled_from([{0}, {0, 42}]),
            "processors": st.sampled_from([NONE, few]),
            "seed": st.sampled_from([None, None, 1, 2]),
            # The sum of the answer's ids that ends it, like a stop text.
            "stops_at": st.sampled_from([10_000, 500]),
        }
    ),
    min_size=1,
    max_size=6,
)


def row_of(asked: dict[str, Any], *, looks_up: bool) -> Row:
    generator = None if asked["seed"] is None else torch.Generator().manual_seed(asked["seed"])
    return Row(
        TokenPrompt(tuple(asked["ids"])),
        asked["limit"],
        end_ids=asked["ends"],
        processors=asked["processors"],
        samples=generator is not None,
        generator=generator,
        batch_size=8,
        is_stopped=lambda answer: sum(answer) >= asked["stops_at"],
        looks_up=looks_up,
    )


@by_kind
@given(ROWS)
@settings(max_examples=15, deadline=None)
def test_ids_are_those_without_guesses(kind: str, asked: list[dict[str, Any]]) -> None:
    decoder = RowDecoder(narrow(kind), 0, computing)
    expected = []
    for each in asked:
        decoder.submit([row := row_of(each, looks_up=False)])
        expected.append(row.future.result(30))
    told: list[list[int]] = [[] for _ in asked]
    rows = [row_of(each, looks_up=True) for each in asked]
    for row, tokens in zip(rows, told, strict=True):
        row.on_token = lambda _, token, tokens=tokens: tokens.append(token)
    decoder.submit(rows)
    assert [row.future.result(30) for row in rows] == expected == told


@by_kind
@pytest.mark.parametrize(("processors", "seed"), [(NONE, None), (few, None)])
def test_guesses_save_passes(kind: str, processors: Any, seed: int | None) -> None:
    decoder = RowDecoder(narrow(kind), 0, computing)
    asked = {
        "ids": [*SAID, 7] * 6,
        "limit": 60,
        "ends": set(),
        "processors": processors,
        "seed": seed,
        "stops_at": 9e9,
    }
    with watched(kind) as meter:
        decoder.submit([row := row_of(asked, looks_up=True)])
        assert len(row.future.result(30)) == 60
    assert meter.passes < 60
    # What was guessed wrong is not in the cache.
    assert max(meter.tokens[1:]) > 1


def test_no_row_reads_beyond_the_window() -> None:
    """The positions of GPT-2 are a table: one more than it has is an error."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    decoder = RowDecoder(model, 0, computing)

    def count(ids: Any, scores: Any) -> Any:
        return torch.nn.functional.one_hot((ids[:, -1] + 1) % 20, 50).float()

    shared = {"ends": set(), "processors": count, "seed": None, "stops_at": 9e9}
    # The first one, whose text is new, is read alone; then the other one is guessed up to the end of its own.
    asked = [{"ids": [30] * 56, "limit": 8}, {"ids": list(range(20)), "limit": 40}]
    decoder.submit(rows := [row_of({**each, **shared}, looks_up=True) for each in asked])
    assert [len(row.future.result(30)) for row in rows] == [8, 40]


# ------------------------------------------------------------------------------------------------ what is guessed


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 20))
def test_a_guess_is_what_came_next_before(ids: list[int], most: int) -> None:
    found = Guesses(ids).make(most)
    assert len(found) <= most
    after = [ids[at : at + len(found)] for at in range(3, len(ids)) if ids[at - 3 : at] == ids[-3:]]
    assert found in after if found else not after


def test_a_text_that_never_goes_on_as_before_is_seldom_guessed() -> None:
    guesses = Guesses([1, 2, 3, 4] * 5)
    tried = 0
    for _ in range(200):
        # The last tokens are always known.
        guesses.add([1, 2, 3])
        if found := guesses.make(15):
            tried += 1
            guesses.learn(len(found), 0)
    assert 1 < tried <= 6


def test_guesses_grow_as_long_as_they_are_right() -> None:
    text = list(range(100))
    guesses = Guesses([*text, 3, 4, 5])
    sizes = []
    for _ in range(4):
        found = guesses.make(15)
        sizes.append(len(found))
        guesses.add(found)
        guesses.learn(len(found), len(found))
    assert sizes == [3, 6, 12, 15]


# ------------------------------------------------------------------------------------------------------- a chat


@cache
def chat(kind: str, **fields: Any) -> ChatLince:
    return ChatLince(
        **{**shared_checkpoint(kind, eos_scale=2.0).chat_fields, **GREEDY, "max_tokens": 40, **fields}
    )


def said(reply: Any) -> tuple[Any, ...]:
    return reply.text, counted(reply.usage_metadata), reply.response_metadata["finish_reason"]


@by_kind
@pytest.mark.parametrize("stop", [None, "alquiler", "siglos después. El contrato de"])
def test_a_quotation_takes_fewer_passes_and_ends_at_its_stop(kind: str, stop: str | None) -> None:
    quotation = f"{SENTENCES[0]} {SENTENCES[1]}"
    options: dict[str, Any] = {"documents": DOCUMENTS, "max_tokens": 120, "stop": [stop] if stop else None}
    with dictated(kind, quotation) as plain:
        expected = chat(kind, prompt_lookup=False).invoke(QUESTION, **options)
    assert expected.text == (quotation[: quotation.index(stop)].strip() if stop else quotation)
    with dictated(kind, quotation) as meter:
        assert said(chat(kind).invoke(QUESTION, **options)) == said(expected)
    assert meter.passes < plain.passes / 2
    with dictated(kind, quotation) as meter:
        chunks = list(chat(kind).stream(QUESTION, **options))
    assert "".join(chunk.text for chunk in chunks) == expected.text
    assert meter.passes < plain.passes / 2


SCHEMA: Final = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "boolean"}, "maxItems": 4}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
}
ASKED: Final = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(1, 40),
        "stop": st.sampled_from([["e"], ["a ", "\n"]]),
        "repetition_penalty": st.sampled_from([1.3, 0.8]),
        "response_format": st.just(SCHEMA),
        "temperature": st.just(1.2),
        "logprobs": st.just(True),
    },
)


@by_kind
@given(st.sampled_from(SENTENCES), ASKED)
@settings(max_examples=8, deadline=None)
def test_an_answer_is_the_same_with_and_without(kind: str, question: str, asked: dict[str, Any]) -> None:
    options = {"documents": [Document(question * 3)], "seed": 5, **asked}
    if "response_format" in asked:
        options["max_tokens"] = 40
    one, two = (chat(kind, prompt_lookup=looks_up).invoke(question, **options) for looks_up in (True, False))
    assert said(one) == said(two)
    if "logprobs" in asked:
        logprobs = [
            [each["logprob"] for each in reply.response_metadata["logprobs"]["content"]] for reply in (one, two)
        ]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3)
