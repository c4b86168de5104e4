"""Converted weights: in float32 what transformers answers, and clear errors for what CTranslate2 lacks."""

import asyncio
import functools
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import pytest
import torch
from langchain_core.messages import HumanMessage
from pydantic import BaseModel
from transformers import LogitsProcessor, LogitsProcessorList

from lince_rag import ChatLince, LinceLLM
from lince_rag.engines import GenerationSettings
from lince_rag.errors import ConfigurationError, ContextWindowError, EngineError
from tests.checkpoints import KINDS, SENTENCES, converted_checkpoint, shared_checkpoint
from tests.watched_models import bare

MAX_TOKENS: Final = 40
GREEDY: Final[dict[str, Any]] = {"temperature": 0}
SAMPLING: Final[dict[str, Any]] = {"temperature": 1.0, "top_k": 50}
QUESTION: Final = SENTENCES[5]
# Of very different lengths: so that some of them share a batch and others do not.
QUESTIONS: Final = ["¿Qué?", QUESTION, " ".join(SENTENCES[25:29]), SENTENCES[4]]

LLAMA: Final = "llama-2-7b-spanish"

by_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def ours(kind: str, **options: Any) -> ChatLince:
    """A converted tiny checkpoint."""
    return ChatLince(**converted_checkpoint(kind, **options), max_tokens=MAX_TOKENS)


@cache
def original(kind: str, **options: Any) -> ChatLince:
    """The same checkpoint in transformers."""
    return ChatLince(**shared_checkpoint(kind, **options).chat_fields, max_tokens=MAX_TOKENS)


def summary(message: Any) -> tuple[Any, ...]:
    # Only transformers keeps what it has read, and says how much of a prompt that was.
    tokens = {name: count for name, count in message.usage_metadata.items() if name.endswith("_tokens")}
    return message.text, tokens, message.response_metadata["finish_reason"]


def streamed(chat: ChatLince, question: str, **decoding: Any) -> Any:
    return functools.reduce(lambda total, chunk: total + chunk, chat.stream(question, **decoding))


# -------------------------------------------------------------------------------------------------------- parity


@pytest.fixture(scope="module")
def equal_tokens() -> Iterator[dict[str, list[float]]]:
    """Shares of the greedy tokens that are equal, by kind and quantization; printed after the last test."""
    shares: dict[str, list[float]] = {}
    yield shares
    rows = ["| model, quantization | equal greedy tokens |", "| --- | --- |"]
    rows += [
        f"| {name} | {sum(found) / len(found):.3f} of {len(found)} answers |" for name, found in shares.items()
    ]
    print("\n\n" + "\n".join(rows))


def share_of_equal_tokens(kind: str, quantization: str, question: str) -> float:
    """Of the tokens that transformers generates, those before the first difference, which changes the rest."""
    model, tokenizer = bare(kind)
    ids = original(kind).encode([HumanMessage(question)])
    assert ours(kind, quantization=quantization).encode([HumanMessage(question)]) == ids
    prompt = torch.tensor([ids])
    settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": MAX_TOKENS, "pad_token_id": 0}
    output = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **settings)
    expected = output[0, len(ids) :].tolist()
    generator = ours(kind, quantization=quantization).runtime.generator  # type: ignore[attr-defined]
    (result,) = generator.generate_batch(
        [tokenizer.convert_ids_to_tokens(ids)],
        max_length=MAX_TOKENS,
        include_prompt_in_result=False,
        end_token=[tokenizer.eos_token_id],
        return_end_token=True,
    )
    found = result.sequences_ids[0]
    pairs = enumerate(zip(found, expected, strict=False))
    return next((at for at, (one, other) in pairs if one != other), len(found)) / len(expected)


@by_kind
def test_float32_gives_the_same_greedy_ids(kind, equal_tokens):
    shares = [share_of_equal_tokens(kind, "float32", question) for question in (*QUESTIONS, *SENTENCES[:8])]
    equal_tokens[f"{kind}, float32"] = shares
    assert set(shares) == {1.0}


