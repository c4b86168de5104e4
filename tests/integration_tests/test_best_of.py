"""BestOf: the best of several real answers, by documents or by a reward model, behind a guardrail."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from lince_rag import Answer, BestOf, ChatLince, Index, create_rag_chain
from lince_rag.chain.best_of import TextScorer
from lince_rag.chain.grounding import attribute
from lince_rag.chain.packing import native_model
from lince_rag.engines.scorers.classifiers import SequenceClassifier
from lince_rag.errors import ConfigurationError
from lince_rag.text.language import LANGUAGES, wording
from tests.checkpoints import shared_checkpoint
from tests.integration_tests.classifier_samples import save_tiny_classifier
from tests.watched_models import counted

AIRA, LINCE, LLAMA = "aira-2-portuguese-1b7", "lince-zero", "llama-2-7b-spanish"
QUESTION: Final = "Quando vence o contrato de aluguel?"
MAX_TOKENS: Final = 16

DOCUMENTS: Final = [
    Document("O contrato de aluguel vence em maio. A fiança é de 815 euros.", metadata={"source": "contrato.txt"}),
    Document("O portão fecha às dez horas da noite.", metadata={"source": "regras.txt"}),
]
# How much of each the documents support: nothing, all of one sentence, half, all of two sentences, all of two.
REPLIES: Final = [
    "O contrato é uma coisa bonita.",
    "O contrato de aluguel vence em maio.",
    "O contrato de aluguel vence em maio. A fiança é de 900 euros.",
    "O contrato de aluguel vence em maio. A fiança é de 815 euros.",
    "O contrato de aluguel vence em maio. O portão fecha às dez horas da noite.",
]
SHARES: Final = [0.0, 1.0, 0.5, 1.0, 1.0]
RUDE, CURT = "Você é um idiota e não sabe ler.", "Idiota, leia o contrato."


@cache
def chat(kind: str = AIRA, **options: Any) -> ChatLince:
    """A chat model on a tiny checkpoint."""
    return ChatLince(**shared_checkpoint(kind).chat_fields, max_tokens=MAX_TOKENS, **options)


def fake(*replies: str | AIMessage) -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter(replies))


def candidates(reply: AIMessage) -> list[dict[str, Any]]:
    return reply.response_metadata["candidates"]


def candidate_texts(reply: AIMessage) -> list[str]:
    return [candidate["text"] for candidate in candidates(reply)]


def direct(llm: ChatLince, n: int, **options: Any) -> list[AIMessage]:
    """What a model itself samples in one batch."""
    copy = llm.model_copy(update={"n": n})
    return [found.message for found in copy.generate([[HumanMessage(QUESTION)]], **options).generations[0]]


class Lengths(BaseCrossEncoder):
    """Another package's scorer: long answers are good ones. It remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        self.seen += text_pairs
        return [float(len(answer)) for _, answer in text_pairs]


