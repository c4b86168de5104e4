"""The embedded engine: answers with sentences of the documents, word for word, or abstains. It has no weights.

A sentence scores the share of the question's stems and 4-grams that it has, each weighted by its inverse document
frequency among the sentences, plus its document's rank and evidence of the kind of answer asked for (a date, a
number, a person, a place). The weights were fitted on half of the articles of XQuAD-es and FaQuAD and checked on
the other half; the benchmark in ``tests/benchmarks`` prints the results.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lince_rag.engines.base import Engine, FinishReason, Generation, GenerationSettings, check_window
from lince_rag.prompting.templates import Prompt
from lince_rag.text.confidence import EVEN_CONFIDENCE, MINIMUM_COVERAGE, measure_coverage, strongest_confidence
from lince_rag.text.language import Language, detect_language
from lince_rag.text.questions import QuestionKind, asks_for_list, content_stems, kind_of
from lince_rag.text.sentences import Sentence, sentence_spans, split_sentences
from lince_rag.text.wording import wording
from lince_rag.text.words import fold, grams, words

EXTRACTIVE: Final = "extractive"

# The score of a sentence is the weighted share of the question's stems (0 to 1), plus GRAM_WEIGHT times that of
# its 4-grams, plus RANK_WEIGHT / rank of the document (from 1), minus FRAGMENT_PENALTY if it is not a sentence (a
# title shares the question's words but holds no answer), minus LENGTH_PENALTY times the logarithm of its number
# of words (a long sentence matches more of everything), plus the weight of the kind of answer.
GRAM_WEIGHT: Final = 1.3
RANK_WEIGHT: Final = 0.6
FRAGMENT_PENALTY: Final = 0.5
LENGTH_PENALTY: Final = 0.15

# A second sentence of the same document is added if its score is this close to the best: it holds the answer in a
# fifth of the cases in which the first does not. A question for a list gets more sentences, with a wider margin.
SECOND_MARGIN: Final = 0.25
LIST_MARGIN: Final = 0.6
LIST_SENTENCES: Final = 4

# A sentence of another document is added if the first covers at most COVERED_SHARE of the question's content and
# the other covers FURTHER_SHARE more. Lower bars find more gold answers but add more noise.
COVERED_SHARE: Final = 0.5
FURTHER_SHARE: Final = 0.38

# Maximum items of a list that are quoted with the sentence that announces it.
QUOTED_ITEMS: Final = 12

_TOKEN: Final = re.compile(r"\s*\S+(?:\s+\Z)?")
_LEADING_MARKS: Final = re.compile(r"\A(?:[-*•·+>]\s+|\d{1,2}[.)]\s+|#{1,6}\s+)+")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A sentence of a document, as a candidate answer."""

    # Position of its document in the prompt.
    document: int
    # The sentence, verbatim except for a list mark at its start.
    text: str
    sentence: Sentence


class ExtractiveEngine(Engine):
    """Quotes the sentences that best answer the question, or abstains; a token is a run without white space."""

    quotes = True

    def __init__(self, context_window: int) -> None:
        self.context_window = context_window

    def count_tokens(self, text: str) -> int:
        """Count the words of a text."""
        return len(text.split())

    def stream(self, prompt: Prompt, settings: GenerationSettings) -> Iterator[Generation]:
        """Yield the answer word by word."""
        length = self.measure(prompt).length or 0
        check_window(EXTRACTIVE, length, self.context_window)
        question = next((turn["content"] for turn in reversed(prompt.messages) if turn["role"] == "user"), "")
        language = settings.language or detect_language(question)
        quotes = select_sentences(question, prompt.documents, language, settings.minimum_confidence)
        text = _join(quotes, language) or wording("abstention", language)
        text = text[: min((at for stop in settings.stop if (at := text.find(stop)) >= 0), default=len(text))]
        tokens = _TOKEN.findall(text)
        reason: FinishReason = "stop"
        if settings.max_tokens is not None and len(tokens) > settings.max_tokens:
            tokens, reason = tokens[: settings.max_tokens], "length"
        for token in tokens:
            yield Generation(token, length, 1, abstained=not quotes)
        yield Generation("", length, 0, reason, abstained=not quotes)


def select_sentences(
    question: str,
    documents: Sequence[Mapping[str, Any]],
    language: Language,
    minimum_confidence: float = EVEN_CONFIDENCE,
) -> list[str]:
    """Return the sentences that answer a question; none if the confidence is below ``minimum_confidence``.

    Documents are dicts, best first, with ``text`` and optionally ``language``, ``confidence`` and ``heading``,
    which is never an answer. There are several sentences if a second one is nearly as good or covers what the
    first leaves out, or if the question asks for a list.
    """
    asked = list(words(question, language))
    candidates = _candidates(documents)
    if not candidates or not asked or not _is_confident(question, documents, language, minimum_confidence):
        return []
    stems = {word.stem for word in asked}
    stem_weights = _weights(stems, candidates)
    gram_weights = _weights({gram for word in asked for gram in grams(word.folded)}, candidates)
    kind = kind_of(question, language)
    scores = {
        candidate: _share(candidate, stem_weights)
        + GRAM_WEIGHT * _share(candidate, gram_weights)
        + _prior(candidate, kind, question)
        for candidate in candidates
    }
    ranked = sorted(candidates, key=lambda candidate: -scores[candidate])
    best = ranked[0]
    if items := _announced_items(best, documents):
        return [best.text, *items]
    neighbours = [candidate for candidate in ranked[1:] if candidate.document == best.document]
    margin, most = (LIST_MARGIN, LIST_SENTENCES) if asks_for_list(question, language) else (SECOND_MARGIN, 2)
    chosen = [best, *(each for each in neighbours if scores[best] - scores[each] <= margin)][:most]
    content = content_stems(asked, language)
    if len(chosen) < most and (further := _find_further(chosen[0], ranked[1:], content)) is not None:
        chosen.append(further)
    # Sentences make sense in the order of their document.
    chosen.sort(key=lambda each: (each.document != best.document, each.document, each.sentence.start))
    return [candidate.text for candidate in dict.fromkeys(chosen)]


