"""What a question asks for, and which of its words are about something: the data of ``prompts/questions.toml``."""

import re
from dataclasses import dataclass
from functools import cache

from lince_rag.text.language import LANGUAGES, Language
from lince_rag.text.wording import load_table
from lince_rag.text.words import Word


@dataclass(frozen=True)
class QuestionKind:
    """A kind of answer that a question can ask for: a date, a number, a person, a place.

    Attributes:
        name: The kind.
        cues: By language, what the words of such a question look like.
        evidence: What a sentence that answers it has in it.
        spans: What the answer itself looks like, the most exact expression first.
        weight: What the evidence is worth, where all the question's stems are worth 1.
    """

    name: str
    cues: dict[Language, re.Pattern[str]]
    evidence: re.Pattern[str]
    spans: tuple[re.Pattern[str], ...]
    weight: float

    def evidenced(self, sentence: str, question: str) -> bool:
        """Tell whether a sentence has evidence of this kind that the question itself has not."""
        asked = question.casefold()
        return any(match.group().casefold() not in asked for match in self.evidence.finditer(sentence))


@cache
def _kinds() -> tuple[QuestionKind, ...]:
    kinds = []
    for row in load_table("questions")["kind"]:
        flags = 0 if row.get("case_sensitive") else re.IGNORECASE
        cues = {language: re.compile(row["cues"][language], flags) for language in LANGUAGES}
        spans = tuple(re.compile(span, flags) for span in row["span"])
        kinds.append(QuestionKind(row["name"], cues, re.compile(row["evidence"], flags), spans, row["weight"]))
    return tuple(kinds)


@cache
def _function_words() -> dict[Language, frozenset[str]]:
    return {
        language: frozenset(load_table("questions")["function_words"][language].split()) for language in LANGUAGES
    }


def function_words(language: Language) -> frozenset[str]:
    """Return the words that say nothing about what a question is about, without accents.

    Args:
        language: Their language.

    Returns:
        The words in lower case.
    """
    return _function_words()[language]


def kind_of(question: str, language: Language) -> QuestionKind | None:
    """Tell what a question asks for.

    Args:
        question: The question.
        language: Its language.

    Returns:
        The first kind whose cues it has, or ``None``.
    """
    return next((kind for kind in _kinds() if kind.cues[language].search(question)), None)


@cache
def _list_cues() -> dict[Language, re.Pattern[str]]:
    return {language: re.compile(load_table("questions")["lists"][language]) for language in LANGUAGES}


def asks_for_list(question: str, language: Language) -> bool:
    """Tell whether a question asks for several things.

    Args:
        question: The question.
        language: Its language.

    Returns:
        Whether it has one of the cues.
    """
    return _list_cues()[language].search(question) is not None


@cache
def _follow_up_cues() -> dict[Language, re.Pattern[str]]:
    return {language: re.compile(load_table("questions")["follow_ups"][language]) for language in LANGUAGES}


def points_back(question: str, language: Language) -> bool:
    """Tell whether a question has words that point back to another.

    Args:
        question: The question.
        language: Its language.

    Returns:
        Whether it has one of the cues.
    """
    return _follow_up_cues()[language].search(question) is not None


@cache
def _named() -> dict[Language, re.Pattern[str]]:
    return {language: re.compile(load_table("questions")["named"][language]) for language in LANGUAGES}


def names_its_subject(question: str, language: Language) -> bool:
    """Tell whether a question, however short, says what it is about: "¿Cuánto es la fianza?".

    Args:
        question: The question.
        language: Its language.

    Returns:
        Whether it has a question word and a noun with its article.
    """
    return _named()[language].search(question) is not None


@cache
def _openings() -> dict[Language, re.Pattern[str]]:
    return {language: re.compile(load_table("questions")["openings"][language]) for language in LANGUAGES}


def question_proper(text: str, language: Language) -> str:
    """Leave out what is said before a question: a greeting, "quisiera saber".

    Args:
        text: What was said.
        language: Its language.

    Returns:
        The text from its first question word on; all of it where there is none.
    """
    opening = _openings()[language].search(text)
    return text[opening.start() :] if opening else text


@cache
def replaceable_patterns() -> tuple[re.Pattern[str], ...]:
    """Return what a follow-up may put in the place of its like in the question before."""
    return tuple(re.compile(row["pattern"]) for row in load_table("questions")["replaceable"])


def content_stems(question: list[Word], language: Language) -> set[str]:
    """Return the stems of the words that say what a question is about.

    Args:
        question: The words of the question.
        language: Its language.

    Returns:
        The stems without those of function words; all of them when nothing else is left.
    """
    ignored = function_words(language)
    return {word.stem for word in question if word.folded not in ignored} or {word.stem for word in question}
