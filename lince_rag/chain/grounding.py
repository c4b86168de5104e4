"""Attribution of an answer's sentences to the documents, and the check of the answer's language.

Attribution happens after generation, against the chunks that were in the prompt: models of 2023 do not write
reliable citation marks. Every quote is an exact span of the document's text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from langchain_core.documents import Document

from lince_rag.chain.answer import Citation
from lince_rag.text.language import Language, detect_language, identify_language
from lince_rag.text.sentences import Sentence, split_sentences

# The mark of an item; and one that the splitter took for a sentence ("- 1.").
_ITEM_MARK: Final = re.compile(r"[-*•·+]\s+(?=\S)")
_NUMBER_MARK: Final = re.compile(r"[-*•·+](?:\s+\d{1,3}[.)])?")

# What to do with an answer that has unsupported sentences.
OnUnsupported = Literal["flag", "drop", "extract"]
POLICIES: Final[tuple[OnUnsupported, ...]] = ("flag", "drop", "extract")

# Share of an answer sentence's weight that a document's sentence must cover to support it.
SUPPORT_SHARE: Final = 0.6

# A word of fewer letters (an article, a preposition) weighs this share of a longer one.
SHORT_WORD_LETTERS: Final = 4
SHORT_WORD_WEIGHT: Final = 0.2

# The language of a sentence with fewer words (a name, a date, a title) cannot be identified.
MIN_WORDS_FOR_LANGUAGE: Final = 4

# Probability from which on a sentence counts as written in another language. Of the 2,270 sentences of XQuAD-es
# and FaQuAD with three words or more it takes none for foreign, and of the 1,151 of XQuAD-en 99.9% for English.
FOREIGN_PROBABILITY: Final = 0.95


@dataclass(frozen=True)
class Attribution:
    """The citations of an answer, in the order of its sentences, and the (start, end) offsets of the others."""

    citations: list[Citation]
    unsupported: list[tuple[int, int]]

    @property
    def grounded(self) -> bool:
        """Whether there are sentences and every one has a citation."""
        return bool(self.citations) and not self.unsupported


def attribute(answer: str, documents: Sequence[Document], language: Language) -> Attribution:
    """Find, for every sentence of an answer, the span of the documents that supports it.

    The chunks have ``source`` and ``start`` in their metadata; ``language`` is the answer's.
    """
    found = Attribution([], [])
    for sentence in split_sentences(answer, language):
        if _NUMBER_MARK.fullmatch(sentence.text):
            continue
        passage = _find_verbatim(sentence.text, documents) or _find_best(sentence, documents)
        if passage is None:
            found.unsupported.append((sentence.start, sentence.end))
        else:
            found.citations.append(_cite(passage, sentence))
    return found


def drop_unsupported(answer: str, attribution: Attribution) -> str:
    """Remove the sentences without a citation; the result may be empty."""
    kept, position = [], 0
    for start, end in attribution.unsupported:
        kept.append(answer[position:start])
        position = end
    kept.append(answer[position:])
    return " ".join(part.strip() for part in kept if part.strip())


def is_in_other_language(language: Language, text: str, documents: Sequence[Document]) -> bool:
    """Return whether a sentence of a text is in another of our languages than ``language``.

    Short sentences do not count, nor do sentences that quote a document word for word.
    """
    quotable = [" ".join(document.page_content.split()) for document in documents]
    for sentence in split_sentences(text, language):
        if len(sentence.stems) < MIN_WORDS_FOR_LANGUAGE or not any(map(str.isalpha, sentence.text)):
            continue
        found, probability = identify_language(sentence.text)
        if found != language and probability >= FOREIGN_PROBABILITY:
            said = " ".join(sentence.text.split())
            if not any(said in quote for quote in quotable):
                return True
    return False


@dataclass(frozen=True)
class _Passage:
    """A span of a chunk."""

    document: Document
    start: int
    end: int


def _find_verbatim(sentence: str, documents: Sequence[Document]) -> _Passage | None:
    """Find a sentence word for word; white space may differ."""
    pattern = re.compile(r"\s+".join(re.escape(part) for part in sentence.split()))
    for document in documents:
        if match := pattern.search(document.page_content):
            return _Passage(document, match.start(), match.end())
    return None


def _find_best(sentence: Sentence, documents: Sequence[Document]) -> _Passage | None:
    """Find the document sentence that covers most of a sentence's words, if it covers enough of them.

    It must also contain every number of the sentence: a wrong amount in the right words is not supported.
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


def _cite(passage: _Passage, sentence: Sentence) -> Citation:
    metadata = passage.document.metadata
    mark = _ITEM_MARK.match(passage.document.page_content, passage.start, passage.end)
    if mark is not None:
        # Where the document has a list, its text has a mark that need not be in the file.
        passage = replace(passage, start=mark.end())
    offset = int(metadata.get("start", 0))
    return Citation(
        source=str(metadata.get("source", "")),
        title=str(metadata.get("title") or ""),
        page=page_of(metadata, offset + passage.start),
        heading=str(metadata.get("heading") or ""),
        start=offset + passage.start,
        end=offset + passage.end,
        quote=passage.document.page_content[passage.start : passage.end],
        answer_start=sentence.start,
        answer_end=sentence.end,
    )


def page_of(metadata: Mapping[str, Any], position: int) -> int | None:
    """Return the page of a position: a chunk that continues over a page break lists where its pages start."""
    page: int | None = metadata.get("page")
    for start, number in metadata.get("page_starts", ()):
        if start <= position:
            page = number
    return page
