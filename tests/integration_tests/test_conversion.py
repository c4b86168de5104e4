"""``lince-rag convert``: complete folders or none, checked against the original, and errors that say why."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import pytest
from transformers import AutoTokenizer, GPTNeoConfig, GPTNeoForCausalLM

from lince_rag import ChatLince
from lince_rag.engines.checkpoints.conversion import convert_to_ctranslate2
from lince_rag.errors import ConfigurationError, EngineError, LinceError, MissingExtraError
from tests.checkpoints import build_checkpoint, shared_checkpoint
from tests.integration_tests.commands import COMMAND, environment, run

LLAMA: Final = "llama-2-7b-spanish"
ALPACA: Final = "alpaca-lora-ptbr-7b"
QUESTION: Final = "Dame una lista de lugares que visitar en España."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama that a test may change."""
    return build_checkpoint(LLAMA, tmp_path / "llama").path


def answer(**fields: Any) -> str:
    return ChatLince(**fields, temperature=0, max_tokens=30).invoke(QUESTION).text


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def refusal(*arguments: Any, error: type[LinceError] = EngineError, **options: Any) -> str:
    """What the conversion's error says; afterwards there is no new folder, finished or not."""
    source = Path(arguments[0])
    before = set(source.parent.iterdir())
    with pytest.raises(error) as caught:
        convert_to_ctranslate2(*map(str, arguments), **options)
    assert set(source.parent.iterdir()) == before
    return str(caught.value)


# --------------------------------------------------------------------------------------------------- the command


def test_the_command_merges_an_adapter_into_a_folder_that_answers(tmp_path):
    checkpoint = shared_checkpoint(ALPACA)
    made = tmp_path / "models" / "alpaca"
    options = ["--quantization", "float32", "--output", str(made), "--base", str(checkpoint.base_path)]
    command = ["convert", str(checkpoint.path), "--to", "ctranslate2", *options]
    out, err = run(*command)
    assert out == f"{made}\n"
    assert err.splitlines()[-1] == "Comparando con el original…"
    assert sorted(file.name for file in made.iterdir()) == [
        "config.json", "generation_config.json", "model.bin", "tokenizer.json", "tokenizer_config.json",
        "vocabulary.json",
    ]  # fmt: skip
    assert answer(model=ALPACA, model_path=str(made)) == answer(**checkpoint.chat_fields)
    _, err = run(*command, status=2)
    assert f"{made} ya existe." in err


def test_options_of_the_other_format_are_refused(folder):
    _, err = run("convert", str(folder), "--to", "safetensors", "--quantization", "int8", status=2)
    assert "--quantization no va con --to safetensors" in err


def test_int8_takes_a_quarter_of_the_room(tmp_path):
    sizes = []
    for quantization in ("int8", "float32"):
        made = convert_to_ctranslate2(
            str(shared_checkpoint(LLAMA).path), tmp_path / quantization, quantization=quantization
        )
        sizes.append((made / "model.bin").stat().st_size)
    assert 0.25 < sizes[0] / sizes[1] < 0.35


