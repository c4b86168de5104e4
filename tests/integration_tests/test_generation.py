"""Generation: stops, lengths, seeds, batches, streams and the window, on every kind of model."""

import asyncio
import functools
import logging
import time
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage

from lince_rag import ChatLince
from lince_rag.engines import GenerationSettings
from lince_rag.errors import ContextWindowError
from tests.checkpoints import KINDS, build_checkpoint, shared_checkpoint
from tests.engines import ENGINES, SEEDED_ENGINES, engine_fields
from tests.integration_tests.commands import in_a_fork
from tests.watched_models import bare, counted, dictated, watched

QUESTION: Final = "Dame una lista de lugares que visitar en España."
# Of very different lengths, so that a batch of them is padded.
QUESTIONS: Final = [
    "¿Qué?",
    QUESTION,
    "Escreva um poema curto sobre o mar, o vento e a saudade. " * 4,
    "Hola, ¿qué tal?",
]
MAX_TOKENS: Final = 40
GREEDY: Final[dict[str, Any]] = {"temperature": 0}
SAMPLING: Final[dict[str, Any]] = {"temperature": 1.0, "top_k": 50}

# Characters of several tokens: accents, an emoji of four bytes, and one of three code points.
ACCENTED: Final = "Coração, año 🦙 y niña: «¿çã?» 👩\u200d🚀 ñandú €5 fim"

# What is watched or dictated while it generates is a model of transformers.
by_kind = pytest.mark.parametrize("kind", KINDS)
by_engine = pytest.mark.parametrize(("engine", "kind"), ENGINES)
by_seeded_engine = pytest.mark.parametrize(("engine", "kind"), SEEDED_ENGINES)


@cache
def chat(kind: str, engine: str = "transformers", **options: Any) -> ChatLince:
    """A chat model on a tiny checkpoint with these options."""
    return ChatLince(**engine_fields(engine, kind, **options), max_tokens=MAX_TOKENS)


@cache
def greedy_text(kind: str, engine: str = "transformers") -> str:
    return chat(kind, engine).invoke(QUESTION, **GREEDY).text


def bare_ids(kind: str, prompt_ids: Sequence[int], max_tokens: int = MAX_TOKENS, **options: Any) -> list[int]:
    """The ids that the bare model says greedily after a prompt."""
    model, _ = bare(kind, **options)
    input_ids = torch.tensor([list(prompt_ids)])
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_tokens,
        pad_token_id=0,
    )
    return output[0, len(prompt_ids) :].tolist()


def finish_reason(message: Any) -> str:
    return message.response_metadata["finish_reason"]


def total_of(chunks: Sequence[Any]) -> Any:
    return functools.reduce(lambda total, chunk: total + chunk, chunks)


def failure(error: BaseException) -> str:
    """What an error says, with what caused it."""
    return f"{error} {error.__cause__ or ''}"


# --------------------------------------------------------------------------------------------------------- stops


def stops_in(text: str) -> list[str]:
    """Stop texts of 1 to 20 characters, from all over a text; before none of them is white space."""
    found = []
    for number, length in enumerate((1, 2, 3, 5, 8, 13, 20)):
        start = 2 + number * (len(text) - 24) // 6
        stop = text[start : start + length]
        while stop[0].isspace() or text[text.find(stop) - 1].isspace():
            start += 1
            stop = text[start : start + length]
        found.append(stop)
    return found


@by_engine
def test_stop_is_cut_from_answer_and_stream(engine, kind):
    whole = greedy_text(kind, engine)
    for stop in stops_in(whole):
        expected = whole[: whole.find(stop)]
        reply = chat(kind, engine).invoke(QUESTION, stop=[stop], **GREEDY)
        assert reply.text == expected, stop
        assert finish_reason(reply) == "stop"
        chunks = list(chat(kind, engine).stream(QUESTION, stop=[stop], **GREEDY))
        assert "".join(chunk.text for chunk in chunks) == expected, stop
        assert finish_reason(total_of(chunks)) == "stop"


