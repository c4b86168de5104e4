"""LangChain messages → what chat templates take, and the prompt template that fills the formats' own fields."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate
from langchain_core.prompts.string import get_template_variables
from langchain_core.utils.formatting import formatter
from pydantic import model_validator

from lince_rag.errors import TemplateError
from lince_rag.models.answer_formats import instruction
from lince_rag.models.tool_calls import to_json, write_calls
from lince_rag.prompting.context import as_template_documents
from lince_rag.text.language import DEFAULT_LANGUAGE, Language

_ROLES: dict[type[BaseMessage], str] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "user",
}

# Blocks of an AI message that say what its tool_calls say.
_CALL_BLOCKS = frozenset({"tool_use", "tool_call"})


class Instruction(str):
    """An instruction with the input and the context that go into fields of their own.

    A string, so that it passes through LangChain's text-in text-out interface: where there are fields it is a
    JSON object of all three, so that caches, traces and other packages' models see them, too.

    Attributes:
        instruction: The instruction alone.
        input: The format's Entrada, or ``None``.
        context: The format's Contexto, or ``None``.
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

    def to_prompt_value(self) -> "NativePromptValue":
        """Return what LangChain hands on whole; of a text it hands on the text alone."""
        return NativePromptValue(instruction=self.instruction, input=self.input, context=self.context)


class NativePromptValue(PromptValue):
    """A filled-in ``NativePrompt``: an ``Instruction`` for text models, a human message for chat models."""

    type: Literal["NativePromptValue"] = "NativePromptValue"

    instruction: str
    input: str | None = None
    context: str | None = None

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Say where ``langchain_core.load`` finds the class: not among LangChain's own prompts."""
        return cls.__module__.split(".")

    def to_string(self) -> str:
        """Return the instruction, its fields attached."""
        return Instruction.of(self.instruction, self.input, self.context)

    def to_messages(self) -> list[BaseMessage]:
        """Return one human message: the context is a ``text-plain`` block, the input a field beside the text."""
        blocks: list[str | dict[Any, Any]] = [{"type": "text", "text": self.instruction}]
        if self.context is not None:
            blocks.append({"type": "text-plain", "text": self.context, "mime_type": "text/plain"})
        extra = {} if self.input is None else {"input": self.input}
        return [HumanMessage(content=blocks, additional_kwargs=extra)]


class NativePrompt(BasePromptTemplate[str]):
    """A prompt template whose instruction, input and context reach the model's own fields.

    The three are f-string templates; one that is ``None`` leaves its section out.

    Args:
        instruction: The instruction.
        input: What goes into the format's Entrada.
        context: What goes into the format's Contexto.

    Example:
        >>> prompt = NativePrompt(instruction="Resume en {n} frases.", context="{documento}")
        >>> chain = prompt | LinceLLM(model=..., model_path=...)
    """

    instruction: str
    input: str | None = None
    context: str | None = None

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Say where ``langchain_core.load`` finds the class: not among LangChain's own prompts."""
        return cls.__module__.split(".")

    @model_validator(mode="before")
    @classmethod
    def _find_variables(cls, values: Any) -> Any:
        templates = [values.get(name) for name in ("instruction", "input", "context")]
        found = {name for text in templates if text for name in get_template_variables(text, "f-string")}
        return {**values, "input_variables": sorted(found - set(values.get("partial_variables") or {}))}

    def format_prompt(self, **kwargs: Any) -> NativePromptValue:
        """Fill in the variables."""
        values = self._merge_partial_and_user_variables(**kwargs)
        return NativePromptValue(
            instruction=formatter.format(self.instruction, **values),
            input=None if self.input is None else formatter.format(self.input, **values),
            context=None if self.context is None else formatter.format(self.context, **values),
        )

    async def aformat_prompt(self, **kwargs: Any) -> NativePromptValue:
        """Fill in the variables."""
        return self.format_prompt(**kwargs)

    def format(self, **kwargs: Any) -> str:
        """Fill in the variables; the fields stay attached to the text."""
        return self.format_prompt(**kwargs).to_string()

    @property
    def _prompt_type(self) -> str:
        return "native-prompt"


def to_template(
    messages: Sequence[BaseMessage],
    documents: Sequence[Document] = (),
    language: Language = DEFAULT_LANGUAGE,
) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Turn messages and documents into what chat templates take.

    The calls of an AI message are written as the model writes them. The results of tools, errors too, become the
    input of a user turn.

    Args:
        messages: System, human, AI and tool messages with text; a ``text-plain`` block is a document, and a human
            message may have an ``input`` in its ``additional_kwargs``.
        documents: Further documents, which come first.
        language: The language of the sentence that the results of tools follow.

    Returns:
        The messages and the documents of a template.

    Raises:
        TemplateError: A message or a block has no place in a text prompt.
    """
    converted = as_template_documents(documents)
    names: dict[str | None, str] = {}
    turns: list[dict[str, str]] = []
    for before, message in zip([None, *messages], messages, strict=False):
        content = "".join(_texts(message, converted))
        if isinstance(message, ToolMessage):
            name = message.name or names.get(message.tool_call_id) or message.tool_call_id
            if not isinstance(before, ToolMessage):
                turns.append({"role": "user", "content": instruction("results", language)})
            # As JSON, so that no result can look like another's.
            result = to_json({"name": name, "error" if message.status == "error" else "result": content})
            turns[-1]["input"] = "\n".join(filter(None, (turns[-1].get("input"), result)))
            continue
        if isinstance(message, AIMessage) and message.tool_calls:
            names |= {call["id"]: call["name"] for call in message.tool_calls}
            content = "\n".join(filter(None, (content, write_calls(message.tool_calls))))
        turn = {"role": _role(message), "content": content}
        if (entered := message.additional_kwargs.get("input")) is not None:
            turn["input"] = entered
        turns.append(turn)
    return turns, converted


def with_instructions(messages: Sequence[BaseMessage], instructions: SystemMessage) -> list[BaseMessage]:
    """Put instructions after the system message, or first where there is none.

    Args:
        messages: A conversation.
        instructions: The instructions.

    Returns:
        The conversation with them.
    """
    system = [message for message in messages[:1] if isinstance(message, SystemMessage)]
    return [*system, instructions, *messages[len(system) :]]


def join_turns(turns: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Make one turn of those of one role that follow each other, a blank line between their texts.

    Args:
        turns: The messages of a template.

    Returns:
        The messages, their roles alternating.
    """
    joined: list[dict[str, str]] = []
    for turn in turns:
        if not joined or joined[-1]["role"] != turn["role"]:
            joined.append(dict(turn))
            continue
        before = joined[-1]
        for key in ("content", "input"):
            if key in turn:
                before[key] = f"{before[key]}\n\n{turn[key]}" if key in before else turn[key]
    return joined


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return role
    raise TemplateError(
        f"A message of type {message.type!r} has no place in these formats.",
        hint="Use system, human, AI and tool messages.",
    )


def _texts(message: BaseMessage, documents: list[dict[str, Any]]) -> list[str]:
    """Return the texts of a message; its plain-text documents join the others."""
    texts = []
    for block in [message.content] if isinstance(message.content, str) else message.content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(str(block["text"]))
        elif block.get("type") == "text-plain" and isinstance(block.get("text"), str):
            title = {"title": block["title"]} if block.get("title") else {}
            documents.append({"text": block["text"], **title})
        elif not (isinstance(message, AIMessage) and block.get("type") in _CALL_BLOCKS):
            raise TemplateError(
                f"A content block of type {block.get('type')!r} cannot be written into a text prompt.",
                hint="These models read text, and documents as text-plain blocks.",
            )
    return texts
