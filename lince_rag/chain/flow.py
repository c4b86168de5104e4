"""The flow from a question to its ``Answer``: one generator, which yields what it needs and is sent the result.

It retrieves, packs, generates and checks; its drivers (``chain/rag.py`` and the agent's middleware) only carry out
what it yields, with or without async, callbacks and streams. A reply in the wrong language is asked for again; if
the model fails, the documents are quoted instead.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, BaseMessageChunk, HumanMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.runnables.utils import add

from lince_rag.chain.answer import Answer, Correction, find_short_answer, is_abstention
from lince_rag.chain.bindings import AnyModel
from lince_rag.chain.grounding import POLICIES, OnUnsupported, attribute, drop_unsupported, is_in_other_language
from lince_rag.chain.packing import Prepared, only_quotes, prepare, reads_documents
from lince_rag.chain.question import (
    REWRITING_TOKENS,
    REWRITINGS,
    RagInput,
    Request,
    Rewriting,
    accept_rewriting,
    goes_on,
    read_request,
    rewrite_by_rules,
    rewriting_prompt,
    topic_readings,
)
from lince_rag.errors import ConfigurationError
from lince_rag.models.chat_model import ChatLince
from lince_rag.models.messages import as_template_documents
from lince_rag.text.evidence import DOUBTFUL_CONFIDENCE, Evidence, strongest_confidence
from lince_rag.text.language import LANGUAGES, Language, fold, wording
from lince_rag.text.questions import asks_for, is_small_talk, summary_words

# A whole question ("¿Cómo se llamaban los hijos?") is read as the continuation of another only if it finds little
# as it stands, and the confidence then grows by at least this.
WHOLE_QUESTION_MARGIN: Final = 0.3

# How much of a question the passages of another reading of it must cover. Of 357 questions in conversations (246
# need what was said before), this and the margin find the answer to 304; rules alone to 291; the questions as they
# stand to 269.
COVERED_BY_READING: Final = 0.1

# Characters at the beginning of a document that say what it is.
BEGINNING_CHARACTERS: Final = 300

# The share of the words that say of which document a summary is asked that it must have.
NAMED_SHARE: Final = 0.66

# Words of an answer that are held back until their language is known.
HELD_BACK_WORDS: Final = 8


@dataclass(frozen=True)
class Retrieve:
    """Search with a question; the flow is sent the documents, best first.

    With a ``source``, only in that document and for as many chunks as a summary needs, if the retriever can.
    """

    question: str
    source: str = ""


@dataclass(frozen=True)
class Generate:
    """Call the model; the flow is sent its reply."""

    messages: list[BaseMessage]
    options: dict[str, Any]
    # Set if the reply is the answer: a driver that streams passes the chunks through it and sends its ``reply``.
    stream: "AnswerStream | None" = None


Flow = Generator[Retrieve | Generate, Any, Answer]


@dataclass(frozen=True)
class ChainSettings:
    """How a chain answers; ``create_rag_chain`` explains each setting."""

    language: Language | None
    max_context_tokens: int | None
    on_unsupported: OnUnsupported
    minimum_confidence: float
    rewriting: Rewriting
    instructions: str = ""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("language", self.language, (None, *LANGUAGES)),
            ("on_unsupported", self.on_unsupported, POLICIES),
            ("rewriting", self.rewriting, REWRITINGS),
        ):
            if value not in known:
                raise ConfigurationError(f"{name}={value!r} is not one of {', '.join(filter(None, known))}.")
        if not 0.0 <= self.minimum_confidence <= 1.0:
            raise ConfigurationError(f"minimum_confidence={self.minimum_confidence} is not between 0 and 1.")


def answer_flow(model: AnyModel, settings: ChainSettings, given: RagInput) -> Flow:
    """Yield what is needed to answer a question, and return the ``Answer``.

    Whatever takes time (loading weights, rendering, counting tokens) happens while the flow is advanced, so an
    async driver advances it in a thread.
    """
    asked = read_request(given, settings.language)
    if is_small_talk(asked.question):
        text = wording("small_talk", asked.language)
        return Answer(text=text, language=asked.language, grounded=True, standalone="")
    request, documents = yield from _search(model, settings, asked)
    if request.undecided:
        request = replace(request, language=_main_language(documents, request.language))
    minimum = settings.minimum_confidence
    # The confidence in a follow-up that was not rewritten ("¿Y en 2020?") is not reliable, so the model decides.
    if minimum and not (request.history and settings.rewriting == "off"):
        confidence = strongest_confidence(document.metadata for document in documents)
        if not documents or (confidence is not None and confidence < minimum):
            return refuse(request, confidence)
    if not documents and only_quotes(model):
        return refuse(request, None)
    pack = partial(
        prepare,
        model,
        documents=documents,
        max_context_tokens=settings.max_context_tokens,
        minimum_confidence=minimum,
        further_instructions=settings.instructions,
    )
    prepared = pack(request)
    policy = settings.on_unsupported
    stream = AnswerStream(request.language, prepared.packed.documents, policy, quotes=only_quotes(model))
    reply = yield Generate(prepared.messages, prepared.options, stream)
    return (yield from conclude(request, prepared, reply, policy, pack))


def advance(flow: Flow, result: Any = None) -> Retrieve | Generate | Answer:
    """Send the result of the last step (``None`` at first); return what the flow needs next, or the answer."""
    try:
        return flow.send(result)
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer


def _search(
    model: AnyModel, settings: ChainSettings, request: Request
) -> Generator[Retrieve | Generate, Any, tuple[Request, list[Document]]]:
    """Search for a question; of the readings of a follow-up, the one with the best evidence counts."""
    if asks_for("summaries", request.question, request.language):
        whole = yield from _read_whole(request)
        if whole is not None:
            return request, whole
    readings = yield from _readings(model, settings, request)
    asked = request.question, request.history, request.language
    # What must be gained by reading a question as the continuation of another.
    margin = 0.0 if goes_on(*asked) else WHOLE_QUESTION_MARGIN
    found: list[tuple[float, str, list[Document]]] = []
    for reading in dict.fromkeys(readings):
        documents = yield Retrieve(reading)
        # A retriever may have corrected words.
        reading = next((str(each.metadata["query"]) for each in documents if "query" in each.metadata), reading)
        # A reading that begins with the question before is read as that question, too.
        confidence = strongest_confidence((each.metadata for each in documents), "confidence_unread")
        if confidence is None:
            confidence = strongest_confidence(each.metadata for each in documents)
        if confidence is None:
            # It is not measured, so the first reading must do.
            return replace(request, standalone=reading), documents
        if not found or _is_about(request, reading, documents):
            found.append((confidence - (margin if found else 0.0), reading, documents))
        if margin and confidence >= DOUBTFUL_CONFIDENCE:
            break
    _, standalone, documents = max(found, key=lambda each: each[0])
    return replace(request, standalone=standalone), documents


def _main_language(documents: Sequence[Document], default: Language) -> Language:
    """Return the language of most of the found chunks: "SMTP" of Portuguese documents is asked in it."""
    found = Counter(each.metadata["language"] for each in documents if each.metadata.get("language") in LANGUAGES)
    return found.most_common(1)[0][0] if found else default


def _is_about(request: Request, reading: str, documents: Sequence[Document]) -> bool:
    """Return whether what a reading finds is about the question, and not only about the one before it."""
    texts = as_template_documents(documents)
    chosen = Evidence(reading, request.language, texts).chosen
    return Evidence(request.question, request.language, texts).coverage_of(chosen) >= COVERED_BY_READING


def _read_whole(request: Request) -> Generator[Retrieve, Any, list[Document] | None]:
    """Read the document that a summary is asked of, in order; ``None`` if no found document is meant.

    It is the one whose name, headings and beginning have most of the words that say which one, or the only one.
    """
    found: list[Document] = yield Retrieve(request.question)
    names = summary_words(request.question, request.language)
    if not names and len({str(document.metadata.get("source", "")) for document in found}) > 1:
        return []
    best = max(found, key=lambda document: _named(document, names), default=None)
    if best is None or _named(best, names) < NAMED_SHARE:
        return None
    source = best.metadata.get("source")
    whole: list[Document] = yield Retrieve(request.question, str(source or ""))
    same = [document for document in whole if document.metadata.get("source") == source]
    for document in same:
        # It is measured for questions about a passage.
        document.metadata.pop("confidence", None)
    return sorted(same, key=lambda document: int(document.metadata.get("start", 0)))


def _named(document: Document, names: Sequence[str]) -> float:
    """Return the share of some words that are in the name, the headings or the beginning of a document."""
    metadata = document.metadata
    beginning = "" if metadata.get("start") else document.page_content[:BEGINNING_CHARACTERS]
    parts = [metadata.get(key) or "" for key in ("source", "title", "heading")]
    said = fold(" ".join([*map(str, parts), beginning])).casefold()
    return sum(name in said for name in names) / len(names) if names else 1.0


def _readings(
    model: AnyModel, settings: ChainSettings, request: Request
) -> Generator[Retrieve | Generate, Any, list[str]]:
    """Return what a question may stand for, the likeliest first."""
    by, asked = settings.rewriting, (request.question, request.history, request.language)
    if by == "off":
        return [request.question]
    by_model = by == "model" or (by == "auto" and not only_quotes(model))
    if not by_model or (prompt := rewriting_prompt(*asked)) is None:
        first = rewrite_by_rules(*asked)
    else:
        options = {"max_tokens": REWRITING_TOKENS} if reads_documents(model) else {}
        reply = yield Generate(prompt, options)
        first = accept_rewriting(str(reply.text), *asked)
    if by == "model":
        return [first]
    return [first, *topic_readings(*asked)]


def refuse(request: Request, confidence: float | None) -> Answer:
    """Return the abstention of a chain that does not ask the model."""
    text = wording("abstention", request.language)
    return Answer(
        text=text, language=request.language, abstained=True, confidence=confidence, standalone=request.standalone
    )


def conclude(
    request: Request,
    prepared: Prepared,
    reply: BaseMessage,
    on_unsupported: OnUnsupported,
    pack: Callable[[Request], Prepared],
) -> Flow:
    """Check a reply and turn it into the answer.

    A reply in another language than the request's is asked for once more, with a reminder of the language. If that
    one is in another language too, the documents are quoted instead. ``on_unsupported`` decides about sentences
    without a citation. ``pack`` prepares the prompt of a request.
    """
    corrections: list[Correction] = []
    text, usage = _text(reply), _usage(reply)
    if is_in_other_language(request.language, text, prepared.packed.documents):
        corrections.append("asked_again_for_language")
        prepared = pack(replace(request, reminder=wording("answer_in", request.language)))
        reply = yield Generate(prepared.messages, prepared.options)
        text, usage = _text(reply), _sum(usage, _usage(reply))
        if is_in_other_language(request.language, text, prepared.packed.documents):
            return _answer(request, prepared, _quote(request, prepared), usage, [*corrections, "quoted_instead"])
    if _abstains(reply) or on_unsupported == "flag":
        return _answer(request, prepared, reply, usage, corrections)
    attribution = attribute(text, prepared.packed.documents, request.language)
    if not attribution.unsupported:
        return _answer(request, prepared, reply, usage, corrections)
    if on_unsupported == "extract":
        return _answer(request, prepared, _quote(request, prepared), usage, [*corrections, "quoted_instead"])
    kept = AIMessage(drop_unsupported(text, attribution) or wording("abstention", request.language))
    return _answer(request, prepared, kept, usage, [*corrections, "dropped_unsupported"])


def _answer(
    request: Request,
    prepared: Prepared,
    reply: BaseMessage,
    usage: UsageMetadata | None,
    corrections: list[Correction],
) -> Answer:
    text, abstained, packed = _text(reply), _abstains(reply), prepared.packed
    attribution = attribute("" if abstained else text, packed.documents, request.language)
    retrieved = [*packed.documents, *packed.omitted]
    return Answer(
        text=text,
        language=request.language,
        short=None if abstained else find_short_answer(request.standalone, text, request.language),
        citations=attribution.citations,
        documents=packed.documents,
        grounded=attribution.grounded,
        unsupported=attribution.unsupported,
        confidence=strongest_confidence(document.metadata for document in retrieved),
        corrections=corrections,
        standalone=request.standalone,
        abstained=abstained,
        shortened=packed.shortened,
        omitted=packed.omitted,
        omitted_turns=prepared.omitted_turns,
        usage=usage,
    )


def _quote(request: Request, prepared: Prepared) -> AIMessage:
    """Answer with sentences of the documents, word for word."""
    return ChatLince().invoke(
        [HumanMessage(request.standalone)], documents=prepared.packed.documents, language=request.language
    )


def _text(reply: BaseMessage) -> str:
    return str(reply.text).strip()


def _abstains(reply: BaseMessage) -> bool:
    return is_abstention(str(reply.text)) or bool(reply.response_metadata.get("abstained"))


def _usage(reply: BaseMessage) -> UsageMetadata | None:
    return reply.usage_metadata if isinstance(reply, AIMessage) else None


def _sum(first: UsageMetadata | None, second: UsageMetadata | None) -> UsageMetadata | None:
    return add_usage(first, second) if first or second else None


class AnswerStream:
    """Decides which pieces of a streamed answer can go out.

    The first words wait until their language is known, unless the model only quotes. All of the answer waits if
    unsupported sentences are to be dropped or replaced.
    """

    def __init__(
        self, language: Language, documents: Sequence[Document], on_unsupported: OnUnsupported, *, quotes: bool
    ) -> None:
        # True once the model has switched language: nothing more goes out.
        self.switched_language = False
        self._language = language
        self._documents = documents
        self._hold_all = on_unsupported != "flag" and not quotes
        self._words = 0 if quotes else HELD_BACK_WORDS
        self._chunks: list[BaseMessageChunk] = []
        self._held = ""
        # Whether text has gone out.
        self.sent = False

    def take(self, chunk: BaseMessageChunk) -> str:
        """Take a chunk from the model and return the text that can go out now."""
        self._chunks.append(chunk)
        text = str(chunk.text)
        if self.sent:
            return text
        self._held += text
        if self._hold_all or len(self._held.split()) <= self._words:
            return ""
        self.switched_language = is_in_other_language(self._language, self._held, self._documents)
        if self.switched_language:
            return ""
        self.sent = True
        return self._held

    @property
    def reply(self) -> BaseMessage:
        """What the model has said so far."""
        return add(self._chunks) or AIMessage("")


def last_pieces(stream: AnswerStream | None, answer: Answer) -> Iterator[str | Answer]:
    """Yield the answer's text, unless text has gone out already, and then the answer.

    Text that has gone out and was corrected afterwards is not taken back: see ``answer.corrections``.
    """
    if answer.text and not (stream and stream.sent):
        yield answer.text
    yield answer
