"""Random JSON schemas with every keyword that is enforced and, now and then, one that is not."""

from typing import Any, Final

from hypothesis import strategies as st

Schema = dict[str, Any] | bool

NAMES: Final = ("a", "título", "ação", "niño 🦙", 'a "b"')
PATTERNS: Final = ("^[a-z]+$", "^[A-ZÑ]{2}-[0-9]{3}$", "ñ", "^(sí|não)$", "[0-9]{2,4}", r"^\d+(\.\d\d)?$")
FORMATS: Final = ("date", "time", "date-time", "duration", "uuid", "ipv4", "ipv6", "email", "hostname", "uri")

# Keywords that are not enforced; each is refused by name.
REFUSED: Final[dict[str, Any]] = {
    "not": {"type": "string"},
    "if": {"type": "string"},
    "then": {"type": "string"},
    "else": {"type": "string"},
    "contains": {"type": "string"},
    "minContains": 1,
    "maxContains": 2,
    "dependentSchemas": {"a": {"required": ["b"]}},
    "dependentRequired": {"a": ["b"]},
    "unevaluatedProperties": False,
    "unevaluatedItems": False,
    "$dynamicRef": "#a",
    "$anchor": "a",
}

# JSON values, some with characters of several bytes.
VALUES: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-999, 999)
    | st.sampled_from(["", "ñ", "são", "🦙", 'a "b"\n', 0.5, -1e-7]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=2),
    max_leaves=3,
)


def _some(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=options)


def _with(kind: str, options: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Schema]:
    return options.map(lambda found: {"type": kind, **found})


_STRINGS: Final = st.one_of(
    _with("string", _some(minLength=st.integers(0, 6), maxLength=st.integers(4, 30))),
    _with(
        "string",
        st.fixed_dictionaries({"pattern": st.sampled_from(PATTERNS)}, optional={"maxLength": st.just(12)}),
    ),
    _with("string", st.fixed_dictionaries({"format": st.sampled_from(FORMATS)})),
)
_LIMITS: Final = st.integers(-2000, 2000) | st.floats(-50, 50).map(lambda value: round(value, 3))
_RANGES: Final = st.one_of(
    _some(minimum=_LIMITS, multipleOf=st.sampled_from([1, 2, 7, 0.5, 2.0])),
    _some(exclusiveMaximum=_LIMITS, minimum=st.integers(-9000, -100)),
    _some(exclusiveMinimum=_LIMITS, maximum=st.integers(100, 9000)),
    _some(minimum=_LIMITS, maximum=_LIMITS),
)
_NUMBERS: Final = st.builds(
    lambda kind, limits: {"type": kind, **limits}, st.sampled_from(["integer", "number"]), _RANGES
)
_LISTED: Final = st.one_of(
    st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
)
_LEAVES: Final = st.one_of(
    _STRINGS,
    _NUMBERS,
    _LISTED,
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}, {}, True, False]),
    st.sampled_from([{"$ref": "#/$defs/first"}, {"$ref": "#/$defs/second", "description": "?"}]),
)


def _arrays(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return _with(
        "array",
        _some(
            items=inner,
            prefixItems=st.lists(inner, min_size=1, max_size=2),
            minItems=st.integers(0, 3),
            maxItems=st.integers(1, 5),
        ),
    )


def _objects(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    named = st.fixed_dictionaries(
        {"properties": st.dictionaries(st.sampled_from(NAMES), inner, min_size=1, max_size=3)},
        optional={
            "required": st.lists(st.sampled_from(NAMES), unique=True, max_size=2),
            "additionalProperties": st.booleans() | inner,
            "minProperties": st.integers(0, 2),
            "maxProperties": st.integers(2, 4),
        },
    )
    unnamed = st.one_of(
        st.fixed_dictionaries({"additionalProperties": inner}, optional={"minProperties": st.just(1)}),
        st.fixed_dictionaries({"patternProperties": st.dictionaries(st.just("^[a-z]{1,3}$"), inner, min_size=1)}),
        _some(propertyNames=st.sampled_from([{"maxLength": 3}, {"enum": ["a", "ñ"]}]), maxProperties=st.just(2)),
    )
    return _with("object", named | unnamed)


def _combinations(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    keywords = st.sampled_from(["anyOf", "anyOf", "oneOf", "allOf"])
    combined = st.builds(lambda key, parts: {key: parts}, keywords, st.lists(inner, min_size=1, max_size=3))
    told_apart = st.tuples(inner, inner).map(
        lambda values: {
            "oneOf": [
                {"type": "object", "properties": {"kind": {"const": kind}, "a": value}, "required": ["kind"]}
                for kind, value in enumerate(values)
            ]
        }
    )
    halves = st.tuples(inner, inner).map(
        lambda values: {
            "allOf": [
                {"type": "object", "properties": {name: value}} for name, value in zip("ab", values, strict=True)
            ]
        }
    )
    return st.one_of(combined, told_apart, halves)


_PARTS: Final = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(_arrays(inner), _objects(inner), _objects(inner), _combinations(inner)),
    max_leaves=5,
)


@st.composite
def schemas(draw: st.DrawFn, *, refused: bool = True) -> Schema:
    """Draw a schema whose definitions may refer to themselves; with ``refused``, 1 in 20 has a refused keyword."""
    schema = draw(st.one_of(_PARTS, _arrays(_PARTS), _objects(_PARTS), _combinations(_PARTS)))
    if isinstance(schema, bool):
        return schema
    if refused and draw(st.integers(0, 19)) == 19:
        keyword = draw(st.sampled_from(sorted(REFUSED)))
        schema = {**schema, keyword: REFUSED[keyword]}
    return {**schema, "$defs": {"first": draw(_PARTS), "second": draw(_objects(_PARTS))}}
