"""Citations: which sentence of which document supports each sentence of an answer.

Attribution happens after generation, against the chunks that were in the prompt: models of 2023 do not write
reliable citation marks. Every quote is an exact stretch of the document's text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from langchain_core.documents import Document

from lince_rag.chain.answer import Citation
from lince_rag.text.language import Language, detect_language, identify_language
from lince_rag.text.sentences import Sentence, split_sentences

# Share of an answer sentence's weight that a document's sentence must cover to count as its support.
SUPPORT_SHARE: Final = 0.6

# A word of fewer letters (an article, a preposition) weighs this share of a longer one.
SHORT_WORD_LETTERS: Final = 4
SHORT_WORD_WEIGHT: Final = 0.2


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


# What to do with an answer of which some sentence is in no document.
OnUnsupported = Literal["flag", "drop", "extract"]
POLICIES: Final[tuple[OnUnsupported, ...]] = ("flag", "drop", "extract")

# A sentence of fewer words (a name, a date, a title) does not tell its language.
TELLING_WORDS: Final = 5

# Probability from which on a sentence counts as written in another language. Of the 2,274 sentences of XQuAD-es
# and FaQuAD with as many words it takes none for foreign, and of those of XQuAD-en 99.5% for not Spanish.
FOREIGN_PROBABILITY: Final = 0.95


@dataclass(frozen=True)
class Grounding:
    """The support of an answer.

    Attributes:
        citations: The stretches of the documents that support it, in the order of its sentences.
        unsupported: (start, end) offsets in the answer of the sentences without a citation.
        grounded: Whether there are sentences and all of them have a citation.
    """

    citations: list[Citation]
    unsupported: list[tuple[int, int]]
    grounded: bool


def ground(text: str, documents: Sequence[Document], language: Language) -> Grounding:
    """Attribute every sentence of an answer.

    Args:
        text: The answer.
        documents: The chunks that were in the prompt.
        language: The answer's language.

    Returns:
        Its citations and the sentences without one.
    """
    citations, grounded = attribute(text, documents, language)
    cited = {(citation.answer_start, citation.answer_end) for citation in citations}
    spans = [(sentence.start, sentence.end) for sentence in split_sentences(text, language)]
    return Grounding(citations, [span for span in spans if span not in cited], grounded)


def drop_unsupported(text: str, grounding: Grounding) -> str:
    """Take the sentences without a citation out of an answer.

    Args:
        text: The answer.
        grounding: Its support.

    Returns:
        What is left; the empty text where nothing is.
    """
    kept, position = [], 0
    for start, end in grounding.unsupported:
        kept.append(text[position:start])
        position = end
    kept.append(text[position:])
    return " ".join(part.strip() for part in kept if part.strip())


def slips_from(language: Language, text: str, documents: Sequence[Document]) -> bool:
    """Tell whether an answer, or a sentence of it, is in another language than it should be.

    A sentence that quotes a document word for word may be in the document's language.

    Args:
        language: The language that the answer should be in.
        text: The answer, or its beginning.
        documents: The chunks that were in the prompt.

    Returns:
        Whether a sentence of some length is written in another of our languages.
    """
    quoted = [" ".join(document.page_content.split()) for document in documents]
    for sentence in split_sentences(text, language):
        if len(sentence.stems) < TELLING_WORDS or not any(map(str.isalpha, sentence.text)):
            continue
        found, probability = identify_language(sentence.text)
        if found != language and probability >= FOREIGN_PROBABILITY:
            spoken = " ".join(sentence.text.split())
            if not any(spoken in quote for quote in quoted):
                return True
    return False
