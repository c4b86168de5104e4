"""Grammars written from the nodes of a bounded JSON schema, in llguidance's dialect of Lark."""

import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

# A string that is cut between the bytes of a character is still a valid beginning.
_HEADER: Final = '%llguidance {"allow_invalid_utf8": true}\n'

# One character of a JSON string, in UTF-8: no control character, and no U+FFFD, which stands for broken bytes.
_CONTINUED: Final = r"[\x80-\xbf]"
_PLAIN_CHARACTER: Final = "|".join(
    (
        r"[\x20\x21\x23-\x5b\x5d-\x7e]",
        rf"\xc2[\xa0-\xbf]|[\xc3-\xdf]{_CONTINUED}",
        rf"\xe0[\xa0-\xbf]{_CONTINUED}|[\xe1-\xec\xee]{_CONTINUED}{{2}}|\xed[\x80-\x9f]{_CONTINUED}",
        rf"\xef[\x80-\xbe]{_CONTINUED}|\xef\xbf[\x80-\xbc]",
        rf"\xf0[\x90-\xbf]{_CONTINUED}{{2}}|[\xf1-\xf3]{_CONTINUED}{{3}}|\xf4[\x80-\x8f]{_CONTINUED}{{2}}",
    )
)
_ESCAPED_CHARACTER: Final = r'\\["\\nt]'

# The white space of Unicode, in UTF-8; answers are stripped of it.
_BLANKS: Final = "|".join(
    (
        r"[\x09-\x0d\x1c-\x20]",
        r"\xc2[\x85\xa0]",
        r"\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80",
    )
)

# Maximum blanks before the JSON: in some vocabularies, the tokens that begin a word begin with one.
LEADING_BLANKS: Final = 2

# Maximum bytes of a character in a JSON string.
CHARACTER_BYTES: Final = 4


def to_json(value: Any) -> str:
    """Write a value as JSON without white space and without escaping letters."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Node(ABC):
    """A part of the JSON that may be written."""

    @cached_property
    def cost(self) -> int:
        """Maximum length in bytes."""
        return self._measure()

    @abstractmethod
    def _measure(self) -> int: ...

    @abstractmethod
    def _write(self, grammar: "Grammar") -> str:
        """Add the rules of this node to a grammar and return the name of the first."""

    def write(self, grammar: "Grammar") -> str:
        """Return the name of the first rule of this node, adding its rules once."""
        # A node may occur many times in one tree, as the items of a list do.
        if id(self) not in grammar.written:
            grammar.written[id(self)] = self._write(grammar)
        return grammar.written[id(self)]


class Grammar:
    """Collects the rules of a grammar for llguidance, whose free strings contain no ``forbidden`` text."""

    def __init__(self, forbidden: tuple[str, ...] = ()) -> None:
        self.forbidden = forbidden
        # First rules by the ``id`` of their node; the nodes must live as long as the grammar is written.
        self.written: dict[int, str] = {}
        self._names: dict[tuple[str, bool], str] = {}

    def rule(self, body: str, *, terminal: bool = False) -> str:
        """Add a rule, unless one has this body, and return its name; a terminal is a regular expression."""
        letter = "T" if terminal else "r"
        return self._names.setdefault((body, terminal), f"{letter}{len(self._names)}")

    def string(self, node: "Text") -> str:
        """Add the rule of a free string and return its name."""
        character = _PLAIN_CHARACTER if node.plain else f"{_PLAIN_CHARACTER}|{_ESCAPED_CHARACTER}"
        maximum = "" if node.maximum is None or node.maximum >= node.limit else node.maximum
        parts = [f'/(?-u:"({character}){{{node.minimum},{maximum}}}")/', f"/(?s-u:.){{2,{node.limit + 2}}}/"]
        parts += [f"~/(?-u:{_bytes_pattern(to_json(name))})/" for name in node.excluded]
        parts += [f"~/(?s-u:.*{_bytes_pattern(to_json(text)[1:-1])}.*)/" for text in self.forbidden]
        return self.rule(" & ".join(parts), terminal=True)

    def number(self, node: "Digits") -> str:
        """Add the rule of a number without limits and return its name."""
        whole = rf"0|-?[1-9][0-9]{{0,{node.whole - 1}}}"
        if not node.decimals:
            return self.rule(f"/{whole}/", terminal=True)
        fraction = rf"-?(0|[1-9][0-9]{{0,{node.whole - 1}}})\.[0-9]{{1,{node.decimals}}}"
        return self.rule(f"/{whole}|{fraction}/", terminal=True)

    def delegated(self, node: "Delegated") -> str:
        """Add the rule of a value that the grammar's compiler constrains by its schema, and return its name."""
        return self.rule(f"%json {node.schema}")

    def blanks(self) -> str:
        """Add the rule of the blanks before the JSON and return its name."""
        return self.rule(rf"/[ \n]{{1,{LEADING_BLANKS}}}/", terminal=True)

    def free_text(self) -> str:
        """Add the rule of a text that does not begin with an object, and return its name."""
        # llguidance writes control tokens with the byte 0xff, so a text cannot contain one.
        return self.rule(rf"/(?s-u:[\x00-\xfe]+)/ & ~/(?s-u:({_BLANKS})*\{{.*)/", terminal=True)

    def write(self, value: Node, *, text_allowed: bool = False) -> str:
        """Write the grammar of a value, with up to ``LEADING_BLANKS`` blanks before it.

        With ``text_allowed``, any text that does not begin with ``{`` after its blanks is allowed instead of the
        value.
        """
        start = f"{self.blanks()}? {value.write(self)}"
        if text_allowed:
            start = f'{start} | {self.free_text()} | ""'
        return self._whole(start)

    def _whole(self, start: str) -> str:
        """Return the whole grammar, with ``start`` as the body of its start rule."""
        return f"{_HEADER}start: {start}\n{self._rules(':')}"

    def _rules(self, separator: str) -> str:
        return "".join(f"{name}{separator} {body}\n" for (body, _), name in self._names.items())


