"""What is kept of every question that was asked, and the file it is kept in."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from lince_rag.errors import ConfigurationError
from lince_rag.text.language import Language

# Raised whenever a record of before could not be read any more, or would mean something else.
RECORD_FORMAT: Final = 2


@dataclass(frozen=True)
class Passage:
    """A retrieved chunk.

    Attributes:
        source: Its document.
        title: The document's title.
        start: Character offset in the document's text.
        end: Offset just after it.
        text: The chunk's text; empty below the rank that the chain reads.
        unit: What it stands for in a ranking: a paragraph of the question file, or a document.
        gold: Whether that holds the answer.
    """

    source: str
    title: str
    start: int
    end: int
    text: str
    unit: str
    gold: bool


@dataclass(frozen=True)
class Cited:
    """A citation of the answer.

    Attributes:
        source: The document.
        page: The page, where the document has pages.
        quote: The stretch that is cited.
        gold: Whether it lies in a place that holds the answer.
    """

    source: str
    page: int | None
    quote: str
    gold: bool


@dataclass(frozen=True)
class Record:
    """A question, what was retrieved, and what was answered.

    Attributes:
        id: The question's id.
        question: Its text.
        language: Its language.
        answers: The texts that count as its answer.
        answerable: Whether the documents of this index answer it.
        missing: Whether its file has an answer, but in a place that this index does not have.
        units: The places that hold the answer; none where nobody says.
        retrieved: The ranking, best first.
        answer: What was answered.
        short: The shortest stretch of the answer that says it, if the chain gives one.
        answer_language: The answer's language.
        abstained: Whether it says that the documents do not hold the answer.
        grounded: Whether every sentence has a citation.
        confidence: What abstention goes by, if the chain gives it.
        citations: What was cited.
        corrections: What the chain did to the model's answer.
        milliseconds: How long the chain took.
    """

    id: str
    question: str
    language: Language
    answers: tuple[str, ...]
    answerable: bool
    missing: bool
    units: tuple[str, ...]
    retrieved: tuple[Passage, ...]
    answer: str
    short: str | None
    answer_language: Language
    abstained: bool
    grounded: bool
    confidence: float | None
    citations: tuple[Cited, ...]
    corrections: tuple[str, ...]
    milliseconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make it again from ``to_dict``, also after a way through JSON."""
        fields = dict(values)
        for name in ("answers", "units", "corrections"):
            fields[name] = tuple(fields[name])
        fields["retrieved"] = tuple(Passage(**passage) for passage in fields["retrieved"])
        fields["citations"] = tuple(Cited(**citation) for citation in fields["citations"])
        return cls(**fields)

    @property
    def located(self) -> bool:
        """Whether it is known where in this index its answer is."""
        return self.answerable and bool(self.units)


class RecordFile:
    """The records of one run as JSON lines, below a header that says which run it is.

    A record is written as soon as it is made. What an interrupted write left of a last line is cut off when the
    file is opened again.

    Args:
        path: The file; made if missing, with its folder.
        header: What the run depends on, with its ``fingerprint``.

    Raises:
        ConfigurationError: The file holds something else.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        self._header = {"format": RECORD_FORMAT, **header}
        self._read()

    @contextmanager
    def appending(self) -> Iterator["RecordFile"]:
        """Hold the file open for ``append``."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8", newline="\n") as self._file:
            if not self._file.tell():
                self._write(self._header)
            yield self

    def append(self, record: Record) -> None:
        """Write a record; call it inside ``appending``."""
        self._write(record.to_dict())
        self.records[record.id] = record

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
        self._file.flush()

    def _read(self) -> None:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
            try:
                entry = json.loads(line)
                if number > 1:
                    record = Record.from_dict(entry)
                    self.records[record.id] = record
                elif entry["fingerprint"] != self._header["fingerprint"]:
                    raise KeyError("fingerprint")
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigurationError(
                    f"{self.path}, line {number}: not a record of this evaluation.",
                    hint="Delete the file, or choose another output folder.",
                ) from error
