"""The engine that runs models in this process, through transformers."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from lince_rag.engines.base import Generation, GenerationSettings, check_torch, is_sampling
from lince_rag.engines.checkpoints.files import LoadingOptions
from lince_rag.engines.checkpoints.loading import LoadedModel, load_model
from lince_rag.engines.generation.decoding import Cancellation, StopTexts, TokenQueue
from lince_rag.engines.generation.tokens import TokenEngine
from lince_rag.engines.json_schema.constraints import Constraints
from lince_rag.errors import ConfigurationError, ContextWindowError, EngineError
from lince_rag.prompting.registry import ModelSpec

_cudnn_lock = threading.Lock()
# Generations that keep cuDNN out now, and what the process had set before the first of them.
_without_cudnn = 0
_cudnn_before = True


class TransformersEngine(TokenEngine):
    """Runs a model in this process."""

    def __init__(self, spec: ModelSpec, options: LoadingOptions) -> None:
        super().__init__(spec, options)
        # One generation at a time, because they share the random state and the memory.
        self._lock = threading.Lock()
        self._token_texts: dict[int, str] = {}

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model, loaded with its weights when it is first needed."""
        check_torch()
        return load_model(self.spec, self.options)

    @property
    def context_window(self) -> int:  # type: ignore[override]
        """Maximum tokens of prompt and answer together."""
        return self.loaded.context_window

    def _generate_encoded(
        self,
        encoded: Sequence[Sequence[int]],
        options: dict[str, Any],
        settings: GenerationSettings,
        candidates: int,
    ) -> list[list[Generation]]:
        # With a seed, each answer must be reproducible by itself, so seeded sampling runs prompt by prompt. So
        # does a prompt whose answer would be cut earlier by the window if it were padded to the length of a
        # longer one.
        separate = settings.seed is not None and is_sampling(options)
        longest = self.context_window - options["max_new_tokens"]
        batched = [at for at, ids in enumerate(encoded) if not separate and len(ids) <= longest]
        generations = self._run_batch([encoded[at] for at in batched], options, settings, candidates)
        found = dict(zip(batched, generations, strict=True))
        for at, ids in enumerate(encoded):
            if at not in found:
                (found[at],) = self._run_batch([ids], options, settings, candidates)
        return [found[at] for at in range(len(encoded))]

    @property
    def _declared_ends(self) -> int | Sequence[int] | None:
        declared: int | Sequence[int] | None = self.loaded.model.generation_config.eos_token_id
        return declared

    @cached_property
    def _constraints(self) -> Constraints:
        return Constraints(self.tokenizer, sorted(self._end_ids))

    def _processors(self, settings: GenerationSettings, limit: int, asked: int) -> list[Any]:
        """Return the logits processors; ``limit`` is what the window leaves of the ``asked`` tokens of answer."""
        if settings.json_schema is None:
            return []
        forbidden = (*settings.stop, *self.spec.stop)
        schema, text_allowed = settings.json_schema, settings.text_allowed
        try:
            return [self._constraints.processor(schema, limit, forbidden, text_allowed=text_allowed)]
        except ConfigurationError as error:
            if limit < asked:
                # An error in the schema itself is raised first.
                self._constraints.processor(schema, asked, forbidden, text_allowed=text_allowed)
                raise ContextWindowError(
                    f"The prompt leaves {limit} of the {self.context_window} tokens of {self.spec.name!r}: too few"
                    " for a tool call or for JSON of the schema.",
                    hint="Give fewer or shorter documents, tools or turns.",
                ) from error
            raise

    def _run_batch(
        self,
        encoded: Sequence[Sequence[int]],
        options: dict[str, Any],
        settings: GenerationSettings,
        candidates: int,
    ) -> list[list[Generation]]:
        """Run one batch and return the candidates of each prompt."""
        if not encoded:
            return []
        longest = max(map(len, encoded))
        stop, uncut = self._stops(settings)
        criterion = StopTexts(self.tokenizer, stop, longest, self._token_texts, uncut)
        options = {**options, "num_return_sequences": candidates}
        output = self._generate_ids(encoded, options, settings, criterion)
        generations = [
            self._cut_padded(answer, len(encoded[row // candidates]), settings)
            for row, answer in enumerate(output[:, longest:].tolist())
        ]
        return [generations[first : first + candidates] for first in range(0, len(generations), candidates)]

    def _cut_padded(self, ids: list[int], input_tokens: int, settings: GenerationSettings) -> Generation:
        """Cut an answer of a batch, where padding follows an answer that a stop text ended."""
        if not self._end_ids.intersection(ids):
            pad = self.tokenizer.pad_token_id
            while ids and ids[-1] == pad:
                ids = ids[:-1]
        return self._cut_answer(ids, input_tokens, settings)

    def _generate_streamed(
        self, ids: Sequence[int], options: dict[str, Any], settings: GenerationSettings, streamer: TokenQueue
    ) -> None:
        self._generate_ids([ids], options, settings, Cancellation(streamer.cancelled), streamer)

    def _generate_ids(
        self,
        encoded: Sequence[Sequence[int]],
        options: dict[str, Any],
        settings: GenerationSettings,
        criterion: Any,
        streamer: Any = None,
    ) -> Any:
        """Call ``model.generate`` on a left-padded batch; with a seed, the global random state does not change."""
        import torch
        from transformers import GenerationConfig
        from transformers.generation.logits_process import LogitsProcessorList
        from transformers.generation.stopping_criteria import StoppingCriteriaList

        check_torch()
        model, tokenizer = self.loaded.model, self.tokenizer
        batch = tokenizer.pad(
            {"input_ids": [list(ids) for ids in encoded]}, padding_side="left", return_tensors="pt"
        )
        longest = batch["input_ids"].shape[1]
        limit = min(options["max_new_tokens"], self.loaded.context_window - longest)
        processors = self._processors(settings, limit, options["max_new_tokens"])
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            **{**options, "max_new_tokens": limit},
            eos_token_id=sorted(self._end_ids),
            pad_token_id=tokenizer.pad_token_id,
        )
        cancelled = settings.cancelled
        criteria = [criterion, *([Cancellation(cancelled)] if cancelled else [])]
        devices = [model.device] if model.device.type == "cuda" else []
        seeded = torch.random.fork_rng(devices=devices, enabled=settings.seed is not None)
        with self._lock, torch.inference_mode(), seeded, without_cudnn_attention(model.device.type):
            if cancelled and cancelled.is_set():
                raise EngineError("The generation was cancelled before it began.")
            if settings.seed is not None:
                torch.manual_seed(settings.seed)
            return model.generate(
                input_ids=batch["input_ids"].to(model.device),
                attention_mask=batch["attention_mask"].to(model.device),
                generation_config=config,
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList(criteria),
                **({"streamer": streamer} if streamer else {}),
            )


@contextmanager
def without_cudnn_attention(device_type: str) -> Iterator[None]:
    """Keep cuDNN out of attention on a CUDA device while a generation runs; elsewhere, do nothing.

    On Hopper and Blackwell, PyTorch prefers cuDNN for half precision. cuDNN builds a plan for every length of the
    key-value cache, so for every token, and PyTorch keeps the plans for the thread that built them: a stream,
    which has a thread of its own, builds all of them again. On an H200 that took about 45 ms a token, twice the
    time of a token of a 7B model (tests/benchmarks/RESULTS.md). The setting is one for the whole process, so the
    last generation to end puts it back.
    """
    global _without_cudnn, _cudnn_before
    if device_type != "cuda":
        yield
        return
    from torch.backends import cuda

    with _cudnn_lock:
        if not _without_cudnn:
            _cudnn_before = cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
            cuda.enable_cudnn_sdp(False)
        _without_cudnn += 1
    try:
        yield
    finally:
        with _cudnn_lock:
            _without_cudnn -= 1
            if not _without_cudnn:
                cuda.enable_cudnn_sdp(_cudnn_before)
