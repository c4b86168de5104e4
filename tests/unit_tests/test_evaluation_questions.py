import json
from pathlib import Path
from typing import Any

import pytest

from lince_rag.errors import ConfigurationError
from lince_rag.evaluation import Question, load_questions
from lince_rag.evaluation.records import Passage, Record, RecordFile, read_run


def write(folder: Path, content: Any, name: str = "questions.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def squad(*questions: dict[str, Any], context: Any = "El gato duerme.") -> dict[str, Any]:
    return {
        "version": "1.1",
        "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}],
    }


ASKED = {"id": "a", "question": " ¿Quién duerme? ", "answers": [{"text": "El gato", "answer_start": 0}]}


def test_squad(tmp_path: Path) -> None:
    second = {
        "id": "b",
        "question": "¿Qué hace?",
        "answers": [{"text": t} for t in ("duerme", "duerme ", "dormir")],
    }
    assert load_questions(write(tmp_path, squad(ASKED, second))) == [
        Question("a", "¿Quién duerme?", ("El gato",), (), "El gato duerme."),
        Question("b", "¿Qué hace?", ("duerme", "dormir"), (), "El gato duerme."),
    ]


def test_squad_two(tmp_path: Path) -> None:
    impossible = {"id": "n", "question": "¿Quién ladra?", "is_impossible": True, "answers": [{"text": "El gato"}]}
    without = {"id": "m", "question": "¿Quién ladra?", "answers": []}
    found = load_questions(write(tmp_path, squad({**ASKED, "is_impossible": False}, impossible, without)))
    assert [question.answerable for question in found] == [True, False, False]


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        {"question": "¿Uno?", "answers": ["1", "uno"], "source": "a.txt", "id": 7},
        {"question": "¿Dos?", "answer": "2\u2028dos", "source": ["a.txt", "b.txt"]},
        {"question": "¿Tres?", "answers": []},
        {"question": "¿Cuatro?", "answer": None},
    ]
    text = (
        "\ufeff"
        + json.dumps(lines[0])
        + "\n\n"
        + "\n".join(json.dumps(line, ensure_ascii=False) for line in lines[1:])
    )
    expected = [
        Question("7", "¿Uno?", ("1", "uno"), ("a.txt",)),
        Question("3", "¿Dos?", ("2\u2028dos",), ("a.txt", "b.txt")),
        Question("4", "¿Tres?"),
        Question("5", "¿Cuatro?"),
    ]
    assert load_questions(write(tmp_path, text, "q.jsonl")) == expected
    assert load_questions(write(tmp_path, text, "q.json")) == expected
    assert load_questions(write(tmp_path, text.split("\n")[0], "one.txt")) == expected[:1]


