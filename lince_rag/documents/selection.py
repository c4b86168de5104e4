"""Folders → the files to read: supported kinds, patterns, ``.linceignore``, hidden files and links left out."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from lince_rag.documents.files import FORMATS, IMAGE_FORMATS, StrPath, is_of_the_system, printable
from lince_rag.errors import ConfigurationError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# The file that makes a folder an index, which is no folder of documents.
LEDGER_FILE: Final = "ledger.sqlite"

# Its lines are patterns of files to leave out, as in git's .gitignore, below the folder that it is in.
IGNORE_FILE: Final = ".linceignore"


@dataclass
class FoundFiles:
    """The files to read, and those of the folders that are not read, by the reason.

    The reasons: ``unsupported`` (a kind of file that has no reader), ``hidden`` (the name begins with a dot; a
    hidden folder counts once), ``link`` (it leads out of the folder, or to a folder), ``ignored`` (a
    ``.linceignore`` names it), ``excluded`` (the call leaves it out).
    """

    files: list[Path] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, path: StrPath) -> None:
        """Note a file, or a folder with all it holds, that is not read."""
        self.skipped.setdefault(reason, []).append(printable(path))


@dataclass(frozen=True)
class FileSelection:
    """Which files of folders are read.

    Args:
        include: Patterns as in ``.gitignore``, from the folder on; only files that match one of them.
        exclude: Patterns of files and folders that are left out.
        since: Only files changed at this time or later, in seconds since 1970.
        follow_links: Whether links to folders, and to files outside the folder, are read. Each folder is then read
            once, so a cycle of links is harmless.
        readable: Patterns of files that are read although their kind has no reader here.
        ocr: Whether pictures are read.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    since: float | None = None
    follow_links: bool = False
    readable: Sequence[str] = ()
    ocr: bool = False

    @cached_property
    def included(self) -> "GitIgnoreSpec | None":
        """The patterns to include; ``None`` for all files."""
        return compile_patterns(self.include) if self.include else None

    @cached_property
    def excluded(self) -> "GitIgnoreSpec":
        """The patterns to leave out."""
        return compile_patterns(self.exclude)

    @cached_property
    def also_readable(self) -> "GitIgnoreSpec":
        """The patterns of files with a reader of the application's."""
        return compile_patterns(self.readable)


EVERY_FILE: Final = FileSelection()


def find_files(paths: StrPath | Iterable[StrPath], selection: FileSelection = EVERY_FILE) -> FoundFiles:
    """List the files to read, each once, in the order of the paths.

    A folder gives every file of a supported kind in it and below that the selection leaves in, sorted. A file
    given by name is kept whatever it is, and so is a path that does not exist: loading it reports what is wrong.

    Raises:
        ConfigurationError: A pattern cannot be understood.
    """
    found = FoundFiles()
    files: dict[str, Path] = {}
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        for file in Walk(str(Path(path)), found, selection).files() if os.path.isdir(path) else [path]:
            files.setdefault(os.path.abspath(file), Path(file))
    found.files = list(files.values())
    return found


def local_path(path: str | Path) -> Path:
    """Return the path that a user or a ``file:`` address means, absolute, without following links.

    Links stay, so that citations show the path that the user gave.

    Raises:
        ConfigurationError: The address is of another machine, or of the web.
    """
    text = os.fspath(path)
    if not text:
        raise ConfigurationError("A path is empty.", hint="Give a file or a folder; . is the current one.")
    # Path("file:///a") has lost the empty host.
    address = urlsplit(text.replace(":/", "://", 1) if isinstance(path, Path) else text)
    if address.scheme == "file" and address.netloc in ("", "localhost"):
        return Path(os.path.abspath(url2pathname(address.path)))
    if address.scheme in ("file", "http", "https", "ftp") and not os.path.exists(text):
        raise ConfigurationError(
            f"{text} is not on this machine.", hint="Download it, and give the file or its folder."
        )
    return Path(os.path.abspath(Path(path).expanduser()))


def compile_patterns(patterns: Iterable[str]) -> "GitIgnoreSpec":
    """Compile patterns as in ``.gitignore``; raises ``ConfigurationError``."""
    from pathspec import GitIgnoreSpec

    # One pattern is a text, too.
    lines = [patterns] if isinstance(patterns, str) else list(patterns)
    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise ConfigurationError(
            f"{lines!r} is not a list of patterns: {error}.",
            hint='Give patterns as in .gitignore: "*.pdf", "old/".',
        ) from error


