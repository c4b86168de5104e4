"""Filters: as people write them, names of documents, and searches among the chunks that pass."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import PurePath
from typing import Any, Final, TypeVar

from lince_rag.errors import ConfigurationError
from lince_rag.index.conditions import MEMBERSHIPS, SQLITE_SYNTAX, filter_to_sql, is_scalar
from lince_rag.index.ledger import Ledger

# Up to this number of chunks that pass, their vectors are compared one by one: among many nearly equal chunks,
# Chroma's graph search misses some of a small selection (a fifth to a quarter, measured with form letters).
EXACT_SEARCH: Final = 500

# If more pass, this many times the results are fetched without the filter; again as many times if too few of them
# pass, up to a limit. To search among thousands of ids takes longer (tantivy: 150 ms for 5,000).
OVERFETCH: Final = 4

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
        filter_to_sql(found, SQLITE_SYNTAX)
        return dict(found)
    match = _COMPARISON.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"The filter {text!r} is not of the form key=value.", hint=_FORMS)
    key, operator, written = match.groups()
    value = _read_value(written)
    wanted: Any = value
    if _WRITTEN[operator] in MEMBERSHIPS:
        wanted = [value] if isinstance(value, str) else [value, written]
    chosen = {key: {_WRITTEN[operator]: wanted}}
    filter_to_sql(chosen, SQLITE_SYNTAX)
    return chosen


def _read_value(text: str) -> str | int | float:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if is_scalar(value) else text


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
