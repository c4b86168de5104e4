"""Grammars in GBNF, read as regular expressions where they are small enough."""

import re

from hypothesis import given
from hypothesis import strategies as st

from lince_rag.engines.json_schema.constraints import schema_grammar
from lince_rag.engines.json_schema.gbnf import GbnfGrammar


def rule_of(schema: str, limit: int = 100) -> str:
    """The rule of a schema of a single value."""
    lines = schema_grammar(schema, limit, notation=GbnfGrammar).splitlines()
    assert lines[0].startswith("root ::= ")
    return lines[-1].partition(" ::= ")[2]


def as_pattern(rule: str) -> str:
    """A rule without names and strings of several characters, as a regular expression."""
    return re.sub(r'"([^"]*)"', r"\1", rule).replace(" ", "")


@given(st.integers(-3000, 3000), st.integers(0, 3000))
def test_integers_are_those_of_the_range(least: int, width: int) -> None:
    most = least + width
    rule = rule_of(f'{{"type": "integer", "minimum": {least}, "maximum": {most}}}')
    numbers = {
        least - 1,
        least,
        least + 1,
        (least + most) // 2,
        most - 1,
        most,
        most + 1,
        0,
        1,
        -1,
        9,
        10,
        -10,
        999,
    }
    for number in numbers:
        assert bool(re.fullmatch(as_pattern(rule), str(number))) == (least <= number <= most), (rule, number)


def test_no_integer_begins_with_a_zero() -> None:
    rule = rule_of('{"type": "integer", "minimum": -20, "maximum": 120}')
    assert not any(re.fullmatch(as_pattern(rule), text) for text in ("00", "07", "-0", "-00", "-"))


def test_numbers_from_zero_up_have_no_sign() -> None:
    pattern = as_pattern(rule_of('{"type": "number", "minimum": 0}'))
    assert re.fullmatch(pattern, "12.5")
    assert not re.fullmatch(pattern, "-1")


def test_a_string_fits_even_if_its_characters_have_four_bytes() -> None:
    pattern = re.search(r"\{(\d+),(\d+)\}", rule_of('{"type": "string"}', limit=83))
    assert pattern
    assert 4 * int(pattern[2]) + 2 <= 83


def test_text_is_allowed_if_it_begins_with_no_object() -> None:
    grammar = schema_grammar(
        '{"type": "object", "properties": {}, "additionalProperties": false}',
        60,
        text_allowed=True,
        notation=GbnfGrammar,
    )
    assert grammar.splitlines()[0].endswith('| ""')
    assert re.search(r"\[\^[^\]]*\{", grammar)
