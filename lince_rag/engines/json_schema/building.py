"""Builds the nodes of a JSON schema within bounds: follows references and merges combined schemas."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations, takewhile
from typing import Any, Final

from lince_rag.engines.json_schema.grammar import (
    Array,
    Literal,
    Member,
    Node,
    Object,
    OpenMember,
    Text,
    Union,
    to_json,
)
from lince_rag.engines.json_schema.merging import ANNOTATIONS, Schema, look_up, merge, refuse, type_names, without
from lince_rag.engines.json_schema.scalars import Bounds, integer_node, number_node, string_node

_KEYWORDS: Final[dict[str, str]] = {
    "string": "minLength maxLength pattern format",
    "integer": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf",
    "number": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf",
    "array": "items prefixItems minItems maxItems uniqueItems",
    "object": "properties required additionalProperties patternProperties propertyNames"
    " minProperties maxProperties",
    "boolean": "",
    "null": "",
}
_COMMON: Final = ("type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf")
_OF_TYPES: Final = frozenset(" ".join(_KEYWORDS.values()).split())
_KNOWN: Final = {*ANNOTATIONS, *_COMMON, *_OF_TYPES}

# The type "number" includes integers.
_ANY_TYPE: Final = [name for name in _KEYWORDS if name != "integer"]

# The entry of a path for a schema that allows any value; values nest in it as references do.
_ANYTHING: Final = "anything"

# A tree of more nodes takes too long to compile; references that fan out reach this.
_MAX_NODES: Final = 4_000

Path = tuple[str, ...]

# Builds a part of a schema; ``None`` if no value can match it.
Build = Callable[[Any], Node | None]


class TooLargeError(Exception):
    """A bounded schema has too many nodes."""


class SchemaBuilder:
    """Builds the nodes of a schema, within bounds for what the schema leaves unbounded."""

    def __init__(self, root: Any, bounds: Bounds) -> None:
        self._root = root
        self._bounds = bounds
        self._count = 0

    def build(self, schema: Any, path: Path) -> Node | None:
        """Build a part of the schema inside a path of references; ``None`` if no value can match it."""
        self._count += 1
        if self._count > _MAX_NODES:
            raise TooLargeError
        if schema is False:
            return None
        if schema is True:
            schema = {}
        for keyword in schema:
            if keyword not in _KNOWN and not keyword.startswith("x-"):
                raise refuse(keyword, "constrained decoding does not enforce it")
        if "$ref" in schema:
            return self.build(*self._resolved(schema, path))
        for keyword in ("allOf", "anyOf", "oneOf"):
            if keyword in schema:
                return self._combined(schema, keyword, path)
        if "enum" in schema or "const" in schema:
            return self._listed(schema)
        return self._typed(schema, path)

    def _resolved(self, schema: Any, path: Path) -> tuple[Any, Path]:
        """Follow the references of a schema itself, and add them to the path."""
        while isinstance(schema, Mapping) and "$ref" in schema:
            reference = schema["$ref"]
            if path.count(reference) > self._bounds.depth:
                return False, path
            path = (*path, reference)
            schema = merge(look_up(reference, self._root), without(schema, "$ref"))
        return schema, path

    def _combined(self, schema: Schema, keyword: str, path: Path) -> Node | None:
        rest = without(schema, keyword)
        parts = [self._resolved(part, path) for part in schema[keyword]]
        if keyword == "allOf":
            inside = path
            for part, references in parts:
                rest = merge(rest, part)
                inside += references[len(path) :]
            return self.build(rest, inside)
        if keyword == "oneOf":
            # With an empty path, because an alternative that is left out here for its depth may still match.
            self._check_disjoint([self._resolved(part, ())[0] for part in schema[keyword]])
        return _union([self.build(merge(rest, part), references) for part, references in parts])

    def _listed(self, schema: Schema) -> Node | None:
        """List the values of ``enum`` and ``const`` that the other keywords allow, too."""
        texts = dict.fromkeys(to_json(value) for value in _values(schema) or () if self._allows(schema, value))
        return Literal(tuple(texts)) if texts else None

    def _allows(self, schema: Any, value: Any) -> bool:
        from jsonschema import Draft202012Validator

        # References are resolved in the whole schema.
        return bool(Draft202012Validator(self._root).evolve(schema=schema).is_valid(value))

    def _typed(self, schema: Schema, path: Path) -> Node | None:
        if "type" in schema:
            names = sorted(type_names(schema["type"]))
        elif schema.keys().isdisjoint(_OF_TYPES):
            nested = path.count(_ANYTHING) <= self._bounds.depth
            names = [name for name in _ANY_TYPE if nested or name not in ("array", "object")]
            path = (*path, _ANYTHING)
        else:
            # Formally, the keywords of a type allow all values of other types, but the schema means that type.
            names = [name for name in _ANY_TYPE if not schema.keys().isdisjoint(_KEYWORDS[name].split())]
        return _union([self._of_type(name, schema, path) for name in names])

    def _of_type(self, name: str, schema: Schema, path: Path) -> Node | None:
        build = partial(self.build, path=path)
        match name:
            case "string":
                return string_node(schema, self._bounds)
            case "integer":
                return integer_node(schema, self._bounds)
            case "number":
                return number_node(schema, self._bounds)
            case "array":
                return _array(schema, self._bounds, build)
            case "object":
                return _object(schema, self._bounds, build)
        return Literal(("null",) if name == "null" else ("true", "false"))

    def _check_disjoint(self, options: list[Any]) -> None:
        """Refuse alternatives unless their types and constants show that no two match the same value."""
        for one, other in combinations(options, 2):
            if not self._disjoint(one, other):
                raise refuse("oneOf", "two of its alternatives may match the same value; use anyOf")

    def _disjoint(self, one: Any, other: Any) -> bool:
        if one is False or other is False:
            return True
        if one is True or other is True:
            return False
        for listed, schema in ((_values(one), other), (_values(other), one)):
            if listed is not None:
                return not any(self._allows(schema, value) for value in listed)
        types = [_kinds(option) for option in (one, other)]
        if types[0] and types[1] and not types[0] & types[1]:
            return True
        shared = set(one.get("required", ())) & set(other.get("required", ()))
        names = shared & set(one.get("properties", ())) & set(other.get("properties", ()))
        both_objects = types[0] == types[1] == {"object"}
        return both_objects and any(
            self._disjoint(one["properties"][name], other["properties"][name]) for name in names
        )


def _union(options: list[Node | None]) -> Node | None:
    found = tuple(option for option in options if option is not None)
    return Union(found) if len(found) > 1 else (found[0] if found else None)


def _values(schema: Schema) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _kinds(schema: Schema) -> set[str]:
    return {"number" if name == "integer" else name for name in type_names(schema.get("type", []))}


def _array(schema: Schema, bounds: Bounds, build: Build) -> Node | None:
    if schema.get("uniqueItems"):
        raise refuse("uniqueItems", "a grammar cannot compare an item with the earlier ones")
    prefix, minimum = schema.get("prefixItems", []), int(schema.get("minItems", 0))
    longest = int(min(max(minimum, len(prefix), bounds.items), schema.get("maxItems", math.inf)))
    items = list(takewhile(lambda item: item is not None, map(build, prefix[:longest])))
    other = build(schema.get("items", True)) if longest > len(prefix) == len(items) else None
    longest = longest if other else len(items)
    return Array(tuple(filter(None, items)), other, minimum, longest) if minimum <= longest else None


def _object(schema: Schema, bounds: Bounds, build: Build) -> Node | None:
    required = schema.get("required", [])
    others = schema.get("additionalProperties", True)
    named = {**schema.get("properties", {})}
    named |= {name: others for name in required if name not in named}
    names = _open_names(schema, named, bounds, build)
    members: list[Member | OpenMember] = []
    for name, value in named.items():
        node = build(value)
        if node is not None:
            members.append(Member(name, node, name in required))
        elif name in required:
            return None
    least, most = schema.get("minProperties", 0), schema.get("maxProperties", math.inf)
    kept = sum(member.required for member in members)
    if kept > most:
        return None
    left_out = [member for member in members if not member.required][int(min(most - kept, len(members))) :]
    members = [member for member in members if member not in left_out]
    room = int(min(max(bounds.items, 1 if least > len(members) else 0), most - len(members)))
    members += _open_members(schema, named, names, build) * room
    return Object(tuple(_require(members, least))) if len(members) >= least else None


def _open_names(schema: Schema, named: Schema, bounds: Bounds, build: Build) -> Node | None:
    """Build the names that the schema leaves open."""
    if patterns := schema.get("patternProperties", {}):
        if len(patterns) > 1 or named or "propertyNames" in schema:
            raise refuse("patternProperties", "only one pattern is possible, without other properties")
        return build({"type": "string", "pattern": next(iter(patterns))})
    if "propertyNames" in schema:
        if named:
            raise refuse("propertyNames", "it cannot be combined with properties that have names")
        return build(merge({"type": "string"}, schema["propertyNames"]))
    return Text(bounds.name, minimum=1, excluded=tuple(named), plain=True)


def _open_members(schema: Schema, named: Schema, names: Node | None, build: Build) -> list[Member | OpenMember]:
    """Build a member that the schema does not name; by default, there is none if it names any."""
    patterns = schema.get("patternProperties")
    values = next(iter(patterns.values())) if patterns else schema.get("additionalProperties", not named)
    value = None if values is False or names is None else build(values)
    return [] if names is None or value is None else [OpenMember(names, value, required=False)]


def _require(members: list[Member | OpenMember], least: int) -> list[Member | OpenMember]:
    """Require the first optional members up to ``least``; open names may repeat, so only one of them counts."""
    found = 0
    missing = least - sum(member.required for member in members)
    required = []
    for member in members:
        take = not member.required and missing > 0 and not (isinstance(member, OpenMember) and found)
        found += take and isinstance(member, OpenMember)
        missing -= take
        required.append(replace(member, required=True) if take else member)
    if missing > 0:
        raise refuse("minProperties", "properties without a given name may repeat, so at most one of them counts")
    return required
