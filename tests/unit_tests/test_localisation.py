"""The command line speaks one language: every help text, usage error and error that it prints is translated."""

import ast
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
import typer

import lince_rag
from lince_rag.cli.app import app, main
from lince_rag.cli.localisation import translate, translate_reason
from lince_rag.documents.files import _MAGIC
from lince_rag.text.language import LANGUAGES, load_table

PACKAGE = Path(lince_rag.__file__).parent
MESSAGES: dict[str, dict[str, str]] = load_table("messages")
TRANSLATED = [language for language in LANGUAGES if language != "en"]

# Whose errors are all translated. The others are for programmers, or for models that few have: they stay English.
COMPLETE = ["errors.py", "cli", "index", "documents", "text", "chain", "serve", "prompting/registry.py"]

ERRORS = {"Unreadable"} | {
    name for name, kind in vars(lince_rag.errors).items() if isinstance(kind, type) and issubclass(kind, Exception)
}

# English words that are no words of Spanish or Portuguese.
ENGLISH = re.compile(
    r"\b(the|of|with|and|is|are|this|that|from|which|not|its|your|must|should|be)\b", re.IGNORECASE
)


def fields(text: str) -> list[str]:
    return [field for _, field, _, _ in Formatter().parse(text) if field is not None]


@pytest.mark.parametrize("written", MESSAGES)
def test_every_sentence_has_both_languages_and_their_values(written: str) -> None:
    row = MESSAGES[written]
    assert list(row) == TRANSLATED
    for language in TRANSLATED:
        assert set(fields(row[language])) <= set(fields(written))
        assert set(fields(written)) - set(fields(row[language])) <= {"detail", "article"}
        assert not ENGLISH.search(
            re.sub(r"`[^`]*`|\"[^\"]*\"|\{.*?\}|lince-rag .*|hf .*|'[^']*'", "", row[language])
        ), row[language]


@pytest.mark.parametrize("written", MESSAGES)
def test_every_sentence_is_found_with_its_values(written: str) -> None:
    values = {name: f"‹{name}:1.x›" for name in fields(written)}
    for language in TRANSLATED:
        expected = MESSAGES[written][language].format(**values)
        assert translate(written.format(**values), language) == expected  # type: ignore[arg-type]
    assert translate(written.format(**values), "en") == written.format(**values)


def test_reasons_inside_are_translated_too() -> None:
    reason = "none of its files can be read (a: b.pdf: protected with a password)"
    assert translate_reason(f"x.zip: {reason}", "es").startswith(
        "x.zip: no se puede leer ninguno de sus archivos (a"
    )
    locked = "protected with a password (give it with --password)"
    assert translate_reason(f"a.pdf: {locked}", "es") == "a.pdf: protegido con contraseña (dala con --password)"
    assert translate_reason(f"a.pdf: {locked}", "pt") == "a.pdf: protegido com senha (dê-a com --password)"
    assert translate_reason("a.zip/b: c.txt: the file is empty", "pt") == "a.zip/b: c.txt: o arquivo está vazio"
    assert translate("The index folder /x cannot be used: Permission denied.", "es").endswith("falta el permiso.")
    assert translate("Quite unknown: nothing.", "es") == "Quite unknown: nothing."


# ------------------------------------------------------------------------------------------------ the code's texts


