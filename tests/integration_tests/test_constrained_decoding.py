"""Answers constrained by a JSON schema are valid and complete, whatever the schema, tokenizer and search."""

import json
import re
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any, Final

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from jsonschema import Draft202012Validator
from langchain_core.messages import HumanMessage

from lince_rag import ChatLince
from lince_rag.engines import GenerationSettings
from lince_rag.engines.json_schema.constraints import Constraints
from lince_rag.errors import ConfigurationError, MissingExtraError, installation
from tests.checkpoints import KINDS, shared_checkpoint
from tests.json_schemas import Schema, schemas
from tests.lengths import EXAMPLES
from tests.watched_models import dictated

LIMIT: Final = 128
GREEDY: Final[dict[str, Any]] = {"temperature": 0}
SAMPLING: Final[dict[str, Any]] = {"temperature": 1.0, "top_k": 50, "seed": 5}

# Of very different lengths, so that a batch of them is padded.
QUESTIONS: Final = ["¿Qué?", "Dame una lista de lugares que visitar en España. " * 3, "Olá, tudo bem?"]

TICKET: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "título": {"type": "string", "minLength": 3, "maxLength": 20},
        "situação 🦙": {"enum": ["año", "não", "🦙🚀", None]},
        "fecha": {"type": "string", "format": "date"},
        "páginas": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 400}, "maxItems": 3},
    },
    "required": ["título", "situação 🦙", "páginas"],
    "additionalProperties": False,
}
TREE: Final[dict[str, Any]] = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "valor": {"type": "number", "minimum": -0.5, "maximum": 2},
                "hijos": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["valor"],
        }
    },
}
UNION: Final[dict[str, Any]] = {
    "oneOf": [
        {"type": "object", "properties": {"tipo": {"const": "sí"}, "código": {"pattern": "^[A-ZÑ]{3}$"}},
         "required": ["tipo", "código"]},
        {"type": "object", "properties": {"tipo": {"const": "não"}}, "required": ["tipo"], "minProperties": 1},
    ]
}  # fmt: skip
SCALARS: Final[list[Schema]] = [
    {"const": "«Coração» 🦙 \"x\"\n"}, {"type": "boolean"}, {"type": "number"}, {"type": ["string", "null"]}, True,
    {"type": "number", "minimum": -1, "exclusiveMaximum": 0}, {"type": "number", "multipleOf": 0.25},
]  # fmt: skip
BY_HAND: Final[list[Schema]] = [TICKET, TREE, UNION, *SCALARS]

by_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def tokenizer(kind: str) -> Any:
    return shared_checkpoint(kind).load()[1]


@cache
def constraints(kind: str) -> Constraints:
    return Constraints(tokenizer(kind), [tokenizer(kind).eos_token_id])


@cache
def chat(kind: str, **options: Any) -> ChatLince:
    return ChatLince(**shared_checkpoint(kind, **options).chat_fields)


def prompts(kind: str) -> list[Any]:
    return [chat(kind).render([HumanMessage(question)]) for question in QUESTIONS]


def held(schema: Schema, max_tokens: int = LIMIT, **options: Any) -> GenerationSettings:
    return GenerationSettings(max_tokens=max_tokens, json_schema=json.dumps(schema), **options)


def assert_valid(schema: Schema, generation: Any, limit: int = LIMIT) -> None:
    Draft202012Validator(schema).validate(json.loads(generation.text))
    assert generation.finish_reason == "stop"
    assert generation.output_tokens < limit


