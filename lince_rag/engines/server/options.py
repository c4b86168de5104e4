"""Which server runs a model, and how patiently it is asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from lince_rag.errors import ConfigurationError

# Seconds without a byte from the server. A long answer that is not streamed comes in one piece, at its end.
DEFAULT_TIMEOUT: Final = 600.0
DEFAULT_MAX_RETRIES: Final = 2

# The same for a server that embeds or reranks: its answers are short, and one that is overloaded during an
# ingestion should be waited for.
SCORING_TIMEOUT: Final = 120.0
SCORING_RETRIES: Final = 4

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
        key_names: Where a user gives the key, besides ``api_key``; for errors.
    """

    base_url: str
    api_key: SecretStr | None = field(default=None, repr=False)
    timeout: float | None = None
    max_retries: int | None = None
    endpoint: str = DEFAULT_ENDPOINT
    key_names: str = "--api-key, LINCE_API_KEY"

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


def scoring_options(
    base_url: str | None,
    api_key: SecretStr | str | None,
    timeout: float | None,
    max_retries: int | None,
    *,
    key_names: str,
    local: Mapping[str, tuple[Any, Any]],
) -> ServerOptions | None:
    """Return the server of an embedder or a reranker; ``None`` if there is no address.

    Args:
        base_url: Its address.
        api_key: Its key.
        timeout: As in ``ServerOptions``; ``None`` for 120.
        max_retries: As in ``ServerOptions``; ``None`` for 4.
        key_names: As in ``ServerOptions``.
        local: The options of models in this process, each with its default.

    Raises:
        ConfigurationError: A value is wrong, or was given without a server, or for a model in this process.
    """
    if base_url is None:
        given = {"api_key": api_key, "timeout": timeout, "max_retries": max_retries}
        if name := next((name for name, value in given.items() if value is not None), None):
            raise ConfigurationError(f"{name} is that of a server.", hint="Give its base_url, too.")
        return None
    for name, (value, default) in local.items():
        if value != default:
            raise ConfigurationError(
                f"{name}={value!r} was given for the server {base_url}.",
                hint=f"The server decides: leave {name} out.",
            )
    if (timeout is not None and not timeout > 0) or (max_retries or 0) < 0:
        raise ConfigurationError(f"timeout={timeout} must be above 0, and max_retries={max_retries} not below.")
    key = SecretStr(api_key) if isinstance(api_key, str) else api_key
    return ServerOptions(
        base_url,
        key,
        SCORING_TIMEOUT if timeout is None else timeout,
        SCORING_RETRIES if max_retries is None else max_retries,
        key_names=key_names,
    )
