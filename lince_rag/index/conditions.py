"""Metadata filters in Chroma's notation, translated to conditions in SQL over the ledger."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lince_rag.errors import ConfigurationError

Scalar = str | int | float

_EQUALITIES: Final = frozenset({"$eq", "$ne"})
_ORDERS: Final = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
MEMBERSHIPS: Final = {"$in": "IN", "$nin": "NOT IN"}
_CONNECTIVES: Final = {"$and": " AND ", "$or": " OR "}

_HINT: Final = "Known operators: " + ", ".join([*sorted(_EQUALITIES), *_ORDERS, *MEMBERSHIPS, *_CONNECTIVES]) + "."

# The longest integer, in bits, that a float can represent.
_MAXIMUM_BITS: Final = 1023

# SQLite takes some 32,000 values for placeholders; longer lists of texts are one value.
_MANY_VALUES: Final = 1_000


def _sqlite_path(key: str) -> str:
    # Quoted as in JSON, because SQLite compares the path with the metadata as they are written.
    return "$." + json.dumps(key, ensure_ascii=False)


def _sqlite_value(value: Scalar) -> Scalar:
    """Return a value that SQLite takes: it reads integers over 64 bits in JSON as floats."""
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value


def _json_value(value: Scalar) -> str:
    return json.dumps(int(value) if isinstance(value, bool) else value)


@dataclass(frozen=True)
class FilterSyntax:
    """How a database writes conditions on the metadata of a chunk ``c``.

    Attributes:
        field: The value of a key, for which it takes ``key(name)``; a truth value counts as 0 or 1.
        operand: Takes ``value(wanted)``, to be compared with it.
        different: An operator that is true where only one side is NULL.
        text_order: Takes the field, an operator and a text; false where the value is no text. Texts are ordered by
            their code points.
        number_order: The same for an operand that is a number.
        texts: The texts of a JSON array, to compare with a column.
        members: The same, to compare with a field.
        key: Turns a key into what ``field`` takes.
        value: Turns a value into what ``operand`` takes.
    """

    field: str
    operand: str
    different: str
    text_order: str
    number_order: str
    texts: str
    members: str
    key: Callable[[str], str]
    value: Callable[[Scalar], Scalar]


SQLITE_SYNTAX: Final = FilterSyntax(
    field="json_extract(c.metadata, ?)",
    operand="?",
    different="IS NOT",
    # SQLite sorts every number before every text; in a filter, numbers and texts are not comparable.
    text_order="(typeof({field}) = 'text' AND {field} {operator} ?)",
    number_order="(typeof({field}) <> 'text' AND {field} {operator} ?)",
    texts="SELECT value FROM json_each(?)",
    members="SELECT value FROM json_each(?)",
    key=_sqlite_path,
    value=_sqlite_value,
)

# ``field_value`` is a function of our schema; it returns jsonb.
POSTGRESQL_SYNTAX: Final = FilterSyntax(
    field="field_value(c.fields, ?)",
    operand="CAST(? AS jsonb)",
    different="IS DISTINCT FROM",
    text_order="(jsonb_typeof({field}) = 'string' AND ({field} #>> '{{}}') COLLATE \"C\" {operator} ?)",
    number_order="(jsonb_typeof({field}) = 'number' AND {field} {operator} CAST(? AS jsonb))",
    texts="SELECT jsonb_array_elements_text(CAST(? AS jsonb))",
    members="SELECT jsonb_array_elements(CAST(? AS jsonb))",
    key=str,
    value=_json_value,
)


def filter_to_sql(filter_: Mapping[str, Any], syntax: FilterSyntax) -> tuple[str, list[Any]]:
    """Translate a metadata filter to an SQL condition with placeholders, and the values for them.

    The notation is Chroma's: ``{"language": "pt"}``, ``{"page": {"$gte": 3}}``, ``{"source": {"$in": [...]}}``,
    ``{"$and": [...]}``, ``{"$or": [...]}``; several keys in one mapping must all hold. As in Chroma, a chunk
    without the key passes only ``$ne`` and ``$nin``. The filter runs in SQL because a selective ``where`` takes
    Chroma over a second at 100,000 chunks.
    """
    conditions: list[str] = []
    values: list[Any] = []
    for key, wanted in filter_.items():
        if key in _CONNECTIVES:
            condition, operands = _connect(key, wanted, syntax)
        elif not isinstance(key, str) or key.startswith("$"):
            raise ConfigurationError(f"The filter has an unknown operator {key!r}.", hint=_HINT)
        else:
            condition, operands = _compare_field(key, wanted, syntax)
        conditions.append(condition)
        values += operands
    return "(" + (" AND ".join(conditions) or "1 = 1") + ")", values


def _connect(operator: str, parts: Any, syntax: FilterSyntax) -> tuple[str, list[Any]]:
    if not isinstance(parts, list) or not parts or not all(isinstance(part, Mapping) for part in parts):
        raise ConfigurationError(f"The filter's {operator!r} takes a list of filters, not {parts!r}.")
    translated = [filter_to_sql(part, syntax) for part in parts]
    condition = _CONNECTIVES[operator].join(condition for condition, _ in translated)
    return f"({condition})", [value for _, values in translated for value in values]


def _compare_field(key: str, wanted: Any, syntax: FilterSyntax) -> tuple[str, list[Any]]:
    if '"' in key:
        raise ConfigurationError(f"The filter's key {key!r} must not contain a quotation mark.")
    if not isinstance(wanted, Mapping):
        wanted = {"$eq": wanted}
    if not wanted:
        raise ConfigurationError(f"The filter on {key!r} is empty.", hint=_HINT)
    conditions: list[str] = []
    values: list[Any] = []
    for operator, value in wanted.items():
        if key == "source" and _are_texts(operator, value):
            # The column has an index, and the same value.
            operands = [value] if operator == "$eq" else list(value)
            condition, operands = _among("c.source", "IN", operands, "?", syntax.texts)
        else:
            condition, operands = _compare(key, operator, value, syntax)
        conditions.append(condition)
        values += operands
    return "(" + " AND ".join(conditions) + ")", values


def _are_texts(operator: str, value: Any) -> bool:
    if operator == "$in":
        return isinstance(value, list | tuple | set) and all(isinstance(each, str) for each in value)
    return operator == "$eq" and isinstance(value, str)


def _among(field: str, operator: str, operands: list[Any], operand: str, array: str) -> tuple[str, list[Any]]:
    """Return the condition that a field is, or is not, among some values; many texts are one JSON array."""
    if len(operands) > _MANY_VALUES and all(isinstance(each, str) for each in operands):
        return f"{field} {operator} ({array})", [json.dumps(operands)]
    return f"{field} {operator} ({','.join([operand] * len(operands)) or 'NULL'})", operands


def _compare(key: str, operator: str, value: Any, syntax: FilterSyntax) -> tuple[str, list[Any]]:
    field = syntax.field
    if operator in _EQUALITIES and is_scalar(value):
        condition = f"{field} {'=' if operator == '$eq' else syntax.different} {syntax.operand}"
        operands = [syntax.value(value)]
    elif operator in _ORDERS and isinstance(value, str):
        condition, operands = syntax.text_order.format(field=field, operator=_ORDERS[operator]), [value]
    elif operator in _ORDERS and is_scalar(value):
        condition = syntax.number_order.format(field=field, operator=_ORDERS[operator])
        operands = [syntax.value(value)]
    elif operator in MEMBERSHIPS and isinstance(value, list | tuple | set) and all(map(is_scalar, value)):
        condition, operands = _among(field, MEMBERSHIPS[operator], list(value), syntax.operand, syntax.members)
        if len(operands) == len(value):
            operands = list(map(syntax.value, operands))
        if operator == "$nin":
            condition = f"({field} IS NULL OR {condition})" if value else "1 = 1"
    else:
        raise ConfigurationError(
            f"The filter on {key!r} has {operator!r} with {value!r}, which cannot be compared.", hint=_HINT
        )
    # Each field takes the key; fields come before the operands.
    return condition, [syntax.key(key)] * condition.count(field) + operands


def is_scalar(value: Any) -> bool:
    """Return whether a value of metadata can be compared with this one."""
    if isinstance(value, int):
        return value.bit_length() <= _MAXIMUM_BITS
    return isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))