def _is_confident(
    question: str, documents: Sequence[Mapping[str, Any]], language: Language, minimum_confidence: float
) -> bool:
    """Compare the retriever's confidence with the minimum; without a retriever, the coverage of the question."""
    confidence = strongest_confidence(documents)
    if confidence is not None:
        return confidence >= minimum_confidence
    coverage = measure_coverage(question, documents, language)
    return coverage >= MINIMUM_COVERAGE * minimum_confidence / EVEN_CONFIDENCE


def _announced_items(best: Candidate, documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the items of the list that a sentence announces with a colon."""
    if not best.text.rstrip().endswith(":"):
        return []
    text = documents[best.document]["text"]
    items: list[str] = []
    for sentence in split_sentences(text, _language_of(documents[best.document])):
        if sentence.start > best.sentence.start:
            item = _LEADING_MARKS.sub("", sentence.text)
            if item == sentence.text or len(items) == QUOTED_ITEMS:
                break
            items.append(item)
    return items


def _find_further(best: Candidate, others: Sequence[Candidate], content: set[str]) -> Candidate | None:
    """Find a sentence for the part of the question that the best one does not cover, if that part is large."""
    weights = _weights(content, [best, *others])
    if _share(best, weights) > COVERED_SHARE:
        return None
    left = {stem: weight for stem, weight in weights.items() if stem not in best.sentence.terms}
    statements = [candidate for candidate in others if _is_statement(candidate.text)]
    further = max(statements, key=lambda candidate: _overlap(candidate, left), default=None)
    return further if further and _overlap(further, left) >= FURTHER_SHARE * sum(weights.values()) else None


def _join(quotes: Sequence[str], language: Language) -> str:
    """Join quotes so that a sentence splitter still separates them and each is found in its document."""
    text = quotes[0] if quotes else ""
    for quote in quotes[1:]:
        joined = f"{text} {quote}"
        boundary = len(text) in (end for _, end in sentence_spans(joined, language))
        text = joined if boundary else f"{text}\n\n{quote}"
    return text


def _language_of(document: Mapping[str, Any]) -> Language:
    language: Language = document.get("language") or detect_language(document["text"])
    return language


def _candidates(documents: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """Split the documents into sentences, without headings and repetitions."""
    found: dict[str, Candidate] = {}
    for position, document in enumerate(documents):
        headings = {fold(part).casefold() for part in (document.get("heading") or "").split(" › ")}
        for sentence in split_sentences(document["text"], _language_of(document)):
            text = _LEADING_MARKS.sub("", sentence.text)
            if text and fold(text).casefold().strip(" :.") not in headings:
                found.setdefault(text, Candidate(position, text, sentence))
    return list(found.values())


def _weights(terms: set[str], candidates: Sequence[Candidate]) -> dict[str, float]:
    """Return the inverse document frequency of terms among the sentences.

    A term without a sentence counts as if it had one: among few sentences it would outweigh all others.
    """
    counts = Counter(term for candidate in candidates for term in terms & candidate.sentence.terms)
    found = {term: max(counts[term], 1) for term in terms}
    return {term: math.log(1 + (len(candidates) - count + 0.5) / (count + 0.5)) for term, count in found.items()}


def _overlap(candidate: Candidate, weights: Mapping[str, float]) -> float:
    return sum(weight for term, weight in weights.items() if term in candidate.sentence.terms)


def _share(candidate: Candidate, weights: Mapping[str, float]) -> float:
    total = sum(weights.values())
    return _overlap(candidate, weights) / total if total else 0.0


def _prior(candidate: Candidate, kind: QuestionKind | None, question: str) -> float:
    """Return the part of the score that does not depend on the question's words."""
    score = RANK_WEIGHT / (1 + candidate.document)
    score -= LENGTH_PENALTY * math.log(1 + len(candidate.sentence.stems))
    if kind is not None and kind.has_evidence(candidate.text, question):
        score += kind.weight
    return score if _is_statement(candidate.text) else score - FRAGMENT_PENALTY


def _is_statement(text: str) -> bool:
    """Return whether a text is a sentence or has a digit; a title has neither and answers nothing by itself."""
    return text.rstrip("\"'»”’)*_").endswith((".", "!", "…", ":")) or any(map(str.isdigit, text))
