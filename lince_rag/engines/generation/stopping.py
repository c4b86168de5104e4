"""Stopping criteria for transformers: a stop text was said, or nobody reads the stream any more."""

from collections.abc import Sequence
from threading import Event
from typing import Any, Final

from lince_rag.engines.generation.decoding import INCOMPLETE

# Tokens looked at for a stop text beyond its own length in bytes: a token may begin before the stop.
_STOP_MARGIN: Final = 4


class StopTexts:
    """A row is done when one of the stop texts is in its answer.

    Args:
        tokenizer: A transformers tokenizer.
        stop: The stop texts.
        prompt_length: Tokens in front of the answers.
        token_texts: Texts of single tokens that are known already; the tokenizer's, so they may be kept.
        uncut: An answer that begins with this is never cut, if it is not empty.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str],
        prompt_length: int,
        token_texts: dict[int, str] | None = None,
        uncut: str = "",
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._last_characters = {text[-1] for text in self._stop}
        # White space at the beginning of a text, and so of a token by itself, is dropped by some tokenizers.
        self._ends_anywhere = any(character.isspace() for character in self._last_characters)
        self._token_texts = {} if token_texts is None else token_texts
        self._prompt_length = prompt_length
        self._uncut = uncut
        self._tail = max((len(text.encode()) for text in self._stop), default=0) + _STOP_MARGIN

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Tell which rows are done: a tensor of booleans, one a row."""
        import torch

        done = [False] * len(input_ids)
        if self._stop:
            # Decoding takes its time, and most tokens cannot be the end of a stop text.
            for row, token in enumerate(input_ids[:, -1].tolist()):
                done[row] = self._may_end(token) and self._has_stop(input_ids[row])
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    def _may_end(self, token: int) -> bool:
        """Tell whether a stop text may end in a token, or in a character that the token completes."""
        if token not in self._token_texts:
            self._token_texts[token] = self._decode([token])
        text = self._token_texts[token]
        return self._ends_anywhere or INCOMPLETE in text or not self._last_characters.isdisjoint(text)

    def _has_stop(self, row: Any) -> bool:
        answer = row[self._prompt_length :].tolist()
        text = self._decode(answer[-self._tail :])
        if not any(stop in text for stop in self._stop):
            return False
        return not (self._uncut and self._decode(answer).lstrip().startswith(self._uncut))

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


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