@by_engine
def test_the_first_of_several_stops_counts(engine, kind):
    whole = greedy_text(kind, engine)
    stops = [*reversed(stops_in(whole)[1:]), "no se dice nunca"]
    expected = whole[: min(at for stop in stops if (at := whole.find(stop)) >= 0)].rstrip()
    assert chat(kind, engine).invoke(QUESTION, stop=stops, **GREEDY).text == expected
    field = chat(kind, engine).model_copy(update={"stop": stops})
    assert field.invoke(QUESTION, **GREEDY).text == expected
    assert "".join(chunk.text for chunk in field.stream(QUESTION, **GREEDY)) == expected


@by_kind
def test_stop_ends_the_work(kind):
    whole = greedy_text(kind)
    stop = stops_in(whole)[1]
    with watched(kind) as meter:
        reply = chat(kind).invoke(QUESTION, stop=[stop], **GREEDY)
    assert meter.passes < MAX_TOKENS
    assert reply.usage_metadata["output_tokens"] <= meter.passes
    with watched(kind) as meter:
        list(chat(kind).stream(QUESTION, stop=[stop], **GREEDY))
    assert meter.passes < MAX_TOKENS


@by_engine
def test_a_stop_that_is_not_said_changes_nothing(engine, kind):
    whole = greedy_text(kind, engine)
    near = [whole[-5:] + "∅", whole[5:9] + "∅", "∅"]
    assert chat(kind, engine).invoke(QUESTION, stop=near, **GREEDY).text == whole
    assert "".join(chunk.text for chunk in chat(kind, engine).stream(QUESTION, stop=near, **GREEDY)) == whole


@by_engine
def test_stop_in_a_batch_is_each_answers_own(engine, kind):
    wholes = [chat(kind, engine).invoke(question, **GREEDY).text for question in QUESTIONS]
    stop = stops_in(wholes[1])[1]
    expected = [whole.split(stop)[0].rstrip() for whole in wholes]
    assert [reply.text for reply in chat(kind, engine).batch(QUESTIONS, stop=[stop], **GREEDY)] == expected
    result = chat(kind, engine).generate(
        [[HumanMessage(question)] for question in QUESTIONS], stop=[stop], **GREEDY
    )
    assert [candidates[0].text for candidates in result.generations] == expected


@by_kind
def test_stop_inside_and_across_characters_of_several_tokens(kind):
    for start in range(1, len(ACCENTED) - 4, 5):
        for length in (1, 4):
            stop = ACCENTED[start : start + length]
            expected = ACCENTED[: ACCENTED.find(stop)].rstrip()
            with dictated(kind, ACCENTED):
                assert chat(kind).invoke(QUESTION, max_tokens=90, stop=[stop], **GREEDY).text == expected, stop
            with dictated(kind, ACCENTED):
                chunks = [
                    chunk.text for chunk in chat(kind).stream(QUESTION, max_tokens=90, stop=[stop], **GREEDY)
                ]
            assert "".join(chunks) == expected, stop


# ------------------------------------------------------------------------------------------------ length and end


@by_kind
@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_max_tokens(kind, max_tokens):
    prompt_ids = chat(kind).encode([HumanMessage(QUESTION)])
    with watched(kind) as meter:
        reply = chat(kind).invoke(QUESTION, max_tokens=max_tokens, **GREEDY)
    assert meter.passes == max_tokens
    assert finish_reason(reply) == "length"
    assert counted(reply.usage_metadata) == {
        "input_tokens": len(prompt_ids),
        "output_tokens": max_tokens,
        "total_tokens": len(prompt_ids) + max_tokens,
    }
    total = total_of(list(chat(kind).stream(QUESTION, max_tokens=max_tokens, **GREEDY)))
    assert total.text == reply.text
    assert counted(total.usage_metadata) == counted(reply.usage_metadata)
    assert finish_reason(total) == "length"


@by_kind
def test_end_of_the_models_own(kind):
    options = {"eos_scale": 3.0}
    _, tokenizer = bare(kind, **options)
    ended = 0
    for question in QUESTIONS:
        prompt_ids = chat(kind, **options).encode([HumanMessage(question)])
        ids = bare_ids(kind, prompt_ids, **options)
        reply = chat(kind, **options).invoke(question, **GREEDY)
        total = total_of(list(chat(kind, **options).stream(question, **GREEDY)))
        has_ended = ids[-1] == tokenizer.eos_token_id
        ended += has_ended
        assert reply.text == total.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert finish_reason(reply) == finish_reason(total) == ("stop" if has_ended else "length")
        assert counted(reply.usage_metadata) == counted(total.usage_metadata)
        # The end token is no part of the answer.
        assert reply.usage_metadata["output_tokens"] == len(ids) - has_ended
    assert ended


