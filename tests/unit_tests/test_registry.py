import ast
import pickle
from pathlib import Path

import pytest

import lince_rag.prompting.registry
from lince_rag.errors import ConfigurationError, UnknownModelError
from lince_rag.prompting.registry import WEIGHT_BITS, check_row, get_model, load_registry

REGISTRY = load_registry()

ROW = """
[mine]
repo = "someone/mine"
engine = "transformers"
template = "mine.jinja"
context_window = 1024
languages = ["es"]
licence = "MIT"
parameters = 1000
"""


def write(folder: Path, text: str) -> Path:
    (folder / "mine.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_built_in_models():
    assert list(REGISTRY) == [
        "lince-zero",
        "aira-2-portuguese-1b7",
        "llama-2-7b-spanish",
        "alpaca-lora-ptbr-7b",
        "falcon-40b-instruct",
        "tucano2-0.5b",
        "tucano2-3.7b",
        "salamandra-7b-instruct",
        "salamandra-7b-rag",
        "rigochat-7b-v2",
        "qwen3-4b",
        "llama-3.1-8b",
        "latxa-llama-3.1-8b",
        "gemma-2-9b",
        "gemma-3-4b",
        "eurollm-1.7b",
        "eurollm-9b",
        "extractive",
    ]


@pytest.mark.parametrize("name", REGISTRY)
def test_row_is_complete(name):
    spec = REGISTRY[name]
    assert spec.name == name
    assert spec.revision == "main"
    assert spec.memory.keys() == WEIGHT_BITS.keys()
    assert spec.template_text()
    assert hash(spec) == hash(get_model(name))
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_facts_of_the_cards():
    assert {name: spec.context_window for name, spec in REGISTRY.items() if spec.repo} == {
        "lince-zero": 2048,
        "aira-2-portuguese-1b7": 2048,
        "llama-2-7b-spanish": 4096,
        "alpaca-lora-ptbr-7b": 2048,
        "falcon-40b-instruct": 2048,
        "tucano2-0.5b": 4096,
        "tucano2-3.7b": 4096,
        "salamandra-7b-instruct": 8192,
        "salamandra-7b-rag": 8192,
        "rigochat-7b-v2": 8192,
        "qwen3-4b": 8192,
        "llama-3.1-8b": 8192,
        "latxa-llama-3.1-8b": 8192,
        "gemma-2-9b": 8192,
        "gemma-3-4b": 8192,
        "eurollm-1.7b": 4096,
        "eurollm-9b": 4096,
    }
    assert get_model("aira-2-portuguese-1b7").parameters == 1_722_005_504
    assert get_model("falcon-40b-instruct").memory["bfloat16"] == 100_000_000_000
    assert get_model("falcon-40b-instruct").stop == ("\nUser",)


def test_card_that_never_sets_do_sample_decodes_by_beam_search():
    for name in ("lince-zero", "alpaca-lora-ptbr-7b"):
        generation = get_model(name).generation
        assert generation["num_beams"] == 4
        assert generation["do_sample"] is False
    for name in ("aira-2-portuguese-1b7", "falcon-40b-instruct"):
        assert get_model(name).generation["do_sample"] is True


def test_adapter_without_its_base():
    spec = get_model("alpaca-lora-ptbr-7b")
    assert spec.adapter
    assert spec.base_model is None
    assert "base" in spec.note


def test_extractive_needs_no_weights():
    spec = get_model("extractive")
    assert (spec.engine, spec.repo, spec.parameters) == ("extractive", "", 0)
    assert set(spec.memory.values()) == {0}


def test_memory_is_the_weights_and_a_tenth():
    assert get_model("lince-zero").memory["bfloat16"] == 6_921_720_704 * 2 * 11 // 10


def test_no_model_is_named_in_code():
    constants = {
        node.value
        for path in Path(lince_rag.prompting.registry.__file__).parent.glob("registry.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }
    assert not constants & (REGISTRY.keys() - {"extractive"})


def test_unknown_model_lists_close_names():
    with pytest.raises(UnknownModelError, match="'lince-cero'") as caught:
        get_model("lince-cero")
    assert "lince-zero" in caught.value.hint


def test_unknown_model_lists_all_names_when_none_is_close():
    with pytest.raises(UnknownModelError) as caught:
        get_model("zzz")
    assert "falcon-40b-instruct" in caught.value.hint


def test_row_of_the_user(tmp_path):
    registry = load_registry(write(tmp_path, ROW))
    spec = get_model("mine", registry)
    assert spec.context_window == 1024
    assert spec.template_text() == "{{ messages[0]['content'] }}"
    assert "lince-zero" in registry
    assert "mine" not in load_registry()


def test_user_changes_one_key_of_a_built_in_row(tmp_path):
    registry = load_registry(write(tmp_path, '[alpaca-lora-ptbr-7b]\nbase_model = "/models/llama-7b"\n'))
    spec = registry["alpaca-lora-ptbr-7b"]
    assert spec.base_model == "/models/llama-7b"
    assert spec.template_text() == get_model("alpaca-lora-ptbr-7b").template_text()


def test_row_of_the_user_can_name_a_built_in_template(tmp_path):
    text = ROW.replace("mine.jinja", "lince-zero.jinja")
    assert load_registry(write(tmp_path, text))["mine"].template_text() == get_model("lince-zero").template_text()


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("context_window = '2048'", "context_window"),
        ("context_window = 0", "context_window"),
        ("context_window = true", "context_window"),
        ("parameters = -1", "parameters"),
        ("languages = 'es'", "languages"),
        ("languages = [1]", "languages"),
        ("engine = 'vllm'", "engine"),
        ("engine = ['transformers']", "engine"),
        ("template = '../secret.jinja'", "template"),
        ("template = 'absent.jinja'", "template"),
        ("adapter = 'yes'", "adapter"),
        ("stop = ['']", "stop"),
        ("markers = ['#']", "markers"),
        ("markers = '###'", "markers"),
        ("line_markers = ['a\\b']", "line_markers"),
        ("memory = { float8 = 1 }", "memory"),
        ("memory = { int8 = 1.5 }", "memory"),
        ("special_tokens = { start = '<s>' }", "special_tokens"),
        ("generation = { temperature = 'hot' }", "generation"),
        ("generation = { top_k = 1.5 }", "generation"),
        ("generation = { heat = 1 }", "generation"),
        ("contxt_window = 5", "contxt_window"),
    ],
)
def test_wrong_key_names_file_row_and_key(tmp_path, line, key):
    row = "\n".join(old for old in ROW.splitlines() if not old.startswith(f"{key} "))
    path = write(tmp_path, f"{row}\n{line}\n")
    with pytest.raises(ConfigurationError) as caught:
        load_registry(path)
    assert str(path) in caught.value.message
    assert "'mine'" in caught.value.message
    assert key in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "key", ["repo", "engine", "template", "context_window", "languages", "licence", "parameters"]
)
def test_missing_key(tmp_path, key):
    row = "\n".join(line for line in ROW.splitlines() if not line.startswith(f"{key} "))
    with pytest.raises(ConfigurationError, match=f"'mine' lacks the key '{key}'"):
        load_registry(write(tmp_path, row))