def start(folder: Path) -> "subprocess.Popen[str]":
    """Begin a conversion, and return when its unfinished folder is there."""
    process = subprocess.Popen(
        [*COMMAND, "convert", str(folder), "--to", "ctranslate2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        # A test run in the background of a shell ignores Ctrl-C, and would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not folder.with_name("llama-int8.unfinished").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def test_an_interrupted_conversion_leaves_nothing(folder):
    before = set(folder.parent.iterdir())
    process = start(folder)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert set(folder.parent.iterdir()) == before


def test_a_killed_conversion_leaves_no_model(folder):
    process = start(folder)
    process.kill()
    process.communicate()
    with pytest.raises(EngineError, match="There is no model folder"):
        answer(model=LLAMA, model_path=str(folder.with_name("llama-int8")))
    unfinished = folder.with_name("llama-int8.unfinished")
    assert f"{unfinished} exists" in refusal(folder, error=ConfigurationError)
    shutil.rmtree(unfinished)
    assert convert_to_ctranslate2(str(folder)).is_dir()


# ------------------------------------------------------------------------------------------- what it converts to


@pytest.mark.parametrize("kind", [LLAMA, "lince-zero", "falcon-40b-instruct"])
def test_rotary_positions_of_another_base(tmp_path, kind):
    source = build_checkpoint(kind, tmp_path / "source").path
    ordinary = answer(model=kind, model_path=str(source), device="cpu")
    edit_json(source / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})
    made = convert_to_ctranslate2(str(source), quantization="float32")
    assert answer(model=kind, model_path=str(made)) == answer(model=kind, model_path=str(source)) != ordinary


def test_a_falcon_of_before_july_2023(tmp_path):
    checkpoint = build_checkpoint("lince-zero", tmp_path / "source")
    expected = answer(**checkpoint.chat_fields)
    file = checkpoint.path / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    kept = ("hidden_size", "vocab_size", "alibi", "bias", "parallel_attn", "multi_query")
    old = {key: values[key] for key in kept}
    old |= {"n_layer": values["num_hidden_layers"], "n_head": values["num_attention_heads"]}
    old |= {"model_type": "RefinedWebModel", "bos_token_id": 11, "eos_token_id": 11, "torch_dtype": "float32"}
    file.write_text(json.dumps(old), encoding="utf-8")
    made = convert_to_ctranslate2(str(checkpoint.path), quantization="float32")
    assert answer(model="lince-zero", model_path=str(made)) == expected


def test_tokens_without_a_row_and_rows_without_a_token(folder):
    """A token that was added after training, and embeddings padded to a round number."""
    expected = answer(model=LLAMA, model_path=str(folder), device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    made = convert_to_ctranslate2(str(folder), quantization="float32")
    names = json.loads((made / "vocabulary.json").read_text(encoding="utf-8"))
    assert len(names) == json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert "[PAD]" not in names
    assert answer(model=LLAMA, model_path=str(made)) == expected


def test_a_folder_with_its_own_chat_template_needs_no_row(folder):
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    made = convert_to_ctranslate2(str(folder), quantization="float32")
    assert answer(model=str(made)) == answer(model=str(folder), device="cpu")


# ------------------------------------------------------------------------------------------------------- refusals


def test_an_architecture_that_ctranslate2_lacks(tmp_path):
    source = build_checkpoint(LLAMA, tmp_path / "source").path
    vocabulary = json.loads((source / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    configuration = GPTNeoConfig(
        vocab_size=vocabulary, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global"], 2]],
        max_position_embeddings=64,
    )  # fmt: skip
    GPTNeoForCausalLM(configuration).save_pretrained(source)
    message = refusal(source, error=ConfigurationError)
    assert "cannot run a model with a GPTNeoConfig" in message
    assert "LlamaConfig" in message


def test_a_model_that_comes_out_wrong(folder, monkeypatch):
    """Here a converter that forgets a layer norm."""
    from ctranslate2.converters import transformers as converters

    def forget(self: Any, spec: Any, module: Any) -> None:
        spec.gamma = module.weight * 0 + 1

    monkeypatch.setattr(converters.LlamaLoader, "set_layer_norm", forget)
    assert "differs from the original" in refusal(folder)


def test_values_that_do_not_fit(folder):
    assert "quantization='int3'" in refusal(folder, error=ConfigurationError, quantization="int3")
    assert "is not an adapter" in refusal(folder, error=ConfigurationError, base_source=str(folder))
    assert "There is no model folder" in refusal(folder.parent / "absent")


def test_a_disk_without_room(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**4, 10**4))
    assert "has 0.0 GB free" in refusal(folder)


def test_a_disk_that_fills_up(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, hard))
    try:
        message = refusal(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be converted: [Errno 27] File too large" in message


@pytest.mark.parametrize(("package", "extra"), [("ctranslate2", "ctranslate2"), ("torch", "models")])
def test_a_missing_package_names_its_extra(folder, monkeypatch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    assert f"[{extra}]'" in refusal(folder, error=MissingExtraError)
