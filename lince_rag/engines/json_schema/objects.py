"""Objects and lists of a JSON schema, bounded."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from typing import Any

from lince_rag.engines.json_schema.grammars import Piece
from lince_rag.engines.json_schema.merging import Schema, merge, refuse
from lince_rag.engines.json_schema.nodes import Array, Entry, Member, Object, Text
from lince_rag.engines.json_schema.scalars import Bounds

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
