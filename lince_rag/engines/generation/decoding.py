"""From token ids to text: answers assembled step by step, stopping criteria, and the token queue of a stream.

The text of an answer has no broken characters, no stop text and no white space around it.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

from lince_rag.errors import EngineError

# What a tokenizer decodes incomplete characters to.
_INCOMPLETE: Final = "\ufffd"

# Tokens that are searched for a stop text beyond its own length in bytes: a token may begin before the stop.
_STOP_MARGIN: Final = 4


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


class AnswerText:
    """The text of one answer, which is final as soon as it is returned.

    Neither a stop text nor what follows it is returned, but an answer that begins with ``uncut``, if that is not
    empty, ignores the stop texts.
    """

    def __init__(self, stop: Sequence[str], uncut: str = "") -> None:
        self._stop = tuple(text for text in stop if text)
        self._uncut = uncut
        self._text = ""
        self._returned = 0
        self.stopped = False

    def append(self, new: str) -> str:
        """Add text and return the new text that later text cannot change."""
        self._append(new)
        return self._take(self._final_length())

    def rest(self) -> str:
        """Return what was not returned yet, without white space at its end."""
        return self._take(len(self._text.rstrip()))

    def _append(self, new: str) -> None:
        """Add text, and cut it at a stop text."""
        if self.stopped:
            return
        searched = max(len(self._text) - max(map(len, self._stop), default=0), 0)
        self._text += new
        if self._uncut and self._text.lstrip().startswith(self._uncut):
            self._stop = ()
        found = [(at + len(text), at) for text in self._stop if (at := self._text.find(text, searched)) >= 0]
        if found:
            # The stop text that is complete first ends the answer, even if another one began before it.
            self._text = self._text[: min(found)[1]]
            self.stopped = True

    def _final_length(self) -> int:
        """Return the length of the text without what may be trailing white space or the start of a stop text."""
        end = len(self._text.rstrip())
        for text in self._stop:
            for length in range(min(len(text) - 1, len(self._text)), 0, -1):
                if self._text.endswith(text[:length]):
                    end = min(end, len(self._text) - length)
                    break
        return len(self._text[:end].rstrip())

    def _take(self, end: int) -> str:
        """Return the text up to a position that was not returned yet, without white space before the answer."""
        start = max(self._returned, len(self._text) - len(self._text.lstrip()))
        if end <= start:
            return ""
        self._returned = end
        return self._text[start:end]


class TextAssembler(AnswerText):
    """Turns the tokens of one answer into its text."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], uncut: str = "") -> None:
        super().__init__(stop, uncut)
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # New tokens are decoded together with those of the step before, because some tokenizers drop a space at
        # the beginning of a text. Both positions lie between whole characters.
        self._context_start = 0
        self._decoded_ids = 0

    def add(self, ids: Sequence[int]) -> str:
        """Add tokens and return the new text that later tokens cannot change."""
        if self.stopped:
            return ""
        self._ids += ids
        return self.append(self._decode_new(final=False))

    def finish(self) -> str:
        """Return the rest, without white space at its end."""
        if not self.stopped:
            self._append(self._decode_new(final=True))
        return self.rest()

    def _decode_new(self, *, final: bool) -> str:
        """Return the text of the tokens that are complete."""
        before = _decode(self._tokenizer, self._ids[self._context_start : self._decoded_ids])
        after = _decode(self._tokenizer, self._ids[self._context_start :])
        if after.endswith(_INCOMPLETE) and not final:
            return ""
        new = after[len(before) :] if after.startswith(before) else after
        if new:
            # Tokens without text (special ones) cannot be the context: the space after them would be dropped.
            self._context_start = self._decoded_ids
        self._decoded_ids = len(self._ids)
        return new


def assemble(tokenizer: Any, ids: Sequence[int], stop: Sequence[str], uncut: str = "") -> tuple[str, bool]:
    """Return the text of a whole answer, and whether a stop text ended it; arguments as for ``TextAssembler``."""
    whole = TextAssembler(tokenizer, stop, uncut)
    text = whole.add(ids) + whole.finish()
    if _INCOMPLETE not in text:
        return text, whole.stopped
    # Broken bytes: a tokenizer that falls back to bytes drops a whole run of them when it decodes them at once.
    # Step by step, the whole characters among them are kept, as they are in a stream.
    steps = TextAssembler(tokenizer, stop, uncut)
    text = "".join(steps.add([token]) for token in ids) + steps.finish()
    return text, steps.stopped


class StopTexts:
    """Stopping criterion: a row is done when its answer contains a stop text and does not begin with ``uncut``.

    The answer begins after the tokens of the ``prompt``.
    ``token_texts`` caches the texts of single tokens; it belongs to the tokenizer and may be kept between calls.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str],
        uncut: str = "",
        *,
        token_texts: dict[int, str],
        prompt: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._last_characters = {text[-1] for text in self._stop}
        # Some tokenizers drop white space at the beginning of a text, and so that of a single token.
        self._ends_anywhere = any(character.isspace() for character in self._last_characters)
        self._token_texts = token_texts
        self._prompt = prompt
        self._uncut = uncut
        self._tail = max((len(text.encode()) for text in self._stop), default=0) + _STOP_MARGIN

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return which rows are done, as a tensor of booleans."""
        import torch

        done = [False] * len(input_ids)
        if self._stop:
            # Decoding is slow, and most tokens cannot be the end of a stop text.
            for row, token in enumerate(input_ids[:, -1].tolist()):
                done[row] = self._may_end(token) and self._has_stop(input_ids[row, self._prompt :].tolist())
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    def end(self, answer: Sequence[int]) -> bool:
        """Return whether the newest token of an answer ends it."""
        return bool(self._stop) and self._may_end(answer[-1]) and self._has_stop(answer)

    def _may_end(self, token: int) -> bool:
        """Return whether a stop text may end in a token, or in a character that the token completes."""
        if token not in self._token_texts:
            self._token_texts[token] = _decode(self._tokenizer, [token])
        text = self._token_texts[token]
        return self._ends_anywhere or _INCOMPLETE in text or not self._last_characters.isdisjoint(text)

    def _has_stop(self, answer: Sequence[int]) -> bool:
        text = _decode(self._tokenizer, answer[-self._tail :])
        if not any(stop in text for stop in self._stop):
            return False
        return not (self._uncut and _decode(self._tokenizer, answer).lstrip().startswith(self._uncut))


def cancelled_before() -> EngineError:
    """Return the error of an answer that nobody waited for any more when its turn came."""
    return EngineError("The generation was cancelled before it began.")


class Cancellation:
    """Stopping criterion: the rows of a prompt are done once its event, if it has one, is set."""

    def __init__(self, events: Sequence[threading.Event | None]) -> None:
        self._events = events

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return which rows are done, as a tensor of booleans."""
        import torch

        done = torch.tensor([bool(event and event.is_set()) for event in self._events], device=input_ids.device)
        return done.repeat_interleave(len(input_ids) // len(self._events))


class TokenQueue:
    """Passes tokens from the generating thread to the reading one, which iterates over their ids."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        # Of the prompt; ``None`` if the engine cannot say it.
        self.cached_tokens: int | None = None
        self._queue: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Receive ids from ``model.generate``, whose first call passes the prompt."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.reshape(-1).tolist():
            self.add(token)

    def add(self, token: int) -> None:
        """Receive the id of one token."""
        self._queue.put(token)

    def end(self) -> None:
        """End the stream."""
        self._queue.put(None)

    def fail(self, error: BaseException) -> None:
        """End the stream with an error that the reader raises."""
        self._queue.put(error)

    def __iter__(self) -> Iterator[int]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
