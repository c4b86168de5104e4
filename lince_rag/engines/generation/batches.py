"""Decoding the answers of one model together: whoever asks, and whenever, a pass computes a token of each answer.

Prompts join the running batch at its next token, and an answer that has ended leaves it at once. All answers share
one left-padded key-value cache and nothing else: each has its own limit, logits processors, random numbers, stop
texts and cancellation.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Final

from lince_rag.engines.checkpoints import memory
from lince_rag.engines.generation.decoding import cancelled_before
from lince_rag.engines.generation.reading import Reader, TokenPrompt, Unread, join, select, shorten

# The share of the free memory that the cache may come to take.
_CACHE_SHARE: Final = 0.5

# How many last tokens of an answer are looked for in the text before them. Two are often alike by chance.
_LOOKED_UP: Final = 3

# The most tokens of a pass with guesses. So many take little longer than one, because a pass reads all weights
# however many there are.
_PASS_TOKENS: Final = 16

# How many tokens are guessed first; guesses that were all right are followed by twice as many.
_FIRST_GUESSES: Final = 3

# For how many tokens nothing is guessed when less than half of a guess was right, and how many times as long after
# each further guess that was all wrong. A guess costs about half a pass (tests/benchmarks/RESULTS.md).
_PAUSE: Final = 8
_LONGER_PAUSE: Final = 4


class Guesses:
    """Guesses the next tokens of a text: those that came next when its last ones occurred before.

    An answer about documents quotes them. A guess counts only where the model says the same.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        # Where the text goes on after some tokens.
        self._next: dict[tuple[int, ...], int] = {}
        self._size, self._pause, self._resumes = _FIRST_GUESSES, _PAUSE, 0
        self.add(ids)

    def add(self, ids: Sequence[int]) -> None:
        """Add tokens to the text."""
        start = max(len(self._ids) - _LOOKED_UP, 0)
        self._ids += ids
        text = self._ids[start:]
        sequences = zip(*(text[at:] for at in range(_LOOKED_UP)), strict=False)
        self._next.update(zip(sequences, range(start + _LOOKED_UP, len(self._ids)), strict=False))

    def make(self, most: int) -> list[int]:
        """Return what may come next, at most a number of tokens; nothing as long as guessing does not pay."""
        if len(self._ids) < self._resumes:
            return []
        start = self._next.get(tuple(self._ids[-_LOOKED_UP:]), len(self._ids))
        return self._ids[start : start + min(self._size, most)]

    def learn(self, guessed: int, right: int) -> None:
        """Decide by how many first tokens of the last guess were right when and how much to guess next."""
        self._size = 2 * guessed if right == guessed else _FIRST_GUESSES
        if 2 * right >= guessed:
            self._pause = _PAUSE
            return
        self._resumes = len(self._ids) + self._pause
        if not right:
            self._pause *= _LONGER_PAUSE


