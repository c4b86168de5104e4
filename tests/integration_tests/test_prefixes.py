"""Keys and values of common beginnings: computed once, kept within their limit, and the same greedy tokens."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from lince_rag import ChatLince
from lince_rag.engines.generation.batches import Row, RowDecoder
from lince_rag.engines.generation.reading import Kept, PrefixCache, Reader, TokenPrompt
from tests.checkpoints import KINDS, SENTENCES, build_checkpoint, shared_checkpoint
from tests.watched_models import bare, watched

MUCH: Final = 2**30
GREEDY: Final[dict[str, Any]] = {"temperature": 0}
DOCUMENTS: Final = [Document(" ".join(SENTENCES[:8]))]
QUESTIONS: Final = ["¿Cuándo vence el contrato?", "¿Dónde se fundó la universidad?", "¿Qué come el gato?"]

by_kind = pytest.mark.parametrize("kind", KINDS)


def in_common(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


# -------------------------------------------------------------------------------------- the ids, token by token


@contextmanager
def computing() -> Iterator[None]:
    with torch.inference_mode():
        yield


def row_of(ids: Sequence[int], limit: int, kept_bytes: int) -> Row:
    return Row(
        TokenPrompt(tuple(ids), kept_bytes),
        limit,
        end_ids={0},
        processors=None,
        samples=False,
        generator=None,
        batch_size=8,
        is_stopped=lambda answer: False,
    )


@torch.inference_mode()
def generated(model: Any, row: Row) -> list[int]:
    """The ids that ``model.generate`` gives for a row."""
    output = model.generate(
        torch.tensor([row.ids]),
        do_sample=False,
        max_new_tokens=row.limit,
        eos_token_id=0,
        pad_token_id=0,
        repetition_penalty=1.0,
    )
    return [int(token) for token in output[0, len(row.ids) :]]


SMALL: Final[dict[str, Any]] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}
ATTENTION: Final[dict[str, Any]] = {**SMALL, "num_attention_heads": 4, "initializer_range": 0.3}
OTHERS: Final[dict[str, PreTrainedConfig]] = {
    "Falcon with alibi": FalconConfig(**ATTENTION, alibi=True, multi_query=False, new_decoder_architecture=False),
    "Falcon with alibi, multi-query": FalconConfig(**ATTENTION, alibi=True, multi_query=True),
    "GPT-2": GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=400, initializer_range=0.3),
    "GPT-NeoX": GPTNeoXConfig(**ATTENTION, intermediate_size=64),
    "grouped queries": Qwen2Config(**ATTENTION, intermediate_size=64, num_key_value_heads=2),
    "Llama": LlamaConfig(**ATTENTION, intermediate_size=64, num_key_value_heads=2),
}


@cache
def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model of the registry's architectures, with its adapter inside, or another one."""
    if name in KINDS:
        model, _ = bare(name)
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        return model.to(dtype) if dtype != torch.float32 else model
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(OTHERS[name]).to(dtype).eval()


# Beginnings that prompts share, each a beginning of the next one or not.
BEGINNINGS: Final = [list(range(20, 50)), list(range(20, 90)), [*range(20, 60), *range(200, 240)], [7] * 12, []]
PROMPTS: Final = st.tuples(
    st.sampled_from(BEGINNINGS), st.lists(st.integers(5, 299), min_size=1, max_size=12), st.integers(1, 6)
)
# Prompts that come together, then others.
PLAN: Final = st.lists(st.lists(PROMPTS, min_size=1, max_size=6), min_size=2, max_size=4)


@pytest.mark.parametrize("name", [*KINDS, *OTHERS])
@given(PLAN, st.sampled_from([MUCH, 40_000, 0]))
@settings(max_examples=8, deadline=None)
def test_ids_are_those_of_generate_whatever_was_read_before(
    name: str, plan: list[list[tuple[list[int], list[int], int]]], kept_bytes: int
) -> None:
    model = model_of(name)
    decoder = RowDecoder(model, 0, computing)
    for prompts in plan:
        rows = [row_of(beginning + rest, limit, kept_bytes) for beginning, rest, limit in prompts]
        decoder.submit(rows)
        for row in rows:
            assert row.future.result(30) == generated(model, row)
            assert row.reused < len(row.ids)
        assert decoder.reader.prefixes.nbytes <= kept_bytes


