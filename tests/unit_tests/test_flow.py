"""Every way to run a chain gives the same answer, whatever path the question takes."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import ConfigurableField

from lince_rag import Answer, ChatLince, create_rag_chain
from lince_rag.errors import ConfigurationError
from tests.unit_tests.chain_samples import QUESTION, Fixed, chain

SPANISH = "El comité lo preside Amalia Ortuño."
INVENTED = "También dirige la orquesta municipal de Sevilla desde hace varios años."
ENGLISH = "The committee is chaired by a person whose name I do not remember right now."
HISTORY = [HumanMessage("¿Cuándo es la reunión del comité?"), AIMessage("El martes 3 de marzo.")]
FOLLOW_UP = {"question": "¿Y quién lo preside?", "history": HISTORY}


def says(*texts: str) -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage(text) for text in texts]))


def with_fallback() -> Any:
    broken = GenericFakeChatModel(messages=iter(()))
    return broken.with_fallbacks([says(SPANISH)])


def configurable() -> Any:
    return ChatLince().configurable_fields(max_tokens=ConfigurableField(id="length"))


# name → the chain, made anew for each run because the models use up what they say; and its input.
PATHS: dict[str, tuple[Callable[[], Any], Any]] = {
    "quoted": (lambda: chain(), QUESTION),
    "abstention of the engine": (lambda: chain("gato"), "¿Cuánto cuesta el ascensor?"),
    "no documents": (lambda: create_rag_chain(ChatLince(), Fixed(documents=[])), QUESTION),
    "an abstention by the model": (lambda: chain(llm=says("No lo encuentro en los documentos.")), QUESTION),
    "grounded": (lambda: chain(llm=says(SPANISH)), QUESTION),
    "retry for the language": (lambda: chain(llm=says(ENGLISH, SPANISH)), QUESTION),
    "two slips": (lambda: chain(llm=says(ENGLISH, ENGLISH)), QUESTION),
    "flag": (lambda: chain(llm=says(f"{SPANISH} {INVENTED}")), QUESTION),
    "drop": (lambda: chain(llm=says(f"{INVENTED} {SPANISH}"), on_unsupported="drop"), QUESTION),
    "drop all": (lambda: chain(llm=says(INVENTED), on_unsupported="drop"), QUESTION),
    "extract": (lambda: chain(llm=says(INVENTED), on_unsupported="extract"), QUESTION),
    "fallback": (lambda: chain(llm=with_fallback()), QUESTION),
    "configurable": (lambda: chain(llm=configurable()), QUESTION),
    "follow-up by rules": (lambda: chain(), FOLLOW_UP),
    "follow-up by the model": (lambda: chain(llm=says("¿Quién preside el comité?", SPANISH)), FOLLOW_UP),
    "follow-up as it is": (lambda: chain(llm=says(SPANISH), rewriting="off"), FOLLOW_UP),
}


async def run(way: str, made: Any, given: Any) -> Answer:
    if way == "invoke":
        return made.invoke(given)
    if way == "ainvoke":
        return await made.ainvoke(given)
    if way == "batch":
        (answer,) = made.batch([given])
        return answer
    if way == "abatch":
        (answer,) = await made.abatch([given])
        return answer
    pieces = list(made.stream(given)) if way == "stream" else [piece async for piece in made.astream(given)]
    answer = pieces[-1]
    if not answer.corrections:
        assert "".join(pieces[:-1]).strip() == answer.text
    return answer


@pytest.mark.parametrize("way", ["ainvoke", "stream", "astream", "batch", "abatch"])
@pytest.mark.parametrize("path", PATHS)
async def test_every_way_gives_the_same_answer(path: str, way: str) -> None:
    make, given = PATHS[path]
    # Streams of these models do not count tokens.
    expected, found = [(await run(name, make(), given)).model_dump(exclude={"usage"}) for name in ("invoke", way)]
    assert found == expected


def test_the_paths_are_different() -> None:
    """A path that does not do what its name says would compare nothing."""
    answers = {name: make().invoke(given) for name, (make, given) in PATHS.items()}
    assert answers["abstention of the engine"].abstained
    assert answers["no documents"].abstained
    assert not answers["no documents"].documents
    assert answers["retry for the language"].corrections == ["asked_again_for_language"]
    assert answers["two slips"].corrections == ["asked_again_for_language", "quoted_instead"]
    assert answers["flag"].unsupported
    assert answers["drop"].corrections == ["dropped_unsupported"]
    assert answers["drop all"].abstained
    assert answers["extract"].corrections == ["quoted_instead"]
    assert answers["fallback"].text == SPANISH
    assert answers["follow-up by the model"].standalone == "¿Quién preside el comité?"
    assert answers["follow-up by rules"].standalone != FOLLOW_UP["question"]
    assert answers["follow-up as it is"].standalone == FOLLOW_UP["question"]


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
async def test_every_way_raises_the_same_error(way: str) -> None:
    with pytest.raises(ConfigurationError, match="question is empty"):
        await run(way, chain(), {"question": " "})


async def test_a_cancelled_chain_asks_no_more() -> None:
    """Cancelled while the model answers, in a language that would be asked for again."""

    class Slow(FakeListChatModel):
        asked: int = 0

        async def _acall(self, *args: Any, **kwargs: Any) -> str:
            self.asked += 1
            await asyncio.sleep(30)
            return ENGLISH

        async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
            await self._acall()

    model = Slow(responses=[ENGLISH])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(chain(llm=model).ainvoke(QUESTION), 0.3)
    assert model.asked == 1
