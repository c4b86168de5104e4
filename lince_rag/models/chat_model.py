"""ChatLince: a LangChain chat model over the engines, in each model's own prompt format."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import BaseOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough
from langchain_core.runnables.config import run_in_executor
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict

from lince_rag.engines import Generation, GenerationSettings
from lince_rag.engines.checkpoints.files import ENGINES_WITHOUT_SCHEMAS
from lince_rag.engines.extractive import EXTRACTIVE
from lince_rag.errors import ConfigurationError
from lince_rag.models.answer_formats import FORMAT_KEYWORDS, AnswerFormat, Tool, read_schema
from lince_rag.models.call_settings import batch_configs
from lince_rag.models.messages import ReplyReader, as_template_documents, last_question, read_reply
from lince_rag.models.native_model import NativeModel
from lince_rag.models.search_policy import next_search
from lince_rag.prompting.registry import load_registry
from lince_rag.prompting.templates import Prompt
from lince_rag.text.language import Language, detect_language


class ChatLince(NativeModel, BaseChatModel):
    """Chat with a model of the registry, in exactly the prompt format it was trained on.

    The default, ``"extractive"``, needs no weights: it answers with sentences of the documents it is given.

    Its fields are those of ``NativeModel`` and the one below. A call (``invoke``, ``stream`` …) also accepts
    ``documents`` to answer from, a ``language`` (``"es"``, ``"pt"`` or ``"en"``; the question's by default),
    ``stop``, ``seed``, the fields from ``max_tokens`` to ``repetition_penalty``, and the keywords of ``render``.

    Args:
        streaming: Whether ``invoke`` also generates as a stream, for callbacks that need every token.

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

    # The last base class decides the settings, and LangChain's classes ignore unknown fields.
    model_config = ConfigDict(extra="forbid")

    _call_keywords = (*FORMAT_KEYWORDS, "documents", "language", "stop")

    streaming: bool = False

    def render(
        self, messages: Sequence[BaseMessage], documents: Sequence[Document] = (), **answer_format: Any
    ) -> Prompt:
        """Render messages and documents as the model reads them, without generating.

        Args:
            messages: System, human, AI and tool messages with text.
            documents: What goes into the format's Contexto or Entrada.
            **answer_format: ``tools``, ``tool_choice`` and ``parallel_tool_calls`` as in ``bind_tools``, and
                ``response_format``: a pydantic class, a JSON schema, ``{"type": "json_object"}`` or
                ``{"type": "json_schema", "json_schema": {"schema": …}}``.

        Returns:
            The prompt; its ``text`` is what the model sees.

        Raises:
            TemplateError: A message cannot be written in the model's format.
            ConfigurationError: A tool, the choice or the schema is not valid.
        """
        return self._render(messages, documents, AnswerFormat.of(**answer_format))

    def count_prompt_tokens(
        self, messages: Sequence[BaseMessage], documents: Sequence[Document] = (), **answer_format: Any
    ) -> int:
        """Count the tokens of a whole prompt as the model reads it.

        Args:
            messages: System, human, AI and tool messages with text.
            documents: What goes into the format's Contexto or Entrada.
            **answer_format: As in ``render``.

        Returns:
            The number of tokens.
        """
        return self.measure(messages, documents, **answer_format).length or 0

    def measure(
        self, messages: Sequence[BaseMessage], documents: Sequence[Document] = (), **answer_format: Any
    ) -> Prompt:
        """Render a prompt as ``render`` does, and count its tokens.

        Args:
            messages: System, human, AI and tool messages with text.
            documents: What goes into the format's Contexto or Entrada.
            **answer_format: As in ``render``.

        Returns:
            The prompt with its ``length`` in tokens. A call of the model with the same messages and documents
            accepts it as ``prompt``, and then does not render or count again.
        """
        return self.runtime.measure(self.render(messages, documents, **answer_format))

    def encode(
        self, messages: Sequence[BaseMessage], documents: Sequence[Document] = (), **answer_format: Any
    ) -> list[int]:
        """Return the token ids that the model reads.

        Args:
            messages: System, human, AI and tool messages with text.
            documents: What goes into the format's Contexto or Entrada.
            **answer_format: As in ``render``.

        Returns:
            The ids of the whole prompt.

        Raises:
            EngineError: The model has no tokenizer, or it cannot be loaded.
        """
        return self.runtime.encode(self.render(messages, documents, **answer_format))

    def bind_tools(
        self,
        tools: Sequence[Tool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools, by exact names and with valid arguments.

        The prompt describes the tools in the model's own language, and decoding is constrained to text or calls.
        The embedded engine calls tools that take one text argument: it searches with the question.

        Args:
            tools: Tools, functions, pydantic classes or OpenAI function descriptions.
            tool_choice: ``None`` or ``"auto"`` leaves the choice to the model, ``"any"``, ``"required"`` or
                ``True`` requires a call, ``"none"`` requires text, and a tool's name requires a call of that tool.
            parallel_tool_calls: Whether an answer may hold several calls (up to 4); by default it holds one.
            **kwargs: More keywords of the call.

        Returns:
            The model with the tools bound.

        Raises:
            ConfigurationError: A tool is not valid, or the choice is not one of the tools.
        """
        AnswerFormat.of(tools, tool_choice, parallel_tool_calls, kwargs.get("response_format"))
        described = [convert_to_openai_tool(tool) for tool in tools]
        # Grammars are always strict.
        kwargs.pop("strict", None)
        options = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}
        given = {name: value for name, value in options.items() if value is not None}
        return self.bind(tools=described, **given, **kwargs)

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "json_mode", "function_calling"] = "json_schema",
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return objects of a schema; decoding is constrained to JSON that is valid for it.

        Args:
            schema: A pydantic class, a TypedDict or a JSON schema; optional with ``json_mode``.
            include_raw: Whether to return a dict of the message (``raw``), the object (``parsed``) and the error
                of parsing it (``parsing_error``).
            method: ``"json_schema"`` and ``"json_mode"`` are the same if there is a schema;
                ``"function_calling"`` makes the model call a tool with that schema.
            **kwargs: More keywords of the call.

        Returns:
            A Runnable from a prompt to an object of the pydantic class, or to a dict. A stream yields partial
            results: growing dicts, or, for a class, the objects that are already valid. The last one is complete.

        Raises:
            ConfigurationError: There is no schema, or it is not valid.
        """
        if schema is None and method != "json_mode":
            raise ConfigurationError(
                f"method={method!r} needs a schema.", hint="Give a schema, or use method='json_mode'."
            )
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        # Grammars are always strict.
        kwargs.pop("strict", None)
        response_format = {"type": "json_object"} if schema is None else read_schema(schema)
        described = {"kwargs": {"method": method}, "schema": schema or response_format}
        llm = self.bind(response_format=response_format, ls_structured_output_format=described, **kwargs)
        parser: BaseOutputParser[Any] = JsonOutputParser()
        if isinstance(schema, type) and is_basemodel_subclass(schema):
            parser = PydanticOutputParser(pydantic_object=schema)
        if not include_raw:
            return llm | parser
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer several prompts; a model in this process decodes up to ``batch_size`` of them at once.

        Args:
            inputs: The prompts.
            config: LangChain's configuration, of all or of each. ``max_concurrency`` limits how many are asked at
                once.
            **kwargs: ``return_exceptions``, and keywords of the calls.

        Returns:
            A message for each prompt, in order: what ``invoke`` returns.
        """
        return super().batch(inputs, batch_configs(config, len(inputs), self.batch_size), **kwargs)

    @property
    def _llm_type(self) -> str:
        return "chat-lince"

    def _resolve_model_profile(self) -> ModelProfile:
        row = load_registry(self.models_file).get(self.model)
        quotes = row is not None and row.engine == EXTRACTIVE
        engine = self._loading.choose_engine(row.repo if row else self.model)
        constrains = not quotes and engine not in ENGINES_WITHOUT_SCHEMAS
        # The engine that quotes calls the tools that it can by rules of its own.
        calls = quotes or constrains
        profile = ModelProfile(tool_calling=calls, tool_choice=calls, structured_output=constrains)
        return profile if row is None else {**profile, "max_input_tokens": row.context_window}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "lince"
        return params

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        # LangChain reports stop=None even if the field has a value.
        # The messages and documents of the call say what its prompt is.
        kwargs.pop("prompt", None)
        return super()._get_invocation_params(stop=stop or self.stop, **kwargs)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Name the model and the settings of a call: together with the messages, the key of a cached answer."""
        if (response_format := kwargs.get("response_format")) is not None:
            # Two classes of the same name may have different schemas.
            kwargs["response_format"] = AnswerFormat.of(response_format=response_format).json_schema()
        if documents := kwargs.get("documents"):
            # Only what the model reads of them: scores and the like differ with every question.
            kwargs["documents"] = as_template_documents(documents)
        return str(sorted(self._get_invocation_params(stop=stop, **kwargs).items()))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._prepare(messages, stop, kwargs)
        search = self._next_search(call, abstained=False)
        (candidates,) = [[search]] if search else self._generate_batch([call.prompt], call.settings)
        if candidates[0].abstained and (search := self._next_search(call, abstained=True)):
            candidates = [search]
        return self._result(candidates, may_call=search is not None or call.may_call)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = self._prepare(messages, stop, kwargs)
        search = self._next_search(call, abstained=False)
        steps = iter([search]) if search else self._generate_stream(call.prompt, call.settings)
        first = next(steps)
        if first.abstained and (search := self._next_search(call, abstained=True)):
            first, steps = search, iter(())
        reader = ReplyReader(self.model, may_call=search is not None or call.may_call)
        for step in chain([first], steps):
            chunk = ChatGenerationChunk(message=reader.read(step))
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if await run_in_executor(None, getattr, self, "quotes"):
            return await super()._agenerate(messages, stop, run_manager, **kwargs)
        call = await run_in_executor(None, self._prepare, messages, stop, kwargs)
        (candidates,) = await self._agenerate_batch([call.prompt], call.settings)
        return self._result(candidates, may_call=call.may_call)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        if await run_in_executor(None, getattr, self, "quotes"):
            async for chunk in super()._astream(messages, stop, run_manager, **kwargs):
                yield chunk
            return
        call = await run_in_executor(None, self._prepare, messages, stop, kwargs)
        reader = ReplyReader(self.model, may_call=call.may_call)
        async with aclosing(self._agenerate_stream(call.prompt, call.settings)) as steps:
            async for step in steps:
                chunk = ChatGenerationChunk(message=reader.read(step))
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _prepare(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, options: dict[str, Any]
    ) -> "_PreparedCall":
        """Read the keywords of a call and render its prompt, unless it comes with one."""
        documents: Sequence[Document] = options.pop("documents", ())
        language: Language | None = options.pop("language", None)
        prompt: Prompt | None = options.pop("prompt", None)
        answer_format = AnswerFormat.of(**{name: options.pop(name) for name in FORMAT_KEYWORDS if name in options})
        settings = self._settings(stop, language, options, answer_format)
        if prompt is None or not answer_format.is_text:
            prompt = self._render(messages, documents, answer_format, language)
        may_call = bool(answer_format.tools) and not self.quotes
        return _PreparedCall(messages, prompt, settings, answer_format, may_call)

    def _result(self, candidates: Sequence[Generation], *, may_call: bool) -> ChatResult:
        return ChatResult(
            generations=[
                ChatGeneration(
                    message=read_reply(self.model, candidate, may_call=may_call),
                    generation_info={"finish_reason": candidate.finish_reason},
                )
                for candidate in candidates
            ]
        )

    def _next_search(self, call: "_PreparedCall", *, abstained: bool) -> Generation | None:
        """Return the search of an engine that only quotes; a model with weights decides by itself."""
        if not self.quotes:
            return None
        language = call.settings.language or detect_language(last_question(call.messages))
        search = next_search(call.answer_format, call.messages, language, abstained=abstained)
        if search is None:
            return None
        count = self.runtime.count_tokens
        return Generation(search, count(call.prompt.text), count(search), "stop")


@dataclass(frozen=True)
class _PreparedCall:
    messages: Sequence[BaseMessage]
    prompt: Prompt
    settings: GenerationSettings
    answer_format: AnswerFormat
    # Whether the generated text may hold tool calls.
    may_call: bool