@by_kind
def test_int8_begins_with_the_same_greedy_ids(kind, equal_tokens):
    """Rounding changes a random model's answer at some token; a trained one is surer of its tokens."""
    shares = [share_of_equal_tokens(kind, "int8", question) for question in (*QUESTIONS, *SENTENCES[:8])]
    equal_tokens[f"{kind}, int8"] = shares
    assert sum(shares) / len(shares) > 0.1


DECODINGS: Final[dict[str, dict[str, Any]]] = {
    "greedy": GREEDY,
    "a stop text": {**GREEDY, "stop": ["e"]},
    "stop texts of two letters": {**GREEDY, "stop": ["no se dice nunca", "a ", "os", "er"]},
    "one token": {**GREEDY, "max_tokens": 1},
    "three beams": {"num_beams": 3},
}


@by_kind
@pytest.mark.parametrize("decoding", DECODINGS)
def test_answers_are_those_of_transformers(kind, decoding):
    options = DECODINGS[decoding]
    for question in QUESTIONS:
        expected = original(kind).invoke(question, **options)
        assert summary(ours(kind).invoke(question, **options)) == summary(expected)
        if "num_beams" not in options:
            assert summary(streamed(ours(kind), question, **options)) == summary(expected)


@by_kind
def test_answers_that_end_by_themselves(kind):
    options = {"eos_scale": 3.0}
    reasons = set()
    for question in QUESTIONS:
        expected = original(kind, **options).invoke(question, **GREEDY)
        assert summary(ours(kind, **options).invoke(question, **GREEDY)) == summary(expected)
        assert summary(streamed(ours(kind, **options), question, **GREEDY)) == summary(expected)
        reasons.add(expected.response_metadata["finish_reason"])
    assert "stop" in reasons


def test_a_beam_search_that_stops_early_is_that_of_transformers():
    """As the card of LINCE-ZERO sets it, with answers that end by themselves."""
    for question in (*QUESTIONS, *SENTENCES[:8]):
        expected = original("lince-zero", eos_scale=3.0).invoke(question)
        assert summary(ours("lince-zero", eos_scale=3.0).invoke(question)) == summary(expected)


@by_kind
@pytest.mark.parametrize("options", [GREEDY, {"num_beams": 3}, {**GREEDY, "stop": ("a ",)}], ids=str)
def test_a_batch_equals_one_by_one(kind, options):
    chat = ours(kind)
    prompts = [chat.render([HumanMessage(question)]) for question in (*QUESTIONS, *SENTENCES[:3])]
    settings = GenerationSettings(max_tokens=MAX_TOKENS, **options)
    singles = [chat.runtime.generate_batch([prompt], settings) for prompt in prompts]
    assert chat.runtime.generate_batch(prompts, settings) == [answers for (answers,) in singles]


# -------------------------------------------------------------------------------------------- sampling, penalties


@by_kind
def test_candidates_and_answers_without_a_seed_vary(kind):
    chat = ChatLince(**converted_checkpoint(kind), max_tokens=12, n=3, **SAMPLING)
    result = chat.generate([[HumanMessage(question)] for question in QUESTIONS[:2]])
    texts = [[generation.text for generation in generations] for generations in result.generations]
    assert [len(set(of_one)) for of_one in texts] == [3, 3]
    assert len({streamed(ours(kind), QUESTION, **SAMPLING).text for _ in range(3)}) > 1
    assert ours(kind).invoke(QUESTION, temperature=1.0, top_k=1).text == ours(kind).invoke(QUESTION, **GREEDY).text


def test_candidates_end_at_their_own_stop():
    prompt = ours(LLAMA).render([HumanMessage(QUESTION)])
    settings = GenerationSettings(max_tokens=MAX_TOKENS, stop=("e",), **SAMPLING)
    (answers,) = ours(LLAMA).runtime.generate_batch([prompt], settings, candidates=6)
    assert not [answer for answer in answers if "e" in answer.text]
    assert len({answer.output_tokens for answer in answers}) > 1


def test_a_search_cannot_return_more_candidates_than_beams():
    with pytest.raises(ConfigurationError, match="n=3"):
        ChatLince(**converted_checkpoint(LLAMA), n=3, **GREEDY).invoke(QUESTION)


