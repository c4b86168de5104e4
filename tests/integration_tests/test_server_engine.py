"""The server engine over real sockets: a real llama-server, and a stub that fails in every way."""

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from langchain_core.messages import HumanMessage
from pydantic import SecretStr

from lince_rag import ChatLince, LinceLLM
from lince_rag.engines import GenerationSettings
from lince_rag.engines.server import client as client_module
from lince_rag.engines.server.options import ServerOptions
from lince_rag.errors import ConfigurationError, ContextWindowError, EngineError
from tests.checkpoints import KINDS
from tests.engines import EQUAL_ENGINES, engine_fields
from tests.gguf_files import shared_gguf
from tests.integration_tests.commands import run
from tests.json_schemas import schemas
from tests.server_models import GREEDY, KIND, MAX_TOKENS, QUESTION, SCHEMA, add, chat, stub_chat
from tests.servers import API_KEY, Pause, Reply, completion, event, llama_server, stub_server


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.01)


# ---------------------------------------------------------------------------------------------------- same tokens


@pytest.mark.parametrize(("engine", "kind"), EQUAL_ENGINES)
def test_prompt_ids_and_greedy_text_are_those_of_transformers(engine, kind):
    ours, theirs = chat(engine, kind), chat("transformers", kind)
    for text in (QUESTION, "¿Año? 🦙\n\nx <s> </s> <|endoftext|> [INST] <unk> ### Respuesta: x"):
        messages = [HumanMessage(text)]
        assert ours.encode(messages) == theirs.encode(messages)
    assert ours.invoke(QUESTION, **GREEDY).text == theirs.invoke(QUESTION, **GREEDY).text


@pytest.mark.parametrize("kind", KINDS)
def test_content_never_becomes_a_control_token_of_the_server(kind, tmp_path):
    """Even if the registry knows no controls, the server's tokenizer keeps content and structure apart."""
    rows = tmp_path / "models.toml"
    rows.write_text(f"[{kind}]\ncontrol_tokens = []\nmarkers = []\nline_markers = []\n", encoding="utf-8")
    model = ChatLince(**engine_fields("server", kind), models_file=rows)
    controls = chat("transformers", kind).runtime.tokenizer.added_tokens_decoder
    plain = model.encode([HumanMessage("x y")])
    for token, control in controls.items():
        spelled = model.encode([HumanMessage(f"x {control.content} y")])
        assert len(spelled) > len(plain)
        assert spelled.count(token) == plain.count(token)
        assert sum(each in controls for each in spelled) == sum(each in controls for each in plain)


def test_the_window_is_the_smaller_of_row_and_server():
    assert chat().context_window == 512
    with stub_server(lambda *_: completion("x"), models=[{"id": "m", "owned_by": "vllm"}]) as stub:
        assert stub_chat(stub).context_window == 4096


# ------------------------------------------------------------------------------------------------------- schemas


@pytest.mark.parametrize(("engine", "kind"), EQUAL_ENGINES)
def test_json_is_valid_for_every_vocabulary(engine, kind):
    structured = chat(engine, kind).with_structured_output(SCHEMA)
    for seed in range(2):
        person = structured.invoke(QUESTION, max_tokens=80, temperature=1, seed=seed)
        assert set(person) == {"nombre", "edad"}
        assert 0 <= person["edad"] <= 120


@pytest.mark.slow
def test_any_schema_is_understood():
    """llama.cpp reads the grammar, the answer is JSON, and what breaks the schema is an error."""
    outcomes: Counter[str] = Counter()

    prompt = chat().render([HumanMessage(QUESTION)])

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(schemas(refused=False), st.integers(0, 9))
    def check(schema: Any, seed: int) -> None:
        text = json.dumps(schema, ensure_ascii=False)
        asked = GenerationSettings(max_tokens=200, temperature=1.0, seed=seed, json_schema=text)
        try:
            answer = chat().runtime.generate(prompt, asked).text
        except ConfigurationError:
            outcomes["refused"] += 1
        except EngineError as error:
            outcomes["broken" if "breaks the schema" in str(error) else str(error)] += 1
        else:
            Draft202012Validator(schema).validate(json.loads(answer))
            outcomes["valid"] += 1

    check()
    assert set(outcomes) <= {"refused", "broken", "valid"}, outcomes
    assert outcomes["valid"] > 2 * outcomes["broken"], outcomes