# ----------------------------------------------------------------------------------------------- what an answer is


@by_engine
def test_greedy_is_the_bare_model(engine, kind):
    _, tokenizer = bare(kind)
    for question in QUESTIONS:
        ids = bare_ids(kind, chat(kind, engine).encode([HumanMessage(question)]))
        expected = tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert chat(kind, engine).invoke(question, **GREEDY).text == expected
    assert len(set(ids)) > 3


@by_kind
def test_the_prompt_is_not_echoed(kind):
    with dictated(kind, "Sí."):
        assert chat(kind).invoke(QUESTION, **GREEDY).text == "Sí."
    with dictated(kind, "Sí."):
        assert "".join(chunk.text for chunk in chat(kind).stream(QUESTION, **GREEDY)) == "Sí."


@by_seeded_engine
def test_no_special_token_in_the_text(engine, kind):
    options = {"special_scale": 4.0}
    model = chat(kind, engine, **options)
    _, tokenizer = bare(kind, **options)
    prompt_ids = model.encode([HumanMessage(QUESTION)])
    said = bare_ids(kind, prompt_ids, **options)
    special = [token.content for token in tokenizer.added_tokens_decoder.values()]
    assert set(said) & set(tokenizer.added_tokens_decoder), "the checkpoint must say some"
    texts = [model.invoke(QUESTION, **GREEDY).text]
    assert texts[0] == tokenizer.decode(said, skip_special_tokens=True).strip()
    assert "".join(chunk.text for chunk in model.stream(QUESTION, **GREEDY)) == texts[0]
    texts += [model.invoke(QUESTION, seed=seed, **SAMPLING).text for seed in range(3)]
    texts += [reply.text for reply in model.batch(QUESTIONS, **GREEDY)]
    assert not [token for token in special for text in texts if token in text]


@by_engine
def test_a_special_token_that_the_question_spells_stays_text(engine, kind):
    _, tokenizer = bare(kind)
    plain = chat(kind, engine).encode([HumanMessage("x")])
    controls = set(tokenizer.added_tokens_decoder)
    for added in tokenizer.added_tokens_decoder.values():
        spelled = chat(kind, engine).encode([HumanMessage(f"x {added.content} x")])
        assert sorted(set(spelled) & controls) == sorted(set(plain) & controls)
        assert sum(token in controls for token in spelled) == sum(token in controls for token in plain)


# ------------------------------------------------------------------------------------------- seeds and candidates


@by_seeded_engine
def test_seed(engine, kind):
    texts = [chat(kind, engine).invoke(QUESTION, seed=seed, **SAMPLING).text for seed in (1, 2, 3)]
    assert len(set(texts)) > 1
    assert [chat(kind, engine).invoke(QUESTION, seed=seed, **SAMPLING).text for seed in (1, 2, 3)] == texts
    streamed = "".join(chunk.text for chunk in chat(kind, engine).stream(QUESTION, seed=1, **SAMPLING))
    assert streamed == texts[0]


@by_engine
def test_without_a_seed_answers_vary(engine, kind):
    assert len({chat(kind, engine).invoke(QUESTION, **SAMPLING).text for _ in range(4)}) > 1
    assert (
        len({"".join(chunk.text for chunk in chat(kind, engine).stream(QUESTION, **SAMPLING)) for _ in range(4)})
        > 1
    )


def test_a_seed_leaves_the_random_state_of_others_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    chat("llama-2-7b-spanish").invoke(QUESTION, seed=1, **SAMPLING)
    assert torch.equal(torch.rand(3), expected)