@pytest.mark.parametrize("kind", ["aira-2-portuguese-1b7", "lince-zero"])
def test_a_seed_is_refused_only_where_it_would_count(kind):
    for call in (ours(kind).invoke, lambda *args, **more: list(ours(kind).stream(*args, **more))):
        with pytest.raises(ConfigurationError, match="seed=7"):
            call(QUESTION, seed=7, **SAMPLING)
    assert ours(kind).invoke(QUESTION, seed=7, **GREEDY).text == ours(kind).invoke(QUESTION, **GREEDY).text


class PenaltyOfAnswer(LogitsProcessor):
    """The repetition penalty of transformers, for the tokens of the answer only."""

    def __init__(self, penalty: float, prompt_tokens: int) -> None:
        self.penalty, self.prompt_tokens = penalty, prompt_tokens

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        ids = input_ids[:, self.prompt_tokens :]
        values = torch.gather(scores, 1, ids)
        return scores.scatter(1, ids, torch.where(values < 0, values * self.penalty, values / self.penalty))


@by_kind
def test_the_repetition_penalty_is_for_the_answer_and_says_so(kind, caplog):
    model, tokenizer = bare(kind)
    chat = ChatLince(**converted_checkpoint(kind), max_tokens=MAX_TOKENS, revision="x")
    ids = chat.encode([HumanMessage(QUESTION)])
    prompt = torch.tensor([ids])
    output = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, num_beams=1, pad_token_id=0,
        max_new_tokens=MAX_TOKENS, logits_processor=LogitsProcessorList([PenaltyOfAnswer(1.5, len(ids))]),
    )  # fmt: skip
    expected = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip()
    with caplog.at_level(logging.WARNING, logger="lince_rag"):
        texts = [chat.invoke(QUESTION, repetition_penalty=1.5, **GREEDY).text for _ in range(2)]
    assert texts == [expected, expected]
    assert len([record for record in caplog.records if "repetition_penalty" in record.getMessage()]) == 1


# --------------------------------------------------------------------------------------------- window, cancelling


@by_kind
def test_prompt_and_answer_stay_within_the_window(kind):
    window = ours(kind).context_window
    assert window == original(kind).context_window
    text = "Cuenta" + " y" * (window - 2 - len(ours(kind).encode([HumanMessage("Cuenta")])))
    expected = original(kind).invoke(text, max_tokens=8, **GREEDY)
    assert expected.usage_metadata["total_tokens"] == window
    assert summary(ours(kind).invoke(text, max_tokens=8, **GREEDY)) == summary(expected)
    assert summary(streamed(ours(kind), text, max_tokens=8, **GREEDY)) == summary(expected)
    prompts = [ours(kind).render([HumanMessage(question)]) for question in (text, QUESTION)]
    answers = ours(kind).runtime.generate_batch(prompts, GenerationSettings(max_tokens=8, **GREEDY))
    assert [answer.output_tokens for (answer,) in answers] == [2, 8]
    for call in (ours(kind).invoke, ours(kind).stream):
        with pytest.raises(ContextWindowError, match=str(window)):
            list(call(text + " y y", max_tokens=1, **GREEDY))


