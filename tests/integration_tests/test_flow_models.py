"""The chain on models with weights: one rendering and one count, nothing slow on the event loop, cancelling."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage

from lince_rag import ChatLince, LinceLLM, create_rag_chain
from lince_rag.engines.checkpoints import loading
from lince_rag.engines.generation import tokens, transformers
from lince_rag.prompting.templates import ChatTemplate
from tests.checkpoints import KINDS, build_checkpoint, shared_checkpoint
from tests.unit_tests.chain_samples import Fixed
from tests.watched_models import watched

QUESTION = "¿Cuánto es la fianza?"
DOCUMENTS = [Document("La fianza es de 815 euros.", metadata={"source": "a", "start": 0})]
HISTORY = [HumanMessage("¿Qué dice el contrato?"), AIMessage("Que hay una fianza.")]
KIND = "lince-zero"

# What is slow: loading the weights and the tokenizer, rendering a prompt, counting its tokens.
SLOW = {
    "weights": (transformers, "load_model"),
    "tokenizer": (tokens, "load_tokenizer"),
    "render": (ChatTemplate, "render"),
    "encode": (tokens, "encode_prompt"),
}


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Each slow step, and the thread it ran in."""
    steps: list[tuple[str, int]] = []
    for name, (place, attribute) in SLOW.items():
        original = getattr(place, attribute)

        def noted(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            steps.append((_name, threading.get_ident()))
            return _original(*args, **kwargs)

        monkeypatch.setattr(place, attribute, noted)
    return steps


def chain(kind: str = KIND, documents: Any = DOCUMENTS, fields: Any = None, **options: Any) -> Any:
    given = fields or shared_checkpoint(kind).chat_fields
    llm = ChatLince(**given, temperature=0.0, max_tokens=8)
    return create_rag_chain(llm, Fixed(documents=documents), minimum_confidence=0.0, language="es", **options)


async def read(stream: Any) -> list[Any]:
    return [piece async for piece in stream]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_rendered_and_counted_once(kind: str, done: list[tuple[str, int]]) -> None:
    made = chain(kind)
    # A model with random weights is asked again for the language, which is another prompt.
    answer = made.invoke(QUESTION)
    prompts = 1 + answer.corrections.count("asked_again_for_language")
    assert [name for name, _ in done].count("render") == prompts
    assert [name for name, _ in done].count("encode") == prompts
    done.clear()
    answer = list(made.stream({"question": QUESTION, "history": HISTORY}))[-1]
    prompts = 1 + answer.corrections.count("asked_again_for_language")
    assert [name for name, _ in done].count("render") == prompts
    assert [name for name, _ in done].count("encode") == prompts


def test_what_does_not_fit_is_still_cut(done: list[tuple[str, int]]) -> None:
    text = "El párrafo habla del contrato de alquiler. " * 12
    many = [Document(f"{n}. {text}", metadata={"source": str(n), "start": 0}) for n in range(12)]
    answer = chain(documents=many).invoke(QUESTION)
    assert answer.omitted
    assert len(answer.documents) + len(answer.omitted) == len(many)
    assert [name for name, _ in done].count("render") > 1


@pytest.mark.parametrize("way", ["ainvoke", "astream", "abatch"])
async def test_nothing_slow_runs_on_the_event_loop(way: str, done: list[tuple[str, int]], tmp_path: Any) -> None:
    # A checkpoint of its own, so that its weights are loaded here.
    made = chain(fields=build_checkpoint(KIND, tmp_path / KIND).chat_fields)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "ainvoke": lambda: made.ainvoke(QUESTION),
        "astream": lambda: read(made.astream(QUESTION)),
        "abatch": lambda: made.abatch([QUESTION, QUESTION]),
    }
    await calls[way]()
    assert {name for name, _ in done} == set(SLOW)
    assert not [name for name, thread in done if thread == threading.get_ident()]


async def test_the_loop_goes_on_while_weights_are_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    original = loading.load_model

    def slow(*args: Any) -> Any:
        time.sleep(1.0)
        return original(*args)

    monkeypatch.setattr(transformers, "load_model", slow)
    longest, running = 0.0, True

    async def beat() -> None:
        nonlocal longest
        while running:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    heart = asyncio.create_task(beat())
    await chain(fields=build_checkpoint(KIND, tmp_path / KIND).chat_fields).ainvoke(QUESTION)
    running = False
    await heart
    assert longest < 0.9


# Forward passes that may still run after a call was cancelled: the running one, and one that has begun since.
LEFT_OVER = 2


def long_call(way: str) -> Callable[[], Awaitable[Any]]:
    fields: dict[str, Any] = {**shared_checkpoint(KIND).chat_fields, "temperature": 0.0, "max_tokens": 1000}
    chat, text = ChatLince(**fields), LinceLLM(**fields)
    made = create_rag_chain(chat, Fixed(documents=DOCUMENTS), minimum_confidence=0.0)
    return {
        "ainvoke": lambda: chat.ainvoke(QUESTION),
        "astream": lambda: read(chat.astream(QUESTION)),
        "abatch": lambda: chat.abatch([QUESTION, QUESTION]),
        "text ainvoke": lambda: text.ainvoke(QUESTION),
        "text astream": lambda: read(text.astream(QUESTION)),
        "text abatch": lambda: text.abatch([QUESTION, QUESTION]),
        "chain ainvoke": lambda: made.ainvoke(QUESTION),
        "chain astream": lambda: read(made.astream(QUESTION)),
        "chain abatch": lambda: made.abatch([QUESTION, QUESTION]),
    }[way]


@pytest.mark.parametrize("way", ["ainvoke", "astream", "abatch"])
@pytest.mark.parametrize("what", ["", "text ", "chain "])
async def test_a_cancelled_call_frees_the_model(what: str, way: str) -> None:
    call = long_call(what + way)
    with watched(KIND, delay=0.05) as meter:
        task = asyncio.ensure_future(call())
        while meter.passes < 3:
            await asyncio.sleep(0.01)
            assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stopped_at = meter.passes
        # Long enough for ten passes, if the generation went on.
        await asyncio.sleep(0.6)
        assert meter.passes <= stopped_at + LEFT_OVER
        # The next call gets the model.
        chat = ChatLince(**shared_checkpoint(KIND).chat_fields, temperature=0.0, max_tokens=2)
        await asyncio.wait_for(chat.ainvoke(QUESTION), 20)


async def test_a_call_that_times_out_frees_the_model() -> None:
    with watched(KIND, delay=0.05) as meter:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(long_call("ainvoke")(), 0.5)
        stopped_at = meter.passes
        await asyncio.sleep(0.6)
        assert meter.passes <= stopped_at + LEFT_OVER