@pytest.mark.parametrize("name", [*KINDS, *OTHERS])
def test_what_is_known_is_not_computed_again(name: str) -> None:
    decoder = RowDecoder(model_of(name), 0, computing)
    first = row_of(range(20, 120), 5, MUCH)
    decoder.submit([first])
    answer = first.future.result(30)
    again, next_turn, other = (
        row_of(ids, 1, MUCH)
        for ids in (first.ids, [*first.ids, *answer, 250, 251], [*first.ids[:60], *range(210, 250)])
    )
    for row, known in ((again, 99), (next_turn, 104), (other, 60)):
        decoder.submit([row])
        row.future.result(30)
        assert row.reused == known


def test_half_precision_differs_by_rounding_only() -> None:
    """Another beginning is as far away as the logits are large, a wrong position nearly so."""
    ids = tuple(range(20, 120))
    for name in OTHERS:
        model = model_of(name, torch.bfloat16)
        reader = Reader(model, 0)
        with torch.inference_mode():
            whole = reader.score(TokenPrompt(ids), 1)
            reader.score(TokenPrompt((*ids[:70], 8, 9), MUCH), 1)
            ((unread,),) = reader.groups([TokenPrompt(ids, MUCH)])
            assert unread.known == 70
            continued = reader.read([unread])[0][0]
        assert (continued - whole).abs().max() <= 0.05 * whole.abs().max()


# ------------------------------------------------------------------------------------------------- what is kept

TEXTS: Final = st.lists(st.integers(0, 2), min_size=1, max_size=20).map(tuple)


def kept(ids: tuple[int, ...]) -> Kept:
    keys = torch.tensor(ids, dtype=torch.float32).reshape(1, 1, -1, 1)
    return Kept(ids, [(keys, keys.clone())])


@given(st.lists(TEXTS, max_size=25), TEXTS, st.integers(0, 2000))
def test_the_longest_common_beginning_is_found_within_the_limit(
    texts: list[tuple[int, ...]], asked: tuple[int, ...], most_bytes: int
) -> None:
    prefixes = PrefixCache()
    for ids in texts:
        prefixes.keep(kept(ids), most_bytes)
        held = [each.ids for each in prefixes._kept.values()]
        assert prefixes.nbytes == sum(8 * len(each) for each in held) <= most_bytes
        assert sorted(held) == prefixes._sorted
        # The newest one is there, perhaps as the beginning of another.
        assert 8 * len(ids) > most_bytes or any(each[: len(ids)] == ids for each in held)
    longest = max((in_common(each.ids, asked) for each in prefixes._kept.values()), default=0)
    length, found = prefixes.find(asked)
    assert length == (longest if longest >= 8 else 0)
    if found:
        assert found.ids[:length] == asked[:length]
        assert found.layers[0][0].flatten().tolist()[:length] == list(asked[:length])


def test_the_one_that_was_not_used_for_longest_goes_first() -> None:
    one, two, three = (tuple(range(start, start + 10)) for start in (0, 20, 40))
    prefixes = PrefixCache()
    prefixes.keep(kept(one), 160)
    prefixes.keep(kept(two), 160)
    assert prefixes.find(one)[0] == 10
    prefixes.keep(kept(three), 160)
    assert [prefixes.find(ids)[0] for ids in (one, two, three)] == [10, 0, 10]


def test_what_does_not_fit_drives_nothing_out() -> None:
    one, two, much = tuple(range(10)), tuple(range(20, 30)), tuple(range(40))
    prefixes = PrefixCache()
    first = kept(one)
    for each in (first, kept(two), kept(much)):
        prefixes.keep(each, 160)
    assert [prefixes.find(ids)[0] for ids in (one, two, much)] == [10, 10, 10]
    # Nor does what fits only in the place of what is used now.
    prefixes.keep(kept(tuple(range(50, 65))), 160, [first])
    assert prefixes.find(one)[0] == 10


