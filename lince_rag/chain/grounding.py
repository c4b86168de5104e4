"""What an answer rests on: its citations, the sentences without one, and whether it is in the asker's language."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from langchain_core.documents import Document

from lince_rag.chain.citations import Citation, attribute
from lince_rag.text.language import Language, identify_language
from lince_rag.text.sentences import split_sentences

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
