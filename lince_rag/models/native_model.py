"""NativeModel: what ChatLince and LinceLLM share: fields, prompts in the model's own format, and generation."""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

from langchain_core.documents import Document
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage, SystemMessage, ToolMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableSerializable
from langchain_core.runnables.utils import AnyConfigurableField
from pydantic import ConfigDict, Field, SecretStr

from lince_rag.engines import Engine, Generation, GenerationSettings, LoadingOptions, create_engine
from lince_rag.engines.base import DEFAULT_ANSWER_TOKENS, DEFAULT_BATCH_SIZE
from lince_rag.engines.server.options import DEFAULT_ENDPOINT, ServerOptions
from lince_rag.errors import ConfigurationError, EngineError, TemplateError
from lince_rag.models.answer_formats import AnswerFormat, Tool
from lince_rag.models.call_settings import CALL_KEYWORDS, CALL_SETTINGS, CallSettings, merge_settings
from lince_rag.models.messages import (
    as_conversation,
    join_turns,
    last_question,
    read_results,
    to_template,
    with_instructions,
)
from lince_rag.models.native_prompt import Instruction
from lince_rag.prompting.content import find_open_string
from lince_rag.prompting.registry import ModelSpec, get_model, load_registry
from lince_rag.prompting.templates import ChatTemplate, Prompt
from lince_rag.text.language import LANGUAGES, Language, detect_language

_TEXT: Final = AnswerFormat()


