"""The question of a chain: reading its input, and rewriting a follow-up so that it can be understood alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.utils import MessageLikeRepresentation, convert_to_messages
from pydantic import BaseModel, ConfigDict

from lince_rag.chain.grounding import slips_from
from lince_rag.errors import ConfigurationError
from lince_rag.text.language import DEFAULT_LANGUAGE, Language, detect_language
from lince_rag.text.questions import function_words, names_its_subject, refers_back, replaceable_patterns
from lince_rag.text.wording import wording
from lince_rag.text.words import words


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


Rewriting = Literal["auto", "model", "rules", "off"]
REWRITINGS: Final[tuple[Rewriting, ...]] = ("auto", "model", "rules", "off")

# A question of fewer content words, after others, is taken to be half of one, unless it names what it is about.
WHOLE_QUESTION_WORDS: Final = 2

# Tokens that a model may take to make a question whole.
REWRITING_TOKENS: Final = 96

# Turns that a model is shown to rewrite a question: what it points back to is rarely further away.
SHOWN_TURNS: Final = 6

# A rewritten question of more than so many times the words of both questions is no question any more.
LONGEST_REWRITING: Final = 2


@dataclass(frozen=True)
class Rewriter:
    """Makes follow-up questions whole.

    Attributes:
        by: ``"model"``, ``"rules"`` or ``"off"``; ``"auto"`` is the model, unless it only quotes.
        quotes: Whether the model only quotes.
    """

    by: Rewriting
    quotes: bool

    def prompt(self, request: Request) -> list[BaseMessage] | None:
        """Write what to ask the model.

        Args:
            request: The question.

        Returns:
            The messages; ``None`` where it is not for the model to do.
        """
        by_model = self.by == "model" or (self.by == "auto" and not self.quotes)
        if not by_model or not needs_rewriting(request.question, request.history, request.language):
            return None
        return rewriting_prompt(request.question, request.history, request.language)

    def rewrite(self, request: Request, reply: BaseMessage | None) -> Request:
        """Make the question whole.

        Args:
            request: The question.
            reply: What the model said to ``prompt``, if it was asked.

        Returns:
            The request with its ``standalone`` question.
        """
        if self.by == "off":
            return request
        asked = (request.question, request.history, request.language)
        whole = rewrite_by_rules(*asked) if reply is None else accept_rewriting(str(reply.text), *asked)
        return replace(request, standalone=whole)


def asked_before(history: Sequence[BaseMessage]) -> list[str]:
    """Return the questions of a conversation.

    Args:
        history: The messages so far.

    Returns:
        The texts of the human ones, oldest first.
    """
    return [text for turn in history if isinstance(turn, HumanMessage) and (text := str(turn.text).strip())]


def needs_rewriting(question: str, history: Sequence[BaseMessage], language: Language) -> bool:
    """Tell whether a question can only be understood after the ones before it.

    Args:
        question: The question.
        history: The messages so far.
        language: The question's language.

    Returns:
        Whether there are earlier questions and it points back, or is very short and names nothing.
    """
    if not asked_before(history):
        return False
    return _is_half(question, language)


def rewrite_by_rules(question: str, history: Sequence[BaseMessage], language: Language) -> str:
    """Make a follow-up question whole without a model.

    Where it names only the like of something in the question before (a year, a month, an ordinal, a name), that
    is put in its place: "¿Cuántos habitantes tenía Burgos en 2010?", "¿Y en 2020?" → "¿Cuántos habitantes tenía
    Burgos en 2020?". Otherwise what the question before was about is added to it, in brackets.

    Args:
        question: The question.
        history: The messages so far.
        language: The question's language.

    Returns:
        The whole question; the question as it is where it does not follow another.
    """
    if not needs_rewriting(question, history, language):
        return question
    previous = ""
    for earlier in asked_before(history):
        previous = _join(earlier, previous, language) if previous and _is_half(earlier, language) else earlier
    return _join(question, previous, language)


def rewriting_prompt(question: str, history: Sequence[BaseMessage], language: Language) -> list[BaseMessage]:
    """Write the messages that ask a model to make a question whole.

    Args:
        question: The question.
        history: The messages so far.
        language: The question's language.

    Returns:
        The instruction, and the last turns with the question as one human message: content, not turns to go on
        with.
    """
    turns = [
        f"{wording('question' if isinstance(turn, HumanMessage) else 'answer', language)}: {turn.text}"
        for turn in history[-SHOWN_TURNS:]
    ]
    asked = f"{wording('question', language)}: {question}"
    return [SystemMessage(wording("rewrite", language)), HumanMessage("\n".join([*turns, asked]))]


def accept_rewriting(reply: str, question: str, history: Sequence[BaseMessage], language: Language) -> str:
    """Take a model's rewriting if it is one, else that of the rules.

    Args:
        reply: What the model said.
        question: The question.
        history: The messages so far.
        language: The question's language.

    Returns:
        The first line of the reply, unless it is empty, in another language, or longer than both questions
        together could be.
    """
    line = reply.strip().partition("\n")[0].strip()
    line = line.removeprefix(f"{wording('question', language)}:").strip()
    longest = LONGEST_REWRITING * len(" ".join([question, *asked_before(history)[-1:]]).split())
    if not line or len(line.split()) > longest or slips_from(language, line, ()):
        return rewrite_by_rules(question, history, language)
    return line


def _is_half(question: str, language: Language) -> bool:
    if refers_back(question, language):
        return True
    short = len(_content_words(question, language)) < WHOLE_QUESTION_WORDS
    return short and not names_its_subject(question, language)


def _content_words(question: str, language: Language) -> list[str]:
    ignored = function_words(language)
    return [word.folded for word in words(question, language) if word.folded not in ignored]


def _join(question: str, previous: str, language: Language) -> str:
    """Put a follow-up and the whole question before it together."""
    new = question
    whole = previous
    for pattern in replaceable_patterns():
        ours, theirs = pattern.search(new), pattern.search(whole)
        if ours and theirs and ours.group().casefold() != theirs.group().casefold():
            whole = whole[: theirs.start()] + ours.group() + whole[theirs.end() :]
            new = new[: ours.start()] + new[ours.end() :]
    replaced = new != question
    if replaced and not set(_content_words(new, language)) - set(_content_words(previous, language)):
        return whole
    said = {word.folded for word in words(question, language)} | set(function_words(language))
    carried = [word for word in words(whole, language) if word.folded not in said]
    about = " ".join(whole[word.start : word.end] for word in carried)
    return f"{question} ({about})" if about else question
