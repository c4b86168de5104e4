"""JSON schemas are bounded by the tokens of the answer; what cannot be enforced is refused by name."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from lince_rag.engines.json_schema.constraints import bound_schema, read_schema
from lince_rag.engines.json_schema.grammar import Array, Grammar, Literal, Node, Object, is_object
from lince_rag.engines.json_schema.merging import merge
from lince_rag.errors import ConfigurationError
from tests.json_schemas import REFUSED, VALUES, Schema, schemas

# Large schemas take long to draw on a busy machine.
patient = settings(suppress_health_check=[HealthCheck.too_slow])

NODE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "n": {"type": "integer"},
            },
            "required": ["next"],
        }
    },
}  # fmt: skip


def bound(schema: Any, limit: int = 200) -> Node:
    return bound_schema(read_schema(json.dumps(schema)), limit)


def refusal(schema: Any, limit: int = 200) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        bound(schema, limit)
    assert caught.value.hint
    return caught.value


# --------------------------------------------------------------------------------------------------- the bound


@pytest.mark.slow
def test_the_longest_value_fits() -> None:
    counts: Counter[str] = Counter()

    @patient
    @given(schemas(), st.integers(2, 300) | st.integers(150, 300))
    def check(schema: Schema, limit: int) -> None:
        counts["schemas"] += 1
        try:
            node = bound(schema, limit)
        except ConfigurationError:
            return
        counts["accepted"] += 1
        assert 0 < node.cost < limit
        assert Grammar().write(node).count("start: ") == 1

    check()
    assert counts["accepted"] >= counts["schemas"] / 10, counts


@pytest.mark.slow
def test_what_does_not_fit_says_how_much_it_takes() -> None:
    counts: Counter[str] = Counter()

    @patient
    @given(schemas())
    def check(schema: Schema) -> None:
        counts["schemas"] += 1
        with pytest.raises(ConfigurationError) as caught:
            bound(schema, 1)
        if "does not fit" in caught.value.message:
            needed = int(caught.value.message.removesuffix(".").split()[-1])
            assert bound(schema, needed).cost == needed - 1
            counts["accepted"] += 1

    check()
    assert counts["accepted"] >= counts["schemas"] / 4, counts


@given(VALUES, st.integers(0, 3))
def test_a_constant_takes_its_bytes(value: Any, beside: int) -> None:
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    assert bound_schema({"const": value}, size + beside, beside).cost == size
    with pytest.raises(ConfigurationError, match=f"may take {size + beside}"):
        bound_schema({"const": value}, size + beside - 1, beside)


@pytest.mark.parametrize("limit", [30, 60, 200, 2000])
def test_what_refers_to_itself_is_bounded(limit: int) -> None:
    assert bound(NODE, limit).cost < limit


def test_text_gets_what_is_left() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "required": ["a"],
    }
    assert 250 <= bound(schema, 256).cost < 256
    assert bound({"type": "string", "maxLength": 3}, 256).cost == 2 + 3 * 4


@pytest.mark.parametrize(
    "schema", [{"minItems": 10**6}, {"type": "string", "minLength": 10**9}, {"minimum": 10**300}]
)
def test_what_is_huge_is_refused_at_once(schema: Schema) -> None:
    assert "does not fit" in refusal(schema).message


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("keyword", REFUSED)
@pytest.mark.parametrize("nested", [False, True])
def test_keywords_that_no_grammar_enforces_are_named(keyword: str, nested: bool) -> None:
    schema = {"type": "object", keyword: REFUSED[keyword]}
    assert (
        repr(keyword) in refusal({"type": "array", "items": schema, "minItems": 1} if nested else schema).message
    )


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "iri"}, "format"),
        ({"type": "number", "multipleOf": 0.1}, "multipleOf"),
        ({"type": "integer", "multipleOf": 9973}, "multipleOf"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"oneOf": [{"const": 1}, {"enum": [2, 1.0]}]}, "oneOf"),
        ({"oneOf": [{"type": "object"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "object"}}}, "oneOf"),
        ({"patternProperties": {"a": True, "b": True}}, "patternProperties"),
        ({"patternProperties": {"a": True}, "properties": {"b": True}}, "patternProperties"),
        ({"propertyNames": {"maxLength": 2}, "properties": {"b": True}}, "propertyNames"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "allOf"),
        ({"allOf": [{"additionalProperties": False}, {"properties": {"a": True}}]}, "additionalProperties"),
        ({"allOf": [{"prefixItems": [True]}, {"items": {"type": "null"}}]}, "items"),
        ({"$ref": "https://example.org/schema"}, "$ref"),
        ({"$ref": "#a"}, "$ref"),
        ({"$ref": "#/$defs/nothing"}, "$ref"),
        ({"nullable": True}, "nullable"),
    ],
    ids=str,
)
def test_uses_that_cannot_be_enforced_are_named(schema: Schema, named: str) -> None:
    assert repr(named) in refusal(schema).message


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "integer", "minimum": 1.2, "maximum": 1.8},
        {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 6},
        {"type": "number", "exclusiveMinimum": 2, "maximum": 2},
        {"type": "string", "minLength": 2, "maxLength": 1},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"type": "array", "prefixItems": [True, False], "minItems": 2},
        {"properties": {"a": False}, "required": ["a"]},
        {"required": ["a", "b"], "maxProperties": 1},
        {"allOf": [{"type": "string"}, {"type": "null"}]},
        {"const": True, "enum": [1]},
        {"enum": ["a"], "type": "integer"},
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    ],
    ids=str,
)
def test_what_nothing_can_meet_is_refused(schema: Schema) -> None:
    assert "allows no value" in refusal(schema).message


@pytest.mark.parametrize(
    "text",
    ["", "{", "{'a': 1}", "[]", "3", '{"type": "text"}', '{"minimum": true}', '{"const": NaN}', '{"const": 1e999}',
     r'{"const": "\ud800"}', '{"required": "a"}', "[" * 9999],
)  # fmt: skip
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="JSON schema"):
        read_schema(text)


# --------------------------------------------------------------------------------------------- what is allowed


@pytest.mark.parametrize(
    ("schema", "texts"),
    [
        ({"enum": ["ñ", 1, None, "🦙", {"a": []}]}, ('"ñ"', "1", "null", '"🦙"', '{"a":[]}')),
        ({"enum": ["a", "ab", "abc"], "minLength": 2}, ('"ab"', '"abc"')),
        ({"allOf": [{"enum": [1, 2, 3]}, {"enum": [3, 2]}]}, ("2", "3")),
        ({"type": "number", "minimum": 1.5, "maximum": 1.5}, ("1.5",)),
        ({"$ref": "#/properties/a", "properties": {"a": {"const": 0}}}, ("0",)),
        ({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"const": "x"}}}, ('"x"',)),
    ],
    ids=str,
)
def test_the_values_of_a_list(schema: Schema, texts: tuple[str, ...]) -> None:
    node = bound(schema)
    assert isinstance(node, Literal)
    assert node.texts == texts


def test_objects() -> None:
    schema = {"properties": {"b": True, "a": {"type": "null"}, "c": False}, "required": ["a"], "maxProperties": 1}
    node = bound({"type": "object", **schema})
    assert isinstance(node, Object)
    assert [(member.name, member.required) for member in node.members] == [("a", True)]
    assert is_object(node)
    assert is_object(bound({"anyOf": [{"type": "object", **schema}, {"const": {}}]}))
    assert not is_object(bound({"type": ["object", "null"], **schema}))


def test_lists() -> None:
    node = bound(
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 22}], "items": {"const": 333}, "maxItems": 4}
    )
    assert isinstance(node, Array)
    assert node.cost == len("[1,22,333,333]")


# -------------------------------------------------------------------------------------------------- merging


def is_valid(schema: Schema, value: Any) -> bool:
    try:
        return bool(Draft202012Validator(schema).is_valid(value))
    except RecursionError:
        # A reference that leads to nothing but itself has no meaning.
        reject()


@pytest.mark.slow
def test_a_merged_schema_holds_where_both_do() -> None:
    counts: Counter[str] = Counter()

    # Refused keywords need no merging, and a validator cannot resolve some of them.
    @patient
    @given(schemas(refused=False), schemas(refused=False), VALUES)
    def check(first: Schema, second: Schema, value: Any) -> None:
        counts["pairs"] += 1
        try:
            merged = merge(first, second)
        except ConfigurationError:
            return
        if isinstance(first, dict) and isinstance(second, dict):
            second = {**second, "$defs": first["$defs"]}
        assert is_valid(merged, value) == (is_valid(first, value) and is_valid(second, value))
        counts["accepted"] += 1

    check()
    assert counts["accepted"] >= counts["pairs"] / 4, counts


def test_parts_of_all_of_come_together() -> None:
    parts = [
        {"type": ["integer", "string"], "minimum": 1, "title": "one"},
        {"type": "number", "minimum": 3, "maximum": 9, "title": "two"},
        {"maximum": 5, "properties": {"a": {"type": "string"}}},
        {"properties": {"a": {"minLength": 2}, "b": False}, "required": ["a"]},
    ]
    merged: Any = True
    for part in parts:
        merged = merge(merged, part)
    assert merged == {
        "type": ["integer"],
        "minimum": 3,
        "maximum": 5,
        "title": "one",
        "properties": {"a": {"type": "string", "minLength": 2}, "b": False},
        "required": ["a"],
    }