def sampled(kind: str, processor: Any, limit: int, seed: int, favourites: dict[int, float] | None = None) -> Any:
    """Sample tokens at random from what a processor lets through.

    Returns:
        The answer and its tokens, its end included; ``None`` where it did not end.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros((1, 1), dtype=torch.long)
    for _ in range(limit):
        scores = torch.rand((1, len(tokenizer(kind))), generator=generator)
        for token, bonus in (favourites or {}).items():
            scores[0, token] += bonus
        token = int(processor(ids, scores).argmax())
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        if token in constraints(kind).end_ids:
            return tokenizer(kind).decode(ids[0, 1:-1]), ids.shape[1] - 1
    return None


# -------------------------------------------------------------------------------------------------- any schema


def test_whatever_the_schema_the_answer_is_valid_or_refused_before_decoding() -> None:
    counts: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
    @given(schemas(), st.integers(0, 2**32))
    def check(schema: Schema, seed: int) -> None:
        counts["schemas"] += 1
        outcomes = {kind: outcome(kind, schema, seed, counts) for kind in KINDS}
        assert len(set(outcomes.values())) == 1, outcomes
        if not outcomes[KINDS[0]]:
            counts["refused"] += 1
            counts["satisfied by nothing"] += schema is False or from_schema(schema).is_empty

    check()
    print(dict(counts))
    assert counts["schemas"] >= EXAMPLES
    assert counts["answers"] == len(KINDS) * (counts["schemas"] - counts["refused"])
    assert counts["refused"] - counts["satisfied by nothing"] <= 0.4 * counts["schemas"]


def outcome(kind: str, schema: Schema, seed: int, counts: Counter[str]) -> bool:
    """Answer with a schema; return whether it was accepted."""
    try:
        processor = constraints(kind).processor(json.dumps(schema), LIMIT)
    except ConfigurationError:
        return False
    answer = sampled(kind, processor, LIMIT, seed)
    assert answer is not None, schema
    text, tokens = answer
    Draft202012Validator(schema).validate(json.loads(text))
    counts["answers"] += 1
    counts["tokens"] += tokens
    return True


@by_kind
@pytest.mark.parametrize("schema", BY_HAND, ids=lambda schema: json.dumps(schema)[:20])
def test_the_longest_answer_fits(kind: str, schema: Schema) -> None:
    # Bytes alone make the longest answer there is, and the end comes last.
    single = [token for token in range(len(tokenizer(kind))) if len(tokenizer(kind).decode([token]).encode()) == 1]
    favourites = dict.fromkeys(single, 2.0) | dict.fromkeys(constraints(kind).end_ids, -5.0)
    for seed in range(3):
        processor = constraints(kind).processor(json.dumps(schema), LIMIT)
        answer = sampled(kind, processor, LIMIT, seed, favourites)
        assert answer is not None
        Draft202012Validator(schema).validate(json.loads(answer[0]))


@by_kind
def test_speed(kind: str) -> None:
    started = time.perf_counter()
    compiling = Constraints(tokenizer(kind), [tokenizer(kind).eos_token_id])
    read = time.perf_counter()
    processor = compiling.processor(json.dumps(TICKET), 300)
    compiled = time.perf_counter()
    answer = sampled(kind, processor, 300, 0)
    decoded = time.perf_counter()
    assert answer is not None
    seconds = (read - started, compiled - read, (decoded - compiled) / answer[1])
    milliseconds = [1000 * took for took in seconds]
    print("{}: tokenizer {:.1f} ms, schema {:.1f} ms, mask {:.2f} ms a token".format(kind, *milliseconds))


# --------------------------------------------------------------------------------------------------- the engine


@by_kind
@pytest.mark.parametrize("schema", BY_HAND, ids=lambda schema: json.dumps(schema)[:20])
@pytest.mark.parametrize("decoding", [GREEDY, SAMPLING], ids=["greedy", "sampling"])
def test_a_batch_is_valid(kind: str, schema: Schema, decoding: dict[str, Any]) -> None:
    for (generation,) in chat(kind).runtime.generate_batch(prompts(kind), held(schema, **decoding)):
        assert_valid(schema, generation)


@by_kind
def test_a_batch_says_what_its_prompts_say_alone(kind: str) -> None:
    engine = chat(kind).runtime
    alone = [engine.generate(prompt, held(TREE, **GREEDY)) for prompt in prompts(kind)]
    assert [generation for (generation,) in engine.generate_batch(prompts(kind), held(TREE, **GREEDY))] == alone


@by_kind
def test_a_stream_says_the_same(kind: str) -> None:
    for prompt in prompts(kind):
        whole = chat(kind).runtime.generate(prompt, held(TICKET, **GREEDY))
        parts = list(chat(kind).runtime.stream(prompt, held(TICKET, **GREEDY)))
        assert "".join(part.text for part in parts) == whole.text
        assert sum(part.output_tokens for part in parts) == whole.output_tokens
        assert parts[-1].finish_reason == whole.finish_reason == "stop"


@by_kind
def test_candidates_are_all_valid_and_differ(kind: str) -> None:
    settings_ = held(TICKET, temperature=1.0, seed=2)
    for candidates in chat(kind).runtime.generate_batch(prompts(kind)[:2], settings_, candidates=4):
        for candidate in candidates:
            assert_valid(TICKET, candidate)
        assert len({candidate.text for candidate in candidates}) > 1


@by_kind
def test_beams_and_penalties(kind: str) -> None:
    for options in ({"num_beams": 4}, {**GREEDY, "repetition_penalty": 1.8}):
        for (generation,) in chat(kind).runtime.generate_batch(prompts(kind), held(TICKET, **options)):
            assert_valid(TICKET, generation)


@by_kind
def test_stop_texts_cut_nothing_and_occur_in_no_string(kind: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 12}}, "required": ["a"]}
    free = [chat(kind).runtime.generate(prompt, held(schema, **SAMPLING)) for prompt in prompts(kind)]
    stop = tuple(json.loads(generation.text)["a"][4:6] for generation in free)
    for (generation,) in chat(kind).runtime.generate_batch(
        prompts(kind), held(schema, stop=(*stop, '"}'), **SAMPLING)
    ):
        assert_valid(schema, generation)
        assert not [text for text in stop if text in json.loads(generation.text)["a"]]


@by_kind
def test_too_few_tokens_are_refused_with_how_many_it_takes(kind: str) -> None:
    with pytest.raises(ConfigurationError, match=r"does not fit into 20 tokens.*may take \d+") as caught:
        chat(kind).runtime.generate(prompts(kind)[0], held(TICKET, 20, **GREEDY))
    needed = int(caught.value.message.removesuffix(".").split()[-1])
    assert_valid(TICKET, chat(kind).runtime.generate(prompts(kind)[0], held(TICKET, needed, **GREEDY)), needed + 1)
    with pytest.raises(ConfigurationError, match="does not fit"):
        list(chat(kind).runtime.stream(prompts(kind)[0], held(TICKET, needed - 1, **GREEDY)))


# -------------------------------------------------------------------------------------------------- text or JSON


@by_kind
def test_text_may_take_the_place_of_json(kind: str) -> None:
    says = " Hola, ¿qué {tal}? Mañana 🦙"
    assert said(kind, says) == (says.strip(), "stop")
    assert said(kind, says, stop=("nunca", "{")) == ("Hola, ¿qué", "stop")
    assert said(kind, says, stop=("tal}",), max_tokens=LIMIT) == ("Hola, ¿qué {", "stop")
    assert said(kind, "") == ("", "stop")


@by_kind
@pytest.mark.parametrize("lead", ["", " ", "\n"])
def test_json_is_constrained_by_the_schema_if_text_is_allowed(kind: str, lead: str) -> None:
    ticket = '{"título":"abcd","situação 🦙":"año","páginas":[1,22]}'
    assert said(kind, lead + ticket) == (ticket, "stop")
    # Neither an enum nor the punctuation of JSON is cut.
    assert said(kind, lead + ticket, stop=("año", ":[", "}")) == (ticket, "stop")
    # What is no ticket becomes one.
    text, reason = said(kind, lead + '{"otro": 1}')
    Draft202012Validator(TICKET).validate(json.loads(text))
    assert reason == "stop"


def said(kind: str, says: str, **options: Any) -> tuple[str, str]:
    """Return what the engine makes of what a model says, whole and streamed."""
    engine, prompt = chat(kind).runtime, prompts(kind)[0]
    settings_ = held(TICKET, text_allowed=True, **GREEDY, **options)
    with dictated(kind, says):
        whole = engine.generate(prompt, settings_)
    with dictated(kind, says):
        parts = list(engine.stream(prompt, settings_))
    assert "".join(part.text for part in parts) == whole.text
    assert parts[-1].finish_reason == whole.finish_reason
    return whole.text, whole.finish_reason


@by_kind
def test_an_answer_is_json_exactly_where_it_begins_with_a_brace(kind: str) -> None:
    lengths = {token: len(tokenizer(kind).decode([token])) for token in range(len(tokenizer(kind)))}
    blanks = [token for token, length in lengths.items() if length and not tokenizer(kind).decode([token]).strip()]
    braces = [token for token in lengths if "{" in tokenizer(kind).decode([token])]
    favourites = dict.fromkeys(blanks, 0.3) | dict.fromkeys(braces, 0.55)
    found = Counter()
    for seed in range(60):
        processor = constraints(kind).processor(json.dumps(TICKET), LIMIT, text_allowed=True)
        answer = sampled(kind, processor, LIMIT, seed, favourites)
        begins = answer is not None and answer[0].strip().startswith("{")
        found[begins] += 1
        if begins:
            Draft202012Validator(TICKET).validate(json.loads(answer[0]))
    assert min(found[True], found[False]) > 5, found


@by_kind
def test_a_batch_of_texts_and_json_is_the_same_one_by_one(kind: str) -> None:
    model = chat(kind, eos_scale=2.0)
    texts = [model.render([HumanMessage(question)]) for question in QUESTIONS]
    for stop in ((), ("a", "e"), (" ",)):
        settings_ = held(TICKET, text_allowed=True, stop=stop, **GREEDY)
        alone = [model.runtime.generate(text, settings_) for text in texts]
        together = [generation for (generation,) in model.runtime.generate_batch(texts, settings_)]
        # By then the prompts have been read.
        assert [replace(each, cached_tokens=0) for each in together] == [
            replace(each, cached_tokens=0) for each in alone
        ]
        assert not [one for one in alone for text in stop if text in one.text and not one.text.startswith("{")]


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("schema", [TICKET | {"type": ["object", "null"]}, {"enum": [{}, "a"]}, True], ids=str)
def test_text_is_allowed_beside_objects_only(schema: Schema) -> None:
    with pytest.raises(ConfigurationError, match="must allow only objects"):
        constraints(KINDS[0]).processor(json.dumps(schema), LIMIT, text_allowed=True)


def test_what_llguidance_cannot_compile_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot be enforced"):
        constraints(KINDS[0]).processor(json.dumps({"type": "string", "pattern": "(?=a)b"}), LIMIT)


def test_without_llguidance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=re.escape(installation("models"))):
        Constraints(tokenizer(KINDS[0]), [0])


def test_a_tokenizer_without_a_tokenizer_json() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ConfigurationError, match="Slow"):
        Constraints(Slow(), [0])