@by_kind
@pytest.mark.parametrize("decoding", [GREEDY, {"num_beams": 4}, {**SAMPLING, "seed": 3}], ids=str)
def test_batch_equals_one_by_one(kind, decoding):
    singles = [chat(kind).invoke(question, **decoding) for question in QUESTIONS]
    expected = [(reply.text, counted(reply.usage_metadata), finish_reason(reply)) for reply in singles]
    batch = chat(kind).batch(QUESTIONS, **decoding)
    assert [(reply.text, counted(reply.usage_metadata), finish_reason(reply)) for reply in batch] == expected
    result = chat(kind).generate([[HumanMessage(question)] for question in QUESTIONS], **decoding)
    messages = [candidates[0].message for candidates in result.generations]
    assert [(reply.text, counted(reply.usage_metadata), finish_reason(reply)) for reply in messages] == expected
    # And in one padded batch, where the engine has them together.
    engine_settings = GenerationSettings(max_tokens=MAX_TOKENS, **decoding)
    prompts = [chat(kind).render([HumanMessage(question)]) for question in QUESTIONS]
    generations = chat(kind).runtime.generate_batch(prompts, engine_settings)
    assert [
        (
            answer.text,
            {
                "input_tokens": answer.input_tokens,
                "output_tokens": answer.output_tokens,
                "total_tokens": answer.input_tokens + answer.output_tokens,
            },
            answer.finish_reason,
        )
        for (answer,) in generations
    ] == expected


@by_kind
def test_batch_of_answers_that_end_at_different_times(kind):
    model = chat(kind, eos_scale=3.0)
    singles = [model.invoke(question, **GREEDY) for question in QUESTIONS]
    prompts = [model.render([HumanMessage(question)]) for question in QUESTIONS]
    generations = model.runtime.generate_batch(prompts, GenerationSettings(max_tokens=MAX_TOKENS, **GREEDY))
    assert [(answer.text, answer.output_tokens, answer.finish_reason) for (answer,) in generations] == [
        (reply.text, reply.usage_metadata["output_tokens"], finish_reason(reply)) for reply in singles
    ]


@by_seeded_engine
def test_candidates(engine, kind):
    model = ChatLince(**engine_fields(engine, kind), max_tokens=12, n=3, **SAMPLING)

    def candidates() -> list[list[str]]:
        messages = [[HumanMessage(question)] for question in QUESTIONS[:2]]
        result = model.generate(messages, seed=5)
        return [[generation.text for generation in generations] for generations in result.generations]

    texts = candidates()
    assert [len(of_one) for of_one in texts] == [3, 3]
    assert all(len(set(of_one)) > 1 for of_one in texts)
    assert candidates() == texts


# -------------------------------------------------------------------------------------------------------- streams


@by_engine
def test_stream_is_the_answer_piece_by_piece(engine, kind):
    chunks = [chunk.text for chunk in chat(kind, engine).stream(QUESTION, **GREEDY)]
    assert "".join(chunks) == greedy_text(kind, engine)
    assert sum(map(bool, chunks)) > MAX_TOKENS // 3


@by_kind
def test_the_first_piece_comes_before_the_last_token(kind):
    with watched(kind, delay=0.005) as meter:
        stream = chat(kind).stream(QUESTION, **GREEDY)
        first = next(chunk.text for chunk in stream if chunk.text)
        passes = meter.passes
        rest = "".join(chunk.text for chunk in stream)
    assert passes < meter.passes // 2
    assert first + rest == greedy_text(kind)


@by_kind
async def test_async_twins(kind):
    assert (await chat(kind).ainvoke(QUESTION, **GREEDY)).text == greedy_text(kind)
    with watched(kind, delay=0.005) as meter:
        texts, passes = [], []
        async for chunk in chat(kind).astream(QUESTION, **GREEDY):
            if chunk.text:
                texts.append(chunk.text)
                passes.append(meter.passes)
    assert "".join(texts) == greedy_text(kind)
    assert passes[0] < MAX_TOKENS // 2
    replies = await chat(kind).abatch(QUESTIONS, **GREEDY)
    assert [reply.text for reply in replies] == [
        chat(kind).invoke(question, **GREEDY).text for question in QUESTIONS
    ]


@by_kind
def test_no_character_is_split(kind):
    _, tokenizer = bare(kind)
    assert len(tokenizer.encode("🦙", add_special_tokens=False)) > 1
    with dictated(kind, ACCENTED):
        assert chat(kind).invoke(QUESTION, max_tokens=90, **GREEDY).text == ACCENTED
    with dictated(kind, ACCENTED):
        chunks = [chunk.text for chunk in chat(kind).stream(QUESTION, max_tokens=90, **GREEDY)]
    assert "".join(chunks) == ACCENTED
    assert not [chunk for chunk in chunks if "\ufffd" in chunk]
    assert any("🦙" in chunk for chunk in chunks)