def test_tools_are_called_by_exact_names_or_not_at_all():
    tool = {"title": "apuntar", "description": "Apunta a una persona.", **SCHEMA}
    forced = chat().bind_tools([tool], tool_choice="any").invoke(QUESTION, max_tokens=120)
    assert [call["name"] for call in forced.tool_calls] == ["apuntar"]
    free = chat().bind_tools([tool])
    reply = free.invoke(QUESTION, max_tokens=120, **GREEDY)
    streamed = add(free.stream(QUESTION, max_tokens=120, **GREEDY))
    assert (reply.text, bool(reply.tool_calls)) == (streamed.text, bool(streamed.tool_calls))


@pytest.mark.parametrize("text", ['{"nombre": "Ana"}', '{"nombre": "Ana", "edad": 3', "no", "[1]"])
def test_json_that_breaks_the_schema_is_an_error(text):
    with stub_server(lambda _, payload: completion(text)) as stub, pytest.raises(EngineError) as caught:
        stub_chat(stub).with_structured_output(SCHEMA).invoke(QUESTION, max_tokens=80)
    assert text[:20] in str(caught.value)


def test_json_with_a_stop_text_is_an_error():
    body = json.dumps({"nombre": "FIN", "edad": 3})
    with stub_server(lambda _, payload: completion(body)) as stub, pytest.raises(EngineError, match="FIN"):
        stub_chat(stub, stop=["FIN"]).with_structured_output(SCHEMA).invoke(QUESTION, max_tokens=80)


def test_a_server_without_grammars_is_refused_before_it_is_asked(tmp_path):
    fields = {"model_path": engine_fields("transformers", KIND)["model_path"]}
    models = [{"id": "m", "owned_by": "ollama"}]
    with stub_server(lambda *_: completion("x"), models=models) as stub:
        with pytest.raises(ConfigurationError, match="ollama"):
            stub_chat(stub, **fields).with_structured_output(SCHEMA).invoke(QUESTION)
        assert not stub.received
        # Its prompt is text, not ids, and without the BOS that its tokenizer adds.
        stub_chat(stub, **fields).invoke(QUESTION)
        assert stub.received[0].payload["prompt"] == f"[INST] {QUESTION} [/INST]"


def test_beams_and_several_greedy_answers_are_refused_before_the_server_is_asked():
    with stub_server(lambda *_: completion("x")) as stub:
        with pytest.raises(ConfigurationError, match="num_beams=4"):
            stub_chat(stub).invoke(QUESTION, num_beams=4)
        with pytest.raises(ConfigurationError, match="n=2"):
            stub_chat(stub, n=2).invoke(QUESTION, **GREEDY)
        assert not stub.received


# -------------------------------------------------------------------------------------------- what is asked for


def test_what_is_sent():
    with stub_server(lambda *_: completion("x")) as stub:
        model = stub_chat(stub, base_url=f"{stub.base_url}/v1/", api_key=API_KEY, stop=["FIN"])
        model.invoke(QUESTION, temperature=0.5, top_p=0.9, top_k=7, repetition_penalty=1.2, seed=11)
        (sent,) = stub.received
        assert sent.path == "/v1/completions"
        assert sent.headers["authorization"] == f"Bearer {API_KEY}"
        assert sent.payload["prompt"] == model.encode([HumanMessage(QUESTION)])
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "max_tokens", "model")
        assert [sent.payload[name] for name in names] == [0.5, 0.9, 7, 1.2, 11, MAX_TOKENS, "modelo"]
        model.invoke(QUESTION, **GREEDY)
        assert stub.received[1].payload["temperature"] == 0


