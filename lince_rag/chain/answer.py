"""Answer and Citation: what the chain returns; and the short answer within the text."""

from typing import Literal

from langchain_core.documents import Document
from langchain_core.messages.ai import UsageMetadata
from pydantic import BaseModel, ConfigDict

from lince_rag.text.language import LANGUAGES, Language
from lince_rag.text.questions import content_stems, function_words, kind_of
from lince_rag.text.sentences import split_sentences
from lince_rag.text.wording import wording
from lince_rag.text.words import Word, words

# What the chain did to a model's answer, in the order it did it.
Correction = Literal["asked_again_for_language", "dropped_unsupported", "quoted_instead"]


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


class Answer(BaseModel):
    """An answer and what it rests on.

    Attributes:
        text: The answer, in the language of the question.
        language: That language.
        short: The stretch of ``text`` that says it in fewest words, where the question asks for a date, a number,
            a name or a place and the answer has one.
        citations: The stretches of the documents that support it, in the order of its sentences.
        documents: The chunks that were in the prompt, best first.
        grounded: Whether every sentence of the answer has a citation; an abstention has none.
        unsupported: (start, end) character offsets in ``text`` of the sentences without a citation.
        confidence: How far the retrieved documents cover the question: what abstention goes by; ``None`` where the
            retriever does not measure relevance.
        corrections: What the chain did to the model's answer, in order: asked again because it was in another
            language, dropped sentences without support, quoted the documents in its place.
        standalone: The question that was searched for: a follow-up is made whole first.
        abstained: Whether the answer says that the documents do not hold it.
        shortened: Retrieved chunks of which only the beginning was in the prompt.
        omitted: Retrieved chunks that did not fit into the prompt.
        omitted_turns: Messages of the history, the oldest, that did not fit into the prompt.
        usage: Tokens of the prompt and of the answer, where the model counts them.
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


def is_abstention(text: str) -> bool:
    """Tell whether a text is the sentence that models are told to abstain with.

    Args:
        text: An answer.

    Returns:
        Whether it is that sentence, in any of our languages.
    """
    said = text.strip(" .\"'«»").casefold()
    return any(said == wording("abstention", language).strip(".").casefold() for language in LANGUAGES)


def find_short_answer(question: str, answer: str, language: Language) -> str | None:
    """Find the stretch of an answer that says it in fewest words.

    Of the stretches that look like what is asked for (``prompts/questions.toml``) it is the one nearest to the
    words that the answer shares with the question. A number takes the word after it along, its unit, unless the
    question names it.

    Args:
        question: The question.
        answer: The answer.
        language: Their language.

    Returns:
        The stretch, verbatim; ``None`` where the question asks for something else, or there is no such stretch.
    """
    kind = kind_of(question, language)
    if kind is None:
        return None
    asked = list(words(question, language))
    content = content_stems(asked, language)
    said_before = {word.folded for word in asked}
    for sentence in split_sentences(answer, language):
        found = list(words(sentence.text, language))
        shared = [word for word in found if word.stem in content]
        for pattern in kind.spans:
            group = "span" if "span" in pattern.groupindex else 0
            matches = [
                match.span(group)
                for match in pattern.finditer(sentence.text)
                if _is_new(match[group], said_before, language)
            ]
            if matches:
                start, end = min(matches, key=lambda span: (_distance(span, shared), span))
                if kind.name == "number":
                    end = _with_unit(sentence.text, end, found, said_before, language)
                return sentence.text[start:end].strip(" ,")
    return None


def _is_new(text: str, said_before: set[str], language: Language) -> bool:
    """Tell whether a stretch says something that the question has not, beyond function words."""
    return any(
        word.folded not in said_before and word.folded not in function_words(language)
        for word in words(text, language)
    )


def _distance(span: tuple[int, int], shared: list[Word]) -> int:
    """Characters between a stretch and the nearest word that is in the question, too."""
    start, end = span
    gaps = (
        max(word.start - end, start - word.end, 0) for word in shared if word.end <= start or word.start >= end
    )
    return min(gaps, default=0)


def _with_unit(text: str, end: int, found: list[Word], said_before: set[str], language: Language) -> int:
    """Take the word after a number along, unless the question names it or it is no unit."""
    following = next((word for word in found if word.start >= end), None)
    if following is None or text[end : following.start].strip() or text[end : following.start] == "":
        return end
    ignored = following.folded in said_before or following.folded in function_words(language)
    return end if ignored or not following.text.isalpha() else following.end
