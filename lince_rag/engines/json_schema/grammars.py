"""Grammars in llguidance's dialect of Lark, rule by rule."""

import json
import re
from typing import Any, Final, Protocol

# A string that is cut between the bytes of a character is still the beginning of one.
_HEADER: Final = '%llguidance {"allow_invalid_utf8": true}\n'

# One character of a JSON string, in UTF-8: no control character, and no U+FFFD, which stands for broken bytes.
_CONTINUED: Final = r"[\x80-\xbf]"
PLAIN_CHARACTER: Final = "|".join(
    (
        r"[\x20\x21\x23-\x5b\x5d-\x7e]",
        rf"\xc2[\xa0-\xbf]|[\xc3-\xdf]{_CONTINUED}",
        rf"\xe0[\xa0-\xbf]{_CONTINUED}|[\xe1-\xec\xee]{_CONTINUED}{{2}}|\xed[\x80-\x9f]{_CONTINUED}",
        rf"\xef[\x80-\xbe]{_CONTINUED}|\xef\xbf[\x80-\xbc]",
        rf"\xf0[\x90-\xbf]{_CONTINUED}{{2}}|[\xf1-\xf3]{_CONTINUED}{{3}}|\xf4[\x80-\x8f]{_CONTINUED}{{2}}",
    )
)
ESCAPED_CHARACTER: Final = r'\\["\\nt]'

# What answers are stripped of, in UTF-8: the white space of Unicode.
_BLANKS: Final = "|".join(
    (
        r"[\x09-\x0d\x1c-\x20]",
        r"\xc2[\x85\xa0]",
        r"\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80",
    )
)

# Blanks that may stand before JSON: the pieces that words begin with have one in some vocabularies.
LEADING_BLANKS: Final = 2


class Piece(Protocol):
    """A part of what may be written."""

    @property
    def cost(self) -> int:
        """Bytes at most."""

    def write(self, grammar: "Grammar") -> str:
        """Add the rules for this to a grammar and return the name of the first."""


def to_json(value: Any) -> str:
    """Write a value as the grammars here do: no white space, and every letter as itself."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def bytes_pattern(text: str) -> str:
    """Write a text as a regular expression over its bytes."""
    return re.sub(r"(?s).", lambda found: f"\\x{ord(found.group()):02x}", text.encode().decode("latin-1"))


class Grammar:
    """Collects the rules of a grammar.

    Args:
        forbidden: Texts that no free string may hold.
    """

    def __init__(self, forbidden: tuple[str, ...] = ()) -> None:
        self.forbidden = forbidden
        self._names: dict[tuple[str, bool], str] = {}
        # Nodes occur many times in one tree, as the items of a list do.
        self._written: dict[int, str] = {}

    def write(self, piece: Piece) -> str:
        """Add the rules of a piece, once.

        Args:
            piece: What to write; it lives as long as the grammar is written.

        Returns:
            The name of its first rule.
        """
        if id(piece) not in self._written:
            self._written[id(piece)] = piece.write(self)
        return self._written[id(piece)]

    def rule(self, body: str, *, terminal: bool = False) -> str:
        """Add a rule, or find the one with the same body.

        Args:
            body: Its right-hand side.
            terminal: Whether the lexer reads it: then it is one regular expression.

        Returns:
            Its name.
        """
        letter = "T" if terminal else "r"
        return self._names.setdefault((body, terminal), f"{letter}{len(self._names)}")

    def text(self, start: str) -> str:
        """Write the grammar out.

        Args:
            start: The right-hand side that everything begins with.

        Returns:
            The grammar.
        """
        rules = "".join(f"{name}: {body}\n" for (body, _), name in self._names.items())
        return f"{_HEADER}start: {start}\n{rules}"


def write_grammar(value: Piece, forbidden: tuple[str, ...] = (), *, text_allowed: bool = False) -> str:
    """Write the grammar of a value.

    Args:
        value: The value.
        forbidden: Texts that no free string may hold.
        text_allowed: Whether there may be any text instead, whose first character is no ``{``, blanks aside.

    Returns:
        A grammar in llguidance's dialect of Lark; before the value there may be ``LEADING_BLANKS`` blanks.
    """
    grammar = Grammar(forbidden)
    blank = grammar.rule(rf"/[ \n]{{1,{LEADING_BLANKS}}}/", terminal=True)
    start = f"{blank}? {grammar.write(value)}"
    if text_allowed:
        # Control tokens are written with the byte 0xff, so no text holds one.
        free = grammar.rule(rf"/(?s-u:[\x00-\xfe]+)/ & ~/(?s-u:({_BLANKS})*\{{.*)/", terminal=True)
        start = f'{start} | {free} | ""'
    return grammar.text(start)