def test_candidates_have_seeds_of_their_own():
    with stub_server(lambda _, payload: completion(str(payload["seed"]))) as stub:
        result = stub_chat(stub, n=3, temperature=1.0).generate([[HumanMessage(QUESTION)]], seed=5)
    assert [candidate.text for candidate in result.generations[0]] == ["5", "6", "7"]


def test_a_text_model_sends_a_batch_at_once():
    server = llama_server(shared_gguf(KIND))
    llm = LinceLLM(model=KIND, base_url=server.base_url, api_key=API_KEY, max_tokens=8, temperature=0)
    assert llm.generate([QUESTION, "¿Qué?"]).generations[1][0].text == llm.invoke("¿Qué?")


# ------------------------------------------------------------------------------------------------ stops and ends


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_stop_text_never_arrives_even_if_the_server_ignores_it(size):
    text = "Uno dos FIN tres cuatro"
    parts = [text[start : start + size] for start in range(0, len(text), size)]

    reply = Reply([*map(event, parts), event("", "length"), "data: [DONE]\n\n"])
    with stub_server(lambda *_: reply) as stub:
        model = stub_chat(stub, stop=["FIN"])
        whole = model.invoke(QUESTION)
        chunks = list(model.stream(QUESTION))
    assert whole.text == "".join(chunk.text for chunk in chunks) == "Uno dos"
    assert whole.response_metadata["finish_reason"] == "stop"
    assert add(chunks).response_metadata["finish_reason"] == "stop"


def test_characters_that_end_lines_elsewhere_stay_in_the_text():
    text = "uno\u2028dos\x85tres\x1ccuatro"
    with stub_server(lambda *_: Reply([event(text[:5]), event(text[5:], "stop")])) as stub:
        assert "".join(chunk.text for chunk in stub_chat(stub).stream(QUESTION)) == text


def test_events_that_come_in_pieces():
    whole = event("Sí, ") + event("claro", "stop", usage={"completion_tokens": 2}) + "data: [DONE]\n\n"
    pieces = [whole[at : at + 7] for at in range(0, len(whole), 7)]
    with stub_server(lambda *_: Reply(pieces)) as stub:
        total = add(stub_chat(stub).stream(QUESTION))
    assert total.text == "Sí, claro"
    assert total.usage_metadata["output_tokens"] == 2


@pytest.mark.parametrize("usage", [None, "two", {"completion_tokens": -3}, {"completion_tokens": "2"}, {}, [1]])
def test_a_usage_that_is_missing_or_wrong_is_counted(usage):
    events = [event("Sí"), event(""), event(", claro", "stop", usage=usage)]
    with stub_server(lambda *_: Reply(events)) as stub:
        model = stub_chat(stub)
        total = add(model.stream(QUESTION))
        assert total.usage_metadata["output_tokens"] == 2
        # In one piece, by the tokenizer: that of the stub counts bytes.
        assert model.invoke(QUESTION).usage_metadata["output_tokens"] == len("Sí, claro".encode())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6), st.sampled_from(["", "x"])), max_size=4))
# Both within one token, where the server looks only for the text that begins first.
@example([(4, 4, ""), (6, 1, "")])
def test_a_whole_answer_is_cut_as_a_stream(spans):
    """Stop texts that overlap, contain each other, begin the answer, or are only begun at its end."""
    free = chat().invoke(QUESTION, **GREEDY).text
    stop = [free[start : start + length] + more for start, length, more in spans]
    whole = chat().invoke(QUESTION, stop=stop, **GREEDY)
    streamed = add(chat().stream(QUESTION, stop=stop, **GREEDY))
    assert whole.text == streamed.text
    assert whole.response_metadata["finish_reason"] == streamed.response_metadata["finish_reason"]


