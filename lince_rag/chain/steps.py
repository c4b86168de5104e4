"""What the chain does between its calls of the retriever and of the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage

from lince_rag.chain.answers import Answer
from lince_rag.chain.bindings import AnyModel
from lince_rag.chain.concluding import Conclusion, conclude, refuse
from lince_rag.chain.conversation import REWRITING_TOKENS, REWRITINGS, Rewriter, Rewriting
from lince_rag.chain.grounding import POLICIES, OnUnsupported
from lince_rag.chain.packing import Prepared, prepare, reads_documents
from lince_rag.chain.requests import Request
from lince_rag.chain.streaming import OutgoingText
from lince_rag.errors import ConfigurationError
from lince_rag.text.language import LANGUAGES, Language


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
