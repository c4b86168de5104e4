"""The lexical index: BM25 over analyzer terms in a tantivy folder."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lince_rag.errors import IndexFolderError
from lince_rag.text.language import Language
from lince_rag.text.words import terms

# tantivy's BM25 has k1 = 1.2 built in, so that a term's score stays below idf * (k1 + 1).
BM25_K1: Final = 1.2

# Memory tantivy may fill before it writes a segment. It asks for at least 15 MB a thread.
WRITER_BYTES: Final = 30_000_000


@dataclass(frozen=True)
class LexicalHit:
    """A chunk found by its terms.

    Attributes:
        id: The chunk's id.
        score: BM25 score, positive, without an upper bound.
        relevance: The score over the highest one any text could have for this question (0 to 1): comparable
            between questions, which the score is not.
    """

    id: str
    score: float
    relevance: float


class LexicalIndex:
    """BM25 search over chunks, on disk, updated in place.

    One process writes at a time (the ``Index`` takes the lock); any number may read.

    Args:
        folder: Where the tantivy files are; made if missing.

    Raises:
        IndexFolderError: The files there are not a tantivy index of ours.
    """

    def __init__(self, folder: Path) -> None:
        import tantivy

        folder.mkdir(parents=True, exist_ok=True)
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
        builder.add_text_field("terms", tokenizer_name="whitespace", index_option="freq")
        self._schema = builder.build()
        self._folder = folder
        try:
            self._index = tantivy.Index(self._schema, path=str(folder))
        except ValueError as error:
            raise IndexFolderError(
                f"The lexical index in {folder} cannot be opened: {error}",
                hint=f"Delete the folder {folder}, then run verify with repair on the index to build it again.",
            ) from error

    def write(self, chunks: Iterable[tuple[str, str, Language]], delete: Iterable[str] = ()) -> None:
        """Add and delete chunks in one commit; an added id replaces the chunk that had it.

        Args:
            chunks: (id, text, language) of each chunk to add.
            delete: Ids to delete; unknown ones are passed over.
        """
        import tantivy

        writer = self._index.writer(heap_size=WRITER_BYTES, num_threads=1)
        for chunk_id in delete:
            writer.delete_documents_by_term("id", chunk_id)
        for chunk_id, text, language in chunks:
            writer.delete_documents_by_term("id", chunk_id)
            document = tantivy.Document()
            document.add_text("id", chunk_id)
            document.add_text("terms", " ".join(terms(text, language)))
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        self.reload()

    def reload(self) -> None:
        """See what another process committed since."""
        self._index.reload()

    def search(
        self, question: str, language: Language, limit: int, ids: Sequence[str] | None = None
    ) -> list[LexicalHit]:
        """Find the chunks that share the rarest terms with a question.

        Args:
            question: The question.
            language: Its language.
            limit: Chunks to return at most.
            ids: Search among these chunks only; ``None`` searches all.

        Returns:
            Hits by falling score.
        """
        import tantivy

        counts = Counter(terms(question, language))
        if not counts or limit < 1 or (ids is not None and not ids):
            return []
        searcher = self._index.searcher()
        clauses = [(tantivy.Occur.Should, self._term_query(term, count)) for term, count in counts.items()]
        query = tantivy.Query.boolean_query(clauses)
        if ids is not None:
            allowed = tantivy.Query.term_set_query(self._schema, "id", list(ids))
            allowed = tantivy.Query.const_score_query(allowed, 0.0)
            query = tantivy.Query.boolean_query([(tantivy.Occur.Must, allowed), (tantivy.Occur.Must, query)])
        # The sum over the terms of their rarity, times the limit of the term frequency factor.
        rarities = self.rarity(counts)
        highest = (BM25_K1 + 1) * sum(count * rarities[term] for term, count in counts.items())
        return [
            LexicalHit(searcher.doc(address)["id"][0], score, min(score / highest, 1.0))
            for score, address in searcher.search(query, limit=limit, count=False).hits
        ]

    def ids(self) -> set[str]:
        """Return the id of every chunk in the index."""
        import tantivy

        searcher = self._index.searcher()
        hits = searcher.search(tantivy.Query.all_query(), limit=max(searcher.num_docs, 1), count=False).hits
        return {searcher.doc(address)["id"][0] for _, address in hits}

    def _term_query(self, term: str, count: int) -> Any:
        import tantivy

        query = tantivy.Query.term_query(self._schema, "terms", term, index_option="freq")
        return tantivy.Query.boost_query(query, float(count)) if count > 1 else query

    def _count_with_deleted(self) -> int:
        """How many chunks tantivy's idf counts: the deleted ones, too, until their segment is merged."""
        segments = json.loads((self._folder / "meta.json").read_text(encoding="utf-8"))["segments"]
        return sum(segment["max_doc"] for segment in segments)

    def rarity(self, found: Iterable[str]) -> dict[str, float]:
        """Return tantivy's inverse document frequency of terms.

        Args:
            found: Analyzer terms.

        Returns:
            A positive number for each. A term that is nowhere counts like one in a single chunk: in an index of
            a few chunks its own would drown every term that is there.
        """
        searcher = self._index.searcher()
        total = max(self._count_with_deleted(), searcher.num_docs)
        rarities = {}
        for term in found:
            frequency = max(searcher.doc_freq("terms", term), 1)
            rarities[term] = math.log(1 + (max(total - frequency, 0) + 0.5) / (frequency + 0.5))
        return rarities