@pytest.mark.parametrize("owner", ["llamacpp", "vllm", "sglang", "ollama"])
def test_only_answers_that_must_be_streamed_are(owner):
    fields = {"model_path": engine_fields("transformers", KIND)["model_path"]}
    with stub_server(lambda *_: completion("x"), models=[{"id": "m", "owned_by": owner}]) as stub:
        model = stub_chat(stub, **fields)
        model.invoke(QUESTION, stop=["FIN", "un FIN.", "FIN"])
        list(model.stream(QUESTION, stop=["FIN"]))
        model.invoke(QUESTION, stop=["a", "b", "c"])
        whole, stream, many = (received.payload for received in stub.received)
        # vLLM accepts four stop texts.
        assert many["stream"] is (owner != "llamacpp")
        if owner in {"llamacpp", "vllm"}:
            assert not whole["stream"]
            # What contains another stop text before its end is never complete first.
            assert whole["stop"] == ["FIN", "[INST]", "<<SYS>>"]
            assert whole.get("include_stop_str_in_output", False) is (owner == "vllm")
        else:
            assert whole["stream"]
        assert stream["stream"]
        assert "stop" not in stream


# ------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_failure_before_the_first_token_is_tried_again(status):
    replies = [Reply("", status), Reply("", status), completion("Sí")]
    with stub_server(lambda number, _: replies[number]) as stub:
        assert stub_chat(stub).invoke(QUESTION).text == "Sí"
        assert len(stub.received) == 3
    streamed = [Reply("", status), Reply([], cut=True), Reply([event("Sí", "stop")])]
    with stub_server(lambda number, _: streamed[number]) as stub:
        assert "".join(chunk.text for chunk in stub_chat(stub).stream(QUESTION)) == "Sí"
        assert len(stub.received) == 3


@pytest.mark.parametrize("max_retries", [0, 1, 4])
def test_max_retries(max_retries):
    with stub_server(lambda *_: Reply('{"error": {"message": "a full queue"}}', 503)) as stub:
        with pytest.raises(EngineError, match="503: a full queue"):
            stub_chat(stub, max_retries=max_retries).invoke(QUESTION)
        assert len(stub.received) == 1 + max_retries


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_tried_again(status):
    with stub_server(lambda *_: Reply(json.dumps({"error": {"message": f"no, {API_KEY}"}}), status)) as stub:
        for call in ("invoke", "stream"):
            with pytest.raises(EngineError, match=str(status)) as caught:
                list(getattr(stub_chat(stub, api_key=API_KEY), call)(QUESTION))
            assert API_KEY not in str(caught.value)
        assert len(stub.received) == 2


def test_retry_after_is_waited_for():
    replies = [Reply("", 429, {"retry-after": "0.4"}), completion("Sí")]
    with stub_server(lambda number, _: replies[number]) as stub:
        model = stub_chat(stub)
        model.encode([HumanMessage(QUESTION)])
        start = time.monotonic()
        assert model.invoke(QUESTION).text == "Sí"
        assert time.monotonic() - start >= 0.4


def test_pauses_grow_and_vary(monkeypatch):
    monkeypatch.undo()
    pauses = [
        [client_module._pause(type("State", (), {"outcome": None, "attempt_number": attempt})) for _ in range(50)]
        for attempt in (1, 3, 9)
    ]
    assert [max(each) <= limit for each, limit in zip(pauses, (0.5, 2.0, 8.0), strict=True)] == [True] * 3
    assert all(len(set(each)) > 10 for each in pauses)


def test_a_server_killed_in_the_middle_is_one_error_and_not_asked_again():
    parts = [event("Uno"), event(" dos")]
    for reply in (Reply(parts, cut=True), Reply(parts), Reply([*parts, 'data: {"error": {"message": "gone"}}\n'])):
        with stub_server(lambda *_, reply=reply: reply) as stub:
            texts = []
            with pytest.raises(EngineError, match=stub.base_url):
                texts += [chunk.text for chunk in stub_chat(stub).stream(QUESTION)]
            assert len(stub.received) == 1


