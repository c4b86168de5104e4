"""Citations: which sentence of which document supports each sentence of an answer.

Attribution happens after generation, against the chunks that were in the prompt: models of 2023 do not write
reliable citation marks. Every quote is an exact stretch of the document's text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.documents import Document
from pydantic import BaseModel, ConfigDict

from lince_rag.analysis import sentence_spans, words
from lince_rag.language import Language, detect_language

# Share of an answer sentence's weight that a document's sentence must cover to count as its support.
SUPPORT_SHARE: Final = 0.6

# A word of fewer letters (an article, a preposition) weighs this share of a longer one.
SHORT_WORD_LETTERS: Final = 4
SHORT_WORD_WEIGHT: Final = 0.2

# Every number of an answer sentence must be in its support: a wrong amount in the right words is not supported.
_NUMBER: Final = re.compile(r"\d")


class Citation(BaseModel):
    """A stretch of a document that supports a sentence of an answer.

    Attributes:
        source: The document's name, as ``Index.sources`` gives it.
        title: The document's title.
        page: Page of the quote, from 1, where the document has pages.
        start: Character offset of the quote in the document's text (``Index.text``).
        end: Offset just after it: ``index.text(source)[start:end] == quote``.
        quote: The stretch itself.
        answer_start: Character offset, in the answer's text, of the sentence it supports.
        answer_end: Offset just after that sentence.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    title: str = ""
    page: int | None = None
    start: int
    end: int
    quote: str
    answer_start: int
    answer_end: int


@dataclass(frozen=True)
class _Passage:
    document: Document
    start: int
    end: int
    stems: frozenset[str]
    numbers: frozenset[str]


def attribute(answer: str, documents: Sequence[Document], language: Language) -> tuple[list[Citation], bool]:
    """Find the support of every sentence of an answer.

    Args:
        answer: The answer.
        documents: The chunks that were in the prompt, with ``source`` and ``start`` in their metadata.
        language: The answer's language.

    Returns:
        The citations in the order of the answer's sentences, and whether every sentence has one.
    """
    passages = [passage for document in documents for passage in _passages(document)]
    spans = sentence_spans(answer, language)
    citations = []
    for start, end in spans:
        sentence = answer[start:end]
        passage = _verbatim(sentence, documents) or _best(sentence, passages, language)
        if passage is not None:
            citations.append(_cite(passage, start, end))
    return citations, bool(spans) and len(citations) == len(spans)


def _passages(document: Document) -> list[_Passage]:
    """Cut a chunk into its sentences."""
    text = document.page_content
    language = document.metadata.get("language") or detect_language(text)
    return [
        _Passage(document, start, end, *_fingerprint(text[start:end], language))
        for start, end in sentence_spans(text, language)
    ]


def _fingerprint(text: str, language: Language) -> tuple[frozenset[str], frozenset[str]]:
    found = list(words(text, language))
    numbers = frozenset(word.text for word in found if _NUMBER.search(word.text))
    return frozenset(word.stem for word in found), numbers


def _verbatim(sentence: str, documents: Sequence[Document]) -> _Passage | None:
    """Find a sentence letter for letter; white space may differ."""
    pattern = re.compile(r"\s+".join(re.escape(part) for part in sentence.split()))
    for document in documents:
        if match := pattern.search(document.page_content):
            return _Passage(document, match.start(), match.end(), frozenset(), frozenset())
    return None


def _best(sentence: str, passages: Sequence[_Passage], language: Language) -> _Passage | None:
    """Find the passage that covers most of a sentence's words, if it covers enough of them."""
    stems, numbers = _fingerprint(sentence, language)
    weights = {stem: SHORT_WORD_WEIGHT if len(stem) < SHORT_WORD_LETTERS else 1.0 for stem in stems}
    total = sum(weights.values())
    best, most = None, 0.0
    for passage in passages:
        covered = sum(weights[stem] for stem in stems & passage.stems)
        if covered > most and numbers <= passage.numbers:
            best, most = passage, covered
    return best if total and most / total >= SUPPORT_SHARE else None


def _cite(passage: _Passage, answer_start: int, answer_end: int) -> Citation:
    metadata = passage.document.metadata
    offset = int(metadata.get("start", 0))
    return Citation(
        source=str(metadata.get("source", "")),
        title=str(metadata.get("title") or ""),
        page=_page(metadata, offset + passage.start),
        start=offset + passage.start,
        end=offset + passage.end,
        quote=passage.document.page_content[passage.start : passage.end],
        answer_start=answer_start,
        answer_end=answer_end,
    )


def _page(metadata: Mapping[str, Any], position: int) -> int | None:
    """The page of a position: a chunk that goes on over a page break lists where its pages start."""
    page: int | None = metadata.get("page")
    for start, number in metadata.get("page_starts", ()):
        if start <= position:
            page = number
    return page
