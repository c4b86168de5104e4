"""What opening an index checks: its folder, its embedder and its chunking are those that it was built with."""

import errno
import json
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path

from langchain_core.embeddings import Embeddings

from lince_rag.documents.chunking import ChunkingSettings
from lince_rag.documents.selection import LEDGER_FILE
from lince_rag.errors import ConfigurationError, EmbeddingsMismatchError, IndexFolderError
from lince_rag.index.embeddings import (
    EMBEDDED,
    LinceEmbeddings,
    check_loading,
    embeddings_name,
    named_embeddings,
    restore_embeddings,
)
from lince_rag.index.ledger import Ledger
from lince_rag.index.sqlite import FolderLedger
from lince_rag.index.storage import damaged_ledger, holds_stores, is_writable


def open_ledger(path: Path, create: bool) -> FolderLedger:
    """Open the ledger of a folder, or create folder and ledger."""
    ledger = path / LEDGER_FILE
    try:
        # Before the ledger is looked at: a process that makes a new index creates the ledger first.
        filled = holds_stores(path)
        if filled and not (ledger.is_file() and ledger.stat().st_size):
            raise damaged_ledger(ledger, "it is empty" if ledger.exists() else "it is missing")
        _check_folder(path, create)
        # What is in it may be private: other users may not look into it.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        read_only = not is_writable(path)
        if read_only and not filled and not ledger.exists():
            raise PermissionError(errno.EACCES, "it holds no index, and none can be created there")
    except OSError as error:
        raise IndexFolderError(
            f"The index folder {path} cannot be used: {error.strerror or error}.",
            hint="Check the path, its permissions and the free space, or choose another folder.",
        ) from error
    return FolderLedger(ledger, read_only=read_only, new=not filled)


def _check_folder(path: Path, create: bool) -> None:
    if (path / LEDGER_FILE).is_file():
        return
    if path.exists() and not path.is_dir():
        raise IndexFolderError(f"{path} is a file, not a folder.", hint="Give the folder of an index.")
    if path.is_dir() and any(path.iterdir()):
        raise IndexFolderError(
            f"{path} holds other files and no index.", hint="Give the folder of an index, or an empty or new one."
        )
    if not create:
        others = [ledger.parent.name for ledger in path.parent.glob(f"*/{LEDGER_FILE}")]
        near = get_close_matches(path.name, others, n=1)
        raise IndexFolderError(
            f"There is no index in {path}.",
            hint=f"Did you mean {near[0]!r}?"
            if near
            else f"Create one first: lince-rag ingest YOUR-DOCUMENTS --index {path}",
        )


def choose_embeddings(ledger: Ledger, wanted: Embeddings | str | None) -> Embeddings:
    """Compare the embedder asked for with the recorded one; an index without vectors records it."""
    recorded = ledger.setting("embeddings")
    if wanted is None:
        wanted = named_embeddings() if recorded is None else recorded_embeddings(ledger)
    elif isinstance(wanted, str):
        wanted = named_embeddings(wanted)
    name = embeddings_name(wanted)
    if recorded is None or (recorded != name and not ledger.had_vectors()):
        ledger.set_settings(**embedder_settings(wanted))
    elif recorded != name:
        raise other_embedder(recorded, name)
    return wanted


def choose_other_embeddings(ledger: Ledger, wanted: Embeddings | str | None) -> Embeddings:
    """Return the embedder that an index is to be built again with; without one, its own."""
    chosen = recorded_embeddings(ledger) if wanted is None else wanted
    chosen = named_embeddings(chosen) if isinstance(chosen, str) else chosen
    name = embeddings_name(chosen)
    if wanted is None and name != ledger.setting("embeddings"):
        raise other_embedder(ledger.setting("embeddings"), name)
    check_loading(chosen)
    return chosen


def embedder_settings(embeddings: Embeddings) -> dict[str, str]:
    """Return the settings of an index that say what its embedder is."""
    options = embeddings.options if isinstance(embeddings, LinceEmbeddings) else {}
    return {"embeddings": embeddings_name(embeddings), "embeddings_options": json.dumps(options)}


def other_embedder(recorded: str | None, name: str) -> EmbeddingsMismatchError:
    """Return the error of an index that is opened with another embedder than its own."""
    return EmbeddingsMismatchError(
        f"The index was built with the embedder {recorded!r}, but it is opened with {name!r}.",
        hint=f"Open it with {recorded!r}, or build it again: lince-rag ingest --rebuild --embeddings NAME",
    )


def recorded_embeddings(ledger: Ledger) -> LinceEmbeddings:
    """Return the embedder that an index was built with."""
    # An application's own embedder has no options here; it must be given.
    options = ledger.json_setting("embeddings_options") or {"model": EMBEDDED}
    try:
        return restore_embeddings(options)
    except TypeError as error:
        raise damaged_ledger(ledger.path, f"its embedder is {options}") from error


def record_address(ledger: Ledger, embeddings: Embeddings) -> None:
    """Let an index remember the address of the server that runs its embedder, if that has moved."""
    if isinstance(embeddings, LinceEmbeddings) and embeddings.base_url:
        options = (ledger.json_setting("embeddings_options") or {}) | {"base_url": embeddings.base_url}
        ledger.set_settings(embeddings_options=json.dumps(options))


def check_chunking(ledger: Ledger, wanted: ChunkingSettings | None) -> None:
    """Compare the chunking asked for with the recorded one; an index without documents records it."""
    recorded = ledger.json_setting("chunking")
    if recorded is None or (wanted is not None and ledger.is_empty()):
        ledger.set_settings(chunking=json.dumps(asdict(wanted or ChunkingSettings())))
    elif wanted is not None and recorded != asdict(wanted):
        raise ConfigurationError(
            f"The index was built with the chunking {json.dumps(recorded)}, but it is opened with"
            f" {json.dumps(asdict(wanted))}.",
            hint="Open it without chunking settings, or ingest the documents into another folder.",
        )
