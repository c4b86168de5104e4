"""Loading tiny checkpoints of the true architectures, and refusing what is missing, damaged or unsafe."""

import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lince_rag.engines.checkpoints import memory
from lince_rag.engines.checkpoints.configuration import describe_checkpoint
from lince_rag.engines.checkpoints.conversion import convert_to_safetensors
from lince_rag.engines.checkpoints.files import LoadingOptions
from lince_rag.engines.checkpoints.loading import load_model, load_tokenizer
from lince_rag.errors import ConfigurationError, EngineError, MissingExtraError, installation
from lince_rag.prompting.registry import get_model
from lince_rag.prompting.templates import ChatTemplate
from tests.checkpoints import KINDS, shared_checkpoint
from tests.integration_tests.commands import run

LLAMA, ALPACA = "llama-2-7b-spanish", "alpaca-lora-ptbr-7b"
IDS = torch.tensor([[5, 60, 100, 33, 7]])
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40


def options_of(checkpoint, **more):
    base = str(checkpoint.base_path) if checkpoint.base_path else None
    return LoadingOptions(model_path=str(checkpoint.path), base_model_path=base, **{"device": "cpu"} | more)


def load(checkpoint, **more):
    return load_model(get_model(checkpoint.kind), options_of(checkpoint, **more))


@torch.no_grad()
def logits(model):
    return model(IDS).logits.float()


def refusal(function, *arguments, error=EngineError):
    """Call what must be refused with a one-line message and a hint, and return that line."""
    with pytest.raises(error) as caught:
        function(*arguments)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    """Copy a checkpoint to a folder that a test may damage."""

    def folder(kind, name="model"):
        checkpoint = shared_checkpoint(kind)
        target = Path(shutil.copytree(checkpoint.path, tmp_path / name))
        return replace(checkpoint, path=target)

    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Put checkpoints into a temporary hub cache."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def put(source, repo, revision="main", commit=COMMIT, ignore=()):
        repo_folder = cache / f"models--{repo.replace('/', '--')}"
        ref = repo_folder / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
        shutil.copytree(source, repo_folder / "snapshots" / commit, ignore=shutil.ignore_patterns(*ignore))
        return cache

    return put


def edit_json(file, **changes):
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


# ------------------------------------------------------------------------------------------------ what is loaded


@pytest.mark.parametrize("kind", KINDS)
def test_each_model_computes_what_the_cards_code_computes(kind):
    checkpoint = shared_checkpoint(kind)
    loaded = load(checkpoint)
    theirs, their_tokenizer = checkpoint.load()
    assert torch.allclose(logits(loaded.model), logits(theirs), atol=1e-4)
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    text = "¿Qué es una pizca de sal? Uma pitada."
    assert loaded.tokenizer(text).input_ids == their_tokenizer(text).input_ids
    # BLOOM's ALiBi sets no window; the checkpoint's seq_length does.
    assert loaded.context_window == checkpoint.context_window


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_pads_on_the_left_without_new_tokens(kind):
    checkpoint = shared_checkpoint(kind)
    tokenizer = load_tokenizer(get_model(kind), options_of(checkpoint))
    folder = checkpoint.base_path or checkpoint.path
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(folder))
    assert tokenizer.padding_side == "left"
    short, long = tokenizer(["a", "a b c d e"], padding=True)["attention_mask"]
    assert short[0] == 0
    assert set(long) == {1}


def test_a_padding_token_without_an_embedding_is_not_used(folder):
    checkpoint = folder(LLAMA)
    edit_json(checkpoint.path / "tokenizer_config.json", pad_token="[PAD]")
    added = AutoTokenizer.from_pretrained(checkpoint.path)
    assert added.pad_token_id >= 900
    loaded = load(checkpoint)
    assert loaded.tokenizer.pad_token == loaded.tokenizer.eos_token
    assert load_tokenizer(get_model(LLAMA), options_of(checkpoint)).pad_token == "</s>"


@pytest.mark.parametrize("declared", [None, 100, 100_000])
@pytest.mark.parametrize("name", ["max_position_embeddings", "seq_length", "n_positions"])
def test_the_window_is_the_smaller_one(folder, name, declared):
    checkpoint = folder("aira-2-portuguese-1b7")
    edit_json(checkpoint.path / "config.json", seq_length=None)
    edit_json(checkpoint.path / "config.json", **{name: declared})
    assert load(checkpoint).context_window == min(declared or 2048, 2048)


