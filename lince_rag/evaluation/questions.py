"""Question files: SQuAD (1.1 and 2.0) or JSON lines, read as questions with their answers, and drafted."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, cast

from lince_rag.errors import ConfigurationError
from lince_rag.index.index import Index
from lince_rag.index.ledger import Source
from lince_rag.text.language import LANGUAGES, Language, fold, wording
from lince_rag.text.passages import Reading
from lince_rag.text.questions import QuestionKind, answer_pattern, function_words, question_kinds

FORMATS_HINT: Final = (
    'Give a SQuAD file ({"data": [{"paragraphs": …}]}), or JSON lines with "question", "answers" and '
    'optionally "source"; lince-rag questions drafts some from your documents.'
)

SPEAKERS: Final = ("human", "ai")

# Characters, at least and at most, of a sentence that a question is drafted from.
DRAFT_CHARACTERS: Final = (30, 300)

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
        copies: Other documents with the same passage: citing one of them is as right as citing a source.
        all_of: Every item of an answer that is a list.
        history: The earlier questions and answers of a follow-up, as LangChain's ("human" or "ai", text).
        type: What kind of question it is, in the file's own words; empty if unknown.
        language: The language of the question, if the file says it.
    """

    id: str
    text: str
    answers: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    context: str | None = None
    copies: tuple[str, ...] = ()
    all_of: tuple[str, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    type: str = ""
    language: Language | None = None

    @property
    def answerable(self) -> bool:
        """Whether the file gives an answer."""
        return bool(self.answers)


def load_questions(path: str | Path) -> list[Question]:
    """Read a file of questions.

    Args:
        path: A SQuAD file (1.1, or 2.0 with ``is_impossible``), or JSON lines: objects with ``question``,
            ``answers`` (a list, empty if the documents do not answer the question) or ``answer``, and
            optionally ``source`` (a document, or a list of them), ``also_in`` (documents with the same passage),
            ``all_of`` (every item of a list), ``history`` (pairs of "human" or "ai" and the text), ``type``,
            ``language`` (es, pt or en) and ``id``. Other keys are ignored.

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


def draft_questions(index: Index, count: int, *, seed: int = 7) -> list[dict[str, Any]]:
    """Draft questions about the documents of an index, for a person to correct.

    Each is a sentence of a document with its date, amount, number, person or place left out. As they repeat the
    words of the text, they are much easier than what people ask, until a person has written them anew.

    Args:
        index: The index; its documents take turns.
        count: Number of questions at most.
        seed: Seed of the choice among the sentences.

    Returns:
        Lines for ``load_questions``: ``id``, ``question``, ``language``, ``answerable``, ``answers``, ``evidence``
        (the sentence), ``source`` and ``type``.
    """
    generator = random.Random(seed)
    sources = index.sources()
    generator.shuffle(sources)
    waiting = [_drafts(index, source, generator) for source in sources]
    found: list[dict[str, Any]] = []
    while waiting and len(found) < count:
        drafts = waiting.pop(0)
        if (draft := next(drafts, None)) is not None:
            found.append({"id": f"draft-{len(found) + 1}", **draft})
            waiting.append(drafts)
    return found


def _drafts(index: Index, source: Source, generator: random.Random) -> Iterator[dict[str, Any]]:
    reading = Reading.of({"text": index.text(source.source), "language": source.language})
    positions = [each for each in reading.candidates() if reading.kinds[each] == "sentence"]
    generator.shuffle(positions)
    for position in positions:
        evidence = " ".join(reading.sentences[position].text.split())
        text = answer_pattern("clause").sub("", evidence)
        if not DRAFT_CHARACTERS[0] <= len(text) <= DRAFT_CHARACTERS[1]:
            continue
        for kind in question_kinds():
            answer = next(_answers(kind, text, reading.language), None)
            if answer is not None:
                start, end = answer.span("span" if "span" in answer.re.groupindex else 0)
                asked = f"{text[:start]}…{text[end:]}"
                yield {
                    "question": wording(f"draft_{kind.name}", reading.language, text=asked),
                    "language": reading.language,
                    "answerable": True,
                    "answers": [text[start:end].strip()],
                    "evidence": evidence,
                    "source": source.source,
                    "type": kind.name,
                }
                break


def _answers(kind: QuestionKind, text: str, language: Language) -> Iterator[re.Match[str]]:
    """Yield what can be left out of a sentence, without numbers that are no quantity of anything."""
    for match in (match for span in kind.spans for match in span.finditer(text)):
        if kind.name != "number" or match[0].endswith(("%", "€", "$", "°C")):
            yield match
        elif not answer_pattern("label").search(text[: match.start()]):
            counted = re.match(r"\s+([^\W\d_]+)", text[match.end() :])
            if counted and counted[1].islower() and fold(counted[1]) not in function_words(language):
                yield match


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
        question = Question(
            str(entry.get("id", number)),
            _text(path, place, entry),
            answers,
            _texts(path, place, "source", entry),
            copies=_texts(path, place, "also_in", entry),
            all_of=_texts(path, place, "all_of", entry),
            history=_history(path, place, entry.get("history") or ()),
            type=" ".join(_texts(path, place, "type", entry)),
            language=_language(path, place, entry.get("language")),
        )
        yield place, question


def _history(path: Path, place: str, value: Any) -> tuple[tuple[str, str], ...]:
    """Return the earlier messages, oldest first."""
    try:
        turns = tuple((str(speaker), str(text)) for speaker, text in value)
    except (TypeError, ValueError):
        _refuse(path, place, '\'history\' is not a list of pairs: [["human", …], ["ai", …]]')
    if unknown := {speaker for speaker, _ in turns} - set(SPEAKERS):
        _refuse(path, place, f"'history' has {unknown.pop()!r} instead of {' or '.join(SPEAKERS)}")
    return turns


def _language(path: Path, place: str, value: Any) -> Language | None:
    if value is not None and value not in LANGUAGES:
        _refuse(path, place, f"'language' is {value!r}, not {', '.join(LANGUAGES)}")
    return cast(Language | None, value)


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
