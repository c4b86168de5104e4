"""Looks up the references of a JSON schema, and merges schemas that must match together."""

from collections.abc import Collection, Mapping
from typing import Any, Final
from urllib.parse import unquote

from lince_rag.engines.json_schema.grammar import to_json
from lince_rag.errors import ConfigurationError

# Keywords that do not restrict the values.
ANNOTATIONS: Final = frozenset(
    {
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"),
        *("discriminator", "$schema", "$id", "$comment", "$defs", "definitions"),
        *("contentEncoding", "contentMediaType", "contentSchema"),
    }
)

_LARGER: Final = frozenset({"minLength", "minItems", "minimum", "exclusiveMinimum", "minProperties"})
_SMALLER: Final = frozenset({"maxLength", "maxItems", "maximum", "exclusiveMaximum", "maxProperties"})

# Keywords for the members or items that other keywords of the same schema do not name.
_REMAINDERS: Final = {"additionalProperties": ("properties", "patternProperties"), "items": ("prefixItems",)}

Schema = Mapping[str, Any]


def refuse(keyword: str, reason: str) -> ConfigurationError:
    """Return the error for a keyword that constrained decoding cannot enforce."""
    return ConfigurationError(
        f"The JSON schema uses {keyword!r}: {reason}.",
        hint="Remove it from the schema that constrains the model, and check the answer for it afterwards.",
    )


def without(schema: Schema, keyword: str) -> dict[str, Any]:
    """Return a schema without a keyword and without annotations."""
    return {key: value for key, value in schema.items() if key != keyword and key not in ANNOTATIONS}


def look_up(reference: str, root: Schema) -> Any:
    """Return the part of the schema that a ``$ref`` points to."""
    found: Any = root
    if reference != "#" and not reference.startswith("#/"):
        raise refuse("$ref", f"{reference!r} does not point into the schema itself")
    for part in reference.split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            raise refuse("$ref", f"there is nothing at {reference!r}")
    return found


def merge(first: Any, second: Any) -> Any:
    """Return a schema that matches what both schemas match; its properties are in the order of the first."""
    if first is False or second is False:
        return False
    if first is True or not first:
        return second
    if second is True or not second:
        return first
    _check_remainders(first, second)
    _check_remainders(second, first)
    merged = {**first}
    for keyword, value in second.items():
        merged[keyword] = _merge_keyword(keyword, first[keyword], value) if keyword in first else value
    return merged


def _check_remainders(one: Schema, other: Schema) -> None:
    """Refuse names of the other schema that a keyword of this one restricts without naming them."""
    for keyword, naming in _REMAINDERS.items():
        if one.get(keyword, True) is True:
            continue
        for names in naming:
            if _named(other.get(names, ())) - _named(one.get(names, ())):
                raise refuse(keyword, f"another part of the same schema has more {names!r}")


def _named(value: Collection[Any]) -> set[Any]:
    return set(value) if isinstance(value, Mapping) else set(range(len(value)))


def _merge_keyword(keyword: str, one: Any, other: Any) -> Any:
    # Compared as JSON, because True equals 1 in Python.
    if keyword in ANNOTATIONS or to_json(one) == to_json(other):
        return one
    if keyword in _LARGER:
        return max(one, other)
    if keyword in _SMALLER:
        return min(one, other)
    if keyword == "required":
        return [*one, *(name for name in other if name not in one)]
    if keyword == "properties":
        shared = {name: merge(one[name], other[name]) for name in one if name in other}
        return {**one, **other, **shared}
    if keyword in ("items", "additionalProperties", "propertyNames"):
        return merge(one, other)
    if keyword == "enum":
        kept = {to_json(value) for value in other}
        return [value for value in one if to_json(value) in kept]
    if keyword == "type":
        return _merge_types(one, other)
    raise refuse("allOf", f"two parts of the schema have different {keyword!r}")


def _merge_types(one: Any, other: Any) -> list[str]:
    first, second = type_names(one), type_names(other)
    shared = first & second
    # An integer is also a number.
    if ("integer" in first and "number" in second) or ("number" in first and "integer" in second):
        shared |= {"integer"}
    return sorted(shared)


def type_names(types: str | list[str]) -> set[str]:
    """Return the set of types in the value of the keyword ``type``."""
    return {types} if isinstance(types, str) else set(types)
