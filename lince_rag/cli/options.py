"""Options that several commands share; those that say how to answer are the fields of ``AnswerOptions``."""

import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from lince_rag.errors import ConfigurationError, IndexFolderError
from lince_rag.text.evidence import DOUBTFUL_CONFIDENCE, MINIMUM_CONFIDENCE

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from lince_rag.chain.rag import RagChain
    from lince_rag.engines.scorers.rerankers import LinceReranker
    from lince_rag.index.index import Index

DEFAULT_INDEX: Final = Path("lince-index")

# Exit status after Ctrl-C: 128 + SIGINT, as shells count.
INTERRUPTED_STATUS: Final = 130

IndexOption = Annotated[
    Path, typer.Option("--index", metavar="DIR", envvar="LINCE_INDEX", help="Folder of the index.")
]
EmbeddingsOption = Annotated[
    str | None,
    typer.Option(
        help="Embedder: 'multilingual-e5-small', 'embedded' (hashed words), or the name or folder of a "
        "sentence-transformers model. Default: the index's own; for a new index the first one where the extra e5 "
        "is installed, else 'embedded'."
    ),
]
EmbeddingsUrlOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Address of a server that runs the embedder (TEI, vLLM, llama-server …); its key is in "
        "LINCE_EMBEDDINGS_API_KEY. Default: LINCE_EMBEDDINGS_URL, else the one that the index recorded.",
    ),
]
# What reading one file may take; without a value, the defaults of ``ReadingLimits`` hold.
FileSecondsOption = Annotated[
    float | None,
    typer.Option(min=0.1, help="Give up a file that takes more seconds of processor time. Default: 60."),
]
FileMemoryOption = Annotated[
    int | None,
    typer.Option(min=256, metavar="MIB", help="Give up a file that takes more memory. Default: 512 MiB."),
]
FilePagesOption = Annotated[int | None, typer.Option(min=1, help="Longest PDF, in pages. Default: 20000.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Processes that read files. Default: one per core, at most 8.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelsFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Your own models.toml, added to the built-in models."),
]

CountOption = Annotated[int, typer.Option("-k", min=1, help="Number of passages to read for an answer.")]
SearchCountOption = Annotated[int, typer.Option("-k", min=1, help="Number of passages to find.")]
RerankerOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Folder or hub id of a cross-encoder that reranks the passages."),
]
RerankerUrlOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Address of a server that runs the cross-encoder; the server's key is in LINCE_RERANKER_API_KEY.",
    ),
]
SourceOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Read only this document: its name or path, or a pattern such as '*.pdf'; may be repeated.",
    ),
]
FilterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="CONDITION",
        help="Read only what has this in its metadata: 'language=pt', 'page>=3', or JSON; may be repeated.",
    ),
]

_RETRIEVER_FIELDS: Final = frozenset({"k", "reranker"})
_CHAIN_FIELDS: Final = frozenset({"language", "on_unsupported", "minimum_confidence"})


def choose_reranker(name: str | None, url: str | None) -> "LinceReranker | str | None":
    """Return the reranker of a name, at the address of a server if one is given."""
    if url is None:
        return name
    if name is None:
        raise ConfigurationError("--reranker-url needs the name of the model.", hint="Give it with --reranker.")
    from lince_rag.engines.scorers.rerankers import KEY_VARIABLE, LinceReranker

    return LinceReranker(name, base_url=url, api_key=os.environ.get(KEY_VARIABLE) or None)


def use_address(url: str | None) -> None:
    """Let the embedders of this process, and of those that it starts, ask the server at an address, if given."""
    from lince_rag.index.embeddings import ADDRESS_VARIABLE

    if url is not None:
        os.environ[ADDRESS_VARIABLE] = url


@contextmanager
def open_index(folder: Path | str, embeddings: str | None, url: str | None, *, create: bool) -> "Iterator[Index]":
    """Open an index with the options of a command: the address of a server goes before that in the environment."""
    from lince_rag.index.index import Index

    use_address(url)
    with Index.open(folder, embeddings=embeddings, create=create) as index:
        check_address(url, index.embeddings)
        yield index


def check_address(url: str | None, embeddings: "Embeddings") -> None:
    """Raise a ``ConfigurationError`` if the address of a server was given to an embedder that has none."""
    if url is not None and not getattr(embeddings, "base_url", None):
        raise ConfigurationError(
            f"--embeddings-url={url} was given, but the embedder of the index runs in this process.",
            hint="Name the model of the server with --embeddings, or leave the address out.",
        )


def check_has_documents(index: "Index") -> None:
    """Raise an ``IndexFolderError`` if nothing can be found in an index: "not in here" would mislead."""
    if not index.ledger.has_documents():
        raise IndexFolderError(
            f"The index {index.folder} has no documents.",
            hint=f"Add some first: lince-rag ingest YOUR-DOCUMENTS --index {index.folder}",
        )


