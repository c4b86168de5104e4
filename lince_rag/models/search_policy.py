"""How the embedded engine uses tools: it searches with the question, then once more with only its content words.

It cannot write arguments of its own, so it calls tools that take one text. It reads what they find as documents.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import BaseMessage

from lince_rag.errors import EngineError
from lince_rag.models.answer_formats import AnswerFormat, write_calls
from lince_rag.models.turns import current_turn, last_question, made_calls
from lince_rag.text.language import Language
from lince_rag.text.questions import function_words, strip_opening
from lince_rag.text.words import words

# Searches for one question at most: as it was asked, and without what is said around it.
MOST_SEARCHES: Final = 2


def next_search(
    answer_format: AnswerFormat, messages: Sequence[BaseMessage], language: Language, *, abstained: bool
) -> str | None:
    """Decide whether to search, and for what.

    Args:
        answer_format: The tools.
        messages: The conversation.
        language: The question's language.
        abstained: Whether what was found so far holds no answer.

    Returns:
        The call; ``None`` where it is time to answer.

    Raises:
        EngineError: A call is asked for, and no tool takes one text.
    """
    question = last_question(messages)
    calls = made_calls(current_turn(messages))
    made = {str(value) for call in calls for value in call["args"].values()}
    queries = [query for query in _queries(question, language) if query not in made]
    if answer_format.must_call:
        queries = queries or [question]
    elif calls and (not abstained or len(calls) >= MOST_SEARCHES):
        return None
    searchable = [(tool, name) for tool in answer_format.tools if (name := _text_argument(tool)) is not None]
    if searchable and queries:
        tool, argument = max(searchable, key=lambda each: _shared_stems(each[0], question, language))
        return write_calls([{"name": tool["name"], "args": {argument: queries[0]}}])
    if answer_format.must_call:
        names = ", ".join(tool["name"] for tool in answer_format.tools)
        raise EngineError(
            f"The embedded engine can call tools that take one text, not {names}.",
            hint="Choose a model with weights.",
        )
    return None


def _queries(question: str, language: Language) -> list[str]:
    """Return what to search for, one after the other: the question, and less and less around its content."""
    ignored = function_words(language)
    bare = [question[word.start : word.end] for word in words(question, language) if word.folded not in ignored]
    queries = (question, strip_opening(question, language), " ".join(bare))
    # Questions of the same words find the same.
    different = {" ".join(word.folded for word in words(query, language)): query for query in reversed(queries)}
    return [query for query in reversed(different.values()) if query.strip()]


def _text_argument(tool: Mapping[str, Any]) -> str | None:
    """Return the name of the one argument that a tool needs, if it is a text."""
    parameters = tool.get("parameters") or {}
    required = parameters.get("required", [])
    argument = parameters.get("properties", {}).get(required[0], {}) if len(required) == 1 else {}
    # A text that must be of some form is not a question.
    if argument.get("type") != "string" or argument.keys() & {"enum", "const", "format", "pattern", "maxLength"}:
        return None
    return str(required[0])


def _shared_stems(tool: Mapping[str, Any], question: str, language: Language) -> int:
    """Count the stems that a tool's name and description share with the question."""
    described = f"{tool['name'].replace('_', ' ')} {tool.get('description') or ''}"
    asked, told = ({word.stem for word in words(text, language)} for text in (question, described))
    return len(asked & told)
