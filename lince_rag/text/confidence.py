"""The calibrated chance that retrieved chunks hold the answer to a question; abstention is based on it."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from lince_rag.text.language import Language, detect_language
from lince_rag.text.questions import content_stems
from lince_rag.text.sentences import split_sentences
from lince_rag.text.wording import load_table
from lince_rag.text.words import grams, words

# The confidence at which the chunks are as likely to hold the answer as not: the default threshold.
EVEN_CONFIDENCE: Final = 0.5

# Coverage below which the engine abstains if no retriever has measured how relevant the documents are. Measured
# on XQuAD-es and FaQuAD: half of the articles, asked about the other half.
MINIMUM_COVERAGE: Final = 0.33

# A word counts as present in a sentence that has at least this share of its 4-grams.
OCCURRENCE: Final = 0.6


@dataclass(frozen=True)
class Calibration:
    """A row of ``prompts/abstention.toml``, which explains the numbers."""

    coverage_weight: float
    threshold: float
    iberian: float
    english: float
    slope: float
    # Without a weight, the similarity does not count.
    similarity_weight: float = 0.0
    similarity: float = 0.0
    similarity_iberian: float = 0.0
    similarity_english: float = 0.0


@cache
def calibration_of(embedder: str) -> Calibration:
    """Return the first calibration whose pattern is in the last part of an embedder's name."""
    name = Path(embedder).name.lower()
    row = next(row for row in load_table("abstention")["calibration"] if re.search(row["pattern"], name))
    return Calibration(**{key: value for key, value in row.items() if key not in {"pattern", "curve"}})


def measure_coverage(question: str, documents: Sequence[Mapping[str, Any]], language: Language) -> float:
    """Measure how much of a question's content the documents cover, from 0 to 1.

    Each word counts by the share of its 4-grams that are present, so that its inflections and its cognates in
    another language count too; a rare word has more weight. The result is the mean of the best single sentence
    and the best whole document. The documents have a ``text`` and, if known, a ``language``.
    """
    asked = list(words(question, language))
    content = content_stems(asked, language)
    wanted = list({word.folded: grams(word.folded) for word in asked if word.stem in content}.values())
    shares: list[list[list[float]]] = [
        [
            [sum(gram in sentence.terms for gram in word) / len(word) for word in wanted]
            for sentence in split_sentences(text, document.get("language") or detect_language(text))
        ]
        for document in documents
        if (text := document["text"]).strip()
    ]
    sentences = [sentence for document in shares for sentence in document]
    if not sentences or not wanted:
        return 0.0
    weights = [_rarity([sentence[position] for sentence in sentences]) for position in range(len(wanted))]
    whole = [list(map(max, zip(*document, strict=True))) for document in shares if document]
    best_sentence, best_document = (
        max(sum(weight * share for weight, share in zip(weights, text, strict=True)) for text in texts)
        for texts in (sentences, whole)
    )
    coverage: float = (best_sentence + best_document) / 2 / sum(weights)
    return coverage


def _rarity(shares: Sequence[float]) -> float:
    """Inverse document frequency of a word among sentences; a word in none counts as if it were in one."""
    count = max(sum(share >= OCCURRENCE for share in shares), 1)
    return math.log(1 + (len(shares) - count + 0.5) / (count + 0.5))


def measure_confidence(
    question: str,
    language: Language,
    documents: Sequence[Mapping[str, Any]],
    calibration: Calibration,
) -> float:
    """Measure how likely retrieved documents are to hold the answer, from 0 to 1; 0.5 is the calibrated threshold.

    The documents have a ``text``, a ``relevance`` and, if known, a ``language``; a ``similarity`` if they were
    found by their vectors, which is ``None`` if their vector is still to come. The calibration is that of the
    embedder that retrieved them.
    """
    if not documents:
        return 0.0
    best = max(documents, key=lambda document: float(document.get("relevance") or 0.0))
    raw = float(best.get("relevance") or 0.0) + calibration.coverage_weight * measure_coverage(
        question, documents, language
    )
    languages = {language, best.get("language") or detect_language(best["text"])}
    threshold, similarity = calibration.threshold, calibration.similarity
    if len(languages) > 1 and "en" in languages:
        threshold, similarity = calibration.english, calibration.similarity_english
    elif len(languages) > 1:
        threshold, similarity = calibration.iberian, calibration.similarity_iberian
    raw += calibration.similarity_weight * _excess(documents, similarity)
    return 1 / (1 + math.exp(-calibration.slope * (raw - threshold)))


def _excess(documents: Sequence[Mapping[str, Any]], similarity: float) -> float:
    """Return by how much the largest similarity of the documents exceeds another; 0 if none is known."""
    found = [document["similarity"] for document in documents if "similarity" in document]
    known = [float(each) for each in found if each is not None]
    excess = max(known) - similarity if known else 0.0
    # A document whose vector is to come may be nearer than the others.
    return excess if len(known) == len(found) else max(excess, 0.0)


def strongest_confidence(entries: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the highest ``confidence`` of document metadata or template documents; ``None`` if there is none."""
    measured = [float(value) for entry in entries if (value := entry.get("confidence")) is not None]
    return max(measured, default=None)
