"""The engine that runs converted models on the CPU, through CTranslate2 (https://opennmt.net/CTranslate2)."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from lince_rag.engines.base import (
    Generation,
    GenerationSettings,
    check_fork,
    is_beam_search,
    is_sampling,
)
from lince_rag.engines.checkpoints import memory
from lince_rag.engines.checkpoints.configuration import context_window, engine_errors, generation_settings
from lince_rag.engines.checkpoints.files import (
    CTRANSLATE2_WEIGHTS,
    GENERATION_CONFIG,
    Checkpoint,
    LoadingOptions,
    find_both,
    load_ctranslate2,
)
from lince_rag.engines.generation.decoding import TextAssembler, TokenQueue, cancelled_before
from lince_rag.engines.generation.tokens import Request, TokenEngine, logger
from lince_rag.errors import ConfigurationError, EngineError, require
from lince_rag.prompting.registry import ModelSpec

# What transformers samples with if neither the card nor the checkpoint says it
# (`GenerationConfig._get_default_generation_params` of transformers 5.23).
_SAMPLING_DEFAULTS: Final = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}

# How many times the number of beams must have ended for a beam search to end. 1 is the `early_stopping=True` of
# transformers. Without it, transformers goes on while a beam may still become better; with 2, CTranslate2 gave the
# same answer for 59 of 60 prompts of tiny checkpoints whose answers end by themselves, with 1 for 52.
_PATIENCE: Final = 2

# Seconds between two looks at whether a generation has ended: little beside the time of a token.
_POLL_SECONDS: Final = 0.002

# Receives a step of an answer (`batch_id`, `hypothesis_id`, `token_id`) and returns whether the answer ends there.
_Step = Callable[[Any], bool]


class CTranslate2Engine(TokenEngine):
    """Runs a folder made by ``lince-rag convert --to ctranslate2``."""

    def __init__(self, spec: ModelSpec, options: LoadingOptions) -> None:
        super().__init__(spec, options)
        # One generation at a time: the next one would only wait inside the library, where it cannot be cancelled.
        self._lock = threading.Lock()
        self._warned_of_penalty = False

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The converted folder."""
        checkpoint, _ = find_both(self.spec, self.options)
        if not (checkpoint.folder / CTRANSLATE2_WEIGHTS).is_file():
            raise EngineError(
                f"{checkpoint.label} has no weights of CTranslate2 ({CTRANSLATE2_WEIGHTS}).",
                hint=f"Make them with: lince-rag convert {checkpoint.source} --to ctranslate2",
            )
        return checkpoint

    @cached_property
    def generator(self) -> Any:
        """The model, loaded with its weights when it is first needed."""
        require("ctranslate2", "ctranslate2")
        ctranslate2 = load_ctranslate2()

        label = self.checkpoint.label
        kind = self._compute_type(ctranslate2.get_supported_compute_types("cpu"))
        # While it loads them, CTranslate2 holds the weights twice (tests/benchmarks/RESULTS.md).
        needed = 2 * (self.checkpoint.folder / CTRANSLATE2_WEIGHTS).stat().st_size
        memory.check_memory(label, needed, memory.available_bytes("cpu"), "cpu")
        with engine_errors(label):
            return ctranslate2.Generator(str(self.checkpoint.folder), "cpu", compute_type=kind)

    @cached_property
    def context_window(self) -> int:  # type: ignore[override]
        """Maximum tokens of prompt and answer together."""
        return context_window(self.spec, self.checkpoint)

    def _answer(self, request: Request) -> list[list[Generation]]:
        prompts = request.prompts
        found: dict[int, list[Generation]] = {}
        for group in self._groups(list(map(len, prompts)), request.options["max_new_tokens"]):
            answers = self._run(replace(request, prompts=[prompts[at] for at in group]))
            for at, ids_of_candidates in zip(group, answers, strict=True):
                found[at] = [self._cut_answer(ids, prompts[at], request.settings) for ids in ids_of_candidates]
        return [found[at] for at in range(len(prompts))]

    @property
    def _declared_ends(self) -> int | Sequence[int] | None:
        declared: int | Sequence[int] | None = self.checkpoint.read_json(GENERATION_CONFIG).get("eos_token_id")
        return declared

    def _log_probabilities(
        self, prompt: Sequence[int], answer: Sequence[int], settings: GenerationSettings
    ) -> Any:
        import numpy

        tokens = self.tokenizer.convert_ids_to_tokens([*prompt, *answer][:-1])
        with self._lock, engine_errors(self.checkpoint.label, "cannot read an answer"):
            # Of shape [1, tokens, vocabulary].
            scores = self.generator.forward_batch([tokens], return_log_probs=True)
            return numpy.array(scores)[0, -len(answer) :]

    def _compute_type(self, supported: set[str]) -> str:
        """Return what to compute in: what the weights were converted to, unless the options say otherwise."""
        if self.options.device not in ("auto", "cpu"):
            raise ConfigurationError(
                f"device={self.options.device!r} does not go with engine='ctranslate2', which runs on the CPU.",
                hint="Leave device out, or use engine='transformers' with the weights that were converted.",
            )
        asked = "dtype" if self.options.quantization is None else "quantization"
        kind: str = getattr(self.options, asked)
        if kind == "auto":
            return "default"
        if kind not in supported:
            raise ConfigurationError(
                f"{asked}={kind!r} is not what engine='ctranslate2' can compute in on this CPU.",
                hint=f"Leave {asked} out, or use one of {', '.join(sorted(supported))}.",
            )
        return kind

    def _options(self, settings: GenerationSettings) -> dict[str, Any]:
        """Return the options of a generation; refuse what CTranslate2 has no means for."""
        if settings.json_schema is not None:
            raise ConfigurationError(
                "engine='ctranslate2' cannot hold an answer to a JSON schema or to tools.",
                hint="Use engine='transformers' with the weights that were converted, or leave the schema out.",
            )
        declared = generation_settings(self.checkpoint.read_json(GENERATION_CONFIG))
        options = {**_SAMPLING_DEFAULTS, **declared, **super()._options(settings)}
        if is_sampling(options) and settings.seed is not None:
            # `ctranslate2.set_random_seed` counts for threads that have not drawn a number yet, so once.
            raise ConfigurationError(
                f"engine='ctranslate2' cannot sample with seed={settings.seed}: it has no seed for each answer.",
                hint="Leave the seed out, or set temperature=0, which always gives the same answer.",
            )
        if options.get("repetition_penalty", 1.0) != 1.0 and not self._warned_of_penalty:
            self._warned_of_penalty = True
            logger.warning(
                "%s: here repetition_penalty is for tokens of the answer, not also for those of the prompt.",
                self.spec.name,
            )
        return options

    def _groups(self, lengths: Sequence[int], answer_tokens: int) -> list[list[int]]:
        """Divide prompts, given by their lengths in tokens, into batches.

        A batch reads the tokens that its longer prompts have more than its shortest one by one. So a prompt joins
        a batch only if these are fewer than the tokens of an answer, which are what a common batch saves. A prompt
        whose answer the window cuts is alone.
        """
        groups: list[list[int]] = []
        for at in sorted(range(len(lengths)), key=lengths.__getitem__):
            first = groups[-1][0] if groups else at
            is_near = lengths[at] - lengths[first] < answer_tokens
            if groups and is_near and lengths[at] <= self.context_window - answer_tokens:
                groups[-1].append(at)
            else:
                groups.append([at])
        return groups

    def _stream_answer(self, request: Request, streamer: TokenQueue) -> None:
        def pass_on(step: Any) -> bool:
            streamer.add(step.token_id)
            return streamer.cancelled.is_set()

        self._run(request, pass_on)

    def _end_at_stops(self, settings: GenerationSettings) -> _Step:
        """Return what ends each answer at a stop text."""
        stops, _ = self._stops(settings)
        answers: dict[tuple[int, int], TextAssembler] = {}

        def end(step: Any) -> bool:
            answer = answers.setdefault((step.batch_id, step.hypothesis_id), TextAssembler(self.tokenizer, stops))
            answer.add([step.token_id])
            return answer.stopped

        return end

    def _run(self, request: Request, ends: _Step | None = None) -> list[list[list[int]]]:
        """Return the ids of the candidates of each prompt; a beam search does not call ``ends``."""
        cancelled, interrupted = request.settings.cancelled, threading.Event()
        ends = ends or self._end_at_stops(request.settings)

        def is_last(step: Any) -> bool:
            return ends(step) or interrupted.is_set() or (cancelled is not None and cancelled.is_set())

        search = self._search(request)
        if not is_beam_search(request.options):
            # A beam search cannot be told to end.
            search["callback"] = is_last
        with self._lock, engine_errors(self.checkpoint.label, "cannot generate"):
            check_fork("CTranslate2")
            if cancelled and cancelled.is_set():
                raise cancelled_before()
            results = self.generator.generate_batch(
                [self.tokenizer.convert_ids_to_tokens(list(ids)) for ids in request.prompts],
                **search,
                include_prompt_in_result=False,
                end_token=sorted(self._end_ids),
                return_end_token=True,
                asynchronous=True,
            )
            try:
                # A result waits where Ctrl-C does not reach it.
                while not all(result.done() for result in results):
                    time.sleep(_POLL_SECONDS)
            finally:
                interrupted.set()
                while "callback" in search and not all(result.done() for result in results):
                    # The callback must not be called after the interpreter has ended.
                    time.sleep(_POLL_SECONDS)
            return [result.result().sequences_ids for result in results]

    def _search(self, request: Request) -> dict[str, Any]:
        """Return the options of a request, as CTranslate2 names them."""
        options, longest = request.options, max(map(len, request.prompts))
        search: dict[str, Any] = {
            "max_length": min(options["max_new_tokens"], self.context_window - longest),
            "beam_size": options["num_beams"],
            "num_hypotheses": request.candidates,
            "repetition_penalty": options.get("repetition_penalty", 1.0),
        }
        if is_sampling(options):
            search |= {f"sampling_{name.replace('_', '')}": options[name] for name in _SAMPLING_DEFAULTS}
        if is_beam_search(options):
            search["patience"] = 1 if options.get("early_stopping") else _PATIENCE
        return search
