"""LinceLLM: text in, text out; the text is the instruction of the model's own format."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM
from langchain_core.messages import HumanMessage
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, PrivateAttr

from lince_rag.engines import Generation as EngineGeneration
from lince_rag.engines import GenerationSettings
from lince_rag.models.answer_formats import AnswerFormat
from lince_rag.models.call_settings import CALL_SETTINGS
from lince_rag.models.messages import logprobs_info, token_usage
from lince_rag.models.native_model import NativeModel
from lince_rag.models.native_prompt import Instruction
from lince_rag.prompting.templates import Prompt
from lince_rag.text.language import Language


class LinceLLM(NativeModel, BaseLLM):
    """Complete an instruction with a model of the registry, in exactly the prompt format it was trained on.

    Its fields are those of ``NativeModel``. Several prompts run as one batch. A ``response_format`` in the call (a
    JSON schema or a pydantic class) constrains the answers to that schema.

    Example:
        >>> llm = LinceLLM(model="…", model_path="…")
        >>> llm.invoke("Dame una lista de lugares a visitar en España.")
    """

    # The last base class decides the settings, and LangChain's classes ignore unknown fields.
    model_config = ConfigDict(extra="forbid")

    _call: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def _llm_type(self) -> str:
        return "lince"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, **self._call}

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Generate ``n`` answers for each prompt; see ``BaseLLM.generate``."""
        llm = self._with_call_settings(kwargs)
        return super(LinceLLM, llm).generate(prompts, stop or self.stop, callbacks, **kwargs)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Generate ``n`` answers for each prompt; see ``BaseLLM.agenerate``."""
        llm = await run_in_executor(None, self._with_call_settings, kwargs)
        return await super(LinceLLM, llm).agenerate(prompts, stop or self.stop, callbacks, **kwargs)

    def _with_call_settings(self, kwargs: dict[str, Any]) -> "LinceLLM":
        """Make a copy that knows the settings of a call, which LangChain leaves out of the cache key."""
        # A copy shares the engine only if it has been created before.
        _ = self.runtime
        copy = self.model_copy()
        noted = CALL_SETTINGS | {"language", "minimum_confidence"}
        answer_format = AnswerFormat.of(response_format=kwargs.get("response_format"))
        copy._call = {name: kwargs[name] for name in sorted(kwargs) if name in noted}
        copy._call["json_schema"] = answer_format.json_schema()
        return copy

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        rendered, settings = self._prepare(prompts, stop, kwargs)
        return self._result(self._generate_batch(rendered, settings))

    def _result(self, batch: list[list[EngineGeneration]]) -> LLMResult:
        generations = [
            [Generation(text=candidate.text, generation_info=_info(candidate)) for candidate in candidates]
            for candidates in batch
        ]
        cached = [candidates[0].cached_tokens for candidates in batch]
        usage = token_usage(
            sum(candidates[0].input_tokens for candidates in batch),
            sum(candidate.output_tokens for candidates in batch for candidate in candidates),
            None if None in cached else sum(tokens or 0 for tokens in cached),
        )
        return LLMResult(generations=generations, llm_output={"model_name": self.model, "token_usage": usage})

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        (rendered,), settings = self._prepare([prompt], stop, kwargs)
        for step in self._generate_stream(rendered, settings):
            chunk = _chunk(step)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        rendered, settings = await run_in_executor(None, self._prepare, prompts, stop, kwargs)
        return self._result(await self._agenerate_batch(rendered, settings))

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        (rendered,), settings = await run_in_executor(None, self._prepare, [prompt], stop, kwargs)
        async with aclosing(self._agenerate_stream(rendered, settings)) as steps:
            async for step in steps:
                chunk = _chunk(step)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _prepare(
        self, prompts: list[str], stop: list[str] | None, options: dict[str, Any]
    ) -> tuple[list[Prompt], GenerationSettings]:
        """Read the keywords of a call and render its prompts."""
        language: Language | None = options.pop("language", None)
        answer_format = AnswerFormat.of(response_format=options.pop("response_format", None))
        settings = self._settings(stop, language, options, answer_format)
        conversations = [
            text.to_prompt_value().to_messages() if isinstance(text, Instruction) else [HumanMessage(text)]
            for text in prompts
        ]
        return [self._render(messages, answer_format=answer_format) for messages in conversations], settings


def _info(generation: EngineGeneration) -> dict[str, Any]:
    ended = {"finish_reason": generation.finish_reason, "abstained": generation.abstained}
    return (ended if generation.finish_reason else {}) | logprobs_info(generation)


def _chunk(step: EngineGeneration) -> GenerationChunk:
    return GenerationChunk(text=step.text, generation_info=_info(step) or None)
