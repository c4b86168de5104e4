"""Where an index is: in a folder, or on servers that several machines share."""

import hashlib
import os
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from lince_rag.errors import ConfigurationError

# The scheme of the address of a shared index.
_SCHEME: Final = re.compile(r"lince\+postgres(ql)?:/")

# A path that was made of an address has lost a slash of each scheme.
_LOST_SLASH: Final = re.compile(r"\b(postgres(?:ql)?|https?):/(?=[^/])")

# Passwords of a database: after the user, where one may contain an at sign, and among the options.
_PASSWORD: Final = re.compile(r"(:/{1,2}[^/?#@:]*):[^?#]*@")
_PASSWORD_OPTION: Final = re.compile(r"([?&])(?:ssl)?password=[^&]*(?:&|$)")

# A collection is also the name of a schema and of a Chroma collection.
_COLLECTION: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_DEFAULT_COLLECTION: Final = "documents"

_KEYS: Final = frozenset({"ledger", "chroma", "collection", "replica"})
_FORM: Final = (
    "Write lince+postgresql://USER@HOST/DATABASE?chroma=http://HOST:8000&collection=NAME, or a TOML file with"
    " ledger, chroma and collection."
)


@dataclass(frozen=True)
class SharedLocation:
    """Where the parts of a shared index are.

    Attributes:
        ledger: The PostgreSQL database (``postgresql://user@host/database``). What is not in it comes from the
            environment, as ``psql`` has it: ``PGPASSWORD``, ``~/.pgpass``, ``PGSSLMODE`` …
        chroma: The Chroma server (``http://host:8000``; ``/tenant/database`` after it names other than the default
            ones). Its token, if it wants one, is in the environment variable ``LINCE_CHROMA_TOKEN``.
        collection: The name of this index there: small letters, digits and ``_``.
        replica: The folder for this machine's copy of the terms; each machine builds it by itself.
    """

    ledger: str
    chroma: str
    collection: str = _DEFAULT_COLLECTION
    replica: str = ""

    def __post_init__(self) -> None:
        if not _COLLECTION.fullmatch(self.collection):
            raise ConfigurationError(
                f"The collection {self.collection!r} is not a name.",
                hint="Begin with a small letter; use small letters, digits and _, at most 40.",
            )
        if urlsplit(self.chroma).scheme not in ("http", "https") or not urlsplit(self.chroma).hostname:
            raise ConfigurationError(f"{self.chroma!r} is not the address of a Chroma server.", hint=_FORM)
        if urlsplit(self.chroma).username is not None:
            raise ConfigurationError(
                "The address of the Chroma server has a user.", hint="Give its token in LINCE_CHROMA_TOKEN."
            )
        if urlsplit(self.ledger).scheme not in ("postgresql", "postgres") or not _has_port(self.ledger):
            shown = _without_password(self.ledger)
            raise ConfigurationError(f"{shown!r} is not the address of a PostgreSQL database.", hint=_FORM)

    def __repr__(self) -> str:
        return f"SharedLocation({self.given!r})"

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read the TOML file that stands for a shared index; its keys are the attributes."""
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} cannot be read: {error}.", hint=_FORM) from error
        return cls._of(values, str(path))

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read the address of a shared index."""
        parts = urlsplit(_LOST_SLASH.sub(r"\1://", url).removeprefix("lince+"))
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        ours = {key: options.pop(key) for key in list(options) if key in _KEYS}
        # What is left belongs to PostgreSQL (``sslmode=require``).
        database = urlunsplit(parts._replace(query=urlencode(options)))
        return cls._of({**ours, "ledger": database}, _without_password(url))

    @classmethod
    def _of(cls, values: dict[str, Any], given: str) -> Self:
        unknown = sorted(values.keys() - _KEYS)
        missing = [key for key in ("ledger", "chroma") if not values.get(key)]
        if unknown or missing or not all(isinstance(value, str) for value in values.values()):
            wrong = [f"the unknown key {key!r}" for key in unknown] + [f"no {key}" for key in missing]
            raise ConfigurationError(f"The index {given} has {' and '.join(wrong) or 'other values'}.", hint=_FORM)
        return cls(**values)

    @property
    def schema(self) -> str:
        """The schema of the ledger's tables."""
        return f"lince_{self.collection}"

    @property
    def name(self) -> str:
        """What messages call the ledger's database; without user and password."""
        parts = urlsplit(self.ledger)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.hostname or 'localhost'}{port}{parts.path}/{self.collection}"

    @property
    def given(self) -> str:
        """The address of the index, without the password."""
        ledger = _without_password(self.ledger).replace("postgres://", "postgresql://", 1)
        separator = "&" if "?" in ledger else "?"
        return f"lince+{ledger}{separator}chroma={self.chroma}&collection={self.collection}"

    @property
    def argument(self) -> str:
        """The same, quoted for a shell."""
        return shlex.quote(self.given)

    @property
    def folder(self) -> Path:
        """The folder of this machine's copy of the terms, and of what else belongs to this machine."""
        if self.replica:
            return Path(self.replica).expanduser().resolve()
        return self._own_folder("XDG_CACHE_HOME", "~/.cache")

    @property
    def data_folder(self) -> Path:
        """The folder for what a server of the index keeps on this machine, and what must not be lost."""
        return self._own_folder("XDG_DATA_HOME", "~/.local/share", ".serve")

    def _own_folder(self, variable: str, default: str, ending: str = "") -> Path:
        base = Path(os.environ.get(variable) or default).expanduser()
        digest = hashlib.blake2b(f"{self.name} {self.chroma}".encode(), digest_size=6).hexdigest()
        return (base / "lince_rag" / f"{self.collection}-{digest}{ending}").resolve()


def is_address(index: str | Path) -> bool:
    """Return whether an index is named by the address of a shared one."""
    return bool(_SCHEME.match(str(index)))


def find_location(index: str | Path) -> Path | SharedLocation:
    """Return the folder of an index, or where a shared one is.

    Args:
        index: A folder, the address of a shared index or its TOML file.

    Raises:
        ConfigurationError: An address or a file cannot be understood.
    """
    if is_address(index):
        return SharedLocation.from_url(str(index))
    path = Path(index).expanduser().resolve()
    if path.suffix == ".toml" and path.is_file():
        return SharedLocation.from_file(path)
    return path


def data_folder(index: str | Path) -> Path:
    """Return where a server of an index keeps its data, if nothing else is said: beside the folder or the file."""
    if is_address(index):
        return SharedLocation.from_url(str(index)).data_folder
    path = Path(index).expanduser().resolve()
    return path.with_name(f"{path.name}.serve")


def index_argument(index: str | Path) -> str:
    """Return how a command line names an index: quoted for a shell, and without a password."""
    return SharedLocation.from_url(str(index)).argument if is_address(index) else str(index)


def _has_port(url: str) -> bool:
    """Return whether the port of an address, if it has one, is a number; it is none if a password has a slash."""
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _without_password(url: str) -> str:
    return _PASSWORD_OPTION.sub(r"\1", _PASSWORD.sub(r"\1@", url)).rstrip("?&")
