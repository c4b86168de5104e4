"""LinceLLM: text in, text out; the text is the instruction of the model's own format."""

from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.messages import HumanMessage
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.prompt_values import PromptValue
from pydantic import ConfigDict, PrivateAttr

from lince_rag.engines import Generation as EngineGeneration
from lince_rag.models.answer_formats import AnswerFormat
from lince_rag.models.native_model import CALL_SETTINGS, NativeModel
from lince_rag.models.native_prompt import Instruction
from lince_rag.prompting.templates import Prompt
from lince_rag.text.language import Language


class LinceLLM(NativeModel, BaseLLM):
    """Complete an instruction with a model of the registry, in exactly the prompt format it was trained on.

    Its fields are those of ``ModelFields``. Several prompts run as one batch. A ``response_format`` in the call (a
    JSON schema or a pydantic class) holds the answers to it.

    Example:
        >>> llm = LinceLLM(model="…", model_path="…")
        >>> llm.invoke("Dame una lista de lugares a visitar en España.")
    """

    # Of several bases' settings the last one's win, and LangChain's classes ignore unknown fields.
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
        """Generate, one answer or more a prompt; see ``BaseLLM.generate``."""
        llm = self._noting(kwargs)
        return super(LinceLLM, llm).generate(prompts, stop or self.stop, callbacks, **kwargs)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Generate, one answer or more a prompt; see ``BaseLLM.agenerate``."""
        llm = self._noting(kwargs)
        return await super(LinceLLM, llm).agenerate(prompts, stop or self.stop, callbacks, **kwargs)

    def _noting(self, kwargs: dict[str, Any]) -> "LinceLLM":
        """Make a copy that knows the settings of a call, which LangChain leaves out of a cached answer's key."""
        # A copy shares the engine that there is, not one to come.
        _ = self.engine
        copy = self.model_copy()
        noted = CALL_SETTINGS | {"language", "minimum_confidence"}
        asked = AnswerFormat.of(response_format=kwargs.get("response_format"))
        copy._call = {name: kwargs[name] for name in sorted(kwargs) if name in noted}
        copy._call["json_schema"] = asked.json_schema()
        return copy

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        if isinstance(model_input, Instruction):
            return model_input.to_prompt_value()
        return super()._convert_input(model_input)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        language: Language | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        answer_format = AnswerFormat.of(response_format=kwargs.pop("response_format", None))
        settings = self._settings(stop, language, kwargs, answer_format)
        batch = self._generate_batch([self._prompt(text, answer_format) for text in prompts], settings)
        generations = [
            [Generation(text=candidate.text, generation_info=self._info(candidate)) for candidate in candidates]
            for candidates in batch
        ]
        usage = {
            "input_tokens": sum(candidates[0].input_tokens for candidates in batch),
            "output_tokens": sum(candidate.output_tokens for candidates in batch for candidate in candidates),
        }
        return LLMResult(generations=generations, llm_output={"model_name": self.model, "token_usage": usage})

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        language: Language | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        answer_format = AnswerFormat.of(response_format=kwargs.pop("response_format", None))
        settings = self._settings(stop, language, kwargs, answer_format)
        for step in self._generate_stream(self._prompt(prompt, answer_format), settings):
            info = self._info(step) if step.finish_reason else None
            chunk = GenerationChunk(text=step.text, generation_info=info)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _prompt(self, text: str, answer_format: AnswerFormat) -> Prompt:
        messages = text.to_prompt_value().to_messages() if isinstance(text, Instruction) else [HumanMessage(text)]
        return self._render(messages, answer_format=answer_format)

    def _info(self, generation: EngineGeneration) -> dict[str, Any]:
        return {"finish_reason": generation.finish_reason, "abstained": generation.abstained}
