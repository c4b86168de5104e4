import re
import tomllib
from pathlib import Path
from string import Formatter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lince_rag.text.language import (
    LANGUAGES,
    MAXIMUM_CHARACTERS,
    Language,
    detect_language,
    identify_language,
    load_table,
    wording,
)

MESSAGES = load_table("wording")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("¿Cuándo vence el contrato de alquiler?", "es"),
        ("Quando vence o contrato de aluguel?", "pt"),
        ("When does the rental agreement end?", "en"),
        ("cuando vence el contrato de alquiler", "es"),
        ("O gato não dormiu na cama ontem à noite.", "pt"),
        ("¿Quién pagó las multas del año pasado?", "es"),
    ],
)
@pytest.mark.parametrize("default", LANGUAGES)
def test_whole_questions_are_identified_whatever_the_default(text, language, default):
    assert detect_language(text, default) == language


@pytest.mark.parametrize("text", ["", " \n", "123", "¿?", "😀", "\ud800", "12/03/2024 — 3.500,50 €"])
@pytest.mark.parametrize("default", LANGUAGES)
def test_text_without_letters_is_the_default(text, default):
    assert detect_language(text, default) == default


@given(st.text(st.characters(codec=None), max_size=200))
def test_any_text_has_one_of_the_languages(text):
    assert detect_language(text) in LANGUAGES


def test_only_the_beginning_of_a_long_text_is_read():
    spanish = "La casa de mi abuela está en la calle mayor y tiene dos balcones. " * 40
    assert len(spanish) > MAXIMUM_CHARACTERS
    assert detect_language(spanish + "The quick brown fox jumps over the lazy dog. " * 1000) == "es"


@pytest.mark.parametrize("key", MESSAGES)
def test_every_message_is_in_every_language_with_the_same_placeholders(key):
    assert set(MESSAGES[key]) == set(LANGUAGES)
    placeholders = [
        {name for _, name, _, _ in Formatter().parse(MESSAGES[key][language]) if name} for language in LANGUAGES
    ]
    assert placeholders[0] == placeholders[1] == placeholders[2]
    values = dict.fromkeys(placeholders[0], 7)
    texts = [wording(key, language, **values) for language in LANGUAGES]
    assert all(text.strip() and "{" not in text for text in texts)


@pytest.mark.parametrize("table", ["wording", "page"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_count_is_followed_by_a_word_that_is_always_plural(table: str, language: Language) -> None:
    counts = r"\{(?:count|documents|chunks|questions|added|changed|removed|fixed|broken)(?::,)?\} (?!deles)\w+s\b"
    assert not [row[language] for row in load_table(table).values() if re.search(counts, row[language])]


def test_one_of_something_is_not_several() -> None:
    said = [wording("removed", "es", source="a.txt", chunks=count) for count in (0, 1, 2)]
    assert said == [f"Retirado: a.txt ({words})" for words in ("0 fragmentos", "1 fragmento", "2 fragmentos")]


def test_numbers_have_the_separators_of_the_language() -> None:
    said = {each: wording("embedded", each, count=1234, seconds=0.44) for each in LANGUAGES}
    assert said["es"] == "Vectores de 1.234 fragmentos en 0,4 s"
    assert said["pt"] == "Vetores de 1.234 trechos em 0,4 s"
    assert said["en"] == "Vectors of 1234 passages in 0.4 s"
    assert wording("interrupted", "es") == load_table("wording")["interrupted"]["es"]


def test_an_unknown_message_is_a_programming_error():
    with pytest.raises(KeyError):
        wording("no-such-message", "es")


@pytest.mark.parametrize("language", LANGUAGES)
def test_answer_instructions(language):
    text = wording("answer_instructions", language, abstention="No sé {nada}.")
    assert text.endswith("No sé {nada}.")
    assert "{abstention}" not in text
    assert text == text.strip()


def test_wording_in_an_unknown_language_is_a_programming_error():
    with pytest.raises(KeyError):
        wording("answer_instructions", "fr", abstention="Non.")


@pytest.mark.parametrize("default", LANGUAGES)
def test_short_questions(default: Language) -> None:
    """Three to seven words, with and without accents, whatever the language before."""
    path = Path(__file__).parent / "short_questions.toml"
    questions = tomllib.loads(path.read_text(encoding="utf-8"))["question"]
    wrong = [each["text"] for each in questions if detect_language(each["text"], default) != each["language"]]
    assert len(questions) == 200
    assert len(wrong) <= 0.03 * len(questions), wrong


def test_a_letter_many_times() -> None:
    language, probability = identify_language("ñ" * 2_000)
    assert language in LANGUAGES
    assert 0 < probability <= 1
