"""Which sentences of some documents answer a question, and the passages to quote.

A model learned by ``tests/benchmarks/train_evidence.py`` and stored as ``prompts/evidence.toml`` chooses among the
sentences: a softmax over a weighted sum of features. It exists with and without the similarities that an embedder
measured, and with the scores of an encoder that has read passages together with the question.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from lince_rag.text.language import Language, load_table
from lince_rag.text.passages import Reading, is_unfinished
from lince_rag.text.questions import (
    answer_pattern,
    asks_for,
    content_stems,
    is_keywords,
    kind_of,
    last_question,
)
from lince_rag.text.sentences import Sentence
from lince_rag.text.words import grams, spaced_gram, stems_and_spellings, words

# A word is in a sentence that has at least this share of its 4-grams: inflections, cognates, typing errors.
OCCURRENCE: Final = 0.6

# Characters of an answer. Sentences are quoted, the likeliest first, until one of them is the answer with
# ANSWER_CHANCE, or the next one is less likely than LEAST_SHARE of the first.
ANSWER_CHARACTERS: Final = 390
ANSWER_CHANCE: Final = 0.9
# Words to search for get several passages, as from a search engine.
KEYWORD_CHARACTERS: Final = 800
LEAST_SHARE: Final = 0.05

# A sentence next to a quoted one counts as this many times as likely, because one passage reads better than two.
# With 5, fewer answers are found.
NEIGHBOUR_BONUS: Final = 3.0

# If the chosen sentences cover at most COVERED_SHARE of the question, one that covers FURTHER_SHARE more is added:
# "¿A qué hora abre el museo y cuánto cuesta?" Lower bars find more answers but add more noise.
COVERED_SHARE: Final = 0.5
FURTHER_SHARE: Final = 0.33

# The share of words that two sentences have in common if they say the same about two things.
LIKE_SHARE: Final = 0.3

# Shorter words say little about what is new in a sentence.
NEW_WORD_LETTERS: Final = 4

# The kinds of answers with a number.
QUANTITIES: Final = frozenset({"number", "duration", "amount", "time", "date"})

Shares = tuple[float, ...]

# The document of a window, its character offsets [start, end), and its similarity to the question or its score.
Window = tuple[int, int, int, float]


@dataclass(frozen=True)
class Passage:
    """A span of a document's text."""

    # The position of the document, from 0.
    document: int
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Candidate:
    """A sentence that can be a part of the answer."""

    document: int
    # Its position among the sentences of its document.
    position: int
    sentence: Sentence
    features: dict[str, float]


