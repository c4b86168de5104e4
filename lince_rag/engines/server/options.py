"""Which server runs a model, and how patiently it is asked."""

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from lince_rag.errors import ConfigurationError

# Seconds without a byte from the server. A long answer that is not streamed comes in one piece, at its end.
DEFAULT_TIMEOUT: Final = 600.0
DEFAULT_MAX_RETRIES: Final = 2

_VERSION_PATH: Final = "/v1"

# Where prompts are posted to, by what is posted: native prompts, or messages that the server renders itself.
PATHS: Final = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
DEFAULT_ENDPOINT: Final = "completions"


@dataclass(frozen=True)
class ServerOptions:
    """A server with an OpenAI-compatible interface.

    Attributes:
        base_url: Its address, with or without ``/v1`` at the end; kept without.
        api_key: Its key, which is sent as a bearer token.
        timeout: Seconds to wait for a connection or for the next part of an answer; ``None`` for 600.
        max_retries: How many times a request is sent again that failed before the first token; ``None`` for 2.
        endpoint: One of ``PATHS``.
    """

    base_url: str
    api_key: SecretStr | None = field(default=None, repr=False)
    timeout: float | None = None
    max_retries: int | None = None
    endpoint: str = DEFAULT_ENDPOINT

    def __post_init__(self) -> None:
        if self.endpoint not in PATHS:
            raise ConfigurationError(
                f"endpoint={self.endpoint!r} is not known.", hint=f"Use one of {', '.join(PATHS)}."
            )
        try:
            parts = urlsplit(self.base_url)
            is_valid = parts.scheme in {"http", "https"} and bool(parts.hostname)
        except ValueError:
            is_valid = False
        # A password in an address would be shown in errors.
        if not is_valid or parts.username or parts.password or parts.query or parts.fragment:
            shown = self.base_url if is_valid and "@" not in self.base_url else self.base_url.rpartition("@")[2]
            raise ConfigurationError(
                f"base_url={shown!r} is not the address of a server.",
                hint="Give http://HOST:PORT or https://HOST, and the key, if it needs one, as api_key.",
            )
        object.__setattr__(self, "base_url", self.base_url.rstrip("/").removesuffix(_VERSION_PATH).rstrip("/"))
