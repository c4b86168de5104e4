"""NativePrompt: a prompt template that fills the fields of a model's own prompt format."""

import json
from typing import Any, Literal

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate
from langchain_core.prompts.string import get_template_variables
from langchain_core.utils.formatting import formatter
from pydantic import Field, model_validator


class NativePrompt(BasePromptTemplate[str]):
    """A prompt template whose instruction, input and context reach the model's own fields.

    The three are f-string templates; one that is ``None`` leaves its section out.

    Args:
        instruction: The instruction.
        input: What goes into the format's Entrada.
        context: What goes into the format's Contexto.
        input_variables: The variables of the three templates; computed, whatever is given.

    Example:
        >>> prompt = NativePrompt(instruction="Resume en {n} frases.", context="{documento}")
        >>> chain = prompt | LinceLLM(model=..., model_path=...)
    """

    instruction: str
    input: str | None = None
    context: str | None = None
    # The base class requires it; with a default, type checkers accept a call without it.
    input_variables: list[str] = Field(default_factory=list)

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Return the module where ``langchain_core.load`` finds the class, which is not in LangChain."""
        return cls.__module__.split(".")

    @model_validator(mode="before")
    @classmethod
    def _find_variables(cls, values: Any) -> Any:
        templates = [values.get(name) for name in ("instruction", "input", "context")]
        found = {name for text in templates if text for name in get_template_variables(text, "f-string")}
        return {**values, "input_variables": sorted(found - set(values.get("partial_variables") or {}))}

    def format_prompt(self, **kwargs: Any) -> "NativePromptValue":
        """Fill in the variables.

        Args:
            **kwargs: A value for each of ``input_variables``.

        Returns:
            The prompt value, whose fields reach a ``LinceLLM`` or a ``ChatLince``.

        Raises:
            KeyError: A variable has no value.
        """
        values = self._merge_partial_and_user_variables(**kwargs)
        return NativePromptValue(
            instruction=formatter.format(self.instruction, **values),
            input=None if self.input is None else formatter.format(self.input, **values),
            context=None if self.context is None else formatter.format(self.context, **values),
        )

    async def aformat_prompt(self, **kwargs: Any) -> "NativePromptValue":
        """Fill in the variables; see ``format_prompt``."""
        return self.format_prompt(**kwargs)

    def format(self, **kwargs: Any) -> str:
        """Fill in the variables; see ``format_prompt``. The fields stay attached to the text."""
        return self.format_prompt(**kwargs).to_string()

    @property
    def _prompt_type(self) -> str:
        return "native-prompt"


class NativePromptValue(PromptValue):
    """A filled-in ``NativePrompt``: an ``Instruction`` for text models, a human message for chat models."""

    type: Literal["NativePromptValue"] = "NativePromptValue"

    instruction: str
    input: str | None = None
    context: str | None = None

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Return the module where ``langchain_core.load`` finds the class, which is not in LangChain."""
        return cls.__module__.split(".")

    def to_string(self) -> str:
        """Return the instruction with its fields attached."""
        return Instruction.of(self.instruction, self.input, self.context)

    def to_messages(self) -> list[BaseMessage]:
        """Return a human message with the context as a ``text-plain`` block and the input in its kwargs."""
        blocks: list[str | dict[Any, Any]] = [{"type": "text", "text": self.instruction}]
        if self.context is not None:
            blocks.append({"type": "text-plain", "text": self.context, "mime_type": "text/plain"})
        extra = {} if self.input is None else {"input": self.input}
        return [HumanMessage(content=blocks, additional_kwargs=extra)]


class Instruction(str):
    """An instruction with the input and the context for their own fields of the format (Entrada, Contexto).

    It is a string, so it passes through LangChain's text interface. With fields it is a JSON object of all three,
    so that caches, traces and other packages' models see them too.
    """

    instruction: str
    input: str | None = None
    context: str | None = None

    @classmethod
    def of(cls, text: str, input_: str | None, context: str | None) -> "Instruction":
        """Make an instruction with its fields."""
        fields = {"instruction": text, "input": input_, "context": context}
        given = {name: value for name, value in fields.items() if value is not None}
        made = cls(json.dumps(given, ensure_ascii=False) if len(given) > 1 else text)
        made.instruction, made.input, made.context = text, input_, context
        return made

    def to_prompt_value(self) -> NativePromptValue:
        """Return the prompt value with all fields; LangChain would make one of the text alone."""
        return NativePromptValue(instruction=self.instruction, input=self.input, context=self.context)
