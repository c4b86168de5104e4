"""The Chroma collection of the chunks: opening it with the right settings, and closing it."""

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from langchain_core.embeddings import Embeddings

if TYPE_CHECKING:
    from langchain_chroma import Chroma

COLLECTION: Final = "chunks"

# Chroma's own ef of 100 finds .84-.92 of the true neighbours of hashed text, 500 finds .98, and it can only be
# set when the collection is created.
SEARCH_EF: Final = 500

# Counts the Chroma folders that this process has opened.
_OPENED: Final = count()


def open_vector_store(
    embeddings: Embeddings, folder: Path | None = None, *, client: Any = None, collection: str = COLLECTION
) -> "Chroma":
    """Open or create the Chroma collection of the chunks: in a folder, through a ``client``, or in memory.

    It uses cosine space (Chroma's default is squared Euclidean distance), no default embedder (Chroma's is only
    for English) and no telemetry.
    """
    import chromadb
    from chromadb.config import Settings
    from langchain_chroma import Chroma

    if client is None:
        settings = Settings(anonymized_telemetry=False)
        if folder is None:
            client = chromadb.EphemeralClient(settings=settings)
        else:
            client = chromadb.PersistentClient(path=_unique_path(folder), settings=settings)
    return Chroma(
        collection_name=collection,
        embedding_function=embeddings,
        client=client,
        collection_configuration={"hnsw": {"space": "cosine", "ef_search": SEARCH_EF}},
    )


def _unique_path(folder: Path) -> str:
    """Write a path as no other store of this process does: ``a/.``, ``a/./``, ``a//.`` … all mean ``a``.

    Chroma gives all clients of one path string the same engine. After closing and opening again, the stale engine
    would remain as long as another ``Index`` uses it, and writing with it after another process has written
    damages the vectors (measured: 1,024 of 4,500 unreadable).
    """
    return str(folder) + "".join("/." if bit == "1" else "/" for bit in f"{next(_OPENED):b}")


def close_vector_store(store: "Chroma") -> None:
    """Release the files of a store, so that opening it again reads what other processes wrote."""
    store._client.close()
