"""Texts cut into sentences with their terms, and cached: retrieval, answers and citations share them.

Cutting a chunk and stemming its words takes most of a retrieval, so an index stores the result (``TermLines``).
"""

import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Final, Self

from lince_rag.text.language import Language
from lince_rag.text.words import analyze, spelling_grams, word_lines, words_with_digits

# How many chunks are cached, the most recently used; each takes about 50 kB.
CACHED_TEXTS: Final = 512

# Raise it whenever the sentences of a text or their terms change: what an index has stored is computed again then.
LINES_VERSION: Final = 3

# Between the cells of a table's row.
CELL_SEPARATOR: Final = " | "

# Between the parts of stored lines; no word has it.
_PART: Final = "\f"

# The number of an item or a section.
_NUMBER: Final = re.compile(r"(?:\d{1,3}\.)+\d{0,3}[.)]?", re.ASCII)

# The number of a clause, and a title of a few words after it: "Tercera.", "CUARTA.- Fianza.", "Art. 7.º", "1ª.",
# "Cláusula Quinta – Do prazo.". What a contract says in the clause follows in the same line.
_ORDINAL: Final = (
    r"(?:(?:d[ée]cim|vig[ée]sim)[oa]?[ -]?\w{3,7}|únic|primer|primeir|segund|terceir|tercer|cuart|quart|quint|"
    r"sext|s[ée]p?tim|octav|oitav|noven|non|d[ée]cim|und[ée]cim|duod[ée]cim|vig[ée]sim)[oa]"
)
_CLAUSE_NUMBER: Final = re.compile(
    r"[\s*_#]*(?:(?:cl[áa]usula|estipulaci[óo]n|disposi(?:ci[óo]n|ç[ãa]o)(?:\s+\w+)?|art[íi]culo|artigo|art\.?|"
    r"par[áa]grafo|§)"
    rf"\s+(?:{_ORDINAL}\b|\d{{1,3}}(?:\.?[ºª°])?|[ivxl]+\b)|{_ORDINAL}\b|\d{{1,3}}\.?[ºª°]|[ivxl]+(?=\.?\s?[–—-]))(?!\w)",
    re.IGNORECASE,
)
_CLAUSE_END: Final = re.compile(r"[\s.:)*_–—-]*")
# "Artigo 3.º Franquia" has a title, "Segunda planta" is no clause.
_BEFORE_TITLE: Final = r"(?:\s*[.:–—(\n-]+\s*|(?<=[ºª°\d])\s+|\s{2,})"
_CLAUSE_TITLE: Final = re.compile(rf"(?:{_BEFORE_TITLE}(?:[^\W\d]+[\s,]+){{0,4}}[^\W\d]+)?{_CLAUSE_END.pattern}")

# What has a name or a number after its period, unlike "etc." and "S.L.".
_ABBREVIATIONS: Final = re.compile(
    "(?:[Aa]pto|Arq|[Aa]vd?a?|[Cc][óo]d|[Cc]tra|D|Dra?|Dña|Dª|Ex[cm]*[oa]|Fdo|Il[tm]m?[oa]|Mª|[Nn]ro|[Nn]úm|Obs|[Pp]ág|"
    "Pe|Pl|Profa?|Pza|[Rr]ef|Sra?|Srta|St[ao]|[Tt]el)"
)
_ABBREVIATED: Final = re.compile(r"(?<![\w.])(\w{1,5})\.\Z")

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")

_LINE: Final = re.compile(r"[^\n]*\n?")

# The beginning of a line that is a sentence on its own: a list item, a heading, a table row, a quotation.
_OWN_LINE: Final = re.compile(r"\s*(?:[-*•·+>]\s|\d{1,2}[.)]\s|#{1,6}\s|\|)")

# The beginning of a line of an exported chat, and of a message in it: "12/03/24, 18:22 - Ana: ", "[12/3/2024,
# 6:22:10 p. m.] Ana: ". The lines up to the next one belong to it.
_CHAT_TIME: Final = (
    r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4},?\ {1,2}(?:a las |às )?\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:\ ?[ap]\.?\ ?m\.?)?"
)
_CHAT_LINE: Final = re.compile(
    rf"^(?:\[{_CHAT_TIME}\]|{_CHAT_TIME} [–-]) (?P<author>[^:\n]{{1,60}}:(?!\S) ?)?", re.IGNORECASE | re.MULTILINE
)

# A longer message, or row of a table, is cut into sentences. Quoted passages have up to about so many characters.
LONGEST_MESSAGE: Final = 400

# A line much shorter than wrapped text (60 to 80 characters), without punctuation at its end and before a capital
# letter or a digit, is a title, an address or a cell.
_SHORT_LINE: Final = 45

# The splitter takes quadratic time on one block of many sentences (measured: 12 s for 280,000 characters of
# Chinese), so a longer block is cut where a sentence seems to end.
_LONGEST_BLOCK: Final = 8_000
_LIKELY_ENDS: Final = ("\n", ". ", "? ", "! ", "。", "？", "！")


