"""What every engine is: something that turns a prompt into text, and the settings it generates with."""

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from threading import Event
from typing import Any, Final, Literal

from lince_rag.errors import ConfigurationError, ContextWindowError, EngineError, check_process, require
from lince_rag.prompting.registry import ModelSpec
from lince_rag.prompting.templates import Prompt
from lince_rag.text.evidence import MINIMUM_CONFIDENCE
from lince_rag.text.language import Language

FinishReason = Literal["stop", "length"]

# Maximum answer length in tokens if neither the caller nor the model's card sets one; the cards set 128 to 256.
DEFAULT_ANSWER_TOKENS: Final = 256

# The most answers at once if the caller does not say it.
DEFAULT_BATCH_SIZE: Final = 32

# By library, the process that used it first.
_first_processes: dict[str, int] = {}

_SAMPLING: Final = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class GenerationSettings:
    """How to generate; ``None`` leaves a choice to the model's card."""

    max_tokens: int | None = None
    # 0 decodes greedily.
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int | None = None
    # Divides the scores of tokens that already occurred.
    repetition_penalty: float | None = None
    # Texts that end the answer and are not part of it.
    stop: tuple[str, ...] = ()
    seed: int | None = None
    # Whether to say how likely each token of the answer was, and how many of the likeliest to list beside it.
    logprobs: bool | None = None
    top_logprobs: int | None = None
    # The reader's language, for an engine with messages of its own; ``None`` uses the question's.
    language: Language | None = None
    # An engine that measures the confidence of the documents (0 to 1) abstains below this.
    minimum_confidence: float = MINIMUM_CONFIDENCE
    # A JSON schema, as JSON, that the answer must match. Stop texts do not cut the answer, but its free strings
    # cannot contain them.
    json_schema: str | None = None
    # With a JSON schema of objects, the answer may also be text, which stop texts do cut; it is JSON if and only
    # if it begins with ``{``.
    text_allowed: bool = False
    # The most answers that an engine in this process computes at once.
    batch_size: int = DEFAULT_BATCH_SIZE
    # The most bytes of keys and values that transformers keeps of what was read, for prompts that begin with it;
    # ``None`` leaves it to the engine.
    prefix_cache_bytes: int | None = None
    # Whether transformers guesses that an answer quotes its prompt; what it says is the same.
    prompt_lookup: bool = True
    # Set from another thread: the generation stops at its next token.
    cancelled: Event | None = field(default=None, compare=False, repr=False)

    @property
    def alternatives(self) -> int | None:
        """How many of the likeliest tokens to list beside each one; ``None`` if nothing is asked of them."""
        if self.top_logprobs and not self.logprobs:
            raise ConfigurationError(
                f"top_logprobs={self.top_logprobs} needs logprobs=True.", hint="Set both, or leave both out."
            )
        return (self.top_logprobs or 0) if self.logprobs else None


@dataclass(frozen=True)
class Generation:
    """A whole answer, or one step of a stream."""

    text: str
    # Length of the prompt.
    input_tokens: int
    # Length of this answer or step.
    output_tokens: int
    # ``None`` until the answer ends.
    finish_reason: FinishReason | None = None
    # Whether the engine says that the documents do not hold the answer.
    abstained: bool = False
    # How many tokens of the prompt were not computed for this answer; ``None`` if the engine cannot say it.
    cached_tokens: int | None = None
    # How likely each of its tokens was, if that was asked for: the objects in ``logprobs.content`` of OpenAI's
    # interface for chats (https://platform.openai.com/docs/api-reference/chat/object).
    logprobs: tuple[dict[str, Any], ...] | None = None


class Engine(ABC):
    """Turns prompts into text."""

    # Maximum tokens of prompt and answer together.
    context_window: int
    # Whether answers quote the documents word for word. Other engines may repeat the text of the prompt, in which
    # the markers of the documents are broken, or write something else.
    quotes: bool = False

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, without those that a tokenizer adds around it."""

    def token_ids(self, text: str) -> list[int]:
        """Return the tokens that ``count_tokens`` counts; an engine without a tokenizer raises ``EngineError``."""
        raise self._without_tokenizer()

    def measure(self, prompt: Prompt) -> Prompt:
        """Return the prompt with its length in tokens, as the model reads it; a measured prompt as it is."""
        return prompt if prompt.length is not None else replace(prompt, length=self.count_tokens(prompt.text))

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids that the model reads; an engine without a tokenizer raises ``EngineError``."""
        raise self._without_tokenizer()

    def _without_tokenizer(self) -> EngineError:
        return EngineError(
            f"{type(self).__name__} has no tokenizer.", hint="Choose a model with weights to get token ids."
        )

    @abstractmethod
    def stream(self, prompt: Prompt, settings: GenerationSettings) -> Iterator[Generation]:
        """Generate step by step; only the last step has a ``finish_reason``."""

    def generate_batch(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, candidates: int = 1
    ) -> list[list[Generation]]:
        """Return a number of candidate answers to each prompt."""
        return [[self.generate(prompt, settings) for _ in range(candidates)] for prompt in prompts]

    async def agenerate_batch(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, candidates: int = 1
    ) -> list[list[Generation]]:
        """Generate in a thread; if the caller is cancelled, the generation stops at its next token."""
        cancelled = Event()
        settings = replace(settings, cancelled=cancelled)
        try:
            return await asyncio.to_thread(self.generate_batch, prompts, settings, candidates)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def astream(self, prompt: Prompt, settings: GenerationSettings) -> AsyncGenerator[Generation, None]:
        """Stream from a thread; if the caller is cancelled or stops reading, so does the generation."""
        cancelled = Event()
        steps = self.stream(prompt, replace(settings, cancelled=cancelled))
        try:
            while (step := await asyncio.to_thread(next, steps, None)) is not None:
                yield step
        finally:
            cancelled.set()

    def generate(self, prompt: Prompt, settings: GenerationSettings) -> Generation:
        """Generate the whole answer."""
        return join_steps(list(self.stream(prompt, settings)))