class Recorder(BaseCallbackHandler):
    """Remembers the runs of chat models: run, parent, tags; and tokens."""

    def __init__(self) -> None:
        self.started: list[tuple[Any, Any, list[str]]] = []
        self.ended: list[Any] = []
        self.tokens: list[Any] = []

    def on_chat_model_start(self, *args: Any, run_id: Any, parent_run_id: Any, tags: Any, **kwargs: Any) -> None:
        self.started.append((run_id, parent_run_id, tags))

    def on_llm_end(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        self.ended.append(run_id)

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.tokens.append(token)


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> SequenceClassifier:
    """A reward model of no taste: its weights are random, so the best of word salad is anywhere."""
    examples = [((QUESTION, text), 1) for text in REPLIES]
    folder = tmp_path_factory.mktemp("rewards") / "tiny"
    return SequenceClassifier(save_tiny_classifier(folder, examples, kind="bert", steps=0), segments=False)


@pytest.fixture(scope="module")
def guardrail(tmp_path_factory: pytest.TempPathFactory) -> SequenceClassifier:
    """A toxicity model: a negative logit is toxic."""
    examples = [(text, 1) for text in REPLIES] + [(RUDE, 0), (CURT, 0), ("Idiota.", 0), ("É um idiota.", 0)]
    return SequenceClassifier(save_tiny_classifier(tmp_path_factory.mktemp("guardrail") / "tiny", examples))


# -------------------------------------------------------------------------------------------------- a native model


def test_the_batch_of_a_native_model_is_ranked(rewards: SequenceClassifier) -> None:
    llm = chat(seed=7)
    sampled = direct(llm, 5)
    reply = BestOf(llm=llm, n=5, ranking=rewards).invoke(QUESTION)
    assert candidate_texts(reply) == [one.text for one in sampled]
    assert len(set(candidate_texts(reply))) == 5
    scores = rewards.score([(QUESTION, text) for text in candidate_texts(reply)])
    assert [one["rank_score"] for one in candidates(reply)] == pytest.approx(scores, abs=1e-4)
    assert reply.text == candidate_texts(reply)[scores.index(max(scores))]
    assert [one["guardrail_score"] for one in candidates(reply)] == [None] * 5
    chosen = next(one for one in sampled if one.text == reply.text)
    assert reply.response_metadata["finish_reason"] == chosen.response_metadata["finish_reason"]
    assert reply.response_metadata["model_name"] == f"best-of-5/{AIRA}"


def test_usage_is_the_sum_over_the_candidates(rewards: SequenceClassifier) -> None:
    llm = chat(seed=7)
    spent = [one.usage_metadata for one in direct(llm, 3)]
    with get_usage_metadata_callback() as noted:
        reply = BestOf(llm=llm, n=3, ranking=rewards).invoke(QUESTION)
    assert counted(reply.usage_metadata) == {
        name: sum(usage[name] for usage in spent) for name in ("input_tokens", "output_tokens", "total_tokens")
    }
    # The callback sees the first answer of an inner run only, but never ours under the model's name.
    assert counted(noted.usage_metadata[AIRA]) == counted(spent[0])


def test_one_seed_is_one_answer(rewards: SequenceClassifier) -> None:
    best = BestOf(llm=chat(), n=3, ranking=rewards)
    one, again, other = (best.invoke(QUESTION, seed=seed) for seed in (1, 1, 2))
    assert candidates(one) == candidates(again)
    assert one.text == again.text
    assert candidate_texts(one) != candidate_texts(other)


def test_documents_and_language_reach_the_model() -> None:
    llm = chat(seed=3)
    best = BestOf(llm=llm, n=2)
    reply = best.invoke(QUESTION, documents=DOCUMENTS, language="pt", stop=["\n"])
    sampled = direct(llm, 2, documents=DOCUMENTS, language="pt", stop=["\n"])
    assert candidate_texts(reply) == [one.text for one in sampled]
    assert reply.usage_metadata["input_tokens"] > best.invoke(QUESTION).usage_metadata["input_tokens"]
    with pytest.raises(ConfigurationError, match="does not accept colour"):
        best.invoke(QUESTION, colour="red")


@pytest.mark.parametrize(
    ("kind", "fields", "options"),
    [
        # The card's beam search, a greedy card, a greedy model, a beam search, a greedy call.
        (LINCE, {}, {}),
        (LLAMA, {}, {}),
        (AIRA, {"temperature": 0}, {}),
        (AIRA, {"num_beams": 2}, {}),
        (AIRA, {}, {"temperature": 0}),
    ],
)
def test_a_model_that_would_not_sample_is_made_to(kind: str, fields: Any, options: Any) -> None:
    llm = chat(kind, seed=5, **fields)
    reply = BestOf(llm=llm, n=4).invoke(QUESTION, **options)
    assert candidate_texts(reply) == [one.text for one in direct(llm, 4, temperature=0.7, num_beams=1)]
    assert len(set(candidate_texts(reply))) > 1
    # One answer needs no sampling.
    assert BestOf(llm=llm, n=1).invoke(QUESTION, **options).text == llm.invoke(QUESTION, **options).text


def test_the_weights_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lince_rag.engines.generation import transformers as engine

    loaded = []
    load = engine.load_model
    monkeypatch.setattr(engine, "load_model", lambda *given: loaded.append(given) or load(*given))
    # A window of its own, so that no other test has this engine.
    checkpoint = shared_checkpoint(AIRA, context_window=256)
    best = BestOf(llm=ChatLince(**checkpoint.chat_fields, max_tokens=4), n=2)
    best.invoke(QUESTION)
    best.invoke(QUESTION)
    assert len(loaded) == 1


def test_the_embedded_engine_is_asked_once() -> None:
    best = BestOf(llm=ChatLince(), n=4)
    reply = best.invoke(QUESTION, documents=DOCUMENTS)
    assert (reply.text, len(candidates(reply))) == ("O contrato de aluguel vence em maio.", 1)
    assert candidates(reply)[0]["rank_score"] == 1.0
    nothing = best.invoke("Qual é a altura do pico mais alto da Noruega?", documents=DOCUMENTS)
    assert nothing.response_metadata["abstained"] is True
    assert "guardrail" not in nothing.response_metadata


def test_a_chain_finds_the_native_model() -> None:
    llm, other = chat(), fake("a")
    best = BestOf(llm=llm)
    for native in (llm, best, llm.bind(seed=1), best.with_retry()):
        assert native_model(native) is llm
    for foreign in (other, BestOf(llm=other), other.bind(seed=1)):
        assert native_model(foreign) is None
    assert best.get_num_tokens(QUESTION) == llm.get_num_tokens(QUESTION)
    question = [HumanMessage(QUESTION)]
    assert best.get_num_tokens_from_messages(question) == llm.get_num_tokens_from_messages(question)
    assert best.get_token_ids(QUESTION) == llm.get_token_ids(QUESTION)


@pytest.mark.parametrize("native", [True, False])
def test_a_chain_packs_for_the_native_model(native: bool) -> None:
    llm = chat() if native else fake("a", "b")
    documents = [Document("O contrato de aluguel vence em maio. " * 300, metadata={"source": "longo.txt"})]
    calls = []

    class Noting(BestOf):
        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
            calls.append((messages, kwargs))
            return super()._generate(messages, *args, **kwargs)

    answer = create_rag_chain(Noting(llm=llm, n=2), RunnableLambda(lambda _: documents)).invoke(QUESTION)
    ((messages, options),) = calls
    # The prompt that was measured is the one that the model reads.
    measured = options.pop("prompt", None)
    assert measured == (llm.render(messages, answer.documents) if native else None)
    assert options == {"documents": answer.documents, "language": "pt", "stop": None}
    assert answer.shortened == documents
    if native:
        prompt = llm.count_prompt_tokens(messages, answer.documents)
        assert llm.context_window - llm.answer_tokens - 50 < prompt <= llm.context_window - llm.answer_tokens
    else:
        assert answer.documents[0].page_content in messages[-1].text


def test_a_cache_does_not_make_the_candidates_one(rewards: SequenceClassifier) -> None:
    set_llm_cache(InMemoryCache())
    try:
        best = BestOf(llm=chat(), n=3, ranking=rewards)
        reply = best.invoke(QUESTION)
        assert len(set(candidate_texts(reply))) == 3
        # The answer itself is cached, for the same question and the same documents.
        assert candidates(best.invoke(QUESTION)) == candidates(reply)
        assert candidates(BestOf(llm=chat(), n=2, ranking=rewards).invoke(QUESTION)) != candidates(reply)
        other = fake(*REPLIES)
        other.invoke(QUESTION)
        assert len(set(candidate_texts(BestOf(llm=other, n=3).invoke(QUESTION)))) == 3
    finally:
        set_llm_cache(None)


# ------------------------------------------------------------------------------------------------- any other model


def test_any_other_model_is_called_n_times() -> None:
    scorer = Lengths()
    best = BestOf(llm=fake(*REPLIES), n=3, ranking=scorer)
    reply = best.invoke([SystemMessage("Responda."), HumanMessage("Olá"), AIMessage("Oi"), HumanMessage(QUESTION)])
    assert reply.text == max(REPLIES[:3], key=len)
    assert sorted(candidate_texts(reply)) == sorted(REPLIES[:3])
    assert sorted(scorer.seen) == sorted((QUESTION, text) for text in REPLIES[:3])
    assert reply.usage_metadata is None
    assert reply.response_metadata["model_name"] == "best-of-3"


def test_usage_of_other_models_is_added_up() -> None:
    def reply(text: str, tokens: int) -> AIMessage:
        usage = {"input_tokens": 10, "output_tokens": tokens, "total_tokens": 10 + tokens}
        return AIMessage(text, usage_metadata=usage, response_metadata={"model_name": "other"})

    with get_usage_metadata_callback() as noted:
        best = BestOf(llm=fake(reply("a", 1), reply("b", 2), reply("c", 3)), n=3).invoke(QUESTION)
    total = {"input_tokens": 30, "output_tokens": 6, "total_tokens": 36}
    assert best.usage_metadata == total
    assert noted.usage_metadata == {"other": total, "best-of-3/other": total}


def test_documents_rank_and_do_not_reach_other_models() -> None:
    best = BestOf(llm=fake(*REPLIES), n=5)
    reply = best.invoke(QUESTION, documents=DOCUMENTS, language="pt")
    shares = dict(zip(REPLIES, SHARES, strict=True))
    assert {one["text"]: one["rank_score"] for one in candidates(reply)} == shares
    # Of the three that are supported whole, those with two sentences have more citations, and one comes first.
    made = candidate_texts(reply)
    assert reply.text == min(REPLIES[3:], key=made.index)
    found = attribute(reply.text, DOCUMENTS, "pt")
    assert (len(found.citations), found.grounded) == (2, True)


@pytest.mark.parametrize("replies", [["foo", "bar", "baz"], ["", "", ""]])
def test_of_equals_the_first_is_taken(replies: list[str], caplog: pytest.LogCaptureFixture) -> None:
    reply = BestOf(llm=fake(*replies), n=3).invoke(QUESTION)
    assert reply.text == candidate_texts(reply)[0]
    assert [one["rank_score"] for one in candidates(reply)] == [0.0] * 3
    assert "no documents to rank 3 answers by" in caplog.text


class Settings(BaseChatModel):
    """Another package's model, which says what it was asked with; its calls meet each other."""

    temperature: float | None = None
    seed: int | None = None
    meeting: Any = None

    @property
    def _llm_type(self) -> str:
        return "settings"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(repr(sorted(kwargs.items()))))])

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        if self.meeting is not None:
            await asyncio.wait_for(self.meeting.wait(), 10)
        return self._generate(*args, **kwargs)


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        ({}, {}, [[], [], []]),
        ({"temperature": 0.9}, {}, [[], [], []]),
        ({"temperature": 0.0}, {}, [[("temperature", 0.7)]] * 3),
        ({}, {"temperature": 0}, [[("temperature", 0.7)]] * 3),
        ({"seed": 7}, {}, [[("seed", 7)], [("seed", 8)], [("seed", 9)]]),
        ({"seed": 7}, {"seed": 1}, [[("seed", 1)], [("seed", 2)], [("seed", 3)]]),
    ],
)
def test_other_models_are_made_to_differ(fields: Any, options: Any, expected: list[Any]) -> None:
    reply = BestOf(llm=Settings(**fields), n=3).invoke(QUESTION, **options)
    assert candidate_texts(reply) == [repr(one) for one in expected]


