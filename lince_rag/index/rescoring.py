"""A second look at the best lexical hits: how much of the question one sentence says, and in which order.

BM25 counts terms anywhere in a chunk. The chunk that answers a question usually has a sentence that says most of
it, with the question's words next to each other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

from langchain_core.documents import Document

from lince_rag.index.lexical import LexicalHit
from lince_rag.text.language import Language, detect_language
from lince_rag.text.questions import content_stems
from lince_rag.text.sentences import Sentence, split_sentences
from lince_rag.text.words import grams, words

# Hits that get the second look.
RESCORED_HITS: Final = 20

# What each measure (0 to 1) adds to the BM25 score over the best hit's (0 to 1): fitted on half of the articles of
# XQuAD-es and FaQuAD, where the gold paragraph is to win among the first 20 hits, and held against the other half.
SENTENCE_WEIGHT: Final = 0.8
CHUNK_WEIGHT: Final = 0.5
PAIR_WEIGHT: Final = 0.4

Key = TypeVar("Key")


def rescore(
    question: str,
    language: Language,
    hits: Sequence[LexicalHit],
    chunks: Mapping[str, Document],
    rarity: Callable[[Iterable[str]], dict[str, float]],
) -> dict[str, float]:
    """Score lexical hits by what their sentences say of a question.

    Args:
        question: The question.
        language: Its language.
        hits: BM25 hits, best first; those behind ``RESCORED_HITS`` keep their BM25 score alone.
        chunks: The chunks by id; hits that are not among them are left out.
        rarity: Gives the inverse document frequency of terms.

    Returns:
        A score by id, from 0 to about 2.7.
    """
    asked = list(words(question, language))
    content = content_stems(asked, language)
    pairs = list(zip((word.stem for word in asked), (word.stem for word in asked[1:]), strict=False))
    wanted_grams = {gram for word in asked if word.stem in content for gram in grams(word.folded)}
    rarities = rarity({word.stem for word in asked} | wanted_grams)
    gram_weights = {gram: rarities[gram] for gram in wanted_grams}
    stem_weights = {stem: rarities[stem] for stem in content}
    pair_weights = {pair: rarities[pair[0]] + rarities[pair[1]] for pair in pairs}
    scores = {}
    for rank, hit in enumerate(hits):
        if (chunk := chunks.get(hit.id)) is None:
            continue
        scores[hit.id] = hit.score / hits[0].score
        if rank < RESCORED_HITS:
            text = chunk.page_content
            sentences = split_sentences(text, chunk.metadata.get("language") or detect_language(text))
            scores[hit.id] += (
                SENTENCE_WEIGHT * max((_share(gram_weights, each.terms) for each in sentences), default=0.0)
                + CHUNK_WEIGHT * _share(stem_weights, frozenset().union(*(each.terms for each in sentences)))
                + PAIR_WEIGHT * _share(pair_weights, _pairs(sentences))
            )
    return scores


def _pairs(sentences: Sequence[Sentence]) -> set[tuple[str, str]]:
    """Return the stems that follow each other, at once or with one word between them."""
    found: set[tuple[str, str]] = set()
    for sentence in sentences:
        found.update(zip(sentence.stems, sentence.stems[1:], strict=False))
        found.update(zip(sentence.stems, sentence.stems[2:], strict=False))
    return found


def _share(weights: Mapping[Key, float], found: "frozenset[Key] | set[Key]") -> float:
    """The share of the weights whose keys were found; 0 where there are none."""
    total = sum(weights.values())
    return sum(weight for key, weight in weights.items() if key in found) / total if total else 0.0
