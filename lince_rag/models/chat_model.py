"""ChatLince: a LangChain chat model over the engines, in each model's own prompt format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompt_values import PromptValue
from pydantic import ConfigDict

from lince_rag.engines import Generation, GenerationSettings
from lince_rag.models.answer_formats import FORMATS, AnswerFormat
from lince_rag.models.messages import ReplyReader, as_template_documents, read_reply
from lince_rag.models.native_model import NativeModel
from lince_rag.models.native_prompt import Instruction
from lince_rag.models.search_policy import next_search
from lince_rag.models.structured_output import FormatBinding
from lince_rag.models.turns import last_question
from lince_rag.prompting.templates import Prompt
from lince_rag.text.language import Language, detect_language


@dataclass(frozen=True)
class _Asked:
    """A call, ready for the engine.

    Attributes:
        messages: The conversation.
        prompt: It, as the model reads it.
        settings: How to generate.
        answer_format: What the answer may be.
        may_call: Whether the engine's text may call tools.
    """

    messages: Sequence[BaseMessage]
    prompt: Prompt
    settings: GenerationSettings
    answer_format: AnswerFormat
    may_call: bool


class ChatLince(NativeModel, FormatBinding):
    """Chat with a model of the registry, in exactly the prompt format it was trained on.

    The default, ``"extractive"``, needs no weights: it answers with sentences of the documents it is given.

    Its fields are those of ``ModelFields``, and one of its own.

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

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        # LangChain's own says stop=None where the field says otherwise.
        return super()._get_invocation_params(stop=stop or self.stop, **kwargs)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Name the model and the settings of a call: with the messages, the key of a cached answer."""
        if (asked := kwargs.get("response_format")) is not None:
            # Classes of one name are not one schema.
            kwargs["response_format"] = AnswerFormat.of(response_format=asked).json_schema()
        if documents := kwargs.get("documents"):
            # What the model reads of them; scores and the like are other with every question.
            kwargs["documents"] = as_template_documents(documents)
        return str(sorted(self._get_invocation_params(stop=stop, **kwargs).items()))

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        if isinstance(model_input, Instruction):
            return model_input.to_prompt_value()
        return super()._convert_input(model_input)

    def render(
        self, messages: Sequence[BaseMessage], documents: Sequence[Document] = (), **answer_format: Any
    ) -> Prompt:
        """Write messages and documents the way the model reads them, without generating.

        Args:
            messages: System, human, AI and tool messages with text.
            documents: What goes into the format's Contexto or Entrada.
            **answer_format: ``tools``, ``tool_choice``, ``parallel_tool_calls`` and ``response_format``.

        Returns:
            The prompt; its ``text`` is what the model sees.

        Raises:
            TemplateError: The format has no place for one of the messages.
        """
        return self._render(messages, documents, AnswerFormat.of(**answer_format))

    def count_prompt_tokens(
        self, messages: Sequence[BaseMessage], documents: Sequence[Document] = (), **answer_format: Any
    ) -> int:
        """Count the tokens of a whole prompt, as the model reads it.

        Args:
            messages: System, human, AI and tool messages with text.
            documents: What goes into the format's Contexto or Entrada.
            **answer_format: As of ``render``.

        Returns:
            The number of tokens.
        """
        return self.engine.count_prompt_tokens(self.render(messages, documents, **answer_format))

    def encode(
        self, messages: Sequence[BaseMessage], documents: Sequence[Document] = (), **answer_format: Any
    ) -> list[int]:
        """Return the token ids that the model reads.

        Args:
            messages: System, human, AI and tool messages with text.
            documents: What goes into the format's Contexto or Entrada.
            **answer_format: As of ``render``.

        Returns:
            The ids of the whole prompt.

        Raises:
            EngineError: The model has no tokenizer, or it cannot be loaded.
        """
        return self.engine.encode(self.render(messages, documents, **answer_format))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        documents: Sequence[Document] = (),
        language: Language | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        asked = self._ask(messages, stop, documents, language, kwargs)
        search = self._next_search(asked, abstained=False)
        (candidates,) = [[search]] if search else self._generate_batch([asked.prompt], asked.settings)
        if candidates[0].abstained and (search := self._next_search(asked, abstained=True)):
            candidates = [search]
        may_call = search is not None or asked.may_call
        return ChatResult(
            generations=[
                ChatGeneration(
                    message=read_reply(self.model, candidate, may_call=may_call),
                    generation_info={"finish_reason": candidate.finish_reason},
                )
                for candidate in candidates
            ]
        )

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        documents: Sequence[Document] = (),
        language: Language | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        asked = self._ask(messages, stop, documents, language, kwargs)
        search = self._next_search(asked, abstained=False)
        steps = iter([search]) if search else self._generate_stream(asked.prompt, asked.settings)
        first = next(steps)
        if first.abstained and (search := self._next_search(asked, abstained=True)):
            first, steps = search, iter(())
        reader = ReplyReader(self.model, may_call=search is not None or asked.may_call)
        for step in chain([first], steps):
            chunk = ChatGenerationChunk(message=reader.take(step))
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _ask(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        documents: Sequence[Document],
        language: Language | None,
        options: dict[str, Any],
    ) -> _Asked:
        """Read the keywords of a call and write the prompt."""
        answer_format = AnswerFormat.of(**{name: options.pop(name) for name in FORMATS if name in options})
        settings = self._settings(stop, language, options, answer_format)
        prompt = self._render(messages, documents, answer_format, language)
        return _Asked(messages, prompt, settings, answer_format, bool(answer_format.tools) and not self.quotes)

    def _next_search(self, asked: _Asked, *, abstained: bool) -> Generation | None:
        """Return the call that an engine makes which only quotes: one with weights decides by itself."""
        if not self.quotes:
            return None
        language = asked.settings.language or detect_language(last_question(asked.messages))
        call = next_search(asked.answer_format, asked.messages, language, abstained=abstained)
        if call is None:
            return None
        count = self.engine.count_tokens
        return Generation(call, count(asked.prompt.text), count(call), "stop")
