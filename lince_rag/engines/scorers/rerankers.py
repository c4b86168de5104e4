"""Cross-encoders: models that read a question and a passage together and say how well they match."""

import threading
from functools import cached_property
from typing import Any

from langchain_core.cross_encoders import BaseCrossEncoder

from lince_rag.engines.checkpoints.configuration import explained
from lince_rag.engines.checkpoints.memory import read_tensors
from lince_rag.engines.scorers.encoders import (
    DEFAULT_BATCH,
    Encoder,
    ScorerOptions,
    find_encoder,
    longest_input,
    report_truncation,
)
from lince_rag.errors import ConfigurationError, EngineError, MissingExtraError


class LinceReranker(BaseCrossEncoder):
    """Scores (question, passage) pairs with a cross-encoder of sentence-transformers, loaded at the first call.

    The scores go through the activation function that the model's own configuration names; where it names none,
    that is sentence-transformers' default for one label, the sigmoid, and scores lie between 0 and 1. (Of the
    well-known families, BGE's say nothing and so give 0 to 1; the MS MARCO ones name the identity and give logits
    of either sign. The order is the same.) A pair that is longer than the model reads is cut by the tokenizer,
    the longer text first; how many were is logged at debug level.

    Args:
        model: A folder or a hub id.
        revision: Branch, tag or commit of a hub id.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` …
        batch_size: Pairs of a forward pass.
        max_length: Tokens of a pair at most; ``None`` takes all that the model can read, which is also the most.

    Raises:
        ConfigurationError: A value is out of range.

    Example:
        >>> reranker = LinceReranker("BAAI/bge-reranker-v2-m3")
        >>> reranker.score([("¿Cuándo vence?", "El contrato vence en mayo."), ("¿Cuándo vence?", "Hola.")])
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        device: str = "auto",
        batch_size: int = DEFAULT_BATCH,
        max_length: int | None = None,
    ) -> None:
        self.options = ScorerOptions(str(model), revision, device, batch_size, max_length)
        # Tokenizers keep their truncation as state, which two threads must not set at once.
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"LinceReranker({self.options.model!r})"

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Score how well each passage answers its question.

        Args:
            text_pairs: (question, passage).

        Returns:
            One score a pair, in order; more is better.

        Raises:
            MissingExtraError: sentence-transformers is not installed.
            EngineError: The model is missing, damaged, unsafe, or no reranker.
        """
        if not text_pairs:
            return []
        with self._lock:
            encoder = self._cross_encoder
            report_truncation(self.options.model, encoder.tokenizer, text_pairs, encoder.max_seq_length)
            # Lists: a tuple of two texts is a pair only for some versions of the input checks.
            pairs = [list(pair) for pair in text_pairs]
            found = encoder.predict(pairs, batch_size=self.options.batch_size, show_progress_bar=False)
        return [float(score) for score in found]

    @cached_property
    def _cross_encoder(self) -> Any:
        try:
            from sentence_transformers import CrossEncoder
        except ImportError as error:
            raise MissingExtraError("sentence-transformers", "models") from error
        found = find_encoder(self.options)
        checkpoint = found.checkpoint
        with explained(checkpoint.label):
            encoder = CrossEncoder(
                checkpoint.source if checkpoint.revision else str(checkpoint.folder),
                revision=checkpoint.revision or None,
                device=found.device,
                trust_remote_code=False,
                # Of a hub model sentence-transformers has small files of its own to fetch.
                local_files_only=not checkpoint.revision,
                model_kwargs={"use_safetensors": True, "dtype": found.dtype},
            )
            if encoder.num_labels != 1:
                raise ConfigurationError(
                    f"{checkpoint.label} gives {encoder.num_labels} labels; a reranker has one score.",
                    hint="Name a cross-encoder that was trained for relevance.",
                )
            _check_head(encoder, found)
            encoder.max_seq_length = longest_input(
                encoder.transformers_model, encoder.tokenizer, checkpoint, self.options.max_length
            )
        return encoder


def _check_head(encoder: Any, found: Encoder) -> None:
    """Refuse a checkpoint without a scoring head, an embedder for one: it would get a random one."""
    if encoder[0].transformer_task != "sequence-classification":
        return
    model = encoder.transformers_model
    stored = {tensor.name for file in found.files for tensor in read_tensors(file)}
    body = f"{model.base_model_prefix}."
    for name in model.state_dict():
        if not name.startswith(body) and name not in stored:
            raise EngineError(
                f"{found.checkpoint.label} is no reranker: it lacks {name}.",
                hint="Name a cross-encoder; an embedder goes into Index.open(embeddings=…).",
            )
