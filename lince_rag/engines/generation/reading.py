"""Passes of a model: from token ids to the scores of the next tokens, and to keys and values."""

import threading
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from itertools import groupby
from typing import Any, Final

# The most tokens, padding included, that are read in one pass; a longer prompt is read alone.
_READ_TOKENS: Final = 2048

# The most padding of such a pass, as a share of its longest prompt.
_READ_PADDING: Final = 0.1

# A shorter common beginning is not looked for: reading it costs less.
_LEAST_TOKENS: Final = 8

# How many tokens it must save to read a common beginning by itself: a pass, however short, reads all weights.
_SHARED_TOKENS: Final = 256

_cudnn_lock = threading.Lock()
# Generations that keep cuDNN out now, and what the process had set before the first of them.
_without_cudnn = 0
_cudnn_before = True


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as the model reads it."""

    ids: tuple[int, ...]
    # The most bytes of keys and values that may be kept, this prompt's with those of all others; 0 neither keeps
    # any nor uses those that are kept.
    kept_bytes: int = 0


@dataclass(eq=False)
class Kept:
    """The keys and values of a text that was read or written."""

    ids: tuple[int, ...]
    # Of each layer, tensors of (1, heads, tokens, size of a head).
    layers: list[tuple[Any, ...]]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(int(part.nbytes) for layer in self.layers for part in layer)


@dataclass(frozen=True)
class Unread:
    """A prompt, and the keys and values that its first tokens have already."""

    prompt: TokenPrompt
    known: int
    kept: Kept | None

    @property
    def rest(self) -> int:
        """The number of tokens to read."""
        return len(self.prompt.ids) - self.known


class PrefixCache:
    """Keeps the keys and values of texts, for other texts that begin with the same tokens.

    It belongs to one model, and is used by who computes with it, one at a time.
    """

    def __init__(self) -> None:
        # The one that was not used for longest is the first.
        self._kept: dict[tuple[int, ...], Kept] = {}
        # The longest common beginning with a text is that of a neighbour in this order.
        self._sorted: list[tuple[int, ...]] = []
        self.nbytes = 0

    def find(self, ids: tuple[int, ...], longest: int | None = None) -> tuple[int, Kept | None]:
        """Return the number of a text's first tokens, at most ``longest``, that are kept, and what begins so."""
        at = bisect_left(self._sorted, ids)
        near = self._sorted[max(at - 1, 0) : at + 1]
        lengths = [common_length(other, ids) for other in near]
        length = min(max(lengths, default=0), len(ids) if longest is None else longest)
        if length < _LEAST_TOKENS:
            return 0, None
        best = near[lengths.index(max(lengths))]
        self._kept[best] = self._kept.pop(best)
        return length, self._kept[best]

    def keep(self, new: Kept, most_bytes: int, spared: Collection[Kept] = ()) -> None:
        """Keep a text's keys and values if they fit; others make room, but not those that are spared."""
        at = bisect_left(self._sorted, new.ids)
        if at < len(self._sorted) and self._sorted[at][: len(new.ids)] == new.ids:
            # What is kept begins with it.
            longer = self._sorted[at]
            self._kept[longer] = self._kept.pop(longer)
            return
        held = [each.nbytes for each in spared if each is self._kept.get(each.ids)]
        if new.nbytes + sum(held) > most_bytes:
            return
        if at and new.ids[: len(self._sorted[at - 1])] == self._sorted[at - 1]:
            self._remove(self._sorted[at - 1])
        for old in list(self._kept.values()):
            if self.nbytes + new.nbytes <= most_bytes:
                break
            if old not in spared:
                self._remove(old.ids)
        insort(self._sorted, new.ids)
        self._kept[new.ids] = new
        self.nbytes += new.nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._kept, self._sorted, self.nbytes = {}, [], 0

    def _remove(self, ids: tuple[int, ...]) -> None:
        self.nbytes -= self._kept.pop(ids).nbytes
        del self._sorted[bisect_left(self._sorted, ids)]


