import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lince_rag.documents.kinds import chunk_kind, contents_spans, is_heading, merge_spans, remaining_spans

numbers = st.integers(0, 60)
spans = st.lists(st.tuples(numbers, numbers).map(lambda pair: (min(pair), max(pair))), max_size=8)


def contents(text: str) -> list[str]:
    return [text[start:end] for start, end in contents_spans(text)]


@pytest.mark.parametrize("dots", [" . . . . . . ", "......... ", "………"])
def test_a_table_of_contents_is_found(dots: str) -> None:
    lines = [f"{number}. Capítulo{dots}{page}" for number, page in enumerate([1, 3, 3, 8, 21, 40], start=1)]
    # A long title has its page on the second line.
    table = "\n".join([*lines[:3], "Un capítulo de título", *lines[3:]])
    assert contents(f"Índice\n\n{table}\n\nEl texto comienza aquí... y sigue.") == [table]
    # The lines of a PDF may be joined to one paragraph.
    assert contents(" ".join(lines)) == [" ".join(lines)]


def test_prices_forms_and_short_lists_are_not_contents() -> None:
    prices = "\n".join(f"Plato ........ {price}" for price in [12, 9, 15, 3, 11, 4])
    decimals = "\n".join(f"Plato ........ {price},50" for price in range(9))
    form = "Nombre: ............\nApellidos: ............\nCalle: ............\n" * 3
    few = "Mesa ...... 3\nSilla ...... 5"
    assert contents("\n\n".join([prices, decimals, form, few])) == []


def test_a_list_of_links_to_local_files_is_contents() -> None:
    local = "- [Uno](uno.md)\n- [Dos](sub/dos.md#parte).\n- [Tres](#tres)"
    assert contents(f"# Manual\n\n{local}\n\nTexto con un [enlace](uno.md).") == [local]
    assert contents(local.replace("](", "](https://example.org/")) == []
    assert contents(local.replace("\n", " y más\n")) == []
    assert contents("- [Uno](uno.md)\n- [Dos](dos.md)") == []


@pytest.mark.parametrize(
    "text", ["." * 200_000, ". " * 100_000, "- [" * 60_000, "a....1\n" * 60_000, "…·" * 90_000, " " * 200_000]
)
def test_time_grows_with_the_size_of_a_text_only(text: str) -> None:
    start = time.perf_counter()
    contents_spans(text)
    assert time.perf_counter() - start < 10


@given(spans, numbers, numbers)
def test_what_remains_and_what_is_removed_are_the_whole(
    removed: list[tuple[int, int]], one: int, two: int
) -> None:
    start, end = min(one, two), max(one, two)
    merged = merge_spans(removed)
    assert all(before[1] < after[0] for before, after in pairwise(merged))
    kept = [place for low, high in remaining_spans(start, end, merged) for place in range(low, high)]
    gone = {place for low, high in removed for place in range(low, high)}
    assert kept == [place for place in range(start, end) if place not in gone]


@pytest.mark.parametrize(
    ("text", "heading", "found"),
    [
        ("## **Plazos**", "Contrato › Plazos", True),
        ("Contrato\n\nPlazos", "Contrato › Plazos", True),
        ("Plazos\n\n30 días", "Plazos", False),
        ("---", "Plazos", False),
        ("Plazos", "", False),
    ],
)
def test_a_heading_alone(text: str, heading: str, found: bool) -> None:
    assert is_heading(text, heading) is found


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Plazos", "heading"),
        ("Una frase. Y otra más larga que la primera.", "prose"),
        ("Hay que:\n- pulsar el botón\n- esperar la luz\n  verde y fija", "list"),
        ("Pan | 1,20 €\nLeche | 0,90 €\n", "table"),
        ("| a | b |\n| --- | --- |\n| 1 | 2 |", "table"),
        ("1. Pulse el botón.\n2. Espere.", "list"),
    ],
)
def test_the_kind_of_a_chunk(text: str, kind: str) -> None:
    assert chunk_kind(text, "Plazos", 0) == kind
    assert chunk_kind(text, "", len(text)) == "code"
