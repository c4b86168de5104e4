"""`lince-rag chat`, through a real process, with a session that is kept on SQLite."""

from pathlib import Path

import pytest
from langchain_core.documents import Document

from lince_rag import Index
from lince_rag.cli.chat import SESSIONS_FILE, open_session
from tests.integration_tests.commands import run


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
        (["--session", " "], "session"),
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
    assert "Aquí no hay órdenes" in out
    assert "Severino Cascajares" in out
    assert "Fuentes" in out
    assert err == ""
    assert [turn.text for turn in open_session(index, "cortés").messages[::2]] == [
        "hola", "¿Quién atiende el refugio?", "gracias",
    ]  # fmt: skip
