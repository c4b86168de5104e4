"""Text → terms: the one analyzer behind the lexical index, the embedded embedder and the citations.

Snowball stem by language first, accent folding second (folding first hides the endings that the Spanish
stemmer looks for), and character 4-grams of the folded words, which forgive inflection, compounds and typing
errors. Before it is cut into 4-grams a word is spelled the way its cognates in the other languages are
(``prompts/cognates.toml``), so that a question finds documents in another of our languages, too. Measured on
XQuAD-es and FaQuAD: ``tests/benchmarks``.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

from lince_rag.text.language import Language, detect_language
from lince_rag.text.wording import load_table

GRAM_LENGTH: Final = 4

# Stems and 4-grams are different kinds of term; the prefix keeps the stem "casa" and the gram "casa" apart.
GRAM_PREFIX: Final = "#"
ROOT_PREFIX: Final = "="

# Words shorter than these many letters keep their spelling, and have no root: too little would be left.
COGNATE_LETTERS: Final = 4
ROOT_LETTERS: Final = 5

# A run of letters and digits; a number keeps its inner separators, so that 3.500,50 and 12:30 are one word.
_WORD: Final = re.compile(r"\d+(?:[.,:/]\d+)+|[^\W_]+")

# Stemmer names in PyStemmer (Snowball).
_SNOWBALL: Final[dict[Language, str]] = {"es": "spanish", "pt": "portuguese", "en": "english"}


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Attributes:
        start: Character offset of the word in the text.
        end: Character offset just after the word.
        text: The word in lower case, accents kept.
        folded: The word in lower case without accents.
        stem: The folded Snowball stem.
    """

    start: int
    end: int
    text: str
    folded: str
    stem: str


@cache
def _stemmer(language: Language) -> Any:
    import Stemmer

    return Stemmer.Stemmer(_SNOWBALL[language])


@lru_cache(maxsize=65_536)
def fold(text: str) -> str:
    """Remove accents and other combining marks: ``"canción"`` → ``"cancion"``.

    Args:
        text: Any text; case is kept.

    Returns:
        The text in NFKD without combining marks.
    """
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _fold_word(word: str) -> str:
    # A few characters unfold to several words (U+FDFA to four) or to none (U+037A): a term is always one word.
    return "".join(fold(word).split()) or word


@lru_cache(maxsize=65_536)
def _stem(word: str, language: Language) -> str:
    return _fold_word(_stemmer(language).stemWord(word))


def words(text: str, language: Language) -> Iterator[Word]:
    """Yield the words of a text with their offsets and stems.

    Args:
        text: Any text.
        language: The language whose stemmer to use.

    Yields:
        The words in order.
    """
    for match in _WORD.finditer(text):
        word = match.group().lower()
        yield Word(match.start(), match.end(), word, _fold_word(word), _stem(word, language))


@cache
def _cognate_rules() -> tuple[list[tuple[re.Pattern[str], str]], re.Pattern[str]]:
    data = load_table("cognates")
    return [(re.compile(pattern), put) for pattern, put in data["rules"]], re.compile(data["final"])


@lru_cache(maxsize=65_536)
def cognate(folded: str) -> str:
    """Spell a word the way its cognates in our other languages come out: ``"nação"``, ``"nation"`` → ``"nacion"``.

    Args:
        folded: A word in lower case without accents.

    Returns:
        The common spelling, for comparing only; numbers and short words as they are.
    """
    if len(folded) < COGNATE_LETTERS or not folded.isalpha():
        return folded
    word = folded
    for pattern, put in _cognate_rules()[0]:
        word = pattern.sub(put, word)
    return word or folded


@lru_cache(maxsize=65_536)
def grams(folded: str) -> tuple[str, ...]:
    """Cut a word's cognate spelling, with a mark on each side, into character 4-grams: ``_cas casa asa_``.

    Args:
        folded: A word in lower case without accents.

    Returns:
        The grams, each with ``GRAM_PREFIX`` in front; a word of one letter has one short gram.
    """
    marked = f"_{cognate(folded)}_"
    last = max(len(marked) - GRAM_LENGTH, 0)
    return tuple(GRAM_PREFIX + marked[start : start + GRAM_LENGTH] for start in range(last + 1))


def terms(text: str, language: Language | None = None) -> list[str]:
    """Turn a text into the terms that are indexed and searched.

    Args:
        text: A question, a sentence or a chunk.
        language: Its language; ``None`` detects it.

    Returns:
        The stem, the 4-grams and, of longer words, the root of the cognate spelling of every word, with
        repetitions.
    """
    found: list[str] = []
    final = _cognate_rules()[1]
    for word in words(text, language or detect_language(text)):
        found.append(word.stem)
        found.extend(grams(word.folded))
        if len(spelled := cognate(word.folded)) >= ROOT_LETTERS:
            found.append(ROOT_PREFIX + final.sub("", spelled))
    return found
