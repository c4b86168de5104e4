"""The text of an answer on its way out: held back while it may still be taken back."""

from collections.abc import Iterator, Sequence
from typing import Final

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, BaseMessageChunk
from langchain_core.runnables.utils import add

from lince_rag.chain.answer import Answer
from lince_rag.chain.grounding import OnUnsupported, slips_from
from lince_rag.text.language import Language

# Words of an answer that are held back until their language is known.
HELD_BACK_WORDS: Final = 8


class OutgoingText:
    """Passes on the pieces of an answer.

    Its first words wait until their language is known, unless the model only quotes. Where unsupported sentences
    are to be dropped or replaced, all of it waits.

    Args:
        language: The language that the answer should be in.
        documents: The chunks in the prompt.
        on_unsupported: What happens to unsupported sentences.
        quotes: Whether the model only quotes the documents.
    """

    def __init__(
        self, language: Language, documents: Sequence[Document], on_unsupported: OnUnsupported, *, quotes: bool
    ) -> None:
        self.slipped = False
        self._language = language
        self._documents = documents
        self._hold_all = on_unsupported != "flag" and not quotes
        self._words = 0 if quotes else HELD_BACK_WORDS
        self._chunks: list[BaseMessageChunk] = []
        self._held = ""
        self._given = ""

    def take(self, chunk: BaseMessageChunk) -> str:
        """Take a piece of the model's.

        Args:
            chunk: The piece.

        Returns:
            What may be passed on now. Nothing may once ``slipped`` is set: the model speaks another language.
        """
        self._chunks.append(chunk)
        text = str(chunk.text)
        if self._given:
            self._given += text
            return text
        self._held += text
        if self._hold_all or len(self._held.split()) <= self._words:
            return ""
        self.slipped = slips_from(self._language, self._held, self._documents)
        if self.slipped:
            return ""
        self._given, self._held = self._held, ""
        return self._given

    @property
    def reply(self) -> BaseMessage:
        """What the model has said so far."""
        return add(self._chunks) or AIMessage("")

    def finish(self, answer: Answer) -> Iterator[str | Answer]:
        """Pass on what was held back, and the answer.

        Args:
            answer: The answer as it has come out.

        Yields:
            Its text, unless it has gone out already, and the answer. Text that went out and was corrected
            afterwards is not taken back; ``answer.corrections`` tells.
        """
        if not self._given and answer.text:
            yield answer.text
        yield answer
