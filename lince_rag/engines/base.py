"""What every engine is: something that turns a prompt into text, and the settings it generates with."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from lince_rag.errors import ContextWindowError, EngineError
from lince_rag.prompting.registry import ModelSpec
from lince_rag.prompting.templates import Prompt
from lince_rag.text.confidence import EVEN_CONFIDENCE
from lince_rag.text.language import Language

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class GenerationSettings:
    """How to generate; ``None`` leaves a choice to the model's own defaults.

    Attributes:
        max_tokens: Tokens of answer at most.
        temperature: Sampling temperature; 0 decodes greedily.
        top_p: Nucleus of probability to sample from, 0 to 1.
        top_k: Most probable tokens to sample from.
        num_beams: Beams of a beam search.
        repetition_penalty: Divides the scores of tokens that were used already.
        stop: Texts that end the answer and are not part of it.
        seed: Same seed, same text.
        language: The reader's language, where the engine speaks in its own words; ``None`` takes the question's.
        minimum_confidence: Support of the documents (0 to 1) below which an engine that measures it abstains.
        json_schema: A JSON schema, as JSON: the answer is JSON that meets it. Stop texts do not cut it, but do not
            occur in its free strings.
        text_allowed: Whether the answer to a JSON schema of objects may also be text, which stop texts cut; the
            answer is JSON exactly where it begins with ``{``.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    language: Language | None = None
    minimum_confidence: float = EVEN_CONFIDENCE
    json_schema: str | None = None
    text_allowed: bool = False


@dataclass(frozen=True)
class Generation:
    """A stretch of an answer: the whole of it, or one step of a stream.

    Attributes:
        text: The text.
        input_tokens: Length of the prompt in tokens.
        output_tokens: Length of this stretch in tokens.
        finish_reason: Why the answer ended, ``None`` while it goes on.
        abstained: Whether the engine says that the documents do not hold the answer.
    """

    text: str
    input_tokens: int
    output_tokens: int
    finish_reason: FinishReason | None = None
    abstained: bool = False


def check_window(model: str, prompt_tokens: int, context_window: int) -> None:
    """Check that a prompt leaves room for at least one token of answer.

    Args:
        model: The model's name.
        prompt_tokens: Length of the prompt.
        context_window: Tokens of prompt and answer together.

    Raises:
        ContextWindowError: It does not.
    """
    if prompt_tokens >= context_window:
        raise ContextWindowError(
            f"The prompt has {prompt_tokens} tokens and the window of {model!r} holds {context_window}.",
            hint="Give fewer or shorter documents, tools or turns.",
        )


class Engine(ABC):
    """Turns prompts into text.

    Attributes:
        context_window: Tokens of prompt and answer together that fit.
        quotes: Whether its answers are text of the documents themselves, word for word; others may repeat it as
            it stands in the prompt, with its markers broken, or say something else.
        constrains: Whether it can hold an answer to a JSON schema.
    """

    context_window: int
    quotes: bool = False
    constrains: bool = False

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, without those that a tokenizer adds around it."""

    def count_prompt_tokens(self, prompt: Prompt) -> int:
        """Count the tokens of a prompt as the model reads it."""
        return self.count_tokens(prompt.text)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids that the model reads.

        Raises:
            EngineError: This engine reads text, not ids.
        """
        raise EngineError(
            f"{type(self).__name__} has no tokenizer.", hint="Only a model with weights reads token ids."
        )

    @abstractmethod
    def stream(self, prompt: Prompt, settings: GenerationSettings) -> Iterator[Generation]:
        """Generate step by step; the last step carries the ``finish_reason``."""

    def generate_batch(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, candidates: int = 1
    ) -> list[list[Generation]]:
        """Generate answers to several prompts; an engine that can do so runs them together.

        Args:
            prompts: The prompts.
            settings: How to generate.
            candidates: Answers a prompt.

        Returns:
            The candidates of each prompt.

        Raises:
            EngineError: The engine cannot generate.
        """
        return [[self.generate(prompt, settings) for _ in range(candidates)] for prompt in prompts]

    def generate(self, prompt: Prompt, settings: GenerationSettings) -> Generation:
        """Generate the whole answer.

        Args:
            prompt: The prompt.
            settings: How to generate.

        Returns:
            The answer.

        Raises:
            EngineError: The engine cannot generate.
        """
        steps = list(self.stream(prompt, settings))
        return Generation(
            text="".join(step.text for step in steps),
            input_tokens=steps[-1].input_tokens,
            output_tokens=sum(step.output_tokens for step in steps),
            finish_reason=steps[-1].finish_reason,
            abstained=any(step.abstained for step in steps),
        )


# Tokens of answer when neither the caller nor the model's card says: the cards' own limits are 128 to 256.
DEFAULT_ANSWER_TOKENS: Final = 256

_SAMPLING: Final = ("temperature", "top_p", "top_k")


def generation_options(spec: ModelSpec, settings: GenerationSettings) -> dict[str, Any]:
    """Merge a call's settings into the model card's.

    ``num_beams`` asks for a beam search; ``temperature=0`` for a greedy one; a temperature, ``top_p`` or
    ``top_k`` for sampling; nothing for what the card does.

    Args:
        spec: The model, with its card's settings.
        settings: The call's settings.

    Returns:
        Keyword arguments of transformers' ``GenerationConfig``, with ``max_new_tokens``, ``num_beams`` and
        ``do_sample`` always there.
    """
    options: dict[str, Any] = {
        "max_new_tokens": DEFAULT_ANSWER_TOKENS, "num_beams": 1, "do_sample": False, **spec.generation
    }  # fmt: skip
    if settings.max_tokens is not None:
        options["max_new_tokens"] = settings.max_tokens
    elif settings.json_schema is not None:
        # The cards' limits are for text; a call of a tool takes a third of them before it says anything.
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
    """Return options that differ in nothing but that there is one beam."""
    return {name: value for name, value in options.items() if name != "early_stopping"} | {"num_beams": 1}


def is_sampling(options: dict[str, Any]) -> bool:
    """Tell whether these options draw at random."""
    return bool(options["do_sample"])


def is_beam_search(options: dict[str, Any]) -> bool:
    """Tell whether these options search with several beams."""
    return int(options["num_beams"]) > 1
