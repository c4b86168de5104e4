"""From a model's reply to the ``Answer``: language, support, citations; asking again, quoting where they fail."""

from collections.abc import Callable, Generator
from dataclasses import replace

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata, add_usage

from lince_rag.chain.answers import Answer, Correction, is_abstention
from lince_rag.chain.grounding import OnUnsupported, drop_unsupported, ground, slips_from
from lince_rag.chain.packing import Prepared
from lince_rag.chain.requests import Request
from lince_rag.chain.short_answers import find_short_answer
from lince_rag.models.chat_model import ChatLince
from lince_rag.text.wording import wording

# Yields what the model is to be asked again, is sent its reply, and returns the answer.
Conclusion = Generator[Prepared, BaseMessage | None, Answer]


def refuse(request: Request, confidence: float | None) -> Answer:
    """Abstain without asking a model.

    Args:
        request: The question.
        confidence: How far the retrieved chunks carry an answer, where that is known.

    Returns:
        The abstention.
    """
    text = wording("abstention", request.language)
    return Answer(
        text=text, language=request.language, abstained=True, confidence=confidence, standalone=request.standalone
    )


def conclude(
    request: Request,
    prepared: Prepared,
    reply: BaseMessage,
    on_unsupported: OnUnsupported,
    prepare_again: Callable[[Request], Prepared],
) -> Conclusion:
    """Check a reply and turn it into the answer.

    A reply in another language than the question's is asked for once more, with a reminder of the language; if it
    slips again, the documents are quoted in its place. What happens to sentences that no document supports is for
    ``on_unsupported`` to say.

    Args:
        request: The question.
        prepared: What the model got.
        reply: What it said.
        on_unsupported: ``"flag"``, ``"drop"`` or ``"extract"``.
        prepare_again: Prepares the question with a reminder.

    Yields:
        What the model is to be asked again; send its reply.

    Returns:
        The answer.
    """
    corrections: list[Correction] = []
    text, usage = str(reply.text).strip(), _usage(reply)
    if slips_from(request.language, text, prepared.packed.documents):
        corrections.append("asked_again_for_language")
        prepared = prepare_again(replace(request, reminder=wording("answer_in", request.language)))
        second = yield prepared
        if second is not None:
            reply, text, usage = second, str(second.text).strip(), _sum(usage, _usage(second))
        if slips_from(request.language, text, prepared.packed.documents):
            return _answer(request, prepared, _quote(request, prepared), usage, [*corrections, "quoted_instead"])
    if _abstains(reply) or on_unsupported == "flag":
        return _answer(request, prepared, reply, usage, corrections)
    grounding = ground(text, prepared.packed.documents, request.language)
    if not grounding.unsupported:
        return _answer(request, prepared, reply, usage, corrections)
    if on_unsupported == "extract":
        return _answer(request, prepared, _quote(request, prepared), usage, [*corrections, "quoted_instead"])
    kept = AIMessage(drop_unsupported(text, grounding) or wording("abstention", request.language))
    return _answer(request, prepared, kept, usage, [*corrections, "dropped_unsupported"])


def advance(conclusion: Conclusion, reply: BaseMessage | None) -> Prepared | Answer:
    """Go on to the next question for the model, or to the answer.

    Args:
        conclusion: What ``conclude`` gives.
        reply: The model's reply to the question before; ``None`` at first.

    Returns:
        The question or the answer.
    """
    try:
        return conclusion.send(reply)
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer


def _answer(
    request: Request,
    prepared: Prepared,
    reply: BaseMessage,
    usage: UsageMetadata | None,
    corrections: list[Correction],
) -> Answer:
    """Cite what was said."""
    text, abstained, packed = str(reply.text).strip(), _abstains(reply), prepared.packed
    grounding = ground("" if abstained else text, packed.documents, request.language)
    retrieved = [*packed.documents, *packed.omitted]
    confidences = [
        float(measured) for each in retrieved if (measured := each.metadata.get("confidence")) is not None
    ]
    return Answer(
        text=text,
        language=request.language,
        short=None if abstained else find_short_answer(request.standalone, text, request.language),
        citations=grounding.citations,
        documents=packed.documents,
        grounded=grounding.grounded,
        unsupported=grounding.unsupported,
        confidence=max(confidences, default=None),
        corrections=corrections,
        standalone=request.standalone,
        abstained=abstained,
        shortened=packed.shortened,
        omitted=packed.omitted,
        omitted_turns=prepared.omitted_turns,
        usage=usage,
    )


def _abstains(reply: BaseMessage) -> bool:
    return is_abstention(str(reply.text)) or bool(reply.response_metadata.get("abstained"))


def _usage(reply: BaseMessage) -> UsageMetadata | None:
    return reply.usage_metadata if isinstance(reply, AIMessage) else None


def _sum(first: UsageMetadata | None, second: UsageMetadata | None) -> UsageMetadata | None:
    return add_usage(first, second) if first or second else None


def _quote(request: Request, prepared: Prepared) -> AIMessage:
    """Answer with sentences of the documents, word for word."""
    return ChatLince().invoke(
        [HumanMessage(request.standalone)], documents=prepared.packed.documents, language=request.language
    )
