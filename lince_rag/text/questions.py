"""What a question asks for, and which of its words carry content: the data of ``prompts/questions.toml``."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from lince_rag.text.language import LANGUAGES, Language, fold, load_table
from lince_rag.text.sentences import split_sentences
from lince_rag.text.words import Word

# Of words to search for, at most one of so many is a function word.
KEYWORDS_SHARE: Final = 4

_WORD: Final = re.compile(r"[^\W_]+")

# What may stand between a number and what it counts: "20 nuevos socios", "socios: 20".
_BETWEEN_COUNTED: Final = r"[^\w.;\n]*(?:\w+[^\w.;\n]+){0,2}?"

# Letters at the end of a word that its plural and its singular may not share, and those that tell it from others.
_ENDING: Final = re.compile(r"(?:es|s|as|os|is|ns|m|l)\Z")
_COUNTED_LETTERS: Final = 3


@dataclass(frozen=True)
class QuestionKind:
    """A kind of answer that a question can ask for: a date, a number, a person, a place."""

    name: str
    # By language: what the words of such a question look like.
    cues: dict[Language, re.Pattern[str]]
    # What a sentence that answers the question contains.
    evidence: re.Pattern[str]
    # What the answer itself looks like, the most exact expression first.
    spans: tuple[re.Pattern[str], ...]

    def has_evidence(self, sentence: str, question: str) -> bool:
        """Return whether a sentence has evidence of this kind that is not already in the question."""
        asked = question.casefold()
        return any(match.group().casefold() not in asked for match in self.evidence.finditer(sentence))


@cache
def question_kinds() -> tuple[QuestionKind, ...]:
    """Return the kinds of answers that can be asked for, the most specific first."""
    kinds = []
    for row in load_table("questions")["kind"]:
        flags = 0 if row.get("case_sensitive") else re.IGNORECASE
        cues = {language: re.compile(row["cues"][language], flags) for language in LANGUAGES}
        spans = tuple(re.compile(span, flags) for span in row["span"])
        kinds.append(QuestionKind(row["name"], cues, re.compile(row["evidence"], flags), spans))
    return tuple(kinds)


@cache
def _cues(section: str, language: Language) -> re.Pattern[str]:
    """Compile the expression of one section and language."""
    return re.compile(load_table("questions")[section][language])


def kind_of(question: str, language: Language) -> QuestionKind | None:
    """Return the first kind whose cues are in a question, or ``None``."""
    return next((kind for kind in question_kinds() if kind.cues[language].search(question)), None)


def counted(question: str, language: Language) -> re.Pattern[str] | None:
    """Return how a folded text in lower case writes a number of what a question counts; ``None`` without one.

    "¿Cuántos litros gasta?" → "15 l", "quince litros", "litros por lavado: 15".
    """
    table = load_table("questions")["units"]
    match = re.search(table[language], question)
    if match is None:
        return None
    word = fold(match[1]).lower()
    if word in table["none"].split():
        return None
    stem = _ENDING.sub("", word)
    stem = stem if len(stem) >= _COUNTED_LETTERS else word
    number, name = table["number"], rf"\b{re.escape(stem)}\w*"
    patterns = [number + _BETWEEN_COUNTED + name, name + _BETWEEN_COUNTED + number]
    short = [written for start, written in table["short"].items() if stem in (start, f"{start}o", f"{start}a")]
    patterns += [rf"\d\s*(?:{written})(?!\w)" for written in short]
    return re.compile("|".join(patterns))


def last_question(text: str, language: Language) -> str:
    """Return a text from its last question on: a follow-up has those before it in front, which are answered."""
    starts = [each.start for each in split_sentences(text, language) if "?" in each.text]
    return text[starts[-1] :] if starts else text


Wanted = Literal["lists", "instructions", "reasons", "definitions", "comparisons", "summaries"]


def asks_for(wanted: Wanted, question: str, language: Language) -> bool:
    """Return whether a question asks for several things, a way, a reason, what something is, and so on."""
    return _cues(wanted, language).search(question) is not None


def summary_words(question: str, language: Language) -> list[str]:
    """Return the content words, folded, that say which document is to be summarized."""
    rest = fold(_cues("summaries", language).sub(" ", question)).casefold()
    ignored = function_words(language) | set(load_table("questions")["summaries"]["any_document"].split())
    return [word for word in _WORD.findall(rest) if word not in ignored]


def asks_for_end(question: str, language: Language) -> bool:
    """Return whether a question asks when something ends."""
    return _cues("ends", language).search(question) is not None


@cache
def before_end() -> re.Pattern[str]:
    """Return what stands before the date on which something ends."""
    return re.compile(load_table("questions")["ends"]["before"])


@cache
def answer_pattern(name: str) -> re.Pattern[str]:
    """Return what a sentence has that gives a ``menu`` item, an ``instruction``, a ``reason``, a ``definition``.

    ``dependent`` is what a sentence begins with that needs the one before it.
    """
    return re.compile(load_table("questions")["answers"][name])


def refers_back(question: str, language: Language) -> bool:
    """Return whether a question has words that refer to an earlier one, such as pronouns."""
    return _cues("follow_ups", language).search(question) is not None


def continues(question: str, language: Language) -> bool:
    """Return whether a question begins like one that goes on with what was asked before: "¿Y la fianza?"."""
    return _cues("continues", language).search(question) is not None


def is_small_talk(message: str) -> bool:
    """Return whether a message is only a greeting, thanks or the like, in any of our languages."""
    found = {fold(word) for word in _WORD.findall(message.lower())}
    table = load_table("questions")["small_talk"]
    if not found & set(table["needed"].split()):
        return False
    return any(found <= {*table[language].split(), *table["needed"].split()} for language in LANGUAGES)


def names_its_subject(question: str, language: Language) -> bool:
    """Return whether a question has a question word and a noun with its article: "¿Cuánto es la fianza?"."""
    return _cues("named", language).search(question) is not None


def asks_with_a_word(question: str, language: Language) -> bool:
    """Return whether a question has a question word: if not, it asks for yes or no."""
    return _cues("openings", language).search(question) is not None


def is_keywords(question: str, language: Language) -> bool:
    """Return whether a text is words to search for rather than a question: "fianza contrato piso"."""
    found = [fold(word) for word in _WORD.findall(question.lower())]
    few = sum(word in function_words(language) for word in found) <= len(found) / KEYWORDS_SHARE
    asked = "?" in question or asks_with_a_word(question, language) or asks_for("instructions", question, language)
    return len(found) > 1 and few and not asked


def spell_out(question: str, language: Language) -> str:
    """Write the words of a question that people shorten as they are spelled: "pq" → "por qué"."""
    words = load_table("questions")["shorthand"][language]
    return _WORD.sub(lambda match: words.get(match.group().lower(), match.group()), question)


def strip_opening(text: str, language: Language) -> str:
    """Remove what comes before the first question word, such as a greeting or "quisiera saber"."""
    opening = _cues("openings", language).search(text)
    return text[opening.start() :] if opening else text


@cache
def replaceable_patterns() -> tuple[re.Pattern[str], ...]:
    """Return the patterns of what a follow-up can replace in the previous question: a year, a month, a name."""
    return tuple(re.compile(row["pattern"]) for row in load_table("questions")["replaceable"])


@cache
def function_words(language: Language) -> frozenset[str]:
    """Return the words that do not tell what a question is about, in lower case and without accents."""
    return frozenset(load_table("questions")["function_words"][language].split())


def content_stems(question: list[Word], language: Language) -> set[str]:
    """Return the stems of a question's words without the function words; all of them if nothing else is left."""
    ignored = function_words(language)
    return {word.stem for word in question if word.folded not in ignored} or {word.stem for word in question}
