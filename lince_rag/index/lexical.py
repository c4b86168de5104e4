"""The lexical index: BM25 over analyzer terms in a tantivy folder."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from lince_rag.index.storage import LEXICAL_FOLDER, damaged_store, reporting
from lince_rag.text.language import Language
from lince_rag.text.questions import content_stems
from lince_rag.text.words import terms, words

# tantivy's BM25 uses k1 = 1.2, so the score of a term stays below idf * (k1 + 1).
BM25_K1: Final = 1.2

# Memory that tantivy may use before it writes a segment. Its minimum is 15 MB per thread.
WRITER_BYTES: Final = 30_000_000


@dataclass(frozen=True)
class LexicalHit:
    """A chunk found by its terms."""

    id: str
    # BM25: positive, without an upper bound.
    score: float
    # The score divided by the highest score that any text could have for this question (0 to 1). Unlike the score,
    # it is comparable between questions.
    relevance: float


class LexicalIndex:
    """BM25 search over chunks in a folder; one process writes at a time (``ChunkStores`` locks), any may read."""

    def __init__(self, folder: Path, *, index_folder: Path | None = None, new: bool = True) -> None:
        self.folder = folder
        # What errors name: another folder than the parent if ``folder`` is a copy.
        self._index_folder = index_folder or folder.parent
        self._new = new

    @cached_property
    def _schema(self) -> Any:
        import tantivy

        builder = tantivy.SchemaBuilder()
        builder.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
        builder.add_text_field("terms", tokenizer_name="whitespace", index_option="freq")
        return builder.build()

    @cached_property
    def _index(self) -> Any:
        """The open index. It is opened when it is needed, so that a damaged one can be repaired."""
        import tantivy

        if not self._new and not (self.folder / "meta.json").exists():
            raise damaged_store(self._index_folder, LEXICAL_FOLDER, "meta.json is missing")
        self.folder.mkdir(parents=True, exist_ok=True)
        return tantivy.Index(self._schema, path=str(self.folder))

    def _reporting(self) -> AbstractContextManager[None]:
        # tantivy raises ValueError for everything.
        return reporting(self._index_folder, LEXICAL_FOLDER, OSError, ValueError, LookupError)

    def write(self, chunks: Iterable[tuple[str, str]], delete: Iterable[str] = (), *, anew: bool = False) -> None:
        """Add or replace chunks, (id, terms with spaces between), and delete ids in one commit, known or not.

        ``anew`` deletes everything else, also from the files.
        """
        import tantivy

        with self._reporting():
            writer = self._index.writer(heap_size=WRITER_BYTES, num_threads=1)
            try:
                if anew:
                    writer.delete_all_documents()
                for chunk_id in delete:
                    writer.delete_documents_by_term("id", chunk_id)
                for chunk_id, found in chunks:
                    writer.delete_documents_by_term("id", chunk_id)
                    document = tantivy.Document()
                    document.add_text("id", chunk_id)
                    document.add_text("terms", found)
                    writer.add_document(document)
                writer.commit()
                if anew:
                    writer.garbage_collect_files()
                writer.wait_merging_threads()
            finally:
                # An exception keeps the variables of this call, and the writer would keep its lock.
                del writer
        self.reload()

    def reload(self) -> None:
        """Load what other processes have committed."""
        with self._reporting():
            self._index.reload()

    def search(
        self, question: str, language: Language, limit: int, ids: Sequence[str] | None = None
    ) -> list[LexicalHit]:
        """Find chunks that share terms with a question, best first; only among ``ids`` if they are given."""
        counts = Counter(terms(question, language))
        if not counts or limit < 1 or (ids is not None and not ids):
            return []
        asked = list(words(question, language))
        content = content_stems(asked, language)
        expected = Counter(terms(" ".join(word.text for word in asked if word.stem in content), language))
        with self._reporting():
            return self._search(counts, expected or counts, limit, ids)

    def _search(
        self, counts: Counter[str], expected: Counter[str], limit: int, ids: Sequence[str] | None
    ) -> list[LexicalHit]:
        import tantivy

        searcher = self._index.searcher()
        clauses = []
        for term, count in counts.items():
            clause = tantivy.Query.term_query(self._schema, "terms", term, index_option="freq")
            if count > 1:
                clause = tantivy.Query.boost_query(clause, float(count))
            clauses.append((tantivy.Occur.Should, clause))
        query = tantivy.Query.boolean_query(clauses)
        if ids is not None:
            allowed = tantivy.Query.term_set_query(self._schema, "id", list(ids))
            allowed = tantivy.Query.const_score_query(allowed, 0.0)
            query = tantivy.Query.boolean_query([(tantivy.Occur.Must, allowed), (tantivy.Occur.Must, query)])
        idfs = self.idf(counts)
        highest = (BM25_K1 + 1) * sum(count * idfs[term] for term, count in expected.items())
        return [
            LexicalHit(searcher.doc(address)["id"][0], score, min(score / highest, 1.0))
            for score, address in searcher.search(query, limit=limit, count=False).hits
        ]

    def idf(self, found: Iterable[str]) -> dict[str, float]:
        """Return the inverse document frequency of terms, as tantivy computes it: a positive number for each.

        An unknown term counts as if it were in one chunk: in an index of a few chunks its own value would outweigh
        every known term.
        """
        with self._reporting():
            searcher = self._index.searcher()
            # Until their segment is merged, tantivy counts deleted chunks too.
            segments = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))["segments"]
            total = max(sum(segment["max_doc"] for segment in segments), searcher.num_docs)
            idfs = {}
            for term in found:
                frequency = max(searcher.doc_freq("terms", term), 1)
                idfs[term] = math.log(1 + (max(total - frequency, 0) + 0.5) / (frequency + 0.5))
            return idfs

    def unknown(self, found: Iterable[str]) -> set[str]:
        """Return the terms that no chunk has."""
        with self._reporting():
            searcher = self._index.searcher()
            return {term for term in found if not searcher.doc_freq("terms", term)}

    def ids(self) -> set[str]:
        """Return the id of every chunk in the index."""
        import tantivy

        with self._reporting():
            searcher = self._index.searcher()
            hits = searcher.search(tantivy.Query.all_query(), limit=max(searcher.num_docs, 1), count=False).hits
            return {searcher.doc(address)["id"][0] for _, address in hits}
