"""Every error that lince_rag raises on purpose.

    LinceError
    ├── ConfigurationError         a wrong value in a call, a flag or a models.toml
    │   ├── UnknownModelError      no such model name
    │   ├── MissingExtraError      an optional dependency is not installed
    │   └── EmbeddingsMismatchError  the index was built with another embedder
    ├── TemplateError              a chat template cannot render these messages
    │   └── UnusedDocumentsError   documents were given, but the template has no place for them
    ├── DocumentError              a file cannot be turned into text
    ├── IndexFolderError           the index folder is missing, damaged or not ours
    │   └── IndexLockedError       another process is writing to the index
    ├── ContextWindowError         a prompt is longer than the model's window
    ├── EngineError                the engine cannot generate
    └── EvaluationError            a question of an evaluation could not be answered

Each one names the offending value in its message and says in ``hint`` how to go on.
"""

from importlib.util import find_spec


class LinceError(Exception):
    """Base of all errors of this package.

    Args:
        message: What went wrong, naming the offending value.
        hint: What the reader can do about it, one sentence.
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
    """No model of that name in the registry."""


class MissingExtraError(ConfigurationError):
    """An optional dependency is not installed.

    Args:
        package: The package that could not be imported.
        extra: The extra of lince-rag that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This needs {package!r}, which is not installed.",
            hint=f"Install it with: pip install 'lince-rag[{extra}]'",
        )


class EmbeddingsMismatchError(ConfigurationError):
    """The index was built with an embedder other than the one it is opened with."""


class TemplateError(LinceError):
    """A chat template cannot render the messages it was given."""


class UnusedDocumentsError(TemplateError):
    """Documents were given to a template that has no place for them."""


class DocumentError(LinceError):
    """A file cannot be turned into text; the message is the reason.

    Args:
        source: The file.
        reason: Why it cannot be read, without the file's name.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.source, self.reason)


class IndexFolderError(LinceError):
    """The index folder is missing, damaged, or holds something else."""


class IndexLockedError(IndexFolderError):
    """Another process is writing to the index."""


class ContextWindowError(LinceError):
    """A prompt and its answer are longer than the model's context window."""


class EngineError(LinceError):
    """The engine that runs the model cannot generate."""


class EvaluationError(LinceError):
    """A question of an evaluation could not be answered; the message names it."""


def require(extra: str, *packages: str) -> None:
    """Check that optional packages are installed, without importing them.

    Args:
        extra: The extra of lince-rag that brings them.
        packages: Their import names.

    Raises:
        MissingExtraError: One is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, extra)
