"""The content of a prompt: it is tracked through a template, and it cannot forge the prompt's structure.

A rendered prompt consists of segments, which are either content (text of a message or a document) or the
template's own. ``ContentWrapper`` finds the content again after rendering. ``neutralize`` breaks whatever a model
would read as structure (section markers and control tokens) by one backslash after its first character,
``restore`` undoes that, and ``break_joints`` breaks the markers that only arise where two segments meet.
"""

import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

from lince_rag.errors import TemplateError

_PRIVATE_USE: Final = range(0xE000, 0xF900)

BACKSLASH: Final = "\\"

# What shows nothing, wherever it stands: Unicode's Default_Ignorable_Code_Point (soft hyphen, joiners, directions,
# variation selectors, tags). A marker with it inside reads as the marker.
_INVISIBLE: Final = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)

# With what a marker can be padded: white space, also as SentencePiece writes it (U+2581), which the tokenizers of
# the LLaMA models read as a space, and what shows nothing.
_SPACE: Final = f"[\\s\u2581{_INVISIBLE}]"

_IS_SPACE: Final = re.compile(_SPACE)

_LINE_BREAKS: Final = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")

_JSON_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class Segment:
    """A span of a prompt, which is either content or the template's own text."""

    text: str
    is_content: bool


class ContentWrapper:
    """Wraps each content, with its number, in two characters that do not occur in the given texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        used = set().union(*texts)
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        try:
            self.start, self.end = next(free), next(free)
        except StopIteration:
            raise TemplateError(
                "The messages use up all private-use characters.", hint="Remove the binary data from the messages."
            ) from None
        self.count = 0

    def wrap(self, text: str) -> str:
        """Wrap a content; the white space around it stays outside, so that a template can trim it."""
        core = text.strip()
        if not core:
            return text
        before, after = text.split(core, 1)
        wrapped = f"{before}{self.start}{self.count}{self.start}{core}{self.end}{after}"
        self.count += 1
        return wrapped

    def split(self, rendered: str) -> tuple[list[Segment], set[int]]:
        """Split a rendered prompt into segments, and return also the numbers of the contents found in it."""
        start, end = self.start, self.end
        pieces = re.split(f"{start}([0-9]+){start}([^{start}{end}]*){end}", rendered)
        if any(start in piece or end in piece for piece in pieces):
            raise TemplateError(
                "The chat template cuts a message or a document.",
                hint="Use a template that prints messages and documents in full.",
            )
        # re.split gives template text, number, content, template text, and so on.
        segments = [
            Segment(piece, is_content=position % 3 == 2)
            for position, piece in enumerate(pieces)
            if piece and position % 3 != 1
        ]
        return segments, {int(number) for number in pieces[1::3]}


@dataclass(frozen=True)
class MarkerPatterns:
    """What counts as structure in one format, each match in group 1 of a lookahead; see ``compile_patterns``."""

    anywhere: re.Pattern[str]
    line_start: re.Pattern[str]


def compile_patterns(
    markers: Sequence[str] = (), line_markers: Sequence[str] = (), control_tokens: Sequence[str] = ()
) -> MarkerPatterns:
    """Compile the markers that count anywhere, those that count at the start of a line, and the control tokens.

    Markers match whatever their case, accents and white space. Control tokens match exactly; one that has a single
    character, or a backslash, cannot be broken visibly and is left to the encoding by segments.
    """
    tokens = [token for token in control_tokens if len(token.strip()) > 1 and BACKSLASH not in token]
    # The longest first, so that a match covers everything that a longer token would.
    exact = [f"(?-i:{re.escape(token)})" for token in sorted(set(tokens), key=len, reverse=True)]
    return MarkerPatterns(
        anywhere=_alternatives([*map(_marker_pattern, markers), *exact]),
        line_start=_alternatives([*map(_marker_pattern, line_markers)]),
    )


def _marker_pattern(marker: str) -> str:
    """Match a marker with any white space between its words and its punctuation, and invisible things in them."""
    runs = [match.group() for match in re.finditer(r"\w+|([^\w\s])\1*", marker)]
    return f"{_SPACE}*".join(f"[{_INVISIBLE}]*".join(map(_character_pattern, run)) for run in runs)


def _character_pattern(character: str) -> str:
    """Match a letter with or without its accent, however the accent is encoded, and whatever hides before it."""
    decomposed = unicodedata.normalize("NFD", character)
    if len(decomposed) == 1:
        return re.escape(character)
    return f"(?:{character}|{decomposed[0]}(?:[{_INVISIBLE}]*+[\u0300-\u036f])*+)"


def _alternatives(patterns: Sequence[str]) -> re.Pattern[str]:
    # A lookahead also finds overlapping occurrences; "(?!)" never matches.
    return re.compile(f"(?=({'|'.join(patterns) or '(?!)'}))", re.IGNORECASE)


def neutralize(text: str, patterns: MarkerPatterns) -> str:
    r"""Break every marker and control token in a text by one backslash after its first character.

    An occurrence that is already broken gets one more backslash, so that ``restore`` can distinguish them.
    """
    return _insert_backslashes(text, _cuts(text, patterns))


def restore(text: str, patterns: MarkerPatterns) -> str:
    """Undo ``neutralize`` in a text, or in an answer that quotes neutralised text."""
    pieces, start = [], 0
    for cut in _cuts(text, patterns):
        pieces.append(text[start:cut])
        start = cut + text.startswith(BACKSLASH, cut)
    return "".join([*pieces, text[start:]])


def restore_json(text: str, patterns: MarkerPatterns) -> str:
    """Undo ``neutralize`` in the strings of JSON, or of its beginning; an open string stays as it is."""

    def restored(match: re.Match[str]) -> str:
        value = json.loads(match.group())
        original = restore(value, patterns)
        return match.group() if original == value else json.dumps(original, ensure_ascii=False)

    return _JSON_STRING.sub(restored, text)


def find_open_string(text: str) -> int:
    """Return where the string starts that is still open in a beginning of JSON, or else the text's length."""
    end = max((match.end() for match in _JSON_STRING.finditer(text)), default=0)
    start = text.find('"', end)
    return len(text) if start < 0 else start


