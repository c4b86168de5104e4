"""Answers that are decoded together: each is the same as alone, whoever else is answered at the same time."""

import asyncio
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from peft import PeftModel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from lince_rag import Answer, ChatLince, LinceLLM, create_rag_chain
from lince_rag.engines.checkpoints import memory
from lince_rag.engines.generation.batches import Row, RowDecoder
from lince_rag.engines.generation.reading import TokenPrompt, can_read
from lince_rag.errors import ContextWindowError, EngineError
from tests.checkpoints import KINDS, SENTENCES, build_checkpoint, shared_checkpoint
from tests.unit_tests.chain_samples import Fixed
from tests.watched_models import Meter, bare, counted, watched

MAX_TOKENS: Final = 12
GREEDY: Final[dict[str, Any]] = {"temperature": 0}
# Of very different lengths.
QUESTIONS: Final = [" ".join(SENTENCES[: number + 1]) for number in (0, 6, 1, 3, 0, 2)]
QUESTIONS[4] = "¿Qué?"
DOCUMENTS: Final = [Document(text, metadata={"source": text[:9], "start": 0}) for text in SENTENCES[:3]]

by_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def chat(kind: str = KINDS[0], **fields: Any) -> ChatLince:
    """A greedy chat model on a tiny checkpoint whose answers often end by themselves."""
    shared = shared_checkpoint(kind, eos_scale=2.0).chat_fields
    return ChatLince(**{**shared, **GREEDY, "max_tokens": MAX_TOKENS, **fields})


@cache
def alone(kind: str, question: str, options: tuple[tuple[str, Any], ...] = ()) -> tuple[Any, ...]:
    """What is said of an answer that nothing else is computed beside."""
    return said(chat(kind).invoke(question, **dict(options)))


def said(reply: Any) -> tuple[Any, ...]:
    return reply.text, reply.usage_metadata["output_tokens"], reply.response_metadata["finish_reason"]


def told(answers: Iterable[Answer]) -> list[Answer]:
    """Answers of a chain without what was kept of their prompts."""
    return [each.model_copy(update={"usage": counted(each.usage)}) for each in answers]


@contextmanager
def together(llm: Any, count: int = len(QUESTIONS)) -> Iterator[Meter]:
    """Watch a model whose first pass waits until so many answers, or searches, have been asked for."""
    engine, decoder = llm.runtime, llm.runtime._decoder
    asked: list[Row] = []

    def submit(rows: Sequence[Row]) -> None:
        asked.extend(rows)
        RowDecoder.submit(decoder, rows)

    decoder.submit = submit
    try:
        with watched(llm.model, until=lambda: len(asked) + len(engine._searches) >= count) as meter:
            yield meter
    finally:
        del decoder.submit


def chain(kind: str = KINDS[0], **fields: Any) -> Any:
    llm = chat(kind, **fields)
    return create_rag_chain(llm, Fixed(documents=DOCUMENTS), minimum_confidence=0.0, rewriting="off")


# ---------------------------------------------------------------------------------------------------- all together


@by_kind
async def test_every_way_to_ask_several_questions_shares_the_passes(kind: str) -> None:
    llm = chat(kind)
    expected = [alone(kind, question) for question in QUESTIONS]
    texts = [text for text, *_ in expected]
    ways: dict[str, Any] = {
        "batch": lambda: llm.batch(QUESTIONS),
        "abatch": lambda: llm.abatch(QUESTIONS),
        "generate": lambda: [
            row[0].message for row in llm.generate([[HumanMessage(each)] for each in QUESTIONS]).generations
        ],
        "gather": lambda: asyncio.gather(*map(llm.ainvoke, QUESTIONS)),
        "sequence": lambda: (llm | StrOutputParser()).batch(QUESTIONS),
    }
    for way, ask in ways.items():
        # LangChain's generate asks one after the other.
        with watched(kind) if way == "generate" else together(llm) as meter:
            replies = ask()
            replies = replies if isinstance(replies, list) else await replies
        assert [each if isinstance(each, str) else said(each) for each in replies] in (expected, texts), way
        # The answer of one may be so short that it has ended when the last ones join.
        assert max(meter.rows) >= (1 if way == "generate" else len(QUESTIONS) - 1), way


