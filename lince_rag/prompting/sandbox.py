"""Chat templates in the same Jinja sandbox that transformers uses, so that one file works in both."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lince_rag.errors import TemplateError

# What a template can raise on messages that it was not made for; the sandbox allows Python's operators.
_RENDERING_ERRORS: Final = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


class _GenerationTag(jinja2.ext.Extension):
    """The ``{% generation %}`` block of Hugging Face, which matters only in training; its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace, without the names through which a template could reach Python's internal objects."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        if any(name.startswith("_") for name in dict(*args[1:], **kwargs)):
            raise jinja2.TemplateError("A namespace cannot hold names that begin with an underscore.")
        jinja2.utils.Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.TemplateError("A namespace cannot hold names that begin with an underscore.")
        super().__setitem__(name, value)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson_filter(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson_filter
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    environment.globals["namespace"] = _Namespace
    return environment


class JinjaTemplate:
    """A compiled chat template, made from its Jinja source; the name is used in errors."""

    def __init__(self, source: str, name: str) -> None:
        self.name = name
        try:
            self._template = _environment().from_string(source)
            variables = jinja2.meta.find_undeclared_variables(_environment().parse(source))
        except jinja2.TemplateError as error:
            raise TemplateError(f"{name}: {error}.", hint="Correct the Jinja source of the template.") from error
        self.takes_documents = "documents" in variables

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        documents: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool,
        special_tokens: Mapping[str, str],
    ) -> str:
        """Render the template; ``special_tokens`` are the values of its ``bos_token`` and the like."""
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=documents or None,
                add_generation_prompt=add_generation_prompt,
                **special_tokens,
            )
        except _RENDERING_ERRORS as error:
            raise TemplateError(
                f"{self.name}: {error}", hint="Check the roles and the order of the messages."
            ) from error