def test_no_server():
    with stub_server(lambda *_: completion("x")) as stub:
        base_url = stub.base_url
    with pytest.raises(EngineError, match=base_url) as caught:
        ChatLince(model=KIND, base_url=base_url, max_retries=1).invoke(QUESTION)
    assert "cannot be reached" in str(caught.value)


def test_timeout():
    with stub_server(lambda *_: Reply([Pause(1.5), "{}"])) as stub:
        start = time.monotonic()
        with pytest.raises(EngineError, match=r"0\.2 seconds"):
            stub_chat(stub, timeout=0.2, max_retries=1).invoke(QUESTION)
        assert time.monotonic() - start < 3
        assert len(stub.received) == 2


def test_a_timeout_between_two_tokens():
    parts = [event("uno"), Pause(2.0), event("dos", "stop")]
    with stub_server(lambda *_: Reply(parts)) as stub:
        texts = []
        with pytest.raises(EngineError, match="in the middle"):
            for chunk in stub_chat(stub, timeout=0.3).stream(QUESTION):
                texts.append(chunk.text)  # noqa: PERF401
        assert texts == ["uno"]
        assert len(stub.received) == 1


@pytest.mark.parametrize(
    "data",
    ["x", "[1]", "{}", '{"choices": 3}', '{"choices": ["x"]}', '{"choices": [{"finish_reason": "abort"}]}'],
)
def test_what_is_no_event(data):
    for body in (f"data: {data}\n\n", data, ""):
        with stub_server(lambda *_, body=body: Reply(body)) as stub, pytest.raises(EngineError):
            stub_chat(stub, max_retries=0).invoke(QUESTION)


def test_an_unknown_model_is_named_with_those_that_the_server_has():
    models = [{"id": "uno", "owned_by": "vllm"}, {"id": "dos", "owned_by": "vllm"}]
    with (
        stub_server(lambda *_: completion("x"), models=models) as stub,
        pytest.raises(EngineError, match="uno, dos"),
    ):
        stub_chat(stub).invoke(QUESTION)


def test_a_prompt_that_the_server_finds_too_long():
    message = json.dumps({"error": {"message": "maximum context length is 5 tokens"}})
    with stub_server(lambda *_: Reply(message, 400)) as stub, pytest.raises(ContextWindowError):
        stub_chat(stub).invoke(QUESTION)


def test_a_wrong_key_of_a_real_server():
    base_url = llama_server(shared_gguf(KIND)).base_url
    with pytest.raises(EngineError, match="401") as caught:
        ChatLince(model=KIND, base_url=base_url, api_key="falsa-987", max_retries=0).invoke(QUESTION)
    assert "falsa-987" not in str(caught.value)
    assert "LINCE_API_KEY" in caught.value.hint


# ------------------------------------------------------------------------------------------------ many at a time


def test_64_threads_stream_without_loss_or_mixture():
    model = chat()
    questions = [f"¿{number}?" for number in range(64)]
    expected = {question: model.invoke(question, **GREEDY).text for question in questions}
    assert len(set(expected.values())) > 32
    with ThreadPoolExecutor(64) as pool:
        texts = list(
            pool.map(lambda question: "".join(chunk.text for chunk in model.stream(question, **GREEDY)), questions)
        )
    assert dict(zip(questions, texts, strict=True)) == expected


async def test_64_async_streams_at_once_need_no_thread_each():
    barrier = threading.Barrier(64)

    def reply(_: int, payload: dict[str, Any]) -> Reply:
        # Answered only once all 64 requests are there.
        barrier.wait(20)
        last = payload["prompt"][-1]
        return Reply([event(f"{payload['seed']} "), event(str(last), "stop")])

    async def ask(model: ChatLince, seed: int) -> str:
        return "".join([chunk.text async for chunk in model.astream(QUESTION, seed=seed)])

    with stub_server(reply) as stub:
        model = stub_chat(stub)
        last = (await asyncio.to_thread(model.encode, [HumanMessage(QUESTION)]))[-1]
        texts = await asyncio.gather(*(ask(model, seed) for seed in range(64)))
        assert texts == [f"{seed} {last}" for seed in range(64)]


