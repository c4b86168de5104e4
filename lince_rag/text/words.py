"""Text → terms: the one analyzer behind the lexical index, the embedded embedder and the citations.

Snowball stem by language first, accent folding second (folding first hides the endings that the Spanish
stemmer looks for), and character 4-grams of the folded words, which forgive inflection, compounds and typing
errors. Before it is cut into 4-grams a word is spelled the way its cognates in the other languages are
(``prompts/cognates.toml``), so that a question finds documents in another of our languages, too. Measured on
XQuAD-es and FaQuAD: ``tests/benchmarks``.
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, Final

from lince_rag.text.language import Language, detect_language

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
    data = tomllib.loads((files("lince_rag.prompts") / "cognates.toml").read_text(encoding="utf-8"))
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


# What begins a line that is a unit of its own: a list item, a heading, a table row, a quotation.
_OWN_LINE: Final = re.compile(r"\s*(?:[-*•·+>]\s|\d{1,2}[.)]\s|#{1,6}\s|\|)")

_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")

# A line much shorter than wrapped text, without punctuation at its end, before a capital letter or a digit: a
# title, an address, a cell. Wrapped text is 60 to 80 characters wide.
_SHORT_LINE: Final = 45


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Cut a text where no sentence goes on: at blank lines, list items, headings, table rows, short lines."""
    start, previous = 0, ""
    for match in re.finditer(r"[^\n]*\n?", text):
        line = match.group().strip()
        if match.start() > start and _separates(previous, line):
            yield start, match.start()
            start = match.start()
        previous = line
    if start < len(text):
        yield start, len(text)


def _separates(previous: str, line: str) -> bool:
    if not line or not previous or _OWN_LINE.match(line + " ") or " | " in line or " | " in previous:
        return True
    if previous.startswith("#"):
        return True
    begins = line[0].isupper() or line[0].isdigit() or line[0] in "¿¡"
    return len(previous) < _SHORT_LINE and begins and previous[-1] not in ",;-"


def sentence_spans(text: str, language: Language) -> list[tuple[int, int]]:
    """Split a text into sentences.

    Args:
        text: Any text; a blank line, a list item, a heading and a table row always end a sentence.
        language: The language whose abbreviations to know.

    Returns:
        (start, end) character offsets in order, without the white space around each sentence.
    """
    from sentencex import get_sentence_boundaries

    # Half a surrogate pair is no character for the splitter; the stand-in has the same length.
    text = _HALF_PAIR.sub("\ufffd", text)
    spans = []
    for offset, stop in _blocks(text):
        for boundary in get_sentence_boundaries(language, text[offset:stop]):
            start, end = offset + boundary["start_index"], offset + boundary["end_index"]
            while start < end and text[start].isspace():
                start += 1
            while end > start and text[end - 1].isspace():
                end -= 1
            if start < end:
                spans.append((start, end))
    return spans
