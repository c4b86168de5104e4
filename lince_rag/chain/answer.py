"""``Answer`` and ``Citation``, what the chain returns; and the short answer within an answer's text."""

import re
from collections.abc import Sequence
from typing import Final, Literal

from langchain_core.documents import Document
from langchain_core.messages.ai import UsageMetadata
from pydantic import BaseModel, ConfigDict

from lince_rag.text.evidence import DOUBTFUL_CONFIDENCE
from lince_rag.text.language import LANGUAGES, Language, wording
from lince_rag.text.questions import (
    asks_for_end,
    asks_with_a_word,
    before_end,
    content_stems,
    function_words,
    kind_of,
)
from lince_rag.text.sentences import CELL_SEPARATOR, split_sentences
from lince_rag.text.words import Word, words

# How a passage begins that answers a question for yes or no in so many words.
_YES_OR_NO: Final = re.compile(r"(?:Sí|No|Sim|Não|Yes)(?=[,.;:!])")

# What the chain did to a model's answer, in the order it did it.
Correction = Literal["asked_again_for_language", "dropped_unsupported", "quoted_instead"]


class Citation(BaseModel):
    """A span of a document that supports one sentence of an answer.

    Attributes:
        source: The document's name, as listed by ``Index.sources``.
        title: The document's title; empty if it has none.
        page: Page on which the quote begins, from 1; ``None`` if the document has no pages.
        heading: Headings above the chunk that holds the quote, outermost first, joined by ``" › "``; empty if
            there are none.
        start: Character offset of the quote in the document's text, ``Index.text(source)``.
        end: Offset just after the quote: ``index.text(source)[start:end] == quote``.
        quote: The text of the span, verbatim.
        answer_start: Character offset, in the answer's text, of the sentence that the quote supports.
        answer_end: Offset just after that sentence.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    title: str = ""
    page: int | None = None
    heading: str = ""
    start: int
    end: int
    quote: str
    answer_start: int
    answer_end: int


class Answer(BaseModel):
    """An answer, its citations, and how it came about.

    Attributes:
        text: The answer, in ``language``.
        language: The question's language (``"es"``, ``"pt"`` or ``"en"``), unless the chain has a fixed one.
        short: The span of ``text`` that answers a question for a date, a number, a name or a place, or the "Sí" or
            "No" that it begins with; ``None`` for other questions, and if the text has no such span.
        citations: The supporting spans of the documents, in the order of the answer's sentences.
        documents: The chunks that were in the prompt, best first.
        grounded: Whether every sentence of the answer has a citation; false for an abstention.
        unsupported: (start, end) character offsets in ``text`` of the sentences without a citation.
        confidence: Calibrated chance, from 0 to 1, that passages quoted from the retrieved documents hold the
            answer; the chain abstains below its ``minimum_confidence``. ``None`` if the retriever does not measure
            it.
        corrections: What the chain did to the model's answer, in order. ``"asked_again_for_language"``: the first
            answer was in another language. ``"dropped_unsupported"``: sentences without a citation were removed.
            ``"quoted_instead"``: sentences quoted from the documents replaced the answer.
        standalone: The question that was searched for: a follow-up is rewritten as a standalone question,
            shorthand is spelled out, and words that no document has are corrected. Empty if nothing was searched
            for, because the message was only a greeting or thanks.
        abstained: Whether the answer says that the documents do not hold one.
        shortened: Retrieved chunks, in full, of which only the beginning was in the prompt.
        omitted: Retrieved chunks that did not fit into the prompt.
        omitted_turns: Number of messages, the oldest of the history, that did not fit into the prompt.
        usage: Tokens of the prompt and of the answer, a second attempt included, query rewriting not; ``None`` if
            the model does not report them.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    language: Language
    short: str | None = None
    citations: list[Citation] = []
    documents: list[Document] = []
    grounded: bool = False
    unsupported: list[tuple[int, int]] = []
    confidence: float | None = None
    corrections: list[Correction] = []
    standalone: str = ""
    abstained: bool = False
    shortened: list[Document] = []
    omitted: list[Document] = []
    omitted_turns: int = 0
    usage: UsageMetadata | None = None

    @property
    def doubtful(self) -> bool:
        """Whether an answer is given, but with little confidence (below 0.4)."""
        return not self.abstained and self.confidence is not None and self.confidence < DOUBTFUL_CONFIDENCE


