"""Tokens on their way from the thread that generates to the one that reads."""

import queue
import threading
from collections.abc import Iterator
from typing import Any


class TokenQueue:
    """Hands tokens from the generating thread to the reading one; an iterator over token ids."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._queue: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Take ids from ``model.generate``; the first call brings the prompt."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.reshape(-1).tolist():
            self._queue.put(token)

    def end(self) -> None:
        """End the stream."""
        self._queue.put(None)

    def fail(self, error: BaseException) -> None:
        """End the stream with an error, raised in the reader."""
        self._queue.put(error)

    def __iter__(self) -> Iterator[int]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
