"""The embedded engine: it answers with sentences of the documents, word for word, or abstains. No weights.

A sentence is worth the question's terms in it, each weighted by how rare it is among the sentences at hand
(inverse document frequency), a share of its document's own rank, and what points to the kind of answer asked
for (a date, a number, a person, a place). The weights below were chosen on XQuAD-es and FaQuAD; the benchmark in
``tests/benchmarks`` prints what they give.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lince_rag.analysis import GRAM_PREFIX, fold, grams, sentence_spans, words
from lince_rag.engines.base import Engine, FinishReason, Generation, GenerationSettings, check_window
from lince_rag.engines.questions import QuestionKind, content_stems, kind_of
from lince_rag.language import Language, detect_language, message
from lince_rag.templates import Prompt

EXTRACTIVE: Final = "extractive"

# A 4-gram's weight next to a stem's: a word has several.
GRAM_WEIGHT: Final = 0.3

# What the rank of a document adds to each of its sentences, for the best document, as a share of the question.
DOCUMENT_WEIGHT: Final = 0.3

# What a title or other text that is no sentence loses: it shares the question's words and answers nothing.
FRAGMENT_PENALTY: Final = 0.3

# A second sentence is added where the first covers at most COVERED_SHARE of what the question is about, if it
# covers FURTHER_SHARE more. Adding one more freely finds more gold answers and buries them in noise.
COVERED_SHARE: Final = 0.6
FURTHER_SHARE: Final = 0.3

# The measure of support: relevance of the best document, plus this share of the coverage by its terms.
COVERAGE_WEIGHT: Final = 0.27

# Support below which the engine abstains, with and without a retriever's relevance. On half of the articles of
# XQuAD-es and FaQuAD asked about the other half.
THRESHOLD: Final = 0.36
THRESHOLD_WITHOUT_RELEVANCE: Final = 0.33

_TOKEN: Final = re.compile(r"\s*\S+(?:\s+\Z)?")
_LEADING_MARKS: Final = re.compile(r"\A(?:[-*•·+>]\s+|\d{1,2}[.)]\s+|#{1,6}\s+)+")


@dataclass(frozen=True)
class Sentence:
    """A sentence of a document, as a candidate answer.

    Attributes:
        document: Position of its document in the prompt.
        text: The sentence, verbatim.
        terms: Its stems and 4-grams.
    """

    document: int
    text: str
    terms: frozenset[str]


class ExtractiveEngine(Engine):
    """Quotes the sentences that best support the question, or says that there are none.

    A token of this engine is a run of characters without white space.

    Args:
        context_window: Tokens of documents and question that it reads.
    """

    repeats_neutralized = False

    def __init__(self, context_window: int) -> None:
        self.context_window = context_window

    def count_tokens(self, text: str) -> int:
        """Count the words of a text."""
        return len(text.split())

    def stream(self, prompt: Prompt, settings: GenerationSettings) -> Iterator[Generation]:
        """Yield the answer word by word."""
        length = self.count_tokens(prompt.text)
        check_window(EXTRACTIVE, length, self.context_window)
        question = next((turn["content"] for turn in reversed(prompt.messages) if turn["role"] == "user"), "")
        language = settings.language or detect_language(question)
        quotes = select_sentences(question, prompt.documents, language)
        text = _join(quotes, language) or message("abstention", language)
        yield from self._emit(text, not quotes, length, settings)

    def _emit(
        self, text: str, abstained: bool, input_tokens: int, settings: GenerationSettings
    ) -> Iterator[Generation]:
        """Cut the text at a stop and at the length limit, and yield it word by word."""
        text = text[: min((at for stop in settings.stop if (at := text.find(stop)) >= 0), default=len(text))]
        tokens = _TOKEN.findall(text)
        reason: FinishReason = "stop"
        if settings.max_tokens is not None and len(tokens) > settings.max_tokens:
            tokens, reason = tokens[: settings.max_tokens], "length"
        for token in tokens:
            yield Generation(token, input_tokens, 1, abstained=abstained)
        yield Generation("", input_tokens, 0, reason, abstained)


def select_sentences(question: str, documents: Sequence[Mapping[str, Any]], language: Language) -> list[str]:
    """Choose the sentences that answer a question.

    Args:
        question: The question.
        documents: Dicts with ``text`` and, where known, ``heading`` (not an answer by itself) and ``relevance``
            (0 to 1), best first.
        language: The language of the question.

    Returns:
        One sentence, or two where the second covers what the first leaves out; none when the documents do not
        support an answer.
    """
    asked = list(words(question, language))
    if not (candidates := _candidates(documents)) or not asked:
        return []
    terms = {word.stem for word in asked} | {gram for word in asked for gram in grams(word.folded)}
    weights = _weights(terms, candidates)
    kind = kind_of(question, language)
    ranked = sorted(candidates, key=lambda sentence: -_score(sentence, weights, kind, question, documents))
    best = ranked[0]
    stems = content_stems(asked, language)
    support, threshold = measure_support(stems, candidates, documents)
    if support < threshold:
        return []
    further = _find_further(best, ranked[1:], stems)
    return [best.text] if further is None else [best.text, further.text]


def _find_further(best: Sentence, others: Sequence[Sentence], stems: set[str]) -> Sentence | None:
    """Find a sentence for the part of the question that the best one leaves open, if that is a large part."""
    weights = _weights(stems, [best, *others])
    total = sum(weights.values())
    if _overlap(best, weights) > COVERED_SHARE * total:
        return None
    left = {stem: weight for stem, weight in weights.items() if stem not in best.terms}
    statements = [sentence for sentence in others if _is_statement(sentence.text)]
    further = max(statements, key=lambda sentence: _overlap(sentence, left), default=None)
    return further if further and _overlap(further, left) >= FURTHER_SHARE * total else None


def _join(quotes: Sequence[str], language: Language) -> str:
    """Put quotes after each other, so that each can still be told from the next and found in its document."""
    text = quotes[0] if quotes else ""
    for quote in quotes[1:]:
        joined = f"{text} {quote}"
        boundary = len(text) in (end for _, end in sentence_spans(joined, language))
        text = joined if boundary else f"{text}\n\n{quote}"
    return text


def _candidates(documents: Sequence[Mapping[str, Any]]) -> list[Sentence]:
    """Cut the documents into sentences, leaving out headings."""
    found: dict[str, Sentence] = {}
    for position, document in enumerate(documents):
        text = document["text"]
        language = document.get("language") or detect_language(text)
        headings = {fold(part).casefold() for part in (document.get("heading") or "").split(" › ")}
        for start, end in sentence_spans(text, language):
            sentence = _LEADING_MARKS.sub("", text[start:end])
            if fold(sentence).casefold().strip(" :.") in headings or not sentence:
                continue
            found_words = list(words(sentence, language))
            terms = frozenset(word.stem for word in found_words).union(
                gram for word in found_words for gram in grams(word.folded)
            )
            found.setdefault(sentence, Sentence(position, sentence, terms))
    return list(found.values())


def _weights(terms: set[str], candidates: Sequence[Sentence]) -> dict[str, float]:
    """Weigh the question's terms by their inverse document frequency among the sentences.

    A term that is in none counts like one that is in a single sentence: among few sentences it would otherwise
    outweigh every term that is there.
    """
    counts = Counter(term for sentence in candidates for term in terms & sentence.terms)
    total = len(candidates)
    return {
        term: math.log(1 + (total - max(counts[term], 1) + 0.5) / (max(counts[term], 1) + 0.5))
        * (GRAM_WEIGHT if term.startswith(GRAM_PREFIX) else 1.0)
        for term in terms
    }


def _overlap(sentence: Sentence, weights: Mapping[str, float]) -> float:
    return sum(weight for term, weight in weights.items() if term in sentence.terms)


def _score(
    sentence: Sentence,
    weights: Mapping[str, float],
    kind: QuestionKind | None,
    question: str,
    documents: Sequence[Mapping[str, Any]],
) -> float:
    """Score a sentence as an answer; about 0 to 1.5."""
    score = _overlap(sentence, weights) / sum(weights.values())
    score += DOCUMENT_WEIGHT * _standing(sentence.document, documents)
    if kind is not None and kind.evidenced(sentence.text, question):
        score += kind.weight
    return score if _is_statement(sentence.text) else score - FRAGMENT_PENALTY


def _is_statement(text: str) -> bool:
    """Tell a sentence or a line with a figure from a title, which answers nothing by itself."""
    return text.rstrip("\"'»”’)*_").endswith((".", "!", "…")) or any(map(str.isdigit, text))


def _standing(position: int, documents: Sequence[Mapping[str, Any]]) -> float:
    """How good a document is next to the best one, 0 to 1: by relevance, else by rank."""
    highest = max(document.get("relevance") or 0.0 for document in documents)
    if highest:
        return float(documents[position].get("relevance") or 0.0) / highest
    return 1.0 / (1 + position)


def measure_support(
    stems: set[str], candidates: Sequence[Sentence], documents: Sequence[Mapping[str, Any]]
) -> tuple[float, float]:
    """Measure how far the documents cover what a question is about.

    Args:
        stems: The content stems of the question.
        candidates: The sentences of the documents.
        documents: The documents, with a retriever's ``relevance`` where there is one.

    Returns:
        The support, from 0 up, and the threshold below which it does not carry an answer.
    """
    weights = _weights(stems, candidates)
    by_document: dict[int, set[str]] = {}
    for sentence in candidates:
        by_document.setdefault(sentence.document, set()).update(sentence.terms)
    in_sentence = max(_overlap(sentence, weights) for sentence in candidates)
    in_document = max(sum(weights[stem] for stem in stems & terms) for terms in by_document.values())
    coverage = (in_sentence + in_document) / 2 / sum(weights.values())
    relevances = [document["relevance"] for document in documents if document.get("relevance") is not None]
    if relevances:
        return float(max(relevances)) + COVERAGE_WEIGHT * coverage, THRESHOLD
    return coverage, THRESHOLD_WITHOUT_RELEVANCE
