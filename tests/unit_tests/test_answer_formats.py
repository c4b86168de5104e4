"""Answer formats: read from LangChain's keywords, written as one schema, described in the model's language."""

import json
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field, create_model

from lince_rag import ChatLince
from lince_rag.errors import ConfigurationError
from lince_rag.models.answer_formats import AnswerFormat, write_calls


@tool
def clima(ciudad: str, días: int = 1) -> str:
    """Dice el tiempo que hará en una ciudad."""
    return "sol"


@tool
def hora() -> str:
    """Dice la hora."""
    return "12:00"


class Node(BaseModel):
    """Un nodo con hijos: se refiere a sí mismo."""

    nombre: str
    color: Literal["rojo", "añil"]
    hijos: list["Node"] = Field(default_factory=list)


def accepts(answer_format: AnswerFormat, value: Any) -> bool:
    schema = answer_format.json_schema()
    assert schema is not None
    Draft202012Validator.check_schema(json.loads(schema))
    return bool(Draft202012Validator(json.loads(schema)).is_valid(value))


def call(name: str, **arguments: Any) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(write_calls([{"name": name, "args": arguments}]))
    return parsed


def test_the_schema_is_of_exact_names_and_valid_arguments() -> None:
    both = AnswerFormat.of([clima, hora])
    assert accepts(both, call("clima", ciudad="Logroño"))
    assert accepts(both, call("clima", ciudad="Logroño", días=3))
    assert accepts(both, call("hora"))
    assert not accepts(both, call("Clima", ciudad="Logroño"))
    assert not accepts(both, call("clima"))
    assert not accepts(both, call("clima", ciudad=3))
    assert not accepts(both, call("hora", ciudad="Logroño"))
    assert not accepts(both, {"tool_calls": []})
    assert not accepts(both, {**call("hora"), "text": "x"})


def test_several_calls_where_they_are_allowed() -> None:
    two = {"tool_calls": [*call("hora")["tool_calls"], *call("hora")["tool_calls"]]}
    assert accepts(AnswerFormat.of([hora], parallel_tool_calls=True), two)
    assert not accepts(AnswerFormat.of([hora]), two)


@pytest.mark.parametrize(
    ("choice", "names", "must_call", "text_allowed"),
    [
        (None, ["clima", "hora"], False, True),
        ("auto", ["clima", "hora"], False, True),
        ("none", [], False, True),
        (False, [], False, True),
        ("any", ["clima", "hora"], True, False),
        ("required", ["clima", "hora"], True, False),
        (True, ["clima", "hora"], True, False),
        ("hora", ["hora"], True, False),
        ({"type": "function", "function": {"name": "hora"}}, ["hora"], True, False),
        ({"type": "tool", "name": "hora"}, ["hora"], True, False),
        ({"type": "auto"}, ["clima", "hora"], False, True),
    ],
)
def test_the_choice_of_a_tool(choice: Any, names: list[str], must_call: bool, text_allowed: bool) -> None:
    answer_format = AnswerFormat.of([clima, hora], choice)
    assert [function["name"] for function in answer_format.tools] == names
    assert answer_format.must_call is must_call
    assert answer_format.text_allowed is text_allowed


@pytest.mark.parametrize("choice", ["lluvia", {"type": "function", "function": {"name": "lluvia"}}, 3, ["hora"]])
def test_a_choice_of_no_tool_is_an_error(choice: Any) -> None:
    with pytest.raises(ConfigurationError, match="not one of the tools"):
        AnswerFormat.of([clima, hora], choice)


def test_wrong_tools_are_errors() -> None:
    with pytest.raises(ConfigurationError, match="same name: hora, hora"):
        AnswerFormat.of([hora, hora]).json_schema()
    with pytest.raises(ConfigurationError, match="there are no tools"):
        AnswerFormat.of([], "any")
    with pytest.raises(ConfigurationError, match="web_search"):
        AnswerFormat.of([{"type": "web_search"}])
    # … already when they are bound, not at the first question.
    with pytest.raises(ConfigurationError, match="lluvia"):
        ChatLince().bind_tools([hora], tool_choice="lluvia")


@pytest.mark.parametrize(
    "given",
    [
        Node,
        Node.model_json_schema(),
        {"type": "json_schema", "json_schema": {"name": "n", "schema": Node.model_json_schema()}},
        {"type": "json_schema", "schema": Node.model_json_schema()},
    ],
)
def test_response_formats(given: Any) -> None:
    answer_format = AnswerFormat.of(response_format=given)
    leaf = {"nombre": "a", "color": "añil"}
    assert accepts(answer_format, {**leaf, "hijos": [{**leaf, "hijos": []}]})
    assert not accepts(answer_format, {**leaf, "color": "verde"})
    assert not answer_format.text_allowed


