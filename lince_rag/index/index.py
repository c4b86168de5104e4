"""Index: a folder with a Chroma store, a lexical index, and the ledger that says what counts."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from lince_rag.errors import ConfigurationError, EmbeddingsMismatchError, IndexFolderError
from lince_rag.index.embeddings import LinceEmbeddings, embeddings_name
from lince_rag.index.filters import filter_to_sql
from lince_rag.index.ledger import Ledger, Source
from lince_rag.index.lexical import LexicalHit
from lince_rag.index.retriever import HybridRetriever
from lince_rag.index.stores import ChunkStores
from lince_rag.text.confidence import Calibration, calibration_of
from lince_rag.text.language import Language

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

    from lince_rag.documents.chunking import ChunkingSettings
    from lince_rag.index.ingestion import IngestReport
    from lince_rag.index.verification import VerifyReport

# Share of the lexical score next to an embedder that names no weight of its own.
NEUTRAL_WEIGHT: Final = 0.5

TOOL_DESCRIPTION: Final = (
    "Finds passages of the user's own documents. Give a whole question in Spanish, Portuguese or English."
)


class Index:
    """Documents made searchable. Open one with ``Index.open``; it is also a context manager.

    Example:
        >>> with Index.open("my-index") as index:
        ...     report = index.ingest("documents/")
        ...     chunks = index.as_retriever(k=3).invoke("¿Cuándo vence el contrato?")
    """

    def __init__(self, folder: Path, embeddings: Embeddings, ledger: Ledger) -> None:
        self.folder = folder
        self.embeddings = embeddings
        self.ledger = ledger
        self.stores = ChunkStores(folder, embeddings, ledger)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        embeddings: Embeddings | str | None = None,
        chunking: "ChunkingSettings | None" = None,
        create: bool = True,
    ) -> Self:
        """Open an index, or make a new one.

        Args:
            folder: The index's folder.
            embeddings: The embedder, or the name of one for ``LinceEmbeddings``; ``None`` takes the one the
                index was built with, and the embedded one for a new index.
            chunking: How to cut documents; ``None`` takes what the index was built with.
            create: Whether to make the index when the folder is missing or empty.

        Returns:
            The open index.

        Raises:
            IndexFolderError: There is no index in the folder, or it is not readable.
            EmbeddingsMismatchError: The index was built with another embedder.
            ConfigurationError: The index was built with other chunking settings.
        """
        path = Path(folder).expanduser().resolve()
        check_folder(path, create)
        path.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(path / LEDGER_FILE)
        try:
            chosen = choose_embeddings(ledger, embeddings)
            check_chunking(ledger, chunking)
            return cls(path, chosen, ledger)
        except BaseException:
            ledger.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Index({str(self.folder)!r}, embeddings={embeddings_name(self.embeddings)!r})"

    def close(self) -> None:
        """Let go of the files."""
        self.stores.close()
        self.ledger.close()

    # What the question side uses.

    @property
    def lexical_weight(self) -> float:
        """The share of the lexical score that suits the index's embedder (0 to 1)."""
        return float(getattr(self.embeddings, "lexical_weight", NEUTRAL_WEIGHT))

    @property
    def calibration(self) -> Calibration:
        """When to abstain, for the index's embedder."""
        return calibration_of(str(getattr(self.embeddings, "model", "")))

    def as_retriever(self, **options: Any) -> HybridRetriever:
        """Return a retriever over this index.

        Args:
            **options: Fields of ``HybridRetriever``: ``k``, ``fetch_k``, ``lexical_weight``, ``filter`` …
        """
        return HybridRetriever(index=self, **options)

    def as_tool(
        self, *, name: str = "search_documents", description: str = TOOL_DESCRIPTION, **options: Any
    ) -> "BaseTool":
        """Return a LangChain tool that searches this index, for an agent.

        Its content is the passages, each under the name of its document; its artifact is the chunks.

        Args:
            name: The tool's name, as the model sees it.
            description: What it is for, as the model sees it.
            **options: Fields of ``HybridRetriever``: ``k``, ``filter`` …
        """
        from langchain_core.prompts import PromptTemplate
        from langchain_core.tools import create_retriever_tool

        return create_retriever_tool(
            self.as_retriever(**options),
            name,
            description,
            document_prompt=PromptTemplate.from_template("[{source}]\n{page_content}"),
            response_format="content_and_artifact",
        )

    def sources(self) -> list[Source]:
        """Return the documents of the index by name."""
        return self.ledger.sources()

    def text(self, source: str) -> str:
        """Return the text of a document: what ``Citation.start`` and ``end`` count in.

        Args:
            source: A document's name, as ``sources`` and the citations give it.

        Returns:
            The whole text.

        Raises:
            ConfigurationError: There is no such document in the index.
        """
        text = self.ledger.text(source)
        if text is None:
            raise _unknown_source(source)
        return text

    def search_terms(
        self, question: str, language: Language, limit: int, ids: Sequence[str] | None = None
    ) -> list[LexicalHit]:
        """Find chunks by their terms (BM25), best first; among ``ids`` only when they are given."""
        return self.stores.search_terms(question, language, limit, ids)

    def search_vectors(
        self, question: str, limit: int, ids: Sequence[str] | None = None
    ) -> list[tuple[str, float]]:
        """Find chunks by their vectors: (id, cosine similarity), best first; among ``ids`` when given."""
        return self.stores.search_vectors(question, limit, ids)

    def rarity(self, found: Iterable[str]) -> dict[str, float]:
        """Return the inverse document frequency of analyzer terms among the chunks."""
        return self.stores.rarity(found)

    def select(self, filter_: Mapping[str, Any]) -> list[str]:
        """Return the ids of the chunks whose metadata passes a filter in Chroma's notation."""
        return self.ledger.select_ids(*filter_to_sql(filter_))

    def chunks(self, ids: Iterable[str]) -> dict[str, Document]:
        """Return committed chunks by id."""
        return self.ledger.chunks(ids)

    # What changes the index.

    def ingest(
        self,
        paths: "str | Path | Document | Iterable[str | Path | Document]",
        *,
        on_progress: Callable[[int, int, str], None] | None = None,
    ) -> "IngestReport":
        """Bring files, folders and LangChain documents into the index.

        Unchanged files cost a hash; a changed file replaces its old chunks; files of an ingested folder that
        are gone leave the index. Safe to stop at any moment and to run again.

        Args:
            paths: Files, folders or documents.
            on_progress: Called with (files done, files in all, name of the current one).

        Returns:
            What was added, changed, left, removed, and what could not be read and why.

        Raises:
            IndexLockedError: Another process is writing.
        """
        from lince_rag.index.ingestion import ingest

        return ingest(self, paths, on_progress)

    def delete(self, source: str | Path) -> int:
        """Take a document out of the index.

        Args:
            source: Its name as ``sources`` gives it, or the path of its file.

        Returns:
            How many chunks went.

        Raises:
            ConfigurationError: There is no such document.
            IndexLockedError: Another process is writing.
        """
        known = self.ledger.content_hashes()
        path = Path(source).expanduser()
        candidates = [str(source), os.path.abspath(path), str(path.resolve())]
        name = next((candidate for candidate in candidates if candidate in known), None)
        if name is None:
            raise _unknown_source(str(source))
        with self.stores.writing():
            chunks = len(self.ledger.chunk_ids(name))
            self.stores.write([], forget=[name])
        return chunks

    def verify(self, *, repair: bool = False) -> "VerifyReport":
        """Check that both stores hold exactly the committed chunks, with readable vectors.

        Args:
            repair: Write what is missing again, from the ledger, and delete what is not committed.

        Returns:
            The problems found.
        """
        from lince_rag.index.verification import verify

        return verify(self, repair=repair)


def _unknown_source(source: str) -> ConfigurationError:
    return ConfigurationError(
        f"There is no document {source!r} in the index.", hint="`lince-rag status` lists the documents."
    )


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
