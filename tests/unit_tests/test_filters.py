import json
import operator
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from lince_rag.documents.prepared import PreparedDocument
from lince_rag.errors import ConfigurationError
from lince_rag.index.conditions import SQLITE_SYNTAX, filter_to_sql
from lince_rag.index.filters import match_sources, near_sources, parse_filter
from lince_rag.index.sqlite import FolderLedger

KEYS = [
    "page",
    "título",
    "a.b",
    "with space",
    "$",
    "[0]",
    "back\\slash",
    "line\nbreak",
    "'; DROP TABLE chunks; --",
]
keys = st.sampled_from([key for key in KEYS if not key.startswith("$")])
# Few values, so that filters and metadata often meet; halves, because SQLite reads them back exactly.
scalars = st.one_of(
    st.integers(-3, 3),
    st.integers(-6, 6).map(lambda number: number / 2),
    st.booleans(),
    st.sampled_from(["", "es", "pt", "2", "Z", "ñ", "😀", "it's", 'quo"te', "%", "a\\b", "\n"]),
    st.sampled_from([2**63 - 1, 2**63, -(2**63), 2**70]),
)
comparisons = st.one_of(
    st.tuples(st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), scalars),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(scalars, max_size=4)),
)
leaves = st.dictionaries(
    keys, st.one_of(scalars, st.lists(comparisons, min_size=1, max_size=2).map(dict)), max_size=3
)
filters = st.recursive(
    leaves,
    lambda inner: st.dictionaries(
        st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3), max_size=2
    ),
    max_leaves=6,
)
metadatas = st.lists(st.dictionaries(keys, scalars, max_size=4), min_size=1, max_size=8)

ORDERS = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}


def as_stored(value):
    """SQLite's JSON reads an integer of more than 64 bits as a float."""
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value


def compares(metadata, key, name, wanted):
    present = key in metadata
    value = as_stored(metadata[key]) if present else None
    if name in ("$in", "$nin"):
        member = present and value in [as_stored(one) for one in wanted]
        return member if name == "$in" else not member
    wanted = as_stored(wanted)
    if name in ("$eq", "$ne"):
        equal = present and value == wanted
        return equal if name == "$eq" else not equal
    return present and isinstance(value, str) == isinstance(wanted, str) and ORDERS[name](value, wanted)


def passes(metadata, filter_):
    for key, wanted in filter_.items():
        if key == "$and":
            holds = all(passes(metadata, part) for part in wanted)
        elif key == "$or":
            holds = any(passes(metadata, part) for part in wanted)
        else:
            wanted = wanted if isinstance(wanted, dict) else {"$eq": wanted}
            holds = all(compares(metadata, key, name, value) for name, value in wanted.items())
        if not holds:
            return False
    return True


def select(connection, filter_):
    condition, values = filter_to_sql(filter_, SQLITE_SYNTAX)
    return [row[0] for row in connection.execute(f"SELECT id FROM chunks c WHERE {condition} ORDER BY id", values)]


def chunks_table(stored):
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE chunks (id INTEGER, source TEXT, metadata TEXT)")
    rows = [(number, json.dumps(metadata, ensure_ascii=False)) for number, metadata in enumerate(stored)]
    connection.executemany("INSERT INTO chunks VALUES (?, NULL, ?)", rows)
    return connection


@settings(max_examples=400)
@given(metadatas, filters)
def test_sqlite_selects_what_python_selects(stored, filter_):
    connection = chunks_table(stored)
    expected = [number for number, metadata in enumerate(stored) if passes(metadata, filter_)]
    assert select(connection, filter_) == expected


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ({"page": 1}, [0]),
        ({"page": {"$ne": 1}}, [1, 2, 3]),
        ({"page": {"$nin": [1]}}, [1, 2, 3]),
        ({"page": {"$in": []}}, []),
        ({"page": {"$nin": []}}, [0, 1, 2, 3]),
        ({"page": {"$gt": 0}}, [0, 1]),
        ({"page": {"$gt": "0"}}, [3]),
        ({"page": {"$gte": 1, "$lt": 2}}, [0]),
        ({"$or": [{"page": 1}, {"language": "pt"}]}, [0, 2]),
        ({"$and": [{"page": {"$gt": 0}}, {"$or": [{"page": 2}, {"page": 3}]}]}, [1]),
        ({}, [0, 1, 2, 3]),
    ],
)
def test_filters(filter_, expected):
    connection = chunks_table([{"page": 1}, {"page": 2}, {"language": "pt"}, {"page": "z"}])
    assert select(connection, filter_) == expected