def is_abstention(text: str) -> bool:
    """Return whether a text is the sentence that models are told to abstain with, in any of our languages."""
    said = text.strip(" .\"'«»").casefold()
    return any(said == wording("abstention", language).strip(".").casefold() for language in LANGUAGES)


def find_short_answer(question: str, answer: str, language: Language) -> str | None:
    """Return the span of an answer that gives the date, number, name or place that the question asks for.

    It is also the "Sí" or "No" that an answer to a question without a question word begins with.

    Among the spans that match the kind of question (``prompts/questions.toml``), it is one in the sentence that
    shares most words with the question, and the nearest to them; if that sentence is a row of a table, no other
    sentence counts. A number includes its unit, unless the question names the unit. If the question asks when
    something ends, it is the date or time after a word that says so: "del 1 de mayo al 30 de abril".
    """
    kind = kind_of(question, language)
    if kind is None:
        said = _YES_OR_NO.match(answer)
        return said[0] if said and not asks_with_a_word(question, language) else None
    asked = list(words(question, language))
    content = content_stems(asked, language)
    asked_words = {word.folded for word in asked}
    asks_end = kind.name in ("date", "time") and asks_for_end(question, language)
    # The sentence that shares most with the question is the likeliest to answer it.
    sentences = sorted(split_sentences(answer, language), key=lambda each: -len(content & set(each.stems)))
    for sentence in sentences:
        found = list(words(sentence.text, language))
        shared = [word for word in found if word.stem in content]
        for pattern in kind.spans:
            group = "span" if "span" in pattern.groupindex else 0
            matches = [
                match.span(group)
                for match in pattern.finditer(sentence.text)
                if _is_new(match[group], asked_words, language)
            ]
            if matches:
                ending = _last_ending(sentence.text, matches) if asks_end else None
                start, end = ending or min(matches, key=lambda span: (_distance(span, shared), span))
                if kind.name == "number":
                    end = _include_unit(sentence.text, end, found, asked_words, language)
                return sentence.text[start:end].strip(" ,")
        if CELL_SEPARATOR in sentence.text:
            # What another row says is about another thing.
            return None
    return None


def _is_new(span: str, asked_words: set[str], language: Language) -> bool:
    """Return whether a span has a content word that is not in the question."""
    ignored = asked_words | set(function_words(language))
    return any(word.folded not in ignored for word in words(span, language))


def _last_ending(text: str, spans: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the last of some dates that comes after "hasta", "termina" and the like, without one between."""
    ends = [match.end() for match in before_end().finditer(text)]
    following = (next((span for span in sorted(spans) if span[0] >= end), None) for end in ends)
    return max(filter(None, following), default=None)


def _distance(span: tuple[int, int], shared: list[Word]) -> int:
    """Return the number of characters between a span and the nearest word outside it that the question has."""
    start, end = span
    gaps = (
        max(word.start - end, start - word.end, 0) for word in shared if word.end <= start or word.start >= end
    )
    return min(gaps, default=0)


def _include_unit(text: str, end: int, found: list[Word], asked_words: set[str], language: Language) -> int:
    """Move the end of a number behind the word that follows it, if that word can be its unit."""
    following = next((word for word in found if word.start >= end), None)
    if following is None or text[end : following.start].strip() or text[end : following.start] == "":
        return end
    ignored = following.folded in asked_words or following.folded in function_words(language)
    return end if ignored or not following.text.isalpha() else following.end