def check_fork(library: str) -> None:
    """Raise ``ForkError`` in a fork of the process that used a library first.

    Its threads are gone there, and the library would wait for them forever.
    """
    check_process(_first_processes.setdefault(library, os.getpid()), f"{library} was first used")


def check_torch() -> None:
    """Raise ``ForkError`` where PyTorch would wait for the threads of another process."""
    require("models", "torch")
    import torch

    if torch.get_num_threads() > 1:
        check_fork("PyTorch, with several threads,")


def join_steps(steps: Sequence[Generation]) -> Generation:
    """Join all steps of a stream."""
    logprobs = [step.logprobs for step in steps if step.logprobs is not None]
    return Generation(
        text="".join(step.text for step in steps),
        input_tokens=steps[-1].input_tokens,
        cached_tokens=steps[-1].cached_tokens,
        output_tokens=sum(step.output_tokens for step in steps),
        finish_reason=steps[-1].finish_reason,
        abstained=any(step.abstained for step in steps),
        logprobs=tuple(chain.from_iterable(logprobs)) if logprobs else None,
    )


def check_window(model: str, prompt_tokens: int, context_window: int) -> None:
    """Check that a prompt leaves room for at least one token of answer."""
    if prompt_tokens >= context_window:
        raise ContextWindowError(
            f"The prompt has {prompt_tokens} tokens and the context window of {model!r} only {context_window}.",
            hint="Give fewer or shorter documents, tools or turns.",
        )


def check_candidates(options: dict[str, Any], candidates: int) -> None:
    """Check that a search without sampling has as many different answers as are asked for."""
    beams = options["num_beams"]
    if candidates > beams and not is_sampling(options):
        raise ConfigurationError(
            f"A search with num_beams={beams} cannot return n={candidates} answers.",
            hint="Set a temperature above 0, or num_beams to at least n.",
        )


def generation_options(spec: ModelSpec, settings: GenerationSettings) -> dict[str, Any]:
    """Merge a call's settings into the card's, as keyword arguments of transformers' ``GenerationConfig``.

    ``temperature=0`` selects greedy search, or a beam search if ``num_beams`` is set, too. Another temperature,
    ``top_p`` or ``top_k`` selects sampling, and ``num_beams`` alone a beam search. Otherwise the card decides. The
    result always has ``max_new_tokens``, ``num_beams`` and ``do_sample``.
    """
    options: dict[str, Any] = {
        "max_new_tokens": DEFAULT_ANSWER_TOKENS, "num_beams": 1, "do_sample": False, **spec.generation
    }  # fmt: skip
    if settings.max_tokens is not None:
        options["max_new_tokens"] = settings.max_tokens
    elif settings.json_schema is not None:
        # The cards' limits are for text; the fixed parts of a tool call alone take a third of them.
        options["max_new_tokens"] = max(options["max_new_tokens"], DEFAULT_ANSWER_TOKENS)
    if settings.repetition_penalty is not None:
        options["repetition_penalty"] = settings.repetition_penalty
    asked = {name: value for name in _SAMPLING if (value := getattr(settings, name)) is not None}
    if settings.temperature == 0:
        options |= {"do_sample": False, "num_beams": settings.num_beams or 1}
    elif asked:
        options |= {"do_sample": True, "num_beams": settings.num_beams or 1, **asked}
    elif settings.num_beams is not None:
        options |= {"do_sample": False, "num_beams": settings.num_beams}
    if not options["do_sample"]:
        for name in _SAMPLING:
            options.pop(name, None)
    if options["num_beams"] == 1:
        options.pop("early_stopping", None)
    return options


def without_beams(options: dict[str, Any]) -> dict[str, Any]:
    """Return the same options with a single beam."""
    return {name: value for name, value in options.items() if name != "early_stopping"} | {"num_beams": 1}


def is_sampling(options: dict[str, Any]) -> bool:
    """Return whether these options sample at random."""
    return bool(options["do_sample"])


def is_beam_search(options: dict[str, Any]) -> bool:
    """Return whether these options search with several beams."""
    return int(options["num_beams"]) > 1
