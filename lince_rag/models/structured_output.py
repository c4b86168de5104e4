"""``bind_tools`` and ``with_structured_output``: what ChatLince can be bound to, and the parser of its JSON."""

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import BaseOutputParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from lince_rag.engines.extractive import EXTRACTIVE
from lince_rag.errors import ConfigurationError
from lince_rag.models.answer_formats import AnswerFormat, Tool, read_schema
from lince_rag.prompting.registry import load_registry


class FormatBinding(BaseChatModel):
    """A chat model whose calls take ``tools`` and ``response_format``."""

    models_file: Path | None
    model: str

    def _resolve_model_profile(self) -> ModelProfile:
        row = load_registry(self.models_file).get(self.model)
        constrains = row is None or row.engine != EXTRACTIVE
        profile = ModelProfile(tool_calling=True, tool_choice=True, structured_output=constrains)
        return profile if row is None else {**profile, "max_input_tokens": row.context_window}

    def bind_tools(
        self,
        tools: Sequence[Tool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools, by exact names and with valid arguments.

        The tools are described to it in its own language; decoding lets through nothing but text or calls. The
        embedded engine calls tools that take one text: it searches with the question.

        Args:
            tools: Tools, functions, pydantic classes or OpenAI's descriptions.
            tool_choice: ``None`` or ``"auto"`` leaves it to the model, ``"any"`` (or ``True``) asks for a call,
                ``"none"`` for text, a name for a call of that tool.
            parallel_tool_calls: Whether an answer may be several calls; otherwise it is one.
            **kwargs: More keywords of the call.

        Returns:
            The model with the tools bound.

        Raises:
            ConfigurationError: The choice is none of the tools.
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
        """Return objects of a schema: decoding lets through nothing but JSON that meets it.

        Args:
            schema: A pydantic class, a TypedDict or a JSON schema; with ``json_mode`` it may be left out.
            include_raw: Whether to return a dict of ``raw``, ``parsed`` and ``parsing_error``.
            method: ``"json_schema"`` and ``"json_mode"`` do the same where there is a schema;
                ``"function_calling"`` makes the model call a tool of that form.
            **kwargs: More keywords of the call.

        Returns:
            A Runnable from a prompt to an object of the class, or a dict. A stream gives what there is so far:
            dicts that grow, and of a class the objects that are valid already; the last one is whole.

        Raises:
            ConfigurationError: There is no schema.
        """
        if schema is None and method != "json_mode":
            raise ConfigurationError(
                f"method={method!r} needs a schema.", hint="Give one, or use method='json_mode'."
            )
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        # Grammars are always strict.
        kwargs.pop("strict", None)
        asked = {"type": "json_object"} if schema is None else read_schema(schema)
        described = {"kwargs": {"method": method}, "schema": schema or asked}
        llm = self.bind(response_format=asked, ls_structured_output_format=described, **kwargs)
        return parse_structured(llm, schema, include_raw=include_raw)


def parse_structured(
    llm: Runnable[LanguageModelInput, AIMessage], schema: Any, *, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """Put the parser of a schema behind a model that is held to it.

    Args:
        llm: The model.
        schema: A pydantic class, which its objects will be of; with anything else they are dicts, partial ones
            while they stream.
        include_raw: Whether to return a dict of the message (``raw``), the object (``parsed``) and what went wrong
            in parsing (``parsing_error``).

    Returns:
        A Runnable from a prompt to the object.
    """
    parser: BaseOutputParser[Any] = JsonOutputParser()
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        parser = PydanticOutputParser(pydantic_object=schema)
    if not include_raw:
        return llm | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")