def _cuts(text: str, patterns: MarkerPatterns) -> list[int]:
    """Find the positions just after the first character of every marker, broken or not.

    Backslashes are ignored in the search. So a text and its neutralised form have the same positions, which is why
    ``restore`` undoes ``neutralize`` exactly: one adds a backslash at each of them, the other removes it.
    """
    starts = sorted({start for start, _ in _find_markers(text.replace(BACKSLASH, ""), patterns)})
    if not starts:
        return []
    offsets = [offset for offset, character in enumerate(text) if character != BACKSLASH]
    return [offsets[start] + 1 for start in starts]


def _find_markers(text: str, patterns: MarkerPatterns) -> Iterator[tuple[int, int]]:
    """Yield the span of every marker and control token in a text, including overlapping ones."""
    for match in patterns.anywhere.finditer(text):
        yield match.span(1)
    for match in patterns.line_start.finditer(text):
        if _is_line_start(text, match.start()):
            yield match.span(1)


def _is_line_start(text: str, position: int) -> bool:
    """Return whether only white space precedes a position in its line."""
    while position and _IS_SPACE.match(text[position - 1]):
        if text[position - 1] in _LINE_BREAKS:
            return True
        position -= 1
    return position == 0


def _insert_backslashes(text: str, cuts: Sequence[int]) -> str:
    return BACKSLASH.join(text[start:end] for start, end in pairwise([0, *cuts, len(text)]))


def break_joints(segments: list[Segment], patterns: MarkerPatterns) -> list[Segment]:
    """Break the markers that only arise where content meets the template or other content.

    The backslash goes into the content: after the marker's first character if that is content.
    """
    starts = [0, *accumulate(len(segment.text) for segment in segments)]
    insertions: dict[int, set[int]] = {}
    for start, end in _find_markers("".join(segment.text for segment in segments), patterns):
        first = bisect_right(starts, start) - 1
        last = bisect_right(starts, end - 1) - 1
        content = next((index for index in range(first, last + 1) if segments[index].is_content), None)
        if content is not None:
            offset = start + 1 - starts[first] if content == first else 0
            insertions.setdefault(content, set()).add(offset)
    for index, offsets in insertions.items():
        broken = _insert_backslashes(segments[index].text, sorted(offsets))
        segments[index] = Segment(broken, is_content=True)
    return segments
