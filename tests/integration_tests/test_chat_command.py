"""`lince-rag chat`, through a real process, with a session that is kept on SQLite."""

import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import pytest
from langchain_core.documents import Document

from lince_rag import Index
from lince_rag.cli.chat import SESSIONS_FILE, open_session
from tests.integration_tests.commands import COMMAND, environment, run


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "index"
    texts = {
        "refugio": "La noche en el refugio cuesta 16 euros. El refugio lo atiende Severino Cascajares.",
        "caldera": "La presión de la caldera en frío debe estar entre 1,2 y 1,5 bar.",
    }
    with Index.open(folder) as opened:
        opened.ingest([Document(text, metadata={"source": name}) for name, text in texts.items()])
    return folder


def chat(index: Path, said: str, *options: str, status: int = 0) -> tuple[str, str]:
    return run("chat", "--index", str(index), *options, given=said, status=status)


def test_a_follow_up_is_understood_and_the_session_goes_on(index: Path) -> None:
    out, err = chat(
        index, "¿Cuánto cuesta la noche en el refugio?\n\n¿Y quién lo atiende?\n", "--session", "viaje"
    )
    assert "16 euros" in out
    assert "Severino Cascajares" in out.partition("refugio\n")[2]
    assert err == ""
    out, _ = chat(index, "¿Y qué presión tiene la caldera?", "--session", "viaje")
    assert "2 preguntas" in out
    assert "1,2 y 1,5 bar" in out
    kept = open_session(index, "viaje").messages
    assert [turn.type for turn in kept] == ["human", "ai"] * 3
    assert kept[2].text == "¿Y quién lo atiende?"


def test_sessions_are_apart_and_an_index_with_sessions_is_whole(index: Path) -> None:
    chat(index, "¿Quién atiende el refugio?", "--session", "otra")
    assert len(open_session(index, "otra").messages) == 2
    assert (index / SESSIONS_FILE).is_file()
    with Index.open(index, create=False) as opened:
        assert opened.verify().ok


def test_without_a_name_nothing_is_kept(index: Path) -> None:
    before = len(open_session(index, "viaje").messages)
    out, _ = chat(index, "¿Quién atiende el refugio?\n")
    assert "Severino" in out
    assert len(open_session(index, "viaje").messages) == before


def test_the_language_of_answers_may_be_set(index: Path) -> None:
    out, _ = chat(index, "¿Quién ganó el mundial de fútbol?\n", "--language", "pt")
    assert out == "Não encontro isso nos documentos.\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--language", "fr"], "fr"),
        (["--models-file", "missing.toml"], "missing.toml"),
        (["--session", " "], "sesión"),
        (["--model", "lince-cero"], "lince-cero"),
        (["--on-unsupported", "x"], "'x'"),
    ],
)
def test_wrong_use_is_one_line(index: Path, options: list[str], said: str) -> None:
    out, err = chat(index, "¿Qué?", *options, status=2)
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_nothing_said_is_no_error(index: Path) -> None:
    assert chat(index, "") == ("", "")


def test_greetings_and_commands_are_not_searched_for(index: Path) -> None:
    out, err = chat(index, "hola\n/ayuda\n¿Quién atiende el refugio?\ngracias\n", "--session", "cortés")
    assert out.count("Aquí estoy.") == 2
    assert "/fuente NOMBRE" in out
    assert "Severino Cascajares" in out
    assert "Fuentes" in out
    assert err == ""
    assert [turn.text for turn in open_session(index, "cortés").messages[::2]] == [
        "hola", "¿Quién atiende el refugio?", "gracias",
    ]  # fmt: skip


def test_commands_narrow_what_is_read(index: Path) -> None:
    said = ["/fuente caldera", "¿Quién atiende el refugio?", "/sources", "/source", "¿Quién atiende el refugio?"]
    out, err = chat(index, "\n".join(said))
    narrow, wide = out.split("Se busca en todos los documentos.")
    assert "Se busca solo en: caldera" in narrow
    assert "Severino" not in narrow
    assert re.search(r"^caldera +es", narrow, re.MULTILINE)
    assert not re.search(r"^refugio +es", narrow, re.MULTILINE)
    assert "Severino" in wide
    assert err == ""


def test_commands_forget_and_end(index: Path) -> None:
    said = "¿Quién atiende el refugio?\n/olvidar\n¿Cuánto cuesta la noche en el refugio?\n/exit\n¿Y la caldera?\n"
    chat(index, said, "--session", "olvido")
    asked = [turn.text for turn in open_session(index, "olvido").messages[::2]]
    assert asked == ["¿Cuánto cuesta la noche en el refugio?"]


@pytest.mark.parametrize("word", ["salir", "Exit"])
def test_the_word_that_ends_it_needs_no_slash(index: Path, word: str) -> None:
    assert chat(index, f"{word}\n¿Quién atiende el refugio?\n") == ("", "")


def test_a_mistyped_command_is_no_question(index: Path) -> None:
    out, _ = chat(index, "/fuent\n/xyz\n", "--session", "errata")
    assert "«/fuent» no es una orden. ¿Querías decir /fuente?" in out
    assert "«/xyz» no es una orden.\n" in out
    assert open_session(index, "errata").messages == []


def test_a_wrong_name_ends_what_a_file_says(index: Path) -> None:
    _, err = chat(index, "/source calderas\n¿Quién atiende el refugio?\n", status=2)
    assert "caldera" in err
    _, err = chat(index, "", "--source", "calderas", status=2)
    assert "caldera" in err


def test_on_a_terminal_names_are_completed_and_errors_are_no_end(index: Path) -> None:
    terminal, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "chat", "--index", str(index)],
        stdin=follower, stdout=follower, stderr=follower, env=environment(TERM="xterm"),
    )  # fmt: skip
    os.close(follower)
    # Each is typed when the one before has had its effect.
    typed = [
        ("Pregunta: ", "/source x\n"), ("'x'", "/fil\t x\n"), ("key=value", "/fuente cal\t\n"),
        ("Se busca solo en: caldera", "\n/sal\t\n"),
    ]  # fmt: skip
    shown, deadline = "", time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if typed and typed[0][0] in shown:
                shown = ""
                os.write(terminal, typed.pop(0)[1].encode())
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 10_000).decode()
    except OSError:
        # The other end is closed.
        pass
    finally:
        process.kill()
        os.close(terminal)
    assert not typed, shown
    assert process.wait() == 0