class Reader:
    """Reads tokens with a model whose state is keys and values; not safe in several threads at once.

    The keys and values of a prompt's beginning are not computed again if they are kept. They were computed from
    the same tokens by the same weights, but in passes of other lengths, so the scores may differ by rounding from
    those of a prompt that is read as a whole. In float32 greedy decoding chooses the same tokens (tested on all
    architectures of the registry); in half precision two tokens that are nearly as likely may change places.

    Args:
        model: The model; ``can_read`` says whether it is one that can be used here.
        pad_id: The id that fills up shorter prompts.
    """

    def __init__(self, model: Any, pad_id: int) -> None:
        self.model = model
        self.prefixes = PrefixCache()
        # Bytes of the keys and values of a token; 0 until the first one has been read.
        self.token_bytes = 0
        self._pad_id = pad_id
        self._weights = 0
        accepted = signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_scored = "logits_to_keep" in accepted

    def groups(self, prompts: Iterable[TokenPrompt], scored: int = 1) -> list[list[Unread]]:
        """Divide different prompts into groups that are read in one pass each, with little padding.

        What several of them begin with is read here, once. The scores of the last ``scored`` tokens are needed.
        """
        self._check_weights()
        ordered = sorted(prompts, key=lambda each: each.ids)
        self._read_beginnings([each for each in ordered if each.kept_bytes and self.token_bytes], 0)
        groups: list[list[Unread]] = []
        for unread in sorted((self._look_up(each, scored) for each in ordered), key=lambda each: each.rest):
            group = groups[-1] if groups else []
            is_full = unread.rest * (len(group) + 1) > _READ_TOKENS
            if not group or is_full or group[0].rest < (1 - _READ_PADDING) * unread.rest:
                groups.append(group := [])
            group.append(unread)
        return groups

    def read(self, group: Sequence[Unread], scored: int = 1) -> tuple[Any, Any, list[int]]:
        """Read a group of ``groups`` in one pass.

        Returns:
            The scores, a tensor (prompts, scored, vocabulary) of float32; the cache, padded on the left; and the
            number of tokens of each prompt that were not computed again.
        """
        rest = max(unread.rest for unread in group)
        prompts = [unread.prompt for unread in group]
        # All rows read as many tokens, so that no padding comes between those that are known and the new ones.
        known = [max(len(prompt.ids) - rest, 0) for prompt in prompts]
        cache = self._begin(known, [unread.kept for unread in group])
        ids = [prompt.ids[length:] for prompt, length in zip(prompts, known, strict=True)]
        padded = [[self._pad_id] * (rest - len(each)) + list(each) for each in ids]
        scores = self.forward(padded, [len(prompt.ids) for prompt in prompts], cache, scored)
        self.token_bytes = sum(
            (layer.keys.nbytes + layer.values.nbytes) // (len(group) * layer.keys.shape[-2])
            for layer in cache.layers
        )
        spared = [unread.kept for unread in group if unread.kept]
        for row, prompt in enumerate(prompts):
            self.keep(prompt, cache, row, spared=spared)
        return scores, cache, known

    def score(self, prompt: TokenPrompt, scored: int) -> Any:
        """Return the scores after the last ``scored`` tokens of a prompt, a tensor (scored, vocabulary)."""
        ((unread,),) = self.groups([prompt], scored)
        return self.read([unread], scored)[0][0]

    def fill(self, prompts: Sequence[TokenPrompt]) -> Any:
        """Return a cache of prompts, which may be equal, in their order, padded on the left."""
        order: list[TokenPrompt] = []
        cache: Any = None
        for group in self.groups(set(prompts)):
            new = self.read(group)[1]
            cache = join(cache, new) if order else new
            order += [unread.prompt for unread in group]
        return select(cache, [order.index(prompt) for prompt in prompts])

    def keep(self, text: TokenPrompt, cache: Any, row: int, *, spared: Collection[Kept] = ()) -> None:
        """Keep the keys and values of a text, which are the last ones of a row of a cache."""
        if not text.kept_bytes:
            return
        layers, length = [], len(text.ids)
        for layer in cache.layers:
            parts = (layer.keys[row : row + 1, :, -length:], layer.values[row : row + 1, :, -length:])
            # A whole tensor needs no copy: a cache grows by new tensors, and does not change those it has.
            layers.append(tuple(part if _is_whole(part) else part.clone() for part in parts))
        self.prefixes.keep(Kept(text.ids, layers), text.kept_bytes, spared)

    def _look_up(self, prompt: TokenPrompt, scored: int) -> Unread:
        found = self.prefixes.find(prompt.ids, len(prompt.ids) - scored) if prompt.kept_bytes else (0, None)
        return Unread(prompt, *found)

    def _read_beginnings(self, prompts: Sequence[TokenPrompt], known: int) -> None:
        """Read what several prompts, in order, begin with, if that saves enough."""
        if len(prompts) < 2:
            return
        common = common_length(prompts[0].ids, prompts[-1].ids)
        beginning = TokenPrompt(prompts[0].ids[:common], min(prompt.kept_bytes for prompt in prompts))
        known = max(known, self.prefixes.find(beginning.ids)[0])
        saved = (len(prompts) - 1) * (common - known)
        if saved >= _SHARED_TOKENS and common * self.token_bytes <= beginning.kept_bytes:
            self.read([self._look_up(beginning, 1)])
            known = common
        # All of those that end there are equal.
        for _, same in groupby(prompts, key=lambda each: each.ids[common : common + 1]):
            if len(group := list(same)) < len(prompts):
                self._read_beginnings(group, known)

    def _begin(self, lengths: Sequence[int], found: Sequence[Kept | None]) -> Any:
        """Make a cache of the first tokens of some texts, padded on the left."""
        import torch
        from torch.nn.functional import pad
        from transformers import DynamicCache

        cache: Any = DynamicCache(config=self.model.config)
        longest = max(lengths)
        if not longest:
            return cache
        first = next(kept for kept in found if kept)
        for number, layer in enumerate(cache.layers):
            rows = [
                [pad(part[:, :, :length], (0, 0, longest - length, 0)) if length < longest else part[:, :, :length]
                 for part in (kept or first).layers[number]]
                for length, kept in zip(lengths, found, strict=True)
            ]  # fmt: skip
            keys, values = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*rows, strict=True))
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
        return cache

    def _check_weights(self) -> None:
        """Forget what was computed with other weights, as after a training in place."""
        weights = sum(part._version for part in self.model.parameters() if not part.is_inference())
        if weights != self._weights:
            self.prefixes.clear()
        self._weights = weights

    def forward(self, ids: Sequence[Sequence[int]], lengths: Sequence[int], cache: Any, scored: int = 1) -> Any:
        """Return the scores of the next tokens.

        Args:
            ids: The new tokens of each row, padded on the left.
            lengths: How many tokens each row has with these, without padding.
            cache: What was computed before; the new tokens are added.
            scored: The number of last tokens of each row after which the scores are needed.

        Returns:
            A tensor (rows, scored, vocabulary) of float32.
        """
        import torch

        device, new = self.model.device, len(ids[0])
        total = cache.get_seq_length() + new
        given: dict[str, Any] = {"logits_to_keep": scored} if self._takes_scored else {}
        padding = torch.tensor([[total - length] for length in lengths], device=device)
        if min(lengths) < total:
            # A mask of ones alone says nothing, and costs some time in every layer.
            given["attention_mask"] = (torch.arange(total, device=device) >= padding).long()
        if self._takes_positions:
            places = torch.arange(total - new, total, device=device)
            given["position_ids"] = (places - padding).clamp(min=0)
        read = torch.tensor(ids, device=device)
        output = self.model(input_ids=read, past_key_values=cache, use_cache=True, **given)
        return output.logits[:, -scored:].float()


