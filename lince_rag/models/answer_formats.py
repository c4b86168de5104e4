"""What an answer may be (text, tool calls or JSON for a schema), and how tool calls are written and read."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel

from lince_rag.engines.json_schema.grammar import to_json
from lince_rag.errors import ConfigurationError
from lince_rag.text.language import Language, wording

# The types that LangChain accepts as tools.
Tool = dict[str, Any] | type | Callable[..., Any] | BaseTool

# The keywords of a call that set the format of its answer.
FORMAT_KEYWORDS: Final = ("tools", "tool_choice", "parallel_tool_calls", "response_format")

# Maximum number of calls in one answer with parallel_tool_calls.
MOST_PARALLEL_CALLS: Final = 4

# Keywords of a schema that defines what it allows elsewhere.
_COMBINED: Final = frozenset({"$ref", "allOf", "anyOf", "oneOf"})

_CALLS_START: Final = '{"tool_calls":['
_CALL_START: Final = re.compile(r',?\{"name":("(?:[^"\\]|\\.)*"),"arguments":')
_BRACES: Final = re.compile(r'"(?:[^"\\]|\\.)*"?|[{}]')


@dataclass(frozen=True)
class AnswerFormat:
    """What an answer may be; the tools are OpenAI function descriptions with ``name`` and ``parameters``."""

    tools: tuple[Mapping[str, Any], ...] = ()
    # Whether the answer must be a tool call.
    must_call: bool = False
    # Whether the answer may hold several calls.
    parallel: bool = False
    # The JSON schema of an answer that is not a tool call.
    schema: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        tools: Sequence[Tool] | None = None,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        response_format: Any = None,
    ) -> "AnswerFormat":
        """Read the keywords of a call, documented in ``ChatLince.bind_tools`` and ``ChatLince.render``."""
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
        """Return the schema of an answer that is not text, as JSON; ``None`` if the answer can only be text."""
        if not self.tools:
            return None if self.schema is None else json.dumps(self.schema)
        names = [function["name"] for function in self.tools]
        if len(set(names)) < len(names):
            raise ConfigurationError(
                f"Two tools have the same name: {', '.join(names)}.", hint="Give each tool a different name."
            )
        definitions, options = {}, []
        for number, function in enumerate(self.tools):
            parameters = function.get("parameters") or {}
            if not parameters.keys() & _COMBINED:
                # A tool that declares no arguments takes none.
                parameters = {"type": "object", "properties": {}, "additionalProperties": False, **parameters}
            definitions[f"tool{number}"] = _rebase_references(parameters, f"#/$defs/tool{number}")
            options.append(_object(name={"const": function["name"]}, arguments={"$ref": f"#/$defs/tool{number}"}))
        most = MOST_PARALLEL_CALLS if self.parallel else 1
        calls = _object(tool_calls={"type": "array", "items": {"anyOf": options}, "minItems": 1, "maxItems": most})
        if self.schema is None or self.must_call:
            return json.dumps({"$defs": definitions, **calls})
        answer = dict(self.schema)
        if not answer.keys() & _COMBINED:
            # A call must not also match the answer's schema, or its arguments could be anything.
            open_ = {} if answer.get("properties") else {"additionalProperties": True}
            answer = {**open_, **answer, "properties": {"tool_calls": False, **answer.get("properties", {})}}
        definitions["answer"] = _rebase_references(answer, "#/$defs/answer")
        return json.dumps({"$defs": definitions, "anyOf": [calls, {"$ref": "#/$defs/answer"}]})

    def instructions(self, language: Language) -> str:
        """Return what the prompt says about the answer; empty if the answer can only be text."""
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


def read_schema(response_format: Any) -> Mapping[str, Any] | None:
    """Return the JSON schema that a response format asks for; ``None`` if it asks for text."""
    if response_format is None or response_format == {"type": "text"}:
        return None
    if isinstance(response_format, type) and issubclass(response_format, BaseModel):
        # LangChain's conversion below inlines references and leaves recursive ones unconstrained.
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
                f"response_format={response_format!r} is not a schema.",
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


@dataclass(frozen=True)
class WrittenCall:
    """A tool call in the text of an answer, which may still be incomplete."""

    name: str
    # JSON, as far as it is written.
    arguments: str
    complete: bool


def write_calls(calls: Sequence[Mapping[str, Any]]) -> str:
    """Write LangChain's tool calls (``name`` and ``args``) in the form that models generate."""
    return to_json({"tool_calls": [{"name": call["name"], "arguments": call["args"]} for call in calls]})


def may_be_calls(text: str) -> bool:
    """Return whether the beginning of an answer is, or may become, tool calls."""
    text = text.lstrip()
    return text.startswith(_CALLS_START) or _CALLS_START.startswith(text)


def read_calls(text: str) -> Iterator[WrittenCall]:
    """Read the calls of an answer in the form of ``write_calls``; the last one may be incomplete."""
    text = text.lstrip()
    position = len(_CALLS_START) if text.startswith(_CALLS_START) else len(text)
    while start := _CALL_START.match(text, position):
        end = _find_object_end(text, start.end())
        yield WrittenCall(json.loads(start[1]), text[start.end() : end], end is not None)
        position = len(text) if end is None else end + 1


def _find_object_end(text: str, start: int) -> int | None:
    depth = 0
    for match in _BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.end()
    return None


def _describe(tool: Tool) -> Mapping[str, Any]:
    """Return the OpenAI function description of a tool."""
    try:
        description: Mapping[str, Any] | None = convert_to_openai_tool(tool).get("function")
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{tool!r} is not a tool.",
            hint="Give LangChain tools, functions, pydantic classes or OpenAI function descriptions.",
        ) from error
    if description is None:
        raise ConfigurationError(
            f"{tool!r} is a server-side tool.", hint="Give tools that run in this process, such as functions."
        )
    return description


def _read_choice(choice: Any, names: Sequence[str]) -> str:
    """Return ``"auto"``, ``"none"``, ``"any"`` or the name of a tool."""
    if isinstance(choice, Mapping):
        choice = choice.get("name") or choice.get("function", {}).get("name") or choice.get("type")
    known = {None: "auto", False: "none", True: "any", "required": "any"}
    chosen = known.get(choice, choice) if isinstance(choice, str | bool | None) else repr(choice)
    if chosen not in ("auto", "none", "any", *names):
        raise ConfigurationError(
            f"tool_choice={choice!r} is not one of the tools.",
            hint=f"Choose auto, any, none or one of {', '.join(names) or '(there are no tools)'}.",
        )
    if chosen == "any" and not names:
        raise ConfigurationError(
            f"tool_choice={choice!r} requires a tool call, but there are no tools.", hint="Bind at least one tool."
        )
    return str(chosen)


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _rebase_references(schema: Any, place: str) -> Any:
    """Return a schema with its references adjusted to its place inside another schema."""
    if isinstance(schema, list):
        return [_rebase_references(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: f"{place}{value[1:]}"
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _rebase_references(value, place)
        for key, value in schema.items()
    }


def _description(function: Mapping[str, Any], word: str) -> str:
    described = " ".join(str(function.get("description") or "").split())
    properties = (function.get("parameters") or {}).get("properties", {})
    return f"{described} ({word}: {to_json(_without_titles(properties))})"


def _without_titles(schema: Any) -> Any:
    """Leave out the titles that pydantic derives from names: they add nothing and take tokens."""
    if isinstance(schema, list):
        return [_without_titles(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: _without_titles(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }
