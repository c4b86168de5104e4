"""Strings and numbers of a JSON schema, bounded by the schema or else by the available room."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from lince_rag.engines.json_schema.grammar import CHARACTER_BYTES, Delegated, Digits, Literal, Node, Text, to_json
from lince_rag.engines.json_schema.merging import Schema, refuse

# Maximum characters by format, as the format says or as is long enough; all of them are ASCII.
_FORMATS: Final = {
    "date": 10,
    "time": 24,
    "date-time": 32,
    "duration": 24,
    "uuid": 36,
    "ipv4": 15,
    "ipv6": 39,
    "email": 64,
    "hostname": 64,
    "uri": 128,
}
# Formats whose strings may be shorter if there is little room.
_SHORTENED: Final = frozenset({"email", "hostname", "uri", "duration"})

# Decimals of a number that has limits but no ``multipleOf``; more if the limits are closer than that.
_DECIMALS: Final = 2
_LIMITS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")

# Decimal digits that floating-point numbers distinguish.
_MAX_DIGITS: Final = 15

# Maximum ``multipleOf``, without its decimal point: with 9,973, llguidance gives up in the middle of a number.
_MAX_FACTOR: Final = 1_000

# Bytes of a character in a string with a pattern: a control character is written as \u001F.
_ESCAPED_BYTES: Final = 6


@dataclass(frozen=True)
class Bounds:
    """Limits for values that the schema leaves unbounded."""

    # Bytes of a string.
    text: int
    # Items of a list, or members of an object that the schema does not name.
    items: int
    # Occurrences of a reference within itself, and nesting of values of any type.
    depth: int
    # Digits of a number before and after the point.
    digits: int = 12
    decimals: int = 4
    # Bytes of a member's name that is not in the schema.
    name: int = 16


def string_node(schema: Schema, bounds: Bounds) -> Node | None:
    """Bound a schema of strings; ``None`` if no string can match it."""
    minimum, maximum = int(schema.get("minLength", 0)), schema.get("maxLength")
    if maximum is not None and maximum < minimum:
        return None
    if "pattern" in schema or "format" in schema:
        return _delegated_string(schema, minimum, maximum, bounds)
    limit = max(bounds.text, minimum)
    if maximum is not None:
        limit = min(limit, CHARACTER_BYTES * int(maximum))
    return Text(limit, minimum, maximum)


def _delegated_string(schema: Schema, minimum: int, maximum: int | None, bounds: Bounds) -> Node:
    kept = {key: schema[key] for key in ("pattern", "format") if key in schema}
    name = kept.get("format")
    if name is None or "pattern" in kept:
        each = _ESCAPED_BYTES
        longest = max(bounds.text // each, minimum, 1)
    else:
        if name not in _FORMATS:
            raise refuse("format", f"{name!r} is not one of {', '.join(_FORMATS)}")
        each = 1
        room = max(bounds.text, minimum, 8) if name in _SHORTENED else _FORMATS[name]
        longest = min(_FORMATS[name], room)
    longest = longest if maximum is None else min(longest, int(maximum))
    limited = {"type": "string", **kept, "minLength": minimum, "maxLength": longest}
    return Delegated(to_json(limited), 2 + each * longest)


def integer_node(schema: Schema, bounds: Bounds) -> Node | None:
    """Bound a schema of integers; ``None`` if no integer can match it."""
    factor = _factor(schema)
    if factor is None and schema.keys().isdisjoint(_LIMITS):
        return Digits(bounds.digits, 0)
    # An integer is a multiple of 3/2 if and only if it is a multiple of 3.
    return _limited("integer", schema, Fraction(factor.numerator if factor else 1), bounds)


def number_node(schema: Schema, bounds: Bounds) -> Node | None:
    """Bound a schema of numbers; ``None`` if no number can match it."""
    factor = _factor(schema)
    if factor is None and schema.keys().isdisjoint(_LIMITS):
        return Digits(bounds.digits, bounds.decimals)
    if factor is None:
        low, high = _narrowed(*_limits(schema)[:2], 10**bounds.digits - 1)
        if low == high and schema.keys().isdisjoint(("exclusiveMinimum", "exclusiveMaximum")):
            return Literal((to_json(low),))
        if low >= high:
            return None
        # At least ten values between the limits, as far as floating-point numbers distinguish them.
        decimals = max(_DECIMALS, math.ceil(1 - math.log10(high - low)))
        factor = Fraction(1, 10 ** max(min(decimals, _MAX_DIGITS - _whole_digits(low, high)), 0))
    return _limited("number", schema, factor, bounds)


def _limited(kind: str, schema: Schema, factor: Fraction, bounds: Bounds) -> Node | None:
    """Bound the multiples of a factor by the first and the last one, because llguidance orders -0 below 0."""
    low, high, exclusive_low, exclusive_high = _limits(schema)
    least, most = _narrowed(low, high, 10**bounds.digits - 1)
    first, last = math.ceil(Fraction(least) / factor), math.floor(Fraction(most) / factor)
    first += exclusive_low and first * factor == Fraction(low)
    last -= exclusive_high and last * factor == Fraction(high)
    if first > last:
        return None
    number: Callable[[Fraction], Any] = int if factor.denominator == 1 else float
    least, most = number(first * factor), number(last * factor)
    limited = {"type": kind, "minimum": least, "maximum": most, "multipleOf": number(factor)}
    decimals = next(count for count in range(_MAX_DIGITS + 1) if 10**count % factor.denominator == 0)
    return Delegated(to_json(limited), 1 + _whole_digits(least, most) + 1 + decimals)


def _whole_digits(low: Any, high: Any) -> int:
    return max(len(str(abs(math.floor(limit)))) for limit in (low, high)) + 1


def _factor(schema: Schema) -> Fraction | None:
    """Return ``multipleOf``; a validator divides exactly only by fractions with a power of two below the line."""
    if "multipleOf" not in schema:
        return None
    factor = Fraction(schema["multipleOf"])
    if factor * 10 ** (factor.denominator.bit_length() - 1) > _MAX_FACTOR:
        raise refuse("multipleOf", f"the multiples of {schema['multipleOf']} cannot be recognised digit by digit")
    return factor


def _limits(schema: Schema) -> tuple[Any, Any, bool, bool]:
    """Return the tighter lower and upper limits, and whether each is exclusive."""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    exclusive_low = above is not None and (low is None or above >= low)
    exclusive_high = below is not None and (high is None or below <= high)
    return (above if exclusive_low else low), (below if exclusive_high else high), exclusive_low, exclusive_high


def _narrowed(low: Any, high: Any, largest: int) -> tuple[Any, Any]:
    """Add a missing limit, and exclude numbers with too many digits."""
    if low is None or low == -math.inf:
        low = -largest if high is None or high > -largest else high - largest
    if high is None or high == math.inf:
        high = largest if low < largest else low + largest
    narrowed = max(low, -largest), min(high, largest)
    return narrowed if narrowed[0] < narrowed[1] else (low, high)