@pytest.mark.parametrize("kind", ["lince-zero", "falcon-40b-instruct"])
def test_falcon_checkpoints_of_before_july_2023_need_no_remote_code(folder, kind):
    # Their configuration names their own code and other fields; the weights are the same.
    checkpoint = folder(kind)
    file = checkpoint.path / "config.json"
    values = json.loads(file.read_text())
    old = {
        key: values[key] for key in ("hidden_size", "vocab_size", "alibi", "bias", "parallel_attn", "multi_query")
    }
    old |= {"n_layer": values["num_hidden_layers"], "n_head": values["num_attention_heads"]}
    old |= {"n_head_kv": values["num_kv_heads"]} if kind == "falcon-40b-instruct" else {}
    old |= {"model_type": "RefinedWebModel" if kind == "lince-zero" else "RefinedWeb", "torch_dtype": "bfloat16"}
    old |= {
        "auto_map": {
            "AutoConfig": "configuration_RW.RWConfig",
            "AutoModelForCausalLM": "modelling_RW.RWForCausalLM",
        }
    }
    old |= {"architectures": ["RWForCausalLM"], "bos_token_id": 11, "eos_token_id": 11, "layer_norm_epsilon": 1e-5}
    file.write_text(json.dumps(old))
    loaded = load(checkpoint)
    assert torch.allclose(logits(loaded.model), logits(load(shared_checkpoint(kind)).model), atol=1e-4)
    assert loaded.context_window == 2048


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_cast(dtype):
    loaded = load(shared_checkpoint("lince-zero"), dtype=dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}


