"""Models on servers, for the tests of the server engine: a real llama-server, or a stub."""

from functools import cache, reduce
from typing import Any, Final

from lince_rag import ChatLince
from tests.engines import engine_fields

KIND: Final = "llama-2-7b-spanish"
QUESTION: Final = "Dame una lista de lugares que visitar en España."
GREEDY: Final[dict[str, Any]] = {"temperature": 0}
MAX_TOKENS: Final = 24
SCHEMA: Final = {
    "type": "object",
    "properties": {"nombre": {"type": "string"}, "edad": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["nombre", "edad"],
    "additionalProperties": False,
}


@cache
def chat(engine: str = "server", kind: str = KIND) -> ChatLince:
    return ChatLince(**engine_fields(engine, kind), max_tokens=MAX_TOKENS)


def stub_chat(stub: Any, **fields: Any) -> ChatLince:
    return ChatLince(**{"model": KIND, "base_url": stub.base_url, "max_tokens": MAX_TOKENS, **fields})


def add(chunks: Any) -> Any:
    """Add up the chunks of a stream."""
    return reduce(lambda total, chunk: total + chunk, chunks)