def _bytes_pattern(text: str) -> str:
    """Return a regular expression that matches the bytes of a text."""
    return re.sub(r"(?s).", lambda found: f"\\x{ord(found.group()):02x}", text.encode().decode("latin-1"))


@dataclass(frozen=True)
class Literal(Node):
    """One of several values, given as JSON."""

    texts: tuple[str, ...]

    def _measure(self) -> int:
        return max(len(text.encode()) for text in self.texts)

    def _write(self, grammar: Grammar) -> str:
        return grammar.rule(" | ".join(map(to_json, self.texts)))


@dataclass(frozen=True)
class Text(Node):
    """A string."""

    # Maximum bytes between the quotes.
    limit: int
    # Minimum and maximum characters.
    minimum: int = 0
    maximum: int | None = None
    excluded: tuple[str, ...] = ()
    # Without escapes, as in the names of members, which are compared as they are written.
    plain: bool = False

    def _measure(self) -> int:
        return self.limit + 2

    def _write(self, grammar: Grammar) -> str:
        return grammar.string(self)


@dataclass(frozen=True)
class Digits(Node):
    """A number without limits in the schema, with a maximum of digits before and after the point."""

    whole: int
    decimals: int

    def _measure(self) -> int:
        return 1 + self.whole + (1 + self.decimals if self.decimals else 0)

    def _write(self, grammar: Grammar) -> str:
        return grammar.number(self)


@dataclass(frozen=True)
class Delegated(Node):
    """A number with limits, or a string with a pattern or format, which llguidance compiles itself."""

    # The schema as JSON, and the maximum length in bytes of a value of it.
    schema: str
    limit: int

    def _measure(self) -> int:
        return self.limit

    def _write(self, grammar: Grammar) -> str:
        return grammar.delegated(self)


@dataclass(frozen=True)
class Array(Node):
    """A list; ``other`` is what may follow the first items."""

    items: tuple[Node, ...]
    other: Node | None
    # Minimum and maximum number of items.
    minimum: int
    longest: int

    def _measure(self) -> int:
        further = (self.longest - len(self.items)) * self.other.cost if self.other else 0
        return 2 + sum(item.cost for item in self.items) + further + max(self.longest - 1, 0)

    def _write(self, grammar: Grammar) -> str:
        rest = ""
        for position in reversed(range(self.longest)):
            comma = '"," ' if position else ""
            item = self.items[position] if position < len(self.items) else self.other
            rest = f"{comma}{item.write(grammar) if item else ''} {rest}"
            if position >= self.minimum:
                rest = f"({rest})?"
            if position:
                rest = grammar.rule(rest)
        return grammar.rule(f'"[" {rest} "]"')


@dataclass(frozen=True)
class Member(Node):
    """A named member of an object."""

    name: str
    value: Node
    required: bool

    def _measure(self) -> int:
        return len(to_json(self.name).encode()) + 1 + self.value.cost

    def _write(self, grammar: Grammar) -> str:
        return grammar.rule(f'{to_json(to_json(self.name))} ":" {self.value.write(grammar)}')


@dataclass(frozen=True)
class OpenMember(Node):
    """A member of an object whose name the schema leaves open."""

    name: Node
    value: Node
    required: bool

    def _measure(self) -> int:
        return self.name.cost + 1 + self.value.cost

    def _write(self, grammar: Grammar) -> str:
        return grammar.rule(f'{self.name.write(grammar)} ":" {self.value.write(grammar)}')


@dataclass(frozen=True)
class Object(Node):
    """An object with its members in this order."""

    members: tuple[Member | OpenMember, ...]

    def _measure(self) -> int:
        return 2 + sum(member.cost for member in self.members) + max(len(self.members) - 1, 0)

    def _write(self, grammar: Grammar) -> str:
        # What may follow another member, and what may come first: only the former begins with a comma.
        following, leading = '""', '""'
        for member in reversed(self.members):
            written = member.write(grammar)
            here = f'"," {written} {following}'
            first = f"{written} {following}"
            if member.required:
                following, leading = grammar.rule(here), grammar.rule(first)
            else:
                following, leading = grammar.rule(f"{here} | {following}"), grammar.rule(f"{first} | {leading}")
        return grammar.rule(f'"{{" {leading} "}}"')


@dataclass(frozen=True)
class Union(Node):
    """One of several nodes."""

    options: tuple[Node, ...]

    def _measure(self) -> int:
        return max(option.cost for option in self.options)

    def _write(self, grammar: Grammar) -> str:
        return grammar.rule(" | ".join(dict.fromkeys(option.write(grammar) for option in self.options)))


def is_object(node: Node) -> bool:
    """Return whether every value of a node is an object."""
    if isinstance(node, Union):
        return all(map(is_object, node.options))
    if isinstance(node, Literal):
        return all(text.startswith("{") for text in node.texts)
    return isinstance(node, Object)
