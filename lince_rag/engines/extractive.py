"""The embedded engine: it answers with sentences of the documents, word for word, or abstains. No weights.

A sentence is worth the question's stems and 4-grams in it, each weighted by how rare it is among the sentences at
hand (inverse document frequency), its document's rank, and what points to the kind of answer asked for (a date, a
number, a person, a place). The weights below were fitted on half of the articles of XQuAD-es and FaQuAD and held
against the other half; the benchmark in ``tests/benchmarks`` prints what they give.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lince_rag.engines.base import Engine, FinishReason, Generation, GenerationSettings, check_window
from lince_rag.prompting.templates import Prompt
from lince_rag.text.confidence import EVEN_CONFIDENCE, MINIMUM_COVERAGE, measure_coverage
from lince_rag.text.language import Language, detect_language
from lince_rag.text.questions import QuestionKind, asks_for_list, content_stems, kind_of
from lince_rag.text.sentences import Sentence, sentence_spans, split_sentences
from lince_rag.text.wording import wording
from lince_rag.text.words import fold, grams, words

EXTRACTIVE: Final = "extractive"

# Next to the share of the question's stems that a sentence has (0 to 1): the share of its 4-grams, …
GRAM_WEIGHT: Final = 1.3

# … 1 for the best document, 1/2 for the second, 1/3 for the third, …
RANK_WEIGHT: Final = 0.6

# … what a title or other text that is no sentence loses: it shares the question's words and answers nothing, …
FRAGMENT_PENALTY: Final = 0.5

# … and the logarithm of its words: long sentences have more of everything.
LENGTH_PENALTY: Final = 0.15

# A second sentence of the same document is added where it is nearly as good: it holds the answer in a fifth of the
# cases in which the first does not. A question for a list takes more sentences, further down.
SECOND_MARGIN: Final = 0.25
LIST_MARGIN: Final = 0.6
LIST_SENTENCES: Final = 4

# A sentence of another document is added where the first covers at most COVERED_SHARE of what the question is
# about, if it covers FURTHER_SHARE more. Adding one more freely finds more gold answers and buries them in noise.
COVERED_SHARE: Final = 0.5
FURTHER_SHARE: Final = 0.38

# Items of a list that are quoted with the sentence that announces them.
QUOTED_ITEMS: Final = 12

_TOKEN: Final = re.compile(r"\s*\S+(?:\s+\Z)?")
_LEADING_MARKS: Final = re.compile(r"\A(?:[-*•·+>]\s+|\d{1,2}[.)]\s+|#{1,6}\s+)+")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A sentence of a document, as a candidate answer.

    Attributes:
        document: Position of its document in the prompt.
        text: The sentence, verbatim but for a list mark at its start.
        sentence: The sentence with its terms.
    """

    document: int
    text: str
    sentence: Sentence


class ExtractiveEngine(Engine):
    """Quotes the sentences that best support the question, or says that there are none.

    A token of this engine is a run of characters without white space.

    Args:
        context_window: Tokens of documents and question that it reads.
    """

    quotes = True

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
        quotes = select_sentences(question, prompt.documents, language, settings.minimum_confidence)
        text = _join(quotes, language) or wording("abstention", language)
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


def select_sentences(
    question: str,
    documents: Sequence[Mapping[str, Any]],
    language: Language,
    minimum_confidence: float = EVEN_CONFIDENCE,
) -> list[str]:
    """Choose the sentences that answer a question.

    Args:
        question: The question.
        documents: Dicts with ``text`` and, where known, ``heading`` (not an answer by itself) and ``confidence``
            (0 to 1, how far all of them carry an answer), best first.
        language: The language of the question.
        minimum_confidence: Support of the documents (0 to 1) that an answer needs.

    Returns:
        One sentence, or more where a second is nearly as good or covers what the first leaves out, or where the
        question asks for a list; none when the documents do not support an answer.
    """
    asked = list(words(question, language))
    candidates = _candidates(documents)
    if not candidates or not asked or not _supported(question, documents, language, minimum_confidence):
        return []
    stems = {word.stem for word in asked}
    stem_weights = _weights(stems, candidates)
    gram_weights = _weights({gram for word in asked for gram in grams(word.folded)}, candidates)
    kind = kind_of(question, language)
    scores = {
        candidate: _share(candidate, stem_weights)
        + GRAM_WEIGHT * _share(candidate, gram_weights)
        + _worth(candidate, kind, question)
        for candidate in candidates
    }
    ranked = sorted(candidates, key=lambda candidate: -scores[candidate])
    best = ranked[0]
    if items := _announced_items(best, documents):
        return [best.text, *items]
    alike = [candidate for candidate in ranked[1:] if candidate.document == best.document]
    margin, most = (LIST_MARGIN, LIST_SENTENCES) if asks_for_list(question, language) else (SECOND_MARGIN, 2)
    chosen = [best, *(each for each in alike if scores[best] - scores[each] <= margin)][:most]
    content = content_stems(asked, language)
    if len(chosen) < most and (further := _find_further(chosen[0], ranked[1:], content)) is not None:
        chosen.append(further)
    # In the order of the document, which is the order in which they make sense.
    chosen.sort(key=lambda each: (each.document != best.document, each.document, each.sentence.start))
    return [candidate.text for candidate in dict.fromkeys(chosen)]


