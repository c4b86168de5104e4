"""The steps of a chain: rewrite, refuse or prepare; then from the model's reply to the ``Answer``.

A reply in the wrong language is asked for again; where the model fails, the documents are quoted instead.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata, add_usage

from lince_rag.chain.answer import Answer, Correction, find_short_answer, is_abstention
from lince_rag.chain.bindings import AnyModel
from lince_rag.chain.grounding import POLICIES, OnUnsupported, attribute, drop_unsupported, is_in_other_language
from lince_rag.chain.packing import Prepared, prepare, reads_documents
from lince_rag.chain.question import REWRITING_TOKENS, REWRITINGS, Request, Rewriter, Rewriting
from lince_rag.chain.streaming import AnswerStream
from lince_rag.errors import ConfigurationError
from lince_rag.models.chat_model import ChatLince
from lince_rag.text.confidence import strongest_confidence
from lince_rag.text.language import LANGUAGES, Language
from lince_rag.text.wording import wording

# Yields what the model is to be asked again, is sent its reply, and returns the answer.
Conclusion = Generator[Prepared, BaseMessage | None, Answer]


@dataclass(frozen=True)
class ChainSettings:
    """How a chain answers; ``create_rag_chain`` explains each setting."""

    language: Language | None
    max_context_tokens: int | None
    on_unsupported: OnUnsupported
    minimum_confidence: float
    rewriting: Rewriting

    def __post_init__(self) -> None:
        for name, value, known in (
            ("language", self.language, (None, *LANGUAGES)),
            ("on_unsupported", self.on_unsupported, POLICIES),
            ("rewriting", self.rewriting, REWRITINGS),
        ):
            if value not in known:
                raise ConfigurationError(f"{name}={value!r} is not one of {', '.join(filter(None, known))}.")
        if not 0.0 <= self.minimum_confidence <= 1.0:
            raise ConfigurationError(f"minimum_confidence={self.minimum_confidence} is not between 0 and 1.")


@dataclass(frozen=True)
class Steps:
    """The steps of a chain for one model, in the order in which they are taken."""

    model: AnyModel
    settings: ChainSettings

    # Only known once the model's engine is there, which takes time.
    @cached_property
    def _quotes(self) -> bool:
        return bool(getattr(self.model, "quotes", False))

    @property
    def rewriter(self) -> Rewriter:
        """What rewrites a follow-up question."""
        return Rewriter(self.settings.rewriting, self._quotes)

    def rewriting_call(self, request: Request) -> tuple[list[BaseMessage], dict[str, Any]] | None:
        """Return messages and keywords of the call that rewrites the question; ``None`` if it is not needed."""
        prompt = self.rewriter.prompt(request)
        options = {"max_tokens": REWRITING_TOKENS} if reads_documents(self.model) else {}
        return (prompt, options) if prompt else None

    def refuse(self, request: Request, documents: Sequence[Document]) -> Answer | None:
        """Abstain without asking the model if the confidence in the retrieved chunks is below the minimum.

        The confidence in a follow-up that was not rewritten ("¿Y en 2020?") is not reliable, so the model decides.
        """
        minimum = self.settings.minimum_confidence
        if not minimum or (request.history and self.settings.rewriting == "off"):
            return None
        confidence = strongest_confidence(document.metadata for document in documents)
        if not documents or (confidence is not None and confidence < minimum):
            return refuse(request, confidence)
        return None

    def prepare(self, request: Request, documents: Sequence[Document]) -> Prepared:
        """Fit history and chunks into the window."""
        return prepare(
            self.model,
            request,
            documents,
            max_context_tokens=self.settings.max_context_tokens,
            minimum_confidence=self.settings.minimum_confidence,
        )

    def answer_stream(self, request: Request, prepared: Prepared) -> AnswerStream:
        """Return what decides which pieces of the model's reply can go out."""
        documents = prepared.packed.documents
        return AnswerStream(request.language, documents, self.settings.on_unsupported, quotes=self._quotes)

    def conclude(
        self, request: Request, prepared: Prepared, documents: Sequence[Document], reply: BaseMessage
    ) -> Conclusion:
        """Turn the model's reply into the answer; ``documents`` are the retrieved chunks."""
        policy = self.settings.on_unsupported
        return conclude(request, prepared, reply, policy, lambda reminded: self.prepare(reminded, documents))


