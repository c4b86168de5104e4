"""LangChain's features on models with weights: callbacks, configurable fields and caches on tiny checkpoints."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField

from lince_rag import ChatLince, LinceLLM, create_rag_chain
from lince_rag.engines.generation.transformers import TransformersEngine
from tests.checkpoints import KINDS, shared_checkpoint
from tests.unit_tests.chain_samples import Fixed
from tests.watched_models import counted

QUESTION = "¿Cuánto es la fianza?"
DOCUMENTS = [Document("La fianza es de 815 euros.", metadata={"source": "a", "start": 0})]
MARKERS = ["### Respuesta:", "[INST]", "[/INST]", "</s>", "<|endofinstruction|>", "\nUser: hola", "{x}", "<<SYS>>"]


class MessagesOut(BaseCallbackHandler):
    """Collects the text that a model generated."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.texts.append(response.generations[0][0].text)


def chat(kind: str = "lince-zero", **fields: Any) -> ChatLince:
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8, **fields}
    return ChatLince(**shared_checkpoint(kind).chat_fields, **options)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every prompt that reaches the engine, with the maximum number of tokens of its answer."""
    seen: list[tuple[str, int]] = []
    batch, stream = TransformersEngine.generate_batch, TransformersEngine.stream

    def noting_batch(engine: Any, prompts: Any, asked: Any, candidates: int = 1) -> Any:
        seen.extend((prompt.text, asked.max_tokens) for prompt in prompts)
        return batch(engine, prompts, asked, candidates)

    def noting_stream(engine: Any, prompt: Any, asked: Any) -> Any:
        seen.append((prompt.text, asked.max_tokens))
        return stream(engine, prompt, asked)

    monkeypatch.setattr(TransformersEngine, "generate_batch", noting_batch)
    monkeypatch.setattr(TransformersEngine, "stream", noting_stream)
    return seen


def test_usage_and_tokens_reach_the_callbacks() -> None:
    class Tokens(BaseCallbackHandler):
        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            said.append(str(token))

    said: list[str] = []
    usage = UsageMetadataCallbackHandler()
    reply = chat(streaming=True).invoke(QUESTION, {"callbacks": [usage, Tokens()]}, documents=DOCUMENTS)
    assert "".join(said) == reply.text
    assert usage.usage_metadata == {"lince-zero": reply.usage_metadata}
    assert reply.usage_metadata["output_tokens"] == 8


@pytest.mark.parametrize("kind", [ChatLince, LinceLLM])
def test_a_configured_copy_runs_on_the_same_weights(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    loads: list[str] = []
    load = TransformersEngine.loaded.func

    def noting(engine: Any) -> Any:
        loads.append(engine.spec.name)
        return load(engine)

    # Options that no other test uses, so that the engine is a new one.
    fields = {
        **shared_checkpoint("lince-zero", seed=10 + (kind is ChatLince)).chat_fields,
        "temperature": 0.0,
        "max_tokens": 8,
    }
    monkeypatch.setattr(TransformersEngine.loaded, "func", noting)
    length = ConfigurableField(id="length")
    configurable = kind(**fields).configurable_fields(max_tokens=length)
    said = [configurable.invoke(QUESTION, {"configurable": {"length": tokens}}) for tokens in (2, 3, 4)]
    texts = [each if isinstance(each, str) else each.text for each in said]
    assert len(texts[0]) < len(texts[1]) < len(texts[2])
    assert loads == ["lince-zero"]


def test_temperature_is_configurable_in_a_chain() -> None:
    llm = chat(seed=7).configurable_fields(temperature=ConfigurableField(id="temperature"))
    made = create_rag_chain(llm, Fixed(documents=DOCUMENTS), minimum_confidence=0, language="es")
    heard: list[str] = []
    for heat in (0.0, 5.0, None):
        messages = MessagesOut()
        config = {"callbacks": [messages], "configurable": {} if heat is None else {"temperature": heat}}
        made.invoke(QUESTION, config)
        heard.append(messages.texts[0])
    assert heard[0] == heard[2] != heard[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_answer_is_that_of_its_documents_and_settings(kind: str, calls: list[tuple[str, int]]) -> None:
    cached = chat(kind, cache=InMemoryCache())
    first = cached.invoke(QUESTION, documents=DOCUMENTS)
    assert cached.invoke(QUESTION, documents=DOCUMENTS).text == first.text
    assert len(calls) == 1
    other = [Document("La fianza es de 900 euros.")]
    for options in (
        {"documents": other},
        {"documents": DOCUMENTS, "max_tokens": 3},
        {"documents": DOCUMENTS, "seed": 1},
    ):
        cached.invoke(QUESTION, **options)
    assert len(calls) == 4


def test_falls_back_from_missing_weights_to_a_model_of_another_format(calls: list[tuple[str, int]]) -> None:
    missing = ChatLince(model="aira-2-portuguese-1b7", model_path="/no/such/folder")
    made = create_rag_chain(missing.with_fallbacks([chat()]), Fixed(documents=DOCUMENTS))
    made.invoke(QUESTION)
    assert calls
    # The prompt is that of the model which answers.
    assert all("### Contexto:\n" in prompt and "<|startofinstruction|>" not in prompt for prompt, _ in calls)


async def test_streams_of_events_are_the_model_s_own() -> None:
    whole = chat().invoke(QUESTION, documents=DOCUMENTS)
    events = chat().astream_events(QUESTION, version="v2", documents=DOCUMENTS)
    chunks = [event["data"]["chunk"] async for event in events if event["event"] == "on_chat_model_stream"]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    stream = chat().stream_events(QUESTION, version="v3", documents=DOCUMENTS)
    assert "".join(map(str, stream.text)) == whole.text
    assert counted(stream.output.usage_metadata) == counted(whole.usage_metadata)


contents = st.lists(st.sampled_from([*MARKERS, "fianza", " ", "euros."]), min_size=1, max_size=5).map(" ".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents, contents)
def test_content_is_the_same_prompt_on_every_path(
    calls: list[tuple[str, int]], kind: str, asked: str, written: str
) -> None:
    calls.clear()
    documents = [Document(written, metadata={"source": "a", "title": "### Contexto:"})]
    question = f"¿{asked}?"
    llm = chat(kind, max_tokens=1)
    llm.invoke(question, {"callbacks": [BaseCallbackHandler()], "tags": ["a"]}, documents=documents)
    list(llm.stream(question, documents=documents))
    llm.batch([question, question], documents=documents)
    llm.bind(documents=documents, temperature=0.0).invoke(question)
    str(llm.stream_events(question, version="v3", documents=documents).output)
    llm.model_copy(update={"cache": InMemoryCache()}).invoke(question, documents=documents)
    llm.configurable_fields(seed=ConfigurableField(id="s")).invoke(
        question, {"configurable": {"s": 3}}, documents=documents
    )
    assert len(calls) == 8
    assert {prompt for prompt, _ in calls} == {llm.render([HumanMessage(question)], documents).text}
