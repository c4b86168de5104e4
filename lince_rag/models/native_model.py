"""What the chat model and the text model share: their fields, rendering prompts, and generating text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableSerializable
from langchain_core.runnables.utils import AnyConfigurableField
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from lince_rag.engines import Engine, Generation, GenerationSettings, LoadingOptions, create_engine
from lince_rag.engines.base import DEFAULT_ANSWER_TOKENS
from lince_rag.errors import ConfigurationError, EngineError, TemplateError
from lince_rag.models.answer_formats import FORMATS, AnswerFormat
from lince_rag.models.messages import join_turns, to_template, with_instructions
from lince_rag.models.turns import last_question, read_results
from lince_rag.prompting.content import find_open_string
from lince_rag.prompting.registry import ModelSpec, get_model, load_registry
from lince_rag.prompting.templates import ChatTemplate, Prompt
from lince_rag.text.language import LANGUAGES, Language, detect_language

# The settings of a call, which `invoke(…, temperature=0)` may override.
CALL_SETTINGS: Final = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "seed"}
)


class ModelFields(BaseModel):
    """A model of the registry, or a checkpoint with a chat template of its own, and how to run it.

    Args:
        model: A registry name (``lince-rag models`` lists them), or the hub id or folder of a checkpoint whose
            tokenizer has a chat template.
        models_file: A models.toml of your own, whose rows join the built-in ones.
        model_path: Folder or hub id of the weights, in place of the registry's.
        base_model_path: Folder or hub id of the model that an adapter is applied to.
        revision: Branch, tag or commit of a hub id; ``None`` takes the registry's.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` …
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        quantization: ``None``, ``"int8"`` or ``"int4"``.
        max_tokens: Tokens of answer at most; ``None`` takes the model card's.
        temperature: Sampling temperature; 0 decodes greedily; ``None`` does what the model card does.
        top_p: Nucleus of probability to sample from.
        top_k: Most probable tokens to sample from.
        num_beams: Beams of a beam search.
        repetition_penalty: Divides the scores of tokens that were used already.
        stop: Texts that end the answer and are not part of it.
        seed: Same seed, same text.
        n: Candidate answers a prompt.
        timeout: Seconds to wait for a model server; a model in this process has no use for it.
        max_retries: How often to ask a model server again; likewise.
        api_key: Key of a model server; likewise.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model: str = "extractive"
    models_file: Path | None = None
    model_path: str | None = None
    base_model_path: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=1)
    num_beams: int | None = Field(default=None, ge=1)
    repetition_penalty: float | None = Field(default=None, gt=0.0)
    stop: list[str] | None = None
    seed: int | None = None
    n: int = Field(default=1, ge=1)
    timeout: float | None = Field(default=None, gt=0.0)
    max_retries: int | None = Field(default=None, ge=0)
    api_key: SecretStr | None = None

    @cached_property
    def spec(self) -> ModelSpec:
        """The model's row in the registry, or what its checkpoint says of itself."""
        registry = load_registry(self.models_file)
        if self.model not in registry and ("/" in self.model or Path(self.model).is_dir()):
            from lince_rag.engines.checkpoints.configuration import describe_checkpoint

            return describe_checkpoint(self.model, self._loading)
        return get_model(self.model, registry)

    @cached_property
    def engine(self) -> Engine:
        """What runs the model; weights are loaded when they are first needed."""
        return create_engine(self.spec, self._loading)

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's prompt format."""
        return ChatTemplate.from_spec(self.spec)

    def check(self) -> None:
        """Look the model up and see that there is an engine for it, without loading weights.

        Raises:
            UnknownModelError: There is no model of that name.
            EngineError: There is no engine to run it.
        """
        create_engine(self.spec, self._loading)

    @property
    def context_window(self) -> int:
        """Tokens of prompt and answer together."""
        return self.engine.context_window

    @property
    def answer_tokens(self) -> int:
        """Tokens of answer at most."""
        return self.max_tokens or int(self.spec.generation.get("max_new_tokens", DEFAULT_ANSWER_TOKENS))

    @property
    def quotes(self) -> bool:
        """Whether its answers are text of the documents, word for word."""
        return self.engine.quotes

    @property
    def _loading(self) -> LoadingOptions:
        return LoadingOptions(
            model_path=self.model_path,
            base_model_path=self.base_model_path,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
        )

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = [*sorted(CALL_SETTINGS), "stop", "n", "revision", "device", "dtype", "quantization"]
        paths = {name: getattr(self, name) for name in ("models_file", "model_path", "base_model_path")}
        return {
            "model": self.model,
            **{name: None if path is None else str(path) for name, path in paths.items()},
            **{name: getattr(self, name) for name in names},
        }

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Say that ``langchain_core.load`` may write the settings down; it leaves the key of a server out."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What is a secret, and what it is called."""
        return {"api_key": "LINCE_API_KEY"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What is no JSON as it is."""
        return {} if self.models_file is None else {"models_file": str(self.models_file)}

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the engine and the compiled template behind: a copy in another process makes its own."""
        state = super().__getstate__()
        fields = {name: value for name, value in state["__dict__"].items() if name in type(self).model_fields}
        return {**state, "__dict__": fields}

    def configurable_fields(self, **kwargs: AnyConfigurableField) -> RunnableSerializable[Any, Any]:
        """Make fields of the model settings of a call: ``config={"configurable": …}``.

        Args:
            **kwargs: A ``ConfigurableField`` by field.

        Returns:
            The model; configured copies share its weights.
        """
        # LangChain makes a new model for every configured call; it finds this engine while this model lives.
        _ = self.engine
        configurable: RunnableSerializable[Any, Any] = super().configurable_fields(**kwargs)  # type: ignore[misc]
        return configurable

    def get_num_tokens(self, text: str) -> int:
        """Count the tokens of a text the way the model does.

        Args:
            text: Any text.

        Returns:
            The number of tokens.
        """
        return self.engine.count_tokens(text)


_TEXT = AnswerFormat()


class NativeModel(ModelFields):
    """A model that reads its own prompt format; its fields are those of ``ModelFields``."""

    def _render(
        self,
        messages: Sequence[BaseMessage],
        documents: Sequence[Document] = (),
        answer_format: AnswerFormat = _TEXT,
        language: Language | None = None,
    ) -> Prompt:
        """Write messages and documents in the format of the model, and what its answer may be in its language."""
        if self.quotes:
            messages, found = read_results(messages)
            return self._write(*to_template(messages, [*documents, *found]))
        if answer_format.is_text and not any(isinstance(message, ToolMessage) for message in messages):
            # Nothing is said in words of our own; what tells languages apart takes 70 MiB.
            return self._write(*to_template(messages, documents))
        language = self._known(language or detect_language(last_question(messages)))
        if told := answer_format.instructions(language):
            messages = with_instructions(messages, SystemMessage(told))
        return self._write(*to_template(messages, documents, language))

    def _known(self, language: Language) -> Language:
        """Return the language if the model knows it, else the one of ours that it knows best."""
        known = [each for each in LANGUAGES if each in self.spec.languages]
        return language if language in known or not known else min(known, key=self.spec.languages.index)

    def _write(self, turns: Sequence[Mapping[str, str]], documents: Sequence[Mapping[str, Any]]) -> Prompt:
        """Render a prompt; where the format's roles must alternate, neighbouring turns of one role are joined."""
        try:
            return self.template.render(turns, documents)
        except TemplateError:
            joined = join_turns(turns)
            if len(joined) == len(turns):
                raise
            return self.template.render(joined, documents)

    def _generate_batch(self, prompts: Sequence[Prompt], settings: GenerationSettings) -> list[list[Generation]]:
        """Generate, and mend the markers that were broken in the prompt and repeated in an answer."""
        batch = self.engine.generate_batch(prompts, settings, self.n)
        if self.engine.quotes:
            return batch
        return [
            [replace(candidate, text=self._restore(candidate.text, settings)) for candidate in candidates]
            for candidates in batch
        ]

    def _generate_stream(self, prompt: Prompt, settings: GenerationSettings) -> Iterator[Generation]:
        """Stream, and mend broken markers: from a backslash on, text waits until a marker would be whole."""
        longest = 2 * max(
            map(len, [*self.spec.markers, *self.spec.line_markers, *self.spec.control_tokens]), default=0
        )
        raw, given = "", 0
        for step in self.engine.stream(prompt, settings):
            if self.engine.quotes:
                yield step
                continue
            raw += step.text
            first = find_open_string(raw) if _is_json(raw, settings) else max(len(raw) - longest, 0)
            backslash = raw.find("\\", first)
            held = first if _is_json(raw, settings) else backslash
            whole = raw if step.finish_reason or backslash < 0 else raw[:held]
            text = self._restore(whole, settings) if "\\" in whole else whole
            yield replace(step, text=text[given:])
            given = max(given, len(text))

    def _restore(self, text: str, settings: GenerationSettings) -> str:
        return self.template.restore_json(text) if _is_json(text, settings) else self.template.restore(text)

    def _settings(
        self,
        stop: list[str] | None,
        language: Language | None,
        overrides: dict[str, Any],
        answer_format: AnswerFormat = _TEXT,
    ) -> GenerationSettings:
        """Merge a call's settings into the fields."""
        if unknown := overrides.keys() - CALL_SETTINGS - {"minimum_confidence"}:
            raise ConfigurationError(
                f"{type(self).__name__} takes no {', '.join(sorted(unknown))}.",
                hint=f"It takes {', '.join(sorted([*CALL_SETTINGS, *FORMATS]))}, stop, documents and language.",
            )
        values = {name: getattr(self, name) for name in CALL_SETTINGS}
        settings = GenerationSettings(**values, language=language, stop=tuple(stop or self.stop or ()))
        if self.quotes and answer_format.schema is not None:
            raise EngineError(
                "The embedded engine quotes documents and cannot write JSON of a schema.",
                hint="Choose a model with weights: lince-rag models.",
            )
        if not self.quotes and (schema := answer_format.json_schema()) is not None:
            settings = replace(settings, json_schema=schema, text_allowed=answer_format.text_allowed)
        return replace(settings, **overrides)


def _is_json(text: str, settings: GenerationSettings) -> bool:
    """Tell whether an answer, or the beginning of one, is JSON."""
    return settings.json_schema is not None and (not settings.text_allowed or text.lstrip().startswith("{"))
