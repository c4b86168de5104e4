"""From a model's reply to the ``Answer``: language, support, citations; asking again, quoting where they fail."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata, add_usage

from lince_rag.chain.answer import Answer, Correction, find_short_answer, is_abstention
from lince_rag.chain.bindings import AnyModel
from lince_rag.chain.grounding import POLICIES, OnUnsupported, drop_unsupported, ground, slips_from
from lince_rag.chain.packing import Prepared, prepare, reads_documents
from lince_rag.chain.question import REWRITING_TOKENS, REWRITINGS, Request, Rewriter, Rewriting
from lince_rag.chain.streaming import OutgoingText
from lince_rag.errors import ConfigurationError
from lince_rag.models.chat_model import ChatLince
from lince_rag.text.language import LANGUAGES, Language
from lince_rag.text.wording import wording

# Yields what the model is to be asked again, is sent its reply, and returns the answer.
Conclusion = Generator[Prepared, BaseMessage | None, Answer]


def refuse(request: Request, confidence: float | None) -> Answer:
    """Abstain without asking a model.

    Args:
        request: The question.
        confidence: How far the retrieved chunks carry an answer, where that is known.

    Returns:
        The abstention.
    """
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

    A reply in another language than the question's is asked for once more, with a reminder of the language; if it
    slips again, the documents are quoted in its place. What happens to sentences that no document supports is for
    ``on_unsupported`` to say.

    Args:
        request: The question.
        prepared: What the model got.
        reply: What it said.
        on_unsupported: ``"flag"``, ``"drop"`` or ``"extract"``.
        prepare_again: Prepares the question with a reminder.

    Yields:
        What the model is to be asked again; send its reply.

    Returns:
        The answer.
    """
    corrections: list[Correction] = []
    text, usage = str(reply.text).strip(), _usage(reply)
    if slips_from(request.language, text, prepared.packed.documents):
        corrections.append("asked_again_for_language")
        prepared = prepare_again(replace(request, reminder=wording("answer_in", request.language)))
        second = yield prepared
        if second is not None:
            reply, text, usage = second, str(second.text).strip(), _sum(usage, _usage(second))
        if slips_from(request.language, text, prepared.packed.documents):
            return _answer(request, prepared, _quote(request, prepared), usage, [*corrections, "quoted_instead"])
    if _abstains(reply) or on_unsupported == "flag":
        return _answer(request, prepared, reply, usage, corrections)
    grounding = ground(text, prepared.packed.documents, request.language)
    if not grounding.unsupported:
        return _answer(request, prepared, reply, usage, corrections)
    if on_unsupported == "extract":
        return _answer(request, prepared, _quote(request, prepared), usage, [*corrections, "quoted_instead"])
    kept = AIMessage(drop_unsupported(text, grounding) or wording("abstention", request.language))
    return _answer(request, prepared, kept, usage, [*corrections, "dropped_unsupported"])


def advance(conclusion: Conclusion, reply: BaseMessage | None) -> Prepared | Answer:
    """Go on to the next question for the model, or to the answer.

    Args:
        conclusion: What ``conclude`` gives.
        reply: The model's reply to the question before; ``None`` at first.

    Returns:
        The question or the answer.
    """
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
    """Cite what was said."""
    text, abstained, packed = str(reply.text).strip(), _abstains(reply), prepared.packed
    grounding = ground("" if abstained else text, packed.documents, request.language)
    retrieved = [*packed.documents, *packed.omitted]
    confidences = [
        float(measured) for each in retrieved if (measured := each.metadata.get("confidence")) is not None
    ]
    return Answer(
        text=text,
        language=request.language,
        short=None if abstained else find_short_answer(request.standalone, text, request.language),
        citations=grounding.citations,
        documents=packed.documents,
        grounded=grounding.grounded,
        unsupported=grounding.unsupported,
        confidence=max(confidences, default=None),
        corrections=corrections,
        standalone=request.standalone,
        abstained=abstained,
        shortened=packed.shortened,
        omitted=packed.omitted,
        omitted_turns=prepared.omitted_turns,
        usage=usage,
    )