def test_weights_in_several_files(folder, tmp_path):
    checkpoint = folder(LLAMA)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    (checkpoint.path / "model.safetensors").unlink()
    model.save_pretrained(checkpoint.path, max_shard_size="50KB")
    shards = sorted(checkpoint.path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert torch.allclose(logits(load(checkpoint).model), logits(model), atol=1e-4)
    shards[1].unlink()
    assert f"has no {shards[1].name}" in refusal(load, checkpoint)


# ------------------------------------------------------------------------------------------------------ adapters


def test_an_adapter_merged_or_not_gives_the_same_logits():
    checkpoint = shared_checkpoint(ALPACA)
    merged, apart = load(checkpoint), load(checkpoint, merge_adapter=False)
    base = AutoModelForCausalLM.from_pretrained(checkpoint.base_path, dtype=torch.float32)
    assert torch.allclose(logits(merged.model), logits(apart.model), atol=1e-4)
    assert not torch.allclose(logits(merged.model), logits(base), atol=1e-2)
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    assert any("lora" in name for name, _ in apart.model.named_parameters())
    assert not apart.model.training


def test_an_adapter_needs_its_base():
    spec = get_model(ALPACA)
    for options in (LoadingOptions(), LoadingOptions(model_path=str(shared_checkpoint(ALPACA).path))):
        message = refusal(load_model, spec, options, error=ConfigurationError)
        assert "base_model_path" in message
        assert "--base-model-path" in message


def test_an_adapters_own_tokenizer_goes_first(folder):
    checkpoint = folder(ALPACA)
    spec = get_model(ALPACA)
    assert load_tokenizer(spec, options_of(checkpoint)).eos_token == "</s>"
    with pytest.raises(ConfigurationError, match="base_model_path"):
        load_tokenizer(spec, LoadingOptions(model_path=str(checkpoint.path)))
    load_tokenizer(get_model("aira-2-portuguese-1b7"), options_of(shared_checkpoint("aira-2-portuguese-1b7")))
    AutoTokenizer.from_pretrained(shared_checkpoint("lince-zero").path).save_pretrained(checkpoint.path)
    assert load_tokenizer(spec, LoadingOptions(model_path=str(checkpoint.path))).eos_token == "<|endoftext|>"
    assert load(checkpoint).tokenizer.eos_token == "<|endoftext|>"
    # The base's vocabulary bounds the padding token.
    edit_json(checkpoint.path / "tokenizer_config.json", pad_token="[PAD]")
    assert load_tokenizer(spec, options_of(checkpoint)).pad_token == "<|endoftext|>"


def test_a_merged_checkpoint_may_stand_for_an_adapter(tmp_path):
    checkpoint = shared_checkpoint(ALPACA)
    loaded = load(checkpoint)
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = load_model(get_model(ALPACA), LoadingOptions(model_path=str(tmp_path), device="cpu"))
    assert torch.allclose(logits(again.model), logits(loaded.model), atol=1e-4)
    options = LoadingOptions(model_path=str(tmp_path), base_model_path=str(checkpoint.base_path))
    assert "is not an adapter" in refusal(load_model, get_model(ALPACA), options, error=ConfigurationError)


def test_an_adapter_of_another_model_is_refused(folder):
    adapter = folder(ALPACA)
    for base, fragment in [("lince-zero", "q_proj"), (ALPACA, "is an adapter itself")]:
        options = LoadingOptions(
            model_path=str(adapter.path), base_model_path=str(shared_checkpoint(base).path), device="cpu"
        )
        assert fragment in refusal(load_model, get_model(ALPACA), options)


@pytest.mark.parametrize("damage", ["incomplete", "renamed", "shape", "kind", "truncated", "missing"])
def test_a_damaged_adapter_is_refused(folder, damage):
    # PEFT itself loads the first two with a warning, and answers as if there were no adapter.
    adapter = folder(ALPACA)
    file = adapter.path / "adapter_model.safetensors"
    weights = load_file(file)
    if damage == "incomplete":
        weights.pop(next(iter(weights)))
    elif damage == "renamed":
        weights = {name.replace("self_attn", "attention"): value for name, value in weights.items()}
    elif damage == "shape":
        weights = {name: torch.cat([value, value]).contiguous() for name, value in weights.items()}
    if damage == "kind":
        edit_json(adapter.path / "adapter_config.json", peft_type="IA3")
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "missing":
        file.unlink()
    else:
        save_file(weights, file, metadata={"format": "pt"})
    assert str(adapter.path) in refusal(load, adapter)


# ---------------------------------------------------------------------------------------------- what is refused


def pickled(checkpoint):
    """Replace the safetensors weights of a folder by an old pickle file."""
    name = "adapter_model" if checkpoint.base_path else "model"
    file = checkpoint.path / f"{name}.safetensors"
    old = "adapter_model.bin" if checkpoint.base_path else "pytorch_model.bin"
    weights = load_file(file)
    if "lm_head.weight" not in weights and not checkpoint.base_path:
        weights["lm_head.weight"] = weights[
            "transformer.word_embeddings.weight"
        ]  # Old files have tied weights twice.
    torch.save(weights, checkpoint.path / old)
    file.unlink()
    return old


@pytest.mark.parametrize("kind", ["lince-zero", ALPACA])
def test_pickled_weights_are_refused_and_the_hint_converts_them(folder, kind):
    checkpoint = folder(kind)
    old = pickled(checkpoint)
    with pytest.raises(EngineError) as caught:
        load(checkpoint)
    assert old in caught.value.message
    assert "can run any code" in caught.value.message
    command = shlex.split(caught.value.hint.split("with: ")[1])
    assert command[0] == "lince-rag"
    written, _ = run(*command[1:])
    assert [Path(line).suffix for line in written.splitlines()] == [".safetensors"]
    expected = logits(load(shared_checkpoint(kind)).model)
    assert torch.allclose(logits(load(checkpoint).model), expected, atol=1e-4)


def test_a_pickle_in_several_files_is_converted(folder):
    checkpoint = folder(LLAMA)
    weights = load_file(checkpoint.path / "model.safetensors")
    (checkpoint.path / "model.safetensors").unlink()
    names = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(weights)}
    for file in set(names.values()):
        torch.save({name: weights[name] for name in weights if names[name] == file}, checkpoint.path / file)
    (checkpoint.path / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": names})
    )
    assert "pytorch_model-00001-of-00002.bin" in refusal(load, checkpoint)
    assert len(convert_to_safetensors(checkpoint.path)) == 2
    expected = logits(load(shared_checkpoint(LLAMA)).model)
    assert torch.allclose(logits(load(checkpoint).model), expected, atol=1e-4)


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_a_conversion_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(convert_to_safetensors, tmp_path)
    torch.save({"weight": Harmful()}, tmp_path / "pytorch_model.bin")
    assert "contains more than tensors" in refusal(convert_to_safetensors, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_a_pickle_next_to_safetensors_is_not_opened(folder):
    checkpoint = folder(LLAMA)
    (checkpoint.path / "pytorch_model.bin").write_bytes(b"not a pickle")
    load(checkpoint)


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_is_never_run(folder, where):
    checkpoint = folder(LLAMA)
    ran = checkpoint.path / "ran"
    code = f"open({str(ran)!r}, 'w')\nclass Foo: pass\n"
    (checkpoint.path / "foo.py").write_text(code)
    names = {"AutoConfig": "foo.Foo", "AutoModelForCausalLM": "foo.Foo", "AutoTokenizer": [None, "foo.Foo"]}
    if where == "config.json":
        edit_json(checkpoint.path / where, auto_map=names, model_type="foo")
    else:
        edit_json(checkpoint.path / where, auto_map=names, tokenizer_class="FooTokenizer")
        edit_json(checkpoint.path / "config.json", model_type="bloom")
    message = refusal(
        load_model if where == "config.json" else load_tokenizer, get_model(LLAMA), options_of(checkpoint)
    )
    assert "needs code that comes with the checkpoint" in message
    assert not ran.exists()


def test_a_known_architecture_that_also_brings_code_loads_without_it(folder):
    # As the hub's Falcon repositories do.
    checkpoint = folder("lince-zero")
    (checkpoint.path / "foo.py").write_text("raise SystemExit")
    names = {"AutoConfig": "foo.Foo", "AutoModelForCausalLM": "foo.Foo"}
    edit_json(checkpoint.path / "config.json", auto_map=names)
    expected = logits(load(shared_checkpoint("lince-zero")).model)
    assert torch.allclose(logits(load(checkpoint).model), expected, atol=1e-4)


def test_a_truncated_file_is_named(folder):
    checkpoint = folder("aira-2-portuguese-1b7")
    file = checkpoint.path / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2])
    message = refusal(load, checkpoint)
    assert "model.safetensors is truncated" in message
    assert str(size) in message


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        ("no config", "has no config.json"),
        ("bad config", "config.json is damaged"),
        ("unknown type", "foo"),
        ("no weights", "has no model.safetensors"),
        ("a weight less", "up_proj.weight"),
        ("another size", "and config.json asks for"),
        ("no causal model", "cannot be loaded"),
        ("no tokenizer", "The tokenizer of"),
        ("bad tokenizer", "The tokenizer of"),
    ],
)
def test_a_damaged_folder_is_refused(folder, damage, fragment):
    checkpoint = folder(LLAMA)
    config, weights = checkpoint.path / "config.json", checkpoint.path / "model.safetensors"
    if damage == "no config":
        config.unlink()
    elif damage == "bad config":
        config.write_text("{")
    elif damage == "unknown type":
        edit_json(config, model_type="foo")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "a weight less":
        tensors = load_file(weights)
        tensors.pop("model.layers.1.mlp.up_proj.weight")
        save_file(tensors, weights, metadata={"format": "pt"})
    elif damage == "another size":
        edit_json(config, intermediate_size=96)
    elif damage == "no causal model":
        config.write_text(json.dumps({"model_type": "t5"}))
    else:
        for file in checkpoint.path.glob("tokenizer*"):
            file.write_text("{") if damage == "bad tokenizer" else file.unlink()
    message = refusal(load, checkpoint)
    assert fragment in message
    assert str(checkpoint.path) in message


