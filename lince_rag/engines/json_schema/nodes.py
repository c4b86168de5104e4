r"""What a JSON schema allows, in pieces of known length: each writes itself as a rule of a grammar.

Every piece knows how many bytes of JSON it takes at most. A token that a grammar lets through is at least one byte
long, in byte-level vocabularies and in those that fall back to bytes alike, so a JSON text of so many bytes never
takes more tokens. Strings are bounded as they are written, escapes and the bytes of ``ñ`` or ``🦙`` included.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from lince_rag.engines.json_schema.grammars import (
    ESCAPED_CHARACTER,
    PLAIN_CHARACTER,
    Grammar,
    Piece,
    bytes_pattern,
    to_json,
)

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
