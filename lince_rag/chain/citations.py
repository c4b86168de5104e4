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

from lince_rag.text.language import Language, detect_language
from lince_rag.text.sentences import Sentence, split_sentences

# Share of an answer sentence's weight that a document's sentence must cover to count as its support.
SUPPORT_SHARE: Final = 0.6

# A word of fewer letters (an article, a preposition) weighs this share of a longer one.
SHORT_WORD_LETTERS: Final = 4
SHORT_WORD_WEIGHT: Final = 0.2


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
    """A stretch of a chunk."""

    document: Document
    start: int
    end: int


def attribute(answer: str, documents: Sequence[Document], language: Language) -> tuple[list[Citation], bool]:
    """Find the support of every sentence of an answer.

    Args:
        answer: The answer.
        documents: The chunks that were in the prompt, with ``source`` and ``start`` in their metadata.
        language: The answer's language.

    Returns:
        The citations in the order of the answer's sentences, and whether every sentence has one.
    """
    sentences = split_sentences(answer, language)
    citations = []
    for sentence in sentences:
        passage = _verbatim(sentence.text, documents) or _best(sentence, documents)
        if passage is not None:
            citations.append(_cite(passage, sentence.start, sentence.end))
    return citations, bool(sentences) and len(citations) == len(sentences)


def _verbatim(sentence: str, documents: Sequence[Document]) -> _Passage | None:
    """Find a sentence letter for letter; white space may differ."""
    pattern = re.compile(r"\s+".join(re.escape(part) for part in sentence.split()))
    for document in documents:
        if match := pattern.search(document.page_content):
            return _Passage(document, match.start(), match.end())
    return None


def _best(sentence: Sentence, documents: Sequence[Document]) -> _Passage | None:
    """Find the sentence of the documents that covers most of a sentence's words, if it covers enough of them.

    Every number must be there, too: a wrong amount in the right words is not supported.
    """
    weights = {stem: SHORT_WORD_WEIGHT if len(stem) < SHORT_WORD_LETTERS else 1.0 for stem in sentence.stems}
    total = sum(weights.values())
    best, most = None, 0.0
    for document in documents:
        text = document.page_content
        for passage in split_sentences(text, document.metadata.get("language") or detect_language(text)):
            covered = sum(weights[stem] for stem in weights.keys() & passage.terms)
            if covered > most and sentence.numbers <= passage.numbers:
                best, most = _Passage(document, passage.start, passage.end), covered
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