@pytest.mark.parametrize("path", ["{}/no-such-folder", "./no-such-folder", "~/no-such-folder"])
def test_a_missing_folder_is_named(tmp_path, path):
    path = path.format(tmp_path)
    message = refusal(load_model, get_model("lince-zero"), LoadingOptions(model_path=path))
    assert f"There is no model folder {path!r}" in message


def test_a_source_that_is_not_a_hub_id_is_named():
    options = LoadingOptions(model_path="a/b/c")
    assert "'a/b/c' is neither" in refusal(load_model, get_model("lince-zero"), options, error=ConfigurationError)


@pytest.mark.parametrize(
    ("values", "known"),
    [
        ({"dtype": "float64"}, "float32, bfloat16, float16"),
        ({"quantization": "int3"}, "int8, int4"),
        ({"device": "gpu"}, "cpu, mps, cuda"),
        ({"device": "cuda:x"}, "cpu, mps, cuda"),
    ],
)
def test_wrong_options_are_named(values, known):
    message = refusal(lambda: LoadingOptions(**values), error=ConfigurationError)
    assert repr(next(iter(values.values()))) in message
    assert known in message


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="has an accelerator")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_the_machine_lacks_is_named(device):
    message = refusal(lambda: load(shared_checkpoint(LLAMA), device=device))
    assert repr(device) in message
    assert "It has: cpu" in message


@pytest.mark.parametrize("package", ["torch", "transformers", "peft", "accelerate"])
def test_a_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal(lambda: load(shared_checkpoint(ALPACA)), error=MissingExtraError)
    assert repr(package) in message
    assert installation("models") in message


