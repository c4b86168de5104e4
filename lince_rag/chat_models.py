"""ChatLince: a LangChain chat model over the engines, in each model's own prompt format."""

from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompt_values import PromptValue
from pydantic import ConfigDict

from lince_rag.engines import Generation
from lince_rag.language import Language
from lince_rag.messages import Instruction, to_template
from lince_rag.native_model import NativeModel
from lince_rag.templates import Prompt


class ChatLince(NativeModel, BaseChatModel):
    """Chat with a model of the registry, in exactly the prompt format it was trained on.

    The default, ``"extractive"``, needs no weights: it answers with sentences of the documents it is given.

    Its fields are those of ``NativeModel``, and one of its own.

    Args:
        streaming: Whether ``invoke`` generates as a stream, too, for callbacks that want every token.

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

    # Of several bases' settings the last one's win, and LangChain's classes ignore unknown fields.
    model_config = ConfigDict(extra="forbid")

    streaming: bool = False

    @property
    def _llm_type(self) -> str:
        return "chat-lince"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "lince"
        return params

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        if isinstance(model_input, Instruction):
            return model_input.to_prompt_value()
        return super()._convert_input(model_input)

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
        return self._write(*to_template(messages, documents))

    def count_prompt_tokens(self, messages: Sequence[BaseMessage], documents: Sequence[Document] = ()) -> int:
        """Count the tokens of a whole prompt, as the model reads it.

        Args:
            messages: System, human and AI messages with text.
            documents: What goes into the format's Contexto or Entrada.

        Returns:
            The number of tokens.
        """
        return self.engine.count_prompt_tokens(self.render(messages, documents))

    def encode(self, messages: Sequence[BaseMessage], documents: Sequence[Document] = ()) -> list[int]:
        """Return the token ids that the model reads.

        Args:
            messages: System, human and AI messages with text.
            documents: What goes into the format's Contexto or Entrada.

        Returns:
            The ids of the whole prompt.

        Raises:
            EngineError: The model has no tokenizer, or it cannot be loaded.
        """
        return self.engine.encode(self.render(messages, documents))

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
        prompt = self.render(messages, documents)
        (candidates,) = self._generate_batch([prompt], settings)
        return ChatResult(generations=[self._chat_generation(candidate) for candidate in candidates])

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
        for step in self._generate_stream(self.render(messages, documents), settings):
            # Usage adds up over the chunks of a stream, so the prompt counts once.
            input_tokens = 0 if input_tokens_said else step.input_tokens
            input_tokens_said = True
            message = AIMessageChunk(
                content=step.text,
                response_metadata=self._metadata(step) if step.finish_reason else {},
                usage_metadata=_usage(input_tokens, step.output_tokens),
                chunk_position="last" if step.finish_reason else None,
            )
            chunk = ChatGenerationChunk(message=message)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _chat_generation(self, generation: Generation) -> ChatGeneration:
        message = AIMessage(
            content=generation.text,
            response_metadata=self._metadata(generation),
            usage_metadata=_usage(generation.input_tokens, generation.output_tokens),
        )
        return ChatGeneration(message=message, generation_info={"finish_reason": generation.finish_reason})

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
