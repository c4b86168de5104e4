"""What engines with a tokenizer share: native token ids, stop texts, streams, and the checks before decoding."""

import logging
import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lince_rag.engines.base import (
    Engine,
    FinishReason,
    Generation,
    GenerationSettings,
    check_candidates,
    check_window,
    generation_options,
    is_beam_search,
    without_beams,
)
from lince_rag.engines.checkpoints.files import LoadingOptions
from lince_rag.engines.checkpoints.loading import load_tokenizer
from lince_rag.engines.generation.decoding import TextAssembler, TokenQueue, assemble
from lince_rag.engines.generation.encoding import encode_prompt
from lince_rag.engines.json_schema.constraints import OBJECT_START, Constraints
from lince_rag.engines.logprobs import describe
from lince_rag.prompting.registry import ModelSpec
from lince_rag.prompting.templates import Prompt

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Request:
    """What is asked of a model: prompts as token ids, and how to answer them."""

    prompts: Sequence[Sequence[int]]
    # Keyword arguments of transformers' ``GenerationConfig``.
    options: dict[str, Any]
    settings: GenerationSettings
    # The number of answers to each prompt.
    candidates: int = 1


class PromptEngine(Engine):
    """An engine whose prompts are token ids of the model's own tokenizer."""

    def __init__(self, spec: ModelSpec, options: LoadingOptions) -> None:
        self.spec = spec
        self.options = options
        self._beam_warnings: set[str] = set()

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded without the weights."""
        return load_tokenizer(self.spec, self.options)

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, without those that the tokenizer adds around it."""
        return len(self.token_ids(text))

    def token_ids(self, text: str) -> list[int]:
        """Return the tokens that ``count_tokens`` counts."""
        # verbose: a text longer than the window is normal here and needs no warning.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def measure(self, prompt: Prompt) -> Prompt:
        """Return the prompt with its token ids and their number; a measured prompt as it is."""
        ids = self.encode(prompt)
        return replace(prompt, length=len(ids), ids=tuple(ids))

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids that the model reads."""
        if prompt.ids is not None:
            return list(prompt.ids)
        return encode_prompt(prompt, self.tokenizer, self.spec.special_tokens.get("bos_token"))

    def _options(self, settings: GenerationSettings) -> dict[str, Any]:
        options = generation_options(self.spec, settings)
        return options if settings.json_schema is None else self._with_one_beam(options, "follow a JSON schema")

    def _with_one_beam(self, options: dict[str, Any], purpose: str) -> dict[str, Any]:
        """Replace a beam search by one beam, with a warning the first time."""
        if not is_beam_search(options):
            return options
        if purpose not in self._beam_warnings:
            logger.warning("%s: a beam search cannot %s; using one beam.", self.spec.name, purpose)
            self._beam_warnings.add(purpose)
        return without_beams(options)

    def _stops(self, settings: GenerationSettings) -> tuple[tuple[str, ...], str]:
        """Return the texts that cut an answer, and the beginning of an answer that they do not cut.

        JSON is never cut; instead, its strings cannot contain a stop text.
        """
        texts = (*settings.stop, *self.spec.stop)
        if settings.json_schema is None:
            return texts, ""
        return (texts, OBJECT_START) if settings.text_allowed else ((), "")

    def _encode_checked(self, prompt: Prompt) -> list[int]:
        ids = self.encode(prompt)
        check_window(self.spec.name, len(ids), self.context_window)
        return ids


class TokenEngine(PromptEngine):
    """An engine whose answers are token ids, too: a model in this process."""

    def _options(self, settings: GenerationSettings) -> dict[str, Any]:
        if settings.alternatives is not None:
            # If the tokenizer cannot say what its tokens are, that is known before the answer.
            _ = self._constraints
        return super()._options(settings)

    def generate_batch(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, candidates: int = 1
    ) -> list[list[Generation]]:
        """Generate answers to several prompts, in batches where that changes no answer and is faster."""
        return self._answer(self._check_batch(prompts, settings, candidates))

    def _check_batch(self, prompts: Sequence[Prompt], settings: GenerationSettings, candidates: int) -> Request:
        options = self._options(settings)
        check_candidates(options, candidates)
        return Request([self._encode_checked(prompt) for prompt in prompts], options, settings, candidates)

    def stream(self, prompt: Prompt, settings: GenerationSettings) -> Iterator[Generation]:
        """Generate token by token, with one beam because a beam search cannot stream."""
        options = self._with_one_beam(self._options(settings), "stream")
        ids = self._encode_checked(prompt)
        assembler = TextAssembler(self.tokenizer, *self._stops(settings))
        streamer = TokenQueue()
        request = Request([ids], options, settings)
        worker = threading.Thread(
            target=self._run_streamed, args=(request, streamer), name="lince-stream", daemon=True
        )
        worker.start()
        counted, ended, answer = 0, False, []
        try:
            for token in streamer:
                ended = token in self._end_ids
                counted += not ended
                answer += [] if ended else [token]
                if text := assembler.add([] if ended else [token]):
                    yield Generation(text, len(ids), counted, cached_tokens=streamer.cached_tokens)
                    counted = 0
                if assembler.stopped or ended:
                    break
        finally:
            streamer.cancelled.set()
            worker.join()
        reason: FinishReason = "stop" if ended or assembler.stopped else "length"
        scored = self._logprobs(ids, answer, settings)
        cached = streamer.cached_tokens
        yield Generation(assembler.finish(), len(ids), counted, reason, cached_tokens=cached, logprobs=scored)

    def generate(self, prompt: Prompt, settings: GenerationSettings) -> Generation:
        """Generate the whole answer."""
        return self.generate_batch([prompt], settings)[0][0]

    @cached_property
    def _end_ids(self) -> set[int]:
        """The tokens that end an answer and are not part of it, those among the model's stop texts included."""
        declared = self._declared_ends
        ends = {declared} if isinstance(declared, int) else set(declared or ())
        # A control token never becomes text, so that a stop text could not be found in the answer.
        added = self.tokenizer.get_added_vocab()
        stops = {added[text] for text in self.spec.stop if text in added}
        return ends | stops | {self.tokenizer.eos_token_id} - {None}

    @cached_property
    def _constraints(self) -> Constraints:
        return Constraints(self.tokenizer, sorted(self._end_ids))

    @property
    @abstractmethod
    def _declared_ends(self) -> int | Sequence[int] | None:
        """The end tokens that the checkpoint's generation settings declare."""

    @abstractmethod
    def _answer(self, request: Request) -> list[list[Generation]]:
        """Generate the candidates for each prompt."""

    @abstractmethod
    def _stream_answer(self, request: Request, streamer: TokenQueue) -> None:
        """Put the ids of the answer to one prompt into a queue as they are generated, until it is cancelled."""

    def _run_streamed(self, request: Request, streamer: TokenQueue) -> None:
        """Generate in the worker thread of a stream; the reader raises its errors."""
        try:
            self._stream_answer(request, streamer)
        except BaseException as error:
            streamer.fail(error)
        else:
            streamer.end()

    def _cut_answer(
        self, ids: list[int], prompt: Sequence[int], settings: GenerationSettings, cached: int | None = None
    ) -> Generation:
        """Cut an answer to a prompt at its end token or stop text."""
        end = next((at for at, token in enumerate(ids) if token in self._end_ids), None)
        answer = ids if end is None else ids[:end]
        text, stopped = assemble(self.tokenizer, answer, *self._stops(settings))
        reason: FinishReason = "length" if end is None and not stopped else "stop"
        scored = self._logprobs(prompt, answer, settings)
        return Generation(text, len(prompt), len(answer), reason, cached_tokens=cached, logprobs=scored)

    def _logprobs(
        self, prompt: Sequence[int], answer: Sequence[int], settings: GenerationSettings
    ) -> tuple[dict[str, Any], ...] | None:
        """Return how likely the tokens of an answer were, if that is asked for.

        They are read once more, in one pass, with what the model itself computes: before temperature, penalties
        and grammars change it, as servers do.
        """
        if settings.alternatives is None:
            return None
        scores = self._log_probabilities(prompt, answer, settings) if answer else ()
        return describe(scores, answer, settings.alternatives, self._constraints.vocabulary)

    @abstractmethod
    def _log_probabilities(
        self, prompt: Sequence[int], answer: Sequence[int], settings: GenerationSettings
    ) -> Any:
        """Return the logarithms of probabilities as an array of shape [tokens of the answer, vocabulary]."""
