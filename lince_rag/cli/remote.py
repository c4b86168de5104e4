"""Questions to a server of this machine that has the index open: it answers in milliseconds."""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lince_rag.cli.options import AnswerOptions
from lince_rag.index.locations import data_folder

if TYPE_CHECKING:
    from lince_rag.chain.answer import Answer

# Beside an index, while a server has it open; only its owner can read it.
ADDRESS_FILE: Final = "server.json"

# How long a server may take to accept a connection, and an answer to come.
CONNECT_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 600.0


@dataclass(frozen=True)
class RunningServer:
    """A server that has an index open, and answers as it is asked to.

    Attributes:
        host: Its address.
        port: Its port.
        collection: Its name of the index.
        token: What shows that the user may read the server's files.
    """

    host: str
    port: int
    collection: str
    token: str

    def ask(self, question: str) -> "Iterator[str | Answer] | None":
        """Return the pieces of an answer and, last, the answer; ``None`` if the server cannot be asked."""
        connection = HTTPConnection(self.host, self.port, timeout=CONNECT_SECONDS)
        body = json.dumps({"question": question, "collection": self.collection, "stream": True})
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        try:
            connection.connect()
            connection.sock.settimeout(ANSWER_SECONDS)
            connection.request("POST", "/v1/ask", body.encode(), headers)
            response = connection.getresponse()
        except (OSError, HTTPException):
            connection.close()
            return None
        if response.status != 200:
            # It is busy, or what it says is better said here.
            connection.close()
            return None
        return _steps(connection, response)


def _steps(connection: HTTPConnection, response: Any) -> "Iterator[str | Answer]":
    from lince_rag.chain.answer import Answer
    from lince_rag.errors import EngineError

    event = ""
    try:
        for raw in response:
            name, _, value = raw.decode("utf-8").rstrip("\n").partition(": ")
            if name == "event":
                event = value
            elif name == "data" and event == "text":
                yield str(json.loads(value)["text"])
            elif name == "data" and event == "done":
                yield Answer.model_validate(json.loads(value))
                return
            elif name == "data" and event == "error":
                raise EngineError(json.loads(value)["message"])
    except (OSError, HTTPException) as error:
        raise EngineError(f"The server of the index ended: {error}.") from error
    finally:
        connection.close()
    raise EngineError("The server of the index ended before its answer did.")


def running_server(index: Path, options: AnswerOptions) -> RunningServer | None:
    """Return the server that has an index open and answers with the same options; ``None`` if there is none."""
    try:
        said = json.loads((data_folder(index) / ADDRESS_FILE).read_text("utf-8"))
        if said["options"] != _comparable(asdict(options)):
            return None
        return RunningServer(said["host"], said["port"], said["collection"], said["token"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def found_by_others(
    indexes: Mapping[str, str], host: str, port: int, options: Mapping[str, Any], token: str
) -> Iterator[None]:
    """Let ``running_server`` find this server as long as the block runs."""
    said = {"host": host, "port": port, "options": _comparable(options), "token": token}
    with ExitStack() as stack:
        for name, index in indexes.items():
            file = data_folder(index) / ADDRESS_FILE
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            with os.fdopen(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as target:
                json.dump({**said, "collection": name}, target)
            part.replace(file)
            stack.callback(file.unlink, missing_ok=True)
        yield


def new_token() -> str:
    """Return a token that nobody can guess."""
    return secrets.token_urlsafe(32)


def _comparable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON gives them back, without the key of a model server and where the embedder runs."""
    found: dict[str, Any] = json.loads(
        json.dumps({**options, "api_key": None, "embeddings_url": None}, default=str)
    )
    return found