@by_kind
async def test_the_questions_of_a_chain_share_the_passes(kind: str) -> None:
    made = chain(kind)
    expected = told(made.invoke(question) for question in QUESTIONS)
    for ask in (made.batch, made.abatch, made.with_retry().batch):
        with together(chat(kind)) as meter:
            answers = ask(QUESTIONS)
            answers = answers if isinstance(answers, list) else await answers
        assert told(answers) == expected
        assert max(meter.rows) >= len(QUESTIONS) - 1
    with watched(kind) as meter:
        assert told(made.batch(QUESTIONS, {"max_concurrency": 1})) == expected
    assert max(meter.rows) == 1


def test_streams_join_what_is_decoded() -> None:
    llm = chat()
    texts: dict[str, str] = {}

    def read(question: str) -> None:
        texts[question] = "".join(chunk.text for chunk in llm.stream(question))

    with together(llm) as meter, ThreadPoolExecutor(len(QUESTIONS)) as pool:
        list(pool.map(read, QUESTIONS))
    assert texts == {question: alone(KINDS[0], question)[0] for question in QUESTIONS}
    assert max(meter.rows) >= len(QUESTIONS) - 1


def test_beam_searches_that_wait_run_together() -> None:
    llm = chat(num_beams=3)
    expected = [llm.invoke(question).text for question in QUESTIONS]
    with together(llm) as meter:
        assert [reply.text for reply in llm.batch(QUESTIONS)] == expected
    # The first one does not wait for the others.
    assert max(meter.rows) == 3 * (len(QUESTIONS) - 1)


async def test_a_cancelled_search_takes_none_of_the_others_along() -> None:
    llm = chat(num_beams=3)
    engine: Any = llm.runtime
    expected = [said(llm.invoke(question)) for question in QUESTIONS[:4]]
    with together(llm, 4) as meter:
        tasks = [asyncio.ensure_future(llm.ainvoke(question)) for question in QUESTIONS[:4]]
        while not meter.passes or len(engine._searches) < 4:
            await asyncio.sleep(0.005)
        # One runs, the others wait.
        tasks[1].cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(replies[1], asyncio.CancelledError)
    for at in (0, 2, 3):
        assert said(replies[at]) == expected[at]


# ----------------------------------------------------------------------------------------- the ids, token by token


@contextmanager
def computing() -> Iterator[None]:
    with torch.inference_mode():
        yield


def row_of(ids: Sequence[int], limit: int = MAX_TOKENS, **more: Any) -> Row:
    fields = {"end_ids": {0}, "processors": None, "samples": False, "generator": None, "batch_size": 8}
    return Row(TokenPrompt(tuple(ids)), limit, is_stopped=lambda answer: False, **{**fields, **more})


def generated(model: Any, row: Row) -> list[int]:
    """The ids that ``model.generate`` gives for a row."""
    output = model.generate(
        torch.tensor([row.ids]),
        do_sample=False,
        max_new_tokens=row.limit,
        eos_token_id=sorted(row.end_ids),
        pad_token_id=0,
        repetition_penalty=1.0,
    )
    return [int(token) for token in output[0, len(row.ids) :]]


PLAN: Final = st.lists(
    st.tuples(
        st.lists(st.integers(5, 500), min_size=1, max_size=60),
        st.integers(1, 14),
        # How many tokens the one before has when this one joins; if it ends earlier, then.
        st.integers(0, 6),
        st.sets(st.integers(5, 800), max_size=200),
    ),
    min_size=1,
    max_size=7,
)


