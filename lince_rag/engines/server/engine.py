"""The engine of models that a server runs: native prompts go out as token ids, text comes back."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from lince_rag.engines.base import Generation, GenerationSettings, check_candidates, join_steps
from lince_rag.engines.generation.decoding import AnswerText
from lince_rag.engines.generation.tokens import PromptEngine
from lince_rag.engines.server import protocol
from lince_rag.engines.server.client import ServerClient, StatusError, aiterate, iterate, start, wait_for
from lince_rag.engines.server.tokenizer import ServerTokenizer
from lince_rag.errors import ConfigurationError, EngineError
from lince_rag.prompting.templates import Prompt

_COMPLETIONS: Final = "/v1/completions"


@dataclass(frozen=True)
class _Request:
    """A prompt that is ready to be sent."""

    payload: dict[str, Any]
    input_tokens: int
    # The texts that cut the answer, and the beginning of an answer that they do not cut.
    stops: tuple[tuple[str, ...], str]
    settings: GenerationSettings


class ServerEngine(PromptEngine):
    """Runs a model on a server with an OpenAI-compatible interface."""

    @cached_property
    def _client(self) -> ServerClient:
        """The connections to the server."""
        assert self.options.server
        return ServerClient(self.options.server)

    @cached_property
    def facts(self) -> protocol.ServerFacts:
        """What the server says of itself when it is first asked."""
        return wait_for(self._ask_facts())

    @property
    def context_window(self) -> int:  # type: ignore[override]
        """Maximum tokens of prompt and answer together: the row's, or the server's if that is smaller."""
        return min(self.spec.context_window, self.facts.context_window or self.spec.context_window)

    def token_ids(self, text: str) -> list[int]:
        """Return the tokens of a text, without those that the tokenizer adds around it."""
        return self._remote.ids(text) if self._remote else super().token_ids(text)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids that the model reads."""
        if prompt.ids is None and self._remote:
            return self._remote.encode(prompt, self.spec.special_tokens.get("bos_token"))
        return super().encode(prompt)

    def generate_batch(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, candidates: int = 1
    ) -> list[list[Generation]]:
        """Generate answers to several prompts at the same time."""
        requests = [self._request(prompt, settings, candidates) for prompt in prompts]
        return wait_for(self._answer_all(requests, candidates))

    async def agenerate_batch(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, candidates: int = 1
    ) -> list[list[Generation]]:
        """Do the same without blocking; if the caller is cancelled, the requests are closed."""
        requests = [await asyncio.to_thread(self._request, prompt, settings, candidates) for prompt in prompts]
        return await asyncio.wrap_future(start(self._answer_all(requests, candidates)))

    def stream(self, prompt: Prompt, settings: GenerationSettings) -> Iterator[Generation]:
        """Generate step by step; a reader that stops closes the request."""
        yield from iterate(self._steps(self._request(prompt, settings)))

    async def astream(self, prompt: Prompt, settings: GenerationSettings) -> AsyncGenerator[Generation, None]:
        """Do the same without blocking."""
        request = await asyncio.to_thread(self._request, prompt, settings)
        async with aclosing(aiterate(self._steps(request))) as steps:
            async for step in steps:
                yield step

    async def _ask_facts(self) -> protocol.ServerFacts:
        names = [self.spec.name, self.spec.repo, self.options.model_path or ""]
        listed = await self._client.get("/v1/models")
        facts = protocol.choose_model(listed, [name for name in names if name], self._client.base_url)
        if facts.kind != protocol.LLAMA_CPP:
            return facts
        try:
            properties = await self._client.get("/props")
            window = properties["default_generation_settings"]["n_ctx"]
        except (StatusError, KeyError, TypeError):
            # An old llama-server, or one whose address leads to only a part of its interface: the row's window
            # holds, and the server refuses a longer prompt.
            return facts
        return replace(facts, context_window=window)

    @cached_property
    def _remote(self) -> ServerTokenizer | None:
        """The server's tokenizer, unless a folder or hub id is named or the server has none."""
        has_own = bool(self.options.model_path) and self.options.server is not None
        if has_own or self.facts.kind not in protocol.HAS_TOKENIZER:
            return None
        is_llama = self.facts.kind == protocol.LLAMA_CPP
        return ServerTokenizer(self._client, self.facts.model, splits_controls=is_llama)

    def _request(self, prompt: Prompt, settings: GenerationSettings, candidates: int = 1) -> _Request:
        """Check a prompt and its settings, and write the request."""
        if (settings.num_beams or 1) > 1:
            raise ConfigurationError(
                f"num_beams={settings.num_beams}: a server does not search with beams.",
                hint="Leave num_beams out, or run the model with engine='transformers'.",
            )
        options = self._with_one_beam(self._options(settings), "run on a server")
        check_candidates(options, candidates)
        ids = self._encode_checked(prompt)
        limit = min(options["max_new_tokens"], self.context_window - len(ids))
        kind = self.facts.kind
        # Every answer is streamed and cut at its stop texts here: llama-server drops what looks like the beginning
        # of a stop text at the end of an answer, others accept only four stop texts, and JSON must not be cut.
        payload = {
            "model": self.facts.model,
            "prompt": ids if kind in protocol.TAKES_IDS else self._without_bos(prompt.text),
            "stream": True,
            "stream_options": {"include_usage": True},
            **protocol.sampling_fields(
                kind, {**options, "max_new_tokens": limit}, settings.seed, self.context_window
            ),
            **protocol.schema_fields(kind, self.spec, settings, limit),
        }
        return _Request(payload, len(ids), self._stops(settings), settings)

    def _without_bos(self, text: str) -> str:
        """Leave out a BOS that the server's tokenizer adds to text by itself."""
        bos = self.tokenizer.bos_token
        adds_bos = bool(bos) and self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        return text.removeprefix(bos) if adds_bos else text

    async def _answer_all(self, requests: Sequence[_Request], candidates: int) -> list[list[Generation]]:
        # One request for each candidate, because llama-server writes at most as many at once as it has slots.
        answers = await asyncio.gather(
            *(self._answer(request, number) for request in requests for number in range(candidates))
        )
        return [answers[first : first + candidates] for first in range(0, len(answers), candidates)]

    async def _answer(self, request: _Request, number: int) -> Generation:
        """Return a candidate, given its number; each has a seed of its own."""
        if number and (seed := request.payload.get("seed")) is not None:
            request = replace(request, payload={**request.payload, "seed": seed + number})
        return join_steps([step async for step in self._steps(request)])

    async def _steps(self, request: _Request) -> AsyncGenerator[Generation, None]:
        """Stream an answer, in the loop of all requests."""
        answer = AnswerText(*request.stops)
        written, parts, reason, output_tokens = "", 0, None, None
        async with aclosing(self._client.events(_COMPLETIONS, request.payload)) as events:
            async for event in events:
                output_tokens = protocol.read_usage(event) or output_tokens
                for choice in protocol.read_choices(event, self._client.base_url):
                    parts += bool(choice.text)
                    reason = choice.finish_reason or reason
                    if text := answer.append(choice.text):
                        written += text
                        yield Generation(text, request.input_tokens, 0)
                if answer.stopped:
                    reason = "stop"
                    break
        if reason is None:
            raise EngineError(
                f"The server {self._client.base_url} broke off in the middle of an answer.",
                hint="Check that it still runs, and ask again.",
            )
        rest = answer.rest()
        if request.settings.json_schema is not None:
            await asyncio.to_thread(self._check_schema, written + rest, request)
        yield Generation(rest, request.input_tokens, parts if output_tokens is None else output_tokens, reason)

    def _check_schema(self, text: str, request: _Request) -> None:
        """Check an answer that must match a JSON schema."""
        settings = request.settings
        if settings.json_schema is not None and text.startswith(request.stops[1]):
            stops = (*settings.stop, *self.spec.stop)
            protocol.check_json(text, settings.json_schema, stops, self._client.base_url)
