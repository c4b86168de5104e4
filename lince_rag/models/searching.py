"""How the embedded engine uses tools: it searches with the question, and once more with less around it.

It cannot write arguments of its own, so it calls tools that take one text. What they find it reads as documents.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage

from lince_rag.errors import EngineError
from lince_rag.models.answer_formats import AnswerFormat
from lince_rag.models.tool_calls import write_calls
from lince_rag.text.language import Language
from lince_rag.text.questions import function_words, question_proper
from lince_rag.text.words import words

# Searches for one question at most: as it was asked, and without what is said around it.
MOST_SEARCHES: Final = 2


def last_question(messages: Sequence[BaseMessage]) -> str:
    """Return the text of the last human message, or the empty text.

    Args:
        messages: A conversation.
    """
    return next((str(turn.text) for turn in reversed(messages) if isinstance(turn, HumanMessage)), "")


def current_turn(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return what came after the last human message: calls and their results.

    Args:
        messages: A conversation.
    """
    after = next((at for at in range(len(messages), 0, -1) if isinstance(messages[at - 1], HumanMessage)), 0)
    return list(messages[after:])


def made_calls(messages: Iterable[BaseMessage]) -> list[ToolCall]:
    """Return the calls of tools in some messages.

    Args:
        messages: The messages.
    """
    return [call for message in messages if isinstance(message, AIMessage) for call in message.tool_calls]


def found_documents(messages: Iterable[BaseMessage]) -> list[Document]:
    """Return the documents that tools found, each once.

    Args:
        messages: Messages, of which the results of tools count.

    Returns:
        The documents in their artifacts; those of the search with the best support come first.
    """
    artifacts = [message.artifact for message in messages if isinstance(message, ToolMessage)]
    results = [
        [document for document in artifact if isinstance(document, Document)]
        for artifact in artifacts
        if isinstance(artifact, list)
    ]
    found: dict[tuple[str, Any], Document] = {}
    for documents in sorted(results, key=_confidence, reverse=True):
        for document in documents:
            found.setdefault((document.page_content, document.metadata.get("source")), document)
    return list(found.values())


def _confidence(documents: Iterable[Document]) -> float:
    return max((float(document.metadata.get("confidence") or 0) for document in documents), default=0.0)


def read_results(messages: Sequence[BaseMessage]) -> tuple[list[BaseMessage], list[Document]]:
    """Turn the last question, its calls and their results into a question with documents.

    Args:
        messages: A conversation.

    Returns:
        The conversation without calls and results, and what was found for the last question: the documents, or
        the text where a tool gives nothing but text. Errors are left out.
    """
    turn = current_turn(messages)
    results = [message for message in turn if isinstance(message, ToolMessage) and message.status != "error"]
    texts = [Document(text) for result in results if not found_documents([result]) and (text := str(result.text))]
    return without_calls(messages), [*found_documents(results), *texts]


def without_calls(messages: Iterable[BaseMessage], name: str | None = None) -> list[BaseMessage]:
    """Leave out the calls of tools and their results.

    Args:
        messages: A conversation.
        name: The tool whose calls to leave out; ``None`` leaves out all.

    Returns:
        What was said in it, and the other calls.
    """
    kept: list[BaseMessage] = []
    left_out: set[str | None] = set()
    for message in messages:
        if isinstance(message, AIMessage) and message.tool_calls:
            others = [call for call in message.tool_calls if name is not None and call["name"] != name]
            left_out = {call["id"] for call in message.tool_calls if call not in others}
            if others:
                kept.append(message.model_copy(update={"tool_calls": others}))
        elif not isinstance(message, ToolMessage) or (name and message.tool_call_id not in left_out):
            kept.append(message)
    return kept


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
    queries = (question, question_proper(question, language), " ".join(bare))
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
