"""Document → chunks that follow sentences and headings, with character offsets and stable ids."""

import bisect
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple, cast

from langchain_core.documents import Document

from lince_rag.documents.kinds import (
    Span,
    chunk_kind,
    code_spans,
    contents_spans,
    is_heading,
    merge_spans,
    remaining_spans,
)
from lince_rag.errors import ConfigurationError
from lince_rag.text.language import LANGUAGES, Language, detect_language
from lince_rag.text.sentences import sentence_spans, trim

# Raise it whenever the same settings start to give different chunks: the next ingestion then reads every file of
# an existing index again.
ALGORITHM_VERSION: Final = 5

# A shorter limit would cut most sentences (a Spanish sentence has about 150 characters).
MINIMUM_CHARACTERS: Final = 40

# The last piece under a heading joins the previous chunk if that exceeds the limit by at most this share: a chunk
# of a few words is retrieved for the wrong questions.
TOLERANCE: Final = 0.1

# A chunk ends at the end of a paragraph, rather than inside the next one, if that leaves it at least this full.
PARAGRAPH_FILL: Final = 0.5


@dataclass(frozen=True)
class ChunkingSettings:
    """How to cut a document.

    Args:
        max_characters: Characters of the longest chunk, 40 or more; only the last chunk of a section may be 10 %
            longer.
        overlap_sentences: How many sentences of a chunk the next one repeats, if they fit.

    Raises:
        ConfigurationError: A value is not a whole number, or is too small.
    """

    max_characters: int = 1200
    overlap_sentences: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (("max_characters", MINIMUM_CHARACTERS), ("overlap_sentences", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise ConfigurationError(
                    f"{name}={value!r} is not valid.", hint=f"Give a whole number, {minimum} or more."
                )

    @property
    def fingerprint(self) -> str:
        """A short text that is equal if and only if the same documents give the same chunks."""
        return f"sentences-{ALGORITHM_VERSION}-{self.max_characters}-{self.overlap_sentences}"


class _Section(NamedTuple):
    start: int
    end: int
    page: int | None
    heading: str


class _Region(NamedTuple):
    """Text under one heading; ``bare`` if it is only the heading."""

    start: int
    end: int
    heading: str
    bare: bool = False


class _Unit(NamedTuple):
    """A sentence, or a piece of a sentence that is too long: the unit that chunks are made of."""

    start: int
    end: int
    opens_paragraph: bool


DEFAULT_SETTINGS: Final = ChunkingSettings()


def chunk_document(
    document: Document, settings: ChunkingSettings = DEFAULT_SETTINGS, *, offset: int = 0
) -> list[Document]:
    """Cut a document into chunks, in order.

    A chunk lies under one heading, may cross a page break, and holds whole sentences unless one sentence is longer
    than the limit; a heading without text joins what follows. Tables of contents, navigation and repeated headers
    and footers are left out, unless the document has nothing else. Without overlap, the chunks are disjoint and
    cover the rest of the text. Of the document's metadata, only ``source`` is required; ``sections`` and ``kinds``
    are used if present, and other scalars are copied to every chunk. ``kind`` says what most of a chunk is:
    "prose", "list", "table", "code", "heading" or "contents".

    ``page_content`` is ``document.page_content[start:end]``. If the document is a part of a longer text, it begins
    at ``offset`` there, and all offsets are those of that text. The id is a digest of source, content hash, start
    and end, so the same document always gives the same ids. ``page`` is the page on which a chunk begins; a chunk
    that crosses page breaks has ``page_starts``, a list of [character offset, page] of the later pages.
    """
    text = document.page_content
    sections = _sections(document)
    common = _common_metadata(document)
    starts = [section.start for section in sections]
    left_out, code = _special_spans(document)
    regions = _regions(text, sections, left_out, str(common.get("title", "")))
    searched = bool(regions)
    chunks = []
    for region in regions or [[_Region(0, len(text), sections[0].heading)]]:
        span = region[0].start, region[-1].end
        units = _units(text, span, cast(Language, common["language"]), settings.max_characters)
        for start, end in _pack(units, settings):
            first = bisect.bisect_right(starts, start) - 1
            inside = sections[first : bisect.bisect_left(starts, end)]
            heading = _heading(region, start, end)
            coded = end - start - sum(high - low for low, high in remaining_spans(start, end, code))
            kind = chunk_kind(text[start:end], heading, coded) if searched else "contents"
            first_character, last_character = offset + start, offset + end
            place = _place(inside, offset) | {"heading": heading, "kind": kind}
            metadata = common | {key: value for key, value in place.items() if value not in (None, "", [])}
            metadata |= {"start": first_character, "end": last_character}
            chunks.append(Document(page_content=text[start:end], metadata=metadata, id=chunk_id(metadata)))
    return chunks


def chunk_id(metadata: Mapping[str, Any]) -> str:
    """Return the id of the chunk with this metadata."""
    return _digest(*(str(metadata[name]) for name in ("source", "content_hash", "start", "end")))


def _digest(*parts: str) -> str:
    # surrogatepass: a file name in an old encoding can contain lone surrogates.
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _common_metadata(document: Document) -> dict[str, Any]:
    """The metadata of every chunk of a document: the scalars of its own, completed."""
    metadata = {
        key: value
        for key, value in document.metadata.items()
        if isinstance(value, str | int | float | bool) and key not in {"start", "end"}
    }
    source = document.metadata.get("source")
    if source is None or not str(source):
        raise ConfigurationError(
            "A document has no source.",
            hint='Set metadata["source"] to its path or address: citations and updates identify documents by it.',
        )
    metadata["source"] = str(source)
    metadata["content_hash"] = str(metadata.get("content_hash") or _digest(document.page_content))
    if metadata.get("language") not in LANGUAGES:
        metadata["language"] = detect_language(document.page_content)
    return metadata


def _sections(document: Document) -> list[_Section]:
    """The sections of a document; a document without any is one section."""
    length = len(document.page_content)
    given = document.metadata.get("sections")
    ours = isinstance(given, list) and all(
        isinstance(section, dict) and {"start", "end"} <= section.keys() for section in given
    )
    if not ours or not given:
        # The "sections" of another application may mean anything; its page and heading stay in the metadata.
        return [_Section(0, length, None, "")]
    sections = [
        _Section(item["start"], item["end"], item.get("page"), item.get("heading") or "") for item in given
    ]
    joined = all(one.end == two.start for one, two in pairwise(sections))
    ordered = all(section.start <= section.end for section in sections)
    if not (joined and ordered and sections[0].start == 0 and sections[-1].end == length):
        raise ConfigurationError(
            f"The sections of {document.metadata.get('source')!r} do not divide its text.",
            hint='metadata["sections"] must cover the text from 0 to its end without gaps.',
        )
    return sections


def _place(sections: list[_Section], offset: int) -> dict[str, Any]:
    """The page where a chunk begins, and [offset, page] of each page that begins inside it."""
    page_starts = [[offset + two.start, two.page] for one, two in pairwise(sections) if one.page != two.page]
    return {"page": sections[0].page, "page_starts": page_starts}


def _special_spans(document: Document) -> tuple[list[Span], list[Span]]:
    """The spans that are not searched, and the spans of program code."""
    text = document.page_content
    given = document.metadata.get("kinds")
    known = given if isinstance(given, list) else []
    left_out = contents_spans(text)
    code = code_spans(text)
    for item in known:
        # The "kinds" of another application may mean anything.
        ours = isinstance(item, dict) and {"start", "end"} <= item.keys()
        if ours and item.get("kind") in {"contents", "repeated", "code"}:
            (code if item["kind"] == "code" else left_out).append((item["start"], item["end"]))
    return merge_spans(left_out), merge_spans(code)


def _regions(text: str, sections: list[_Section], left_out: list[Span], title: str) -> list[list[_Region]]:
    """The runs of searched text without a gap that chunks do not cross; page breaks do not end them.

    A run is under one heading, or begins with headings that have no text of their own. Such a heading is left out
    if what it stands above is left out.
    """
    runs: list[list[_Region]] = []
    for region in _headed(sections):
        for start, end in remaining_spans(region.start, region.end, left_out):
            piece = text[start:end]
            # Between links there may be a mark or a picture of a rule.
            if not piece.strip() or (left_out and not any(map(str.isalnum, piece))):
                continue
            bare = is_heading(piece, region.heading) or is_heading(piece, title)
            part = _Region(start, end, region.heading, bare)
            if runs and runs[-1][-1].bare and not text[runs[-1][-1].end : start].strip():
                runs[-1].append(part)
            else:
                runs.append([part])
    gap = text[runs[-2][-1].end : runs[-1][0].start].strip() if len(runs) > 1 else "none"
    if not gap and all(part.bare for part in runs[-1]):
        last = runs.pop()
        runs[-1] += last
    texts = [run for run in runs if not all(part.bare for part in run)]
    return texts or ([] if left_out else runs)


def _headed(sections: list[_Section]) -> Iterator[_Region]:
    """Yield the spans of text under one heading."""
    start = 0
    for one, two in pairwise(sections):
        if one.heading != two.heading:
            yield _Region(start, two.start, one.heading)
            start = two.start
    yield _Region(start, sections[-1].end, sections[-1].heading)


def _heading(region: list[_Region], start: int, end: int) -> str:
    """The heading of the first text in a chunk that is more than a heading."""
    first = bisect.bisect_right(region, start, key=lambda part: part.start) - 1
    last = bisect.bisect_left(region, end, key=lambda part: part.start)
    return next((part.heading for part in region[first:last] if not part.bare), region[first].heading)


def _units(text: str, region: tuple[int, int], language: Language, limit: int) -> list[_Unit]:
    """Cut a region into sentences, and sentences above the limit into pieces."""
    start, end = region
    begins = [start + first for first, _ in sentence_spans(text[start:end], language)]
    units: list[_Unit] = []
    # A sentence extends to the start of the next one, so that nothing is lost if the splitter leaves text out.
    for begin, following in pairwise([start, *begins[1:], end]):
        for first, last in _pieces(text, *trim(text, begin, following), limit):
            opens = not units or text.count("\n", units[-1].end, first) > 1
            units.append(_Unit(first, last, opens))
    return units


def _pieces(text: str, start: int, end: int, limit: int) -> Iterator[tuple[int, int]]:
    """Yield a sentence, or pieces of at most ``limit`` characters that end with a line or else with a word."""
    while end - start > limit:
        window = text[start : start + limit + 1]
        newline = window.rfind("\n")
        space = max((match.start() for match in re.finditer(r"\s", window)), default=0)
        # The piece ends with a line (a row of a table, an item of a list) unless that leaves it half empty.
        cut = newline if newline > limit // 2 else space
        cut = start + (cut if cut > 0 else limit)
        yield trim(text, start, cut)
        start, end = trim(text, cut, end)
    if start < end:
        yield start, end


def _pack(units: list[_Unit], settings: ChunkingSettings) -> list[tuple[int, int]]:
    """Fill chunks with sentences in order, and return the chunks' offsets."""
    limit = settings.max_characters
    spans: list[tuple[int, int]] = []
    first = previous = 0
    while first < len(units):
        opening = _overlap_start(units, first, previous, settings) if spans else first
        stop = first + 1
        while stop < len(units) and units[stop].end - units[opening].start <= limit:
            stop += 1
        if stop < len(units):
            stop = _paragraph_end(units, opening, first, stop, limit)
        start, end = units[opening].start, units[stop - 1].end
        if stop == len(units) and spans and end - spans[-1][0] <= limit * (1 + TOLERANCE):
            start = spans.pop()[0]
        spans.append((start, end))
        previous, first = opening, stop
    return spans


def _overlap_start(units: list[_Unit], first: int, previous: int, settings: ChunkingSettings) -> int:
    """The sentence with which a chunk begins whose first new sentence is ``first``."""
    opening = max(first - settings.overlap_sentences, previous + 1)
    while opening < first and units[first].end - units[opening].start > settings.max_characters:
        opening += 1
    return opening


def _paragraph_end(units: list[_Unit], opening: int, first: int, stop: int, limit: int) -> int:
    """Move the end of a chunk back to the last end of a paragraph, if that leaves it full enough."""
    for index in range(stop, first, -1):
        if units[index - 1].end - units[opening].start < PARAGRAPH_FILL * limit:
            return stop
        if units[index].opens_paragraph:
            return index
    return stop
