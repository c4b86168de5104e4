"""Index: a Chroma store, a lexical index and the ledger of what has been committed, in a folder or on servers."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from datetime import time as time_of_day
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import run_in_executor

from lince_rag.documents.chunking import ChunkingSettings
from lince_rag.documents.reading import Loaders, Reading
from lince_rag.documents.selection import FileSelection
from lince_rag.documents.workers import DEFAULT_LIMITS, ReadingLimits
from lince_rag.errors import ConfigurationError, EmbeddingsMismatchError, IndexLockedError
from lince_rag.index.compaction import PurgeReport, change_embedder, purge
from lince_rag.index.conditions import filter_to_sql
from lince_rag.index.embeddings import LinceEmbeddings, embeddings_name
from lince_rag.index.export_files import ExportFile
from lince_rag.index.filters import combine_filters, match_sources, near_sources, parse_filter
from lince_rag.index.ingestion import (
    IngestReport,
    add_documents,
    add_vectors,
    copy_documents,
    ingest,
    recorded_chunking,
)
from lince_rag.index.ledger import CHUNKING_ALGORITHM, Ledger, Source
from lince_rag.index.locations import SharedLocation, find_location
from lince_rag.index.moving import (
    ExportReport,
    Renaming,
    RestoreReport,
    check_fit,
    embedder_of,
    export_index,
    other_settings,
    restore,
)
from lince_rag.index.on_ray import choose_reads
from lince_rag.index.opening import (
    check_chunking,
    choose_embeddings,
    choose_other_embeddings,
    open_ledger,
)
from lince_rag.index.postgresql import SharedLedger
from lince_rag.index.retriever import HybridRetriever
from lince_rag.index.shared import SharedStores
from lince_rag.index.storage import inherit_mode, replace_folder, set_aside
from lince_rag.index.stores import ChunkStores
from lince_rag.index.verification import VerifyReport, verify
from lince_rag.index.watching import watch

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool
    from watchfiles.main import AbstractEvent

TOOL_DESCRIPTION: Final = (
    "Finds passages of the user's own documents. Give a whole question in Spanish, Portuguese or English."
)


class Index:
    """A folder of searchable documents. Open one with ``Index.open``; it is also a context manager.

    Attributes:
        folder: The index's folder; of a shared index the folder of this machine's copy of the terms.
        ledger: What has been committed.
        stores: The vector store and the lexical index.

    Example:
        >>> with Index.open("my-index") as index:
        ...     report = index.ingest("documents/")
        ...     chunks = index.as_retriever(k=3).invoke("¿Cuándo vence el contrato?")
    """

    def __init__(self, folder: Path, embeddings: Embeddings, ledger: Ledger) -> None:
        self.folder = folder
        self.ledger = ledger
        self.stores = (
            SharedStores(folder, embeddings, ledger)
            if isinstance(ledger, SharedLedger)
            else ChunkStores(folder, embeddings, ledger)
        )

    @property
    def embeddings(self) -> Embeddings:
        """The embedder: of a shared index that was built again, the new one as soon as something has used it."""
        return self.stores.embeddings

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
            folder: The index's folder. For a shared index its address
                (``"lince+postgresql://user@host/database?chroma=http://host:8000&collection=name"``), or the path
                of a TOML file with the keys ``ledger``, ``chroma`` and ``collection``.
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
            ConfigurationError: The index was built with other chunking settings; or its address is wrong.
            IndexServerError: A server of a shared index cannot be reached.
            MissingExtraError: It is a shared index, and the extra ``shared`` is not installed.
        """
        path, ledger = _open_ledger(folder, create)
        try:
            chosen = choose_embeddings(ledger, embeddings)
            check_chunking(ledger, chunking)
            return cls(path, chosen, ledger)
        except BaseException:
            ledger.close()
            raise

    @classmethod
    def open_as_stored(cls, folder: str | Path) -> Self:
        """Open an index to check or export it, whatever its embedder is: nothing can be embedded or asked.

        Args:
            folder: The index's folder.

        Raises:
            IndexFolderError: There is no index in the folder, or it cannot be read.
        """
        path, ledger = _open_ledger(folder, create=False)
        return cls(path, LinceEmbeddings(), ledger)

    @classmethod
    def rebuild(
        cls,
        folder: str | Path,
        *,
        embeddings: Embeddings | str | None = None,
        on_vectors: Callable[[int, int], None] | None = None,
    ) -> None:
        """Build an index again beside the old one, perhaps with another embedder, and put it in its place.

        Documents and chunks come from the ledger; no file is read. Until the end the old index can be asked, and
        nothing can be written. An interrupted run goes on the next time. Another process that has the index open
        sees the new one when it opens it again; of a shared index, with its next question or document.

        Args:
            folder: The index's folder.
            embeddings: The embedder, or the ``model`` of a ``LinceEmbeddings``; ``None`` keeps the recorded one.
            on_vectors: Called with (number of vectors done, total number).

        Raises:
            IndexFolderError: There is no index in the folder, or it cannot be written.
            IndexLockedError: Another process is writing, or rebuilding it.
            EmbeddingsMismatchError: An application's own embedder is recorded, and none is given.
        """
        path = find_location(folder)
        if isinstance(path, SharedLocation):
            with cls.open_as_stored(folder) as shared:
                wanted = choose_other_embeddings(shared.ledger, embeddings)
                assert isinstance(shared.stores, SharedStores)
                change_embedder(shared.stores, wanted, on_vectors)
            return
        if not path.exists() and set_aside(path).exists():
            # An earlier run was killed between two renamings.
            set_aside(path).rename(path)
        new = path.with_name(f"{path.name}.new")
        with cls.open_as_stored(path) as old, old.stores.write_lock():
            ledger = old.ledger
            wanted = choose_other_embeddings(ledger, embeddings)
            with cls._open_copy(new, wanted, recorded_chunking(ledger)) as built:
                built.ledger.set_settings(**{CHUNKING_ALGORITHM: ledger.setting(CHUNKING_ALGORITHM) or ""})
                copy_documents(ledger, built.stores)
                if built.add_vectors(on_vectors):
                    raise IndexLockedError(f"Another process is rebuilding the index {path}.")
            replace_folder(path, new)

    def export(
        self,
        file: str | Path,
        *,
        overwrite: bool = False,
        on_progress: Callable[[int, int, str], None] | None = None,
    ) -> ExportReport:
        """Write everything that is in the index into one file, for another machine, version or kind of index.

        Questions may be asked meanwhile; writers wait. Only the owner may read the file. Equal indexes give equal
        files.

        Args:
            file: The file to write.
            overwrite: Whether to replace a file that is there.
            on_progress: Called with (number of documents done, total number, name of the current one).

        Returns:
            How much was written.

        Raises:
            ConfigurationError: The file is there already, or is a folder.
            ExportFileError: The file cannot be written, or a document is too long.
            IndexDamagedError: The ledger or the vector store is damaged.
            IndexLockedError: Another process is writing to the index.
        """
        return export_index(self.stores, Path(file).expanduser(), overwrite=overwrite, on_progress=on_progress)

    @classmethod
    def restore(
        cls,
        file: str | Path,
        folder: str | Path,
        *,
        embeddings: Embeddings | str | None = None,
        rename: Mapping[str, str] | None = None,
        on_progress: Callable[[int, int, str], None] | None = None,
    ) -> RestoreReport:
        """Bring what ``export`` has written into an index.

        A document replaces the one of the same name in the index; the others stay. The whole file is checked
        before anything is changed. It is safe to interrupt it at any moment and run it again.

        Args:
            file: What ``export`` has written.
            folder: The index's folder; it is created if it is missing or empty.
            embeddings: The embedder, or the ``model`` of a ``LinceEmbeddings``. The vectors are taken if it is the
                one that the file was made with; with another one, the passages wait for ``add_vectors``. ``None``
                takes that of the file, if it comes with this package.
            rename: New beginnings of the names of documents, by the old ones: ``{"/home/ana": "/home/luz"}``.
            on_progress: Called with (number of documents done, total number, name of the current one).

        Returns:
            How many documents were added, changed and left unchanged.

        Raises:
            ExportFileError: The file is no export, is damaged or cut, or has a newer format.
            ConfigurationError: The index was built with another embedder or other chunking settings, an embedder
                must be named, or a name to change is in no document.
            IndexFolderError: There is no space, or the folder cannot be used.
            IndexLockedError: Another process is writing to the index.
        """
        renaming = Renaming(rename or {})
        with ExportFile(Path(file).expanduser()) as export:
            renaming.check(export.check(renaming))
            chosen = embedder_of(export, embeddings)
            check_fit(export, chosen, folder)
            chunking = ChunkingSettings(**export.manifest.chunking)
            try:
                opened = cls.open(folder, embeddings=chosen, chunking=chunking)
            except ConfigurationError as error:
                raise other_settings(error) from error
            with opened as index:
                return restore(index.stores, export, renaming, on_progress)

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
        inherit_mode(self.folder)

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
            "embeddings_url": getattr(self.embeddings, "base_url", None),
            "chunking": self.ledger.json_setting("chunking"),
            "languages": dict(Counter(sorted(source.language for source in self.sources())).most_common()),
            "bytes": self.stores.stored_bytes(),
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
        found = self.find_sources(name)
        if len(found) > 1:
            raise ConfigurationError(
                f"The source {name!r} may be any of {', '.join(found)}.", hint="Give more of its path."
            )
        return found[0]

    def find_sources(self, name: str) -> list[str]:
        """Return the names, as ``sources`` gives them, of the documents that a name or a pattern stands for.

        Args:
            name: What ``find_source`` takes, or a pattern of names or ends of paths (``"*.pdf"``,
                ``"2024/contrato-*"``).

        Raises:
            ConfigurationError: There is no such document; or the name, which is no pattern, may be several.
        """
        known = [source.source for source in self.sources()]
        if (absolute := os.path.abspath(Path(name).expanduser())) in known:
            return [absolute]
        if not (found := match_sources(name, known)):
            raise _unknown_source(name, known)
        return found

    def make_filter(
        self, sources: Iterable[str] = (), filters: Iterable[str | Mapping[str, Any]] = ()
    ) -> dict[str, Any] | None:
        """Return the filter, as ``as_retriever`` takes it, for some documents and conditions.

        Args:
            sources: What ``find_sources`` takes; a chunk of any of them passes.
            filters: Conditions that must all hold: ``"page>=3"``, ``"language=pt"``, JSON, or filters.

        Returns:
            The filter; ``None`` if nothing is given.

        Raises:
            ConfigurationError: There is no such document, a condition cannot be understood, or no chunk passes.
        """
        named = [found for name in sources for found in self.find_sources(name)]
        wanted: list[Mapping[str, Any]] = [{"source": {"$in": list(dict.fromkeys(named))}}] if named else []
        given = list(filters)
        wanted += [parse_filter(each) if isinstance(each, str) else each for each in given]
        combined = combine_filters(wanted)
        if (
            given
            and combined
            and not self.ledger.select_ids(*filter_to_sql(combined, self.ledger.SYNTAX), limit=1)
        ):
            shown = " ".join(each if isinstance(each, str) else json.dumps(each) for each in given)
            raise ConfigurationError(
                f"No passage passes the filter {shown}.",
                hint=f"The keys are: {', '.join(self.ledger.metadata_keys())}.",
            )
        return combined

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
            raise _unknown_source(source, self.ledger.content_hashes())
        return text

    def ingest(
        self,
        paths: str | Path | Document | Iterable[str | Path | Document],
        *,
        on_progress: Callable[[int, int, str], None] | None = None,
        limits: ReadingLimits = DEFAULT_LIMITS,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        since: date | None = None,
        follow_links: bool = False,
        loaders: Loaders | None = None,
        password: str | None = None,
        ocr: bool = False,
        vectors: Literal["now", "later"] = "now",
        on_vectors: Callable[[int, int], None] | None = None,
        engine: Literal["local", "ray"] = "local",
        address: str | None = None,
    ) -> IngestReport:
        """Bring files, folders and LangChain documents into the index.

        Files are read in worker processes, so that one that crashes its reader or takes too much time or memory
        costs only itself. A file whose size and times are known is not read; a changed file replaces its old
        chunks; files of an ingested folder that no longer exist, or that a ``.linceignore`` file in it names, are
        removed from the index. It is safe to interrupt it at any moment and run it again.

        The LangChain documents of one ``source`` are together that document: what the index had of it before is
        replaced. ``add_documents`` adds to it.

        With an embedder that takes its time (any but the embedded one), the documents are found by their terms
        first; their vectors follow, and are used as they come.

        With ``engine="ray"``, files are read and embedded by a Ray cluster, and written by this process; documents
        and their vectors are then committed together.

        Args:
            paths: Files, folders, ``file:`` addresses or documents; and files and folders of other file systems
                (``s3://…``, ``gs://…``, what ``pyarrow.fs.FileSystem.from_uri`` opens; extra ``ray``).
            on_progress: Called with (number of files done, total number of files, name of the current one).
            limits: What reading one file may take, and the number of worker processes.
            include: Patterns of the files of folders to read, as in ``.gitignore``: ``["*.pdf", "contracts/"]``.
            exclude: Patterns of files and folders to leave out.
            since: Read only files of folders that changed at this time or later.
            follow_links: Whether to read what links of a folder lead to outside it.
            loaders: Readers of the application's: by file pattern (``"*.tex"``), what makes a LangChain loader of
                the path. They run in this process; their errors are those of the file.
            password: What opens PDFs that are protected with a password.
            ocr: Whether the text of scanned pages and of pictures is read, with Tesseract (extra ``ocr``).
            vectors: ``"later"`` leaves the vectors to ``add_vectors``.
            on_vectors: Called with (number of vectors done, total number).
            engine: Who reads: ``"local"`` is this machine, ``"ray"`` a cluster (extra ``ray``).
            address: Of the Ray cluster, ``"host:6379"`` or ``"auto"``; without one, that in the environment
                variable ``RAY_ADDRESS``, else Ray is started on this machine and ended again.

        Returns:
            What was added, changed, left unchanged and removed, what could not be read and why, and which files of
            the folders were not read.

        Raises:
            ConfigurationError: A document has no ``source`` in its metadata, a pattern cannot be understood,
                Tesseract is not installed, or a cluster or file system cannot be reached.
            IndexLockedError: Another process is writing.
            LinceError: The Ray cluster cannot do the work.
            MissingExtraError: The extra ``ray`` is not installed and needed.
        """
        started = time.monotonic()
        if since is not None and not isinstance(since, datetime):
            since = datetime.combine(since, time_of_day.min)
        selection = FileSelection(
            include, exclude, since.timestamp() if since else None, follow_links, tuple(loaders or ()), ocr
        )
        reading = Reading(recorded_chunking(self.ledger), limits, loaders, password, ocr)
        reads = choose_reads(engine, address, reading, lambda: self.embeddings if vectors == "now" else None)
        report = ingest(self.stores, paths, on_progress, reading=reading, selection=selection, reads=reads)
        if report.waiting and vectors == "now":
            report.waiting = self.add_vectors(on_vectors)
            report.seconds = time.monotonic() - started
        return report

    async def aingest(
        self, paths: str | Path | Document | Iterable[str | Path | Document], **options: Any
    ) -> IngestReport:
        """Call ``ingest``, with the same options, in a thread."""
        return await run_in_executor(None, partial(self.ingest, paths, **options))

    def add_documents(
        self,
        documents: Iterable[Document],
        *,
        ids: Sequence[str] | None = None,
        vectors: Literal["now", "later"] = "now",
        on_vectors: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Add LangChain documents, as a vector store does: those of loaders, or pieces of a splitter.

        Documents with the same ``source`` (the pages of a PDF) become one document of the index, in the order in
        which they come, also in several calls; no chunk crosses two of them. One with a known id replaces the
        older one; ``document_id`` in the metadata of its chunks is the id. With a splitter's ``start_index``, the
        pieces are put where they were, so that citations have the offsets of the text that was split.

        Args:
            documents: The documents, each with ``source`` in its metadata.
            ids: Their ids, instead of their own.
            vectors: ``"later"`` leaves the vectors to ``add_vectors``.
            on_vectors: Called with (number of vectors done, total number).

        Returns:
            The id of each document: its own, or a digest of its content.

        Raises:
            ConfigurationError: A document has no ``source``, or one that was read from a file; or there are more
                or fewer ids than documents.
            DocumentError: A source has no text.
            IndexLockedError: Another process is writing.
        """
        given = list(documents)
        if ids is not None:
            if len(ids) != len(given):
                raise ConfigurationError(
                    f"The number of ids is {len(ids)}, that of documents {len(given)}.", hint="Give as many."
                )
            given = [each.model_copy(update={"id": name}) for each, name in zip(given, ids, strict=True)]
        found = add_documents(self.stores, given)
        if vectors == "now" and self.ledger.count_waiting():
            self.add_vectors(on_vectors)
        return found

    async def aadd_documents(self, documents: Iterable[Document], **options: Any) -> list[str]:
        """Call ``add_documents``, with the same options, in a thread."""
        return await run_in_executor(None, partial(self.add_documents, documents, **options))

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

    def watch(
        self, paths: str | Path | Iterable[str | Path], *, stop: "AbstractEvent | None" = None, **options: Any
    ) -> Iterator[IngestReport]:
        """Keep the index in step with files and folders: ingest whenever something in them changes.

        Args:
            paths: Files and folders, which exist.
            stop: An event that ends it (``threading.Event``).
            **options: Those of ``ingest``.

        Yields:
            What each ingestion did, if it did something.

        Raises:
            ConfigurationError: A path does not exist.
        """
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        yield from watch(self.folder, given, partial(self.ingest, given, **options), stop)

    def purge(self) -> PurgeReport:
        """Write the files of the index anew, so that nothing of what was deleted can be found in them.

        It takes about as long as reading the documents took without their vectors, and questions may be asked
        meanwhile. Conversations of ``lince-rag chat`` are not part of it.

        Returns:
            The seconds that it took, and the bytes that the index became smaller by.

        Raises:
            IndexLockedError: Another process is writing, or keeps the ledger open for reading.
            IndexFolderError: The index cannot be written.
        """
        return purge(self.stores)

    def delete(self, source: str | Path, *, purge: bool = True) -> int:
        """Remove a document from the index.

        Args:
            source: Its name, as ``sources`` gives it, or the path of its file.
            purge: Whether to ``purge`` the files. Without it, which is faster, no question finds what was deleted,
                but it could be recovered from the files until the next purge.

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
            raise _unknown_source(str(source), known)
        with self.stores.writing():
            chunks = len(self.ledger.chunk_ids(name))
            self.stores.write([], forget=[name])
        if purge:
            self.purge()
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


def _open_ledger(index: str | Path, create: bool) -> tuple[Path, Ledger]:
    """Open the ledger of an index; return also the folder that the index has on this machine."""
    location = find_location(index)
    if isinstance(location, SharedLocation):
        return location.folder, SharedLedger(location, create=create)
    return location, open_ledger(location, create)


def _unknown_source(source: str, known: Iterable[str]) -> ConfigurationError:
    near = near_sources(source, known)
    return ConfigurationError(
        f"There is no document {source!r} in the index.",
        hint=f"Did you mean {' or '.join(near)}?" if near else "`lince-rag status --list` lists the documents.",
    )