def test_all_that_a_line_can_say(tmp_path: Path) -> None:
    line = {
        "id": "1", "question": "¿Y en 2020?", "answers": ["uno"], "source": "a.txt", "also_in": ["b.txt"],
        "all_of": ["uno", "dos"], "history": [["human", "¿En 2010?"], ["ai", "Tres."]], "type": "list",
        "language": "es", "evidence": "uno y dos", "near": "",
    }  # fmt: skip
    assert load_questions(write(tmp_path, json.dumps(line), "q.jsonl")) == [
        Question(
            "1", "¿Y en 2020?", ("uno",), ("a.txt",), copies=("b.txt",), all_of=("uno", "dos"),
            history=(("human", "¿En 2010?"), ("ai", "Tres.")), type="list", language="es",
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.jsonl", '{"question": "a", "answer": "b", "history": ["hola"]}', "line 1: 'history' is not a list"),
        ("q.jsonl", '{"question": "a", "answer": "b", "history": [["yo", "hola"]]}', "'history' has 'yo'"),
        ("q.jsonl", '{"question": "a", "answer": "b", "language": "fr"}', "'language' is 'fr'"),
        ("q.jsonl", '{"question": "a", "answer": "b"}\n{"question": ', "line 2: not JSON"),
        ("q.jsonl", '{"question": "a", "answer": "b"}\n\n[1]', "line 3: '[1]' is not an object"),
        ("q.jsonl", '{"question": "a", "anwsers": []}', "line 1: 'answers' or 'answer' is missing"),
        ("q.jsonl", '{"pregunta": "a", "answers": []}', "line 1: 'question' is missing"),
        ("q.jsonl", '{"question": "  ", "answers": []}', "line 1: 'question' is missing"),
        ("q.jsonl", '{"question": "a", "answers": [1]}', "line 1: 'answers' is [1], not text"),
        ("q.jsonl", '{"question": "a", "answers": [], "source": {"b": 1}}', "'source' is"),
        ("q.jsonl", '{"question": "a", "answers": [], "id": "2"}\n{"question": "b", "answers": []}', "'2'"),
        ("q.json", '{"data": [{"paragraphs":\n\n [}]}', "line 3: not JSON"),
        ("q.json", {"data": {}}, "data: not a list of objects"),
        ("q.json", {"data": [{}]}, "data[0].paragraphs: not a list"),
        ("q.json", squad(ASKED, context=""), "data[0].paragraphs[0]: 'context' is missing"),
        ("q.json", squad({"id": "a", "answers": []}), "data[0].paragraphs[0].qas[0]: 'question' is missing"),
        ("q.json", squad({"id": "a", "question": "b"}), "qas[0].answers: not a list"),
        ("q.json", squad({"question": "b", "answers": [{"texto": "c"}]}), "'answers' is [null], not text"),
        ("q.json", squad(ASKED, ASKED), "qas[1]: the id 'a' is already the id of data[0].paragraphs[0].qas[0]"),
        ("q.json", {"data": []}, "has no questions"),
        ("q.txt", "", "line 1: not JSON"),
        ("q.jsonl", "\n \n", "has no questions"),
        ("q.txt", "¿Cuándo vence?\n", "line 1: not JSON"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: Any, said: str) -> None:
    path = write(tmp_path, content, name)
    with pytest.raises(ConfigurationError) as error:
        load_questions(path)
    assert said in error.value.message
    assert str(path) in error.value.message
    assert error.value.hint


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes('{"question": "¿Qué?", "answers": []}'.encode("cp1252"))
    for name, said in (("latin.jsonl", "not UTF-8"), ("absent.jsonl", "absent.jsonl"), (".", "cannot be read")):
        with pytest.raises(ConfigurationError, match=said):
            load_questions(tmp_path / name)


# The file of records.


def record(identity: str) -> Record:
    retrieved = (Passage("a.txt", "A", 0, 5, "texto", "document a.txt", True),)
    return Record(
        identity, "¿Qué?", "es", ("sí",), True, False, ("document a.txt",), retrieved, "Sí\u2028.", None, "es",
        False, True, 0.5, (), ("quoted_instead",), 1.5,
    )  # fmt: skip


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    path, header = tmp_path / "new" / "records.jsonl", {"fingerprint": "f"}
    with RecordFile(path, header).appending() as file:
        file.append(record("1"))
    with RecordFile(path, header).appending() as file:
        assert file.records == {"1": record("1")}
        file.append(record("2"))
    assert RecordFile(path, header).records == {"1": record("1"), "2": record("2")}
    assert len(path.read_text().split("\n")) == 4


@pytest.mark.parametrize("lost", [1, 20, 60])
def test_a_torn_line_is_cut_off(tmp_path: Path, lost: int) -> None:
    path, header = tmp_path / "records.jsonl", {"fingerprint": "f"}
    with RecordFile(path, header).appending() as file:
        file.append(record("1"))
        file.append(record("2"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    with RecordFile(path, header).appending() as file:
        assert list(file.records) == ["1"]
        file.append(record("2"))
    assert path.read_bytes() == whole
    path.write_bytes(whole[:10])
    with RecordFile(path, header).appending() as file:
        assert file.records == {}
    assert json.loads(path.read_text())["fingerprint"] == "f"


def test_records_of_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RecordFile(path, {"fingerprint": "f"}).appending() as file:
        file.append(record("1"))
    whole = path.read_text()
    assert read_run(path)[1] == {"1": record("1")}
    path.write_text(whole.replace('"format": 3', '"format": 2'))
    with pytest.raises(ConfigurationError, match="line 1: not a record of this version"):
        read_run(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_run(tmp_path / "absent.jsonl")


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    path, header = tmp_path / "records.jsonl", {"fingerprint": "f"}
    for text in ('{"fingerprint": "other"}\n', '{"fingerprint": "f"}\n{"id": "1"}\n', "hola\n", "[]\n"):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=r"records\.jsonl, line \d: not a record"):
            RecordFile(path, header)
        assert path.read_text() == text
