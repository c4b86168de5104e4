"""The engine that runs models in this process, through transformers."""

import asyncio
import os
import threading
from collections.abc import Sequence
from concurrent.futures import as_completed, wait
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Final

from lince_rag.engines.base import Generation, GenerationSettings, check_torch, is_beam_search, is_sampling
from lince_rag.engines.checkpoints import memory
from lince_rag.engines.checkpoints.files import LoadingOptions
from lince_rag.engines.checkpoints.loading import LoadedModel, load_model
from lince_rag.engines.generation.batches import Row, RowDecoder
from lince_rag.engines.generation.decoding import Cancellation, StopTexts, TokenQueue, cancelled_before
from lince_rag.engines.generation.reading import TokenPrompt, can_read, computing
from lince_rag.engines.generation.tokens import Request, TokenEngine
from lince_rag.errors import ConfigurationError, ContextWindowError
from lince_rag.prompting.registry import ModelSpec
from lince_rag.prompting.templates import Prompt

# The most bytes of keys and values that are kept for later prompts if the caller does not say it, and the most of
# the memory that is free when the first answer is asked for.
_KEPT_BYTES: Final = 2**30
_KEPT_SHARE: Final = 0.1


@dataclass(eq=False)
class _Search:
    """A call of ``model.generate`` that waits for its turn."""

    request: Request
    found: list[list[Generation]] | None = None

    @property
    def is_separate(self) -> bool:
        """Whether each of its prompts must run alone, to be reproducible by itself."""
        return self.request.settings.seed is not None and is_sampling(self.request.options)

    def joins(self, other: "_Search") -> bool:
        """Return whether it waits for its turn and can run in one batch with another search."""
        cancelled = self.request.settings.cancelled
        if self is other or self.found is not None or (cancelled and cancelled.is_set()) or self.is_separate:
            return False
        asked = (self.request, other.request)
        mine, its = ((each.options, each.settings, each.candidates) for each in asked)
        return mine == its