def test_one_failure_is_the_answers_failure() -> None:
    class Broken(Settings):
        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            raise RuntimeError("the model broke")

    with pytest.raises(RuntimeError, match="the model broke"):
        BestOf(llm=Broken(), n=3).invoke(QUESTION)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"ranking": "best"}, {"guardrail": "toxicity"}, {"colour": "red"}])
def test_wrong_values_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        BestOf(llm=fake("a"), **wrong)


# --------------------------------------------------------------------------------------------------- the guardrail


def test_the_guardrail_drops_before_the_ranking(guardrail: SequenceClassifier) -> None:
    scorer = Lengths()
    best = BestOf(llm=fake(RUDE, REPLIES[0], CURT), n=3, ranking=scorer, guardrail=guardrail)
    reply = best.invoke(QUESTION)
    assert reply.text == REPLIES[0]
    assert scorer.seen == [(QUESTION, REPLIES[0])]
    found = {one["text"]: one for one in candidates(reply)}
    verdicts = dict(zip(found, guardrail.score(list(found)), strict=True))
    assert {text: one["guardrail_score"] for text, one in found.items()} == pytest.approx(verdicts, abs=1e-4)
    assert found[RUDE]["guardrail_score"] < 0 < found[REPLIES[0]]["guardrail_score"]
    assert [found[text]["rank_score"] for text in (RUDE, CURT, REPLIES[0])] == [None, None, len(REPLIES[0])]
    assert not reply.response_metadata.get("abstained")


