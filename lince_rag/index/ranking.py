"""A second look at the best lexical hits: how much of the question one sentence says, and in which order.

BM25 counts terms anywhere in a chunk. The chunk that answers a question usually has a sentence that says most of
it, with the question's words next to each other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, pstdev
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


# Scores that lie closer together than this (standard deviation) tell nearly equal texts apart by chance, and are
# not spread out. On XQuAD-es and FaQuAD the vectors of the embedded embedder spread by .017 at least.
MINIMUM_SPREAD: Final = 0.01


def fuse(lexical: Mapping[str, float], vectors: Mapping[str, float], lexical_weight: float) -> dict[str, float]:
    """Add the z-scores of two rankings, weighted.

    A chunk that one side did not return gets that side's lowest score. (Fusing by rank instead costs up to 25
    points of MRR when one side is weak: the size of a lead is information, and ranks throw it away.)

    Args:
        lexical: Lexical score by chunk id.
        vectors: Cosine similarity by chunk id.
        lexical_weight: Share of the lexical side, 0 to 1.

    Returns:
        Fused score by chunk id, for the union of both.
    """
    together = list(dict.fromkeys([*lexical, *vectors]))
    fused = dict.fromkeys(together, 0.0)
    for scores, weight in ((lexical, lexical_weight), (vectors, 1.0 - lexical_weight)):
        if not scores or not weight:
            continue
        lowest = min(scores.values())
        filled = {chunk_id: scores.get(chunk_id, lowest) for chunk_id in together}
        mean, spread = fmean(filled.values()), max(pstdev(filled.values()), MINIMUM_SPREAD)
        for chunk_id, score in filled.items():
            fused[chunk_id] += weight * (score - mean) / spread
    return fused
