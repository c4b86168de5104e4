"""The embedded engine: answers with passages of the documents, word for word, or abstains. It has no weights.

Which passages, ``text/evidence.py`` has learned.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from lince_rag.engines.base import Engine, FinishReason, Generation, GenerationSettings, check_window
from lince_rag.prompting.templates import Prompt
from lince_rag.text.evidence import MINIMUM_CONFIDENCE, Evidence, strongest_confidence
from lince_rag.text.language import Language, detect_language, wording
from lince_rag.text.passages import summarize
from lince_rag.text.questions import asks_for

EXTRACTIVE: Final = "extractive"

# How much of a question the documents must cover if no retriever has measured the confidence. Measured on XQuAD-es
# and FaQuAD: half of the articles, asked about the other half.
MINIMUM_COVERAGE: Final = 0.33

_TOKEN: Final = re.compile(r"\s*\S+(?:\s+\Z)?")
_LEADING_MARKS: Final = re.compile(r"\A(?:[-*•·+>]\s+|\d{1,2}[.)]\s+|#{1,6}\s+)+")


class ExtractiveEngine(Engine):
    """Quotes the passages that best answer the question, or abstains; a token is a run without white space."""

    quotes = True

    def __init__(self, context_window: int) -> None:
        self.context_window = context_window

    def count_tokens(self, text: str) -> int:
        """Count the words of a text."""
        return len(text.split())

    def stream(self, prompt: Prompt, settings: GenerationSettings) -> Iterator[Generation]:
        """Yield the answer word by word."""
        length = self.measure(prompt).length or 0
        check_window(EXTRACTIVE, length, self.context_window)
        question = next((turn["content"] for turn in reversed(prompt.messages) if turn["role"] == "user"), "")
        language = settings.language or detect_language(question)
        quotes = select_passages(question, prompt.documents, language, settings.minimum_confidence)
        without = "abstention" if prompt.documents else "no_documents_given"
        text = "\n\n".join(quotes) or wording(without, language)
        text = text[: min((at for stop in settings.stop if (at := text.find(stop)) >= 0), default=len(text))]
        tokens = _TOKEN.findall(text)
        reason: FinishReason = "stop"
        if settings.max_tokens is not None and len(tokens) > settings.max_tokens:
            tokens, reason = tokens[: settings.max_tokens], "length"
        for token in tokens:
            yield Generation(token, length, 1, abstained=not quotes)
        yield Generation("", length, 0, reason, abstained=not quotes)


def select_passages(
    question: str,
    documents: Sequence[Mapping[str, Any]],
    language: Language,
    minimum_confidence: float = MINIMUM_CONFIDENCE,
) -> list[str]:
    """Return the passages that answer a question; none if the confidence is below ``minimum_confidence``.

    A question for a summary of the documents gets their central sentences.

    Documents are dicts, best first, with ``text`` and what ``Evidence`` reads besides.
    """
    confidence = strongest_confidence(documents)
    if documents and confidence is None and asks_for("summaries", question, language):
        texts = [documents[number]["text"][start:end] for number, start, end in summarize(documents)]
        return list(dict.fromkeys(texts))
    evidence = Evidence(question, language, documents)
    if confidence is None:
        # The confidence was learned with a retriever.
        confidence = evidence.coverage
        minimum_confidence *= MINIMUM_COVERAGE / MINIMUM_CONFIDENCE
    if confidence < minimum_confidence or not evidence.has_words:
        return []
    texts = [documents[span.document]["text"][span.start : span.end] for span in evidence.passages()]
    return list(dict.fromkeys(_LEADING_MARKS.sub("", text) for text in texts))