def idle_after(chat: ChatLince, seconds: float = 2.0) -> bool:
    """Whether the generator has nothing to do within this time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and chat.runtime.generator.num_active_batches:  # type: ignore[attr-defined]
        time.sleep(0.005)
    return chat.runtime.generator.num_active_batches == 0  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def endless() -> ChatLince:
    """A model whose answers take many seconds if nothing ends them."""
    window = 200_000
    chat = ChatLince(**converted_checkpoint(LLAMA, context_window=window), max_tokens=window // 2, **GREEDY)
    # The registry's window is smaller.
    chat.runtime.__dict__["context_window"] = window
    return chat


def test_closing_a_stream_ends_the_work(endless):
    stream = endless.stream(QUESTION)
    assert next(chunk for chunk in stream if chunk.text)
    assert endless.runtime.generator.num_active_batches
    stream.close()
    assert idle_after(endless)


async def test_cancelling_a_call_ends_the_work(endless):
    tasks = [asyncio.create_task(endless.ainvoke(QUESTION)) for _ in range(2)]
    while not endless.runtime.generator.num_active_batches:
        await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await asyncio.to_thread(idle_after, endless)
    assert (await endless.ainvoke(QUESTION, max_tokens=4)).text


async def test_async_streams_at_the_same_time():
    async def text(question: str) -> str:
        return "".join([chunk.text async for chunk in ours(LLAMA).astream(question, **GREEDY)])

    texts = await asyncio.gather(*(text(question) for question in QUESTIONS))
    assert texts == [ours(LLAMA).invoke(question, **GREEDY).text for question in QUESTIONS]


def test_an_error_in_the_library_reaches_the_reader(monkeypatch):
    chat = ChatLince(**converted_checkpoint(LLAMA), max_tokens=9, revision="y", **GREEDY)
    monkeypatch.setattr(type(chat.runtime.tokenizer), "convert_ids_to_tokens", lambda self, ids: 1 / 0)
    for call in (chat.invoke, lambda question: list(chat.stream(question))):
        with pytest.raises(EngineError, match="cannot generate: division by zero"):
            call(QUESTION)


# ------------------------------------------------------------------------------------------------- what it lacks


class Contract(BaseModel):
    """What a contract says."""

    tenant: str


def search(query: str) -> str:
    """Search."""
    return query


def test_schemas_and_tools_are_refused_before_decoding():
    chat = ours(LLAMA)
    calls = [
        lambda: chat.with_structured_output(Contract).invoke(QUESTION),
        lambda: list(chat.with_structured_output(Contract).stream(QUESTION)),
        lambda: chat.bind_tools([search]).invoke(QUESTION),
        lambda: chat.invoke(QUESTION, response_format={"type": "json_object"}),
        lambda: LinceLLM(**converted_checkpoint(LLAMA)).invoke(QUESTION, response_format=Contract),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match="cannot hold an answer to a JSON schema"):
            call()
    assert not chat.profile["tool_calling"]
    assert not chat.profile["structured_output"]
    assert original(LLAMA).profile["tool_calling"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"device": "cuda"}, "device='cuda'"),
        ({"quantization": "int4"}, "quantization='int4'"),
        ({"dtype": "float16"}, "dtype='float16'"),
    ],
)
def test_options_that_it_has_no_means_for_are_named(fields, expected):
    chat = ChatLince(**converted_checkpoint(LLAMA), **fields)
    with pytest.raises(ConfigurationError, match=expected):
        chat.invoke(QUESTION)


def test_weights_in_four_bytes_can_be_computed_in_one():
    chat = ChatLince(**converted_checkpoint(LLAMA), quantization="int8", max_tokens=MAX_TOKENS)
    assert chat.invoke(QUESTION, **GREEDY).text
    assert chat.runtime.generator.compute_type == "int8_float32"  # type: ignore[attr-defined]


def test_the_engine_and_the_files_must_fit():
    fields = shared_checkpoint("lince-zero").chat_fields
    with pytest.raises(EngineError, match=r"lince-rag convert .* --to ctranslate2"):
        ChatLince(**fields, engine="ctranslate2").invoke(QUESTION)
    converted = converted_checkpoint("lince-zero")
    assert ChatLince(**converted, engine="ctranslate2", max_tokens=3).invoke(QUESTION).text
    with pytest.raises(EngineError, match="holds weights of CTranslate2"):
        ChatLince(**converted, engine="transformers").invoke(QUESTION)


INTERRUPTED: Final = """
import signal, sys
sys.modules["torch"] = None
from lince_rag import ChatLince
chat = ChatLince(**{fields}, max_tokens=5, temperature=0)
print(chat.invoke({question!r}).text)
chat.runtime.__dict__["context_window"] = 400_000
signal.signal(signal.SIGALRM, signal.default_int_handler)
for call in (chat.invoke, lambda *args, **more: list(chat.stream(*args, **more))):
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        call({question!r}, max_tokens=200_000)
    except KeyboardInterrupt:
        print("interrupted")
next(chat.stream({question!r}, max_tokens=200_000))
"""


def test_without_torch_with_ctrl_c_and_with_a_stream_that_is_left():
    code = INTERRUPTED.format(fields=converted_checkpoint(LLAMA), question=QUESTION)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=60, check=True
    )
    text = ours(LLAMA).invoke(QUESTION, max_tokens=5, **GREEDY).text
    assert done.stdout.splitlines() == [text, "interrupted", "interrupted"]
