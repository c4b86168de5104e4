"""The text of an answer while it is streamed: held back as long as it may still be replaced."""

from collections.abc import Iterator, Sequence
from typing import Final

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, BaseMessageChunk
from langchain_core.runnables.utils import add

from lince_rag.chain.answer import Answer
from lince_rag.chain.grounding import OnUnsupported, is_in_other_language
from lince_rag.text.language import Language

# Words of an answer that are held back until their language is known.
HELD_BACK_WORDS: Final = 8


class AnswerStream:
    """Decides which pieces of a streamed answer can go out.

    The first words wait until their language is known, unless the model only quotes. All of the answer waits if
    unsupported sentences are to be dropped or replaced.
    """

    def __init__(
        self, language: Language, documents: Sequence[Document], on_unsupported: OnUnsupported, *, quotes: bool
    ) -> None:
        # True once the model has switched language: nothing more goes out.
        self.switched_language = False
        self._language = language
        self._documents = documents
        self._hold_all = on_unsupported != "flag" and not quotes
        self._words = 0 if quotes else HELD_BACK_WORDS
        self._chunks: list[BaseMessageChunk] = []
        self._held = ""
        # Whether text has gone out.
        self.sent = False

    def take(self, chunk: BaseMessageChunk) -> str:
        """Take a chunk from the model and return the text that can go out now."""
        self._chunks.append(chunk)
        text = str(chunk.text)
        if self.sent:
            return text
        self._held += text
        if self._hold_all or len(self._held.split()) <= self._words:
            return ""
        self.switched_language = is_in_other_language(self._language, self._held, self._documents)
        if self.switched_language:
            return ""
        self.sent = True
        return self._held

    @property
    def reply(self) -> BaseMessage:
        """What the model has said so far."""
        return add(self._chunks) or AIMessage("")


def last_pieces(stream: AnswerStream | None, answer: Answer) -> Iterator[str | Answer]:
    """Yield the answer's text, unless text has gone out already, and then the answer.

    Text that has gone out and was corrected afterwards is not taken back: see ``answer.corrections``.
    """
    if answer.text and not (stream and stream.sent):
        yield answer.text
    yield answer
