"""Grammars in llguidance's dialect of Lark, and the nodes of a bounded schema, which write themselves as rules."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
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


# Bytes of a character at most, as it is written in a JSON string.
CHARACTER_BYTES: Final = 4


@dataclass(frozen=True)
class Literal:
    """One of several values, written out.

    Attributes:
        texts: The values as JSON.
    """

    texts: tuple[str, ...]

    @cached_property
    def cost(self) -> int:
        """Bytes at most."""
        return max(len(text.encode()) for text in self.texts)

    def write(self, grammar: Grammar) -> str:
        """Add the rules for this to a grammar and return the name of the first."""
        return grammar.rule(" | ".join(map(json.dumps, self.texts)))


@dataclass(frozen=True)
class Text:
    """A string.

    Attributes:
        limit: Bytes between the quotes at most.
        minimum: Characters at least.
        maximum: Characters at most.
        excluded: Values that it must not have.
        plain: Whether it holds no escapes, as the names of members do: they are compared as they are written.
    """

    limit: int
    minimum: int = 0
    maximum: int | None = None
    excluded: tuple[str, ...] = ()
    plain: bool = False

    @cached_property
    def cost(self) -> int:
        """Bytes at most."""
        return self.limit + 2

    def write(self, grammar: Grammar) -> str:
        """Add the rules for this to a grammar and return the name of the first."""
        character = PLAIN_CHARACTER if self.plain else f"{PLAIN_CHARACTER}|{ESCAPED_CHARACTER}"
        maximum = "" if self.maximum is None or self.maximum >= self.limit else self.maximum
        parts = [f'/(?-u:"({character}){{{self.minimum},{maximum}}}")/', f"/(?s-u:.){{2,{self.limit + 2}}}/"]
        parts += [f"~/(?-u:{bytes_pattern(to_json(name))})/" for name in self.excluded]
        parts += [f"~/(?s-u:.*{bytes_pattern(to_json(text)[1:-1])}.*)/" for text in grammar.forbidden]
        return grammar.rule(" & ".join(parts), terminal=True)


@dataclass(frozen=True)
class Digits:
    """A number without limits of its own.

    Attributes:
        whole: Digits before the point at most.
        decimals: Digits after it at most.
    """

    whole: int
    decimals: int

    @cached_property
    def cost(self) -> int:
        """Bytes at most."""
        return 1 + self.whole + (1 + self.decimals if self.decimals else 0)

    def write(self, grammar: Grammar) -> str:
        """Add the rules for this to a grammar and return the name of the first."""
        whole = rf"0|-?[1-9][0-9]{{0,{self.whole - 1}}}"
        if not self.decimals:
            return grammar.rule(f"/{whole}/", terminal=True)
        fraction = rf"-?(0|[1-9][0-9]{{0,{self.whole - 1}}})\.[0-9]{{1,{self.decimals}}}"
        return grammar.rule(f"/{whole}|{fraction}/", terminal=True)


@dataclass(frozen=True)
class Delegated:
    """A number within limits, or a string of some pattern or format, that llguidance compiles itself.

    Attributes:
        schema: The schema as JSON; it bounds the value.
        cost: Bytes at most.
    """

    schema: str
    cost: int

    def write(self, grammar: Grammar) -> str:
        """Add the rules for this to a grammar and return the name of the first."""
        return grammar.rule(f"%json {self.schema}")


@dataclass(frozen=True)
class Array:
    """A list.

    Attributes:
        items: What may stand at the first positions.
        other: What may stand at the others.
        minimum: Items at least.
        longest: Items at most.
    """

    items: tuple[Piece, ...]
    other: Piece | None
    minimum: int
    longest: int

    @cached_property
    def cost(self) -> int:
        """Bytes at most."""
        further = (self.longest - len(self.items)) * self.other.cost if self.other else 0
        return 2 + sum(item.cost for item in self.items) + further + max(self.longest - 1, 0)

    def write(self, grammar: Grammar) -> str:
        """Add the rules for this to a grammar and return the name of the first."""
        rest = ""
        for position in reversed(range(self.longest)):
            comma = '"," ' if position else ""
            item = self.items[position] if position < len(self.items) else self.other
            rest = f"{comma}{grammar.write(item) if item else ''} {rest}"
            if position >= self.minimum:
                rest = f"({rest})?"
            if position:
                rest = grammar.rule(rest)
        return grammar.rule(f'"[" {rest} "]"')


@dataclass(frozen=True)
class Member:
    """A member of an object.

    Attributes:
        name: Its name.
        value: Its value.
        required: Whether it must be there.
    """

    name: str
    value: Piece
    required: bool

    @cached_property
    def cost(self) -> int:
        """Bytes at most."""
        return len(to_json(self.name).encode()) + 1 + self.value.cost

    def write(self, grammar: Grammar) -> str:
        """Add the rules for this to a grammar and return the name of the first."""
        return grammar.rule(f'{json.dumps(to_json(self.name))} ":" {grammar.write(self.value)}')


@dataclass(frozen=True)
class Entry:
    """A member whose name is open.

    Attributes:
        name: What names it may have.
        value: Its value.
        required: Whether it must be there.
    """

    name: Piece
    value: Piece
    required: bool

    @cached_property
    def cost(self) -> int:
        """Bytes at most."""
        return self.name.cost + 1 + self.value.cost

    def write(self, grammar: Grammar) -> str:
        """Add the rules for this to a grammar and return the name of the first."""
        return grammar.rule(f'{grammar.write(self.name)} ":" {grammar.write(self.value)}')


@dataclass(frozen=True)
class Object:
    """An object, its members in this order.

    Attributes:
        members: The members.
    """

    members: tuple[Member | Entry, ...]

    @cached_property
    def cost(self) -> int:
        """Bytes at most."""
        return 2 + sum(member.cost for member in self.members) + max(len(self.members) - 1, 0)

    def write(self, grammar: Grammar) -> str:
        """Add the rules for this to a grammar and return the name of the first."""
        # What may follow another member, and what may come first: only the former begins with a comma.
        following, leading = '""', '""'
        for member in reversed(self.members):
            written = grammar.write(member)
            here = f'"," {written} {following}'
            first = f"{written} {following}"
            if member.required:
                following, leading = grammar.rule(here), grammar.rule(first)
            else:
                following, leading = grammar.rule(f"{here} | {following}"), grammar.rule(f"{first} | {leading}")
        return grammar.rule(f'"{{" {leading} "}}"')


@dataclass(frozen=True)
class Union:
    """One of several.

    Attributes:
        options: The alternatives.
    """

    options: tuple[Piece, ...]

    @cached_property
    def cost(self) -> int:
        """Bytes at most."""
        return max(option.cost for option in self.options)

    def write(self, grammar: Grammar) -> str:
        """Add the rules for this to a grammar and return the name of the first."""
        return grammar.rule(" | ".join(dict.fromkeys(map(grammar.write, self.options))))


def is_object(node: Piece) -> bool:
    """Tell whether a value is an object whatever it is."""
    if isinstance(node, Union):
        return all(map(is_object, node.options))
    if isinstance(node, Literal):
        return all(text.startswith("{") for text in node.texts)
    return isinstance(node, Object)
