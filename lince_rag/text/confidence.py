"""How far retrieved chunks carry an answer: what abstention goes by, calibrated by embedder."""

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

# Support at which it is as likely that the chunks hold the answer as that they do not: the default threshold.
EVEN_CONFIDENCE: Final = 0.5

# Coverage below which the engine abstains where no retriever says how relevant the documents are. On half of the
# articles of XQuAD-es and FaQuAD asked about the other half.
MINIMUM_COVERAGE: Final = 0.33

# Share of a word's 4-grams that a sentence must have for the word to count as one that occurs there.
OCCURRENCE: Final = 0.6


@dataclass(frozen=True)
class Calibration:
    """A row of ``prompts/abstention.toml``, which says what its numbers are.

    Attributes:
        coverage_weight: Weight of the coverage next to the relevance.
        threshold: Raw support at which it becomes 0.5.
        iberian: The same where one of question and chunks is in Spanish and the other in Portuguese.
        english: The same where one of them is in English.
        slope: Steepness of the logistic function around it.
        curve: (minimum support, share of wrong abstentions, share of right ones), as measured.
    """

    coverage_weight: float
    threshold: float
    iberian: float
    english: float
    slope: float
    curve: tuple[tuple[float, float, float], ...]


@cache
def calibration_of(embedder: str) -> Calibration:
    """Return the calibration of an embedder.

    Args:
        embedder: Its name: ``"embedded"``, a hub name or a folder.

    Returns:
        The first row whose pattern is in the last part of the name.
    """
    name = Path(embedder).name.lower()
    row = dict(next(row for row in load_table("abstention")["calibration"] if re.search(row["pattern"], name)))
    del row["pattern"]
    return Calibration(**{**row, "curve": tuple(map(tuple, row["curve"]))})


def measure_coverage(question: str, documents: Sequence[Mapping[str, Any]], language: Language) -> float:
    """Measure how much of what a question is about the documents say.

    A word counts by the share of its 4-grams that are there, so that its inflections and its cognates in another
    language count, too; a rare word counts for more.

    Args:
        question: The question.
        documents: Dicts with ``text`` and, where known, ``language``.
        language: The question's language.

    Returns:
        From 0 to 1: the mean of the best single sentence and the best whole document.
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
    """Inverse document frequency of a word among sentences; one that is in none counts as in a single one."""
    count = max(sum(share >= OCCURRENCE for share in shares), 1)
    return math.log(1 + (len(shares) - count + 0.5) / (count + 0.5))


def measure_confidence(
    question: str,
    language: Language,
    documents: Sequence[Mapping[str, Any]],
    calibration: Calibration,
) -> float:
    """Measure how likely it is that retrieved documents hold the answer to a question.

    Args:
        question: The question.
        language: Its language.
        documents: Dicts with ``text``, ``relevance`` and, where known, ``language``.
        calibration: What suits the embedder that found them.

    Returns:
        From 0 to 1; 0.5 is the calibrated threshold.
    """
    if not documents:
        return 0.0
    best = max(documents, key=lambda document: float(document.get("relevance") or 0.0))
    raw = float(best.get("relevance") or 0.0) + calibration.coverage_weight * measure_coverage(
        question, documents, language
    )
    languages = {language, best.get("language") or detect_language(best["text"])}
    threshold = calibration.threshold
    if len(languages) > 1:
        threshold = calibration.english if "en" in languages else calibration.iberian
    return 1 / (1 + math.exp(-calibration.slope * (raw - threshold)))


def strongest_confidence(entries: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the highest ``confidence`` of document metadata or template documents; ``None`` if there is none."""
    measured = [float(value) for entry in entries if (value := entry.get("confidence")) is not None]
    return max(measured, default=None)
