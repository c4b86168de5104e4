"""Context packing: which retrieved chunks fit a token budget, whole or cut at a sentence end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from langchain_core.documents import Document

from lince_rag.text.language import detect_language
from lince_rag.text.sentences import sentence_spans

# Tokens of the number, the line breaks and the blank line that a template puts around a document's text.
TOKENS_AROUND: Final = 8


@dataclass(frozen=True)
class PackedContext:
    """What fits into a prompt, and what does not.

    Attributes:
        documents: The chunks as they go into the prompt, best first; the last one may be shortened.
        shortened: Chunks that were cut at a sentence end, whole as they were.
        omitted: Chunks that did not fit at all.
    """

    documents: list[Document] = field(default_factory=list)
    shortened: list[Document] = field(default_factory=list)
    omitted: list[Document] = field(default_factory=list)


def pack_context(documents: Sequence[Document], budget: int, count_tokens: Callable[[str], int]) -> PackedContext:
    """Choose the chunks that go into a prompt.

    Chunks are taken in order while they fit. The first that does not fit is cut after the last sentence that
    does; those behind it are left out. Nothing is lost silently: the result lists both.

    Args:
        documents: Retrieved chunks, best first.
        budget: Tokens that the context may take.
        count_tokens: Counts the tokens of a text the way the model does.

    Returns:
        The packed context.
    """
    packed = PackedContext()
    left = budget
    for position, document in enumerate(documents):
        around = TOKENS_AROUND + count_tokens(str(document.metadata.get("title") or ""))
        needed = around + count_tokens(document.page_content)
        if needed <= left:
            packed.documents.append(document)
            left -= needed
            continue
        rest = list(documents[position:])
        if (shorter := _shorten(document, left - around, count_tokens)) is not None:
            packed.documents.append(shorter)
            packed.shortened.append(rest.pop(0))
        packed.omitted.extend(rest)
        break
    return packed


def _shorten(document: Document, budget: int, count_tokens: Callable[[str], int]) -> Document | None:
    """Cut a chunk after the last sentence that fits; ``None`` when not even the first does."""
    text = document.page_content
    language = document.metadata.get("language") or detect_language(text)
    ends = [end for _, end in sentence_spans(text, language)]
    fitting, too_long = 0, len(ends)
    # Binary search: the token count grows with the text.
    while fitting < too_long:
        middle = (fitting + too_long + 1) // 2
        if count_tokens(text[: ends[middle - 1]]) <= budget:
            fitting = middle
        else:
            too_long = middle - 1
    if not fitting:
        return None
    cut = text[: ends[fitting - 1]]
    metadata: Mapping[str, Any] = document.metadata
    if "start" in metadata:
        metadata = {**metadata, "end": metadata["start"] + len(cut)}
    return document.model_copy(update={"page_content": cut, "metadata": metadata})