def test_the_threshold_is_the_callers_or_the_guardrails(guardrail: SequenceClassifier) -> None:
    def kept(threshold: float | None) -> int:
        best = BestOf(llm=fake(RUDE, REPLIES[0]), n=2, guardrail=guardrail, guardrail_threshold=threshold)
        return sum(one["rank_score"] is not None for one in candidates(best.invoke(QUESTION)))

    assert [kept(threshold) for threshold in (None, 0.0, -1000.0, 1000.0)] == [1, 1, 2, 0]


def test_a_probability_has_a_boundary_of_its_own(tmp_path: Any) -> None:
    examples = [(RUDE, 0), (CURT, 0), *((text, 1) for text in REPLIES)]
    folder = save_tiny_classifier(tmp_path / "toxic", examples, labels=("toxic", "neutral"))
    toxicity = SequenceClassifier(folder, label="toxic", inverted=True)
    assert isinstance(toxicity, TextScorer)
    reply = BestOf(llm=fake(RUDE, REPLIES[0]), n=2, guardrail=toxicity).invoke(QUESTION)
    assert reply.text == REPLIES[0]
    assert all(0 <= one["guardrail_score"] <= 1 for one in candidates(reply))


@pytest.mark.parametrize("language", LANGUAGES)
def test_when_all_are_dropped_it_abstains(guardrail: SequenceClassifier, language: Any) -> None:
    scorer = Lengths()
    best = BestOf(llm=fake(RUDE, CURT), n=2, ranking=scorer, guardrail=guardrail)
    reply = best.invoke(QUESTION, language=language)
    assert reply.text == wording("abstention", language)
    assert reply.response_metadata["abstained"] is True
    assert reply.response_metadata["guardrail"] == "all candidates"
    assert sorted(candidate_texts(reply)) == sorted([RUDE, CURT])
    assert [one["rank_score"] for one in candidates(reply)] == [None, None]
    assert scorer.seen == []


