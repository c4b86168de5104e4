"""The collections of a server: indexes that stay open, with names for clients that tell nothing of the machine."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

from langchain_core.runnables import run_in_executor

from lince_rag.chain.bindings import AnyModel
from lince_rag.chain.rag import RagChain, create_rag_chain
from lince_rag.errors import ConfigurationError
from lince_rag.index.filters import match_sources, near_sources
from lince_rag.index.index import Index
from lince_rag.index.ledger import Source
from lince_rag.index.locations import SharedLocation, find_location, is_address
from lince_rag.index.postgresql import SharedLedger
from lince_rag.index.retriever import HybridRetriever

# Names stand in addresses and in the rights of keys.
NAME: Final = re.compile(r"[\w][\w.-]{0,63}", re.ASCII)

# Bytes of the digest that names a document.
ID_BYTES: Final = 9


@dataclass(frozen=True)
class PublicDocument:
    """What clients know of a document.

    Attributes:
        id: What tells it from others; it stays the same when the document changes.
        name: Its path below the folder that all files of the collection have in common, or its own name.
        source: Its name in the index, which clients do not see.
        title: Its title, or its name if it has none.
        language: The language of its text.
        passages: The number of its chunks.
        characters: The length of its text.
    """

    id: str
    name: str
    source: str
    title: str
    language: str
    passages: int
    characters: int


class Collection:
    """An index that a server answers from.

    Args:
        name: Its name for clients.
        index: The open index.
        llm: The model.
        retriever: What finds its chunks.
        uploads: Where the files go that clients send.
        **options: Those of ``create_rag_chain``.

    Raises:
        ConfigurationError: The name cannot stand in addresses, or an option is out of its range.
    """

    def __init__(
        self, name: str, index: Index, llm: AnyModel, retriever: HybridRetriever, uploads: Path, **options: Any
    ) -> None:
        if not NAME.fullmatch(name):
            raise ConfigurationError(
                f"{name!r} cannot be the name of a collection.",
                hint="Letters, digits, points, hyphens and underlines are allowed: --index NAME=FOLDER.",
            )
        self.name = name
        self.index = index
        self.chain = create_rag_chain(llm, retriever, **options)
        self.uploads = uploads
        # What messages call the index, with whom it speaks, and its folder on this machine: not for clients.
        ledger = index.ledger
        shared = ledger.location if isinstance(ledger, SharedLedger) else None
        own = (shared.given, shared.name, shared.chroma) if shared else ()
        self._own_names = (*own, str(index.folder))
        self._listed: tuple[int, dict[str, PublicDocument]] = (-1, {})

    @property
    def by_source(self) -> Mapping[str, PublicDocument]:
        """All documents, by their name in the index, in its order; read again when the index has changed."""
        generation, found = self._listed
        current = self.index.ledger.generation
        if current != generation:
            sources = self.index.sources()
            names = public_names([each.source for each in sources], self.uploads)
            found = {each.source: _public(each, name) for each, name in zip(sources, names, strict=True)}
            self._listed = current, found
        return found

    async def refresh(self) -> None:
        """Read the list of documents in a thread, if it has changed, so that the event loop need not."""
        await run_in_executor(None, getattr, self, "by_source")

    def documents(self) -> list[PublicDocument]:
        """Return all documents, by name."""
        return sorted(self.by_source.values(), key=lambda each: (each.name, each.id))

    def document(self, identity: str) -> PublicDocument | None:
        """Return the document with an id; ``None`` if there is none."""
        return next((each for each in self.by_source.values() if each.id == identity), None)

    def file(self, document: PublicDocument) -> Path | None:
        """Return the file of a document, if it is there."""
        path = Path(document.source)
        return path if path.is_absolute() and path.is_file() else None

    def chain_for(self, documents: Sequence[PublicDocument], k: int | None = None) -> RagChain:
        """Return the chain that reads only some documents (all, if none are given), and ``k`` chunks."""
        named = {"source": {"$in": [each.source for each in documents]}} if documents else None
        return self.chain.with_filter(named, k=k)

    def find(self, name: str) -> list[PublicDocument]:
        """Return the documents that a name, the end of one, or a pattern such as ``*.pdf`` stands for.

        Raises:
            ConfigurationError: There is none, or the name may be that of several.
        """
        known = self.documents()
        names = [each.name for each in known]
        found = set(match_sources(name, names))
        if not found:
            near = near_sources(name, names)
            raise ConfigurationError(
                f"There is no document {name!r} in the index.",
                hint=f"Did you mean {' or '.join(near)}?" if near else "",
            )
        return [each for each in known if each.name in found]

    def public_text(self, text: str) -> str:
        """Return a message with the names of documents instead of their paths."""
        for source, document in self.by_source.items():
            if source in text:
                text = text.replace(source, document.name)
        text = text.replace(f"{self.uploads}{os.sep}", "")
        for own in self._own_names:
            text = text.replace(own, self.name)
        return text


def document_id(source: str) -> str:
    """Return what tells a document from others of its collection."""
    return hashlib.blake2b(source.encode("utf-8", "surrogatepass"), digest_size=ID_BYTES).hexdigest()


def public_names(sources: Sequence[str], uploads: Path) -> list[str]:
    """Return the names of documents for clients: below the folder that the files have in common.

    Uploaded files are named as they were uploaded, and what has no path keeps its name.
    """
    own = f"{uploads}{os.sep}"
    paths = [each for each in sources if os.path.isabs(each) and not each.startswith(own)]
    parents = {os.path.dirname(each) for each in paths}
    common = os.path.commonpath(parents) if parents else ""

    def name(source: str) -> str:
        if source.startswith(own):
            return source.removeprefix(own)
        return PurePath(os.path.relpath(source, common)).as_posix() if os.path.isabs(source) else source

    return [name(source) for source in sources]


def _public(source: Source, name: str) -> PublicDocument:
    return PublicDocument(
        document_id(source.source),
        name,
        source.source,
        name if source.title == source.source else source.title,
        source.language,
        source.chunks,
        source.characters,
    )


def collection_indexes(given: Iterable[str]) -> dict[str, str]:
    """Return the indexes of collections by name: of ``NAME=INDEX``, or of an index with the name that it has.

    A folder and a TOML file have their whole paths: the processes of a server may have other working folders.

    Raises:
        ConfigurationError: Two have one name, or the address of a shared index cannot be understood.
    """
    found: dict[str, str] = {}
    for each in given:
        name, equals, index = each.partition("=")
        # The address of a shared index has options, with equals signs.
        if not equals or is_address(each):
            name, index = "", each
        location = find_location(index)
        if not name:
            name = location.collection if isinstance(location, SharedLocation) else location.name
        if name in found:
            raise ConfigurationError(
                f"Two collections are named {name!r}.", hint="Name them: --index NAME=FOLDER."
            )
        found[name] = index if is_address(index) else str(Path(index).expanduser().resolve())
    return found
