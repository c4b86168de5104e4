"""Metadata filters in Chroma's notation, translated to SQL over the ledger, and searches among what passes."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
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

# SQLite takes some 32,000 values for placeholders; longer lists of texts are one value.
_MANY_VALUES: Final = 1_000

# A comparison as people write it: page>=3.
_COMPARISON: Final = re.compile(
    r"\s*([^\s=<>!{\[\"](?:[^=<>!]*[^\s=<>!])?)\s*(!=|>=|<=|==?|>|<)\s*(.*?)\s*", re.DOTALL
)
_WRITTEN: Final = {"=": "$in", "==": "$in", "!=": "$nin", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
_FORMS: Final = 'Write key=value, or !=, <, <=, > or >= instead of =, or JSON such as {"page": {"$gte": 3}}.'

# What makes a pattern of a name.
_WILDCARDS: Final = re.compile(r"[*?\[]")

# Near names that an error lists.
_NEAR_NAMES: Final = 3


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
        operands = [_sql_value(member) for member in value]
        places = ",".join("?" * len(operands))
        if len(operands) > _MANY_VALUES and all(isinstance(each, str) for each in operands):
            places, operands = "SELECT value FROM json_each(?)", [json.dumps(operands)]
        condition = f"{_FIELD} {_MEMBERSHIPS[operator]} ({places})"
        if operator == "$nin":
            condition = f"({_FIELD} IS NULL OR {condition})"
        return condition, operands
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


def parse_filter(text: str) -> dict[str, Any]:
    """Read a filter as people write it: ``language=pt``, ``page>=3``, or the JSON that ``filter_to_sql`` explains.

    A value that looks like a number or is ``true`` or ``false`` also stands for the text.

    Raises:
        ConfigurationError: It is neither, or its JSON is no filter.
    """
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ConfigurationError(f"The filter {text!r} is not valid JSON: {error}.", hint=_FORMS) from error
        filter_to_sql(found)
        return dict(found)
    match = _COMPARISON.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"The filter {text!r} is not of the form key=value.", hint=_FORMS)
    key, operator, written = match.groups()
    value = _read_value(written)
    wanted: Any = value
    if _WRITTEN[operator] in _MEMBERSHIPS:
        wanted = [value] if isinstance(value, str) else [value, written]
    chosen = {key: {_WRITTEN[operator]: wanted}}
    filter_to_sql(chosen)
    return chosen


def _read_value(text: str) -> str | int | float:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if _is_scalar(value) else text


def combine_filters(filters: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return the filter that holds where all of some filters hold; ``None`` if none says anything."""
    given = [each for each in filters if each]
    return {"$and": given} if len(given) > 1 else dict(given[0]) if given else None


def match_sources(wanted: str, known: Sequence[str]) -> list[str]:
    """Return the known names that a name, the end of a path, or a pattern such as ``2024/*.pdf`` stands for."""
    if wanted not in known and _WILDCARDS.search(wanted):
        return sorted(name for name in known if PurePath(name).match(wanted))
    found = match_source(wanted, known)
    return [] if found is None else [found]


def near_sources(wanted: str, known: Iterable[str]) -> list[str]:
    """Return the last parts of known names that are spelled nearly like a wanted one, the nearest first."""
    by_end: dict[str, str] = {}
    for name in map(PurePath, known):
        by_end.setdefault(name.name.casefold(), name.name)
        by_end.setdefault(name.stem.casefold(), name.name)
    asked = PurePath(wanted).name.casefold()
    near = get_close_matches(asked, by_end, n=2 * _NEAR_NAMES)
    holding = [end for end in by_end if len(asked) > 2 and asked in end]
    return list(dict.fromkeys(by_end[end] for end in [*near, *holding]))[:_NEAR_NAMES]


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
