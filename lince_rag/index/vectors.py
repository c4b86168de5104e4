"""The vector store: a Chroma collection through langchain-chroma, set up for our vectors."""

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from langchain_core.embeddings import Embeddings

if TYPE_CHECKING:
    from langchain_chroma import Chroma

# How many folders this process has opened.
_OPENED: Final = count()

COLLECTION: Final = "chunks"

# Chroma's own ef of 100 finds .84-.92 of the true neighbours of hashed text, 500 finds .98, and it can only be
# set when the collection is made.
SEARCH_EF: Final = 500


def open_vector_store(
    embeddings: Embeddings, folder: Path | None = None, *, client: Any = None, collection: str = COLLECTION
) -> "Chroma":
    """Open, or make, the Chroma collection that holds the chunks.

    Cosine space (Chroma's default is squared euclidean distance), no default embedder (Chroma's is English
    only), no telemetry.

    Args:
        embeddings: What turns texts into vectors.
        folder: Where Chroma keeps its files; ``None`` keeps them in memory.
        client: A Chroma client to use instead, for a server.
        collection: The collection's name.

    Returns:
        The LangChain vector store.
    """
    import chromadb
    from chromadb.config import Settings
    from langchain_chroma import Chroma

    if client is None:
        settings = Settings(anonymized_telemetry=False)
        if folder is None:
            client = chromadb.EphemeralClient(settings=settings)
        else:
            client = chromadb.PersistentClient(path=_own_spelling(folder), settings=settings)
    return Chroma(
        collection_name=collection,
        embedding_function=embeddings,
        client=client,
        collection_configuration={"hnsw": {"space": "cosine", "ef_search": SEARCH_EF}},
    )


def _own_spelling(folder: Path) -> str:
    """Spell a path as no other store of this process does: ``a/.``, ``a/./``, ``a//.`` … are all ``a``.

    Chroma gives all clients of one spelling the same engine. Closing and opening again would then keep the
    stale one as long as another ``Index`` uses it, and writing with it after another process has written
    damages the vectors (measured: 1,024 of 4,500 unreadable).
    """
    return str(folder) + "".join("/." if bit == "1" else "/" for bit in f"{next(_OPENED):b}")


def close_vector_store(store: "Chroma") -> None:
    """Let go of the files, so that opening again sees what other processes wrote.

    Args:
        store: A store that ``open_vector_store`` returned.
    """
    store._client.close()
