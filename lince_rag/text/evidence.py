"""What documents hold for a question: the passages that answer it, and how likely they are to be right.

The confidence is a logistic regression over features of the choice, learned and stored with it, and in the same
three kinds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

from lince_rag.text.choice import OCCURRENCE, QUANTITIES, Choice, Shares, score_around, weighted
from lince_rag.text.language import fold
from lince_rag.text.questions import counted

# The chain abstains below this confidence, unless it is told otherwise: see tests/benchmarks/RESULTS.md.
MINIMUM_CONFIDENCE: Final = 0.15

# Below it an answer is shown with doubt: fewer than two of five are right there.
DOUBTFUL_CONFIDENCE: Final = 0.4


class Evidence(Choice):
    """What documents hold for a question; it takes what ``Choice`` takes."""

    @property
    def coverage(self) -> float:
        """How much of the question the documents cover: the mean of the best sentence and the best document."""
        sentences = [self._weigh(shares) for reading in self._shares for shares in reading]
        whole = [self._weigh(*reading) for reading in self._shares]
        return (max(sentences, default=0.0) + max(whole, default=0.0)) / 2

    @cached_property
    def confidence(self) -> float:
        """How likely the passages are to hold the answer, from 0 to 1."""
        return self._confidence("reader") if "read" in self._measured else self.confidence_unread

    @cached_property
    def confidence_unread(self) -> float:
        """The same without the scores of windows that were read."""
        return self._confidence("vectors" if self._known else "words")

    def _confidence(self, known: str) -> float:
        if not self.chosen:
            return 0.0
        (raw,) = weighted(f"confidence_{known}", [self._measured])
        return 1 / (1 + math.exp(-raw))

    @cached_property
    def _measured(self) -> dict[str, float]:
        """The features of the confidence, which both kinds of it need; none without a candidate."""
        return self.confidence_features() if self.chosen else {}

    def confidence_features(self) -> dict[str, float]:
        """What the confidence depends on; there must be a candidate."""
        best = self.candidates[self.chosen[0]]
        reading = self.readings[best.document]
        shares = [each for number in range(len(self.readings)) for each in self._shares_of(number)]
        everywhere = [max(column) for column in zip(*shares, strict=True)]
        text = " ".join(self.candidates[number].sentence.text for number in self.chosen)
        found = self._kind is not None and self._kind.has_evidence(text, self.question)
        kind = self._kind.name if self._kind else ""
        quantity, amount = kind in QUANTITIES, kind == "amount"
        count = counted(self.last_question, self.language)
        other = float(reading.language != self.language)
        features = {
            "constant": 1.0,
            "relevance": max(float(document.get("relevance") or 0.0) for document in self.documents),
            "coverage": self.coverage,
            "coverage_other_language": self.coverage * other,
            "other_language": other,
            "words": math.log1p(len(self._words)),
            "all_words": math.log1p(len(self.question.split())),
            "present": sum(everywhere) / max(len(everywhere), 1),
            "least_present": min(everywhere, default=0.0),
            "least_present_here": min(map(max, zip(*self._shares_of(best.document), strict=True)), default=0.0),
            "names_absent": self._names_absent(everywhere),
            "chance": sum(self.chances[number] for number in self.chosen),
            "document_chance": self.document_chances[best.document],
            "asks_quantity": float(quantity),
            "quantity_missing": float(quantity and not found),
            "counts": float(count is not None),
            "count_missing": float(count is not None and not count.search(fold(text).lower())),
            "asks_amount": float(amount),
            "amount_missing": float(amount and not found),
            "name_missing": float(bool(kind) and not quantity and not found),
            "how": float(self._asks_how),
            "why": float(self._asks_why),
        }
        if self._known:
            near = [float(document["similarity"]) for document in self.documents if document.get("similarity")]
            features["passage_similarity"] = max(known[3] for known in self._known)
            features["similarity"] = max(near) / self.spread if near else features["passage_similarity"]
            features["similarity_other_language"] = features["passage_similarity"] * other
        return features | self._reading_features()

    def _reading_features(self) -> dict[str, float]:
        """The best score of the windows that were read, and the best of those with a chosen sentence."""
        read = self._read()
        if not read:
            return {}
        scores = [score_around(self.candidates[number], read) for number in self.chosen]
        return {"read": max(known[3] for known in read), "read_chosen": max(scores)}

    def _names_absent(self, everywhere: Sequence[float]) -> float:
        """The share of the question's names and numbers that no document has; 0 if it has none."""
        first = self._words[0].start if self._words else 0
        found = [
            share < OCCURRENCE
            for word, share in zip(self._words, everywhere, strict=True)
            if word.text[0].isdigit() or (self.question[word.start].isupper() and word.start > first)
        ]
        return sum(found) / len(found) if found else 0.0

    def _shares_of(self, number: int) -> list[Shares]:
        return [*self._shares[number], self._titles[number]]


def strongest_confidence(entries: Iterable[Mapping[str, Any]], key: str = "confidence") -> float | None:
    """Return the highest ``confidence`` of document metadata or template documents; ``None`` if there is none."""
    measured = [float(value) for entry in entries if (value := entry.get(key)) is not None]
    return max(measured, default=None)