def test_what_is_kept_does_not_change_while_answers_grow() -> None:
    decoder = RowDecoder(model_of(KINDS[0]), 0, computing)
    decoder.submit([first := row_of(range(20, 80), 3, MUCH)])
    first.future.result(30)
    (before,) = decoder.reader.prefixes._kept.values()
    copies = [(keys.clone(), values.clone()) for keys, values in before.layers]
    rows = [row_of([*range(20, 80), number], 20, MUCH) for number in range(100, 104)]
    decoder.submit(rows)
    for row in rows:
        row.future.result(30)
    for (keys, values), (old_keys, old_values) in zip(before.layers, copies, strict=True):
        assert torch.equal(keys, old_keys)
        assert torch.equal(values, old_values)


def test_weights_that_change_in_place_make_it_worthless(tmp_path: Path) -> None:
    model, _ = build_checkpoint(KINDS[2], tmp_path).load()
    decoder = RowDecoder(model, 0, computing)
    for _ in range(2):
        decoder.submit([row := row_of(range(20, 80), 5, MUCH)])
        assert row.future.result(30) == generated(model, row)
        assert row.reused == 0
        with torch.no_grad():
            for weights in model.parameters():
                weights.mul_(-1.1)


# ------------------------------------------------------------------------------------------------------- a chat


def chat(kind: str, **fields: Any) -> ChatLince:
    return ChatLince(**{**shared_checkpoint(kind, eos_scale=2.0).chat_fields, "max_tokens": 8, **fields})


def cached(reply: Any) -> int:
    found = reply.usage_metadata["input_token_details"]["cache_read"]
    assert 0 <= found < reply.usage_metadata["input_tokens"]
    return int(found)


def forget(llm: ChatLince) -> None:
    llm.runtime._decoder.reader.prefixes.clear()  # type: ignore[attr-defined]


@by_kind
def test_another_question_on_the_same_documents(kind: str) -> None:
    llm, alone = chat(kind, **GREEDY), chat(kind, **GREEDY, prefix_cache_bytes=0)
    forget(llm)
    prompts = [llm.encode([HumanMessage(question)], documents=DOCUMENTS) for question in QUESTIONS]
    for number, question in enumerate(QUESTIONS):
        reply = llm.invoke(question, documents=DOCUMENTS)
        bare_reply = alone.invoke(question, documents=DOCUMENTS)
        assert reply.text == bare_reply.text
        assert cached(bare_reply) == 0
        common = [in_common(other, prompts[number]) for other in prompts[:number]]
        assert cached(reply) == max(common, default=0)


@by_kind
async def test_every_way_to_ask_again_reads_the_last_token_only(kind: str) -> None:
    llm = chat(kind, **GREEDY)
    forget(llm)
    first = llm.invoke(QUESTIONS[0], documents=DOCUMENTS)
    read = first.usage_metadata["input_tokens"] - 1
    assert cached(first) == 0
    stream = list(llm.stream(QUESTIONS[0], documents=DOCUMENTS))
    whole = stream[0]
    for chunk in stream[1:]:
        whole += chunk
    for reply in (whole, llm.invoke(QUESTIONS[0], documents=DOCUMENTS)):
        assert (reply.text, cached(reply)) == (first.text, read)
    reply = await llm.ainvoke(QUESTIONS[0], documents=DOCUMENTS)
    assert (reply.text, cached(reply)) == (first.text, read)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_the_next_turn_of_a_conversation(kind: str) -> None:
    llm = chat(kind, **GREEDY)
    forget(llm)
    first = llm.invoke(QUESTIONS[0])
    turns = [HumanMessage(QUESTIONS[0]), AIMessage(first.text), HumanMessage(QUESTIONS[1])]
    reply = llm.invoke(turns)
    assert reply.text == chat(kind, **GREEDY, prefix_cache_bytes=0).invoke(turns).text
    # All of the first prompt but what asks for the answer.
    assert cached(reply) >= first.usage_metadata["input_tokens"] - 4


@by_kind
def test_candidates_are_read_once(kind: str) -> None:
    fields = {"temperature": 1.0, "seed": 3, "n": 4}
    messages = [[HumanMessage(QUESTIONS[0])]]
    expected = [each.text for each in chat(kind, **fields, prefix_cache_bytes=0).generate(messages).generations[0]]
    llm = chat(kind, **fields)
    # The first answer of an engine is alone, to show how much memory it takes.
    llm.invoke("Hola")
    forget(llm)
    length = len(llm.encode(messages[0]))
    with watched(kind) as meter:
        found = llm.generate(messages, documents=()).generations[0]
    assert [each.text for each in found] == expected
    assert meter.tokens[0] == length
    assert meter.rows[1] <= 4
    assert [cached(each.message) for each in found] == [0, *[length - 1] * 3]