def _abstains(reply: BaseMessage) -> bool:
    return is_abstention(str(reply.text)) or bool(reply.response_metadata.get("abstained"))


def _usage(reply: BaseMessage) -> UsageMetadata | None:
    return reply.usage_metadata if isinstance(reply, AIMessage) else None


def _sum(first: UsageMetadata | None, second: UsageMetadata | None) -> UsageMetadata | None:
    return add_usage(first, second) if first or second else None


def _quote(request: Request, prepared: Prepared) -> AIMessage:
    """Answer with sentences of the documents, word for word."""
    return ChatLince().invoke(
        [HumanMessage(request.standalone)], documents=prepared.packed.documents, language=request.language
    )


@dataclass(frozen=True)
class ChainSettings:
    """How a chain answers; ``create_rag_chain`` says what each means.

    Raises:
        ConfigurationError: A value is out of its range.
    """

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
    """The steps for one model.

    Attributes:
        model: The model that the prompt is for.
        settings: How the chain answers.
    """

    model: AnyModel
    settings: ChainSettings

    @cached_property
    def _quotes(self) -> bool:
        return bool(getattr(self.model, "quotes", False))

    @property
    def _rewriter(self) -> Rewriter:
        return Rewriter(self.settings.rewriting, self._quotes)

    def ask_to_rewrite(self, request: Request) -> tuple[list[BaseMessage], dict[str, Any]] | None:
        """Write what the model is asked to make a follow-up question whole.

        Args:
            request: The question.

        Returns:
            Messages and keywords of the call; ``None`` where it is not for the model to do.
        """
        asked = self._rewriter.prompt(request)
        options = {"max_tokens": REWRITING_TOKENS} if reads_documents(self.model) else {}
        return (asked, options) if asked else None

    def rewrite(self, request: Request, reply: BaseMessage | None) -> Request:
        """Make a follow-up question whole.

        Args:
            request: The question.
            reply: What the model said, if it was asked.

        Returns:
            The request with its ``standalone`` question.
        """
        return self._rewriter.rewrite(request, reply)

    def refuse(self, request: Request, documents: Sequence[Document]) -> Answer | None:
        """Abstain without asking the model, where the retriever says that the chunks do not hold an answer.

        A question that follows others is often only half of one ("¿Y en 2020?"): unless it was made whole, the
        model decides there.

        Args:
            request: The question.
            documents: The retrieved chunks.

        Returns:
            The abstention; ``None`` where the model is to be asked.
        """
        minimum = self.settings.minimum_confidence
        if not minimum or (request.history and self.settings.rewriting == "off"):
            return None
        confidences = [
            float(confidence) for each in documents if (confidence := each.metadata.get("confidence")) is not None
        ]
        if not documents or (confidences and max(confidences) < minimum):
            return refuse(request, max(confidences, default=None))
        return None

    def prepare(self, request: Request, documents: Sequence[Document]) -> Prepared:
        """Fit history and chunks into the window.

        Args:
            request: The question.
            documents: The retrieved chunks.

        Returns:
            What the model gets.
        """
        return prepare(
            self.model,
            request,
            documents,
            max_context_tokens=self.settings.max_context_tokens,
            minimum_confidence=self.settings.minimum_confidence,
        )

    def outgoing(self, request: Request, prepared: Prepared) -> OutgoingText:
        """Make what passes on the pieces of a stream.

        Args:
            request: The question.
            prepared: What the model gets.

        Returns:
            Takes the model's pieces.
        """
        documents = prepared.packed.documents
        return OutgoingText(request.language, documents, self.settings.on_unsupported, quotes=self._quotes)

    def conclude(
        self, request: Request, prepared: Prepared, documents: Sequence[Document], reply: BaseMessage
    ) -> Conclusion:
        """Turn a reply into the answer.

        Args:
            request: The question.
            prepared: What the model got.
            documents: The retrieved chunks.
            reply: What it said.

        Returns:
            Yields what the model is to be asked again, and returns the answer.
        """
        return conclude(
            request,
            prepared,
            reply,
            self.settings.on_unsupported,
            lambda reminded: self.prepare(reminded, documents),
        )
