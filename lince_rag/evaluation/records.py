"""The record of each question, and the file of records."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from lince_rag.errors import ConfigurationError
from lince_rag.text.language import Language

# Increase it when older records can no longer be read, or would mean something else.
RECORD_FORMAT: Final = 3


@dataclass(frozen=True)
class Passage:
    """A retrieved chunk; ``start`` and ``end`` are character offsets in the text of its document."""

    source: str
    title: str
    start: int
    end: int
    # Empty below the rank that the chain reads.
    text: str
    # What the chunk counts as in a ranking: a paragraph of the question file, or a document.
    unit: str
    # Whether the unit holds the answer.
    gold: bool


@dataclass(frozen=True)
class Cited:
    """A citation of the answer."""

    source: str
    page: int | None
    quote: str
    # Whether the quoted span lies in a paragraph or document that holds the answer.
    gold: bool


@dataclass(frozen=True)
class Record:
    """A question, what was retrieved for it, and what was answered."""

    id: str
    question: str
    language: Language
    # The texts that count as its answer.
    answers: tuple[str, ...]
    # Whether the documents of this index answer it.
    answerable: bool
    # Whether its file has an answer, but in a place that is not in this index.
    missing: bool
    # The paragraphs or documents that hold the answer; empty if the file does not name them.
    units: tuple[str, ...]
    # Best first.
    retrieved: tuple[Passage, ...]
    answer: str
    # The shortest span of the answer that answers the question, if the chain gives one.
    short: str | None
    answer_language: Language
    abstained: bool
    # Whether every sentence has a citation.
    grounded: bool
    # The calibrated chance (0 to 1) that the documents hold the answer, if the chain gives it.
    confidence: float | None
    citations: tuple[Cited, ...]
    # What the chain changed in the model's answer.
    corrections: tuple[str, ...]
    # The time that the chain took.
    milliseconds: float
    # Every item, if the answer is a list.
    all_of: tuple[str, ...] = ()
    # What kind of question its file says it is; empty if it says nothing.
    type: str = ""
    # What was searched for: the question, or a follow-up rewritten.
    standalone: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Restore a record from the values of ``to_dict``, also after JSON made lists of tuples."""
        fields = dict(values)
        for name in ("answers", "units", "all_of", "corrections"):
            fields[name] = tuple(fields[name])
        fields["retrieved"] = tuple(Passage(**passage) for passage in fields["retrieved"])
        fields["citations"] = tuple(Cited(**citation) for citation in fields["citations"])
        return cls(**fields)

    @property
    def located(self) -> bool:
        """Whether the place of the answer in this index is known."""
        return self.answerable and bool(self.units)


def read_run(path: str | Path) -> tuple[dict[str, Any], dict[str, Record]]:
    """Read the header of an earlier run, which is empty if nothing was asked, and its records by their ids.

    Raises:
        ConfigurationError: The file cannot be read, or holds no records of this version.
    """
    path = Path(path).expanduser()
    try:
        return _parse_records(path, path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}.", hint="Give a records-….jsonl file of `lince-rag eval`."
        ) from error


def _parse_records(path: Path, data: bytes) -> tuple[dict[str, Any], dict[str, Record]]:
    """Return the header and the records of a file; a last line without an end is left out."""
    header: dict[str, Any] = {}
    records: dict[str, Record] = {}
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
            if number == 1:
                header = entry
                if header["format"] != RECORD_FORMAT:
                    raise KeyError("format")
            else:
                record = Record.from_dict(entry)
                records[record.id] = record
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path}, line {number}: not a record of this version's evaluations.",
                hint="Delete the file or choose another.",
            ) from error
    return header, records


class RecordFile:
    """The records of one run as JSON lines, after a header with the ``fingerprint`` of the run.

    A record is written as soon as it is made. An incomplete last line is cut off when the file is opened again.
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
        header, self.records = _parse_records(self.path, data[:whole])
        if header and header["fingerprint"] != self._header["fingerprint"]:
            raise ConfigurationError(
                f"{self.path}, line 1: not a record of this evaluation.",
                hint="Delete the file or choose another output folder.",
            )
