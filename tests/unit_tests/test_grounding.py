"""What the chain does with a model that makes things up or switches language."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata

from lince_rag import Answer, ChatLince, create_rag_chain
from lince_rag.chain.grounding import attribute, drop_unsupported, is_in_other_language
from lince_rag.errors import ConfigurationError
from lince_rag.text.language import Language, wording
from tests.unit_tests.chain_samples import QUESTION, Fixed, chain, chunks

SPANISH = "El comité lo preside Amalia Ortuño."
INVENTED = "También dirige la orquesta municipal de Sevilla desde hace varios años."
ENGLISH = "The committee is chaired by a person whose name I do not remember right now."


def replies(*texts: str) -> GenericFakeChatModel:
    usage = UsageMetadata(input_tokens=10, output_tokens=5, total_tokens=15)
    return GenericFakeChatModel(messages=iter([AIMessage(text, usage_metadata=usage) for text in texts]))


def test_unsupported_sentences_are_flagged() -> None:
    answer = chain(llm=replies(f"{SPANISH} {INVENTED}")).invoke(QUESTION)
    assert answer.text == f"{SPANISH} {INVENTED}"
    assert not answer.grounded
    (span,) = answer.unsupported
    assert answer.text[slice(*span)] == INVENTED
    assert [answer.text[each.answer_start : each.answer_end] for each in answer.citations] == [SPANISH]
    assert answer.corrections == []


def test_unsupported_sentences_are_dropped() -> None:
    answer = chain(llm=replies(f"{INVENTED} {SPANISH}"), on_unsupported="drop").invoke(QUESTION)
    assert answer.text == SPANISH
    assert answer.grounded
    assert answer.unsupported == []
    assert answer.corrections == ["dropped_unsupported"]


def test_an_answer_of_which_nothing_is_left_is_an_abstention() -> None:
    answer = chain(llm=replies(INVENTED), on_unsupported="drop").invoke(QUESTION)
    assert answer.abstained
    assert answer.text == wording("abstention", "es")
    assert answer.citations == []


def test_the_documents_are_quoted_instead() -> None:
    answer = chain(llm=replies(INVENTED), on_unsupported="extract").invoke(QUESTION)
    assert answer.text == SPANISH
    assert answer.grounded
    assert answer.corrections == ["quoted_instead"]


@pytest.mark.parametrize("policy", ["drop", "extract"])
async def test_a_grounded_answer_is_left_alone(policy: Any) -> None:
    steps = [step async for step in chain(llm=replies(SPANISH), on_unsupported=policy).astream(QUESTION)]
    assert steps[:-1] == [SPANISH]
    assert steps[-1].corrections == []


async def test_a_slip_into_english_is_asked_again_once() -> None:
    for call in ("invoke", "ainvoke"):
        model = chain(llm=replies(ENGLISH, SPANISH))
        answer = model.invoke(QUESTION) if call == "invoke" else await model.ainvoke(QUESTION)
        assert answer.text == SPANISH
        assert answer.corrections == ["asked_again_for_language"]
        assert answer.usage == {"input_tokens": 20, "output_tokens": 10, "total_tokens": 30}


def test_the_second_time_the_model_is_told_the_language() -> None:
    seen: list[str] = []

    class Recording(FakeListChatModel):
        def _call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
            seen.append(messages[-1].text)
            return super()._call(messages, *args, **kwargs)

    chain(llm=Recording(responses=[ENGLISH, SPANISH])).invoke(QUESTION)
    assert [wording("answer_in", "es") in text for text in seen] == [False, True]


def test_no_usage_stays_no_usage() -> None:
    answer = chain(llm=FakeListChatModel(responses=[ENGLISH, SPANISH])).invoke(QUESTION)
    assert answer.text == SPANISH
    assert answer.usage is None


def test_without_documents_only_a_wish_goes_to_the_model() -> None:
    nothing = Fixed(documents=[])
    assert create_rag_chain(replies(SPANISH), nothing).invoke(QUESTION).abstained
    assert create_rag_chain(replies(SPANISH), nothing, minimum_confidence=0.0).invoke(QUESTION).text == SPANISH


def test_two_slips_are_answered_with_a_quotation() -> None:
    answer = chain(llm=replies(ENGLISH, ENGLISH)).invoke(QUESTION)
    assert answer.text == SPANISH
    assert answer.corrections == ["asked_again_for_language", "quoted_instead"]


async def test_a_stream_does_not_show_the_slip() -> None:
    for call in ("stream", "astream"):
        model = chain(llm=replies(ENGLISH, SPANISH))
        steps = list(model.stream(QUESTION)) if call == "stream" else [s async for s in model.astream(QUESTION)]
        assert "".join(steps[:-1]) == SPANISH
        assert steps[-1].corrections == ["asked_again_for_language"]


def test_a_stream_goes_on_once_its_language_is_known() -> None:
    long = "El comité lo preside Amalia Ortuño y la reunión del comité es el martes 3 de marzo."
    given: list[str] = []

    class Slow(GenericFakeChatModel):
        def _stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            for chunk in super()._stream(*args, **kwargs):
                given.append(str(chunk.text))
                yield chunk

    steps = chain(llm=Slow(messages=iter([AIMessage(long)]))).stream(QUESTION)
    first = next(steps)
    assert len(given) < len(long.split()) * 2 - 1
    assert long.startswith(first)
    rest = list(steps)
    assert first + "".join(rest[:-1]) == long == rest[-1].text


def test_a_quotation_may_be_in_the_documents_language() -> None:
    english = Document("The committee is chaired by Amalia Ortuño since last spring.", metadata={"source": "a"})
    quoted = ChatLince().invoke(QUESTION, documents=[english], minimum_confidence=0.0).text
    assert quoted == english.page_content
    assert not is_in_other_language("es", quoted, [english])
    assert is_in_other_language("es", ENGLISH, [english])
    assert is_in_other_language("es", f"{SPANISH} {ENGLISH}", [english])
    assert not is_in_other_language("es", "Super Bowl Halftime", [])


@pytest.mark.parametrize(
    ("language", "reply", "other"),
    [
        ("es", "It ends in May.", True),
        ("es", "Termina em maio, não.", True),
        ("pt", "Vence el 31 de mayo.", True),
        ("pt", "The rent is 815 euros.", True),
        ("es", "Vence el 31 de mayo.", False),
        ("pt", "Termina no dia 31 de maio.", False),
        ("es", "Amalia Ortuño de la Vega", False),
        ("es", "815 euros", False),
    ],
)
def test_short_replies_in_another_language(language: Language, reply: str, other: bool) -> None:
    assert is_in_other_language(language, reply, []) is other


def test_little_confidence_abstains_without_the_model() -> None:
    def ask(confidence: float, **options: Any) -> Answer:
        documents = [
            each.model_copy(update={"metadata": {**each.metadata, "confidence": confidence}}) for each in chunks()
        ]
        answer: Answer = create_rag_chain(replies(SPANISH), Fixed(documents=documents), **options).invoke(QUESTION)
        return answer

    refused = ask(0.02)
    assert refused.abstained
    assert refused.confidence == 0.02
    assert not refused.doubtful
    assert refused.usage is None
    assert refused.text == wording("abstention", "es")
    assert ask(0.02, minimum_confidence=0.01).text == SPANISH
    assert ask(0.02, minimum_confidence=0.01).doubtful
    assert ask(0.8).confidence == 0.8
    assert not ask(0.8).doubtful


@pytest.mark.parametrize(
    ("options", "value"), [({"on_unsupported": "ignore"}, "ignore"), ({"minimum_confidence": 2}, "2")]
)
def test_wrong_options_are_named(options: dict[str, Any], value: str) -> None:
    with pytest.raises(ConfigurationError, match=value):
        chain(**options)


sentences = st.lists(st.sampled_from([SPANISH, INVENTED, ENGLISH, "O elevador custa 1.100 euros."]), max_size=5)


@given(sentences)
def test_what_is_left_after_dropping_is_supported(given: list[str]) -> None:
    text = " ".join(given)
    kept = drop_unsupported(text, attribute(text, chunks(), "es"))
    assert not attribute(kept, chunks(), "es").unsupported
    assert all(part in kept for part in given if part == SPANISH)