def test_no_response_format() -> None:
    assert AnswerFormat.of(response_format={"type": "text"}).is_text
    assert AnswerFormat.of().json_schema() is None
    assert accepts(AnswerFormat.of(response_format={"type": "json_object"}), {"lo": ["que", "sea"]})
    assert not accepts(AnswerFormat.of(response_format={"type": "json_object"}), "texto")
    with pytest.raises(ConfigurationError, match="no schema"):
        AnswerFormat.of(response_format={"type": "json_schema"})


def test_calls_and_a_response_format_together() -> None:
    """References of either hold in the schema of both."""
    tree = {"name": "Node", "description": "", "parameters": Node.model_json_schema()}
    both = AnswerFormat.of([clima, tree], response_format=Node)
    leaf = {"nombre": "a", "color": "rojo"}
    assert accepts(both, call("Node", **leaf, hijos=[leaf]))
    assert accepts(both, {**leaf, "hijos": [leaf]})
    assert not accepts(both, {**leaf, "hijos": [{"nombre": "sin color"}]})
    assert not accepts(both, call("Node", **leaf, hijos=[{"nombre": "sin color"}]))


def test_a_model_is_told_in_its_own_language() -> None:
    """The question's where the model knows it, else the one that it knows best."""
    spanish, portuguese = [HumanMessage("¿Qué tiempo hará mañana?")], [HumanMessage("Que tempo fará amanhã?")]
    assert "Puedes usar estas herramientas" in ChatLince(model="lince-zero").render(spanish, tools=[clima]).text
    assert "Puedes usar estas herramientas" in ChatLince(model="lince-zero").render(portuguese, tools=[clima]).text
    assert "Você pode usar" in ChatLince(model="alpaca-lora-ptbr-7b").render(portuguese, tools=[clima]).text
    assert "Puedes usar" in ChatLince(model="falcon-40b-instruct").render(spanish, tools=[clima]).text
    assert "You can use" in ChatLince(model="falcon-40b-instruct").render(portuguese, tools=[clima]).text


def test_what_a_model_is_told() -> None:
    told = AnswerFormat.of([clima, hora], "auto").instructions("es")
    assert '- clima: Dice el tiempo que hará en una ciudad. (argumentos: {"ciudad":{"type":"string"}' in told
    assert '{"tool_calls":[{"name":"…","arguments":{"…":"…"}}]}' in told
    assert '"title"' not in told
    assert "responde con texto" not in AnswerFormat.of([clima], "any").instructions("es")
    assert AnswerFormat.of([clima], "none").instructions("es") == ""
    assert '"añil"' in AnswerFormat.of(response_format=Node).instructions("pt")


def test_classes_of_one_name_are_not_one_schema() -> None:
    """What a cached answer is kept under has the schema in it, not the name of its class."""

    def described(kind: type) -> str:
        return ChatLince()._get_llm_string(response_format=create_model("Dato", valor=(kind, ...)))

    assert described(int) == described(int)
    assert described(int) != described(str)


def test_what_is_a_call_is_not_an_answer_too() -> None:
    """However open the response format is, calls have exact names and valid arguments."""
    for open_ in ({"type": "json_object"}, {"type": "object", "additionalProperties": {"type": "array"}}):
        both = AnswerFormat.of([hora], response_format=open_)
        assert accepts(both, call("hora"))
        assert accepts(both, {"lo": []})
        assert not accepts(both, call("borrar"))
        assert not accepts(both, call("hora", ciudad="x"))


def test_openai_descriptions_are_schemas() -> None:
    described = {"name": "n", "description": "d", "parameters": Node.model_json_schema()}
    for given in (described, {"type": "function", "function": described}):
        assert accepts(AnswerFormat.of(response_format=given), {"nombre": "a", "color": "rojo"})


@pytest.mark.parametrize("given", [3, "json_object"])
def test_what_is_no_schema_and_no_tool_is_an_error(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{given!r} is not a schema"):
        AnswerFormat.of(response_format=given)
    with pytest.raises(ConfigurationError, match=f"{given!r} is not a tool"):
        ChatLince().bind_tools([given])


def test_strict_is_taken_and_means_nothing() -> None:
    assert ChatLince().bind_tools([hora], strict=True).invoke("¿Qué hora es?").tool_calls == []
