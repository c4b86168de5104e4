"""What an index was built with: held against what it is opened with, and recorded when it is new."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from langchain_core.embeddings import Embeddings

from lince_rag.errors import ConfigurationError, EmbeddingsMismatchError, IndexFolderError
from lince_rag.index.embeddings import LinceEmbeddings, embeddings_name
from lince_rag.index.ledger import Ledger

if TYPE_CHECKING:
    from lince_rag.documents.chunking import ChunkingSettings

LEDGER_FILE: Final = "ledger.sqlite"


def check_folder(path: Path, create: bool) -> None:
    """Check that a folder holds an index, or may become one.

    Args:
        path: The folder.
        create: Whether a new index may be made there.

    Raises:
        IndexFolderError: It is a file, holds something else, or there is no index and none may be made.
    """
    if (path / LEDGER_FILE).is_file():
        return
    if path.exists() and not path.is_dir():
        raise IndexFolderError(f"{path} is a file, not a folder.", hint="Give the folder of an index.")
    if path.is_dir() and any(path.iterdir()):
        raise IndexFolderError(f"{path} holds other files and no index.", hint="Give an empty or a new folder.")
    if not create:
        raise IndexFolderError(
            f"There is no index in {path}.",
            hint=f"Make one first: lince-rag ingest YOUR-DOCUMENTS --index {path}",
        )


def choose_embeddings(ledger: Ledger, wanted: Embeddings | str | None) -> Embeddings:
    """Hold the embedder asked for against the one recorded, and record it in an index without documents.

    Args:
        ledger: The index's ledger.
        wanted: An embedder, the name of one for ``LinceEmbeddings``, or ``None`` for the recorded one.

    Returns:
        The embedder.

    Raises:
        EmbeddingsMismatchError: The index was built with another one.
    """
    recorded = ledger.setting("embeddings")
    if wanted is None:
        options = json.loads(ledger.setting("embeddings_options") or "{}")
        wanted = LinceEmbeddings(**options)
    elif isinstance(wanted, str):
        wanted = LinceEmbeddings(wanted)
    name = embeddings_name(wanted)
    if recorded is None or (recorded != name and ledger.is_empty()):
        options = wanted.options if isinstance(wanted, LinceEmbeddings) else {}
        ledger.set_settings(embeddings=name, embeddings_options=json.dumps(options))
    elif recorded != name:
        raise EmbeddingsMismatchError(
            f"The index was built with the embedder {recorded!r} and is opened with {name!r}.",
            hint=f"Open it with {recorded!r}, or ingest into another folder.",
        )
    return wanted


def check_chunking(ledger: Ledger, wanted: "ChunkingSettings | None") -> None:
    """Hold the chunking asked for against the one recorded, and record it in an index without documents.

    Args:
        ledger: The index's ledger.
        wanted: How to cut documents, or ``None`` for the recorded way.

    Raises:
        ConfigurationError: The index was built with other settings.
    """
    recorded = ledger.setting("chunking")
    if recorded is None or (wanted is not None and ledger.is_empty()):
        if wanted is None:
            from lince_rag.documents.chunking import ChunkingSettings

            wanted = ChunkingSettings()
        ledger.set_settings(chunking=json.dumps(asdict(wanted)))
    elif wanted is not None and json.loads(recorded) != asdict(wanted):
        raise ConfigurationError(
            f"The index was built with the chunking {recorded} and is opened with {json.dumps(asdict(wanted))}.",
            hint="Open it without chunking settings, or ingest into another folder.",
        )
