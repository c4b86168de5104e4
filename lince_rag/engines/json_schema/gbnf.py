"""Grammars in GBNF, the notation of llama.cpp that vLLM and SGLang read, too.

GBNF has no negation. So it keeps no stop texts out of strings, and enforces no patterns, formats or limits of
decimals: whoever uses it checks the JSON that comes back.
"""

import json
from typing import Final

from lince_rag.engines.json_schema.grammar import (
    CHARACTER_BYTES,
    LEADING_BLANKS,
    Delegated,
    Digits,
    Grammar,
    Text,
)

# A character of a JSON string: no control character, and no U+FFFD, which stands for broken bytes.
_PLAIN_CHARACTER: Final = r'[^"\\\x00-\x1f\x7f\uFFFD]'
_ESCAPED_CHARACTER: Final = r'"\\" ["\\nt]'

# The white space of Unicode; answers are stripped of it.
_BLANK: Final = r"\x09-\x0d\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

# Maximum digits of a number whose limits the grammar does not enforce.
_DIGITS: Final = Digits(whole=12, decimals=6)

# The most characters of a string: llama.cpp refuses more than 2,000 repetitions of a rule.
_LONGEST: Final = 1900


class GbnfGrammar(Grammar):
    """Collects the rules of a grammar in GBNF."""

    def string(self, node: Text) -> str:
        """Add the rule of a free string and return its name."""
        # Only characters can be counted, and each may take several bytes.
        room = max(node.limit // CHARACTER_BYTES, min(node.minimum, node.limit))
        maximum = min(room, node.limit if node.maximum is None else node.maximum, _LONGEST)
        character = _PLAIN_CHARACTER if node.plain else f"({_PLAIN_CHARACTER} | {_ESCAPED_CHARACTER})"
        return self.rule(f'"\\"" {character}{{{min(node.minimum, maximum)},{maximum}}} "\\""')

    def number(self, node: Digits) -> str:
        """Add the rule of a number and return its name."""
        return self._number(node, '"-"? ')

    def _number(self, node: Digits, sign: str) -> str:
        whole = f'("0" | {sign}[1-9] [0-9]{{0,{node.whole - 1}}})'
        fraction = f'{sign}("0" | [1-9] [0-9]{{0,{node.whole - 1}}}) "." [0-9]{{1,{node.decimals}}}'
        return self.rule(f"{whole} | {fraction}" if node.decimals else whole)

    def delegated(self, node: Delegated) -> str:
        """Add the rule of an integer within its limits, or of a value of the same type, and return its name."""
        schema = json.loads(node.schema)
        if schema["type"] == "string":
            return self.string(Text(limit=max(node.limit - 2, 0)))
        if schema["type"] == "integer" and schema["multipleOf"] == 1:
            return self.rule(" | ".join(_integers(schema["minimum"], schema["maximum"])))
        digits = Digits(_DIGITS.whole, 0) if schema["type"] == "integer" else _DIGITS
        return self._number(digits, "" if schema["minimum"] >= 0 else '"-"? ')

    def blanks(self) -> str:
        """Add the rule of the blanks before the JSON and return its name."""
        return self.rule(f"[ \\n]{{1,{LEADING_BLANKS}}}")

    def free_text(self) -> str:
        """Add the rule of a text that does not begin with an object, and return its name."""
        return self.rule(rf"[{_BLANK}]* [^{_BLANK}{{\x00] [^\x00]*")

    def _whole(self, start: str) -> str:
        return f"root ::= {start}\n{self._rules(' ::=')}"


def _integers(least: int, most: int) -> list[str]:
    """Return the alternatives of a rule for the integers of a range."""
    if least < 0:
        negative = [f'"-" {digits}' for digits in _integers(max(-most, 1), -least)]
        return negative + (_integers(0, most) if most >= 0 else [])
    found = []
    for length in range(len(str(least)), len(str(most)) + 1):
        low, high = max(least, 10 ** (length - 1) if length > 1 else 0), min(most, 10**length - 1)
        found.append(_digits(str(low), str(high)))
    return found


def _digits(low: str, high: str) -> str:
    """Return a rule for the numbers between two of the same length."""
    if not low:
        return '""'
    if low[0] == high[0]:
        return f'"{low[0]}" {_digits(low[1:], high[1:])}'
    length = len(low) - 1
    parts = [f'"{low[0]}" {_digits(low[1:], "9" * length)}', f'"{high[0]}" {_digits("0" * length, high[1:])}']
    if int(high[0]) - int(low[0]) > 1:
        parts.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}] [0-9]{{{length}}}")
    return f"({' | '.join(parts)})"