@by_kind
@given(PLAN)
@settings(max_examples=10, deadline=None)
def test_ids_are_those_of_generate_whoever_joins_when(kind: str, plan: list[Any]) -> None:
    model, _ = bare(kind)
    decoder = RowDecoder(model.get_base_model() if isinstance(model, PeftModel) else model, 0, computing)
    rows = [row_of(ids, limit, end_ids=ends | {0}) for ids, limit, _, ends in plan]

    def let_join(number: int, _: Row, token: int) -> None:
        """After a token of a row, submit the next row if its time has come."""
        said, (_, limit, _, ends) = len(rows[number].answer), plan[number]
        due = number + 1 < len(rows) and not submitted[number + 1]
        if due and (said > plan[number + 1][2] or said >= limit or token in ends | {0}):
            submitted[number + 1] = True
            decoder.submit([rows[number + 1]])

    submitted = [True] + [False] * (len(rows) - 1)
    for number, row in enumerate(rows):
        row.on_token = partial(let_join, number)
    decoder.submit(rows[:1])
    for row in rows:
        assert row.future.result(30) == generated(model, row)
    assert decoder._rows == []


# --------------------------------------------------------------------------------------- nothing depends on others

SCHEMA: Final = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
ASKED: Final = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(1, 20),
        "stop": st.sampled_from([("e",), ("a ", "\n"), ("zz",)]).map(list),
        "repetition_penalty": st.sampled_from([1.3, 0.8]),
        "sampling": st.tuples(st.sampled_from([0.7, 1.5]), st.sampled_from([5, 50]), st.integers(0, 3)),
        "response_format": st.just(SCHEMA),
    },
)


def options_of(asked: dict[str, Any]) -> dict[str, Any]:
    options = dict(asked)
    if sampling := options.pop("sampling", None):
        options |= dict(zip(("temperature", "top_k", "seed"), sampling, strict=True))
    if "response_format" in asked:
        options["max_tokens"] = 24
    return options


@by_kind
@given(st.lists(st.tuples(st.sampled_from(QUESTIONS), ASKED, st.integers(0, 8)), min_size=2, max_size=8))
@settings(max_examples=5, deadline=None)
def test_whatever_joins_and_leaves_an_answer_is_what_it_is_alone(
    kind: str, calls: list[tuple[str, dict[str, Any], int]]
) -> None:
    llm = chat(kind)
    asked = [(question, options_of(options), pause) for question, options, pause in calls]
    expected = [said(llm.invoke(question, **options)) for question, options, _ in asked]

    def ask(call: tuple[str, dict[str, Any], int]) -> tuple[Any, ...]:
        question, options, pause = call
        time.sleep(pause / 500)
        return said(llm.invoke(question, **options))

    with ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(ask, asked)) == expected


@by_kind
def test_candidates_are_those_of_their_seeds(kind: str) -> None:
    sampled = {"temperature": 1.0, "top_k": 50}
    llm = chat(kind, n=3, **sampled)
    result = llm.generate([[HumanMessage(question)] for question in QUESTIONS[:3]], seed=5)
    for question, candidates in zip(QUESTIONS, result.generations, strict=False):
        assert [each.text for each in candidates] == [
            chat(kind).invoke(question, seed=5 + number, **sampled).text for number in range(3)
        ]


@by_kind
def test_each_row_leaves_when_it_has_ended(kind: str) -> None:
    """The first row is alone for its two tokens, because it shows how much memory a token takes."""
    model, _ = bare(kind)
    decoder = RowDecoder(model, 0, computing)
    with watched(kind) as meter:
        decoder.submit(
            [row := row_of(range(10, 20), 2), *(row_of(range(limit, limit + 10), limit) for limit in (5, 9))]
        )
        row.future.result(30)
        while decoder._thread is not None:
            time.sleep(0.001)
    assert meter.rows == [1, 1, *[2] * 5, *[1] * 4]


def test_weights_are_freed_with_the_last_model_that_uses_them(tmp_path: Path) -> None:
    llm = ChatLince(**build_checkpoint(KINDS[0], tmp_path).chat_fields, max_tokens=3)
    llm.batch(QUESTIONS[:2])
    weights = weakref.ref(llm.runtime.loaded.model)  # type: ignore[attr-defined]
    del llm
    deadline = time.monotonic() + 10
    while weights() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert weights() is None


