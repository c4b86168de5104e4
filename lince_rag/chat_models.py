"""ChatLince: a LangChain chat model over the engines, in each model's own prompt format."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field

from lince_rag.context import as_template_documents
from lince_rag.engines import Engine, Generation, GenerationSettings, create_engine
from lince_rag.errors import ConfigurationError, ContextWindowError, TemplateError
from lince_rag.language import Language
from lince_rag.registry import ModelSpec, get_model, load_registry
from lince_rag.templates import ChatTemplate, Prompt

# Tokens of answer when neither the caller nor the model's card says: the cards' own limits are 128 to 256.
DEFAULT_ANSWER_TOKENS: Final = 256

# The settings of a call, which `invoke(…, temperature=0)` may override.
_CALL_SETTINGS: Final = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "seed"}
)


class ChatLince(BaseChatModel):
    """Chat with a model of the registry, in exactly the prompt format it was trained on.

    The default, ``"extractive"``, needs no weights: it answers with sentences of the documents it is given.

    Args:
        model: A registry name; ``lince-rag models`` lists them.
        models_file: A models.toml of your own, whose rows join the built-in ones.
        max_tokens: Tokens of answer at most; ``None`` takes the model's.
        temperature: Sampling temperature; 0 decodes greedily; ``None`` takes the model card's.
        top_p: Nucleus of probability to sample from.
        top_k: Most probable tokens to sample from.
        num_beams: Beams of a beam search.
        repetition_penalty: Divides the scores of tokens that were used already.
        stop: Texts that end the answer and are not part of it.
        seed: Same seed, same text.

    Raises:
        UnknownModelError: There is no model of that name.
        EngineError: There is no engine to run it.

    Example:
        >>> from langchain_core.documents import Document
        >>> chat = ChatLince()
        >>> documents = [Document("La reunión es el martes 3 de marzo.")]
        >>> chat.invoke("¿Cuándo es la reunión?", documents=documents).text
        'La reunión es el martes 3 de marzo.'
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str = "extractive"
    models_file: Path | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=1)
    num_beams: int | None = Field(default=None, ge=1)
    repetition_penalty: float | None = Field(default=None, gt=0.0)
    stop: list[str] | None = None
    seed: int | None = None

    @cached_property
    def spec(self) -> ModelSpec:
        """The model's row in the registry."""
        return get_model(self.model, load_registry(self.models_file))

    @cached_property
    def engine(self) -> Engine:
        """What runs the model."""
        return create_engine(self.spec)

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's prompt format."""
        return ChatTemplate.from_spec(self.spec)

    @property
    def context_window(self) -> int:
        """Tokens of prompt and answer together."""
        return self.spec.context_window

    @property
    def answer_tokens(self) -> int:
        """Tokens of answer at most."""
        return self.max_tokens or int(self.spec.generation.get("max_new_tokens", DEFAULT_ANSWER_TOKENS))

    @property
    def _llm_type(self) -> str:
        return "chat-lince"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in sorted(_CALL_SETTINGS)}
        return {"model": self.model, "stop": self.stop, **settings}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "lince"
        return params

    def get_num_tokens(self, text: str) -> int:
        """Count the tokens of a text the way the model does.

        Args:
            text: Any text.

        Returns:
            The number of tokens.
        """
        return self.engine.count_tokens(text)

    def render(self, messages: Sequence[BaseMessage], documents: Sequence[Document] = ()) -> Prompt:
        """Write messages and documents the way the model reads them, without generating.

        Args:
            messages: System, human and AI messages with text.
            documents: What goes into the format's Contexto or Entrada.

        Returns:
            The prompt; its ``text`` is what the model sees.

        Raises:
            TemplateError: The format has no place for one of the messages.
        """
        return self.template.render(
            [_as_template_message(message) for message in messages], as_template_documents(documents)
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        documents: Sequence[Document] = (),
        language: Language | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        settings = self._settings(stop, language, kwargs)
        generation = self.engine.generate(self._prompt(messages, documents), settings)
        message = AIMessage(
            content=self.template.restore(generation.text),
            response_metadata=self._metadata(generation),
            usage_metadata=_usage(generation.input_tokens, generation.output_tokens),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        documents: Sequence[Document] = (),
        language: Language | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        settings = self._settings(stop, language, kwargs)
        input_tokens_said = False
        for step in self.engine.stream(self._prompt(messages, documents), settings):
            # Usage adds up over the chunks of a stream, so the prompt counts once.
            input_tokens = 0 if input_tokens_said else step.input_tokens
            input_tokens_said = True
            message = AIMessageChunk(
                content=self.template.restore(step.text),
                response_metadata=self._metadata(step) if step.finish_reason else {},
                usage_metadata=_usage(input_tokens, step.output_tokens),
                chunk_position="last" if step.finish_reason else None,
            )
            chunk = ChatGenerationChunk(message=message)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _prompt(self, messages: list[BaseMessage], documents: Sequence[Document]) -> Prompt:
        """Render the prompt and check that it fits."""
        prompt = self.render(messages, documents)
        length = self.engine.count_tokens(prompt.text)
        if length >= self.context_window:
            raise ContextWindowError(
                f"The prompt has {length} tokens and the window of {self.model!r} holds {self.context_window}.",
                hint="Give fewer or shorter documents, or a shorter history.",
            )
        return prompt

    def _settings(
        self, stop: list[str] | None, language: Language | None, overrides: dict[str, Any]
    ) -> GenerationSettings:
        if unknown := overrides.keys() - _CALL_SETTINGS:
            raise ConfigurationError(
                f"{type(self).__name__} takes no {', '.join(sorted(unknown))}.",
                hint=f"It takes {', '.join(sorted(_CALL_SETTINGS))}, stop, documents and language.",
            )
        values = {name: getattr(self, name) for name in _CALL_SETTINGS}
        settings = GenerationSettings(**values, language=language, stop=tuple(stop or self.stop or ()))
        return replace(settings, **overrides)

    def _metadata(self, generation: Generation) -> dict[str, Any]:
        return {
            "model_name": self.model,
            "model_provider": "lince",
            "finish_reason": generation.finish_reason,
            "abstained": generation.abstained,
        }


def _usage(input_tokens: int, output_tokens: int) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=input_tokens, output_tokens=output_tokens, total_tokens=input_tokens + output_tokens
    )


def _as_template_message(message: BaseMessage) -> dict[str, str]:
    """Turn a LangChain message into what chat templates take."""
    if isinstance(message, ChatMessage):
        role = message.role
    elif isinstance(message, HumanMessage):
        role = "user"
    elif isinstance(message, AIMessage):
        role = "assistant"
    elif isinstance(message, SystemMessage):
        role = "system"
    else:
        raise TemplateError(
            f"A message of type {message.type!r} has no place in these formats.",
            hint="Use system, human and AI messages.",
        )
    blocks = [message.content] if isinstance(message.content, str) else message.content
    for block in blocks:
        if isinstance(block, dict) and block.get("type") != "text":
            raise TemplateError(
                f"A content block of type {block.get('type')!r} cannot be written into a text prompt.",
                hint="These models read text only.",
            )
    return {"role": role, "content": str(message.text)}
