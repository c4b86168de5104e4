"""Calls of tools as models write them: ``{"tool_calls":[{"name":…,"arguments":…}]}``, whole and while they come.

An answer that is not a call never begins with a brace where calls are allowed, so no text can be read as one.
Either may have blanks before it, which some tokenizers have in the pieces that words begin with.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_CALLS_START: Final = '{"tool_calls":['
_CALL_START: Final = re.compile(r',?\{"name":("(?:[^"\\]|\\.)*"),"arguments":')
_BRACES: Final = re.compile(r'"(?:[^"\\]|\\.)*"?|[{}]')


@dataclass(frozen=True)
class WrittenCall:
    """A call as it stands in an answer, or its beginning.

    Attributes:
        name: The tool's name.
        arguments: Its arguments as JSON, so far.
        complete: Whether that is all of them.
    """

    name: str
    arguments: str
    complete: bool


def to_json(value: Any) -> str:
    """Write a value as prompts and answers have it: no white space, and every letter as itself.

    Args:
        value: Anything that JSON can hold.

    Returns:
        The JSON.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_calls(calls: Sequence[Mapping[str, Any]]) -> str:
    """Write calls the way models write them.

    Args:
        calls: LangChain's tool calls, with ``name`` and ``args``.

    Returns:
        The calls as an answer.
    """
    return to_json({"tool_calls": [{"name": call["name"], "arguments": call["args"]} for call in calls]})


def may_be_calls(text: str) -> bool:
    """Tell whether a text, or what it may go on to be, is an answer that calls tools.

    Args:
        text: An answer, or its beginning.

    Returns:
        Whether it is.
    """
    text = text.lstrip()
    return text.startswith(_CALLS_START) or _CALLS_START.startswith(text)


def read_calls(text: str) -> Iterator[WrittenCall]:
    """Read the calls of an answer, also of one that is still being written.

    Args:
        text: The answer so far; ``write_calls`` says how it begins.

    Yields:
        The calls in order; the last one may be incomplete.
    """
    text = text.lstrip()
    position = len(_CALLS_START) if text.startswith(_CALLS_START) else len(text)
    while start := _CALL_START.match(text, position):
        end = _find_end(text, start.end())
        yield WrittenCall(json.loads(start[1]), text[start.end() : end], end is not None)
        position = len(text) if end is None else end + 1


def _find_end(text: str, start: int) -> int | None:
    """Find the end of the object that starts at a position."""
    depth = 0
    for match in _BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.end()
    return None
