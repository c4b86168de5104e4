"""Files inside other files (attachments, members of archives): what may be opened, how much and how deep."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import IO, Final

from lince_rag.documents.readers.blocks import Block, Content, ReadingOptions, Unreadable
from lince_rag.documents.readers.packages import MAXIMUM_UNPACKED_BYTES
from lince_rag.text.words import squeeze

# An archive with more is the backup of a whole folder; as one document, it would have too many subjects to find.
MAXIMUM_MEMBERS: Final = 1_000

# One member is in memory at a time, with what its reader makes of it, and a worker has 512 MiB.
MAXIMUM_MEMBER_BYTES: Final = 64 * 2**20

# An archive in an archive, or attached to a message. Some archives contain themselves, without end.
MAXIMUM_DEPTH: Final = 2


class LimitReached(Unreadable):
    """A limit of the whole file is reached, so that no other member can be read, either."""


@dataclass
class Budget:
    """What was read so far of the files inside one file, at all depths."""

    members: int = 0
    unpacked: int = 0
    # What could not be read: "name: reason".
    left_out: list[str] = field(default_factory=list)

    def add_member(self) -> None:
        """Count a member that is read."""
        self.members += 1
        if self.members > MAXIMUM_MEMBERS:
            raise LimitReached(f"more than {MAXIMUM_MEMBERS} files in it")

    def add_bytes(self, size: int) -> None:
        """Count bytes that were unpacked."""
        self.unpacked += size
        if self.unpacked > MAXIMUM_UNPACKED_BYTES:
            raise LimitReached("too large once unpacked")


@dataclass(frozen=True)
class Members:
    """Reads the files inside one file.

    Args:
        name: The name of the file that holds them.
        reader: Reads a file, given its name, its bytes, and what reads the files inside it in turn.
        suffixes: The suffixes that have a reader.
        options: How they are read.
        depth: The number of files that this one is in.
        budget: What was read so far.
    """

    name: str
    reader: Callable[[str, bytes, "Members"], Content]
    suffixes: Collection[str]
    options: ReadingOptions
    depth: int = 0
    budget: Budget = field(default_factory=Budget)

    def reads(self, name: str) -> bool:
        """Return whether there is a reader for a file of this name."""
        return PurePath(name).suffix.lower() in self.suffixes

    def read(self, name: str, data: bytes) -> Content:
        """Read a member.

        Raises:
            Unreadable: It cannot be read, whatever the reason, or there is no text in it.
        """
        self.budget.add_member()
        if not self.reads(name):
            raise Unreadable("not a supported kind of file")
        try:
            content = self.reader(name, data, replace(self, name=name, depth=self.depth + 1))
        except (MemoryError, Unreadable):
            raise
        except Exception as error:
            raise Unreadable(f"damaged file ({type(error).__name__}: {error})") from error
        if not any(character.isalnum() for block in content.blocks for character in block.text):
            raise Unreadable("no text in it")
        if content.pages_without_text:
            pages = ", ".join(map(str, content.pages_without_text))
            self.budget.left_out.append(f"{name}: pages without text (scanned?): {pages}")
        self.budget.left_out += [f"{name}: {each}" for each in content.left_out]
        return replace(content, blocks=[block for block in content.blocks if block.text])

    def unpack(self, stream: IO[bytes]) -> bytes:
        """Read a compressed member to its end, whatever size it declares, and refuse it if it is too large."""
        room = min(MAXIMUM_MEMBER_BYTES, MAXIMUM_UNPACKED_BYTES - self.budget.unpacked)
        data = stream.read(room + 1)
        self.budget.add_bytes(len(data))
        if len(data) > MAXIMUM_MEMBER_BYTES:
            raise Unreadable("too large once unpacked")
        return data


def as_section(title: str, blocks: list[Block], level: int) -> list[Block]:
    """Put a heading above the blocks of a member, whose own headings become deeper."""
    deeper = [replace(block, level=block.level and block.level + level) for block in blocks]
    # A reader may leave it to the text itself what stands before its first block.
    deeper[0] = replace(deeper[0], separator="\n\n")
    return [Block(squeeze(title), level=level, page=blocks[0].page), *deeper]
