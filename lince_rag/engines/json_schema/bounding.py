"""A JSON schema → what it allows, bounded so that every value ends within a limit of tokens.

A bounded schema allows less than the one it was made from, never more, so whatever it allows is valid. What cannot
be held to while decoding is refused by name, and so is a schema whose shortest value is longer than the limit.
"""

import json
from dataclasses import replace
from typing import Any, Final

from lince_rag.engines.json_schema.building import SchemaBuilder, TooLargeError
from lince_rag.engines.json_schema.grammars import Piece, to_json
from lince_rag.engines.json_schema.scalars import Bounds
from lince_rag.errors import ConfigurationError

# The roomier first: items of a list, nesting, digits.
_SHAPES: Final = (
    (8, 3, 12), (4, 3, 12), (8, 2, 12), (4, 2, 12), (2, 2, 12), (4, 1, 12), (2, 1, 9), (1, 1, 9), (1, 1, 3),
    (0, 1, 3), (0, 0, 2),
)  # fmt: skip

# Bytes of a string that a shape had better leave room for; with less room, less will do.
_COMFORTABLE: Final = (48, 16, 4, 0)


def read_schema(text: str) -> Any:
    """Read a JSON schema.

    Args:
        text: The schema, as JSON.

    Returns:
        The schema.

    Raises:
        ConfigurationError: It is no JSON, or no JSON schema.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        schema = json.loads(text)
        # Half a surrogate pair, NaN and numbers without end are none either.
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ConfigurationError(
            f"The JSON schema is none: at {error.json_path}, {error.message}.",
            hint="Write it as draft 2020-12 says.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"The JSON schema {text[:80]!r} is no JSON: {error}.", hint="Give an object, true or false, as JSON."
        ) from error
    return schema


def bound_schema(schema: Any, limit: int, beside: int = 1) -> Piece:
    """Bound a schema so that its longest value fits, with as much room for its strings as there is.

    Args:
        schema: A JSON schema.
        limit: Tokens at most; every one is at least one byte.
        beside: How many of them are not for the value, such as the end of the answer.

    Returns:
        What the schema allows within the limit.

    Raises:
        ConfigurationError: The schema has a keyword that cannot be held to, or no value of it fits.
    """
    room = limit - beside
    costs = []
    for comfortable in _COMFORTABLE:
        for items, depth, digits in _SHAPES:
            bounds = Bounds(comfortable, items, depth, digits, min(4, digits - 1))
            node = _build(schema, bounds)
            if node is None:
                continue
            costs.append(node.cost)
            if node.cost <= room:
                return _roomiest(schema, bounds, node, room)
    if not costs:
        raise ConfigurationError(
            f"The JSON schema {to_json(schema)[:200]} allows no value, or only values that nest too deep.",
            hint="Check its types, limits and references.",
        )
    raise ConfigurationError(
        f"The JSON schema does not fit into {limit} tokens: its shortest form may take {min(costs) + beside}.",
        hint="Set max_tokens higher, or bound the schema tighter with maxLength, maxItems or fewer properties.",
    )


def _roomiest(schema: Any, bounds: Bounds, node: Piece, room: int) -> Piece:
    """Give the strings as many bytes as fit."""
    low, high = bounds.text, room + 1
    while high - low > 1:
        middle = (low + high) // 2
        larger = _build(schema, replace(bounds, text=middle))
        if larger is not None and larger.cost <= room:
            low, node = middle, larger
        else:
            high = middle
    return node


def _build(schema: Any, bounds: Bounds) -> Piece | None:
    try:
        return SchemaBuilder(schema, bounds).build(schema, ())
    except (TooLargeError, RecursionError):
        return None