def endless(*_: Any) -> Reply:
    """A reply that streams until its connection is closed."""
    return Reply(part for _ in range(10_000) for part in (event("y "), Pause(0.03)))


@pytest.mark.parametrize("streamed", [True, False])
async def test_cancelling_closes_the_request(streamed):
    with stub_server(endless) as stub:
        model = stub_chat(stub)

        async def read() -> None:
            async for _ in model.astream(QUESTION):
                pass

        task = asyncio.create_task(read() if streamed else model.ainvoke(QUESTION))
        while not stub.received:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(stub.abandoned.wait, 5)


async def test_leaving_an_async_stream_closes_the_request():
    with stub_server(endless) as stub:
        stream = stub_chat(stub).astream(QUESTION)
        async for chunk in stream:
            if chunk.text:
                break
        await stream.aclose()
        assert await asyncio.to_thread(stub.abandoned.wait, 5)


def test_leaving_a_stream_closes_the_request():
    with stub_server(endless) as stub:
        stream = stub_chat(stub).stream(QUESTION)
        next(chunk for chunk in stream if chunk.text)
        stream.close()
        assert stub.abandoned.wait(5)


def test_event_loops_that_come_and_go_share_the_connections():
    model = chat()
    texts = [asyncio.run(model.ainvoke(QUESTION, **GREEDY)).text for _ in range(3)]
    assert texts == [model.invoke(QUESTION, **GREEDY).text] * 3


# ------------------------------------------------------------------------------------------- options and secrets


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_base_url_with_and_without_version(suffix):
    assert ServerOptions(f"http://localhost:8000{suffix}").base_url == "http://localhost:8000"


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "", "http://", "http://user:geheim@host", "http://[x"]
)
def test_what_is_no_address(url):
    with pytest.raises(ConfigurationError) as caught:
        ServerOptions(url)
    assert "geheim" not in str(caught.value)


def test_an_engine_and_an_address_that_contradict_each_other():
    with pytest.raises(ConfigurationError, match="base_url"):
        ChatLince(model=KIND, engine="server").check()
    with pytest.raises(ConfigurationError, match="transformers"):
        ChatLince(model=KIND, engine="transformers", base_url="http://localhost:1").check()
    with pytest.raises(ConfigurationError, match="extractive"):
        ChatLince(base_url="http://localhost:1").check()


def test_the_key_is_nowhere_to_be_read(caplog):
    with caplog.at_level(logging.DEBUG):
        model = chat()
        model.invoke(QUESTION, max_tokens=2)
        shown = [
            repr(model),
            str(model),
            repr(model.runtime),
            repr(model.runtime.options),
            model.model_dump_json(),
        ]
        shown += [
            repr(vars(model.runtime)),
            str(model._identifying_params),
            json.dumps(model.to_json(), default=str),
        ]
        shown += [record.getMessage() for record in caplog.records]
    assert not [text for text in shown if API_KEY in text]
    assert SecretStr(API_KEY) == model.api_key


# ---------------------------------------------------------------------------------------------- the command line


def test_the_command_line_asks_a_server(tmp_path):
    (tmp_path / "contrato.txt").write_text("La fianza es de 815 euros.", encoding="utf-8")
    run("ingest", str(tmp_path / "contrato.txt"), "--index", str(tmp_path / "index"), "--embeddings", "embedded")
    server = llama_server(shared_gguf(KIND))
    asked = ("ask", "¿Cuánto es la fianza?", "--index", str(tmp_path / "index"), "--model", KIND)
    limits = ("--max-tokens", "5", "--minimum-confidence", "0")
    _, error = run(*asked, *limits, "--json", LINCE_BASE_URL=f"{server.base_url}/v1", LINCE_API_KEY=API_KEY)
    assert not error
    wrong = ("--base-url", server.base_url, "--engine", "server", "--api-key", "falsa-987")
    _, error = run(*asked, *limits, *wrong, status=2)
    assert "401" in error
    assert "falsa-987" not in error
