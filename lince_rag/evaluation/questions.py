"""Question files: SQuAD (1.1 and 2.0) or JSON lines, read as questions with their accepted answers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from lince_rag.errors import ConfigurationError

FORMATS_HINT: Final = (
    'Give a SQuAD file ({"data": [{"paragraphs": …}]}), or JSON lines with "question", "answers" and '
    'optionally "source".'
)

_LINE_SUFFIXES: Final = {".jsonl", ".ndjson"}


@dataclass(frozen=True)
class Question:
    """A question and what is known about its answer.

    Attributes:
        id: Unique in its file.
        text: The question.
        answers: The texts that count as its answer; empty if the documents do not answer it.
        sources: The documents that hold the answer, by name, path or end of a path; empty if unknown.
        context: The paragraph that holds the answer, if the file quotes it.
    """

    id: str
    text: str
    answers: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    context: str | None = None

    @property
    def answerable(self) -> bool:
        """Whether the file gives an answer."""
        return bool(self.answers)


def load_questions(path: str | Path) -> list[Question]:
    """Read a file of questions.

    Args:
        path: A SQuAD file (1.1, or 2.0 with ``is_impossible``), or JSON lines: objects with ``question``,
            ``answers`` (a list, empty if the documents do not answer the question) or ``answer``, and
            optionally ``source`` (a document, or a list of them) and ``id``.

    Returns:
        The questions in the order of the file.

    Raises:
        ConfigurationError: The file is missing, has another format, or has no questions; the message names the
            line, or the place in a SQuAD file.
    """
    path = Path(path).expanduser()
    text = _read(path)
    questions: list[Question] = []
    places: dict[str, str] = {}
    for place, question in _questions(path, text):
        if question.id in places:
            _refuse(path, place, f"the id {question.id!r} is already the id of {places[question.id]}")
        places[question.id] = place
        questions.append(question)
    if not questions:
        raise ConfigurationError(f"{path} has no questions.", hint=FORMATS_HINT)
    return questions


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: {error.reason}.", hint=FORMATS_HINT) from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.", hint=FORMATS_HINT) from error


def _questions(path: Path, text: str) -> Iterator[tuple[str, Question]]:
    """Yield (place, question); the suffix or the contents tell which format it is."""
    if path.suffix.lower() in _LINE_SUFFIXES:
        return _lines(path, text)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if _is_object(text.lstrip().split("\n", 1)[0]):
            return _lines(path, text)
        _refuse(path, f"line {error.lineno}", f"not JSON ({error.msg})", error)
    if isinstance(whole, dict) and "data" in whole:
        return _squad(path, whole)
    return _lines(path, text)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _lines(path: Path, text: str) -> Iterator[tuple[str, Question]]:
    # Not splitlines, which also splits at U+2028; a JSON string may contain it.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            _refuse(path, place, f"not JSON ({error.msg})", error)
        if not isinstance(entry, dict):
            _refuse(path, place, f"{line.strip()[:40]!r} is not an object")
        # Without this check, a mistyped key would make the question unanswerable.
        if not entry.keys() & {"answers", "answer"}:
            _refuse(path, place, "'answers' or 'answer' is missing")
        answers = _texts(path, place, "answers" if "answers" in entry else "answer", entry)
        sources = _texts(path, place, "source", entry)
        identity = str(entry.get("id", number))
        yield place, Question(identity, _text(path, place, entry), answers, sources)


def _squad(path: Path, whole: dict[str, Any]) -> Iterator[tuple[str, Question]]:
    for place, article in _entries(path, "data", whole["data"]):
        for inner, paragraph in _entries(path, f"{place}.paragraphs", article.get("paragraphs")):
            context = paragraph.get("context")
            if not isinstance(context, str) or not context.strip():
                _refuse(path, inner, "'context' is missing")
            for asked_at, asked in _entries(path, f"{inner}.qas", paragraph.get("qas")):
                yield asked_at, _squad_question(path, asked_at, asked, context)


def _squad_question(path: Path, place: str, asked: dict[str, Any], context: str) -> Question:
    answers: tuple[str, ...] = ()
    if not asked.get("is_impossible", False):
        given = _entries(path, f"{place}.answers", asked.get("answers"))
        texts = {"answers": [answer.get("text") for _, answer in given]}
        answers = _texts(path, place, "answers", texts)
    return Question(str(asked.get("id", place)), _text(path, place, asked), answers, (), context)


def _entries(path: Path, place: str, value: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of a list, each with its place."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        _refuse(path, place, "not a list of objects")
    return [(f"{place}[{number}]", entry) for number, entry in enumerate(value)]


def _text(path: Path, place: str, entry: dict[str, Any]) -> str:
    text = entry.get("question")
    if not isinstance(text, str) or not text.strip():
        _refuse(path, place, "'question' is missing")
    return text.strip()


def _texts(path: Path, place: str, key: str, entry: dict[str, Any]) -> tuple[str, ...]:
    """Return the texts of a key, which may hold one text or a list, without duplicates."""
    value = entry.get(key)
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in values):
        _refuse(path, place, f"{key!r} is {json.dumps(value, ensure_ascii=False)[:60]}, not text")
    return tuple(dict.fromkeys(text.strip() for text in values if text.strip()))


def _refuse(path: Path, place: str, reason: str, cause: Exception | None = None) -> NoReturn:
    raise ConfigurationError(f"{path}, {place}: {reason}.", hint=FORMATS_HINT) from cause
