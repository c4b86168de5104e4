"""The command line in the reader's language: help texts, usage errors, and the errors of the library.

The code is in English. ``prompts/messages.toml`` has each sentence of it in Spanish and Portuguese, found by the
English one; what is put into a sentence is written there as ``{name}``, and found again by matching.
"""

import os
import re
import sys
from difflib import get_close_matches
from functools import cache
from string import Formatter
from typing import Any, Final

import typer.core
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.exceptions import TyperException

from lince_rag.errors import DocumentError, LinceError
from lince_rag.text.language import DEFAULT_LANGUAGE, LANGUAGES, Language, fold, load_table

# Values that are sentences themselves.
_SENTENCES: Final = frozenset({"reason", "hint"})


# How like the name of an option must be to be suggested: 1 is the same.
_NEAR: Final = 0.7

# What moves the cursor, changes colours or reverses the text on a terminal; file names and documents may hold it.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def reader_language() -> Language:
    """Return the language of the reader's locale (``LC_ALL``, ``LC_MESSAGES``, ``LANG``), else Spanish."""
    for variable in ("LC_ALL", "LC_MESSAGES", "LANG"):
        code = os.environ.get(variable, "")[:2].lower()
        for language in LANGUAGES:
            if code == language:
                return language
    return DEFAULT_LANGUAGE


def visible(text: str) -> str:
    r"""Write control characters as escapes, such as ``\x1b``, except for line ends and tabs."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def translate(text: str, language: Language | None = None) -> str:
    """Return an English sentence of the package in the reader's language; an unknown one stays as it is."""
    language = language or reader_language()
    if language == "en" or not text:
        return text
    if "{" not in text and (row := load_table("messages").get(text)):
        return str(row[language])
    for literal, written, row in _templates():
        if literal in text and (match := _pattern(written).fullmatch(text)):
            values = {
                name: translate(value, language) if name in _SENTENCES else value
                for name, value in match.groupdict().items()
            }
            return str(row[language].format(**values))
    return text


@cache
def _templates() -> list[tuple[str, str, dict[str, str]]]:
    """Return the sentences with values, the most specific first: the longest piece of each, itself, and its row.

    One that begins with words comes before one that begins with a value.
    """
    found = []
    for written, row in load_table("messages").items():
        pieces = [(literal, field) for literal, field, _, _ in Formatter().parse(written)]
        if "{" in written:
            order = not pieces[0][0], -sum(len(literal) for literal, _ in pieces)
            found.append((order, max((literal for literal, _ in pieces), key=len), written, row))
    return [(literal, written, row) for _, literal, written, row in sorted(found, key=lambda each: each[0])]


def _typer_word(text: str) -> str:
    """Translate a word of typer's, whose values it puts in afterwards."""
    row = {} if reader_language() == "en" else load_table("messages").get(text, {})
    return str(row.get(reader_language(), text))


@cache
def _pattern(written: str) -> re.Pattern[str]:
    """Return the pattern of the sentences that a template makes."""
    pattern, seen = "", set[str]()
    for literal, field, _, _ in Formatter().parse(written):
        pattern += re.escape(literal)
        if field:
            pattern += f"(?P={field})" if field in seen else f"(?P<{field}>.*?)"
            seen.add(field)
    return re.compile(pattern, re.DOTALL)


def translate_reason(text: str, language: Language | None = None) -> str:
    """Translate the reason why something could not be read, which may begin with names of files."""
    translated = translate(text, language)
    name, colon, reason = text.partition(": ")
    if translated == text and colon:
        return f"{name}: {translate_reason(reason, language)}"
    return translated


def print_error(error: LinceError) -> None:
    """Print an error as one line on the error stream."""
    message = translate(error.message)
    if isinstance(error, DocumentError):
        message = f"{error.source}: {translate_reason(error.reason)}"
    line = f"lince-rag: {message} {translate(error.hint)}".replace("\n", " ").rstrip()
    sys.stderr.write(visible(line) + "\n")


def print_usage_error(error: Any) -> None:
    """Print an error in the use of a command, as typer found it, after how the command is used."""
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(f"{error.message}\n")
        return
    if context := getattr(error, "ctx", None):
        hint = translate(f"Try '{context.command_path} --help' for help.")
        sys.stderr.write(f"{context.get_usage()}\n{hint}\n\n")
    written = error.format_message()
    if getattr(error, "possibilities", None):
        # typer compares the dashes too, and lists in the order of the alphabet.
        names = {name.lstrip("-"): name for name in error.possibilities}
        near = get_close_matches(fold(error.option_name.lstrip("-")), names, cutoff=_NEAR)
        listed = ", ".join(names[each] for each in near)
        written = error.message + (f" (Possible options: {listed})" if near else "")
    message = translate(written)
    takes_question = context and any(each.name == "question" for each in context.command.params)
    if takes_question and error.message.startswith("Got unexpected extra"):
        # A shell splits a question at its spaces.
        message += f". {translate('Put the question in quotation marks.')}"
    sys.stderr.write(visible(f"{translate('Error')}: {message}") + "\n")


class _Localised:
    """What commands and their group have in common: help in the reader's language."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for name in ("help", "options_metavar", "subcommand_metavar"):
            if written := getattr(self, name, None):
                setattr(self, name, translate(written))
        # "Options", "required", "default" … typer looks up this name when it prints help.
        setattr(typer.core, "_", _typer_word)  # noqa: B010 - mypy sees no such name

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)  # type: ignore[misc]
        for each in params:
            each.help = translate(each.help or "")
            kind = each.type_descriptor
            if isinstance(each, TyperArgument):
                each.metavar = translate(each.metavar or each.name.upper())
                # Instead of "<list[str]>" after the name.
                setattr(each, "display_type_rich", _no_type)  # noqa: B010 - mypy takes it for a method
            elif each.metavar or not kind.is_choice:
                written = "NUMBER" if kind.is_ranged or each.bare_type() in ("int", "float") else "TEXT"
                each.metavar = translate(each.metavar or written)
        return params

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        pieces = " ".join(self.collect_usage_pieces(ctx))  # type: ignore[attr-defined]
        formatter.write_usage(ctx.command_path, pieces, prefix=translate("Usage: "))


def _no_type(ctx: Any) -> None:
    """Show no type."""


class LocalisedCommand(_Localised, TyperCommand):
    """A command with help in the reader's language."""


class LocalisedGroup(_Localised, TyperGroup):
    """The command line with help in the reader's language."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, or suggest one for a misspelt or translated name."""
        try:
            return super().resolve_command(ctx, args)
        except TyperException as error:
            names = self._other_names()
            typed = fold(args[0].lower())
            # typer itself has looked for one that is near in English.
            near = [typed] if typed in names else get_close_matches(typed, names, n=1)
            if near and (near[0] == typed or "Did you mean" not in error.message):
                error.message = f"No such command {args[0]!r}. Did you mean {names[near[0]]!r}?"
            raise

    def _other_names(self) -> dict[str, str]:
        """Return the command for each of its names in the three languages."""
        rows = (row for text in load_table("wording")["other_command_names"].values() for row in text.splitlines())
        found = (row.partition(":") for row in rows)
        return {name: command for command, _, names in found if command in self.commands for name in names.split()}

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the first sentence of each command's help, whole: typer cuts it at the end of a line."""
        found = [(name, command) for name, command in self.commands.items() if not command.hidden]
        with formatter.section(_typer_word("Commands")):
            formatter.write_dl([(name, re.split(r"(?<=\.)\s", command.help or "")[0]) for name, command in found])
