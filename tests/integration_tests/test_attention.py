"""cuDNN's attention is off while a generation runs on a GPU, and as before when the last one has ended."""

import threading
from contextlib import nullcontext

import pytest
from torch.backends import cuda

from lince_rag import ChatLince
from lince_rag.engines.generation import reading as engine
from lince_rag.engines.generation.reading import without_cudnn_attention
from tests.checkpoints import shared_checkpoint


@pytest.fixture(params=[True, False])
def before(request):
    found = cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(request.param)
    yield request.param
    cuda.enable_cudnn_sdp(found)


def test_it_is_off_on_a_gpu_and_put_back(before):
    with pytest.raises(ZeroDivisionError), without_cudnn_attention("cuda"):
        assert not cuda.cudnn_sdp_enabled()
        _ = 1 / 0
    assert cuda.cudnn_sdp_enabled() == before


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_it_is_left_alone_elsewhere(before, device):
    with without_cudnn_attention(device):
        assert cuda.cudnn_sdp_enabled() == before


def test_the_last_of_two_threads_puts_it_back(before):
    inside, leave = threading.Event(), threading.Event()

    def other():
        with without_cudnn_attention("cuda"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with without_cudnn_attention("cuda"):
        thread.start()
        assert inside.wait(10)
    assert not cuda.cudnn_sdp_enabled()
    leave.set()
    thread.join()
    assert cuda.cudnn_sdp_enabled() == before


def test_every_generation_asks_for_it(monkeypatch):
    asked = []
    monkeypatch.setattr(engine, "without_cudnn_attention", lambda device: nullcontext(asked.append(device)))
    chat = ChatLince(**shared_checkpoint("llama-2-7b-spanish").chat_fields, max_tokens=2)
    chat.invoke("Hola")
    list(chat.stream("Hola"))
    assert asked == ["cpu", "cpu"]