@pytest.mark.parametrize(
    ("line", "right"),
    [("contxt_window = 5", "context_window"), ("generation = { temperatur = 1 }", "temperature")],
)
def test_unknown_key_suggests_the_right_one(tmp_path, line, right):
    with pytest.raises(ConfigurationError, match=f"Did you mean '{right}'"):
        load_registry(write(tmp_path, f"{ROW}\n{line}\n"))


@pytest.mark.parametrize(
    ("line", "value", "hint"),
    [
        ("engine = 'vllm'", "'vllm'", "Input should be 'transformers' or 'extractive'."),
        ("template = '../secret.jinja'", "'../secret.jinja'", "Input should be a file name without a folder."),
        ("markers = ['###', '#']", "'#'", "Input should have two characters or more and no backslash."),
        ("memory = { int8 = 1.5 }", "1.5", "Input should be a valid integer."),
        ("memory = 3", "3", "Input should be a table."),
        ("generation = 3", "3", "Input should be a table."),
        ("generation = { top_k = true }", "True", "Input should be a valid integer."),
    ],
)
def test_wrong_value_is_named_and_the_hint_says_what_is_right(tmp_path, line, value, hint):
    key = line.partition(" ")[0]
    row = "\n".join(old for old in ROW.splitlines() if not old.startswith(f"{key} "))
    with pytest.raises(ConfigurationError) as caught:
        load_registry(write(tmp_path, f"{row}\n{line}\n"))
    assert f": {value} is not valid." in caught.value.message
    assert caught.value.hint == hint


def test_a_row_may_hold_every_dtype_and_a_whole_number_for_a_float():
    row = {"memory": dict.fromkeys(WEIGHT_BITS, 1), "generation": {"temperature": 1}}
    assert check_row(row, "mine", "models.toml") == row


@pytest.mark.parametrize("text", ["[mine", "mine = 3", "\ud800"])
def test_file_that_is_not_a_table_of_models(tmp_path, text):
    path = tmp_path / "models.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigurationError, match=r"models\.toml"):
        load_registry(path)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigurationError, match=r"absent\.toml"):
        load_registry(tmp_path / "absent.toml")