def test_real_answers_are_guarded_and_paid_for(rewards: SequenceClassifier) -> None:
    llm = chat(seed=7)
    sampled = direct(llm, 4)
    scores = rewards.score([one.text for one in sampled])
    between = sum(sorted(scores)[1:3]) / 2
    reply = BestOf(llm=llm, n=4, guardrail=rewards, guardrail_threshold=between).invoke(QUESTION)
    kept = [one.text for one, score in zip(sampled, scores, strict=True) if score > between]
    assert len(kept) == 2
    assert [one["text"] for one in candidates(reply) if one["rank_score"] is not None] == kept
    assert reply.text == kept[0]
    nothing = BestOf(llm=llm, n=4, guardrail=rewards, guardrail_threshold=1000.0).invoke(QUESTION)
    assert nothing.text == wording("abstention", "pt")
    assert counted(nothing.usage_metadata) == counted(reply.usage_metadata)


# ---------------------------------------------------------------------------- callbacks, streams, async and chains


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("native", "calls"), [(True, 1), (False, 3)])
async def test_callbacks_see_the_inner_calls(native: bool, calls: int, asynchronous: bool) -> None:
    recorder = Recorder()
    best = BestOf(llm=chat() if native else fake(*REPLIES), n=3)
    config: Any = {"callbacks": [recorder], "tags": ["mine"]}
    reply = await best.ainvoke(QUESTION, config) if asynchronous else best.invoke(QUESTION, config)
    (outer, parent, _), *inner = recorder.started
    assert parent is None
    assert [one[1] for one in inner] == [outer] * calls
    assert all({"mine", "nostream"} <= set(tags) for _, _, tags in inner)
    assert {one[0] for one in recorder.started} == set(recorder.ended)
    assert str(outer) in reply.id


