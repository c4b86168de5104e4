"""What an answer may be: text, tool calls or JSON of a schema; and how tool calls are written and read."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel

from lince_rag.errors import ConfigurationError
from lince_rag.text.language import Language
from lince_rag.text.wording import wording

_CALLS_START: Final = '{"tool_calls":['
_CALL_START: Final = re.compile(r',?\{"name":("(?:[^"\\]|\\.)*"),"arguments":')
_BRACES: Final = re.compile(r'"(?:[^"\\]|\\.)*"?|[{}]')


@dataclass(frozen=True)
class WrittenCall:
    """A call as it stands in an answer, or its beginning.

    Attributes:
        name: The tool's name.
        arguments: Its arguments as JSON, so far.
        complete: Whether that is all of them.
    """

    name: str
    arguments: str
    complete: bool


def to_json(value: Any) -> str:
    """Write a value as prompts and answers have it: no white space, and every letter as itself.

    Args:
        value: Anything that JSON can hold.

    Returns:
        The JSON.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_calls(calls: Sequence[Mapping[str, Any]]) -> str:
    """Write calls the way models write them.

    Args:
        calls: LangChain's tool calls, with ``name`` and ``args``.

    Returns:
        The calls as an answer.
    """
    return to_json({"tool_calls": [{"name": call["name"], "arguments": call["args"]} for call in calls]})


def may_be_calls(text: str) -> bool:
    """Tell whether a text, or what it may go on to be, is an answer that calls tools.

    Args:
        text: An answer, or its beginning.

    Returns:
        Whether it is.
    """
    text = text.lstrip()
    return text.startswith(_CALLS_START) or _CALLS_START.startswith(text)


def read_calls(text: str) -> Iterator[WrittenCall]:
    """Read the calls of an answer, also of one that is still being written.

    Args:
        text: The answer so far; ``write_calls`` says how it begins.

    Yields:
        The calls in order; the last one may be incomplete.
    """
    text = text.lstrip()
    position = len(_CALLS_START) if text.startswith(_CALLS_START) else len(text)
    while start := _CALL_START.match(text, position):
        end = _find_end(text, start.end())
        yield WrittenCall(json.loads(start[1]), text[start.end() : end], end is not None)
        position = len(text) if end is None else end + 1


def _find_end(text: str, start: int) -> int | None:
    """Find the end of the object that starts at a position."""
    depth = 0
    for match in _BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.end()
    return None


# What may be given as a tool: LangChain's types.
Tool = dict[str, Any] | type | Callable[..., Any] | BaseTool

# The keywords of a call that say what its answer may be.
FORMATS: Final = ("tools", "tool_choice", "parallel_tool_calls", "response_format")

# Calls of one answer at most, where several are allowed.
MOST_CALLS: Final = 4

# Keywords of a schema that says elsewhere what it allows.
_COMBINED: Final = frozenset({"$ref", "allOf", "anyOf", "oneOf"})


