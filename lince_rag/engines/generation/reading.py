"""Passes of a model: from token ids to the scores of the next tokens, and to keys and values."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

_cudnn_lock = threading.Lock()
# Generations that keep cuDNN out now, and what the process had set before the first of them.
_without_cudnn = 0
_cudnn_before = True


class Reader:
    """Reads tokens with a model whose state is keys and values; not safe in several threads at once.

    Args:
        model: The model; ``can_read`` says whether it is one that can be used here.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        accepted = signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        # The scores after the last token are all that is needed.
        self._fixed = {"use_cache": True, **({"logits_to_keep": 1} if "logits_to_keep" in accepted else {})}

    def forward(self, ids: Sequence[Sequence[int]], lengths: Sequence[int], cache: Any) -> Any:
        """Return the scores of the next tokens.

        Args:
            ids: The new tokens of each row, padded on the left.
            lengths: How many tokens each row has with these, without padding.
            cache: What was computed before; the new tokens are added.

        Returns:
            A tensor (rows, vocabulary) of float32.
        """
        import torch

        device, new = self.model.device, len(ids[0])
        total = cache.get_seq_length() + new
        given: dict[str, Any] = dict(self._fixed)
        padding = torch.tensor([[total - length] for length in lengths], device=device)
        if min(lengths) < total:
            # A mask of ones alone says nothing, and costs some time in every layer.
            given["attention_mask"] = (torch.arange(total, device=device) >= padding).long()
        if self._takes_positions:
            places = torch.arange(total - new, total, device=device)
            given["position_ids"] = (places - padding).clamp(min=0)
        output = self.model(input_ids=torch.tensor(ids, device=device), past_key_values=cache, **given)
        return output.logits[:, -1].float()


def can_read(model: Any) -> bool:
    """Return whether a model can be used by a ``Reader``, and so by a ``RowDecoder``.

    Its state must be keys and values of all tokens: no sliding window, and no state that padding would change.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if "past_key_values" not in signature(model.forward).parameters:
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@contextmanager
def computing(lock: threading.Lock, device_type: str) -> Iterator[None]:
    """Compute one at a time and without gradients."""
    import torch

    with lock, torch.inference_mode(), without_cudnn_attention(device_type):
        yield


@contextmanager
def without_cudnn_attention(device_type: str) -> Iterator[None]:
    """Keep cuDNN out of attention on a CUDA device while a generation runs; elsewhere, do nothing.

    On Hopper and Blackwell, PyTorch prefers cuDNN for half precision. cuDNN builds a plan for every length of the
    key-value cache, so for every token, and PyTorch keeps the plans for the thread that built them: a stream,
    which has a thread of its own, builds all of them again. On an H200 that took about 45 ms a token, twice the
    time of a token of a 7B model (tests/benchmarks/RESULTS.md). The setting is one for the whole process, so the
    last generation to end puts it back.
    """
    global _without_cudnn, _cudnn_before
    if device_type != "cuda":
        yield
        return
    from torch.backends import cuda

    with _cudnn_lock:
        if not _without_cudnn:
            _cudnn_before = cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
            cuda.enable_cudnn_sdp(False)
        _without_cudnn += 1
    try:
        yield
    finally:
        with _cudnn_lock:
            _without_cudnn -= 1
            if not _without_cudnn:
                cuda.enable_cudnn_sdp(_cudnn_before)
