import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lince_rag.engines.checkpoints import memory
from lince_rag.engines.checkpoints.configuration import TemplateText
from lince_rag.engines.checkpoints.memory import (
    bytes_needed,
    check_device_name,
    check_memory,
    fits,
    formats_that_fit,
    largest_that_fits,
    pick_device,
    read_tensors,
)
from lince_rag.errors import ConfigurationError, EngineError
from lince_rag.prompting.registry import ModelSpec, get_model, memory_by_dtype

GB = 1_000_000_000


def write_safetensors(file, tensors, cut=0):
    """Write a safetensors file by the format's own rules: length, JSON header, data."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(end)
    file.write_bytes(content[: len(content) - cut])
    return file


def model(memory_bytes):
    return ModelSpec(
        name="foo",
        repo="foo/bar",
        engine="transformers",
        template="foo.jinja",
        template_file=TemplateText(""),
        context_window=10,
        languages=(),
        licence="",
        parameters=1,
        memory=memory_bytes,
    )


@pytest.fixture
def available(monkeypatch):
    """Set the bytes that are free."""
    monkeypatch.setattr(memory, "_nvidia_bytes", lambda: None)

    def available(size):
        monkeypatch.setattr(memory, "available_bytes", lambda device="cpu": size)

    return available


@pytest.fixture
def torch_devices(monkeypatch):
    """Replace torch by one that reports a number of CUDA devices, or MPS."""

    def torch_devices(devices):
        count = 0 if devices == "mps" else devices
        fake = SimpleNamespace(
            cuda=SimpleNamespace(is_available=lambda: count > 0, device_count=lambda: count),
            backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: devices == "mps")),
        )
        monkeypatch.setitem(sys.modules, "torch", fake)

    return torch_devices


def test_tensors_are_read_without_their_values(tmp_path):
    file = write_safetensors(tmp_path / "a.safetensors", {"x": ("F32", [2, 3], 24), "q": ("U8", [7], 7)})
    found = [(tensor.name, tensor.count, tensor.size, tensor.is_integer) for tensor in read_tensors(file)]
    assert found == [("x", 6, 24, False), ("q", 7, 7, True)]


@pytest.mark.parametrize("cut", [1, 10, 24, 40, 90])
def test_a_truncated_file_is_refused(tmp_path, cut):
    file = write_safetensors(tmp_path / "a.safetensors", {"x": ("F32", [2, 3], 24)}, cut)
    with pytest.raises(EngineError, match=rf"a\.safetensors is truncated.* {file.stat().st_size} bytes"):
        read_tensors(file)


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\xff" * 200, b"\x02" + bytes(7) + b"[]", b"\x07" + bytes(7) + b'{"a":1}' + bytes(9)]
)
def test_a_file_that_is_not_safetensors_is_refused(tmp_path, content):
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(EngineError, match="not a safetensors file"):
        read_tensors(file)


def test_a_git_lfs_pointer_is_named(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(EngineError, match="Git LFS pointer"):
        read_tensors(file)


def test_bytes_needed_are_scaled_to_the_dtype(tmp_path):
    one = write_safetensors(tmp_path / "1", {"x": ("BF16", [100, 100], 20_000)})
    two = write_safetensors(tmp_path / "2", {"y": ("F32", [100, 100], 40_000), "q": ("I8", [10_000], 10_000)})
    assert bytes_needed([one, two]) == 77_000
    assert bytes_needed([one], "bfloat16") == bytes_needed([one], "float16") == 22_000
    assert bytes_needed([one], "float32") == 44_000
    assert bytes_needed([two], "bfloat16") == 33_000  # Integers stay as they are.
    assert bytes_needed([one], "int8") == 11_000
    assert bytes_needed([one], "int4") == 5_500


def test_the_estimate_agrees_with_the_registry():
    spec = get_model("lince-zero")
    assert memory_by_dtype(spec.parameters) == pytest.approx(dict(spec.memory), abs=2)
    assert memory_by_dtype(0) == {}


@pytest.mark.parametrize(("size", "expected"), [(99, False), (100, True), (101, True), (None, None)])
def test_fits(available, size, expected):
    available(size)
    assert fits(model({"bfloat16": 100}), "bfloat16") is expected
    assert fits(model({"bfloat16": 100}), "float16") is expected
    assert fits(model({"bfloat16": 100}), "int8") is None


def test_the_largest_model_that_fits(available):
    small = replace(model({"bfloat16": 20, "int8": 10, "int4": 5}), name="small", languages=("es",), parameters=10)
    large = replace(model({"bfloat16": 80, "int8": 40}), name="large", languages=("es", "pt"), parameters=40)
    without = replace(model({"bfloat16": 0, "int8": 0, "int4": 0}), name="none", languages=("es",), parameters=0)
    specs = [large, small, without]
    for free, formats, largest in [
        (100, ["bfloat16", "int8"], "large"),
        (40, ["int8"], "large"),
        (39, [], "small"),
        (4, [], None),
        (None, [], None),
    ]:
        available(free)
        assert formats_that_fit(large) == formats
        assert formats_that_fit(without) == []
        found = largest_that_fits(specs, "es")
        assert (found and found.name) == largest
    available(100)
    assert largest_that_fits(specs, "pt") is large
    assert largest_that_fits([small], "pt") is None
    available(5)
    assert formats_that_fit(small) == ["int4"]


def test_fits_needs_no_torch():
    code = (
        "import sys\nfrom lince_rag.engines.checkpoints.memory import fits\n"
        "from lince_rag.prompting.registry import load_registry\n"
        "for spec in load_registry().values():\n    assert fits(spec, 'int8') is not None\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\nsys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_memory_that_is_unknown_is_not_checked():
    check_memory("foo", None, 1, "cpu", "float32")
    check_memory("foo", 1, None, "cpu", "float32")
    check_memory("foo", 1, 1, "cpu", "float32")


@pytest.mark.parametrize(
    ("dtype", "offered", "not_offered"),
    [
        ("float32", ["dtype='bfloat16'", "quantization='int8'", "quantization='int4'"], []),
        ("bfloat16", ["quantization='int8'", "quantization='int4'"], ["dtype="]),
        ("int8", ["quantization='int4'"], ["int8'", "dtype="]),
        ("int4", [], ["quantization", "dtype="]),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_both_numbers(dtype, offered, not_offered):
    with pytest.raises(EngineError) as caught:
        check_memory("falcon", 100 * GB, 25_340_000_000, "cpu", dtype)
    assert caught.value.message == f"falcon in {dtype} needs 100.0 GB of memory and 25.3 GB are free on cpu."
    assert "\n" not in str(caught.value)
    assert all(text in caught.value.hint for text in [*offered, "a smaller model", "a server"])
    assert not any(text in caught.value.hint for text in not_offered)


def test_a_model_of_a_fixed_dtype_does_not_fit():
    with pytest.raises(EngineError) as caught:
        check_memory("bge", 3 * GB, GB, "auto")
    assert caught.value.message == "bge needs 3.0 GB of memory and 1.0 GB are free on the CUDA devices."
    assert caught.value.hint == "Use a smaller model or another device."


@pytest.mark.parametrize(
    ("devices", "device", "expected"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (1, "auto", "cuda:0"),
        (2, "auto", "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
        (2, "cpu", "cpu"),
        ("mps", "auto", "mps"),
        ("mps", "mps", "mps"),
    ],
)
def test_a_device_is_picked(torch_devices, devices, device, expected):
    torch_devices(devices)
    assert pick_device(device) == expected
    spreads = (devices, device) == (2, "auto")
    assert pick_device(device, spread=True) == ("auto" if spreads else expected)


@pytest.mark.parametrize(
    ("devices", "device", "known"),
    [
        (0, "cuda", "cpu"),
        (2, "cuda:2", "cuda:0, cuda:1, cpu"),
        (1, "mps", "cuda:0, cpu"),
        ("mps", "cuda", "mps, cpu"),
    ],
)
def test_a_device_that_the_machine_lacks_is_refused(torch_devices, devices, device, known):
    torch_devices(devices)
    with pytest.raises(EngineError) as caught:
        pick_device(device)
    assert caught.value.message == f"This machine has no device {device!r}."
    assert caught.value.hint == f"It has: {known}."


@pytest.mark.parametrize(("device", "expected"), [("cuda:0", 5 * GB), ("cuda:1", 2 * GB), ("auto", 7 * GB)])
def test_memory_that_pytorch_keeps_for_later_is_free(monkeypatch, device, expected):
    free, reserved, allocated = [GB, 2 * GB], [10 * GB, GB], [6 * GB, GB]
    fake = SimpleNamespace(
        device=lambda name: SimpleNamespace(index=int(name.partition(":")[2])),
        cuda=SimpleNamespace(
            device_count=lambda: 2,
            mem_get_info=lambda number: (free[number], 80 * GB),
            memory_reserved=lambda number: reserved[number],
            memory_allocated=lambda number: allocated[number],
        ),
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    assert memory.available_bytes(device) == expected


@pytest.mark.parametrize("device", ["", "gpu", "CPU", "cuda:", "cuda:x", "mps:0"])
def test_an_unknown_device_name_is_refused(device):
    with pytest.raises(ConfigurationError, match=r"is not known.* cpu, mps, cuda"):
        check_device_name(device)


def test_this_machines_memory_is_measured():
    assert memory.available_bytes("cpu") > 1_000_000
    assert memory.machine_bytes() >= memory.available_bytes("cpu") * 0.5


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    assert memory.available_bytes("cpu") == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes("cpu") > 1_000_000


def test_without_proc_all_memory_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "no-such-file")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_bytes("cpu") > 1_000_000


def test_the_driver_reports_the_memory_of_nvidia_devices(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '1000\\n500\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    memory._nvidia_bytes.cache_clear()
    try:
        assert memory._nvidia_bytes() == 1500 * 2**20
        program.write_text("#!/bin/sh\nexit 9\n")
        memory._nvidia_bytes.cache_clear()
        assert memory._nvidia_bytes() is None
    finally:
        memory._nvidia_bytes.cache_clear()
