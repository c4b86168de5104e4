"""Text → terms: the only analyzer, shared by the lexical index, the embedded embedder and the citations.

A word gives its Snowball stem in the text's language, with the accents removed afterwards (the Spanish stemmer
needs them to recognise endings), and character 4-grams, which tolerate inflection, compounds and typing errors.
Before it is cut into 4-grams, a word gets a spelling that its cognates in the other languages share
(``prompts/cognates.toml``), so that a question also finds documents in another language. Measured on XQuAD-es and
FaQuAD: ``tests/benchmarks``.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

from lince_rag.text.language import Language, detect_language, fold, load_table

GRAM_LENGTH: Final = 4

# The prefixes distinguish the stem "casa", the gram "casa" and the root "casa", which are different terms.
GRAM_PREFIX: Final = "#"
ROOT_PREFIX: Final = "="

# Words with fewer letters keep their spelling, or have no root: too little would be left.
COGNATE_LETTERS: Final = 4
ROOT_LETTERS: Final = 5

# A run of letters and digits; a number keeps its inner separators, so that 3.500,50 and 12:30 are one word.
_WORD: Final = re.compile(r"\d+(?:[.,:/]\d+)+|[^\W_]+")

_DIGIT: Final = re.compile(r"\d")

# Stemmer names in PyStemmer (Snowball).
_SNOWBALL: Final[dict[Language, str]] = {"es": "spanish", "pt": "portuguese", "en": "english"}

_REMOVED: Final = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff\ufffe\uffff]"
)
_LINE_END: Final = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SPACE: Final = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")


def clean(text: str) -> str:
    """Normalise the characters of a text without changing what is written.

    Unicode NFC; one kind of line end and of space; no soft hyphens, control characters or text-direction marks;
    a lone surrogate, which no database accepts, becomes U+FFFD.
    """
    text = _SPACE.sub(" ", _LINE_END.sub("\n", text))
    text = re.sub("[\ud800-\udfff]", "\ufffd", _REMOVED.sub("", text))
    return unicodedata.normalize("NFC", text)


def squeeze(text: str) -> str:
    """Clean a text and put it on one line, with one space for each run of white space."""
    return " ".join(clean(text).split())


@lru_cache(maxsize=65_536)
def _fold_word(word: str) -> str:
    # A few characters unfold to several words (U+FDFA to four) or to none (U+037A); a term is always one word.
    return "".join(fold(word).split()) or word


@dataclass(frozen=True)
class Word:
    """A word in lower case, with its character offsets ``[start, end)`` in its text."""

    start: int
    end: int
    text: str
    # Without accents.
    folded: str
    # The Snowball stem, without accents.
    stem: str


def words(text: str, language: Language) -> Iterator[Word]:
    """Yield the words of a text in order, stemmed by the rules of its language."""
    for match in _WORD.finditer(text):
        word = match.group().lower()
        yield Word(match.start(), match.end(), word, _fold_word(word), _stem(word, language))


@lru_cache(maxsize=65_536)
def _stem(word: str, language: Language) -> str:
    return _fold_word(_stemmer(language).stemWord(word))


@cache
def _stemmer(language: Language) -> Any:
    import Stemmer

    return Stemmer.Stemmer(_SNOWBALL[language])


@lru_cache(maxsize=65_536)
def cognate(folded: str) -> str:
    """Return the spelling that a folded word shares with its cognates: ``"nacao"``, ``"nation"`` → ``"nacion"``.

    It is used only for comparison. Numbers and short words stay as they are.
    """
    if len(folded) < COGNATE_LETTERS or not folded.isalpha():
        return folded
    word = folded
    for pattern, replacement in _cognate_rules()[0]:
        word = pattern.sub(replacement, word)
    return word or folded


@cache
def _cognate_rules() -> tuple[list[tuple[re.Pattern[str], str]], re.Pattern[str]]:
    """The replacements, and the pattern of the ending that a root does not have."""
    data = load_table("cognates")
    rules = [(re.compile(pattern), replacement) for pattern, replacement in data["rules"]]
    return rules, re.compile(data["final"])


@lru_cache(maxsize=65_536)
def grams(folded: str) -> tuple[str, ...]:
    """Cut the cognate spelling of a folded word, with a mark on each side, into 4-grams: ``_cas casa asa_``.

    Each has ``GRAM_PREFIX`` in front; a word of one letter has one shorter gram.
    """
    return spelling_grams(cognate(folded))


@lru_cache(maxsize=65_536)
def spelling_grams(spelling: str) -> tuple[str, ...]:
    """Cut a cognate spelling into 4-grams; see ``grams``."""
    marked = f"_{spelling}_"
    last = max(len(marked) - GRAM_LENGTH, 0)
    return tuple(GRAM_PREFIX + marked[start : start + GRAM_LENGTH] for start in range(last + 1))


def differs_in_one_letter(first: str, second: str) -> bool:
    """Return whether one letter is another, is left out, is too much, or has changed places with the next."""
    if abs(len(first) - len(second)) > 1 or first == second:
        return False
    start = next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
    if start is None:
        return True
    rest, other = first[start:], second[start:]
    if rest[1:] == other[1:] or rest[1:] == other or rest == other[1:]:
        return True
    return rest[1:2] + rest[:1] == other[:2] and rest[2:] == other[2:]


def spaced_gram(gram: str) -> str:
    """Write a 4-gram as it stands in a line of spellings with a space on each side: ``"#_cas"`` → ``" cas"``."""
    return gram[len(GRAM_PREFIX) :].replace("_", " ")


def analyze(text: str, language: Language) -> list[tuple[str, str, str]]:
    """Return the stem, the cognate spelling and the terms, with spaces between them, of each word of a text."""
    return [_analyze(word, language) for word in _WORD.findall(text)]


@lru_cache(maxsize=131_072)
def _analyze(word: str, language: Language) -> tuple[str, str, str]:
    lowered = word.lower()
    stem, spelled = _stem(lowered, language), cognate(_fold_word(lowered))
    root = [ROOT_PREFIX + _cognate_rules()[1].sub("", spelled)] if len(spelled) >= ROOT_LETTERS else []
    return stem, spelled, " ".join([stem, *spelling_grams(spelled), *root])


def stems_and_spellings(text: str, language: Language) -> tuple[str, str]:
    """Return the stems and the cognate spellings of a text's words, in order, with a space on each side."""
    return word_lines(analyze(text, language))


def word_lines(analyzed: Sequence[tuple[str, str, str]]) -> tuple[str, str]:
    """Return the stems and the cognate spellings of words, with a space on each side."""
    return f" {' '.join([stem for stem, _, _ in analyzed])} ", f" {' '.join([each for _, each, _ in analyzed])} "


def words_with_digits(text: str) -> frozenset[str]:
    """Return the words of a text that have a digit, in lower case."""
    found = (match.group().lower() for match in _WORD.finditer(text))
    return frozenset(word for word in found if _DIGIT.search(word))


def terms(text: str, language: Language | None = None) -> list[str]:
    """Return the terms of a text that are indexed and searched, with repetitions.

    Every word gives its stem, its 4-grams and, if it is long enough, the root of its cognate spelling.
    """
    return terms_line(text, language or detect_language(text)).split()


def terms_line(text: str, language: Language) -> str:
    """Return the terms of a text with spaces between them."""
    return " ".join([found for _, _, found in analyze(text, language)])
