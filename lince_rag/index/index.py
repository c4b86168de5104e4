"""Index: a folder with a Chroma store, a lexical index, and the ledger of what has been committed."""

import errno
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from lince_rag.documents.chunking import ChunkingSettings
from lince_rag.documents.workers import DEFAULT_LIMITS, ReadingLimits
from lince_rag.errors import ConfigurationError, EmbeddingsMismatchError, IndexFolderError, IndexLockedError
from lince_rag.index.embeddings import EMBEDDED, LinceEmbeddings, check_loading, default_model, embeddings_name
from lince_rag.index.filters import match_source
from lince_rag.index.ingestion import IngestReport, add_vectors, copy_documents, ingest, recorded_chunking
from lince_rag.index.ledger import CHUNKING_ALGORITHM, Ledger, Source
from lince_rag.index.retriever import HybridRetriever
from lince_rag.index.storage import (
    LEDGER_FILE,
    damaged_ledger,
    folder_bytes,
    holds_stores,
    is_writable,
    replace_folder,
    set_aside,
)
from lince_rag.index.stores import ChunkStores
from lince_rag.index.verification import VerifyReport, verify

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

TOOL_DESCRIPTION: Final = (
    "Finds passages of the user's own documents. Give a whole question in Spanish, Portuguese or English."
)