def refuse(request: Request, confidence: float | None) -> Answer:
    """Return the abstention of a chain that does not ask the model."""
    text = wording("abstention", request.language)
    return Answer(
        text=text, language=request.language, abstained=True, confidence=confidence, standalone=request.standalone
    )


def conclude(
    request: Request,
    prepared: Prepared,
    reply: BaseMessage,
    on_unsupported: OnUnsupported,
    prepare_again: Callable[[Request], Prepared],
) -> Conclusion:
    """Check a reply and turn it into the answer.

    A reply in another language than the request's is asked for once more, with a reminder of the language. If that
    one is in another language too, the documents are quoted instead. ``on_unsupported`` decides about sentences
    without a citation.
    """
    corrections: list[Correction] = []
    text, usage = _text(reply), _usage(reply)
    if is_in_other_language(request.language, text, prepared.packed.documents):
        corrections.append("asked_again_for_language")
        prepared = prepare_again(replace(request, reminder=wording("answer_in", request.language)))
        second = yield prepared
        if second is not None:
            reply, text, usage = second, _text(second), _sum(usage, _usage(second))
        if is_in_other_language(request.language, text, prepared.packed.documents):
            return _answer(request, prepared, _quote(request, prepared), usage, [*corrections, "quoted_instead"])
    if _abstains(reply) or on_unsupported == "flag":
        return _answer(request, prepared, reply, usage, corrections)
    attribution = attribute(text, prepared.packed.documents, request.language)
    if not attribution.unsupported:
        return _answer(request, prepared, reply, usage, corrections)
    if on_unsupported == "extract":
        return _answer(request, prepared, _quote(request, prepared), usage, [*corrections, "quoted_instead"])
    kept = AIMessage(drop_unsupported(text, attribution) or wording("abstention", request.language))
    return _answer(request, prepared, kept, usage, [*corrections, "dropped_unsupported"])


def advance(conclusion: Conclusion, reply: BaseMessage | None) -> Prepared | Answer:
    """Send the model's reply (``None`` at first) and return its next call, or the answer."""
    try:
        return conclusion.send(reply)
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer


def _answer(
    request: Request,
    prepared: Prepared,
    reply: BaseMessage,
    usage: UsageMetadata | None,
    corrections: list[Correction],
) -> Answer:
    text, abstained, packed = _text(reply), _abstains(reply), prepared.packed
    attribution = attribute("" if abstained else text, packed.documents, request.language)
    retrieved = [*packed.documents, *packed.omitted]
    return Answer(
        text=text,
        language=request.language,
        short=None if abstained else find_short_answer(request.standalone, text, request.language),
        citations=attribution.citations,
        documents=packed.documents,
        grounded=attribution.grounded,
        unsupported=attribution.unsupported,
        confidence=strongest_confidence(document.metadata for document in retrieved),
        corrections=corrections,
        standalone=request.standalone,
        abstained=abstained,
        shortened=packed.shortened,
        omitted=packed.omitted,
        omitted_turns=prepared.omitted_turns,
        usage=usage,
    )


def _quote(request: Request, prepared: Prepared) -> AIMessage:
    """Answer with sentences of the documents, word for word."""
    return ChatLince().invoke(
        [HumanMessage(request.standalone)], documents=prepared.packed.documents, language=request.language
    )


def _text(reply: BaseMessage) -> str:
    return str(reply.text).strip()


def _abstains(reply: BaseMessage) -> bool:
    return is_abstention(str(reply.text)) or bool(reply.response_metadata.get("abstained"))


def _usage(reply: BaseMessage) -> UsageMetadata | None:
    return reply.usage_metadata if isinstance(reply, AIMessage) else None


def _sum(first: UsageMetadata | None, second: UsageMetadata | None) -> UsageMetadata | None:
    return add_usage(first, second) if first or second else None