@dataclass(frozen=True)
class AnswerFormat:
    """What an answer may be.

    Attributes:
        tools: The tools that may be called: OpenAI's function descriptions, with ``name`` and ``parameters``.
        must_call: Whether it has to be a call.
        parallel: Whether it may be several calls.
        schema: The JSON schema that it has to meet where it is no call.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    must_call: bool = False
    parallel: bool = False
    schema: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        tools: Sequence[Tool] | None = None,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        response_format: Any = None,
    ) -> "AnswerFormat":
        """Read the keywords of a call the way LangChain's models take them.

        Args:
            tools: Tools, functions, pydantic classes or OpenAI's descriptions.
            tool_choice: ``None`` or ``"auto"``, ``"none"``, ``"any"``, ``"required"`` or ``True``, a tool's name,
                or ``{"type": "function", "function": {"name": …}}``.
            parallel_tool_calls: Whether an answer may call several tools.
            response_format: A JSON schema, a pydantic class, ``{"type": "json_object"}``, or
                ``{"type": "json_schema", "json_schema": {"schema": …}}``.

        Returns:
            The format.

        Raises:
            ConfigurationError: The choice is none of the tools.
        """
        described = [_describe(tool) for tool in tools or ()]
        names = [function["name"] for function in described]
        chosen = _read_choice(tool_choice, names)
        kept = [] if chosen == "none" else [each for each in described if chosen in ("auto", "any", each["name"])]
        return cls(
            tuple(kept), chosen not in ("auto", "none"), bool(parallel_tool_calls), read_schema(response_format)
        )

    @property
    def is_text(self) -> bool:
        """Whether the answer can only be text."""
        return not self.tools and self.schema is None

    @property
    def text_allowed(self) -> bool:
        """Whether the answer may be text."""
        return self.schema is None and not self.must_call

    def json_schema(self) -> str | None:
        """Write the schema of what is not text.

        Returns:
            The schema as JSON; ``None`` where the answer can only be text.

        Raises:
            ConfigurationError: Two tools have the same name.
        """
        if not self.tools:
            return None if self.schema is None else json.dumps(self.schema)
        names = [function["name"] for function in self.tools]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"Two tools have the same name: {', '.join(names)}.", hint="Rename one.")
        definitions, options = {}, []
        for number, function in enumerate(self.tools):
            parameters = function.get("parameters") or {}
            if not parameters.keys() & _COMBINED:
                # A tool that names no argument takes none.
                parameters = {"type": "object", "properties": {}, "additionalProperties": False, **parameters}
            definitions[f"tool{number}"] = _moved(parameters, f"#/$defs/tool{number}")
            options.append(_object(name={"const": function["name"]}, arguments={"$ref": f"#/$defs/tool{number}"}))
        most = MOST_CALLS if self.parallel else 1
        calls = _object(tool_calls={"type": "array", "items": {"anyOf": options}, "minItems": 1, "maxItems": most})
        if self.schema is None or self.must_call:
            return json.dumps({"$defs": definitions, **calls})
        answer = dict(self.schema)
        if not answer.keys() & _COMBINED:
            # What is a call is not an answer, too: else arguments could be anything.
            open_ = {} if answer.get("properties") else {"additionalProperties": True}
            answer = {**open_, **answer, "properties": {"tool_calls": False, **answer.get("properties", {})}}
        definitions["answer"] = _moved(answer, "#/$defs/answer")
        return json.dumps({"$defs": definitions, "anyOf": [calls, {"$ref": "#/$defs/answer"}]})

    def instructions(self, language: Language) -> str:
        """Write what the model is told about its answer.

        Args:
            language: The language to tell it in.

        Returns:
            The instructions; the empty text where the answer can only be text.
        """
        parts = []
        if self.tools:
            word = wording("arguments", language)
            lines = [f"- {function['name']}: {_description(function, word)}" for function in self.tools]
            form = write_calls([{"name": "…", "args": {"…": "…"}}])
            key = "must_call" if self.must_call else "tools"
            parts.append(wording(key, language, tools="\n".join(lines), form=form))
        if self.schema is not None and not self.must_call:
            parts.append(wording("schema", language, schema=to_json(self.schema)))
        return "\n".join(parts)


def _describe(tool: Tool) -> Mapping[str, Any]:
    try:
        description: Mapping[str, Any] | None = convert_to_openai_tool(tool).get("function")
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{tool!r} is no tool.", hint="Give a list of tools, functions, pydantic classes or descriptions."
        ) from error
    if description is None:
        raise ConfigurationError(f"{tool!r} is a tool of some server.", hint="Give tools that run here.")
    return description


def _read_choice(choice: Any, names: Sequence[str]) -> str:
    """Return ``"auto"``, ``"none"``, ``"any"`` or the name of a tool."""
    if isinstance(choice, Mapping):
        choice = choice.get("name") or choice.get("function", {}).get("name") or choice.get("type")
    known = {None: "auto", False: "none", True: "any", "required": "any"}
    chosen = known.get(choice, choice) if isinstance(choice, str | bool | None) else repr(choice)
    if chosen not in ("auto", "none", "any", *names):
        raise ConfigurationError(
            f"tool_choice={choice!r} is none of the tools.",
            hint=f"Choose auto, any, none or one of {', '.join(names) or '(there are no tools)'}.",
        )
    if chosen == "any" and not names:
        raise ConfigurationError("tool_choice asks for a tool and there is none.", hint="Bind some tools.")
    return str(chosen)


def read_schema(response_format: Any) -> Mapping[str, Any] | None:
    """Read the JSON schema that a response format asks for.

    Args:
        response_format: As of ``AnswerFormat.of``.

    Returns:
        The schema; ``None`` where it asks for text.

    Raises:
        ConfigurationError: It has none.
    """
    if response_format is None or response_format == {"type": "text"}:
        return None
    if isinstance(response_format, type) and issubclass(response_format, BaseModel):
        # LangChain's conversion below writes references out, and leaves those of a class to itself open.
        return response_format.model_json_schema()
    if (
        not isinstance(response_format, Mapping)
        or "parameters" in response_format
        or "function" in response_format
    ):
        try:
            return convert_to_json_schema(cast(Any, response_format))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"response_format={response_format!r} is no schema.",
                hint="Give a pydantic class, a TypedDict or a JSON schema.",
            ) from error
    if response_format.get("type") == "json_object" and "properties" not in response_format:
        return {"type": "object"}
    if response_format.get("type") == "json_schema":
        inner = response_format.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else response_format.get("schema")
        if not isinstance(schema, Mapping):
            raise ConfigurationError(
                f"response_format={dict(response_format)!r} has no schema.",
                hint='Give {"type": "json_schema", "json_schema": {"schema": …}}, or the schema itself.',
            )
        return schema
    return response_format


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """Return a schema whose references hold where it stands as a part of another."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: f"{place}{value[1:]}"
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, place)
        for key, value in schema.items()
    }


def _description(function: Mapping[str, Any], word: str) -> str:
    described = " ".join(str(function.get("description") or "").split())
    properties = (function.get("parameters") or {}).get("properties", {})
    return f"{described} ({word}: {to_json(_without_titles(properties))})"


def _without_titles(schema: Any) -> Any:
    """Leave out the titles that pydantic makes of the names: they say nothing and take tokens."""
    if isinstance(schema, list):
        return [_without_titles(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: _without_titles(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }
