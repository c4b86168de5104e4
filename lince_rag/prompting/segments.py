"""Which stretches of a rendered prompt are content, and which the template's own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lince_rag.errors import TemplateError

_PRIVATE_USE: Final = range(0xE000, 0xF900)


@dataclass(frozen=True)
class Segment:
    """A stretch of a prompt.

    Attributes:
        text: The characters.
        is_content: Whether they come from a message or a document, and not from the template.
    """

    text: str
    is_content: bool


class ContentWrapper:
    """Wraps each content, with its number, in two characters that occur nowhere else, to find it again.

    Args:
        texts: Everything that the prompt could be made of.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        used = set().union(*texts)
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        try:
            self.start, self.end = next(free), next(free)
        except StopIteration:
            raise TemplateError(
                "The messages use up all private-use characters.",
                hint="Take the binary data out of the messages.",
            ) from None
        self.count = 0

    def wrap(self, text: str) -> str:
        """Wrap a content, its surrounding whitespace left outside so that a template can trim it."""
        core = text.strip()
        if not core:
            return text
        before, after = text.split(core, 1)
        wrapped = f"{before}{self.start}{self.count}{self.start}{core}{self.end}{after}"
        self.count += 1
        return wrapped

    def split(self, rendered: str) -> tuple[list[Segment], set[int]]:
        """Split a rendered prompt into segments, and say which contents are in it."""
        start, end = self.start, self.end
        pieces = re.split(f"{start}([0-9]+){start}([^{start}{end}]*){end}", rendered)
        if any(start in piece or end in piece for piece in pieces):
            raise TemplateError(
                "The chat template cuts a message or a document apart.",
                hint="Use a template that prints them whole.",
            )
        # re.split gives template text, number, content, template text, and so on.
        segments = [
            Segment(piece, is_content=position % 3 == 2)
            for position, piece in enumerate(pieces)
            if piece and position % 3 != 1
        ]
        return segments, {int(number) for number in pieces[1::3]}