async def test_a_stream_is_one_chunk_and_shows_no_candidate() -> None:
    recorder = Recorder()
    best = BestOf(llm=chat(seed=7, streaming=True), n=3)
    expected = best.invoke(QUESTION)
    assert [one.text for one in best.stream(QUESTION, {"callbacks": [recorder]})] == [expected.text]
    assert [one.text async for one in best.astream(QUESTION, {"callbacks": [recorder]})] == [expected.text]
    events = [event async for event in best.astream_events(QUESTION, version="v2")]
    streamed = [event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream"]
    assert set(streamed) <= {expected.text}
    assert recorder.tokens == []


async def test_async_gives_the_same(rewards: SequenceClassifier) -> None:
    best = BestOf(llm=chat(seed=7), n=3, ranking=rewards)
    assert candidates(await best.ainvoke(QUESTION)) == candidates(best.invoke(QUESTION))


async def test_async_calls_of_other_models_run_together() -> None:
    reply = await BestOf(llm=Settings(seed=1, meeting=Barrier(3)), n=3).ainvoke(QUESTION)
    assert candidate_texts(reply) == [repr([("seed", seed)]) for seed in (1, 2, 3)]


class Barrier:
    """Lets its visitors go on when enough of them are there (``asyncio.Barrier`` wants a running loop)."""

    def __init__(self, wanted: int) -> None:
        self.missing = wanted
        self.full = asyncio.Event()

    async def wait(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.full.set()
        await self.full.wait()


@contextmanager
def opened(folder: Any) -> Iterator[Index]:
    with Index.open(folder) as index:
        index.ingest(DOCUMENTS)
        yield index


async def test_a_chain_takes_it_for_a_model(tmp_path: Any, rewards: SequenceClassifier) -> None:
    with opened(tmp_path / "index") as index:
        chain = create_rag_chain(BestOf(llm=chat(seed=7), n=3, ranking=rewards), index.as_retriever(k=2))
        answer = chain.invoke(QUESTION)
        assert answer.text
        assert answer.usage["output_tokens"] > MAX_TOKENS
        *pieces, last = chain.stream(QUESTION)
        assert isinstance(last, Answer)
        assert "".join(pieces).strip() == last.text == answer.text == (await chain.ainvoke(QUESTION)).text


def test_a_chain_gives_the_best_supported_answer_of_any_model(
    tmp_path: Any, guardrail: SequenceClassifier
) -> None:
    with opened(tmp_path / "index") as index:
        dropped = BestOf(llm=fake(RUDE, CURT), n=2, guardrail=guardrail)
        answer = create_rag_chain(dropped, index.as_retriever(k=2)).invoke(QUESTION)
        assert (answer.text, answer.abstained, answer.citations) == (wording("abstention", "pt"), True, [])
        safe = BestOf(llm=fake(RUDE, REPLIES[1]), n=2, guardrail=guardrail)
        answer = create_rag_chain(safe, index.as_retriever(k=2)).invoke(QUESTION)
        assert (answer.text, answer.grounded) == (REPLIES[1], True)