class Choice:
    """The sentences of documents that answer a question.

    Args:
        question: The question.
        language: Its language.
        documents: The documents, best first: dicts with ``text`` and, if known, ``language``, ``title``,
            ``heading``, ``relevance``, ``similarity`` and ``passages``: [start, end, similarity] of the windows
            whose vectors were compared with the question's, and a fourth number if they were read with it.
        spread: The embedder's ``similarity_spread``, if it was measured.
    """

    def __init__(
        self, question: str, language: Language, documents: Sequence[Mapping[str, Any]], spread: float = 1.0
    ) -> None:
        self.spread = spread
        self.question = question
        self.language = language
        self.documents = documents
        asked = list(words(question, language))
        content = content_stems(asked, language)
        self._words = list({word.folded: word for word in asked if word.stem in content}.values())
        # A follow-up asks what its last question asks.
        self.last_question = last = last_question(question, language)
        self._kind = kind_of(last, language)
        self._asks_how = asks_for("instructions", last, language)
        self._asks_why = asks_for("reasons", last, language)
        self._asks_what = asks_for("definitions", last, language)
        self._asks_list = asks_for("lists", last, language)
        self._keys = [
            (f" {word.stem} ", [spaced_gram(gram) for gram in grams(word.folded)]) for word in self._words
        ]
        self.readings = [Reading.of(document) for document in documents]
        self._shares = [
            [self._shares_in(sentence.stem_line, sentence.spelling_line) for sentence in reading.sentences]
            for reading in self.readings
        ]
        self._titles = [
            self._shares_in(*stems_and_spellings(_titles(document), reading.language))
            for document, reading in zip(documents, self.readings, strict=True)
        ]

    @property
    def has_words(self) -> bool:
        """Whether the question has a word."""
        return bool(self._words)

    def _shares_in(self, stems: str, spellings: str) -> Shares:
        """Return for each word of the question 1 if its stem is there, else the share of its 4-grams."""
        return tuple(
            1.0 if stem in stems else sum(gram in spellings for gram in found) / len(found)
            for stem, found in self._keys
        )

    @cached_property
    def _weights(self) -> list[float]:
        """The inverse document frequency of each word among the sentences; together 1."""
        sentences = [shares for reading in self._shares for shares in reading]
        found = [max(sum(share >= OCCURRENCE for share in column), 1) for column in zip(*sentences, strict=True)]
        weights = [math.log(1 + (len(sentences) - count + 0.5) / (count + 0.5)) for count in found]
        total = sum(weights) or 1.0
        return [weight / total for weight in weights]

    def _weigh(self, *shares: Shares) -> float:
        """Return how much of the question some texts cover together, from 0 to 1."""
        if not shares or not self._weights:
            return 0.0
        best: Iterable[float] = map(max, zip(*shares, strict=True)) if len(shares) > 1 else shares[0]
        return sum((weight * share for weight, share in zip(self._weights, best, strict=True)), 0.0)

    @cached_property
    def candidates(self) -> list[Candidate]:
        """The sentences that can be a part of the answer."""
        return [
            Candidate(number, position, reading.sentences[position], self._features(number, position))
            for number, reading in enumerate(self.readings)
            for position in reading.candidates()
        ]

    def _features(self, number: int, position: int) -> dict[str, float]:
        reading, shares = self.readings[number], self._shares[number]
        sentence = reading.sentences[position]
        text, own = sentence.text, shares[position]
        introductions = [shares[each] for each in reading.introductions(position)]
        before = [shares[position - 1]] if position else []
        asked_stems = {word.stem for word in self._words}
        new = {stem for stem in sentence.stems if len(stem) >= NEW_WORD_LETTERS} - asked_stems
        return {
            "introduced": self._weigh(*introductions),
            "covered_with_title": self._weigh(own, self._titles[number], *introductions),
            "covered_with_neighbour": self._weigh(own, self._titles[number], *introductions, *before),
            "inverse_rank": 1 / (1 + number),
            "length": math.log(max(len(text), 1)),
            "new_words": math.log1p(len(new)),
            "unfinished": float(is_unfinished(text)),
            "item": float(reading.kinds[position] == "item"),
            "digits": float(any(map(str.isdigit, text))),
            **self._type_features(text),
        }

    def _type_features(self, text: str) -> dict[str, float]:
        """What the question asks for, found in a sentence."""
        found = self._kind is not None and self._kind.has_evidence(text, self.question)
        instruction = answer_pattern("instruction").search(text) is not None
        return {
            "kind": float(found),
            "quantity": float(found and self._kind is not None and self._kind.name in QUANTITIES),
            "instruction": float(instruction),
            "how_instruction": float(self._asks_how and instruction),
            "how_menu": float(self._asks_how and answer_pattern("menu").search(text) is not None),
            "why_reason": float(self._asks_why and answer_pattern("reason").search(text) is not None),
            "what_definition": float(self._asks_what and answer_pattern("definition").search(text) is not None),
        }

    # The choice.

    def windows(self, count: int) -> list[Passage]:
        """Return the windows whose similarity to the question is worth knowing.

        They are those of the likeliest sentences, and all of a document in another language, where words say
        little.
        """
        scores = weighted("choice_words", [candidate.features for candidate in self.candidates])
        likeliest = set(sorted(range(len(scores)), key=lambda each: -scores[each])[:count])
        found: list[Passage] = []
        for place, candidate in enumerate(self.candidates):
            reading = self.readings[candidate.document]
            last = found[-1] if found and found[-1].document == candidate.document else None
            uncovered = last is None or candidate.sentence.end > last.end
            if place in likeliest or (reading.language != self.language and uncovered):
                found.append(Passage(candidate.document, *reading.window(candidate.position)))
        return found

    @cached_property
    def _known(self) -> list[Window]:
        """The document, the offsets and the similarity of each compared window."""
        return [
            (number, start, end, similarity)
            for number, document in enumerate(self.documents)
            for start, end, similarity, *_ in document.get("passages") or ()
        ]

    def likeliest_compared(self, count: int) -> list[tuple[int, int]]:
        """Return the compared windows that begin with the likeliest sentences.

        Each is given by its document and its position among the ``passages`` of that document.
        """
        starts = {
            (candidate.document, candidate.sentence.start): score
            for candidate, score in zip(self.candidates, self._unread_scores, strict=True)
        }
        scores = {
            (number, place): starts.get((number, passage[0]), -math.inf)
            for number, document in enumerate(self.documents)
            for place, passage in enumerate(document.get("passages") or ())
        }
        return sorted(scores, key=lambda each: -scores[each])[:count]

    def _read(self) -> list[Window]:
        """The document, the offsets and the score of each window that was read with the question."""
        return [
            (number, start, end, scores[0])
            for number, document in enumerate(self.documents)
            for start, end, _, *scores in document.get("passages") or ()
            if scores
        ]

    @cached_property
    def _unread_rows(self) -> list[dict[str, float]]:
        """The features of each candidate before windows are read."""
        if not self._known:
            return [candidate.features for candidate in self.candidates]
        return [candidate.features | self.similarities(candidate) for candidate in self.candidates]

    @property
    def choice_rows(self) -> list[dict[str, float]]:
        """The features of each candidate that its score depends on."""
        read = self._read()
        if not read:
            return self._unread_rows
        pairs = zip(self.candidates, self._unread_rows, strict=True)
        return [row | {"read": score_around(candidate, read)} for candidate, row in pairs]

    @cached_property
    def _unread_scores(self) -> list[float]:
        """The score of each candidate without those of windows that were read."""
        return weighted("choice_vectors" if self._known else "choice_words", self._unread_rows)

    @cached_property
    def scores(self) -> list[float]:
        """The score of each candidate; only differences mean something."""
        return weighted("choice_reader", self.choice_rows) if self._read() else self._unread_scores

    def similarities(self, candidate: Candidate) -> dict[str, float]:
        """The similarities of the windows that a sentence is in, relative to the largest of all."""
        top, lowest = (chosen(known[3] for known in self._known) for chosen in (max, min))
        around = _windows_around(candidate, self._known)
        values = [known[3] for known in around] or [lowest]
        first = next((known[3] for known in around if known[1] == candidate.sentence.start), lowest)
        return {
            "similarity": first - top,
            "largest_similarity": max(values) - top,
            "mean_similarity": sum(values) / len(values) - top,
        }

    @cached_property
    def chances(self) -> list[float]:
        """How likely each candidate is to be the answer if one of them is; together 1."""
        best = max(self.scores, default=0.0)
        powers = [math.exp(score - best) for score in self.scores]
        return [power / sum(powers) for power in powers]

    @cached_property
    def chosen(self) -> list[int]:
        """The candidates to quote, the likeliest first."""
        if not self.candidates:
            return []
        places = {(each.document, each.position): number for number, each in enumerate(self.candidates)}
        keywords = is_keywords(self.question, self.language)
        wanted, left = dict(enumerate(self.chances)), float(KEYWORD_CHARACTERS if keywords else ANSWER_CHARACTERS)
        likeliest, found, chance = max(self.chances), list[int](), 0.0
        while wanted and (chance < ANSWER_CHANCE or keywords):
            number = max(wanted, key=lambda each: wanted[each])
            if wanted.pop(number) < LEAST_SHARE * likeliest:
                break
            candidate = self.candidates[number]
            length = candidate.sentence.end - candidate.sentence.start
            if found and length > left:
                continue
            found.append(number)
            left -= length + 1
            chance += self.chances[number]
            for position in (candidate.position - 1, candidate.position + 1):
                neighbour = places.get((candidate.document, position))
                if neighbour in wanted:
                    wanted[neighbour] = self.chances[neighbour] * NEIGHBOUR_BONUS
        return [*found, *self._other_side(found), *self._further(found)]

    def _other_side(self, found: Sequence[int]) -> list[int]:
        """Return the sentence of another document that is most like the first found, if the question compares."""
        if not asks_for("comparisons", self.question, self.language):
            return []
        sources = [self.documents[each.document].get("source", each.document) for each in self.candidates]
        first = set(self.candidates[found[0]].sentence.stems)
        shared = {
            number: len(first & stems) / len(first | stems)
            for number, stems in enumerate(set(each.sentence.stems) for each in self.candidates)
            if sources[number] != sources[found[0]]
        }
        best = max(shared, key=lambda each: shared[each], default=None)
        return [best] if best is not None and shared[best] >= LIKE_SHARE and best not in found else []

    def _further(self, found: Sequence[int]) -> list[int]:
        """Return the sentence for what the found ones leave out, if that is a large part of the question."""
        covered = [self._shares_of_candidate(number) for number in found]
        if (already := self._weigh(*covered)) > COVERED_SHARE:
            return []
        gains = {
            number: self._weigh(*covered, self._shares_of_candidate(number)) - already
            for number in range(len(self.candidates))
            if number not in found
        }
        best = max(gains, key=lambda each: gains[each], default=None)
        return [best] if best is not None and gains[best] >= FURTHER_SHARE else []

    def coverage_of(self, chosen: Sequence[int]) -> float:
        """How much of the question some candidates cover together."""
        return self._weigh(*map(self._shares_of_candidate, chosen))

    def _shares_of_candidate(self, number: int) -> Shares:
        return self._shares[self.candidates[number].document][self.candidates[number].position]

    def passages(self) -> list[Passage]:
        """Return the passages to quote, best first, each in one piece; before rows of a table, its header."""
        found: list[Passage] = []
        for number in self.chosen:
            span = self._extend(self.candidates[number])
            same = [one for one in found if one.document == span.document]
            touching = next((one for one in same if one.start <= span.end and span.start <= one.end), None)
            if touching is None:
                found.append(span)
            else:
                start, end = min(touching.start, span.start), max(touching.end, span.end)
                found[found.index(touching)] = Passage(span.document, start, end)
        return [part for span in found for part in self._with_header(span)]

    def _with_header(self, span: Passage) -> list[Passage]:
        """Return a passage of table rows after the header of its table."""
        reading = self.readings[span.document]
        first = next(at for at, sentence in enumerate(reading.sentences) if sentence.end > span.start)
        header = reading.header(first)
        if header is None:
            return [span]
        return [Passage(span.document, reading.sentences[header].start, reading.sentences[header].end), span]

    @property
    def document_chances(self) -> list[float]:
        """How likely each document is to hold the answer if one does."""
        found = [0.0] * len(self.documents)
        for candidate, chance in zip(self.candidates, self.chances, strict=True):
            found[candidate.document] += chance
        return found

    def _extend(self, candidate: Candidate) -> Passage:
        """Return the run of chosen sentences around one, and what must be quoted with it."""
        reading = self.readings[candidate.document]
        chosen = {
            each.position
            for each in (self.candidates[number] for number in self.chosen)
            if each.document == candidate.document
        }
        first = last = candidate.position
        while first - 1 in chosen:
            first -= 1
        while last + 1 in chosen:
            last += 1
        first, last = reading.extend(first, last, whole_lists=self._asks_list or self._asks_how)
        return Passage(candidate.document, reading.sentences[first].start, reading.sentences[last].end)


def _windows_around(candidate: Candidate, windows: Sequence[Window]) -> list[Window]:
    """Return the windows that a sentence is in."""
    start, end = candidate.sentence.start, candidate.sentence.end
    return [each for each in windows if each[0] == candidate.document and each[1] <= start and end <= each[2]]


def score_around(candidate: Candidate, read: Sequence[Window]) -> float:
    """Return the best score of the read windows that a sentence is in; without one, the lowest of all."""
    scores = [each[3] for each in _windows_around(candidate, read)]
    return max(scores or [min(each[3] for each in read)])


def _titles(document: Mapping[str, Any]) -> str:
    return f"{document.get('heading') or ''} {document.get('title') or ''}"


def weighted(model: str, rows: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the weighted sum of each row's features."""
    weights = load_table("evidence")[model]
    return [sum(weight * row[name] for name, weight in weights.items()) for row in rows]