@by_kind
def test_a_beam_search_reads_a_prompt_once(kind: str) -> None:
    llm, alone = (chat(kind, num_beams=3, prefix_cache_bytes=size) for size in (None, 0))
    forget(llm)
    messages = [[HumanMessage(question)] for question in QUESTIONS]
    expected = [alone.generate([each], documents=DOCUMENTS).generations[0][0].text for each in messages]
    with watched(kind) as meter:
        reply = llm.invoke(messages[0], documents=DOCUMENTS)
    assert reply.text == expected[0]
    assert meter.tokens[:2] == [reply.usage_metadata["input_tokens"] - 1, 3]
    with watched(kind) as meter:
        assert llm.invoke(messages[0], documents=DOCUMENTS).text == expected[0]
    assert meter.tokens[:2] == [1, 3]
    prompts = [llm.render(each, DOCUMENTS) for each in messages]
    found = llm.runtime.generate_batch([*prompts, prompts[0]], llm._settings(None, None, {}))
    assert [each.text for (each,) in found] == [*expected, expected[0]]


@by_kind
def test_a_batch_reads_what_all_begin_with_once(kind: str) -> None:
    llm = chat(kind, **GREEDY)
    alone = chat(kind, **GREEDY, prefix_cache_bytes=0)
    asked = [f"{SENTENCES[5] * 3} {question}" for question in QUESTIONS * 4]
    asked = [f"{question} {number}" for number, question in enumerate(asked)]
    expected = [reply.text for reply in alone.batch(asked)]
    llm.invoke("Hola")
    forget(llm)
    prompts = [llm.render([HumanMessage(question)]) for question in asked]
    with watched(kind) as meter:
        found = llm.runtime.generate_batch(prompts, llm._settings(None, None, {}))
    assert [each.text for (each,) in found] == expected
    read = sum(len(llm.encode([HumanMessage(question)])) for question in asked)
    assert sum(tokens for tokens, rows in zip(meter.tokens, meter.rows, strict=True) if tokens > rows) < read / 2


def test_logprobs_are_the_same() -> None:
    kind = KINDS[2]
    llm, alone = (chat(kind, **GREEDY, prefix_cache_bytes=size, logprobs=True) for size in (None, 0))
    for _ in range(2):
        scores = [
            [each["logprob"] for each in one.invoke(QUESTIONS[0]).response_metadata["logprobs"]["content"]]
            for one in (llm, alone)
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_an_adapter_does_not_read_what_its_base_has_read() -> None:
    adapted = shared_checkpoint("alpaca-lora-ptbr-7b")
    base = {**adapted.chat_fields, "model_path": str(adapted.base_path)}
    del base["base_model_path"]
    with_adapter, without = (
        ChatLince(**{**fields, "model": model}, **GREEDY, max_tokens=8)
        for fields, model in ((adapted.chat_fields, adapted.kind), (base, "llama-2-7b-spanish"))
    )
    ids = tuple(range(20, 80))
    for llm in (with_adapter, without, with_adapter, without):
        decoder = llm.runtime._decoder  # type: ignore[attr-defined]
        decoder.submit([row := row_of(ids, 8, MUCH)])
        assert row.future.result(30) == generated(llm.runtime.loaded.model, row)  # type: ignore[attr-defined]


def test_keys_and_values_are_freed_with_the_model(tmp_path: Path) -> None:
    llm = ChatLince(**build_checkpoint(KINDS[0], tmp_path).chat_fields, max_tokens=3, **GREEDY)
    llm.invoke(QUESTIONS[0])
    prefixes = llm.runtime._decoder.reader.prefixes  # type: ignore[attr-defined]
    keys = [weakref.ref(part) for each in prefixes._kept.values() for layer in each.layers for part in layer]
    assert keys
    del llm, prefixes
    gc.collect()
    assert not [each for each in keys if each() is not None]
