"""The sentences of documents that can answer a question, and the passages that are made of them."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from lince_rag.text.language import Language, detect_language, fold
from lince_rag.text.questions import answer_pattern
from lince_rag.text.sentences import CELL_SEPARATOR, Sentence, is_clause_mark, message_body, split_sentences

# Characters of the window that is compared with a question by its vector: a sentence and those that follow it.
# With 420 the nearest window is the right one more often, but two of 250 hold more answers than one of 420.
WINDOW_CHARACTERS: Final = 250

# Characters of a passage that is quoted with what belongs to it: a whole list, a lead-in, the sentence before.
LIST_CHARACTERS: Final = 700

# A line without a sentence's end and with fewer characters is a title or a cell.
TITLE_CHARACTERS: Final = 70

# A summary: the sentences of each chunk that may stand for it, those of all chunks at least, the characters of all
# of it, and the letters of a stem that tells something.
LEADING_SENTENCES: Final = 3
FEWEST_SENTENCES: Final = 12
SUMMARY_CHARACTERS: Final = 900
SUMMARY_LETTERS: Final = 4

# A line in capitals with fewer characters and at least as many letters is a heading.
HEADING_CHARACTERS: Final = 120
HEADING_LETTERS: Final = 6

Kind = Literal["sentence", "item", "row", "lead", "line", "heading", "question", "contents", "mark"]

# What introduces or leads to other text, and is no answer by itself.
_NO_ANSWER: Final[frozenset[Kind]] = frozenset({"heading", "question", "contents", "mark"})
_INTRODUCES: Final[frozenset[Kind]] = frozenset({"heading", "question", "lead", "line"})

# How many lines may introduce a sentence.
MOST_INTRODUCTIONS: Final = 2

_ITEM: Final = re.compile(r"(?:[-*•·+]\s+|\d{1,3}[.)]\s+|[a-zA-Z][.)]\s+|\(?[ivx]+\)\s+)")
# What a line in capitals says if it is no heading: "TOTAL A PAGAR 45,73 €", "MATRÍCULA: 4471 KRB".
_VALUE: Final = re.compile(r"\d[.,]\d|[€$£%]|:\s+\S")

# A line that begins with a number: all of it, if it has no other.
_NUMBERED: Final = re.compile(r"(\d{1,3}(?=[.)-]+\s)|\d{1,3}(?:\.\d{1,3})+)\D*")

# A message that says something before it asks.
_SAYS_BEFORE: Final = re.compile(r"[^?]*[^\s?][.!…:\n]\s*\S", re.DOTALL)

_ENDS: Final = (".", "!", "…", ":", ";", "?", ".»", ".”", '."', ".)", "»", "”")
# A cell of a table that has no other header: "Precio: 3".
_NAMED_CELL: Final = re.compile(r"\s*[^\s:|][^|]*?:\s+\S")
# A line over one of "=" or "-".
_UNDERLINED: Final = re.compile(r"\A[^\n]{1,120}\n\s*([=\-~_*])\1{3,}\s*\Z")
# "Capítulo 3 ........ 17", "3.2.1 Instalación"; but not "3.2. No se cubre el robo." or "1.1 Contenido: 18.000 €".
_CONTENTS: Final = re.compile(r"(?:\.\s?){4,}\s*\d*\s*\Z|\A\d+(?:\.\d+)+\.?\s+[^\s\d:][^\d:]{0,60}\d*(?<![.;!])\Z")


@dataclass(frozen=True, eq=False)
class Reading:
    """A document as its sentences, and what each of them is."""

    language: Language
    sentences: Sequence[Sentence]
    kinds: Sequence[Kind]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Reading":
        """Read a dict with ``text`` and, if known, ``language``, ``heading`` and ``title``."""
        text = document["text"]
        language: Language = document.get("language") or detect_language(text)
        sentences = split_sentences(text, language)
        titles = [*str(document.get("heading") or "").split(" › "), str(document.get("title") or "")]
        known = {_bare(title) for title in titles}
        kinds = [_kind_of(sentence.text, known) for sentence in sentences]
        _tell_titles_from_items(text, sentences, kinds)
        _join_items(text, sentences, kinds)
        return cls(language, sentences, kinds)

    def candidates(self) -> list[int]:
        """Return the positions of the sentences that can be a part of an answer."""
        return [position for position, kind in enumerate(self.kinds) if kind not in _NO_ANSWER]

    def window(self, position: int) -> tuple[int, int]:
        """Return the character offsets [start, end) of a sentence with those that follow it, up to a heading."""
        start, end = self.sentences[position].start, self.sentences[position].end
        for sentence, kind in zip(self.sentences[position + 1 :], self.kinds[position + 1 :], strict=True):
            if kind in _NO_ANSWER or sentence.end - start > WINDOW_CHARACTERS:
                break
            end = sentence.end
        return start, end

    def extend(self, first: int, last: int, *, whole_lists: bool) -> tuple[int, int]:
        """Return the run to quote for a run of sentences, given by the positions of the first and the last.

        A lead-in and a sentence that depends on the one before are not alone in it; lists are perhaps whole.
        """
        kinds = self.kinds
        # What leads to a list is not quoted with a part of it.
        announced = next((kind for kind in reversed(kinds[first : last + 1]) if kind != "item"), None) == "lead"
        while last + 1 < len(kinds) and kinds[last + 1] == "item" and self._fits(first, last + 1):
            if not (kinds[last] == "lead" or ((whole_lists or announced) and kinds[last] == "item")):
                break
            last += 1
        if kinds[last] == "lead" and last + 1 < len(kinds) and self._fits(first, last + 1):
            last += 1
        while whole_lists and first and kinds[first] == "item" and kinds[first - 1] in ("item", "lead"):
            if not self._fits(first - 1, last):
                break
            first -= 1
        dependent = answer_pattern("dependent").search(self.sentences[first].text)
        if dependent and first and kinds[first - 1] == "sentence" and self._fits(first - 1, last):
            first -= 1
        return first, last

    def _fits(self, first: int, last: int) -> bool:
        return self.sentences[last].end - self.sentences[first].start <= LIST_CHARACTERS

    def header(self, position: int) -> int | None:
        """Return the position of the first row of the table that a row below it is in.

        A row that names its values needs none, and is none.
        """
        if self.kinds[position] != "row":
            return None
        first = position
        while first and self.kinds[first - 1] in ("row", "mark"):
            if self.sentences[first].start - self.sentences[first - 1].end > 1:
                # After a blank line another table begins.
                break
            first -= 1
        named = any(_names_values(self.sentences[row].text) for row in (first, position))
        return None if named or first == position else first

    def introductions(self, position: int) -> list[int]:
        """Return the positions of the table header, headings, questions and lead-ins right before a sentence."""
        found: list[int] = []
        if (header := self.header(position)) is not None:
            found.append(header)
            position = header
        while position > 0 and self.kinds[position - 1] in _INTRODUCES and len(found) <= MOST_INTRODUCTIONS:
            position -= 1
            found.append(position)
        return found


def summarize(documents: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, int]]:
    """Return the central leading sentences of the chunks of a text, in order: (document, start, end).

    They are those of the first ``LEADING_SENTENCES`` of each whose words are the most frequent in all of them, as
    many as ``SUMMARY_CHARACTERS`` hold.
    """
    readings = [Reading.of(document) for document in documents]
    counts = Counter(
        stem
        for reading in readings
        for sentence in reading.sentences
        for stem in set(sentence.stems)
        if len(stem) >= SUMMARY_LETTERS
    )

    def centrality(sentence: Sentence) -> float:
        stems = {stem for stem in sentence.stems if len(stem) >= SUMMARY_LETTERS}
        return sum(math.log(counts[stem]) for stem in stems) / math.sqrt(len(stems)) if stems else 0.0

    # Of a text with few chunks, more sentences of each.
    first = max(LEADING_SENTENCES, FEWEST_SENTENCES // max(len(readings), 1))
    leading: list[tuple[float, int, Sentence]] = []
    for number, reading in enumerate(readings):
        plain = [each for each in reading.candidates() if reading.kinds[each] == "sentence"]
        sentences = [reading.sentences[position] for position in plain[:first]]
        leading += [(centrality(sentence), number, sentence) for sentence in sentences]
    found: list[tuple[int, int, int]] = []
    left = SUMMARY_CHARACTERS
    for _, number, sentence in sorted(leading, key=lambda each: -each[0]):
        length = sentence.end - sentence.start
        if length <= left or not found:
            found.append((number, sentence.start, sentence.end))
            left -= length
    return sorted(found)


def _names_values(row: str) -> bool:
    return all(map(_NAMED_CELL.match, row.split(CELL_SEPARATOR)))


def _bare(text: str) -> str:
    return fold(text).casefold().strip(" :.#*")


def _kind_of(text: str, titles: Iterable[str]) -> Kind:
    text = text.strip()
    if not any(map(str.isalnum, text)):
        return "mark"
    if (said := message_body(text)) is not None:
        return _kind_of_message(said)
    marked = _UNDERLINED.match(text) or re.match(r"#{1,6}\s", text)
    if marked or _is_in_capitals(text) or _bare(text) in titles:
        return "heading"
    # "Art. 8.º Sin obras." says something, "Cláusula 4.ª – Fianza" does not.
    if is_clause_mark(text, with_title=is_unfinished(text)):
        return "heading"
    if text.rstrip('*_"»”)').endswith("?"):
        return "question"
    if _CONTENTS.search(text):
        return "contents"
    if _ITEM.match(text):
        return "item"
    if CELL_SEPARATOR in text or text.startswith("|"):
        return "row"
    if text.endswith(":"):
        return "lead"
    short = len(text) < TITLE_CHARACTERS and not any(map(str.isdigit, text))
    return "line" if short and is_unfinished(text) else "sentence"


def _kind_of_message(said: str) -> Kind:
    if not any(map(str.isalnum, said)) or answer_pattern("empty_message").search(said):
        return "mark"
    if said.endswith("?") and not _SAYS_BEFORE.match(said):
        return "question"
    return "lead" if said.endswith(":") else "sentence"


def _tell_titles_from_items(text: str, sentences: Sequence[Sentence], kinds: list[Kind]) -> None:
    """Correct the kinds of short lines with a number, by the numbers before and after.

    "3. Exclusiones" is a title, unless "2." or "4." is next to it, or it instructs ("1. Abra la tapa"). And "1.1
    El piso es de Ana" is none if "1.2" follows.
    """
    found = [_NUMBERED.match(sentence.text) for sentence in sentences]
    numbers = [tuple(map(int, each[1].split("."))) if each else () for each in found]
    for position, (sentence, match, number) in enumerate(zip(sentences, found, numbers, strict=True)):
        if match is None:
            continue
        around = numbers[max(position - 1, 0) : position] + numbers[position + 1 : position + 2]
        listed = any(each and each[:-1] == number[:-1] and abs(each[-1] - number[-1]) == 1 for each in around)
        title = len(number) == 1 and match.end() == len(sentence.text) < TITLE_CHARACTERS
        title = title and not answer_pattern("instruction").search(sentence.text)
        if listed and kinds[position] == "contents":
            kinds[position] = "item"
        elif title and not listed and text.startswith("\n", sentence.end):
            kinds[position] = "heading"


def _join_items(text: str, sentences: Sequence[Sentence], kinds: list[Kind]) -> None:
    """Make the further sentences of an item, on the same line, a part of the list."""
    for position in range(1, len(kinds)):
        same_line = "\n" not in text[sentences[position - 1].end : sentences[position].start]
        if kinds[position - 1] == "item" and kinds[position] == "sentence" and same_line:
            kinds[position] = "item"


def _is_in_capitals(text: str) -> bool:
    if _VALUE.search(text):
        return False
    letters = [character for character in text if character.isalpha()]
    short = len(text) < HEADING_CHARACTERS and is_unfinished(text)
    return short and len(letters) >= HEADING_LETTERS and sum(map(str.isupper, letters)) >= 0.9 * len(letters)


def is_unfinished(text: str) -> bool:
    """Return whether a text ends without the mark of a sentence's end."""
    return not text.strip().rstrip("*_`").endswith(_ENDS)