class Index:
    """A folder of searchable documents. Open one with ``Index.open``; it is also a context manager.

    Attributes:
        folder: The index's folder.
        embeddings: The embedder.
        ledger: What has been committed.
        stores: The vector store and the lexical index.

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
        chunking: ChunkingSettings | None = None,
        create: bool = True,
    ) -> Self:
        """Open an index, or create a new one.

        Args:
            folder: The index's folder.
            embeddings: The embedder, or the ``model`` of a ``LinceEmbeddings``; ``None`` takes the one that the
                index was built with. For a new index that is the one named in the environment variable
                ``LINCE_EMBEDDINGS``, else ``"multilingual-e5-small"`` where the extra ``e5`` is installed, else
                ``"embedded"``.
            chunking: How to split documents; ``None`` takes what the index was built with.
            create: Whether to create the index if the folder is missing or empty.

        Returns:
            The open index.

        Raises:
            IndexFolderError: There is no index in the folder, or it cannot be read. A damaged vector store or
                lexical index is an error only when it is used, so that ``verify`` can repair it.
            EmbeddingsMismatchError: The index was built with another embedder.
            ConfigurationError: The index was built with other chunking settings.
        """
        path = Path(folder).expanduser().resolve()
        ledger = _open_ledger(path, create)
        try:
            chosen = _choose_embeddings(ledger, embeddings)
            _check_chunking(ledger, chunking)
            return cls(path, chosen, ledger)
        except BaseException:
            ledger.close()
            raise

    @classmethod
    def rebuild(
        cls,
        folder: str | Path,
        *,
        embeddings: Embeddings | str | None = None,
        on_vectors: Callable[[int, int], None] | None = None,
    ) -> None:
        """Build an index again beside the old one, perhaps with another embedder, and put it in its place.

        Documents and chunks come from the ledger; no file is read. Until the end the old index can be asked. An
        interrupted run goes on the next time. Another process that has the index open sees the new one when it
        opens it again.

        Args:
            folder: The index's folder.
            embeddings: The embedder, or the ``model`` of a ``LinceEmbeddings``; ``None`` keeps the recorded one.
            on_vectors: Called with (number of vectors done, total number).

        Raises:
            IndexFolderError: There is no index in the folder, or it cannot be written.
            IndexLockedError: Another process is writing, or rebuilding it.
            EmbeddingsMismatchError: An application's own embedder is recorded, and none is given.
        """
        path = Path(folder).expanduser().resolve()
        if not path.exists() and set_aside(path).exists():
            # An earlier run was killed between two renamings.
            set_aside(path).rename(path)
        new = path.with_name(f"{path.name}.new")
        ledger = _open_ledger(path, create=False)
        # The old embedder is not used.
        with cls(path, LinceEmbeddings(), ledger) as old, old.stores.write_lock():
            wanted = _recorded_embeddings(ledger) if embeddings is None else embeddings
            wanted = LinceEmbeddings(wanted) if isinstance(wanted, str) else wanted
            name = embeddings_name(wanted)
            if embeddings is None and name != ledger.setting("embeddings"):
                raise _other_embedder(ledger.setting("embeddings"), name)
            check_loading(wanted)
            with cls._open_copy(new, wanted, recorded_chunking(ledger)) as built:
                built.ledger.set_settings(**{CHUNKING_ALGORITHM: ledger.setting(CHUNKING_ALGORITHM) or ""})
                copy_documents(ledger, built.stores)
                if built.add_vectors(on_vectors):
                    raise IndexLockedError(f"Another process is rebuilding the index {path}.")
            replace_folder(path, new)

    @classmethod
    def _open_copy(cls, folder: Path, embeddings: Embeddings, chunking: ChunkingSettings) -> Self:
        """Open what an interrupted run has built, or a new index if that run had another embedder."""
        try:
            return cls.open(folder, embeddings=embeddings, chunking=chunking)
        except EmbeddingsMismatchError:
            shutil.rmtree(folder)
            return cls.open(folder, embeddings=embeddings, chunking=chunking)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Index({str(self.folder)!r}, embeddings={embeddings_name(self.embeddings)!r})"

    def close(self) -> None:
        """Close the stores and the ledger, and release their files."""
        self.stores.close()
        self.ledger.close()

    def as_retriever(self, **options: Any) -> HybridRetriever:
        """Return a retriever over this index.

        Args:
            **options: Fields of ``HybridRetriever``: ``k``, ``fetch_k``, ``lexical_weight``, ``filter`` …
        """
        return HybridRetriever(stores=self.stores, **options)

    def as_tool(
        self, *, name: str = "search_documents", description: str = TOOL_DESCRIPTION, **options: Any
    ) -> "BaseTool":
        """Return a LangChain tool that searches this index, for an agent.

        Args:
            name: The tool's name, for the model.
            description: What the tool does, for the model.
            **options: Fields of ``HybridRetriever``: ``k``, ``filter`` …

        Returns:
            A tool whose content is the passages, each below the name of its document, and whose artifact is the
            chunks.
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
        """Return the documents of the index, sorted by name."""
        return self.ledger.sources()

    def summary(self) -> dict[str, Any]:
        """Return the embedder, the chunking, the documents by language, the bytes on disk, the vectors to come."""
        return {
            "embeddings": embeddings_name(self.embeddings),
            "chunking": self.ledger.json_setting("chunking"),
            "languages": dict(Counter(sorted(source.language for source in self.sources())).most_common()),
            "bytes": folder_bytes(self.folder),
            "waiting": self.ledger.count_waiting(),
            "read_only": self.ledger.read_only,
        }

    def find_source(self, name: str) -> str:
        """Return the name, as ``sources`` gives it, of a document.

        Args:
            name: Its name, the path of its file, or the end of its path (``"2024/contrato.pdf"``).

        Raises:
            ConfigurationError: There is no such document, or there are several.
        """
        known = [source.source for source in self.sources()]
        if (absolute := os.path.abspath(Path(name).expanduser())) in known:
            return absolute
        if (found := match_source(name, known)) is None:
            raise _unknown_source(name)
        return found

    def text(self, source: str) -> str:
        """Return the text of a document, in which ``Citation.start`` and ``Citation.end`` are offsets.

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

    def ingest(
        self,
        paths: str | Path | Document | Iterable[str | Path | Document],
        *,
        on_progress: Callable[[int, int, str], None] | None = None,
        limits: ReadingLimits = DEFAULT_LIMITS,
        follow_links: bool = False,
        vectors: Literal["now", "later"] = "now",
        on_vectors: Callable[[int, int], None] | None = None,
    ) -> IngestReport:
        """Bring files, folders and LangChain documents into the index.

        Files are read in worker processes, so that one that crashes its reader or takes too much time or memory
        costs only itself. An unchanged file is only hashed; a changed file replaces its old chunks; files of an
        ingested folder that no longer exist are removed from the index. It is safe to interrupt it at any moment
        and run it again.

        With an embedder that takes its time (any but the embedded one), the documents are found by their terms
        first; their vectors follow, and are used as they come.

        Args:
            paths: Files, folders or documents.
            on_progress: Called with (number of files done, total number of files, name of the current one).
            limits: What reading one file may take, and the number of worker processes.
            follow_links: Whether to read what links of a folder lead to outside it.
            vectors: ``"later"`` leaves the vectors to ``add_vectors``.
            on_vectors: Called with (number of vectors done, total number).

        Returns:
            What was added, changed, left unchanged and removed, what could not be read and why, and which files of
            the folders were not read.

        Raises:
            ConfigurationError: A document has no ``source`` in its metadata.
            IndexLockedError: Another process is writing.
        """
        started = time.monotonic()
        report = ingest(self.stores, paths, on_progress, limits=limits, follow_links=follow_links)
        if report.waiting and vectors == "now":
            report.waiting = self.add_vectors(on_vectors)
            report.seconds = time.monotonic() - started
        return report

    def add_vectors(self, on_vectors: Callable[[int, int], None] | None = None) -> int:
        """Embed the passages whose vectors are still to come, those of the newest documents first.

        It is safe to interrupt it at any moment; questions may be asked, and documents ingested, meanwhile. If
        another process does the same, it is left to that one.

        Args:
            on_vectors: Called with (number of vectors done, total number).

        Returns:
            The number of vectors still to come.

        Raises:
            IndexFolderError: The index cannot be written.
        """
        return add_vectors(self.stores, on_vectors)

    def delete(self, source: str | Path) -> int:
        """Remove a document from the index.

        Args:
            source: Its name, as ``sources`` gives it, or the path of its file.

        Returns:
            The number of chunks removed.

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

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Check the files of the index, and that both stores hold exactly the committed chunks.

        It reads everything (about two seconds for 15,000 chunks), and works while another process writes.

        Args:
            repair: Whether to write missing chunks again, from the ledger, delete uncommitted ones, and build
                damaged stores again. If the ledger itself is damaged, nothing is changed.

        Returns:
            The problems found.

        Raises:
            IndexLockedError: Another process is writing, and ``repair`` is true.
            IndexFolderError: ``repair`` is true, and the index cannot be written.
        """
        return verify(self.stores, repair=repair)


def _unknown_source(source: str) -> ConfigurationError:
    return ConfigurationError(
        f"There is no document {source!r} in the index.", hint="`lince-rag status --list` lists the documents."
    )


def _open_ledger(path: Path, create: bool) -> Ledger:
    """Open the ledger of a folder, or create folder and ledger."""
    ledger = path / LEDGER_FILE
    try:
        # Before the ledger is looked at: a process that makes a new index creates the ledger first.
        filled = holds_stores(path)
        if filled and not (ledger.is_file() and ledger.stat().st_size):
            raise damaged_ledger(ledger, "it is empty" if ledger.exists() else "it is missing")
        _check_folder(path, create)
        path.mkdir(parents=True, exist_ok=True)
        read_only = not is_writable(path)
        if read_only and not filled and not ledger.exists():
            raise PermissionError(errno.EACCES, "it holds no index, and none can be created there")
    except OSError as error:
        raise IndexFolderError(
            f"The index folder {path} cannot be used: {error.strerror or error}.",
            hint="Check the path, its permissions and the free space, or choose another folder.",
        ) from error
    return Ledger(ledger, read_only=read_only, new=not filled)


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
        raise IndexFolderError(
            f"There is no index in {path}.",
            hint=f"Create one first: lince-rag ingest YOUR-DOCUMENTS --index {path}",
        )


def _choose_embeddings(ledger: Ledger, wanted: Embeddings | str | None) -> Embeddings:
    """Compare the embedder asked for with the recorded one; an index without vectors records it."""
    recorded = ledger.setting("embeddings")
    if wanted is None:
        wanted = LinceEmbeddings(default_model()) if recorded is None else _recorded_embeddings(ledger)
    elif isinstance(wanted, str):
        wanted = LinceEmbeddings(wanted)
    name = embeddings_name(wanted)
    if recorded is None or (recorded != name and not ledger.had_vectors()):
        options = wanted.options if isinstance(wanted, LinceEmbeddings) else {}
        ledger.set_settings(embeddings=name, embeddings_options=json.dumps(options))
    elif recorded != name:
        raise _other_embedder(recorded, name)
    return wanted


def _other_embedder(recorded: str | None, name: str) -> EmbeddingsMismatchError:
    return EmbeddingsMismatchError(
        f"The index was built with the embedder {recorded!r}, but it is opened with {name!r}.",
        hint=f"Open it with {recorded!r}, or build it again: lince-rag ingest --rebuild --embeddings NAME",
    )


def _recorded_embeddings(ledger: Ledger) -> LinceEmbeddings:
    # An application's own embedder has no options here; it must be given.
    options = ledger.json_setting("embeddings_options") or {"model": EMBEDDED}
    try:
        return LinceEmbeddings(**options)
    except TypeError as error:
        raise damaged_ledger(ledger.path, f"its embedder is {options}") from error


def _check_chunking(ledger: Ledger, wanted: ChunkingSettings | None) -> None:
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