@dataclass(frozen=True)
class AnswerOptions:
    """How to answer: the options that ``ask``, ``chat``, ``mcp`` and ``eval`` share."""

    model: Annotated[
        str,
        typer.Option(
            help="A model listed by `lince-rag models`, or a hub id or folder whose tokenizer has a chat template."
        ),
    ] = "extractive"
    model_path: Annotated[str | None, typer.Option(help="Folder or hub id of the model's weights.")] = None
    base_model_path: Annotated[
        str | None, typer.Option(help="Folder or hub id of the base model, if the weights are an adapter.")
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto"
    quantization: Annotated[str | None, typer.Option(help="int8 or int4, if the machine supports it.")] = None
    engine: Annotated[
        str,
        typer.Option(help="auto, transformers, ctranslate2, llama.cpp (a GGUF file) or server (with --base-url)."),
    ] = "auto"
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub id of the tokenizer, for a GGUF file or a server.")
    ] = None
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="LINCE_BASE_URL", help="Address of a model server, such as vLLM's."),
    ] = None
    api_key: Annotated[
        str | None, typer.Option(envvar="LINCE_API_KEY", help="Key of that server; better given in LINCE_API_KEY.")
    ] = field(default=None, repr=False)
    models_file: ModelsFileOption = None
    embeddings_url: EmbeddingsUrlOption = None
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum number of tokens in the answer.")] = None
    seed: Annotated[int | None, typer.Option(help="Random seed; the same seed gives the same answer.")] = None
    k: CountOption = 5
    reranker: RerankerOption = None
    reranker_url: RerankerUrlOption = None
    source: SourceOption = None
    filter: FilterOption = None
    language: Annotated[
        str | None, typer.Option(help="Answer in es, pt or en. Default: the question's language.")
    ] = None
    on_unsupported: Annotated[
        str, typer.Option(help="What to do with sentences that no document supports: flag, drop or extract.")
    ] = "flag"
    minimum_confidence: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Abstain below this confidence (0 to 1); 0 never abstains."),
    ] = MINIMUM_CONFIDENCE
    strict: Annotated[
        bool, typer.Option("--strict", help="Abstain rather than give a doubtful answer (confidence below 0.4).")
    ] = False

    def model_fields(self) -> dict[str, Any]:
        """Return the fields of ``ChatLince``."""
        from pydantic import SecretStr

        other = _RETRIEVER_FIELDS | _CHAIN_FIELDS | {"strict", "source", "filter", "api_key"}
        other |= {"reranker_url", "embeddings_url"}
        chosen = {name: value for name, value in asdict(self).items() if name not in other}
        return chosen | ({"api_key": SecretStr(self.api_key)} if self.api_key else {})

    def retriever_fields(self) -> dict[str, Any]:
        """Return the fields of ``HybridRetriever``."""
        return {"k": self.k, "reranker": choose_reranker(self.reranker, self.reranker_url)}

    def chain_fields(self) -> dict[str, Any]:
        """Return the keywords of ``create_rag_chain``."""
        chosen = {name: getattr(self, name) for name in _CHAIN_FIELDS}
        if self.strict:
            chosen["minimum_confidence"] = max(self.minimum_confidence, DOUBTFUL_CONFIDENCE)
        return chosen

    def make_filter(self, index: "Index") -> dict[str, Any] | None:
        """Return the filter for the documents and conditions that were given."""
        return index.make_filter(self.source or (), self.filter or ())

    def make_chain(self, index: "Index") -> "RagChain":
        """Make the chain that answers from an index; a ``ConfigurationError`` names a wrong value."""
        from lince_rag.chain.rag import create_rag_chain
        from lince_rag.models.chat_model import ChatLince

        return create_rag_chain(
            ChatLince(**self.model_fields()),
            index.as_retriever(**self.retriever_fields(), filter=self.make_filter(index)),
            **self.chain_fields(),
        )


def says_interrupted(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command that can be repeated say so after Ctrl-C, whatever it was doing, imports included."""

    @wraps(command)
    def interruptible(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            from lince_rag.cli.localisation import reader_language
            from lince_rag.text.language import wording

            sys.stdout.write(wording("interrupted", reader_language()) + "\n")
            # What threads are still at is waited for; a second Ctrl-C ends that at once.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise typer.Exit(INTERRUPTED_STATUS) from None

    return interruptible


def takes_answer_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter ``options`` with one parameter for each field of ``AnswerOptions``."""
    own = [
        parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != "options"
    ]
    shared = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for each in fields(AnswerOptions)
    ]

    @wraps(command)
    def expanded(**given: Any) -> None:
        options = AnswerOptions(**{parameter.name: given.pop(parameter.name) for parameter in shared})
        command(**given, options=options)

    # typer reads both.
    signature = inspect.Signature([*own, *shared])
    expanded.__signature__ = signature  # type: ignore[attr-defined]
    expanded.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
    return expanded
