"""Metadata filters in Chroma's notation, translated to SQL over the ledger, and searches among what passes."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import PurePath
from typing import Any, Final, TypeVar

from lince_rag.errors import ConfigurationError
from lince_rag.index.ledger import Ledger

# Up to this number of chunks that pass, their vectors are compared one by one: among many nearly equal chunks,
# Chroma's graph search misses some of a small selection (a fifth to a quarter, measured with form letters).
EXACT_SEARCH: Final = 500

# If more pass, this many times the results are fetched without the filter; again as many times if too few of them
# pass, up to a limit. To search among thousands of ids takes longer (tantivy: 150 ms for 5,000).
OVERFETCH: Final = 4

_EQUALITIES: Final = {"$eq": "=", "$ne": "IS NOT"}
_ORDERS: Final = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_MEMBERSHIPS: Final = {"$in": "IN", "$nin": "NOT IN"}
_CONNECTIVES: Final = {"$and": " AND ", "$or": " OR "}

_HINT: Final = "Known operators: " + ", ".join([*_EQUALITIES, *_ORDERS, *_MEMBERSHIPS, *_CONNECTIVES]) + "."

_FIELD: Final = "json_extract(c.metadata, ?)"

# The longest integer, in bits, that a float can represent.
_MAXIMUM_BITS: Final = 1023


Found = TypeVar("Found")


class Selection:
    """The committed chunks that pass a filter."""

    def __init__(self, ledger: Ledger, condition: str, values: Sequence[Any]) -> None:
        self._ledger = ledger
        self._where = condition, values
        # What a store remembers about ``few``.
        self.memory: Any = None

    @cached_property
    def few(self) -> list[str] | None:
        """The ids, if they are at most ``EXACT_SEARCH``."""
        ids = self._ledger.select_ids(*self._where, limit=EXACT_SEARCH + 1)
        return ids if len(ids) <= EXACT_SEARCH else None

    @cached_property
    def ids(self) -> list[str]:
        """All ids."""
        return self._ledger.select_ids(*self._where)

    def search(
        self,
        find: Callable[[int, list[str] | None], list[Found]],
        id_of: Callable[[Found], str],
        limit: int,
        most: int,
    ) -> list[Found]:
        """Return the first ``limit`` results of a search that pass the filter.

        ``find`` takes a limit, and the ids to search among or ``None`` for all; at most ``most`` are fetched to be
        filtered.
        """
        if self.few is not None:
            return find(limit, self.few)
        fetched = limit * OVERFETCH
        while fetched <= most:
            found = find(fetched, None)
            passing = self._ledger.select_among(map(id_of, found), *self._where)
            kept = [each for each in found if id_of(each) in passing]
            if len(kept) >= limit or len(found) < fetched:
                return kept[:limit]
            fetched *= OVERFETCH
        return find(limit, self.ids)


def filter_to_sql(filter_: Mapping[str, Any]) -> tuple[str, list[Any]]:
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
            condition, operands = _connect(key, wanted)
        elif not isinstance(key, str) or key.startswith("$"):
            raise ConfigurationError(f"The filter has an unknown operator {key!r}.", hint=_HINT)
        else:
            condition, operands = _compare_field(key, wanted)
        conditions.append(condition)
        values += operands
    return "(" + (" AND ".join(conditions) or "1") + ")", values


def _connect(operator: str, parts: Any) -> tuple[str, list[Any]]:
    if not isinstance(parts, list) or not parts or not all(isinstance(part, Mapping) for part in parts):
        raise ConfigurationError(f"The filter's {operator!r} takes a list of filters, not {parts!r}.")
    translated = [filter_to_sql(part) for part in parts]
    condition = _CONNECTIVES[operator].join(condition for condition, _ in translated)
    return f"({condition})", [value for _, values in translated for value in values]


def _compare_field(key: str, wanted: Any) -> tuple[str, list[Any]]:
    if '"' in key:
        raise ConfigurationError(f"The filter's key {key!r} must not contain a quotation mark.")
    if not isinstance(wanted, Mapping):
        wanted = {"$eq": wanted}
    if not wanted:
        raise ConfigurationError(f"The filter on {key!r} is empty.", hint=_HINT)
    # Quoted as in JSON, because SQLite compares the path with the metadata as they are written.
    path = "$." + json.dumps(key, ensure_ascii=False)
    conditions: list[str] = []
    values: list[Any] = []
    for operator, value in wanted.items():
        condition, operands = _compare(key, operator, value)
        if key == "source" and operator in ("$eq", "$in") and all(isinstance(each, str) for each in operands):
            # The column has an index, and the same value.
            condition = condition.replace(_FIELD, "c.source")
        conditions.append(condition)
        # Each field placeholder takes the path; the fields come before the operands.
        values += [path] * condition.count(_FIELD) + operands
    return "(" + " AND ".join(conditions) + ")", values


def _compare(key: str, operator: str, value: Any) -> tuple[str, list[Any]]:
    if operator in _EQUALITIES and _is_scalar(value):
        return f"{_FIELD} {_EQUALITIES[operator]} ?", [_sql_value(value)]
    if operator in _ORDERS and _is_scalar(value):
        # SQLite sorts every number before every text; in a filter, numbers and texts are not comparable.
        same_kind = f"typeof({_FIELD}) {'=' if isinstance(value, str) else '<>'} 'text'"
        return f"({same_kind} AND {_FIELD} {_ORDERS[operator]} ?)", [_sql_value(value)]
    if operator in _MEMBERSHIPS and isinstance(value, list | tuple | set) and all(map(_is_scalar, value)):
        condition = f"{_FIELD} {_MEMBERSHIPS[operator]} ({','.join('?' * len(value))})"
        if operator == "$nin":
            condition = f"({_FIELD} IS NULL OR {condition})"
        return condition, [_sql_value(member) for member in value]
    raise ConfigurationError(
        f"The filter on {key!r} has {operator!r} with {value!r}, which cannot be compared.", hint=_HINT
    )


def _is_scalar(value: Any) -> bool:
    if isinstance(value, int):
        return value.bit_length() <= _MAXIMUM_BITS
    return isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


def _sql_value(value: str | int | float) -> str | int | float:
    """Return a value that SQLite takes: it reads integers over 64 bits in JSON as floats."""
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value


def match_source(wanted: str, known: Iterable[str]) -> str | None:
    """Return the one known name that equals or, as a path, ends like the wanted one; ``None`` if there is none."""
    names, parts = list(known), PurePath(wanted).parts
    if wanted in names:
        return wanted
    matching = sorted(name for name in names if parts and PurePath(name).parts[-len(parts) :] == parts)
    if len(matching) > 1:
        raise ConfigurationError(
            f"The source {wanted!r} may be any of {', '.join(matching)}.", hint="Give more of its path."
        )
    return matching[0] if matching else None
