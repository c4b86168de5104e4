"""The engine of models that a server runs: native prompts go out as token ids, text comes back."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import httpx

from lince_rag.engines.base import Generation, GenerationSettings, check_candidates, join_steps
from lince_rag.engines.checkpoints.files import LoadingOptions
from lince_rag.engines.generation.decoding import AnswerText
from lince_rag.engines.generation.tokens import PromptEngine, logger
from lince_rag.engines.logprobs import ScoredTokens
from lince_rag.engines.server import dialects, protocol
from lince_rag.engines.server.client import ServerClient, StatusError, aiterate, iterate, start, wait_for
from lince_rag.engines.server.options import DEFAULT_ENDPOINT, PATHS
from lince_rag.engines.server.tokenizer import ServerTokenizer
from lince_rag.errors import ConfigurationError, EngineError
from lince_rag.prompting.registry import ModelSpec
from lince_rag.prompting.templates import ChatTemplate, Prompt

# A text whose tokens tell tokenizers apart.
_SAMPLE: Final = "El año 2023, em São Paulo, the end."


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

    def __init__(self, spec: ModelSpec, options: LoadingOptions) -> None:
        super().__init__(spec, options)
        self._warned_of_length = False

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

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of a folder or hub id; the server reads its tokens as the same text."""
        tokenizer = super().tokenizer
        if self.facts.kind not in protocol.HAS_TOKENIZER:
            return tokenizer
        ids = tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]
        try:
            reply = wait_for(self._client.post("/detokenize", {"model": self.facts.model, "tokens": ids}))
        except StatusError as error:
            if error.status == httpx.codes.NOT_FOUND:
                # Its address leads to only a part of its interface.
                return tokenizer
            # llama-server fails at an id that it does not have.
            reply = {}
        read = str(reply.get("content", reply.get("prompt", "")))
        if "".join(read.split()) != "".join(tokenizer.decode(ids).split()):
            raise ConfigurationError(
                f"The server {self._client.base_url} reads the tokens of {_SAMPLE!r} as {read!r}: the tokenizer"
                f" {self.options.tokenizer or self.options.model_path!r} belongs to another model.",
                hint="Name that of the model which the server runs, or none.",
            )
        return tokenizer

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
        yield from iterate(self._steps(self._request(prompt, settings, streamed=True)))

    async def astream(self, prompt: Prompt, settings: GenerationSettings) -> AsyncGenerator[Generation, None]:
        """Do the same without blocking."""
        request = await asyncio.to_thread(self._request, prompt, settings, streamed=True)
        async with aclosing(aiterate(self._steps(request))) as steps:
            async for step in steps:
                yield step

    async def _ask_facts(self) -> protocol.ServerFacts:
        names = [self.spec.name, self.spec.repo, self.options.model_path or ""]
        listed = await self._client.get("/v1/models")
        facts = protocol.choose_model(listed, [name for name in names if name], self._client.base_url)
        if facts.kind != protocol.LLAMA_CPP:
            return facts if facts.kind in protocol.TAKES_IDS else await self._ask_dialect(facts)
        try:
            properties = await self._client.get("/props")
            window = properties["default_generation_settings"]["n_ctx"]
        except (StatusError, KeyError, TypeError):
            # An old llama-server, or one whose address leads to only a part of its interface: the row's window
            # holds, and the server refuses a longer prompt.
            return facts
        return replace(facts, context_window=window)

    async def _ask_dialect(self, facts: protocol.ServerFacts) -> protocol.ServerFacts:
        """Find out whether a server has an interface of its own that is known here."""
        for kind, (path, name) in dialects.ADDRESSES.items():
            try:
                found = await self._client.get(path)
            except EngineError:
                # It is another server. If none answers any more, the request for an answer says so.
                continue
            if name in found:
                window = found.get("max_total_tokens")
                return replace(facts, kind=kind, context_window=window if isinstance(window, int) else None)
        return facts

    @cached_property
    def _remote(self) -> ServerTokenizer | None:
        """The server's tokenizer, unless a folder or hub id is named or the server has none."""
        has_own = self.options.tokenizer or (self.options.model_path and self.options.server)
        if has_own or self.facts.kind not in protocol.HAS_TOKENIZER:
            return None
        is_llama = self.facts.kind == protocol.LLAMA_CPP
        return ServerTokenizer(self._client, self.facts.model, splits_controls=is_llama)

    def _request(
        self, prompt: Prompt, settings: GenerationSettings, candidates: int = 1, *, streamed: bool = False
    ) -> _Request:
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
        kind, stops = self.facts.kind, self._stops(settings)
        # Every answer is cut at its stop texts here, too: in a stream, llama-server drops what looks like the
        # beginning of a stop text at the end of an answer, other servers accept only four stop texts.
        payload = {
            "model": self.facts.model,
            **self._prompt_fields(prompt, ids),
            # In one reply, llama-server leaves out logprobs of too many tokens before a stop text.
            **protocol.reply_fields(kind, *stops, streamed=streamed or bool(settings.logprobs)),
            **protocol.logprobs_fields(kind, self._endpoint, self.spec, settings.alternatives),
            **protocol.sampling_fields(
                kind, {**options, "max_new_tokens": limit}, settings.seed, self.context_window
            ),
            **protocol.schema_fields(kind, self.spec, settings, limit),
        }
        return _Request(payload, len(ids), stops, settings)

    def _prompt_fields(self, prompt: Prompt, ids: list[int]) -> dict[str, Any]:
        kind = self.facts.kind
        if self._endpoint == "chat":
            return protocol.message_fields(kind, prompt, self._template)
        return {"prompt": ids if kind in protocol.TAKES_IDS else self._without_bos(prompt.text)}

    @property
    def _endpoint(self) -> str:
        return self.options.server.endpoint if self.options.server else DEFAULT_ENDPOINT

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate.from_spec(self.spec)

    def _check_length(self, event: dict[str, Any], request: _Request) -> None:
        """Say so once if a server that renders messages itself reads another prompt than the native one."""
        length = protocol.read_usage(event, "prompt_tokens")
        if self._endpoint == "chat" and length not in (None, request.input_tokens) and not self._warned_of_length:
            self._warned_of_length = True
            logger.warning(
                "%s: the server reads a prompt of %s tokens instead of the native one of %s: it has another chat"
                " template or tokenizer, or a control token in the content.",
                self.spec.name,
                length,
                request.input_tokens,
            )

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
        """Yield the steps of an answer, in the loop of all requests."""
        answer = AnswerText(*request.stops)
        # llama-server shows control tokens as empty, vLLM parts of characters.
        controls = [*self.spec.special_tokens.values(), *([""] if self.facts.kind == protocol.LLAMA_CPP else [])]
        scored = ScoredTokens(request.settings, controls)
        written, parts, reason, output_tokens = "", 0, None, None
        async with aclosing(self._events(request.payload)) as events:
            async for event in events:
                output_tokens = protocol.read_usage(event) or output_tokens
                self._check_length(event, request)
                for choice in protocol.read_choices(event, self._client.base_url):
                    parts += bool(choice.text)
                    reason = choice.finish_reason or reason
                    scored.add(choice.text, choice.logprobs, self._client.base_url)
                    if text := answer.append(choice.text):
                        written += text
                        yield Generation(text, request.input_tokens, 0, logprobs=scored.take())
                if answer.stopped:
                    reason = "stop"
                    break
        if reason is None:
            raise EngineError(
                f"The server {self._client.base_url} broke off in the middle of an answer.",
                hint="Check that it still runs, and ask again.",
            )
        rest = answer.rest()
        if output_tokens is None:
            # A reply has one part.
            streamed = request.payload["stream"]
            output_tokens = parts if streamed else await asyncio.to_thread(self.count_tokens, written + rest)
        if request.settings.json_schema is not None:
            await asyncio.to_thread(self._check_schema, written + rest, request)
        yield Generation(rest, request.input_tokens, output_tokens, reason, logprobs=scored.take())

    async def _events(self, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the parts of an answer as those of ``PATHS``."""
        kind, path, streamed = self.facts.kind, PATHS[self._endpoint], payload["stream"]
        translated = kind in dialects.ADDRESSES and self._endpoint == DEFAULT_ENDPOINT
        if translated:
            path, payload = dialects.write(kind, payload, self.context_window)
        async with aclosing(self._client.events(path, payload, streamed=streamed)) as events:
            async for event in events:
                yield dialects.read(kind, event) if translated else event

    def _check_schema(self, text: str, request: _Request) -> None:
        """Check an answer that must match a JSON schema."""
        settings = request.settings
        if settings.json_schema is not None and text.startswith(request.stops[1]):
            stops = (*settings.stop, *self.spec.stop)
            protocol.check_json(text, settings.json_schema, stops, self._client.base_url)