class NativeModel(CallSettings):
    """A model of the registry, or a checkpoint with its own chat template, and how to run it.

    Args:
        model: A registry name (``lince-rag models`` lists them), or the hub id or folder of a checkpoint whose
            tokenizer has a chat template.
        models_file: Your own models.toml; its rows are added to the built-in ones.
        model_path: Folder or hub id of the weights, instead of the registry's.
        base_model_path: Folder or hub id of the model that an adapter is applied to.
        revision: Branch, tag or commit of a hub id; ``None`` takes the registry's.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` …
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        quantization: ``None``, ``"int8"`` or ``"int4"``.
        engine: What runs the model: ``"transformers"``, ``"ctranslate2"`` (a folder of ``lince-rag convert``),
            ``"llama.cpp"`` (a GGUF file) or ``"server"``; ``"auto"`` takes the server of ``base_url``, else what
            fits the weights.
        tokenizer: Folder or hub id of the tokenizer, for a server or a GGUF file; ``None`` takes that of the file,
            or of ``model_path``, else of the server.
        base_url: Address of a model server with an OpenAI-compatible interface, with or without ``/v1``.
        endpoint: What the server is sent: ``"completions"`` (``None``), the native prompt, or ``"chat"``, messages
            that it renders with the same template (``docs/engines.md`` says what is lost).
        max_tokens: Maximum number of tokens in the answer; ``None`` takes the model card's.
        temperature: Sampling temperature; 0 decodes greedily; ``None`` follows the model card.
        top_p: Probability mass of nucleus sampling.
        top_k: Number of most probable tokens to sample from.
        num_beams: Number of beams in a beam search.
        repetition_penalty: Divides the scores of tokens that were already used.
        stop: Strings that end the answer, or one; they are not part of it.
        seed: Random seed; the same seed gives the same text.
        logprobs: Whether to say how likely each token of an answer was, as langchain-openai does: in
            ``response_metadata["logprobs"]["content"]`` of a message, or in the ``generation_info`` of a text.
        top_logprobs: Number of the likeliest tokens (0 to 20) to list beside each one; needs ``logprobs``.
        n: Number of candidate answers for each prompt.
        batch_size: Maximum number of answers that transformers decodes at once (fewer, where the memory is too
            small; the others wait), and that a ``batch`` asks for at once.
        prefix_cache_bytes: The most bytes of keys and values that transformers keeps of what it has read and
            written, so that a prompt that begins with the same tokens (a retry, the next turn, another question on
            the same documents) is not computed from its start; ``None`` takes 1 GiB, or a tenth of the free memory
            if that is less. 0 keeps nothing.
        prompt_lookup: Whether transformers computes several tokens in one pass where an answer seems to quote its
            prompt; the answer is the same.
        api_key: Key of the server.
        timeout: Seconds to wait for a connection to the server, and for the next part of an answer; ``None`` for
            600. Like ``max_retries``, it is not used by a model that runs in this process.
        max_retries: How many times a request to the server is sent again that failed before its first token;
            ``None`` for 2.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    # Keywords of a call besides CALL_SETTINGS, for error messages.
    _call_keywords: ClassVar[tuple[str, ...]] = ("language", "response_format", "stop")

    model: str = "extractive"
    models_file: Path | None = None
    model_path: str | None = None
    base_model_path: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    engine: str = "auto"
    tokenizer: str | None = None
    base_url: str | None = None
    endpoint: str | None = None
    n: int = Field(default=1, ge=1)
    batch_size: int = Field(default=DEFAULT_BATCH_SIZE, ge=1)
    prefix_cache_bytes: int | None = Field(default=None, ge=0)
    prompt_lookup: bool = True
    timeout: float | None = Field(default=None, gt=0.0)
    max_retries: int | None = Field(default=None, ge=0)
    api_key: SecretStr | None = None

    def __init__(self, **fields: Any) -> None:
        """Check the model's name at once; pydantic would make a ``ValidationError`` of a validator's error."""
        super().__init__(**fields)
        # A file of models is read when it is needed: a model that is read back may be without it here.
        if self.models_file is None and not self._is_place(registry := load_registry(None)):
            get_model(self.model, registry)

    def _is_place(self, registry: Mapping[str, ModelSpec]) -> bool:
        """Whether the model is a folder or a hub id; the hub and the checkpoint are asked later."""
        return self.model not in registry and ("/" in self.model or Path(self.model).is_dir())

    @cached_property
    def spec(self) -> ModelSpec:
        """The model's row in the registry, or the description of its checkpoint."""
        registry = load_registry(self.models_file)
        if self._is_place(registry):
            from lince_rag.engines.checkpoints.configuration import describe_checkpoint

            return describe_checkpoint(self.model, self._loading)
        return get_model(self.model, registry)

    @cached_property
    def runtime(self) -> Engine:
        """The engine that runs the model; it loads the weights when they are first needed."""
        return create_engine(self.spec, self._loading)

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's prompt format."""
        return ChatTemplate.from_spec(self.spec)

    @property
    def context_window(self) -> int:
        """Maximum number of tokens of prompt and answer together."""
        return self.runtime.context_window

    @property
    def answer_tokens(self) -> int:
        """Maximum number of tokens in the answer."""
        return self.max_tokens or int(self.spec.generation.get("max_new_tokens", DEFAULT_ANSWER_TOKENS))

    @property
    def quotes(self) -> bool:
        """Whether the answers are text of the documents, word for word."""
        return self.runtime.quotes

    def check(self) -> None:
        """Check that the model is known and that an engine can run it, without loading weights.

        Raises:
            UnknownModelError: There is no model of that name.
            EngineError: There is no engine to run it.
        """
        create_engine(self.spec, self._loading)

    def get_num_tokens(self, text: str) -> int:
        """Count the tokens of a text with the model's own tokenizer.

        Args:
            text: Any text.

        Returns:
            The number of tokens.
        """
        return self.runtime.count_tokens(text)

    def get_token_ids(self, text: str) -> list[int]:
        """Return the tokens of a text, from the model's own tokenizer.

        Args:
            text: Any text.

        Returns:
            The token ids, without those that the tokenizer adds around a text.

        Raises:
            EngineError: The model has no tokenizer (the embedded engine), or it cannot be loaded.
        """
        return self.runtime.token_ids(text)

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Tool] | None = None
    ) -> int:
        """Count the tokens of a conversation as the model reads it, in its native prompt.

        Args:
            messages: System, human, AI and tool messages. What is not a whole conversation, such as the parts that
                ``trim_messages`` counts, is counted with its system messages first, and with empty questions where
                the format needs one; and backwards too, as ``trim_messages`` does, if that is longer. So the count
                may be a few tokens higher than those parts add to a prompt.
            tools: Tools that the prompt describes, as in ``ChatLince.bind_tools``.

        Returns:
            The number of tokens; 0 without messages.

        Raises:
            TemplateError: A message cannot be written in the model's format.
            ConfigurationError: A tool is not valid.
        """
        if not messages:
            return 0
        given, answer_format = list(messages), AnswerFormat.of(tools)
        orders = [given] if as_conversation(given) == given else [given, given[::-1]]
        prompts = [self._render(as_conversation(order), answer_format=answer_format) for order in orders]
        return max(self.runtime.measure(prompt).length or 0 for prompt in prompts)

    def configurable_fields(self, **kwargs: AnyConfigurableField) -> RunnableSerializable[Any, Any]:
        """Make fields configurable in each call with ``config={"configurable": …}``.

        Args:
            **kwargs: A ``ConfigurableField`` for each field.

        Returns:
            The model; configured copies share its weights.
        """
        # LangChain creates a model for every configured call; engines are shared while a model holds them.
        _ = self.runtime
        configurable: RunnableSerializable[Any, Any] = super().configurable_fields(**kwargs)  # type: ignore[misc]
        return configurable

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return that ``langchain_core.load`` can serialise the fields; it leaves out the key of a server."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The field that is secret, and the name that replaces its value in serialised models."""
        return {"api_key": "LINCE_API_KEY"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """The field that must be converted to be written as JSON."""
        return {} if self.models_file is None else {"models_file": str(self.models_file)}

    def __getstate__(self) -> dict[Any, Any]:
        """Leave out the engine and the compiled template: a copy in another process creates its own."""
        state = super().__getstate__()
        fields = {name: value for name, value in state["__dict__"].items() if name in type(self).model_fields}
        return {**state, "__dict__": fields}

    @property
    def _loading(self) -> LoadingOptions:
        server = None
        if self.endpoint is not None and self.base_url is None:
            raise ConfigurationError(
                f"endpoint={self.endpoint!r} is one of a server.", hint="Give its base_url, too."
            )
        if self.base_url is not None:
            server = ServerOptions(
                self.base_url, self.api_key, self.timeout, self.max_retries, self.endpoint or DEFAULT_ENDPOINT
            )
        return LoadingOptions(
            model_path=self.model_path,
            base_model_path=self.base_model_path,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            engine=self.engine,
            server=server,
            tokenizer=self.tokenizer,
        )

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = [
            *sorted(CALL_SETTINGS),
            "stop",
            "n",
            "revision",
            "device",
            "dtype",
            "quantization",
            "engine",
            "tokenizer",
            "base_url",
            "endpoint",
        ]
        paths = {name: getattr(self, name) for name in ("models_file", "model_path", "base_model_path")}
        return {
            "model": self.model,
            **{name: None if path is None else str(path) for name, path in paths.items()},
            **{name: getattr(self, name) for name in names},
        }

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        if isinstance(model_input, Instruction):
            return model_input.to_prompt_value()
        converted: PromptValue = super()._convert_input(model_input)  # type: ignore[misc]
        return converted

    def _settings(
        self,
        stop: list[str] | None,
        language: Language | None,
        overrides: dict[str, Any],
        answer_format: AnswerFormat = _TEXT,
    ) -> GenerationSettings:
        """Merge the settings of a call into the fields."""
        if unknown := overrides.keys() - CALL_KEYWORDS:
            raise ConfigurationError(
                f"{type(self).__name__} does not accept {', '.join(sorted(unknown))}.",
                hint=f"It accepts {', '.join(sorted([*CALL_SETTINGS, *self._call_keywords]))}.",
            )
        settings = merge_settings(self, {**overrides, "language": language, "stop": stop or self.stop})
        own = ("batch_size", "prefix_cache_bytes", "prompt_lookup")
        settings = replace(settings, **{name: getattr(self, name) for name in own})
        if self.quotes and answer_format.schema is not None:
            raise EngineError(
                "The embedded engine quotes documents and cannot write JSON for a schema.",
                hint="Choose a model with weights; lince-rag models lists them.",
            )
        if not self.quotes and (schema := answer_format.json_schema()) is not None:
            settings = replace(settings, json_schema=schema, text_allowed=answer_format.text_allowed)
        if self.quotes and settings.alternatives is not None:
            raise EngineError(
                "The embedded engine quotes documents and has no probabilities of tokens.",
                hint="Leave logprobs out, or choose a model with weights; lince-rag models lists them.",
            )
        return settings

    def _render(
        self,
        messages: Sequence[BaseMessage],
        documents: Sequence[Document] = (),
        answer_format: AnswerFormat = _TEXT,
        language: Language | None = None,
    ) -> Prompt:
        """Render messages and documents in the model's format, with instructions for the answer format."""
        if self.quotes:
            messages, found = read_results(messages)
            return self._render_turns(*to_template(messages, [*documents, *found]))
        if answer_format.is_text and not any(isinstance(message, ToolMessage) for message in messages):
            # The prompt needs no localised wording, so the language identifier (70 MiB) is not loaded.
            return self._render_turns(*to_template(messages, documents))
        language = self._instruction_language(language or detect_language(last_question(messages)))
        if instructions := answer_format.instructions(language):
            messages = with_instructions(messages, SystemMessage(instructions))
        return self._render_turns(*to_template(messages, documents, language))

    def _instruction_language(self, language: Language) -> Language:
        """Return the language if the model knows it, else the supported language that it knows best."""
        known = [each for each in LANGUAGES if each in self.spec.languages]
        return language if language in known or not known else min(known, key=self.spec.languages.index)

    def _render_turns(self, turns: Sequence[Mapping[str, str]], documents: Sequence[Mapping[str, Any]]) -> Prompt:
        """Render a prompt; if the format's roles must alternate, join neighbouring turns of one role."""
        try:
            return self.template.render(turns, documents)
        except TemplateError:
            joined = join_turns(turns)
            if len(joined) == len(turns):
                raise
            return self.template.render(joined, documents)

    def _generate_batch(self, prompts: Sequence[Prompt], settings: GenerationSettings) -> list[list[Generation]]:
        """Generate, and restore the markers that were neutralised in the prompt and repeated in an answer."""
        return self._restore_batch(self.runtime.generate_batch(prompts, settings, self.n), settings)

    async def _agenerate_batch(
        self, prompts: Sequence[Prompt], settings: GenerationSettings
    ) -> list[list[Generation]]:
        """Do the same without blocking."""
        return self._restore_batch(await self.runtime.agenerate_batch(prompts, settings, self.n), settings)

    def _restore_batch(
        self, batch: list[list[Generation]], settings: GenerationSettings
    ) -> list[list[Generation]]:
        if self.quotes:
            return batch
        return [
            [replace(candidate, text=self._restore(candidate.text, settings)) for candidate in candidates]
            for candidates in batch
        ]

    def _generate_stream(self, prompt: Prompt, settings: GenerationSettings) -> Iterator[Generation]:
        """Stream with markers restored."""
        restored = _RestoredStream(self, settings)
        for step in self.runtime.stream(prompt, settings):
            yield restored.read(step)

    async def _agenerate_stream(
        self, prompt: Prompt, settings: GenerationSettings
    ) -> AsyncGenerator[Generation, None]:
        """Stream with markers restored, without blocking."""
        restored = _RestoredStream(self, settings)
        async with aclosing(self.runtime.astream(prompt, settings)) as steps:
            async for step in steps:
                yield restored.read(step)

    def _restore(self, text: str, settings: GenerationSettings) -> str:
        return self.template.restore_json(text) if _is_json(text, settings) else self.template.restore(text)


class _RestoredStream:
    """Restores markers in the steps of a stream: text after a backslash waits until a marker would be complete."""

    def __init__(self, model: NativeModel, settings: GenerationSettings) -> None:
        self._model = model
        self._settings = settings
        spec = model.spec
        self._longest = 2 * max(map(len, [*spec.markers, *spec.line_markers, *spec.control_tokens]), default=0)
        self._raw, self._given = "", 0

    def read(self, step: Generation) -> Generation:
        """Return the step with the text that is certain now."""
        if self._model.quotes:
            return step
        self._raw += step.text
        is_json = _is_json(self._raw, self._settings)
        first = find_open_string(self._raw) if is_json else max(len(self._raw) - self._longest, 0)
        backslash = self._raw.find("\\", first)
        is_whole = step.finish_reason or backslash < 0
        ready = self._raw if is_whole else self._raw[: first if is_json else backslash]
        text = self._model._restore(ready, self._settings) if "\\" in ready else ready
        start, self._given = self._given, max(self._given, len(text))
        return replace(step, text=text[start:])


def _is_json(text: str, settings: GenerationSettings) -> bool:
    """Return whether an answer, or the beginning of one, is JSON."""
    return settings.json_schema is not None and (not settings.text_allowed or text.lstrip().startswith("{"))