class Walk:
    """Lists the files of one folder of this machine, and notes those that are not read."""

    def __init__(self, folder: str, found: FoundFiles, selection: FileSelection) -> None:
        self._folder = folder
        self._found = found
        self._selection = selection
        self._root = os.path.realpath(folder)
        self._visited = {self._root}
        # The patterns of the .linceignore of each folder that has one.
        self._ignored: dict[str, GitIgnoreSpec] = {}

    def files(self) -> list[str]:
        """Return the paths of the files to read, sorted."""
        files: list[str] = []

        def unreadable(error: OSError) -> None:
            # A folder that cannot be listed is kept, so that loading it reports it.
            files.append(error.filename)

        for parent, folders, names in self._walk(unreadable):
            if IGNORE_FILE in names:
                self._ignored[parent] = self._read_patterns(os.path.join(parent, IGNORE_FILE))
            folders[:] = [name for name in sorted(folders) if self._enters(os.path.join(parent, name), name)]
            paths = ((os.path.join(parent, name), name) for name in names)
            files += [path for path, name in paths if self._reads(path, name)]
        # As paths are sorted, which takes five times as long.
        return sorted(files, key=lambda file: file.split(os.sep))

    def _walk(self, unreadable: Callable[[OSError], None]) -> Iterable[tuple[str, list[str], list[str]]]:
        return os.walk(self._folder, onerror=unreadable, followlinks=self._selection.follow_links)

    def _enters(self, path: str, name: str) -> bool:
        real = os.path.realpath(path)
        if name.startswith("."):
            self._found.skip("hidden", path + os.sep)
        elif os.path.islink(path) and not self._selection.follow_links:
            self._found.skip("link", path + os.sep)
        elif is_of_the_system(real) or os.path.exists(os.path.join(path, LEDGER_FILE)):
            self._found.skip("unsupported", path + os.sep)
        elif reason := self._left_out(path + os.sep):
            self._found.skip(reason, path + os.sep)
        elif real not in self._visited:
            self._visited.add(real)
            return True
        return False

    def _reads(self, path: str, name: str) -> bool:
        if name.startswith("."):
            if name != IGNORE_FILE:
                self._found.skip("hidden", path)
        elif reason := self._left_out(path) or self._not_included(path):
            self._found.skip(reason, path)
        elif not self._has_reader(path, name):
            self._found.skip("unsupported", path)
        elif not self._selection.follow_links and self._leads_out(path):
            self._found.skip("link", path)
        else:
            return True
        return False

    def _leads_out(self, path: str) -> bool:
        return os.path.islink(path) and not is_inside(os.path.realpath(path), self._root)

    def _has_reader(self, path: str, name: str) -> bool:
        suffix = os.path.splitext(name)[1].lower()
        if suffix in FORMATS and FORMATS[suffix].name == "code" and self._is_empty(path):
            # As the __init__.py of every Python project is.
            return False
        known = suffix in FORMATS or (self._selection.ocr and suffix in IMAGE_FORMATS)
        return known or (bool(self._selection.readable) and self._selection.also_readable.match_file(name))

    def _left_out(self, path: str) -> str:
        """Return why a file or a folder (with a separator at its end) is left out, or ""."""
        if self._selection.exclude:
            relative = os.path.relpath(path, self._folder) + os.sep * path.endswith(os.sep)
            if self._selection.excluded.match_file(relative):
                return "excluded"
        if not self._ignored:
            return ""
        folder = os.path.dirname(path.rstrip(os.sep))
        # The nearest file that says something about the path decides.
        for parent in self._parents(folder):
            patterns = self._ignored.get(parent)
            # A file in a folder may be let in again, so a folder is not left out as a whole.
            if patterns and not (path.endswith(os.sep) and _lets_in(patterns)):
                relative = os.path.relpath(path, parent) + os.sep * path.endswith(os.sep)
                if (ignored := patterns.check_file(relative).include) is not None:
                    return "ignored" if ignored else ""
        return ""

    def _parents(self, folder: str) -> Iterator[str]:
        """Yield a folder and those above it, up to the one that is walked."""
        yield folder
        while len(folder) > len(self._folder):
            folder = os.path.dirname(folder)
            yield folder

    def _not_included(self, path: str) -> str:
        wanted, since = self._selection.included, self._selection.since
        if wanted is not None and not wanted.match_file(os.path.relpath(path, self._folder)):
            return "excluded"
        try:
            return "excluded" if since is not None and self._modified(path) < since else ""
        except OSError:
            # Loading it reports it.
            return ""

    def _modified(self, path: str) -> float:
        return os.stat(path).st_mtime

    def _is_empty(self, path: str) -> bool:
        try:
            return os.path.getsize(path) == 0
        except OSError:
            return False

    def _read_patterns(self, path: str) -> "GitIgnoreSpec":
        try:
            lines = self._read(path).decode("utf-8-sig", errors="replace").splitlines()
        except OSError:
            raise ConfigurationError(
                f"{path} cannot be read.", hint="Give yourself permission, or delete it."
            ) from None
        try:
            return compile_patterns(lines)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path} has a line that is not a pattern: {error}.") from None

    def _read(self, path: str) -> bytes:
        return Path(path).read_bytes()


def _lets_in(patterns: "GitIgnoreSpec") -> bool:
    return any(pattern.include is False for pattern in patterns.patterns)


def is_inside(path: str, folder: str) -> bool:
    """Return whether a path is below a folder, going by their names alone."""
    return path.startswith(os.path.join(folder, ""))