@dataclass(frozen=True, slots=True)
class TermLines:
    """The terms of a text's sentences in two texts of a line each: to find a term is to search a line for it.

    The words of a line have a space on each side. So ``f" {stem} "`` is in a line of stems if the sentence has the
    stem, and a 4-gram (``spaced_gram``) in a line of spellings if one of its words has it.
    """

    # The character offsets [start, end) of each sentence.
    spans: tuple[tuple[int, int], ...]
    stems: str
    spellings: str

    @classmethod
    def of(cls, text: str, language: Language) -> Self:
        """Cut a text into sentences, and find their terms."""
        return cls.with_terms(text, language)[0]

    @classmethod
    def with_terms(cls, text: str, language: Language) -> tuple[Self, str]:
        """Return the lines of a text and, found in one go, the terms that are indexed (``terms_line``)."""
        spans = sentence_spans(text, language)
        analyzed = [analyze(text[start:end], language) for start, end in spans]
        lines = list(map(word_lines, analyzed))
        stems, spellings = (line for line, _ in lines), (line for _, line in lines)
        terms = " ".join([found for words in analyzed for _, _, found in words])
        return cls(tuple(spans), "\n".join(stems), "\n".join(spellings)), terms

    def pack(self) -> bytes:
        """Return the value from which ``unpack`` makes an equal one."""
        offsets = " ".join(f"{start} {end}" for start, end in self.spans)
        return zlib.compress(_PART.join((str(LINES_VERSION), offsets, self.stems, self.spellings)).encode())

    @classmethod
    def unpack(cls, packed: bytes) -> Self | None:
        """Read a value of ``pack``; ``None`` if it is damaged, or of another version."""
        try:
            version, offsets, stems, spellings = zlib.decompress(packed).decode().split(_PART)
            numbers = list(map(int, offsets.split()))
            spans = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        except (ValueError, TypeError, zlib.error):
            return None
        return cls(spans, stems, spellings) if version == str(LINES_VERSION) else None


@dataclass(frozen=True)
class Sentence:
    """A sentence, verbatim, and its character offsets ``[start, end)`` in its text."""

    start: int
    end: int
    text: str
    # Its lines of a ``TermLines``.
    stem_line: str
    spelling_line: str

    @cached_property
    def stems(self) -> tuple[str, ...]:
        """The stems of its words, in order."""
        return tuple(self.stem_line.split())

    @cached_property
    def terms(self) -> frozenset[str]:
        """The stems and the 4-grams of its words."""
        return frozenset(self.stems).union(*map(spelling_grams, self.spelling_line.split()))

    @cached_property
    def numbers(self) -> frozenset[str]:
        """Its words with a digit, as they are written."""
        return words_with_digits(self.text)


_cached: OrderedDict[tuple[str, Language], tuple[Sentence, ...]] = OrderedDict()
_lock: Final = Lock()


def split_sentences(text: str, language: Language) -> tuple[Sentence, ...]:
    """Cut a chunk or an answer into sentences."""
    return remember_sentences(text, language, None)


def remember_sentences(text: str, language: Language, lines: TermLines | None) -> tuple[Sentence, ...]:
    """Cut a text into sentences with the help of its stored lines; ``split_sentences`` returns the same then."""
    with _lock:
        if (found := _cached.get((text, language))) is not None:
            _cached.move_to_end((text, language))
            return found
    lines = lines or TermLines.of(text, language)
    parts = zip(lines.spans, lines.stems.split("\n"), lines.spellings.split("\n"), strict=False)
    found = tuple(Sentence(start, end, text[start:end], *terms) for (start, end), *terms in parts)
    with _lock:
        _cached[text, language] = found
        if len(_cached) > CACHED_TEXTS:
            _cached.popitem(last=False)
    return found


def forget_sentences() -> None:
    """Empty the cache."""
    with _lock:
        _cached.clear()


def sentence_spans(text: str, language: Language) -> list[tuple[int, int]]:
    """Return the (start, end) offsets of each sentence, without the white space around it.

    A blank line, a list item, a heading and a table row always end a sentence; so does a line that ends in ";"
    before one with a capital letter. A message of a chat, and a row of a table, is one sentence unless it is long.
    """
    from sentencex import get_sentence_boundaries

    # The splitter does not accept a lone surrogate; the replacement has the same length.
    text = _LONE_SURROGATE.sub("\ufffd", text)
    spans: list[tuple[int, int]] = []
    for start, stop, whole in _chat_parts(text):
        if whole:
            spans.append(trim(text, start, stop))
            continue
        for offset, end in (piece for block in _blocks(text, start, stop) for piece in _pieces(text, *block)):
            found = get_sentence_boundaries(language, text[offset:end])
            _add(spans, text, [(offset + each["start_index"], offset + each["end_index"]) for each in found])
    return spans


