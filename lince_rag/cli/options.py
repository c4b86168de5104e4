"""Options that several commands of the command line take."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from lince_rag.chain.rag import RagChain
    from lince_rag.index.index import Index
    from lince_rag.text.language import Language

DEFAULT_INDEX: Final = Path("lince-index")

INTERRUPTED_STATUS: Final = 130

IndexOption = Annotated[
    Path, typer.Option("--index", metavar="DIR", envvar="LINCE_INDEX", help="Folder of the index.")
]
EmbeddingsOption = Annotated[
    str | None,
    typer.Option(
        help="Embedder: 'embedded', or a sentence-transformers name or folder. Default: the index's own."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LanguageOption = Annotated[
    str | None, typer.Option(help="Answer in es, pt or en whatever the question's language.")
]
ModelPathOption = Annotated[str | None, typer.Option(help="Folder or hub id of the model's weights.")]
BasePathOption = Annotated[str | None, typer.Option(help="Folder or hub id of the model an adapter is for.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda …")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
QuantizationOption = Annotated[str | None, typer.Option(help="int8 or int4, where the machine has it.")]
ModelsFileOption = Annotated[Path | None, typer.Option(help="A models.toml of your own.")]
RerankerOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Folder or hub id of a cross-encoder that orders passages.")
]
UnsupportedOption = Annotated[
    str, typer.Option(help="What to do with sentences that no document supports: flag, drop or extract.")
]
ConfidenceOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Abstain below this support of the documents; 0 never does.")
]
ModelOption = Annotated[
    str, typer.Option(help="A model of `lince-rag models`, or a hub id or folder with a chat template.")
]


def make_chain(
    index: "Index",
    *,
    k: int,
    on_unsupported: str,
    minimum_confidence: float,
    reranker: str | None = None,
    language: "Language | None" = None,
    **model: Any,
) -> "RagChain":
    """Make the chain that a command's options describe.

    Args:
        index: The index to ask.
        k: Passages to read.
        on_unsupported: ``"flag"``, ``"drop"`` or ``"extract"``.
        minimum_confidence: Support below which it abstains.
        reranker: Folder or hub id of a cross-encoder.
        language: Answer in this language whatever the question's.
        **model: Fields of ``ChatLince``.

    Returns:
        The chain.

    Raises:
        ConfigurationError: One of the values is wrong.
    """
    from lince_rag.chain.rag import create_rag_chain
    from lince_rag.models.chat_model import ChatLince

    return create_rag_chain(
        ChatLince(**model),
        index.as_retriever(k=k, reranker=reranker),
        language=language,
        on_unsupported=on_unsupported,  # type: ignore[arg-type]  # it checks
        minimum_confidence=minimum_confidence,
    )
