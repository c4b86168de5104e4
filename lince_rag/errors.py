"""The errors that lince_rag raises.

    LinceError
    ├── ConfigurationError         a wrong value in a call, a flag or a models.toml
    │   ├── UnknownModelError      no such model name
    │   ├── MissingExtraError      an optional dependency is not installed
    │   └── EmbeddingsMismatchError  the index was built with another embedder
    ├── TemplateError              a chat template cannot render these messages
    │   └── UnusedDocumentsError   documents were given, but the template has no place for them
    ├── DocumentError              a file cannot be turned into text
    ├── IndexFolderError           the index folder is missing, damaged or holds something else
    │   ├── IndexDamagedError      a store or the ledger of the index is damaged
    │   ├── IndexLockedError       another process is writing to the index
    │   └── IndexServerError       a server of a shared index cannot be reached, or refuses
    ├── ExportFileError            an exported index cannot be written, or the file is not one, damaged or newer
    ├── ContextWindowError         a prompt is longer than the model's window
    ├── EngineError                the engine cannot load or run a model
    ├── ForkError                  what another process opened was used in a fork of it
    └── EvaluationError            a question of an evaluation could not be answered

The message of an error names the offending value, and its ``hint`` says how to fix it.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from shlex import quote


class LinceError(Exception):
    """Base class of all errors of this package.

    Args:
        message: What went wrong, naming the offending value.
        hint: How to fix it, in one sentence.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigurationError(LinceError, ValueError):
    """A wrong value in a call, a command-line flag or a models.toml."""


class UnknownModelError(ConfigurationError):
    """The registry has no model of that name."""


class MissingExtraError(ConfigurationError):
    """An optional dependency is not installed.

    Args:
        package: The missing package.
        extra: The extra of lince-rag that installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This needs {package!r}, which is not installed.",
            hint=f"Install it with: {installation(extra)}",
        )


class EmbeddingsMismatchError(ConfigurationError):
    """The index was built with another embedder than the one it is opened with."""


class TemplateError(LinceError):
    """A chat template cannot render the given messages."""


class UnusedDocumentsError(TemplateError):
    """Documents were given, but the template has no place for them."""


class DocumentError(LinceError):
    """A file cannot be turned into text.

    Args:
        source: The file.
        reason: Why it cannot be read, without the name of the file.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.source, self.reason)


class IndexFolderError(LinceError):
    """The index folder is missing, damaged, or holds something else."""


class IndexDamagedError(IndexFolderError):
    """A store or the ledger of the index is damaged or missing."""


class IndexLockedError(IndexFolderError):
    """Another process is writing to the index."""


class IndexServerError(IndexFolderError):
    """A server of a shared index cannot be reached, has no such index, or refuses."""


class ExportFileError(LinceError):
    """An exported index cannot be written; or a file is no such export, is damaged, or has a newer format."""


class ContextWindowError(LinceError):
    """A prompt and its answer are longer than the model's context window."""


class EngineError(LinceError):
    """The engine cannot load or run a model."""


class ForkError(LinceError, RuntimeError):
    """Something that does not survive a fork was used in a forked process."""


class EvaluationError(LinceError):
    """A question of an evaluation could not be answered; the message names it."""


def installation(extra: str) -> str:
    """Return the command that installs an extra: from the project's folder, with the versions that it names."""
    project = Path(__file__).parents[1]
    if not (project / "constraints.txt").is_file():
        return f"pip install 'lince-rag[{extra}]'"
    place = Path() if project == Path.cwd() else project
    return f"pip install -c {quote(str(place / 'constraints.txt'))} -e '{place}[{extra}]'"


def require(extra: str, *packages: str) -> None:
    """Raise a ``MissingExtraError`` if one of an extra's packages, given by import name, is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, extra)


def check_process(process: int, what: str) -> None:
    """Raise a ``ForkError`` if this is another process than the one that did ``what``."""
    if process != os.getpid():
        raise ForkError(
            f"{what} in process {process}, and this process ({os.getpid()}) is a fork of it.",
            hint="Do that in each process, or start processes with multiprocessing.get_context('spawn').",
        )