def _add(spans: list[tuple[int, int]], text: str, found: Iterable[tuple[int, int]]) -> None:
    """Add the sentences of a piece of text, and join those that the splitter has cut."""
    first = len(spans)
    for start, end in (trim(text, *each) for each in found):
        if start < end and len(spans) > first and _continues(text, spans[-1], start):
            spans[-1] = (spans[-1][0], end)
        elif start < end:
            spans.append((start, end))


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Move two offsets inwards over white space."""
    stripped = text[start:end].lstrip()
    start = end - len(stripped)
    return start, start + len(stripped.rstrip())


def _chat_parts(text: str) -> Iterator[tuple[int, int, bool]]:
    """Cut a text at the lines of a chat; yield of each part whether it is a message, to be kept whole."""
    lines = list(_CHAT_LINE.finditer(text))
    ends = [*(line.start() for line in lines), len(text)]
    yield 0, ends[0], False
    for line, following in zip(lines, ends[1:], strict=True):
        begin = line.start()
        # The lines below belong to the message, and nothing tells it of those below the last one's blank line.
        end = text.find("\n\n" if line["author"] else "\n", begin, following)
        stop = following if end < 0 or (line["author"] and following < len(text)) else end
        yield begin, stop, stop - begin <= LONGEST_MESSAGE
        yield stop, following, False


def _is_in_a_row(text: str, first: int, second: int) -> bool:
    """Return whether two places are in one row of a table."""
    if "\n" in text[first:second]:
        return False
    # A text may have no lines: looking for their ends any farther would take quadratic time.
    farthest = min(second + LONGEST_MESSAGE, len(text))
    begin, end = text.rfind("\n", max(first - LONGEST_MESSAGE, 0), first) + 1, text.find("\n", second, farthest)
    end = farthest if end < 0 else end
    return end - begin <= LONGEST_MESSAGE and CELL_SEPARATOR in text[begin:end]


def message_body(text: str) -> str | None:
    """Return what a line of a chat says, after its time and author; ``None`` if the text does not begin as one."""
    line = _CHAT_LINE.match(text)
    return text[line.end() :] if line else None


def _continues(text: str, before: tuple[int, int], start: int) -> bool:
    """Return whether the splitter has cut a sentence in two.

    It cuts names at their period ("copia.BAK"), "D. Félix" and "Av. Paulista" after the abbreviation, "14.6.5.
    Instalar", "2. Pulse" and "Tercera. Renta." after the number, and lists of optional arguments ("[OPCIÓN]...
    [FICHERO]"). A sentence in a cell says little without the rest of its row.
    """
    end = before[1]
    if end == start:
        return text[end - 1] == "."
    if _is_in_a_row(text, before[0], start):
        return True
    if "\n" not in text[end:start] and (_NUMBER.fullmatch(text, *before) or is_clause_mark(text[slice(*before)])):
        return not _CLAUSE_NUMBER.match(text, start)
    if text[start] in "([" and text[max(end - 3, 0) : end].endswith(("...", "…")):
        return True
    last = _ABBREVIATED.search(text, max(before[0], end - 6), end)
    return last is not None and _ABBREVIATIONS.fullmatch(last[1]) is not None


def is_clause_mark(text: str, *, with_title: bool = True) -> bool:
    """Return whether a text is the number of a clause, perhaps with a title, and nothing else."""
    number = _CLAUSE_NUMBER.match(text)
    if number is None:
        return False
    return (_CLAUSE_TITLE if with_title else _CLAUSE_END).fullmatch(text, number.end()) is not None


def _blocks(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a text where no sentence continues: at blank lines, list items, headings, table rows, short lines."""
    previous = ""
    for match in _LINE.finditer(text, start, stop):
        line = match.group().strip()
        if match.start() > start and _separates(previous, line):
            yield start, match.start()
            start = match.start()
        previous = line
    if start < stop:
        yield start, stop


def _pieces(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a block that is too long for the splitter, where a sentence or else a word seems to end."""
    while stop - start > _LONGEST_BLOCK:
        limit = start + _LONGEST_BLOCK
        cut = max(text.rfind(end, start, limit) + len(end) for end in _LIKELY_ENDS)
        if cut <= start + 2:
            cut = text.rfind(" ", start, limit) + 1
        yield start, cut if cut > start else limit
        start = cut if cut > start else limit
    yield start, stop


def _separates(previous: str, line: str) -> bool:
    if (
        not line
        or not previous
        or _OWN_LINE.match(line + " ")
        or CELL_SEPARATOR in line
        or CELL_SEPARATOR in previous
    ):
        return True
    if previous.startswith("#"):
        return True
    begins = line[0].isupper() or line[0].isdigit() or line[0] in "¿¡"
    if begins and previous[-1] == ";":
        return True
    return len(previous) < _SHORT_LINE and begins and previous[-1] not in ",;-"