def test_a_download_without_huggingface_hub_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = refusal(load_tokenizer, get_model("lince-zero"), LoadingOptions(), error=MissingExtraError)
    assert "'huggingface_hub'" in message


def test_a_conversion_without_safetensors_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "'safetensors'" in refusal(convert_to_safetensors, tmp_path, error=MissingExtraError)


def test_quantization_without_bitsandbytes_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    message = refusal(lambda: load(shared_checkpoint(LLAMA), quantization="int8"), error=MissingExtraError)
    assert "'bitsandbytes'" in message
    assert installation("quantization") in message


def test_a_model_without_weights_is_refused():
    refusal(load_model, get_model("extractive"), LoadingOptions(), error=ConfigurationError)


# --------------------------------------------------------------------------------------------------------- memory


@pytest.fixture
def available(monkeypatch):
    def available(size):
        monkeypatch.setattr(memory, "available_bytes", lambda device="cpu": size)

    return available


def test_bfloat16_is_used_if_float32_does_not_fit_on_the_cpu(available):
    checkpoint = shared_checkpoint(LLAMA)
    size = memory.bytes_needed([checkpoint.path / "model.safetensors"], "float32")
    for free, expected in [(None, torch.float32), (size, torch.float32), (size - 1, torch.bfloat16)]:
        available(free)
        assert load(checkpoint).model.dtype == expected
    available(size // 2 - 1)
    message = refusal(load, checkpoint)
    assert "bfloat16 needs" in message
    assert message.count(" GB") == 2
    assert "quantization='int8'" in message
    available(size - 1)
    assert "dtype='bfloat16'" in refusal(lambda: load(checkpoint, dtype="float32"))


def test_too_large_a_model_is_refused_before_it_is_downloaded(hub, available):
    # Its configuration is in the cache, its weights are not: the registry's numbers count.
    hub(shared_checkpoint("falcon-40b-instruct").path, "tiiuae/falcon-40b-instruct", ignore=["*.safetensors"])
    available(25_000_000_000)
    message = refusal(load_model, get_model("falcon-40b-instruct"), LoadingOptions(device="cpu"))
    assert "needs 100.0 GB of memory and 25.0 GB are free on cpu" in message
    available(200_000_000_000)
    message = refusal(load_model, get_model("falcon-40b-instruct"), LoadingOptions(device="cpu"))
    assert "hf download tiiuae/falcon-40b-instruct --revision main" in message


def test_an_adapters_base_is_what_takes_memory(available):
    available(100)
    assert f"{ALPACA}" in refusal(load, shared_checkpoint(ALPACA))


# ----------------------------------------------------------------------------------------------------------- hub


def test_a_hub_id_that_is_not_here_says_where_it_was_looked_for(hub, tmp_path):
    message = refusal(load_model, get_model("lince-zero"), LoadingOptions())
    assert "clibrain/lince-zero@main" in message
    assert str(tmp_path / "hub") in message
    assert "hf download clibrain/lince-zero --revision main" in message
    assert "model_path" in message
    assert message == refusal(load_tokenizer, get_model("lince-zero"), LoadingOptions())


def test_a_hub_id_and_its_revision(hub, tmp_path):
    ours = shared_checkpoint(LLAMA)
    theirs = shared_checkpoint(LLAMA, seed=1)
    hub(ours.path, "Kukedlc/Llama-7b-spanish")
    hub(theirs.path, "Kukedlc/Llama-7b-spanish", "v2", OTHER_COMMIT)
    spec = get_model(LLAMA)
    main = load_model(spec, LoadingOptions(device="cpu")).model
    second = load_model(spec, LoadingOptions(device="cpu", revision="v2")).model
    row = load_model(replace(spec, revision="v2"), LoadingOptions(device="cpu")).model
    by_commit = load_model(spec, LoadingOptions(device="cpu", revision=OTHER_COMMIT)).model
    assert torch.allclose(logits(main), logits(load(ours).model), atol=1e-4)
    for model in (second, row, by_commit):
        assert torch.allclose(logits(model), logits(load(theirs).model), atol=1e-4)
    assert not torch.allclose(logits(main), logits(second), atol=1e-2)
    assert "@v3" in refusal(load_model, spec, LoadingOptions(revision="v3"))
    # A revision of the registry's belongs to the registry's repository only.
    other = load_model(replace(spec, revision="x"), LoadingOptions(model_path=spec.repo, device="cpu"))
    assert torch.allclose(logits(other.model), logits(main), atol=1e-4)


def test_an_adapter_and_its_base_from_the_hub(hub):
    checkpoint = shared_checkpoint(ALPACA)
    hub(checkpoint.path, "dominguesm/alpaca-lora-ptbr-7b")
    hub(checkpoint.base_path, "foo/llama-7b")
    loaded = load_model(get_model(ALPACA), LoadingOptions(base_model_path="foo/llama-7b", device="cpu"))
    assert torch.allclose(logits(loaded.model), logits(load(checkpoint).model), atol=1e-4)


def test_a_cache_with_the_pickle_alone(hub, folder):
    checkpoint = folder(LLAMA)
    old = pickled(checkpoint)
    hub(checkpoint.path, "Kukedlc/Llama-7b-spanish")
    message = refusal(load_model, get_model(LLAMA), LoadingOptions(device="cpu"))
    assert "Kukedlc/Llama-7b-spanish@main" in message
    assert old in message
    assert "hf download Kukedlc/Llama-7b-spanish --revision main --local-dir Llama-7b-spanish && " in message


# --------------------------------------------------------------------------------------------------- no registry


@pytest.fixture
def with_template(folder):
    """A folder whose tokenizer has a chat template."""

    def with_template(
        kind, template="{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    ):
        checkpoint = folder(kind)
        (checkpoint.path / "chat_template.jinja").write_text(template)
        return checkpoint

    return with_template


def test_a_folder_describes_itself(with_template):
    checkpoint = with_template(LLAMA)
    edit_json(checkpoint.path / "generation_config.json", do_sample=True, temperature=0.6, top_p=1, max_length=99)
    spec = describe_checkpoint(str(checkpoint.path), LoadingOptions())
    assert spec.name == spec.repo == str(checkpoint.path)
    assert spec.context_window == checkpoint.context_window
    assert spec.generation == {"do_sample": True, "temperature": 0.6, "top_p": 1}
    assert set(spec.control_tokens) == {"<unk>", "<s>", "</s>"}
    assert spec.special_tokens["bos_token"] == "<s>"
    model = load_model(spec, LoadingOptions(device="cpu")).model
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert spec.memory["bfloat16"] == spec.parameters * 2 * 11 // 10
    prompt = ChatTemplate.from_spec(spec).render([{"role": "user", "content": "Hola </s>"}])
    assert prompt.text == "<s><|user|>Hola <\\/s>"


def test_a_hub_id_describes_itself(with_template, hub):
    checkpoint = with_template("aira-2-portuguese-1b7")
    hub(checkpoint.path, "foo/bar", "v2", ignore=["*.safetensors"])
    options = LoadingOptions(revision="v2")
    spec = describe_checkpoint("foo/bar", options)
    assert (spec.repo, spec.revision) == ("foo/bar", "v2")
    assert "<|endofinstruction|>" in spec.control_tokens
    assert spec.memory == {}
    assert memory.fits(spec, "int8") is None
    assert load_tokenizer(spec, options).bos_token == "<|startofinstruction|>"
    assert describe_checkpoint("foo", LoadingOptions(model_path=str(checkpoint.path))).parameters > 0
    assert "foo/bar@main" in refusal(describe_checkpoint, "foo/bar", LoadingOptions())


def test_an_adapter_describes_itself(with_template, tmp_path):
    base = with_template(LLAMA)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base.path), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    spec = describe_checkpoint(str(tmp_path / "adapter"), LoadingOptions())
    assert spec.adapter
    assert spec.base_model == str(base.path)
    assert torch.allclose(
        logits(load_model(spec, LoadingOptions(device="cpu")).model), logits(load(base).model), atol=1e-4
    )


def test_without_a_chat_template_a_row_is_needed():
    path = str(shared_checkpoint(LLAMA).path)
    message = refusal(describe_checkpoint, path, LoadingOptions(), error=ConfigurationError)
    assert path in message
    assert "no chat template" in message
    assert "models.toml" in message


def test_a_window_that_nothing_declares(with_template):
    checkpoint = with_template("aira-2-portuguese-1b7")
    edit_json(checkpoint.path / "config.json", seq_length=None)
    assert describe_checkpoint(str(checkpoint.path), LoadingOptions()).context_window == checkpoint.context_window
    edit_json(checkpoint.path / "tokenizer_config.json", model_max_length=10**30)
    message = refusal(describe_checkpoint, str(checkpoint.path), LoadingOptions(), error=ConfigurationError)
    assert "context_window" in message
