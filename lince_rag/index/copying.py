"""Copying an index: the same documents and chunks under another embedder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from lince_rag.documents.chunking import ChunkingSettings
from lince_rag.index.index import Index
from lince_rag.index.ingestion import CHUNKS_PER_COMMIT
from lince_rag.index.ledger import Source
from lince_rag.index.stores import PreparedDocument


def copy_index(
    index: Index,
    folder: str | Path,
    embeddings: Embeddings | str,
    *,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Index:
    """Make an index of the same documents and chunks as another one, under another embedder.

    No file is read: texts and chunks come from the ledger. A copy that is there already is brought up to date,
    so that documents that are in it unchanged are not embedded again; safe to stop at any moment and run again.

    Args:
        index: The index to copy.
        folder: The copy's folder.
        embeddings: The copy's embedder, or the name of one for ``LinceEmbeddings``.
        on_progress: Called with (documents done, documents in all, name of the current one).

    Returns:
        The copy, open.

    Raises:
        EmbeddingsMismatchError: The folder holds a copy with another embedder.
        IndexFolderError: The folder holds something else.
        IndexLockedError: Another process is writing to it.
    """
    chunking = ChunkingSettings(**json.loads(index.ledger.setting("chunking") or "{}"))
    copy = Index.open(folder, embeddings=embeddings, chunking=chunking)
    try:
        with copy.stores.writing():
            sources = index.sources()
            known = copy.ledger.content_hashes()
            if gone := sorted(known.keys() - {source.source for source in sources}):
                copy.stores.write([], forget=gone)
            for batch in _batches(index, copy, sources, on_progress):
                copy.stores.write(batch)
    except BaseException:
        copy.close()
        raise
    return copy


def _batches(
    index: Index, copy: Index, sources: list[Source], on_progress: Callable[[int, int, str], None] | None
) -> Iterator[list[PreparedDocument]]:
    """The documents that are not in the copy as they are, in commits of a few hundred chunks."""
    known = copy.ledger.content_hashes()
    batch: list[PreparedDocument] = []
    for done, source in enumerate(sources):
        if on_progress:
            on_progress(done, len(sources), source.source)
        ids = index.ledger.chunk_ids(source.source)
        # Equal ids mean equal chunks: they are digests of the document's contents and of their offsets.
        if known.get(source.source) == source.content_hash and copy.ledger.chunk_ids(source.source) == ids:
            continue
        batch.append(_prepared(index, source, ids))
        if sum(len(document.chunks) for document in batch) >= CHUNKS_PER_COMMIT:
            yield batch
            batch = []
    if batch:
        yield batch
    if on_progress and sources:
        on_progress(len(sources), len(sources), "")


def _prepared(index: Index, source: Source, ids: set[str]) -> PreparedDocument:
    metadata = {"source": source.source, "title": source.title, "language": source.language}
    document = Document(page_content=index.text(source.source), metadata=metadata)
    chunks = sorted(index.chunks(ids).values(), key=lambda chunk: int(chunk.metadata["start"]))
    return PreparedDocument(document, source.content_hash, chunks)