@dataclass(eq=False)
class Row:
    """An answer in the making."""

    prompt: TokenPrompt
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
    on_token: Callable[["Row", int], None] = lambda row, token: None
    # Whether the next tokens may be guessed.
    looks_up: bool = False
    answer: list[int] = field(default_factory=list)
    # How many tokens of the prompt were not computed for this answer.
    reused: int = 0
    _guesses: Guesses | None = None
    # All ids that the processors have seen, as a tensor of one row.
    seen: Any = None
    # Its result is the answer, with its end token.
    future: "Future[list[int]]" = field(default_factory=Future)

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt's tokens."""
        return self.prompt.ids

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

    @property
    def chooses(self) -> bool:
        """Whether the next token is not simply the one with the greatest score."""
        return bool(self.processors) or self.samples

    def guess(self, most: int) -> list[int]:
        """Return what its next tokens may be, at most a number of them."""
        if not self.looks_up or most < 1:
            return []
        if self._guesses is None:
            self._guesses = Guesses([*self.ids, *self.answer])
        return self._guesses.make(most)

    def follow(self, guesses: Sequence[int], best: Sequence[int], scores: Any) -> bool:
        """Add tokens as long as they are as guessed, and the next one; return whether the answer has ended.

        Args:
            guesses: What was guessed.
            best: The tokens with the greatest scores after the newest token and after each guess.
            scores: All scores there, a tensor (guesses + 1, vocabulary).
        """
        before, right, ended = len(self.answer), 0, False
        for at, token in enumerate(best[: len(guesses) + 1]):
            if guesses and self.chooses:
                try:
                    token = int(self.choose(scores[at : at + 1])[0])
                except Exception as error:
                    self.finish(error)
                    return True
            ended = self.take(token)
            if ended or at == len(guesses) or token != guesses[at]:
                break
            right += 1
        if self._guesses:
            self._guesses.add(self.answer[before:])
        if self._guesses and guesses:
            self._guesses.learn(len(guesses), right)
        return ended

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
        self.on_token(self, token)
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
        self.reader = Reader(model, pad_id)
        self._computing = computing
        # What waits, and the thread; both are protected by the lock.
        self._lock = threading.Lock()
        self._waiting: list[Row] = []
        self._thread: threading.Thread | None = None
        # What is decoded, in the order of the rows of the cache; only the thread uses them.
        self._rows: list[Row] = []
        self._cache: Any = None

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
        size = self.reader.token_bytes
        free = memory.available_bytes(str(self.reader.model.device)) if size and self._waiting else None
        if free is None:
            return float("inf")
        taken = len(self._rows) * self._cache.get_seq_length() * size if self._rows else 0
        return _CACHE_SHARE * (free + taken) / size

    def _fits(self, rows: Sequence[Row], row: Row, room: float) -> bool:
        """Return whether a row can join others; alone it can always."""
        if not rows:
            return True
        everyone = (*rows, row)
        if len(everyone) > min(each.batch_size for each in everyone):
            return False
        # The first row shows how much memory a token takes.
        return bool(self.reader.token_bytes) and len(everyone) * max(each.longest for each in everyone) <= room

    def _advance(self, joining: Sequence[Row]) -> list[Row]:
        """Let rows join, and compute one token of each row; return those that have ended."""
        try:
            ended = self._read_all(joining) if joining else []
            return [*ended, *self._step()] if self._rows else ended
        except BaseException as error:
            # The cache may be broken.
            for row in [*self._rows, *joining]:
                row.finish(error)
            self._rows, self._cache = [], None
            return []

    def _read_all(self, rows: Sequence[Row]) -> list[Row]:
        """Read prompts, choose the first token of each, and let them join; return those that have ended."""
        waiting: dict[TokenPrompt, list[Row]] = {}
        for row in rows:
            waiting.setdefault(row.prompt, []).append(row)
        groups: list[list[Unread]] = []
        with self._failing(rows):
            groups = self.reader.groups(waiting)
        return [row for group in groups for row in self._read(group, [waiting[each.prompt] for each in group])]

    def _read(self, group: Sequence[Unread], waiting: Sequence[Sequence[Row]]) -> list[Row]:
        """Read prompts in one pass, each once for all rows that wait for it."""
        rows = list(chain.from_iterable(waiting))
        found = None
        with self._failing(rows):
            found = self.reader.read(group)
        if found is None:
            return []
        scores, cache, known = found
        if len(rows) > len(group):
            order = [at for at, same in enumerate(waiting) for _ in same]
            scores, cache = scores[order], select(cache, order)
        for same, length in zip(waiting, known, strict=True):
            for row in same:
                # Only the first one waits until the rest is read.
                row.reused = length if row is same[0] else len(row.ids) - 1
        ended = _take_tokens(rows, scores)
        self._cache = join(self._cache, cache) if self._rows else cache
        self._rows = [*self._rows, *rows]
        return self._drop(ended)

    @contextmanager
    def _failing(self, rows: Sequence[Row]) -> Iterator[None]:
        """Let rows fail that cannot be read, such as for too little memory; the others go on."""
        try:
            yield
        except Exception as error:
            self.reader.prefixes.clear()
            for row in rows:
                row.finish(error)

    def _step(self) -> list[Row]:
        """Compute a token of each row, and those that were guessed right; return the rows that have ended."""
        # One more token follows the guesses. No row may be longer than its limit, which the window may set.
        most = min(_PASS_TOKENS // len(self._rows), *(row.limit - len(row.answer) for row in self._rows)) - 1
        guesses = [row.guess(most) for row in self._rows]
        new = 1 + max(map(len, guesses))
        # Behind fewer guesses there is padding, which is taken off the cache again like wrong guesses.
        ids = [
            [row.answer[-1], *each, *[0] * (new - 1 - len(each))]
            for row, each in zip(self._rows, guesses, strict=True)
        ]
        lengths = [row.length for row in self._rows]
        scores = self.reader.forward(ids, [length + new for length in lengths], self._cache, new)
        ended = _take_tokens(self._rows, scores, guesses)
        if new > 1:
            surplus = [length + new - row.length for row, length in zip(self._rows, lengths, strict=True)]
            shorten(self._cache, surplus)
        return self._drop(ended)

    def _drop(self, ended: list[Row]) -> list[Row]:
        """Take rows that have ended out of the cache, and the padding that all others have; return them."""
        import torch

        if not ended:
            return ended
        self._keep_answers(ended)
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

    def _keep_answers(self, ended: Sequence[Row]) -> None:
        """Keep the keys and values of whole answers: the next turn of a conversation begins with them."""
        for at, row in enumerate(self._rows):
            if row in ended and not row.future.done():
                written = replace(row.prompt, ids=(*row.ids, *row.answer[:-1]))
                self.reader.keep(written, self._cache, at)


def _take_tokens(rows: Sequence[Row], scores: Any, guesses: Sequence[Sequence[int]] = ()) -> list[Row]:
    """Choose the next tokens of each row, as far as they are as guessed; return the rows that have ended.

    Args:
        rows: The rows.
        scores: A tensor (rows, tokens, vocabulary): after the newest token of each row, and after each guess.
        guesses: The guesses of each row; by default there are none.
    """
    guesses = guesses or [()] * len(rows)
    best = scores.argmax(dim=-1)
    for row, guessed, tokens, found in zip(rows, guesses, best, scores, strict=True):
        if row.chooses and not guessed:
            try:
                tokens[0] = row.choose(found[:1])[0]
            except Exception as error:
                # Such as a schema that is too complex; the other rows go on.
                row.finish(error)
    followed = zip(rows, guesses, best.tolist(), scores, strict=True)
    return [row for row, *found in followed if row.future.done() or row.follow(*found)]