@by_kind
def test_a_character_cut_off_by_the_end(kind):
    """Bytes that never become a character: stream and answer still agree."""
    _, tokenizer = bare(kind)
    length = len(tokenizer.encode("año 🦙", add_special_tokens=False)) - 1
    texts = []
    for generate in (
        lambda: chat(kind).invoke(QUESTION, max_tokens=length, **GREEDY).text,
        lambda: "".join(chunk.text for chunk in chat(kind).stream(QUESTION, max_tokens=length, **GREEDY)),
    ):
        with dictated(kind, "año 🦙"):
            texts.append(generate())
    assert texts[0] == texts[1]
    assert texts[0].startswith("año")


@by_engine
def test_broken_bytes_stream_as_they_are_answered(engine, kind):
    """A model that babbles pieces of characters: the pieces of its stream still add up to the answer."""
    model = chat(kind, engine, fragment_scale=2.0)
    for question in QUESTIONS:
        streamed = "".join(chunk.text for chunk in model.stream(question, **GREEDY))
        whole = model.invoke(question, **GREEDY).text
        if engine in {"llama.cpp", "server"}:
            # llama-server keeps back from a stream what ends within a character, also at its end.
            assert whole.startswith(streamed)
        else:
            assert streamed == whole


@by_kind
def test_an_error_in_the_model_reaches_the_reader(kind):
    with watched(kind, fail_at=10), pytest.raises(Exception) as caught:  # noqa: PT011
        list(chat(kind).stream(QUESTION, **GREEDY))
    assert "the model broke" in failure(caught.value)
    with watched(kind, fail_at=3), pytest.raises(Exception) as caught:  # noqa: PT011
        chat(kind).invoke(QUESTION, **GREEDY)
    assert "the model broke" in failure(caught.value)
    # And it is not broken for good.
    assert chat(kind).invoke(QUESTION, **GREEDY).text == greedy_text(kind)


async def test_an_error_in_the_model_reaches_the_async_reader():
    kind = "llama-2-7b-spanish"
    with watched(kind, fail_at=10), pytest.raises(Exception) as caught:  # noqa: PT011
        async for _ in chat(kind).astream(QUESTION, **GREEDY):
            pass
    assert "the model broke" in failure(caught.value)


@by_kind
def test_closing_the_stream_stops_the_model(kind):
    with watched(kind, delay=0.005) as meter:
        stream = chat(kind).stream(QUESTION, max_tokens=300, **GREEDY)
        next(chunk for chunk in stream if chunk.text)
        stream.close()
        time.sleep(0.05)
        passes = meter.passes
        time.sleep(0.1)
    assert meter.passes == passes < 100
    assert chat(kind).invoke(QUESTION, **GREEDY).text == greedy_text(kind)


async def test_closing_the_async_stream_stops_the_model():
    kind = "lince-zero"
    with watched(kind, delay=0.005) as meter:
        stream = chat(kind).astream(QUESTION, max_tokens=300, **GREEDY)
        async for chunk in stream:
            if chunk.text:
                break
        await stream.aclose()
        await asyncio.sleep(0.2)
        passes = meter.passes
        await asyncio.sleep(0.1)
    assert meter.passes == passes < 150


def test_beam_search_streams_greedily_and_says_so_once(tmp_path, caplog):
    model = ChatLince(**build_checkpoint("lince-zero", tmp_path / "model").chat_fields, max_tokens=MAX_TOKENS)
    with caplog.at_level(logging.INFO, logger="lince_rag"):
        texts = ["".join(chunk.text for chunk in model.stream(QUESTION)) for _ in range(2)]
    assert len([record for record in caplog.records if "beam" in record.getMessage()]) == 1
    assert texts == [greedy_text("lince-zero")] * 2
    assert model.invoke(QUESTION).text != texts[0]


# --------------------------------------------------------------------------------------------------------- window


@cache
def question_of(kind: str, engine: str, prompt_tokens: int) -> str:
    """A question whose whole prompt has so many tokens."""
    text = "Cuenta"
    missing = prompt_tokens - len(chat(kind, engine).encode([HumanMessage(text)]))
    text += " y" * missing
    assert len(chat(kind, engine).encode([HumanMessage(text)])) == prompt_tokens
    return text


