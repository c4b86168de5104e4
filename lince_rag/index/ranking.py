"""Ranking: rescore the best lexical hits by their sentences, and fuse lexical and vector scores."""

import math
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Set
from statistics import fmean, pstdev
from typing import Any, Final, TypeVar

from langchain_core.documents import Document

from lince_rag.index.lexical import LexicalHit
from lince_rag.text.language import Language
from lince_rag.text.questions import content_stems
from lince_rag.text.sentences import TermLines
from lince_rag.text.words import grams, spaced_gram, words

# Number of hits to rescore.
RESCORED_HITS: Final = 20

# What each measure (0 to 1) adds to the hit's BM25 score divided by the best one (0 to 1). Fitted on half of the
# articles of XQuAD-es and FaQuAD so that the gold paragraph wins among the first 20 hits, and checked on the
# other half.
SENTENCE_WEIGHT: Final = 0.8
CHUNK_WEIGHT: Final = 0.5
PAIR_WEIGHT: Final = 0.4

# What one step of the lexical score is, if the embedder says what one step of its similarities is: the standard
# deviation of the scores of its candidates (median of XQuAD-es .21, of FaQuAD .31, even articles).
LEXICAL_SPREAD: Final = 0.26

# What a chunk in another language than the question gets, in the steps of ``fuse``: its vector is a little further
# from the question than one in the same language that says as much. And how many times the score of the best chunk
# of its document it gets: the words that say which contract, product or place is meant are often in another chunk
# than the answer. Passages among the first five, before and after both: 240 questions over households .828, .872;
# the development set .825, .842. In another language .750, .850 and .692, .769; of XQuAD with half of its articles
# in English, English to Spanish .931, .949, Spanish to English .831, .861, in one language the same. Not with
# hashed terms, where more is lost on the development set than gained on the other.
OTHER_LANGUAGE_BONUS: Final = 0.25
DOCUMENT_WEIGHT: Final = 2.0

# Lower limit of the standard deviation of scores. Scores that lie closer together differ by chance and must not be
# spread out. On XQuAD-es and FaQuAD the vectors of the embedded embedder spread by at least .017.
MINIMUM_SPREAD: Final = 0.01

# What divides a chunk into parts that copies of it share, however they are wrapped into chunks.
_PART: Final = re.compile(r"\n|[.!?…]\s")
_PART_WORD: Final = re.compile(r"[^\W_]+")

Key = TypeVar("Key")


def rescore(
    question: str,
    language: Language,
    hits: Sequence[LexicalHit],
    lines: Mapping[str, TermLines],
    idf: Callable[[Iterable[str]], dict[str, float]],
) -> dict[str, float]:
    """Score lexical hits by their sentences: from 0 to about 2.7 by id.

    BM25 counts terms anywhere in a chunk. A chunk that answers a question usually has a sentence that contains
    most of its terms, with its words next to each other. Only the hits in ``lines`` are measured for that; the
    others keep their BM25 score. ``idf`` returns the inverse document frequency of terms.
    """
    asked = list(words(question, language))
    content = content_stems(asked, language)
    pairs = list(zip((word.stem for word in asked), (word.stem for word in asked[1:]), strict=False))
    wanted_grams = {gram for word in asked if word.stem in content for gram in grams(word.folded)}
    idfs = idf({word.stem for word in asked} | wanted_grams)
    gram_weights = {spaced_gram(gram): idfs[gram] for gram in wanted_grams}
    stem_weights = {f" {stem} ": idfs[stem] for stem in content}
    pair_weights = {pair: idfs[pair[0]] + idfs[pair[1]] for pair in pairs}
    scores = {}
    for hit in hits:
        scores[hit.id] = hit.score / hits[0].score
        if (found := lines.get(hit.id)) is not None:
            scores[hit.id] += (
                SENTENCE_WEIGHT * _best_line(gram_weights, found.spellings)
                + CHUNK_WEIGHT * _share(stem_weights, found.stems)
                + PAIR_WEIGHT * _share(pair_weights, _near_pairs(found.stems, pair_weights))
            )
    return scores


def compare_questions(scores: Mapping[str, float], hits: Sequence[LexicalHit]) -> dict[str, float]:
    """Make the scores of ``rescore`` comparable between questions.

    They contain the BM25 score over the best one, which is 1 for the best hit of any question. Its relevance takes
    its place: low if the index lacks the words of the question, such as those of another language.
    """
    relative = {hit.id: hit.score / hits[0].score for hit in hits}
    return {hit.id: scores[hit.id] - relative[hit.id] + hit.relevance for hit in hits if hit.id in scores}


def _best_line(weights: Mapping[str, float], text: str) -> float:
    """Return the largest share of the total weight whose keys are in one line of a text."""
    # Most keys are in no line.
    somewhere = [(key, weight) for key, weight in weights.items() if key in text]
    total = sum(weights.values())
    best = max(sum([weight for key, weight in somewhere if key in line]) for line in text.split("\n"))
    return best / total if total else 0.0


