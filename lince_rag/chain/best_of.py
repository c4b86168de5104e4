"""BestOf: sample several candidate answers, drop those that a guardrail rejects, and choose the best."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final, Literal, Protocol, TypeVar, runtime_checkable

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.ai import add_usage
from langchain_core.outputs import ChatGeneration, ChatResult, LLMResult
from langchain_core.runnables.config import get_executor_for_config, run_in_executor
from pydantic import ConfigDict, Field

from lince_rag.chain.grounding import attribute
from lince_rag.engines import GenerationSettings
from lince_rag.engines.base import generation_options, is_beam_search, is_sampling
from lince_rag.engines.extractive import EXTRACTIVE
from lince_rag.models.call_settings import CALL_SETTINGS
from lince_rag.models.chat_model import ChatLince
from lince_rag.text.language import Language, detect_language, wording

logger = logging.getLogger(__name__)

# Temperature for a model that would give the same answer every time: what the card of the registry's sampling
# model says.
SAMPLING_TEMPERATURE: Final = 0.7

# LangGraph shows no messages of a run with this tag: candidates are not for the reader.
HIDDEN: Final = "nostream"

_Manager = TypeVar("_Manager", CallbackManager, AsyncCallbackManager)


@runtime_checkable
class PairScorer(Protocol):
    """Ranks answers: a reward model, or any LangChain cross-encoder."""

    def score(self, pairs: list[tuple[str, str]], /) -> list[float]:
        """Score (instruction, answer) pairs; more is better."""


@runtime_checkable
class TextScorer(Protocol):
    """A guardrail; its ``boundary``, if it has one, is the lowest score that passes."""

    def score(self, texts: list[str], /) -> list[float]:
        """Score answers; more is better."""


Ranking = Literal["grounding"] | PairScorer


@dataclass(frozen=True)
class _Task:
    """What answers are ranked against."""

    question: str
    documents: Sequence[Document]
    language: Language


class BestOf(BaseChatModel):
    """A chat model that asks another one several times and returns its best answer.

    A ``ChatLince`` samples the candidates in one batch and reads ``documents`` and ``language``. Any other chat
    model is called ``n`` times, each run visible to the callbacks, and ``documents`` are only used to rank. A
    model that would not sample (``temperature=0``, or a beam search, the default of some cards) samples at a
    temperature of 0.7 without beams. The embedded engine always gives the same answer, so it is asked once. The
    same ``seed`` gives the same candidates; another package's model gets ``seed``, ``seed + 1`` … for them.

    The answer's ``response_metadata`` holds ``candidates``: a dict for each, in the order they were made, with
    ``text``, ``rank_score`` (``None`` if the guardrail dropped it) and ``guardrail_score`` (``None`` without a
    guardrail). Its ``usage_metadata`` is the sum over the candidates. A callback that adds up usage by model finds
    the inner runs under the model's own name, and this sum under ``best-of-N/NAME``. Nothing can be streamed
    before the ranking, so a stream is one chunk.

    Args:
        llm: The model that answers.
        n: Number of candidates, at least 1.
        ranking: ``"grounding"``: the share of an answer's sentences that the documents support; between equal
            shares the answer with more citations wins, then the first. Or a reward model, which scores (last human
            message, answer) pairs, more is better.
        guardrail: Scores each candidate before the ranking; those below the threshold are dropped. If all are
            dropped, the answer is the abstention in the reader's language, ``response_metadata["abstained"]`` is
            true and ``response_metadata["guardrail"]`` is ``"all candidates"``.
        guardrail_threshold: The lowest score that passes; ``None`` takes the guardrail's ``boundary`` (of a
            ``SequenceClassifier`` 0 for a logit, 0.5 for a probability), or 0 if it has none. The demo of Aira's
            authors is stricter with its logits: 5.

    Raises:
        ValidationError: A value is of the wrong type or out of range, or there is no such setting (pydantic's).

    Example:
        >>> from lince_rag import BestOf, ChatLince, SequenceClassifier
        >>> rewards = SequenceClassifier("nicholasKluge/RewardModelPT", segments=False)
        >>> guardrail = SequenceClassifier("nicholasKluge/ToxicityModelPT", segments=False)
        >>> best = BestOf(llm=ChatLince(model="org/chat-model"), n=4, ranking=rewards, guardrail=guardrail)
        >>> best.invoke("O que é um átomo?").response_metadata["candidates"]
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    llm: BaseChatModel
    n: int = Field(default=4, ge=1)
    ranking: Ranking = "grounding"
    guardrail: TextScorer | None = None
    guardrail_threshold: float | None = None

    @property
    def _llm_type(self) -> str:
        return "best-of"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            "llm": {"type": self.llm._llm_type, **self.llm._identifying_params},
            "n": self.n,
            "ranking": repr(self.ranking),
            "guardrail": repr(self.guardrail),
            "guardrail_threshold": self.guardrail_threshold,
        }

    def get_num_tokens(self, text: str) -> int:
        """Count the tokens of a text the way ``llm`` does.

        Args:
            text: Any text.

        Returns:
            The number of tokens.
        """
        return self.llm.get_num_tokens(text)

    def get_token_ids(self, text: str) -> list[int]:
        """Return the tokens of a text the way ``llm`` does.

        Args:
            text: Any text.

        Returns:
            The token ids.
        """
        return self.llm.get_token_ids(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Count the tokens of a conversation the way ``llm`` does.

        Args:
            messages: The messages.
            tools: Tools that the prompt describes.

        Returns:
            The number of tokens.
        """
        return self.llm.get_num_tokens_from_messages(messages, tools)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        documents: Sequence[Document] = (),
        language: Language | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        llm, calls = self._plan(documents, language, kwargs)
        callbacks = _inner_callbacks(CallbackManager, run_manager)

        def call(options: dict[str, Any]) -> LLMResult:
            return llm.generate([messages], stop, callbacks, tags=[HIDDEN], **options)

        if len(calls) == 1:
            # In this thread, so that Ctrl-C stops it at once.
            return self._choose(_task(messages, documents, language), [call(calls[0])])
        with get_executor_for_config(None) as executor:
            results = list(executor.map(call, calls))
        return self._choose(_task(messages, documents, language), results)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        documents: Sequence[Document] = (),
        language: Language | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        llm, calls = self._plan(documents, language, kwargs)
        callbacks = _inner_callbacks(AsyncCallbackManager, run_manager)
        results = await asyncio.gather(
            *(llm.agenerate([messages], stop, callbacks, tags=[HIDDEN], **options) for options in calls)
        )
        # Classifiers compute for a while.
        task = _task(messages, documents, language)
        return await run_in_executor(None, self._choose, task, list(results))

    def _plan(
        self, documents: Sequence[Document], language: Language | None, options: dict[str, Any]
    ) -> tuple[BaseChatModel, list[dict[str, Any]]]:
        """Return the model to ask, and the keywords of each call."""
        # A cache would give the same answer n times, and a candidate's tokens are not tokens of the answer.
        changes: dict[str, Any] = {"cache": False, "disable_streaming": True}
        if isinstance(self.llm, ChatLince):
            # The weights belong to the engine, which must outlive the copy.
            _ = self.llm.runtime
            # The embedded engine always gives the same answer.
            count = 1 if self.llm.spec.engine == EXTRACTIVE else self.n
            copy = self.llm.model_copy(update={**changes, "n": count})
            sampling = _native_sampling(copy, options)
            return copy, [{**options, **sampling, "documents": documents, "language": language}]
        calls = [_other_sampling(self.llm, options, number) if self.n > 1 else {} for number in range(self.n)]
        return self.llm.model_copy(update=changes), [{**options, **call} for call in calls]

    def _choose(self, task: _Task, results: Sequence[LLMResult]) -> ChatResult:
        """Drop and rank candidates, and make the best one the answer."""
        made = [found for result in results for found in result.generations[0]]
        candidates = [found for found in made if isinstance(found, ChatGeneration)]
        texts = [str(found.message.text) for found in candidates]
        verdicts, passing = self._guard(texts)
        ranks = dict(zip(passing, self._rank(task, [texts[at] for at in passing]), strict=True))
        if ranks:
            # Of equal candidates, max returns the first.
            answer = candidates[max(ranks, key=lambda at: ranks[at])].message
            metadata = dict(answer.response_metadata)
        else:
            answer = AIMessage(wording("abstention", task.language))
            metadata = {"abstained": True, "guardrail": "all candidates"}
        metadata["candidates"] = [
            {"text": text, "rank_score": ranks[at][0] if at in ranks else None, "guardrail_score": verdict}
            for at, (text, verdict) in enumerate(zip(texts, verdicts, strict=True))
        ]
        inner = candidates[0].message.response_metadata.get("model_name")
        metadata["model_name"] = f"best-of-{self.n}/{inner}" if inner else f"best-of-{self.n}"
        spent = [usage for found in candidates if (usage := getattr(found.message, "usage_metadata", None))]
        changes = {"response_metadata": metadata, "usage_metadata": reduce(add_usage, spent) if spent else None}
        # Without an id the message gets the id of this run, instead of the inner run's.
        return ChatResult(generations=[ChatGeneration(message=answer.model_copy(update={**changes, "id": None}))])

    def _guard(self, answers: list[str]) -> tuple[Sequence[float | None], list[int]]:
        """Return the guardrail's scores, and the positions of the answers that pass."""
        if self.guardrail is None:
            return [None] * len(answers), list(range(len(answers)))
        threshold = self.guardrail_threshold
        lowest = getattr(self.guardrail, "boundary", 0.0) if threshold is None else threshold
        scores = [float(score) for score in self.guardrail.score(answers)]
        return scores, [at for at, score in enumerate(scores) if score >= lowest]

    def _rank(self, task: _Task, answers: list[str]) -> list[tuple[float, int]]:
        """Return the score of each answer, and what decides between equal scores; more is better."""
        if not answers:
            return []
        if self.ranking != "grounding":
            pairs = [(task.question, answer) for answer in answers]
            return [(float(score), 0) for score in self.ranking.score(pairs)]
        if not task.documents and len(answers) > 1:
            logger.warning("There are no documents to rank %d answers by: the first one is taken.", len(answers))
        return [_grounding(answer, task) for answer in answers]


def _task(messages: Sequence[BaseMessage], documents: Sequence[Document], language: Language | None) -> _Task:
    human = [turn for turn in messages if isinstance(turn, HumanMessage)]
    question = str((human or messages)[-1].text)
    return _Task(question, documents, language or detect_language(question))


def _inner_callbacks(kind: type[_Manager], run_manager: Any) -> _Manager | None:
    """Make the callbacks of runs inside this one: LangChain gives them to chains and tools, not to models."""
    if run_manager is None:
        return None
    manager = kind(handlers=[], parent_run_id=run_manager.run_id)
    manager.set_handlers(run_manager.inheritable_handlers)
    manager.add_tags(run_manager.inheritable_tags)
    manager.add_metadata(run_manager.inheritable_metadata)
    return manager


def _native_sampling(llm: ChatLince, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that make a native model sample, if its own do not."""
    if llm.n == 1:
        return {}
    values = {name: options.get(name, getattr(llm, name)) for name in CALL_SETTINGS}
    search = generation_options(llm.spec, GenerationSettings(**values))
    if is_sampling(search) and not is_beam_search(search):
        return {}
    return {"num_beams": 1, "temperature": search.get("temperature", SAMPLING_TEMPERATURE)}


def _other_sampling(llm: BaseChatModel, options: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the settings that make one call of another package's model differ from its other calls."""
    changes: dict[str, Any] = {}
    if options.get("temperature", getattr(llm, "temperature", None)) == 0:
        changes["temperature"] = SAMPLING_TEMPERATURE
    if (seed := options.get("seed", getattr(llm, "seed", None))) is not None:
        changes["seed"] = seed + number
    return changes


def _grounding(answer: str, task: _Task) -> tuple[float, int]:
    """Return the share of an answer's sentences that the documents support, and the number of citations."""
    found = attribute(answer, task.documents, task.language)
    cited, sentences = len(found.citations), len(found.citations) + len(found.unsupported)
    return (cited / sentences if sentences else 0.0), cited