@pytest.mark.parametrize(
    "filter_",
    [
        {"$not": {"page": 1}},
        {"$and": []},
        {"$or": {"page": 1}},
        {"$and": [1]},
        {"page": {"$like": "x"}},
        {"page": {}},
        {"page": None},
        {"page": [1]},
        {"page": {"$gt": None}},
        {"page": {"$in": "es"}},
        {"page": {"$in": [[1]]}},
        {"page": {"$in": [None]}},
        {"page": float("nan")},
        {"page": float("inf")},
        {"page": 10**400},
        {'pa"ge': 1},
        {3: 1},
        {"page": {3: 1}},
        {"page": {"$eq": {"$eq": 1}}},
    ],
)
def test_an_invalid_filter_is_a_configuration_error(filter_):
    with pytest.raises(ConfigurationError):
        filter_to_sql(filter_, SQLITE_SYNTAX)


def test_a_filter_over_the_real_ledger(tmp_path):
    ledger = FolderLedger(tmp_path / "ledger.sqlite")
    for source in ("a", "b"):
        metadata = {"source": source, "language": "es", "start": 0, "end": 1, "página": 3, "content_hash": "hash"}
        document = Document(page_content="x", metadata=metadata)
        chunks = [Document(id=f"chunk-{source}", page_content="x", metadata=metadata)]
        with ledger.transaction():
            ledger.commit(PreparedDocument(document, chunks, [], []))
    assert ledger.select_ids(*filter_to_sql({"página": 3, "source": {"$in": ["b", "c"]}}, SQLITE_SYNTAX)) == [
        "chunk-b"
    ]
    assert (
        ledger.select_ids(*filter_to_sql({"source": {"$in": [str(n) for n in range(30_000)]}}, SQLITE_SYNTAX))
        == []
    )
    ledger.close()


@pytest.mark.parametrize(
    ("written", "filter_"),
    [
        ("language=pt", {"language": {"$in": ["pt"]}}),
        (" título == a b ", {"título": {"$in": ["a b"]}}),
        ("page=3", {"page": {"$in": [3, "3"]}}),
        ("page!=3", {"page": {"$nin": [3, "3"]}}),
        ("page>=3", {"page": {"$gte": 3}}),
        ("a.b<z=y", {"a.b": {"$lt": "z=y"}}),
        ('{"$or": [{"page": 3}, {"page": 4}]}', {"$or": [{"page": 3}, {"page": 4}]}),
    ],
)
def test_filters_can_be_written(written, filter_):
    assert parse_filter(written) == filter_


@given(keys.filter(lambda key: not set(key) & set("\n;")), scalars)
def test_what_is_written_as_equal_finds_what_is_equal(key, value):
    if not isinstance(value, str) or value.strip() == value:
        written = f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        try:
            found = parse_filter(written)
        except ConfigurationError:
            # A key may begin with a sign of JSON.
            assert key[0] in '"[{'
        else:
            assert passes({key: value}, found)


@pytest.mark.parametrize(
    "written", ["page", "=3", "", '{"page": ', '{"page": {"$like": 3}}', '{"page": []}', 'a"b=3']
)
def test_what_is_no_filter_is_an_error_that_says_so(written):
    with pytest.raises(ConfigurationError, match=r"key=value|operators|quotation"):
        parse_filter(written)


def test_a_long_list_of_texts_is_a_filter():
    ledger = FolderLedger(":memory:")
    condition, values = filter_to_sql(
        {"source": {"$in": [f"d{number}" for number in range(50_000)]}}, SQLITE_SYNTAX
    )
    assert len(values) < 5
    assert ledger.select_ids(condition, values) == []


def test_names_that_are_nearly_right_are_found():
    known = ["/a/contrato.pdf", "/b/acta de mayo.md", "/c/2024/contrato-piso.pdf", "notas"]
    assert near_sources("contrat.pdf", known)[0] == "contrato.pdf"
    assert near_sources("Acta de Mayo", known) == ["acta de mayo.md"]
    assert "contrato-piso.pdf" in near_sources("piso", known)
    assert near_sources("factura.docx", known) == []
    assert match_sources("2024/*.pdf", known) == ["/c/2024/contrato-piso.pdf"]
    assert match_sources("*.pdf", known) == ["/a/contrato.pdf", "/c/2024/contrato-piso.pdf"]
    assert match_sources("contrato.pdf", known) == ["/a/contrato.pdf"]
    assert match_sources("[ab", ["[ab"]) == ["[ab"]
