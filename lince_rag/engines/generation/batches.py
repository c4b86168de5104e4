"""Decoding the answers of one model together: whoever asks, and whenever, a pass computes a token of each answer.

Prompts join the running batch at its next token, and an answer that has ended leaves it at once. All answers share
one left-padded key-value cache and nothing else: each has its own limit, logits processors, random numbers, stop
texts and cancellation.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from lince_rag.engines.checkpoints import memory
from lince_rag.engines.generation.decoding import cancelled_before
from lince_rag.engines.generation.reading import Reader

# The most tokens, padding included, that are read in one pass; a longer prompt is read alone.
_READ_TOKENS: Final = 2048

# The most padding of such a pass, as a share of its longest prompt.
_READ_PADDING: Final = 0.2

# The share of the free memory that the cache may come to take.
_CACHE_SHARE: Final = 0.5


@dataclass(eq=False)
class Row:
    """An answer in the making."""

    # The prompt.
    ids: Sequence[int]
    # Maximum number of tokens of the answer.
    limit: int
    end_ids: set[int]
    # Decides about the scores of the next token, given all ids; ``None`` leaves them as they are.
    processors: Any
    # Chooses the most probable token if false.
    samples: bool
    # Source of random numbers; ``None`` takes those of the process.
    generator: Any
    # The most answers that may be decoded together with this one, which counts, too.
    batch_size: int
    # Whether an answer contains a stop text.
    is_stopped: Callable[[Sequence[int]], bool]
    cancelled: Sequence[threading.Event] = ()
    # Receives each token.
    on_token: Callable[[int], None] = lambda token: None
    answer: list[int] = field(default_factory=list)
    # All ids that the processors have seen, as a tensor of one row.
    seen: Any = None
    # Its result is the answer, with its end token.
    future: "Future[list[int]]" = field(default_factory=Future)

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.future.cancelled() or any(event.is_set() for event in self.cancelled)

    @property
    def longest(self) -> int:
        """The most tokens that prompt and answer may have."""
        return len(self.ids) + self.limit

    @property
    def length(self) -> int:
        """How many of its tokens are in the cache: all but the newest one."""
        return len(self.ids) + len(self.answer) - 1

    def choose(self, logits: Any) -> Any:
        """Return the next token, given the scores of all tokens as a tensor of one row."""
        import torch

        new = torch.tensor([self.answer[-1:] or list(self.ids)], device=logits.device)
        self.seen = new if self.seen is None else torch.cat([self.seen, new], dim=-1)
        scores = self.processors(self.seen, logits)
        if not self.samples:
            return scores.argmax(dim=-1)
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=self.generator)[0]

    def take(self, token: int) -> bool:
        """Add a token; return whether it is the last one."""
        self.answer.append(token)
        self.on_token(token)
        return (
            token in self.end_ids
            or len(self.answer) >= self.limit
            or self.is_cancelled
            or self.is_stopped(self.answer)
        )

    def finish(self, error: BaseException | None = None) -> None:
        """Give the answer, or the error, to who waits for it, unless that has been done."""
        # An event loop that gives up waiting cancels the future at any moment.
        with suppress(InvalidStateError):
            if error is None:
                self.future.set_result(self.answer)
            else:
                self.future.set_exception(error)


class RowDecoder:
    """Decodes the rows of one model together, in a thread that lives as long as there are some.

    Args:
        model: The model; ``reading.can_read`` says whether it is one that can be used here.
        pad_id: The id that fills up shorter prompts.
        computing: Entered while the model computes, without gradients and one at a time.
    """

    def __init__(self, model: Any, pad_id: int, computing: Callable[[], AbstractContextManager[None]]) -> None:
        self._reader = Reader(model)
        self._pad_id = pad_id
        self._computing = computing
        # What waits, and the thread; both are protected by the lock.
        self._lock = threading.Lock()
        self._waiting: list[Row] = []
        self._thread: threading.Thread | None = None
        # What is decoded, in the order of the rows of the cache; only the thread uses them.
        self._rows: list[Row] = []
        self._cache: Any = None
        # Bytes of the cache for one token; 0 until the first prompt has been read.
        self._token_bytes = 0

    def submit(self, rows: Sequence[Row]) -> None:
        """Decode rows as soon as there is room."""
        with self._lock:
            self._waiting += rows
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="lince-batch", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        try:
            while (joining := self._admit()) is not None:
                with self._computing():
                    ended = self._advance(joining)
                # Not while it computes: who gets a result may fork this process.
                for row in ended:
                    row.finish()
        except BaseException as error:
            with self._lock:
                for row in [*self._rows, *self._waiting]:
                    row.finish(error)
                self._rows, self._waiting, self._thread = [], [], None

    def _admit(self) -> list[Row] | None:
        """Return the rows that can join; ``None``, and the end of the thread, if there is nothing to do."""
        with self._lock:
            for row in [each for each in self._waiting if each.is_cancelled]:
                self._waiting.remove(row)
                row.finish(cancelled_before())
            joining: list[Row] = []
            room = self._room()
            while self._waiting and self._fits([*self._rows, *joining], self._waiting[0], room):
                joining.append(self._waiting.pop(0))
            if not joining and not self._rows:
                self._thread = None
                return None
            return joining

    def _room(self) -> float:
        """Return how many tokens the whole cache may come to have."""
        free = (
            memory.available_bytes(str(self._reader.model.device)) if self._token_bytes and self._waiting else None
        )
        if free is None:
            return float("inf")
        taken = len(self._rows) * self._cache.get_seq_length() * self._token_bytes if self._rows else 0
        return _CACHE_SHARE * (free + taken) / self._token_bytes

    def _fits(self, rows: Sequence[Row], row: Row, room: float) -> bool:
        """Return whether a row can join others; alone it can always."""
        if not rows:
            return True
        everyone = (*rows, row)
        if len(everyone) > min(each.batch_size for each in everyone):
            return False
        # The first row shows how much memory a token takes.
        return bool(self._token_bytes) and len(everyone) * max(each.longest for each in everyone) <= room

    def _advance(self, joining: Sequence[Row]) -> list[Row]:
        """Let rows join, and compute one token of each row; return those that have ended."""
        try:
            ended = [row for group in _groups(joining) for row in self._read(group)]
            return [*ended, *self._step()] if self._rows else ended
        except BaseException as error:
            # The cache may be broken.
            for row in [*self._rows, *joining]:
                row.finish(error)
            self._rows, self._cache = [], None
            return []

    def _read(self, rows: Sequence[Row]) -> list[Row]:
        """Read prompts, choose the first token of each, and let them join; return those that have ended."""
        from transformers import DynamicCache

        longest = max(len(row.ids) for row in rows)
        padded = [[self._pad_id] * (longest - len(row.ids)) + list(row.ids) for row in rows]
        cache: Any = DynamicCache(config=self._reader.model.config)
        try:
            logits = self._reader.forward(padded, [len(row.ids) for row in rows], cache)
        except Exception as error:
            # Such as too little memory for them; the others go on.
            for row in rows:
                row.finish(error)
            return []
        ended = _take_tokens(rows, logits)
        self._token_bytes = sum(
            (layer.keys.nbytes + layer.values.nbytes) // (len(rows) * longest) for layer in cache.layers
        )
        self._join(rows, cache)
        return self._drop(ended)

    def _step(self) -> list[Row]:
        """Compute one token of each row; return those that have ended."""
        lengths = [row.length + 1 for row in self._rows]
        logits = self._reader.forward([[row.answer[-1]] for row in self._rows], lengths, self._cache)
        return self._drop(_take_tokens(self._rows, logits))

    def _join(self, rows: Sequence[Row], cache: Any) -> None:
        """Add rows with their cache to those that are decoded."""
        import torch
        from torch.nn.functional import pad

        if self._rows:
            total = max(cache.get_seq_length(), self._cache.get_seq_length())
            for old, new in zip(self._cache.layers, cache.layers, strict=True):
                for name in ("keys", "values"):
                    parts = [getattr(layer, name) for layer in (old, new)]
                    padded = [pad(part, (0, 0, total - part.shape[-2], 0)) for part in parts]
                    setattr(new, name, torch.cat(padded))
        self._cache = cache
        self._rows = [*self._rows, *rows]

    def _drop(self, ended: list[Row]) -> list[Row]:
        """Take rows that have ended out of the cache, and the padding that all others have; return them."""
        import torch

        if not ended:
            return ended
        kept = [at for at, row in enumerate(self._rows) if row not in ended]
        self._rows = [self._rows[at] for at in kept]
        if not self._rows:
            self._cache = None
            return ended
        padding = self._cache.get_seq_length() - max(row.length for row in self._rows)
        for layer in self._cache.layers:
            chosen = torch.tensor(kept, device=layer.keys.device)
            layer.keys, layer.values = layer.keys[chosen, :, padding:], layer.values[chosen, :, padding:]
        return ended


def _groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Divide rows into groups that are read in one pass each, with little padding."""
    group: list[Row] = []
    for row in sorted(rows, key=lambda each: len(each.ids)):
        length = len(row.ids)
        if group and (
            length * (len(group) + 1) > _READ_TOKENS or len(group[0].ids) < (1 - _READ_PADDING) * length
        ):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _take_tokens(rows: Sequence[Row], logits: Any) -> list[Row]:
    """Choose the next token of each row; return the rows that have ended."""
    best = logits.argmax(dim=-1)
    for at, row in enumerate(rows):
        if row.processors or row.samples:
            try:
                best[at] = row.choose(logits[at : at + 1])[0]
            except Exception as error:
                # Such as a schema that is too complex; the other rows go on.
                row.finish(error)
    return [row for row, token in zip(rows, best.tolist(), strict=True) if row.future.done() or row.take(token)]
