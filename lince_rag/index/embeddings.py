"""Multilingual embedders behind one LangChain class: hashed terms without weights, or sentence-transformers."""

import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from langchain_core.embeddings import Embeddings

from lince_rag.errors import ConfigurationError, MissingExtraError
from lince_rag.text.wording import load_table
from lince_rag.text.words import terms

EMBEDDED: Final = "embedded"

# Length of the hashed vectors. 1,024 keeps the collisions of a paragraph's ~500 terms rare enough; longer
# vectors gain little and cost disk.
EMBEDDED_DIMENSION: Final = 1024

# Changes whenever the analyzer or the hashing changes, so that an index built before is recognised.
EMBEDDED_VERSION: Final = 2

logger = logging.getLogger(__name__)


def _row(model: str) -> dict[str, Any]:
    name = Path(model).name.lower()
    return next(row for row in load_table("embedders")["embedder"] if re.search(row["pattern"], name))


def _name_or_folder(model: str) -> str:
    """Make a relative folder absolute, so that an index finds its model again from anywhere."""
    folder = Path(model).expanduser()
    return os.path.abspath(folder) if model != EMBEDDED and folder.is_dir() else model


def hash_terms(found: Sequence[str]) -> Any:
    """Hash terms into one vector of length one, with signs and logarithmic counts.

    Args:
        found: The terms of one text, with repetitions.

    Returns:
        A float32 array of ``EMBEDDED_DIMENSION`` numbers: the zero vector when there are no terms.
    """
    import numpy as np

    counts = Counter(found)
    hashes = np.fromiter((zlib.crc32(term.encode()) for term in counts), dtype=np.uint32, count=len(counts))
    weights = 1.0 + np.log(np.fromiter(counts.values(), dtype=np.float64, count=len(counts)))
    # The sign makes colliding terms cancel instead of adding up; its bit is not one that picks the position.
    signs = np.where((hashes >> 20) & 1, 1.0, -1.0)
    vector = np.bincount(hashes % EMBEDDED_DIMENSION, weights=signs * weights, minlength=EMBEDDED_DIMENSION)
    norm = float(np.linalg.norm(vector))
    return (vector / norm if norm else vector).astype(np.float32)


class LinceEmbeddings(Embeddings):
    """Embeds questions and chunks, each with the prompt the model was trained with.

    Args:
        model: ``"embedded"`` (the default: hashed analyzer terms, no weights, no download) or anything that
            sentence-transformers loads: a hub name or a folder.
        revision: Revision of a hub model.
        device: Where a sentence-transformers model runs; ``"auto"`` lets it choose.
        batch_size: Texts a forward pass.
        query_prompt: Put before a question; ``None`` takes the model's own.
        passage_prompt: Put before a chunk; ``None`` takes the model's own.
        lexical_weight: Share of the lexical score in ``HybridRetriever`` (0 to 1); ``None`` takes the
            embedder's own from ``prompts/embedders.toml``.

    Raises:
        ConfigurationError: The model cannot be loaded, or a weight is out of range.
        MissingExtraError: sentence-transformers is not installed and ``model`` needs it.

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
    ) -> None:
        if lexical_weight is not None and not 0.0 <= lexical_weight <= 1.0:
            raise ConfigurationError(f"lexical_weight={lexical_weight} is not between 0 and 1.")
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size} is not a positive number.")
        self.model = _name_or_folder(str(model))
        self.revision = revision
        self.device = device
        self.batch_size = batch_size
        self.query_prompt = query_prompt
        self.passage_prompt = passage_prompt
        row = load_table("embedders")[EMBEDDED] if self.model == EMBEDDED else _row(self.model)
        self.lexical_weight: float = row["lexical_weight"] if lexical_weight is None else lexical_weight

    def __repr__(self) -> str:
        return f"LinceEmbeddings({self.model!r})"

    @property
    def name(self) -> str:
        """What identifies the vectors in an index: model, revision and passage prompt, or version and length."""
        if self.model == EMBEDDED:
            return f"{EMBEDDED}/{EMBEDDED_VERSION}/{EMBEDDED_DIMENSION}"
        name = f"{self.model}@{self.revision}" if self.revision else self.model
        return name if self.passage_prompt is None else f"{name} with the passage prompt {self.passage_prompt!r}"

    @property
    def options(self) -> dict[str, str | None]:
        """The arguments that make this embedder again, on any machine."""
        return {
            "model": self.model,
            "revision": self.revision,
            "query_prompt": self.query_prompt,
            "passage_prompt": self.passage_prompt,
        }

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed chunks.

        Args:
            texts: The chunks.

        Returns:
            One vector of length one a text, in order.
        """
        if self.model == EMBEDDED:
            return [hash_terms(terms(text)).tolist() for text in texts]
        return self._encode(texts, self._prompts[1])

    def embed_query(self, text: str) -> list[float]:
        """Embed a question.

        Args:
            text: The question.

        Returns:
            One vector of length one.
        """
        if self.model == EMBEDDED:
            vector: list[float] = hash_terms(terms(text)).tolist()
            return vector
        return self._encode([text], self._prompts[0])[0]

    def _encode(self, texts: list[str], prompt: str) -> list[list[float]]:
        vectors: list[list[float]] = self._sentence_transformer.encode(
            texts,
            prompt=prompt,
            batch_size=self.batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        ).tolist()
        return vectors

    @cached_property
    def _sentence_transformer(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtraError("sentence-transformers", "models") from error
        device = None if self.device == "auto" else self.device
        try:
            return SentenceTransformer(self.model, device=device, revision=self.revision, trust_remote_code=False)
        except Exception as error:
            # OSError, ValueError, SafetensorError …: the loaders agree on no type of error for a damaged file.
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigurationError(
                f"The embedder {self.model!r} cannot be loaded: {reason}",
                hint="Give a folder that holds a sentence-transformers model, or download it once while online.",
            ) from error

    @cached_property
    def _prompts(self) -> tuple[str, str]:
        """Query and passage prompt: the caller's, else the model's configuration, else the data table."""
        configured: dict[str, str] = self._sentence_transformer.prompts
        passages = [configured.get(key) for key in ("document", "passage", "corpus")]
        own_passage = next((prompt for prompt in passages if prompt), "")
        own_query = configured.get("query") or ""
        if own_query or own_passage:
            query, passage = own_query, own_passage
        else:
            row = _row(self.model)
            query, passage = row["query_prompt"], row["passage_prompt"]
        if self.query_prompt is not None:
            query = self.query_prompt
        if self.passage_prompt is not None:
            passage = self.passage_prompt
        logger.debug("%s: query prompt %r, passage prompt %r", self.model, query, passage)
        return query, passage


def embeddings_name(embeddings: Embeddings) -> str:
    """Name any LangChain embedder the way an index remembers it.

    Args:
        embeddings: Ours or another package's.

    Returns:
        ``LinceEmbeddings.name``, or the class with the model it declares.
    """
    if isinstance(embeddings, LinceEmbeddings):
        return embeddings.name
    model = getattr(embeddings, "model", None) or getattr(embeddings, "model_name", None)
    kind = type(embeddings).__name__
    return f"{kind}:{model}" if isinstance(model, str) else kind
