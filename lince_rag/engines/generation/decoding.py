"""Token ids → text, step by step: no broken characters, no stop text, no white space around the answer."""

import queue
import threading
from collections.abc import Iterator, Sequence
from threading import Event
from typing import Any, Final

# What decoding shows for bytes that are not a whole character yet.
INCOMPLETE: Final = "\ufffd"


class TextAssembler:
    """Turns the tokens of one answer into text that is final as soon as it is given out.

    Args:
        tokenizer: A transformers tokenizer.
        stop: Texts that end the answer; neither they nor what follows is given out.
        uncut: An answer that begins with this is never cut, if it is not empty.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], uncut: str = "") -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        self._uncut = uncut
        self._ids: list[int] = []
        # New tokens are decoded together with those of the step before: a tokenizer that drops a space at the
        # beginning of a text drops it there. Both positions lie between whole characters.
        self._context_start = 0
        self._decoded_ids = 0
        self._text = ""
        self._given = 0
        self.stopped = False

    def add(self, ids: Sequence[int]) -> str:
        """Take further tokens, and give out the text that nothing later can change.

        Args:
            ids: The next token ids.

        Returns:
            The new text; empty while characters or a possible stop text are incomplete.
        """
        if self.stopped:
            return ""
        self._ids += ids
        self._decode(final=False)
        return self._give(self._held_from())

    def finish(self) -> str:
        """Give out the rest, without the white space at its end."""
        if not self.stopped:
            self._decode(final=True)
        return self._give(len(self._text.rstrip()))

    def _decode(self, *, final: bool) -> None:
        """Append the text of the tokens that are complete, and look for a stop in it."""
        before = self._decode_ids(self._ids[self._context_start : self._decoded_ids])
        after = self._decode_ids(self._ids[self._context_start :])
        if after.endswith(INCOMPLETE) and not final:
            return
        new = after[len(before) :] if after.startswith(before) else after
        if new:
            # Tokens without text (special ones) are no context: what follows them would lose its space.
            self._context_start = self._decoded_ids
        self._decoded_ids = len(self._ids)
        searched = max(len(self._text) - max(map(len, self._stop), default=0), 0)
        self._text += new
        if self._uncut and self._text.lstrip().startswith(self._uncut):
            self._stop = ()
        found = [(at + len(text), at) for text in self._stop if (at := self._text.find(text, searched)) >= 0]
        if found:
            # The stop text that is whole first ends the answer, whatever others began before it.
            self._text = self._text[: min(found)[1]]
            self.stopped = True

    def _decode_ids(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _held_from(self) -> int:
        """Where the text begins that may still be white space at the end or the beginning of a stop text."""
        end = len(self._text.rstrip())
        for text in self._stop:
            for length in range(min(len(text) - 1, len(self._text)), 0, -1):
                if self._text.endswith(text[:length]):
                    end = min(end, len(self._text) - length)
                    break
        return len(self._text[:end].rstrip())

    def _give(self, end: int) -> str:
        """Give out the text up to a position, without the white space at the beginning of the answer."""
        start = max(self._given, len(self._text) - len(self._text.lstrip()))
        if end <= start:
            return ""
        self._given = end
        return self._text[start:end]


def assemble(tokenizer: Any, ids: Sequence[int], stop: Sequence[str], uncut: str = "") -> tuple[str, bool]:
    """Turn the tokens of a whole answer into its text.

    Args:
        tokenizer: A transformers tokenizer.
        ids: The answer's token ids.
        stop: Texts that end the answer.
        uncut: An answer that begins with this is never cut, if it is not empty.

    Returns:
        The text, and whether a stop text ended it.
    """
    whole = TextAssembler(tokenizer, stop, uncut)
    text = whole.add(ids) + whole.finish()
    if INCOMPLETE not in text:
        return text, whole.stopped
    # Broken bytes: a tokenizer that falls back to bytes gives up a whole run of them when it decodes them at once.
    # Step by step, the whole characters among them are kept, as they are in a stream.
    steps = TextAssembler(tokenizer, stop, uncut)
    text = "".join(steps.add([token]) for token in ids) + steps.finish()
    return text, steps.stopped


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