# ------------------------------------------------------------------------------------- cancelling, errors, memory


async def test_cancelling_one_frees_its_row_only() -> None:
    llm = LinceLLM(**shared_checkpoint(KINDS[0]).chat_fields, **GREEDY, max_tokens=30)
    keep, drop = QUESTIONS[1], QUESTIONS[3]
    expected = llm.invoke(keep)
    with watched(KINDS[0], delay=0.02) as meter:
        kept = asyncio.ensure_future(llm.ainvoke(keep))
        dropped = asyncio.ensure_future(llm.ainvoke(drop))
        while 2 not in meter.rows:
            await asyncio.sleep(0.005)
        dropped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dropped
        at = meter.passes
        assert await kept == expected
    assert set(meter.rows[at + 2 :]) <= {1}
    assert meter.rows[at + 2 :]


def test_an_error_of_the_model_reaches_all_and_ends_with_them() -> None:
    llm = chat()
    with watched(KINDS[0], delay=0.01, fail_at=9):
        replies = llm.batch(QUESTIONS, return_exceptions=True)
    assert {str(reply) for reply in replies if isinstance(reply, Exception)} == {"the model broke"}
    assert [said(reply) for reply in llm.batch(QUESTIONS)] == [alone(KINDS[0], question) for question in QUESTIONS]


def test_what_is_wrong_with_one_prompt_is_its_own_error() -> None:
    long = "palabra " * 600
    replies = chat().batch([QUESTIONS[0], long, QUESTIONS[1]], return_exceptions=True)
    assert isinstance(replies[1], ContextWindowError)
    assert [said(replies[at]) for at in (0, 2)] == [alone(KINDS[0], question) for question in QUESTIONS[:2]]


def test_an_error_of_one_row_is_its_own() -> None:
    """Such as a schema that turns out to be too complex while it is followed."""
    model, _ = bare(KINDS[0])
    decoder = RowDecoder(model, 0, computing)

    def refuse(ids: Any, scores: Any) -> Any:
        if ids.shape[1] > 14:
            raise EngineError("too complex")
        return scores

    rows = [row_of(range(10, 20)), row_of(range(20, 30), processors=refuse), row_of(range(30, 60))]
    decoder.submit(rows)
    for row in (rows[0], rows[2]):
        assert row.future.result(30) == generated(model, row)
    with pytest.raises(EngineError, match="too complex"):
        rows[1].future.result(30)
    assert len(rows[1].answer) == 5


@pytest.mark.parametrize("free", [0, 10_000_000_000])
def test_no_more_rows_than_the_memory_holds(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    llm = chat()
    expected = [alone(KINDS[0], question) for question in QUESTIONS]
    monkeypatch.setattr(memory, "available_bytes", lambda device: free)
    with together(llm) as meter:
        assert [said(reply) for reply in llm.batch(QUESTIONS)] == expected
    assert max(meter.rows) >= len(QUESTIONS) - 1 if free else max(meter.rows) == 1


def test_no_more_rows_than_asked_for() -> None:
    llm = chat(batch_size=2)
    with together(llm, 2) as meter:
        replies = llm.batch(QUESTIONS)
    assert [said(reply) for reply in replies] == [alone(KINDS[0], question) for question in QUESTIONS]
    assert max(meter.rows) == 2


# ------------------------------------------------------------------------------------------- which models can join

SMALL: Final[dict[str, Any]] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2}
ATTENTION: Final[dict[str, Any]] = {**SMALL, "num_attention_heads": 2, "intermediate_size": 16}


def test_models_with_another_state_are_not_joined() -> None:
    assert can_read(LlamaForCausalLM(LlamaConfig(**ATTENTION)))
    assert can_read(MistralForCausalLM(MistralConfig(**ATTENTION, num_key_value_heads=2, sliding_window=None)))
    assert not can_read(MistralForCausalLM(MistralConfig(**ATTENTION, num_key_value_heads=2, sliding_window=8)))
    assert not can_read(MambaForCausalLM(MambaConfig(**SMALL, state_size=4)))
