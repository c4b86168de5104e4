"""One question on its way through the chain: read from the chain's input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.messages.utils import MessageLikeRepresentation, convert_to_messages
from pydantic import BaseModel, ConfigDict

from lince_rag.errors import ConfigurationError
from lince_rag.text.language import DEFAULT_LANGUAGE, Language, detect_language


class Conversation(BaseModel):
    """The input of a chain where there is more than a question; a dict of the same keys is as good.

    Attributes:
        question: The question.
        history: The messages before it, in any form that LangChain takes them.
    """

    model_config = ConfigDict(extra="forbid")

    question: str
    history: Sequence[MessageLikeRepresentation] = ()


RagInput = str | Mapping[str, Any] | Conversation


@dataclass(frozen=True)
class Request:
    """One question on its way to the model.

    Attributes:
        question: The question.
        language: The language to answer in.
        history: The earlier messages.
        standalone: The question made whole, where it follows others; else the question.
        reminder: What the model is told after the question, where it has to be told twice.
    """

    question: str
    language: Language
    history: list[BaseMessage]
    standalone: str
    reminder: str = ""


def read_request(given: RagInput, language: Language | None) -> Request:
    """Check the input of a chain and settle the language.

    Args:
        given: A question, or a dict with ``question`` and ``history``.
        language: The language to answer in; ``None`` takes the question's.

    Returns:
        The request.

    Raises:
        ConfigurationError: There is no question, or there are keys that mean nothing here.
    """
    if isinstance(given, str):
        given = {"question": given}
    elif isinstance(given, Conversation):
        given = dict(given)
    question = given.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ConfigurationError(
            f"{question!r} is not a question.", hint="Give a text, or a dict with 'question' and 'history'."
        )
    if unknown := given.keys() - {"question", "history"}:
        raise ConfigurationError(
            f"The input has unknown keys: {', '.join(sorted(unknown))}.", hint="It takes question and history."
        )
    history = convert_to_messages(given.get("history") or [])
    earlier = [str(turn.text) for turn in history if isinstance(turn, HumanMessage)]
    default = detect_language(" ".join(earlier)) if earlier else DEFAULT_LANGUAGE
    return Request(question, language or detect_language(question, default), history, question)
