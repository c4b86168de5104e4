"""A JSON schema under given bounds, turned into nodes: references followed, alternatives told apart."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations, takewhile
from typing import Any, Final

from lince_rag.engines.json_schema.grammar import (
    Array,
    Entry,
    Literal,
    Member,
    Object,
    Piece,
    Text,
    Union,
    to_json,
)
from lince_rag.engines.json_schema.merging import ANNOTATIONS, Schema, look_up, merge, refuse, type_names, without
from lince_rag.engines.json_schema.scalars import Bounds, integer_node, number_node, string_node

# Builds a schema; ``None`` where nothing can meet it.
Build = Callable[[Any], Piece | None]


def array_node(schema: Schema, bounds: Bounds, build: Build) -> Piece | None:
    """Bound a list.

    Args:
        schema: A schema of lists.
        bounds: The bounds.
        build: Builds the schema of an item.

    Returns:
        The list; ``None`` where there can be none.
    """
    if schema.get("uniqueItems"):
        raise refuse("uniqueItems", "a grammar does not remember the items before")
    prefix, minimum = schema.get("prefixItems", []), int(schema.get("minItems", 0))
    longest = int(min(max(minimum, len(prefix), bounds.items), schema.get("maxItems", math.inf)))
    items = list(takewhile(lambda item: item is not None, map(build, prefix[:longest])))
    other = build(schema.get("items", True)) if longest > len(prefix) == len(items) else None
    longest = longest if other else len(items)
    return Array(tuple(filter(None, items)), other, minimum, longest) if minimum <= longest else None


def object_node(schema: Schema, bounds: Bounds, build: Build) -> Piece | None:
    """Bound an object.

    Args:
        schema: A schema of objects.
        bounds: The bounds.
        build: Builds the schema of a member.

    Returns:
        The object; ``None`` where there can be none.
    """
    required = schema.get("required", [])
    others = schema.get("additionalProperties", True)
    named = {**schema.get("properties", {})}
    named |= {name: others for name in required if name not in named}
    names = _names(schema, named, bounds, build)
    members: list[Member | Entry] = []
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
    members += _entries(schema, named, names, build) * room
    return Object(tuple(_require(members, least))) if len(members) >= least else None


def _names(schema: Schema, named: Schema, bounds: Bounds, build: Build) -> Piece | None:
    """Build the names that the schema leaves open."""
    if patterns := schema.get("patternProperties", {}):
        if len(patterns) > 1 or named or "propertyNames" in schema:
            raise refuse("patternProperties", "there may be one pattern, and no other properties beside it")
        return build({"type": "string", "pattern": next(iter(patterns))})
    if "propertyNames" in schema:
        if named:
            raise refuse("propertyNames", "there may be no other properties beside it")
        return build(merge({"type": "string"}, schema["propertyNames"]))
    return Text(bounds.name, minimum=1, excluded=tuple(named), plain=True)


def _entries(schema: Schema, named: Schema, names: Piece | None, build: Build) -> list[Member | Entry]:
    """Build a member that the schema does not name; where it names some and says nothing, there is none."""
    patterns = schema.get("patternProperties")
    values = next(iter(patterns.values())) if patterns else schema.get("additionalProperties", not named)
    value = None if values is False or names is None else build(values)
    return [] if names is None or value is None else [Entry(names, value, required=False)]


def _require(members: list[Member | Entry], least: int) -> list[Member | Entry]:
    """Require the first optional members, until there are enough; open names may repeat, so one of them counts."""
    found = 0
    missing = least - sum(member.required for member in members)
    required = []
    for member in members:
        take = not member.required and missing > 0 and not (isinstance(member, Entry) and found)
        found += take and isinstance(member, Entry)
        missing -= take
        required.append(replace(member, required=True) if take else member)
    if missing > 0:
        raise refuse("minProperties", "names that the schema leaves open may repeat")
    return required


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

# A number may be whole.
_ANY_TYPE: Final = [name for name in _KEYWORDS if name != "integer"]

# What a free value counts as, among the references that may occur within themselves.
_ANYTHING: Final = "anything"

# A tree of more nodes than this takes too long to compile; references that fan out get there.
_MOST_NODES: Final = 4_000

Path = tuple[str, ...]


class TooLargeError(Exception):
    """A bounded schema has too many nodes."""


class SchemaBuilder:
    """Builds the nodes of a schema; ``None`` stands for a schema that nothing can meet.

    Args:
        root: The whole schema, in which references point.
        bounds: What bounds values for which it has no bound.
    """

    def __init__(self, root: Any, bounds: Bounds) -> None:
        self._root = root
        self._bounds = bounds
        self._count = 0

    def build(self, schema: Any, path: Path) -> Piece | None:
        """Build a schema.

        Args:
            schema: A part of the whole schema.
            path: The references that it is inside of.

        Returns:
            Its node.

        Raises:
            TooLargeError: There are too many nodes.
            ConfigurationError: A keyword cannot be held to.
        """
        self._count += 1
        if self._count > _MOST_NODES:
            raise TooLargeError
        if schema is False:
            return None
        if schema is True:
            schema = {}
        for keyword in schema:
            if keyword not in _KNOWN and not keyword.startswith("x-"):
                raise refuse(keyword, "no decoder can hold to it")
        if "$ref" in schema:
            return self.build(*self._resolved(schema, path))
        for keyword in ("allOf", "anyOf", "oneOf"):
            if keyword in schema:
                return self._combined(schema, keyword, path)
        if "enum" in schema or "const" in schema:
            return self._listed(schema)
        return self._typed(schema, path)

    def _resolved(self, schema: Any, path: Path) -> tuple[Any, Path]:
        """Follow the references of a schema itself, and say so in the path."""
        while isinstance(schema, Mapping) and "$ref" in schema:
            reference = schema["$ref"]
            if path.count(reference) > self._bounds.depth:
                return False, path
            path = (*path, reference)
            schema = merge(look_up(reference, self._root), without(schema, "$ref"))
        return schema, path

    def _combined(self, schema: Schema, keyword: str, path: Path) -> Piece | None:
        rest = without(schema, keyword)
        parts = [self._resolved(part, path) for part in schema[keyword]]
        if keyword == "allOf":
            inside = path
            for part, references in parts:
                rest = merge(rest, part)
                inside += references[len(path) :]
            return self.build(rest, inside)
        if keyword == "oneOf":
            # However deep they nest: what is left out here for its depth may still hold.
            self._check_disjoint([self._resolved(part, ())[0] for part in schema[keyword]])
        return _union([self.build(merge(rest, part), references) for part, references in parts])

    def _listed(self, schema: Schema) -> Piece | None:
        """Write out the values of ``enum`` and ``const`` that the other keywords allow, too."""
        texts = dict.fromkeys(to_json(value) for value in _values(schema) or () if self._allows(schema, value))
        return Literal(tuple(texts)) if texts else None

    def _allows(self, schema: Any, value: Any) -> bool:
        from jsonschema import Draft202012Validator

        # References point into the whole schema.
        return bool(Draft202012Validator(self._root).evolve(schema=schema).is_valid(value))

    def _typed(self, schema: Schema, path: Path) -> Piece | None:
        if "type" in schema:
            names = sorted(type_names(schema["type"]))
        elif schema.keys().isdisjoint(_OF_TYPES):
            nested = path.count(_ANYTHING) <= self._bounds.depth
            names = [name for name in _ANY_TYPE if nested or name not in ("array", "object")]
            path = (*path, _ANYTHING)
        else:
            # A keyword of lists says nothing about texts: what it is about is what is meant.
            names = [name for name in _ANY_TYPE if not schema.keys().isdisjoint(_KEYWORDS[name].split())]
        return _union([self._of_type(name, schema, path) for name in names])

    def _of_type(self, name: str, schema: Schema, path: Path) -> Piece | None:
        build = partial(self.build, path=path)
        scalars: dict[str, Callable[[Schema, Bounds], Piece | None]] = {
            "string": string_node, "integer": integer_node, "number": number_node
        }  # fmt: skip
        if name in scalars:
            return scalars[name](schema, self._bounds)
        if name in ("array", "object"):
            return (array_node if name == "array" else object_node)(schema, self._bounds, build)
        return Literal(("null",) if name == "null" else ("true", "false"))

    def _check_disjoint(self, options: list[Any]) -> None:
        """Refuse alternatives of which two may hold at once, so far as their types and constants tell."""
        for one, other in combinations(options, 2):
            if not self._disjoint(one, other):
                raise refuse("oneOf", "two of its alternatives may hold at once; anyOf would do")

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


def _union(options: list[Piece | None]) -> Piece | None:
    found = tuple(option for option in options if option is not None)
    return Union(found) if len(found) > 1 else (found[0] if found else None)


def _values(schema: Schema) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _kinds(schema: Schema) -> set[str]:
    return {"number" if name == "integer" else name for name in type_names(schema.get("type", []))}
