"""The question of a chain: its input, and the rewriting of a follow-up as a standalone question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.utils import MessageLikeRepresentation, convert_to_messages
from pydantic import BaseModel, ConfigDict

from lince_rag.chain.answer import is_abstention
from lince_rag.chain.grounding import is_in_other_language
from lince_rag.errors import ConfigurationError
from lince_rag.text.language import DEFAULT_LANGUAGE, Language, told_language, wording
from lince_rag.text.questions import (
    continues,
    function_words,
    is_small_talk,
    names_its_subject,
    refers_back,
    replaceable_patterns,
)
from lince_rag.text.words import words

Rewriting = Literal["auto", "model", "rules", "off"]
REWRITINGS: Final[tuple[Rewriting, ...]] = ("auto", "model", "rules", "off")

# A follow-up with fewer content words is taken to be incomplete, unless it names its subject.
MIN_CONTENT_WORDS: Final = 2

# Characters of an answer that can be searched for together with the question after it: a longer one says too much
# besides.
SHORT_ANSWER_CHARACTERS: Final = 80

# Tokens that a model may take to rewrite a question.
REWRITING_TOKENS: Final = 96

# Messages of the history that a model sees to rewrite a question: what it refers to is rarely further back.
SHOWN_MESSAGES: Final = 6

# A rewriting with more than this many times the words of both questions is not a question.
MAX_LENGTH_RATIO: Final = 2


class Conversation(BaseModel):
    """A question and the messages before it: the input of a chain, also accepted as a dict with the same keys.

    Attributes:
        question: The question, not empty.
        history: The earlier messages, oldest first, in any form that LangChain accepts: messages,
            ``("human", "…")`` tuples, or dicts with ``role`` and ``content``.
    """

    model_config = ConfigDict(extra="forbid")

    question: str
    history: Sequence[MessageLikeRepresentation] = ()


RagInput = str | Mapping[str, Any] | Conversation


@dataclass(frozen=True)
class Request:
    """A question, the language to answer in, and the messages before it."""

    question: str
    language: Language
    history: list[BaseMessage]
    # The question rewritten as a standalone one, if it is a follow-up; else the question.
    standalone: str
    # What the model is told after the question when it is asked for the second time.
    reminder: str = ""
    # Whether neither the question nor those before it tell the language.
    undecided: bool = False


def read_request(given: RagInput, language: Language | None) -> Request:
    """Check the input of a chain; a ``language`` of ``None`` is taken from the question, then from the history."""
    if isinstance(given, str):
        given = {"question": given}
    elif isinstance(given, Conversation):
        given = dict(given)
    question = given.get("question")
    if not isinstance(question, str):
        raise ConfigurationError(
            f"{question!r} is not a question.", hint="Pass a text, or a dict with 'question' and 'history'."
        )
    if not question.strip():
        raise ConfigurationError("The question is empty.")
    if unknown := given.keys() - {"question", "history"}:
        raise ConfigurationError(
            f"The input has unknown keys: {', '.join(sorted(unknown))}.",
            hint="The only keys are 'question' and 'history'.",
        )
    history = convert_to_messages(given.get("history") or [])
    said = [question, " ".join(_earlier_questions(history))]
    if language is None:
        language = next(filter(None, map(told_language, said)), None)
    return Request(question, language or DEFAULT_LANGUAGE, history, question, undecided=language is None)


def rewriting_prompt(
    question: str, history: Sequence[BaseMessage], language: Language
) -> list[BaseMessage] | None:
    """Return the messages that ask a model to rewrite a follow-up; ``None`` for any other question."""
    if not needs_rewriting(question, history, language):
        return None
    # The history is shown as content: as turns, a model would continue them.
    turns = [
        f"{wording('question' if isinstance(turn, HumanMessage) else 'answer', language)}: {turn.text}"
        for turn in history[-SHOWN_MESSAGES:]
    ]
    asked = f"{wording('question', language)}: {question}"
    return [SystemMessage(wording("rewrite", language)), HumanMessage("\n".join([*turns, asked]))]


def needs_rewriting(question: str, history: Sequence[BaseMessage], language: Language) -> bool:
    """Return whether a question follows others and points back to them, or is very short and names no subject."""
    return bool(_earlier_questions(history)) and _is_incomplete(question, language)


def goes_on(question: str, history: Sequence[BaseMessage], language: Language) -> bool:
    """Return whether a question is about what the one before it was about, as far as its words tell."""
    return bool(_earlier_questions(history)) and _depends(question, language)


def rewrite_by_rules(question: str, history: Sequence[BaseMessage], language: Language) -> str:
    """Rewrite a follow-up without a model; return any other question as it is.

    If it names something of the same kind as the question before (a year, a month, an ordinal, a name), that
    replaces the old one: "¿Cuántos habitantes tenía Burgos en 2010?", "¿Y en 2020?" → "¿Cuántos habitantes tenía
    Burgos en 2020?". Otherwise the subject of the question before is added in brackets.
    """
    if not needs_rewriting(question, history, language):
        return question
    previous = ""
    for earlier in _earlier_questions(history):
        incomplete = bool(previous) and _is_incomplete(earlier, language)
        previous = _combine(earlier, previous, language) if incomplete else earlier
    return _combine(question, previous, language)


def topic_readings(question: str, history: Sequence[BaseMessage], language: Language) -> list[str]:
    """Return what to search for if a question is about what the one before it was about.

    The last whole question and the one before this; and, if the answer to that one was short, that answer too.
    """
    earlier = _earlier_questions(history)
    if not earlier:
        return []
    whole = next((each for each in reversed(earlier) if not _depends(each, language)), earlier[0])
    topic = earlier[-1] if whole == earlier[-1] else f"{whole} {earlier[-1]}"
    answer = _last_answer(history)
    readings = [f"{topic} {question}"]
    if 0 < len(answer) <= SHORT_ANSWER_CHARACTERS and not is_abstention(answer):
        readings.append(f"{topic} {answer} {question}")
    return readings


def accept_rewriting(reply: str, question: str, history: Sequence[BaseMessage], language: Language) -> str:
    """Return the first line of a model's reply, or the rewriting by rules if that line is not usable.

    It is not usable if it is empty, in another language, or too long for a rewriting of the last two questions.
    """
    line = reply.strip().partition("\n")[0].strip()
    line = line.removeprefix(f"{wording('question', language)}:").strip()
    longest = MAX_LENGTH_RATIO * len(" ".join([question, *_earlier_questions(history)[-1:]]).split())
    if not line or len(line.split()) > longest or is_in_other_language(language, line, ()):
        return rewrite_by_rules(question, history, language)
    return line


def _earlier_questions(history: Sequence[BaseMessage]) -> list[str]:
    texts = [str(turn.text).strip() for turn in history if isinstance(turn, HumanMessage)]
    return [text for text in texts if text and not is_small_talk(text)]


def _last_answer(history: Sequence[BaseMessage]) -> str:
    """Return the answer to the last question that is not small talk."""
    answer = ""
    for turn in reversed(history):
        if isinstance(turn, HumanMessage) and not is_small_talk(str(turn.text)):
            return answer
        answer = str(turn.text).strip() if isinstance(turn, AIMessage) else ""
    return answer


def _depends(question: str, language: Language) -> bool:
    return continues(question, language) or _is_incomplete(question, language)


def _is_incomplete(question: str, language: Language) -> bool:
    if refers_back(question, language):
        return True
    short = len(_content_words(question, language)) < MIN_CONTENT_WORDS
    return short and not names_its_subject(question, language)


def _content_words(question: str, language: Language) -> list[str]:
    ignored = function_words(language)
    return [word.folded for word in words(question, language) if word.folded not in ignored]


def _combine(question: str, previous: str, language: Language) -> str:
    """Combine a follow-up with the standalone question before it."""
    rest, combined = question, previous
    for pattern in replaceable_patterns():
        new, old = pattern.search(rest), pattern.search(combined)
        if new and old and new.group().casefold() != old.group().casefold():
            combined = combined[: old.start()] + new.group() + combined[old.end() :]
            rest = rest[: new.start()] + rest[new.end() :]
    replaced = rest != question
    if replaced and not set(_content_words(rest, language)) - set(_content_words(previous, language)):
        return combined
    said = {word.folded for word in words(question, language)} | set(function_words(language))
    carried = [word for word in words(combined, language) if word.folded not in said]
    subject = " ".join(combined[word.start : word.end] for word in carried)
    return f"{question} ({subject})" if subject else question