@by_engine
def test_the_window_is_the_checkpoints(engine, kind):
    assert chat(kind, engine).context_window == shared_checkpoint(kind).context_window


@by_engine
def test_the_last_token_of_the_window(engine, kind):
    window = chat(kind, engine).context_window
    reply = chat(kind, engine).invoke(question_of(kind, engine, window - 1), max_tokens=1, **GREEDY)
    assert reply.usage_metadata["total_tokens"] == window
    for call in (
        chat(kind, engine).invoke,
        lambda *args, **kwargs: list(chat(kind, engine).stream(*args, **kwargs)),
    ):
        with pytest.raises(ContextWindowError) as caught:
            call(question_of(kind, engine, window), max_tokens=1, **GREEDY)
        assert str(window) in str(caught.value)
    with pytest.raises(ContextWindowError) as caught:
        chat(kind, engine).invoke(question_of(kind, engine, window + 9), max_tokens=1, **GREEDY)
    assert str(window) in str(caught.value)
    assert str(window + 9) in str(caught.value)


@by_engine
@settings(max_examples=20, deadline=None)
@given(
    distance=st.integers(-4, 3), max_tokens=st.integers(1, 6), is_streamed=st.booleans(), is_sampled=st.booleans()
)
def test_prompt_and_answer_never_exceed_the_window(engine, kind, distance, max_tokens, is_streamed, is_sampled):
    window = chat(kind, engine).context_window
    length = window + distance
    question = question_of(kind, engine, length)
    decoding = {"max_tokens": max_tokens, **(SAMPLING if is_sampled else GREEDY)}
    if distance >= 0:
        with pytest.raises(ContextWindowError, match=str(window)) as caught:
            chat(kind, engine).invoke(question, **decoding)
        assert str(length) in str(caught.value)
        return
    if is_streamed:
        reply = total_of(list(chat(kind, engine).stream(question, **decoding)))
    else:
        reply = chat(kind, engine).invoke(question, **decoding)
    assert reply.usage_metadata["input_tokens"] == length
    assert reply.usage_metadata["output_tokens"] == min(max_tokens, -distance)
    assert finish_reason(reply) == "length"


@by_engine
def test_a_batch_keeps_to_the_window_of_each(engine, kind):
    """The padding of a short prompt beside a long one takes nothing from its answer."""
    window = chat(kind, engine).context_window
    questions = [question_of(kind, engine, window - 2), QUESTION]
    singles = [chat(kind, engine).invoke(question, max_tokens=8, **GREEDY) for question in questions]
    prompts = [chat(kind, engine).render([HumanMessage(question)]) for question in questions]
    generations = chat(kind, engine).runtime.generate_batch(prompts, GenerationSettings(max_tokens=8, **GREEDY))
    assert [(answer.text, answer.output_tokens) for (answer,) in generations] == [
        (reply.text, reply.usage_metadata["output_tokens"]) for reply in singles
    ]
    assert [answer.output_tokens for (answer,) in generations] == [2, 8]


# --------------------------------------------------------------------------------------------------------- forks


@pytest.mark.parametrize(
    ("engine", "expected"),
    [("transformers", "ForkError"), ("ctranslate2", "ForkError"), ("llama.cpp", None), ("server", None)],
)
def test_a_forked_process_answers_or_says_why_not(engine, expected):
    kind = next(kind for each, kind in ENGINES if each == engine)
    model = chat(kind, engine)
    # The threads of PyTorch are what a fork lacks.
    torch.set_num_threads(2)
    try:
        text = model.invoke(QUESTION, **GREEDY).text
        assert in_a_fork(lambda: model.invoke(QUESTION, **GREEDY).text) == (expected or text)
        assert in_a_fork(lambda: "".join(each.text for each in model.stream(QUESTION, **GREEDY))) == (
            expected or text
        )
    finally:
        torch.set_num_threads(1)
    assert model.invoke(QUESTION, **GREEDY).text == text


def test_a_fork_without_threads_shares_the_weights():
    model = chat(KINDS[0])
    assert in_a_fork(lambda: model.invoke(QUESTION, **GREEDY).text) == model.invoke(QUESTION, **GREEDY).text
