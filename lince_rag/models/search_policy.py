"""How the embedded engine uses tools: it searches with the question, then again with only its content words.

It cannot write arguments, so it only calls tools that take one text argument. It reads their results as documents.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import BaseMessage

from lince_rag.errors import EngineError
from lince_rag.models.answer_formats import AnswerFormat, write_calls
from lince_rag.models.messages import current_turn, last_question, made_calls
from lince_rag.text.language import Language
from lince_rag.text.questions import function_words, strip_opening
from lince_rag.text.words import words

# Maximum number of searches for one question: as it was asked, and without its function words.
MOST_SEARCHES: Final = 2


def next_search(
    answer_format: AnswerFormat, messages: Sequence[BaseMessage], language: Language, *, abstained: bool
) -> str | None:
    """Return the next search as a written call, or ``None`` to answer.

    ``abstained`` says that the documents found so far do not hold the answer.
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
            f"The embedded engine can only call tools that take one text argument, not {names}.",
            hint="Give such a tool, or choose a model with weights; lince-rag models lists them.",
        )
    return None


def _queries(question: str, language: Language) -> list[str]:
    """Return the search queries in order: the question, it without its opening words, its content words."""
    ignored = function_words(language)
    bare = [question[word.start : word.end] for word in words(question, language) if word.folded not in ignored]
    queries = (question, strip_opening(question, language), " ".join(bare))
    # Queries with the same words find the same documents.
    different = {" ".join(word.folded for word in words(query, language)): query for query in reversed(queries)}
    return [query for query in reversed(different.values()) if query.strip()]


def _text_argument(tool: Mapping[str, Any]) -> str | None:
    """Return the name of a tool's only required argument if it is a free text."""
    parameters = tool.get("parameters") or {}
    required = parameters.get("required", [])
    argument = parameters.get("properties", {}).get(required[0], {}) if len(required) == 1 else {}
    # A text with a required form cannot be a question.
    if argument.get("type") != "string" or argument.keys() & {"enum", "const", "format", "pattern", "maxLength"}:
        return None
    return str(required[0])


def _shared_stems(tool: Mapping[str, Any], question: str, language: Language) -> int:
    """Count the stems that a tool's name and description share with the question."""
    described = f"{tool['name'].replace('_', ' ')} {tool.get('description') or ''}"
    asked, told = ({word.stem for word in words(text, language)} for text in (question, described))
    return len(asked & told)