class TransformersEngine(TokenEngine):
    """Runs a model in this process.

    Answers are decoded together, whoever asks for them: see ``batches.RowDecoder``. Beam searches, and models
    whose state is not only keys and values, run in ``model.generate``, where equal calls that wait share a batch.
    """

    def __init__(self, spec: ModelSpec, options: LoadingOptions) -> None:
        super().__init__(spec, options)
        # One pass or search at a time, because they share the memory.
        self._lock = threading.Lock()
        self._token_texts: dict[int, str] = {}
        # By process, because a fork has no threads.
        self._decoders: dict[int, RowDecoder] = {}
        self._searches: list[_Search] = []
        self._search_lock = threading.Lock()

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model, loaded with its weights when it is first needed."""
        check_torch()
        return load_model(self.spec, self.options)

    @property
    def context_window(self) -> int:  # type: ignore[override]
        """Maximum tokens of prompt and answer together."""
        return self.loaded.context_window

    async def agenerate_batch(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, candidates: int = 1
    ) -> list[list[Generation]]:
        """Generate without blocking, and without a thread for each call that waits."""
        cancelled = threading.Event()
        settings = replace(settings, cancelled=cancelled)
        try:
            request = await asyncio.to_thread(self._check_batch, prompts, settings, candidates)
            if not await asyncio.to_thread(self._decodes_rows, request):
                return await asyncio.to_thread(self._answer, request)
            rows = await asyncio.to_thread(self._submit, request)
            await asyncio.gather(*(asyncio.wrap_future(row.future) for row in rows))
            return await asyncio.to_thread(self._cut_rows, rows, request)
        finally:
            # If the caller is cancelled, or one answer fails, the others are not needed.
            cancelled.set()

    def _answer(self, request: Request) -> list[list[Generation]]:
        if not self._decodes_rows(request):
            return self._search(_Search(request))
        interrupted = threading.Event()
        rows = self._submit(request, interrupted)
        _wait_for(rows, interrupted)
        return self._cut_rows(rows, request)

    def _stream_answer(self, request: Request, streamer: TokenQueue) -> None:
        if not self._decodes_rows(request):
            self._generate_ids(request, [Cancellation([streamer.cancelled])], streamer)
            return

        def pass_on(row: Row, token: int) -> None:
            streamer.cached_tokens = row.reused
            streamer.add(token)

        _wait_for(self._submit(request, streamer.cancelled, on_token=pass_on), streamer.cancelled)

    def _decodes_rows(self, request: Request) -> bool:
        """Return whether answers are decoded together by a ``RowDecoder``."""
        return self._can_read and not is_beam_search(request.options)

    @cached_property
    def _can_read(self) -> bool:
        return can_read(self._base_model)

    @property
    def _base_model(self) -> Any:
        """The model that computes: an adapter that is not merged is inside of it."""
        model = self.loaded.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def _decoder(self) -> RowDecoder:
        process = os.getpid()
        if process not in self._decoders:
            # It does not know the engine, so that the weights are freed with the engine.
            guard = partial(computing, self._lock, self.loaded.model.device.type)
            made = RowDecoder(self._base_model, self.tokenizer.pad_token_id, guard)
            return self._decoders.setdefault(process, made)
        return self._decoders[process]

    def _submit(self, request: Request, *cancelled: threading.Event, **more: Any) -> list[Row]:
        """Begin to decode the candidates of some prompts, each with a seed of its own."""
        rows = []
        for ids in request.prompts:
            for number in range(request.candidates):
                seed = None if request.settings.seed is None else request.settings.seed + number
                rows.append(self._row(ids, request, seed, cancelled=cancelled, **more))
        self._decoder.submit(rows)
        return rows

    def _row(
        self,
        ids: Sequence[int],
        request: Request,
        seed: int | None,
        cancelled: Sequence[threading.Event],
        **more: Any,
    ) -> Row:
        """Prepare an answer as ``model.generate`` would."""
        import torch

        check_torch()
        model, settings = self._base_model, request.settings
        processors, config = model.generate(
            input_ids=torch.tensor([list(ids)], device=model.device),
            attention_mask=torch.ones((1, len(ids)), dtype=torch.long, device=model.device),
            custom_generate=_prepared,
            **self._generation(len(ids), request),
        )
        generator = None
        if seed is not None and config.do_sample:
            generator = torch.Generator(model.device).manual_seed(seed)
        stops = StopTexts(self.tokenizer, *self._stops(settings), token_texts=self._token_texts)
        return Row(
            prompt=TokenPrompt(tuple(ids), self._kept_bytes(settings)),
            limit=config.max_new_tokens,
            end_ids=self._end_ids,
            processors=processors,
            samples=config.do_sample,
            generator=generator,
            batch_size=settings.batch_size,
            is_stopped=stops.end,
            looks_up=settings.prompt_lookup,
            cancelled=[*cancelled, *([settings.cancelled] if settings.cancelled else [])],
            **more,
        )

    def _cut_rows(self, rows: Sequence[Row], request: Request) -> list[list[Generation]]:
        cut = [self._cut_answer(row.answer, row.ids, request.settings, row.reused) for row in rows]
        return [cut[first : first + request.candidates] for first in range(0, len(cut), request.candidates)]

    def _search(self, search: _Search) -> list[list[Generation]]:
        """Run a search as soon as no other one runs, together with equal ones that wait."""
        self._searches.append(search)
        try:
            with self._search_lock:
                if search.found is None:
                    # If this fails, each of the others runs by itself.
                    self._run_searches([search, *(each for each in self._searches if each.joins(search))])
                assert search.found is not None
                return search.found
        finally:
            self._searches.remove(search)

    def _run_searches(self, searches: Sequence[_Search]) -> None:
        """Run equal searches in batches of similar length."""
        first = searches[0].request
        prompts = [(search, at) for search in searches for at in range(len(search.request.prompts))]
        prompts.sort(key=lambda each: len(each[0].request.prompts[each[1]]))
        # A prompt whose answer would be cut earlier by the window if it were padded to a longer one runs alone.
        longest = self.context_window - first.options["max_new_tokens"]
        size = 1 if searches[0].is_separate else first.settings.batch_size
        fitting = [each for each in prompts if len(each[0].request.prompts[each[1]]) <= longest]
        batches = [fitting[start : start + size] for start in range(0, len(fitting), size)]
        batches += [[each] for each in prompts[len(fitting) :]]
        found: dict[int, list[list[Generation]]] = {
            id(search): [[]] * len(search.request.prompts) for search in searches
        }
        for batch in batches:
            encoded = [search.request.prompts[at] for search, at in batch]
            cancelled = [search.request.settings.cancelled for search, _ in batch]
            answers = self._run_batch(replace(first, prompts=encoded), cancelled)
            for (search, at), answer in zip(batch, answers, strict=True):
                found[id(search)][at] = answer
        for search in searches:
            search.found = found[id(search)]

    @property
    def _declared_ends(self) -> int | Sequence[int] | None:
        declared: int | Sequence[int] | None = self.loaded.model.generation_config.eos_token_id
        return declared

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

    def _run_batch(self, request: Request, cancelled: Sequence[threading.Event | None]) -> list[list[Generation]]:
        """Run one batch and return the candidates of each prompt."""
        longest, count = max(map(len, request.prompts)), request.candidates
        texts = self._stops(request.settings)
        stops = StopTexts(self.tokenizer, *texts, token_texts=self._token_texts, prompt=longest)
        request = replace(request, options={**request.options, "num_return_sequences": count})
        output = self._generate_ids(request, [stops, Cancellation(cancelled)])
        generations = [
            self._cut_padded(answer, request.prompts[row // count], request.settings)
            for row, answer in enumerate(output[:, longest:].tolist())
        ]
        return [generations[first : first + count] for first in range(0, len(generations), count)]

    def _cut_padded(self, ids: list[int], prompt: Sequence[int], settings: GenerationSettings) -> Generation:
        """Cut an answer of a batch, where padding follows an answer that a stop text ended."""
        if not self._end_ids.intersection(ids):
            pad = self.tokenizer.pad_token_id
            while ids and ids[-1] == pad:
                ids = ids[:-1]
        return self._cut_answer(ids, prompt, settings)

    def _log_probabilities(
        self, prompt: Sequence[int], answer: Sequence[int], settings: GenerationSettings
    ) -> Any:
        import torch

        model, ids = self.loaded.model, (*prompt, *answer)[:-1]
        with computing(self._lock, model.device.type):
            if self._can_read:
                scores = self._decoder.reader.score(TokenPrompt(ids, self._kept_bytes(settings)), len(answer))
            else:
                read = torch.tensor([ids], device=model.device)
                scores = model(input_ids=read, logits_to_keep=len(answer), use_cache=False).logits[0].float()
            return scores.log_softmax(dim=-1).cpu().numpy()

    def _kept_bytes(self, settings: GenerationSettings) -> int:
        asked = settings.prefix_cache_bytes
        return self._default_kept_bytes if asked is None else asked

    @cached_property
    def _default_kept_bytes(self) -> int:
        free = memory.available_bytes(str(self.loaded.model.device))
        return _KEPT_BYTES if free is None else min(_KEPT_BYTES, int(_KEPT_SHARE * free))

    def _generation(self, longest: int, request: Request) -> dict[str, Any]:
        """Return what ``model.generate`` is told about answers to prompts of at most ``longest`` tokens."""
        from transformers import GenerationConfig
        from transformers.generation.logits_process import LogitsProcessorList

        options = request.options
        limit = min(options["max_new_tokens"], self.context_window - longest)
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            **{**options, "max_new_tokens": limit},
            eos_token_id=sorted(self._end_ids),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        processors = self._processors(request.settings, limit, options["max_new_tokens"])
        return {"generation_config": config, "logits_processor": LogitsProcessorList(processors)}

    def _generate_ids(self, request: Request, criteria: Sequence[Any], streamer: Any = None) -> Any:
        """Call ``model.generate`` on a left-padded batch; with a seed, the global random state does not change."""
        import torch
        from transformers.generation.stopping_criteria import StoppingCriteriaList

        check_torch()
        model, settings = self.loaded.model, request.settings
        batch = self.tokenizer.pad(
            {"input_ids": [list(ids) for ids in request.prompts]}, padding_side="left", return_tensors="pt"
        )
        generation = self._generation(batch["input_ids"].shape[1], request)
        devices = [model.device] if model.device.type == "cuda" else []
        with (
            computing(self._lock, model.device.type),
            torch.random.fork_rng(devices=devices, enabled=settings.seed is not None),
        ):
            if settings.cancelled and settings.cancelled.is_set():
                raise cancelled_before()
            if settings.seed is not None:
                torch.manual_seed(settings.seed)
            return model.generate(
                input_ids=batch["input_ids"].to(model.device),
                attention_mask=batch["attention_mask"].to(model.device),
                stopping_criteria=StoppingCriteriaList(criteria),
                **generation,
                **self._read_ahead(request),
                **({"streamer": streamer} if streamer else {}),
            )

    def _read_ahead(self, request: Request) -> dict[str, Any]:
        """Read prompts but for the last token, once for all beams of a search, which would each read all of it."""
        kept_bytes = self._kept_bytes(request.settings)
        if not (kept_bytes and self._can_read and min(map(len, request.prompts)) > 1):
            return {}
        cache = self._decoder.reader.fill([TokenPrompt(tuple(ids[:-1]), kept_bytes) for ids in request.prompts])
        cache.batch_repeat_interleave(max(request.options["num_beams"], request.candidates))
        return {"past_key_values": cache}


def _prepared(
    model: Any, input_ids: Any, logits_processor: Any, generation_config: Any, **others: Any
) -> tuple[Any, Any]:
    """Return what ``model.generate`` has prepared, instead of generating."""
    return logits_processor, generation_config


def _wait_for(rows: Sequence[Row], interrupted: threading.Event) -> None:
    """Wait for the answers; if one fails, or at Ctrl-C, end the others before that is raised."""
    futures = [row.future for row in rows]
    try:
        for future in as_completed(futures):
            future.result()
    finally:
        interrupted.set()
        wait(futures)
