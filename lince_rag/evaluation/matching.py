"""Comparing an answer with the answers that count, as SQuAD does, for three languages."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from lince_rag.text.language import Language

# Words that do not count, as in the evaluation of SQuAD.
ARTICLES: Final[Mapping[Language, frozenset[str]]] = {
    "es": frozenset({"el", "la", "los", "las", "lo", "un", "una", "unos", "unas"}),
    "pt": frozenset({"o", "a", "os", "as", "um", "uma", "uns", "umas"}),
    "en": frozenset({"a", "an", "the"}),
}


def normalise_answer(text: str, language: Language) -> str:
    """Put a text into lower case, without punctuation, symbols and articles, with single spaces.

    Args:
        text: An answer.
        language: The language whose articles are left out.

    Returns:
        The words that count; accents stay.
    """
    kept = "".join(character for character in text.lower() if unicodedata.category(character)[0] not in "PS")
    composed = unicodedata.normalize("NFC", kept)
    return " ".join(word for word in composed.split() if word not in ARTICLES[language])


def exact_match(prediction: str, answers: Iterable[str], language: Language) -> float:
    """Return 1 if a prediction is one of the answers that count, normalised, else 0."""
    said = normalise_answer(prediction, language)
    return float(any(said == normalise_answer(answer, language) for answer in answers))


def token_f1(prediction: str, answers: Iterable[str], language: Language) -> float:
    """Return the harmonic mean of word precision and word recall (0 to 1), against the answer that fits best."""
    said = normalise_answer(prediction, language).split()
    return max((_f1(said, normalise_answer(answer, language).split()) for answer in answers), default=0.0)


def contains_answer(text: str, answers: Iterable[str], language: Language) -> float:
    """Return 1 if one of the answers that count stands in a text, whole words and normalised, else 0."""
    said = f" {normalise_answer(text, language)} "
    wanted = [normalise_answer(answer, language) for answer in answers]
    return float(any(f" {answer} " in said for answer in wanted if answer))


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))
