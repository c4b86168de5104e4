"""The stored terms of a chunk say exactly what its text says."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from lince_rag.documents.prepared import PreparedDocument, prepare, term_lines
from lince_rag.index.lexical import LexicalHit
from lince_rag.index.ranking import CHUNK_WEIGHT, PAIR_WEIGHT, SENTENCE_WEIGHT, rescore
from lince_rag.index.sqlite import FolderLedger
from lince_rag.text.language import LANGUAGES
from lince_rag.text.questions import content_stems
from lince_rag.text.sentences import (
    CACHED_TEXTS,
    TermLines,
    forget_sentences,
    remember_sentences,
    sentence_spans,
    split_sentences,
)
from lince_rag.text.words import grams, spaced_gram, words

VOCABULARY = [
    "el",
    "la",
    "de",
    "a",
    "y",
    "contrato",
    "contratos",
    "alquiler",
    "vence",
    "vencimiento",
    "31",
    "mayo",
    "3.500,50",
    "12:30",
    "canción",
    "nação",
    "ação",
    "AÑO",
    "À",
    "ﷺ",
    "⑴",
    "ͺ",
    "ß",
]
sentences = st.lists(st.sampled_from(VOCABULARY), max_size=9).map(" ".join)
prose = st.lists(sentences, max_size=5).flatmap(
    lambda parts: st.lists(st.sampled_from([". ", "\n", "? ", "\n\n", ": ", "\f", ".\n- "]), min_size=5).map(
        lambda marks: "".join(part + mark for part, mark in zip(parts, marks, strict=False))
    )
)
texts = prose | st.text(st.characters(codec=None), max_size=80)
languages = st.sampled_from(LANGUAGES)


def old_sentences(text, language):
    """The offsets, stems, terms and numbers of the sentences, word by word."""
    for start, end in sentence_spans(text, language):
        found = list(words(text[start:end], language))
        stems = tuple(word.stem for word in found)
        terms = frozenset(stems).union(gram for word in found for gram in grams(word.folded))
        numbers = frozenset(word.text for word in found if re.search(r"\d", word.text))
        yield start, end, text[start:end], stems, terms, numbers


@settings(max_examples=300)
@given(texts, languages)
def test_sentences_have_the_terms_of_their_words(text, language):
    forget_sentences()
    found = [
        (each.start, each.end, each.text, each.stems, each.terms, each.numbers)
        for each in split_sentences(text, language)
    ]
    assert found == list(old_sentences(text, language))


@given(texts, languages)
def test_what_is_packed_comes_back(text, language):
    lines = TermLines.of(text, language)
    assert TermLines.unpack(lines.pack()) == lines


@given(texts, languages)
def test_stored_lines_give_the_sentences_of_the_text(text, language):
    forget_sentences()
    computed = split_sentences(text, language)
    forget_sentences()
    assert remember_sentences(text, language, TermLines.of(text, language)) == computed
    assert split_sentences(text, language) == computed


@given(prose.filter(str.strip), languages, st.integers(0, 10_000), st.integers(1, 255))
def test_damaged_lines_are_not_read(text, language, position, change):
    packed = bytearray(TermLines.of(text, language).pack())
    packed[position % len(packed)] ^= change
    # A few bits of the header do not matter.
    assert TermLines.unpack(bytes(packed)) in (None, TermLines.of(text, language))


@pytest.mark.parametrize("packed", [b"", b"x", "x", None, 3])
def test_other_values_are_not_read(packed):
    assert TermLines.unpack(packed) is None


def test_lines_of_another_version_are_not_read(monkeypatch):
    packed = TermLines.of("El gato duerme.", "es").pack()
    monkeypatch.setattr("lince_rag.text.sentences.LINES_VERSION", 99)
    assert TermLines.unpack(packed) is None


def test_the_cache_is_bounded():
    forget_sentences()
    for number in range(CACHED_TEXTS + 20):
        split_sentences(f"Texto {number}.", "es")
    assert split_sentences("Texto 0.", "es")[0].stems == ("text", "0")


@given(texts, languages, st.text(st.sampled_from("casdeñção1"), min_size=1, max_size=6))
def test_a_gram_is_found_in_the_line_as_in_the_terms(text, language, word):
    for sentence in split_sentences(text, language):
        for gram in grams(word):
            assert (spaced_gram(gram) in sentence.spelling_line) == (gram in sentence.terms)


def old_score(question, language, text, idf):
    """The second look at a chunk as it was, with sets of terms."""
    asked = list(words(question, language))
    content = content_stems(asked, language)
    stems = [word.stem for word in asked]
    found = list(old_sentences(text, language))
    near = {pair for _, _, _, s, _, _ in found for step in (1, 2) for pair in zip(s, s[step:], strict=False)}

    def share(weights, present):
        total = sum(weights.values())
        return sum(weight for key, weight in weights.items() if key in present) / total if total else 0.0

    gram_weights = {gram: idf(gram) for word in asked if word.stem in content for gram in grams(word.folded)}
    return (
        SENTENCE_WEIGHT * max((share(gram_weights, terms) for *_, terms, _ in found), default=0.0)
        + CHUNK_WEIGHT * share({s: idf(s) for s in content}, frozenset().union(*(terms for *_, terms, _ in found)))
        + PAIR_WEIGHT * share({pair: idf(pair[0]) + idf(pair[1]) for pair in pairwise(stems)}, near)
    )


@settings(max_examples=300)
@given(prose, sentences, languages)
def test_the_second_look_gives_the_scores_that_it_gave(text, question, language):
    def idf(term):
        return 1.0 + len(term) % 7

    hits = [LexicalHit("one", 8.0, 0.5), LexicalHit("two", 4.0, 0.2)]
    scores = rescore(
        question, language, hits, {"one": TermLines.of(text, language)}, lambda found: {t: idf(t) for t in found}
    )
    assert scores == {"one": pytest.approx(1.0 + old_score(question, language, text, idf), abs=1e-9), "two": 0.5}


TEXT = "El contrato vence en mayo. La fianza es de 3.500,50 euros.\n\nO aluguel vence em maio."


def prepared(text=TEXT):
    document = Document(page_content=text, metadata={"source": "nota", "language": "es", "content_hash": text})
    return prepare(document)


def commit(ledger, made: PreparedDocument):
    with ledger.transaction():
        ledger.commit(made)


def test_a_worker_sends_them_and_the_ledger_keeps_them():
    made = PreparedDocument.from_json(prepared().to_json())
    assert made.lines == prepared().lines
    ledger = FolderLedger(":memory:")
    commit(ledger, made)
    (chunk,) = made.chunks
    assert ledger.term_lines([chunk.id, "unknown"]) == {chunk.id: term_lines(chunk)}
    ledger.close()


def rows(ledger):
    return {row[0] for row in ledger._rows("SELECT id FROM term_lines")}


def test_they_go_with_their_chunks():
    ledger = FolderLedger(":memory:")
    commit(ledger, prepared())
    commit(ledger, prepared("El gato duerme."))
    assert rows(ledger) == ledger.chunk_ids()
    with ledger.transaction():
        ledger.forget("nota")
    assert rows(ledger) == set()
    ledger.close()


def test_a_transaction_that_fails_stores_none():
    ledger = FolderLedger(":memory:")
    with pytest.raises(RuntimeError), ledger.transaction():
        made = prepared()
        ledger.commit(made)
        raise RuntimeError
    assert rows(ledger) == set()
    ledger.close()


def test_the_ledger_is_sound_without_them(tmp_path):
    ledger = FolderLedger(tmp_path / "ledger.sqlite")
    commit(ledger, prepared())
    ledger.set_term_lines((chunk_id, b"damaged") for chunk_id in ledger.chunk_ids())
    assert ledger.term_lines(ledger.chunk_ids()) == {}
    assert ledger.damage() == ""
    ledger.close()
