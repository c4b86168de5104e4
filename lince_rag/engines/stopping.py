"""Stopping criteria for transformers: a stop text was said, or nobody reads the stream any more."""

from collections.abc import Sequence
from threading import Event
from typing import Any, Final

# Tokens looked at for a stop text beyond its own length in bytes: a token may begin before the stop.
_STOP_MARGIN: Final = 4


class StopTexts:
    """A row is done when one of the stop texts is in its answer.

    Args:
        tokenizer: A transformers tokenizer.
        stop: The stop texts.
        prompt_length: Tokens in front of the answers.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._prompt_length = prompt_length
        self._tail = max((len(text.encode()) for text in self._stop), default=0) + _STOP_MARGIN

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Tell which rows are done: a tensor of booleans, one a row."""
        import torch

        done = [bool(self._stop) and self._has_stop(row) for row in input_ids]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    def _has_stop(self, row: Any) -> bool:
        tail = row[self._prompt_length :][-self._tail :].tolist()
        text = self._tokenizer.decode(tail, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in self._stop)


class Cancellation:
    """Every row is done once an event is set.

    Args:
        event: Set when the answer is no longer wanted.
    """

    def __init__(self, event: Event) -> None:
        self._event = event

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Tell which rows are done: a tensor of booleans, one a row."""
        import torch

        return torch.full((input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device)