def _supported(
    question: str, documents: Sequence[Mapping[str, Any]], language: Language, minimum_confidence: float
) -> bool:
    """Tell whether the documents carry an answer: by the retriever's measure, else by the question's words."""
    measured = [float(document["confidence"]) for document in documents if document.get("confidence") is not None]
    if measured:
        return max(measured) >= minimum_confidence
    coverage = measure_coverage(question, documents, language)
    return coverage >= MINIMUM_COVERAGE * minimum_confidence / EVEN_CONFIDENCE


def _announced_items(best: Candidate, documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the items of the list that a sentence announces with a colon."""
    if not best.text.rstrip().endswith(":"):
        return []
    text = documents[best.document]["text"]
    sentences = split_sentences(text, _language_of(documents[best.document]))
    items: list[str] = []
    for sentence in sentences:
        if sentence.start > best.sentence.start:
            item = _LEADING_MARKS.sub("", sentence.text)
            if item == sentence.text or len(items) == QUOTED_ITEMS:
                break
            items.append(item)
    return items


def _find_further(best: Candidate, others: Sequence[Candidate], content: set[str]) -> Candidate | None:
    """Find a sentence for the part of the question that the best one leaves open, if that is a large part."""
    weights = _weights(content, [best, *others])
    if _share(best, weights) > COVERED_SHARE:
        return None
    left = {stem: weight for stem, weight in weights.items() if stem not in best.sentence.terms}
    statements = [candidate for candidate in others if _is_statement(candidate.text)]
    further = max(statements, key=lambda candidate: _overlap(candidate, left), default=None)
    return further if further and _overlap(further, left) >= FURTHER_SHARE * sum(weights.values()) else None


def _join(quotes: Sequence[str], language: Language) -> str:
    """Put quotes after each other, so that each can still be told from the next and found in its document."""
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
    """Cut the documents into sentences, leaving out headings and repetitions."""
    found: dict[str, Candidate] = {}
    for position, document in enumerate(documents):
        headings = {fold(part).casefold() for part in (document.get("heading") or "").split(" › ")}
        for sentence in split_sentences(document["text"], _language_of(document)):
            text = _LEADING_MARKS.sub("", sentence.text)
            if text and fold(text).casefold().strip(" :.") not in headings:
                found.setdefault(text, Candidate(position, text, sentence))
    return list(found.values())


def _weights(terms: set[str], candidates: Sequence[Candidate]) -> dict[str, float]:
    """Weigh the question's terms by their inverse document frequency among the sentences.

    A term that is in none counts like one that is in a single sentence: among few sentences it would otherwise
    outweigh every term that is there.
    """
    counts = Counter(term for candidate in candidates for term in terms & candidate.sentence.terms)
    total = len(candidates)
    return {
        term: math.log(1 + (total - max(counts[term], 1) + 0.5) / (max(counts[term], 1) + 0.5)) for term in terms
    }


def _overlap(candidate: Candidate, weights: Mapping[str, float]) -> float:
    return sum(weight for term, weight in weights.items() if term in candidate.sentence.terms)


def _share(candidate: Candidate, weights: Mapping[str, float]) -> float:
    total = sum(weights.values())
    return _overlap(candidate, weights) / total if total else 0.0


def _worth(candidate: Candidate, kind: QuestionKind | None, question: str) -> float:
    """Score what does not depend on the question's words."""
    worth = RANK_WEIGHT / (1 + candidate.document)
    worth -= LENGTH_PENALTY * math.log(1 + len(candidate.sentence.stems))
    if kind is not None and kind.has_evidence(candidate.text, question):
        worth += kind.weight
    return worth if _is_statement(candidate.text) else worth - FRAGMENT_PENALTY


def _is_statement(text: str) -> bool:
    """Tell a sentence or a line with a figure from a title, which answers nothing by itself."""
    return text.rstrip("\"'»”’)*_").endswith((".", "!", "…", ":")) or any(map(str.isdigit, text))