def _near_pairs(text: str, pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the pairs of stems that are adjacent in a line, or have one word between them."""
    found: set[tuple[str, str]] = set()
    for pair in pairs:
        first, second = (f" {stem} " for stem in pair)
        # The space between two words stands once in the text.
        start = text.find(first) if second in text else -1
        while start >= 0:
            after = start + len(first) - 1
            following = text.find(" ", after + 1)
            if text.startswith(second, after) or (
                following > 0 and "\n" not in text[after:following] and text.startswith(second, following)
            ):
                found.add(pair)
                break
            start = text.find(first, after)
    return found


def _share(weights: Mapping[Key, float], found: Container[Key]) -> float:
    """Return the share of the total weight whose keys were found; 0 if there are no weights."""
    total = sum(weights.values())
    return sum(weight for key, weight in weights.items() if key in found) / total if total else 0.0


def distinct(documents: Iterable[Document], count: int) -> list[Document]:
    """Return the first ``count`` documents that say different things.

    A document whose lines and sentences all stand in one before it is left out, and that one lists its source.
    Two texts with another name or number are different, however alike they are: form letters, contracts, minutes.
    """
    kept: list[Document] = []
    holders: dict[str, list[int]] = {}
    for document in documents:
        parts = {" ".join(_PART_WORD.findall(part)) for part in _PART.split(document.page_content.casefold())}
        parts.discard("")
        # A document without words is like no other.
        places: list[list[int]] = sorted((holders.get(part, []) for part in parts), key=len)
        holding = set(places[0]).intersection(*places[1:]) if places else set()
        if holding:
            _add_source(kept[min(holding)].metadata, document.metadata["source"])
            continue
        if len(kept) == count:
            break
        for part in parts:
            holders.setdefault(part, []).append(len(kept))
        kept.append(document)
    return kept


def _add_source(metadata: dict[str, Any], source: str) -> None:
    sources = metadata.get("also_in", [])
    if source != metadata["source"] and source not in sources:
        metadata["also_in"] = [*sources, source]


def fuse(
    lexical: Mapping[str, float],
    vectors: Mapping[str, float],
    lexical_weight: float,
    similarity_spread: float | None = None,
    waiting: Set[str] = frozenset(),
) -> dict[str, float]:
    """Add the weighted scores of both rankings, by chunk id, in steps of the spread of each.

    Rank fusion costs up to 25 points of MRR when one side is weak, because ranks discard the size of a lead.

    With the ``similarity_spread`` of an embedder, both scores must be comparable between questions. Then a side
    that is not sure (no words of the question in the index, no text near it) decides little, and nothing needs to
    know the languages of question and chunk. Without it, the spread is that of these scores (z-scores): both sides
    decide as if they were equally sure.

    An id that one side lacks gets the lowest score of that side: it was not among the best. But of the chunks in
    ``waiting`` nothing is known, because they have no vector yet: they get what is halfway between the mean and
    the best. With half of the vectors, MRR@10 of FaQuAD is then .90, and .82 if they get the lowest.
    """
    together = list(dict.fromkeys([*lexical, *vectors]))
    fused = dict.fromkeys(together, 0.0)
    known_spread = None if similarity_spread is None else LEXICAL_SPREAD
    unknown: Set[str] = frozenset()
    for scores, weight, spread, missing in (
        (lexical, lexical_weight, known_spread, unknown),
        (vectors, 1.0 - lexical_weight, similarity_spread, waiting),
    ):
        if not scores or not weight:
            continue
        values = scores.values()
        lowest, guess = min(values), (fmean(values) + max(values)) / 2
        filled = {each: scores.get(each, guess if each in missing else lowest) for each in together}
        mean = fmean(filled.values())
        step = spread or max(pstdev(filled.values()), MINIMUM_SPREAD)
        for chunk_id, score in filled.items():
            fused[chunk_id] += weight * (score - mean) / step
    return fused


def add_origins(fused: dict[str, float], origins: Mapping[str, tuple[str, Language]], language: Language) -> None:
    """Add to the score of each chunk what its language and its document say.

    Args:
        fused: The scores of ``fuse``, of an embedder with a known spread.
        origins: The source and the language of each chunk; one without is left as it is.
        language: The language of the question.
    """
    best: dict[str, float] = {}
    for chunk_id, (source, written) in origins.items():
        fused[chunk_id] += OTHER_LANGUAGE_BONUS * (written != language)
        best[source] = max(fused[chunk_id], best.get(source, -math.inf))
    for chunk_id, (source, _) in origins.items():
        fused[chunk_id] += DOCUMENT_WEIGHT * best[source]


def lift_nearest(fused: dict[str, float], vectors: Mapping[str, float], place: int) -> None:
    """Give the id with the nearest vector a score that puts it at least on a place, such as the fifth.

    It passes all that share the score of the holder of the place.
    Words say little of a text in another language, and can outweigh that its vector is the nearest of all. On each
    of two sets of real questions this finds one more answer, and loses none.
    """
    if vectors and len(fused) > place:
        nearest = max(vectors, key=lambda each: vectors[each])
        holder = sorted(fused.values(), reverse=True)[place - 1]
        fused[nearest] = max(fused[nearest], math.nextafter(holder, math.inf))