def templates(node: ast.AST, constants: dict[str, ast.AST]) -> Iterator[str]:
    """The texts that an expression may give, with {} for each value; nothing for what only running it can tell."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)  # type: ignore[misc]
    elif isinstance(node, ast.IfExp):
        yield from templates(node.body, constants)
        yield from templates(node.orelse, constants)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for left in templates(node.left, constants):
            yield from (left + right for right in templates(node.right, constants) or [""])
    elif isinstance(node, ast.Name) and node.id in constants:
        yield from templates(constants[node.id], constants)


def texts_of_errors(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign | ast.Assign) and node.value
        for target in ([node.target] if isinstance(node, ast.AnnAssign) else node.targets)
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in ERRORS:
            continue
        given = node.args[-1:] if getattr(node.func, "id", "") == "DocumentError" else node.args[:1]
        if getattr(node.func, "id", "") == "MissingExtraError":
            continue
        for argument in [*given, *(keyword.value for keyword in node.keywords if keyword.arg == "hint")]:
            yield from templates(argument, constants)


def normal(written: str) -> str:
    return "".join(
        literal + ("{}" if field is not None else "") for literal, field, _, _ in Formatter().parse(written)
    )


def missing(path: Path) -> list[str]:
    """The texts of errors in a file that have no translation; those that are only values need none."""
    known = {normal(written) for written in MESSAGES}
    return [
        text
        for text in texts_of_errors(path)
        if text not in known and re.search(r"[a-z]{2}", text.replace("{}", "")) and not is_translated(text)
    ]


def is_translated(text: str) -> bool:
    """Whether a text, with some value in it, is translated by a more general one."""
    written = text.replace("{}", "‹1›")
    return translate(written, "es") != written


@pytest.mark.parametrize("place", COMPLETE)
def test_every_error_that_the_command_line_prints_has_a_translation(place: str) -> None:
    files = sorted((PACKAGE / place).rglob("*.py")) if (PACKAGE / place).is_dir() else [PACKAGE / place]
    found = {str(path.relative_to(PACKAGE)): texts for path in files if (texts := missing(path))}
    assert not found, "Add these to prompts/messages.toml"


def test_what_is_raised_is_found() -> None:
    texts = list(texts_of_errors(PACKAGE / "index" / "opening.py"))
    assert "There is no index in {}." in texts
    assert len(texts) > 8


# ----------------------------------------------------------------------------------------------------------- help


def commands(command: Any = None) -> list[Any]:
    """The command line, its commands, and theirs."""
    command = command or typer.main.get_command(app)
    return [command, *(each for below in getattr(command, "commands", {}).values() for each in commands(below))]


@pytest.fixture
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "en")


@pytest.mark.usefixtures("english")
def test_every_help_text_has_a_translation() -> None:
    every = commands()
    found = [" ".join((command.help or "").split()) for command in every]
    found += [parameter.help for command in every for parameter in command.params]
    assert len(found) > 100
    assert [text for text in found if text not in MESSAGES] == []


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints in a language."""

    def run(language: str, *arguments: str, status: int = 0) -> str:
        monkeypatch.setenv("LC_ALL", f"{language}.UTF-8")
        monkeypatch.setenv("COLUMNS", "500")
        monkeypatch.setattr(sys, "argv", ["lince-rag", *arguments])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == status
        return "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize("language", ["es_ES", "pt_BR"])
def test_help_has_no_english_sentence(language: str, shown: Callable[..., str]) -> None:
    for command in ("", "ask", "search", "chat", "ingest", "eval", "convert", "serve", "keys"):
        out = shown(language, *filter(None, [command]), "--help")
        assert not ENGLISH.search(re.sub(r"'[^']*'|`[^`]*`", "", out)), out
        assert ("Opciones:" if language == "es_ES" else "Opções:") in out
        assert command in ("", "convert", "keys") or ("por defecto" if language == "es_ES" else "padrão") in out


def test_values_are_named_in_the_readers_language(shown: Callable[..., str]) -> None:
    out = shown("es", "ingest", "--help")
    assert "[RUTA]..." in out
    assert "--index CARPETA" in out
    assert "--workers NÚMERO" in out
    assert "--vectors <now|later>" in out
    assert re.search(r"<(str|int|float|list)", shown("en", "ask", "--help")) is None


def test_other_names_are_of_commands() -> None:
    known = {command.name for command in commands()}
    rows = [row for text in load_table("wording")["other_command_names"].values() for row in text.splitlines()]
    assert {row.partition(":")[0] for row in rows if row} <= known


@pytest.mark.parametrize("language", ["es", "pt", "en"])
def test_the_list_of_commands_cuts_no_sentence(language: str, shown: Callable[..., str]) -> None:
    assert "..." not in shown(language, "--help").replace("]...", "")


