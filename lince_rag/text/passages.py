"""The sentences of documents that can answer a question, and the passages that are made of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from lince_rag.text.language import Language, detect_language, fold
from lince_rag.text.questions import answer_pattern
from lince_rag.text.sentences import Sentence, split_sentences

# Characters of the window that is compared with a question by its vector: a sentence and those that follow it.
# With 420 the nearest window is the right one more often, but two of 250 hold more answers than one of 420.
WINDOW_CHARACTERS: Final = 250

# Characters of a passage that is quoted with what belongs to it: a whole list, a lead-in, the sentence before.
LIST_CHARACTERS: Final = 700

# A line without a sentence's end and with fewer characters is a title or a cell.
TITLE_CHARACTERS: Final = 70

Kind = Literal["sentence", "item", "row", "lead", "line", "heading", "question", "contents", "mark"]

# What introduces or leads to other text, and is no answer by itself.
_NO_ANSWER: Final[frozenset[Kind]] = frozenset({"heading", "question", "contents", "mark"})
_INTRODUCES: Final[frozenset[Kind]] = frozenset({"heading", "question", "lead", "line"})

# How many lines may introduce a sentence.
MOST_INTRODUCTIONS: Final = 2

_ITEM: Final = re.compile(r"(?:[-*•·+]\s+|\d{1,3}[.)]\s+|[a-zA-Z][.)]\s+|\(?[ivx]+\)\s+)")
_ENDS: Final = (".", "!", "…", ":", ";", "?", ".»", ".”", '."', ".)", "»", "”")
# "Capítulo 3 ........ 17", "3.2.1 Instalación".
_CONTENTS: Final = re.compile(r"(?:\.\s?){4,}\s*\d*\s*\Z|\A\d+(?:\.\d+)+\.?\s+\S.{0,60}\Z")


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
        return cls(language, sentences, [_kind_of(sentence.text, known) for sentence in sentences])

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
        while last + 1 < len(kinds) and kinds[last + 1] == "item" and self._fits(first, last + 1):
            if not (kinds[last] == "lead" or (whole_lists and kinds[last] == "item")):
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

    def introductions(self, position: int) -> list[int]:
        """Return the positions of the headings, questions and lead-ins right before a sentence."""
        found: list[int] = []
        while position > 0 and self.kinds[position - 1] in _INTRODUCES and len(found) <= MOST_INTRODUCTIONS:
            position -= 1
            found.append(position)
        return found


def _bare(text: str) -> str:
    return fold(text).casefold().strip(" :.#*")


def _kind_of(text: str, titles: Iterable[str]) -> Kind:
    text = text.strip()
    if not any(map(str.isalnum, text)):
        return "mark"
    if re.match(r"#{1,6}\s", text) or _bare(text) in titles:
        return "heading"
    if text.rstrip('*_"»”)').endswith("?"):
        return "question"
    if _CONTENTS.search(text):
        return "contents"
    if _ITEM.match(text):
        return "item"
    if " | " in text or text.startswith("|"):
        return "row"
    if text.endswith(":"):
        return "lead"
    short = len(text) < TITLE_CHARACTERS and not any(map(str.isdigit, text))
    return "line" if short and is_unfinished(text) else "sentence"


def is_unfinished(text: str) -> bool:
    """Return whether a text ends without the mark of a sentence's end."""
    return not text.strip().rstrip("*_`").endswith(_ENDS)
