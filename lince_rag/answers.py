"""Answer: what the chain gives back."""

from langchain_core.documents import Document
from langchain_core.messages.ai import UsageMetadata
from pydantic import BaseModel, ConfigDict

from lince_rag.citations import Citation
from lince_rag.language import LANGUAGES, Language, message


class Answer(BaseModel):
    """An answer and what it rests on.

    Attributes:
        text: The answer, in the language of the question.
        language: That language.
        citations: The stretches of the documents that support it, in the order of its sentences.
        documents: The chunks that were in the prompt, best first.
        grounded: Whether every sentence of the answer has a citation; an abstention has none.
        abstained: Whether the answer says that the documents do not hold it.
        shortened: Retrieved chunks of which only the beginning was in the prompt.
        omitted: Retrieved chunks that did not fit into the prompt.
        omitted_turns: Messages of the history, the oldest, that did not fit into the prompt.
        usage: Tokens of the prompt and of the answer, where the model counts them.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    language: Language
    citations: list[Citation] = []
    documents: list[Document] = []
    grounded: bool = False
    abstained: bool = False
    shortened: list[Document] = []
    omitted: list[Document] = []
    omitted_turns: int = 0
    usage: UsageMetadata | None = None


def is_abstention(text: str) -> bool:
    """Tell whether a text is the sentence that models are told to abstain with.

    Args:
        text: An answer.

    Returns:
        Whether it is that sentence, in any of our languages.
    """
    said = text.strip(" .\"'«»").casefold()
    return any(said == message("abstention", language).strip(".").casefold() for language in LANGUAGES)