@pytest.mark.parametrize(
    ("arguments", "es", "pt", "en"),
    [
        (["nonsense"], "No existe la orden 'nonsense'.", "Não existe o comando 'nonsense'.", "No such command"),
        (["statu"], "¿Querías decir 'status'?", "Queria dizer 'status'?", "Did you mean 'status'?"),
        (["aks"], "¿Querías decir 'ask'?", "Queria dizer 'ask'?", "Did you mean 'ask'?"),
        (["preguntar"], "¿Querías decir 'ask'?", "Queria dizer 'ask'?", "Did you mean 'ask'?"),
        (["Perguntar"], "¿Querías decir 'ask'?", "Queria dizer 'ask'?", "Did you mean 'ask'?"),
        (["ingerri"], "¿Querías decir 'ingest'?", "Queria dizer 'ingest'?", "Did you mean 'ingest'?"),
        (["añadir"], "¿Querías decir 'ingest'?", "Queria dizer 'ingest'?", "Did you mean 'ingest'?"),
        (["keys", "añadir"], "¿Querías decir 'add'?", "Queria dizer 'add'?", "Did you mean 'add'?"),
        (["ask"], "Falta el argumento 'PREGUNTA'.", "Falta o argumento 'PERGUNTA'.", "Missing argument"),
        (["ask", "x", "--langage", "y"], "parecidas: --language", "parecidas: --language", "Possible options"),
        (["ask", "x", "--indice", "y"], "(parecidas: --index)", "(parecidas: --index)", "options: --index)"),
        (["ask", "x", "--model-paths", "y"], "-path, --base-model", "-path, --base-model", "-path, --base-model"),
        (["ask", "x", "--encoding", "y"], "opción --encoding\n", "opção --encoding\n", "option: --encoding\n"),
        (["ask", "x", "-k", "0"], "tiene que ser al menos 1", "tem de ser pelo menos 1", "or equal to 1"),
        (["ask", "x", "-k", "a"], "un número entero", "um número inteiro", "valid integer"),
        (["ask", "x", "--minimum-confidence", "2"], "como mucho 1", "no máximo 1", "less than or equal to 1"),
        (["ask", "x", "--minimum-confidence", "a"], "ser un número", "ser um número", "valid number"),
        (["ask", "x", "y"], "Sobran argumentos (y)", "Sobram argumentos (y)", "unexpected extra argument(s) (y)"),
        (["ask", "x", "y"], "entre comillas", "entre aspas", "in quotation marks"),
        (["ask", "x", "--index"], "le falta su valor", "Falta o valor", "requires an argument"),
        (["ask", "x", "--json=1"], "no lleva ningún valor", "não leva valor", "does not take a value"),
        (["convert", "x"], "Falta la opción '--to'", "Falta a opção '--to'", "Missing option '--to'"),
        (["ingest", "x", "--vectors", "y"], "'y' no es uno de", "'y' não é um de", "'y' is not one of"),
        (["ingest", "x", "--since", "y"], "ser una fecha", "ser uma data", "valid date"),
        (["ask", "x", "--index", "/nowhere"], "No hay ningún índice", "Não há nenhum índice", "There is no index"),
    ],
)  # fmt: skip
def test_errors_are_in_the_readers_language(
    arguments: list[str], es: str, pt: str, en: str, shown: Callable[..., str]
) -> None:
    for language, said in (("es", es), ("pt", pt), ("en", en)):
        out = shown(language, *arguments, status=2)
        assert said in out
        if language != "en":
            assert not ENGLISH.search(out), out


@pytest.mark.parametrize("kind", sorted({kind for _, kind in _MAGIC}))
def test_the_kind_of_a_file_is_named_in_the_readers_language(kind: str) -> None:
    for language in ("es", "pt"):
        said = translate(f"named .txt, but its content is {kind}", language)
        assert not re.search(r"\b(?:image|old|or|its|damaged)\b", said), said