def join(one: Any, other: Any) -> Any:
    """Return a cache of the rows of two caches that are padded on the left."""
    import torch
    from torch.nn.functional import pad

    total = max(one.get_seq_length(), other.get_seq_length())
    for old, new in zip(one.layers, other.layers, strict=True):
        for name in ("keys", "values"):
            parts = [getattr(layer, name) for layer in (old, new)]
            padded = [pad(part, (0, 0, total - part.shape[-2], 0)) for part in parts]
            setattr(new, name, torch.cat(padded))
    return other


def select(cache: Any, rows: Sequence[int]) -> Any:
    """Return a cache of some rows of a cache, by their numbers."""
    import torch

    if list(rows) != list(range(len(cache.layers[0].keys))):
        cache.batch_select_indices(torch.tensor(rows))
    return cache


def shorten(cache: Any, surplus: Sequence[int]) -> None:
    """Take a number of last tokens off each row of a cache; rows that lose more get that much more padding."""
    import torch

    least, total = min(surplus), cache.get_seq_length()
    for layer in cache.layers:
        for name in ("keys", "values"):
            part = getattr(layer, name)[:, :, : total - least]
            if max(surplus) > least:
                rows = [row.roll(tokens - least, dims=-2) for row, tokens in zip(part, surplus, strict=True)]
                part = torch.stack(rows)
            setattr(layer, name, part)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many first tokens two texts have in common."""
    different = (at for at, (mine, its) in enumerate(zip(one, other, strict=False)) if mine != its)
    return next(different, min(len(one), len(other)))


def _is_whole(part: Any) -> bool:
    """Return whether a tensor is all that its memory holds."""
    return bool(part.untyped_storage().nbytes() == part.nbytes)


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
