"""Cross-encoders: models that read a question and a passage together and score how well they match."""

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from langchain_core.cross_encoders import BaseCrossEncoder
from pydantic import SecretStr

from lince_rag.engines.base import check_torch
from lince_rag.engines.checkpoints.configuration import engine_errors
from lince_rag.engines.checkpoints.memory import read_tensors
from lince_rag.engines.scorers.encoders import (
    DEFAULT_BATCH,
    Encoder,
    ScorerOptions,
    find_encoder,
    log_truncation,
    longest_input,
)
from lince_rag.engines.server.options import scoring_options
from lince_rag.errors import ConfigurationError, EngineError, require

if TYPE_CHECKING:
    from lince_rag.engines.server.reranker import ServerReranker

# The environment variable with the key of a server.
KEY_VARIABLE: Final = "LINCE_RERANKER_API_KEY"


class LinceReranker(BaseCrossEncoder):
    """Scores (question, passage) pairs with a cross-encoder of sentence-transformers, loaded at the first call.

    With ``base_url`` a server runs it, and the scores are that server's: Text Embeddings Inference and vLLM take
    the sigmoid, llama-server does not.

    The scores go through the activation function that the model's configuration names. If it names none, that is
    sentence-transformers' default for one label, the sigmoid, and scores lie between 0 and 1. (Of the well-known
    families, BGE's models name none and so give 0 to 1; the MS MARCO ones name the identity and give logits of
    either sign. The order is the same.) The tokenizer cuts a pair that is longer than the model reads, the longer
    text first; the number of these pairs is logged at debug level.

    Args:
        model: A folder or a hub id; with ``base_url`` the name of the model there.
        revision: Branch, tag or commit of a hub id.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` …
        batch_size: Pairs of a forward pass, or the most of a request.
        max_length: The most tokens of a pair; ``None``, or more than the model can read, takes all that it
            can read.
        base_url: Address of a server with ``/rerank`` or ``/v1/rerank``: Text Embeddings Inference, vLLM,
            llama-server or a service with the interface of Jina or Cohere.
        api_key: Key of the server.
        timeout: Seconds to wait for an answer of the server; ``None`` for 120.
        max_retries: How many times a request is sent again that failed or found the server overloaded; ``None``
            for 4.

    Raises:
        ConfigurationError: A value is out of range, the device name is not known, or an option of a model in this
            process was given for a server.

    Example:
        >>> reranker = LinceReranker("BAAI/bge-reranker-v2-m3", base_url="http://localhost:8080")
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
        base_url: str | None = None,
        api_key: SecretStr | str | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
    ) -> None:
        self.options = ScorerOptions(str(model), revision, device, batch_size, max_length)
        local = {"revision": (revision, None), "device": (device, "auto"), "max_length": (max_length, None)}
        self._server_options = scoring_options(
            base_url, api_key, timeout, max_retries, key_names=KEY_VARIABLE, local=local
        )
        # A tokenizer keeps its truncation settings as state, which two threads must not change at once.
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        where = f", base_url={self._server_options.base_url!r}" if self._server_options else ""
        return f"LinceReranker({self.options.model!r}{where})"

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Score how well each passage answers its question.

        Args:
            text_pairs: Pairs of a question and a passage.

        Returns:
            One score per pair, in order; higher is better.

        Raises:
            MissingExtraError: sentence-transformers is not installed.
            ConfigurationError: The model has more than one label.
            EngineError: The model is missing, damaged, unsafe or not a reranker, it does not fit in memory, or
                this machine lacks the device; or the server cannot be reached, refuses, or answers something else
                than one score for each pair.
        """
        if not text_pairs:
            return []
        if self._server_options:
            return self._server.score(text_pairs)
        check_torch()
        with self._lock:
            encoder = self._cross_encoder
            log_truncation(self.options.model, encoder.tokenizer, text_pairs, encoder.max_seq_length)
            # Some versions of its input checks do not accept a tuple as a pair.
            pairs = [list(pair) for pair in text_pairs]
            found = encoder.predict(pairs, batch_size=self.options.batch_size, show_progress_bar=False)
        return [float(score) for score in found]

    @cached_property
    def _server(self) -> "ServerReranker":
        from lince_rag.engines.server.reranker import ServerReranker

        assert self._server_options
        return ServerReranker(self.options.model, self._server_options, self.options.batch_size)

    @cached_property
    def _cross_encoder(self) -> Any:
        require("models", "sentence_transformers")
        from sentence_transformers import CrossEncoder

        found = find_encoder(self.options)
        checkpoint = found.checkpoint
        with engine_errors(checkpoint.label):
            encoder = CrossEncoder(
                checkpoint.source if checkpoint.revision else str(checkpoint.folder),
                revision=checkpoint.revision or None,
                device=found.device,
                trust_remote_code=False,
                # For a hub model sentence-transformers downloads small files of its own.
                local_files_only=not checkpoint.revision,
                model_kwargs={"use_safetensors": True, "dtype": found.dtype},
            )
            if encoder.num_labels != 1:
                raise ConfigurationError(
                    f"{checkpoint.label} has {encoder.num_labels} labels; a reranker has only one.",
                    hint="Name a cross-encoder that was trained for relevance.",
                )
            _check_head(encoder, found)
            encoder.max_seq_length = longest_input(
                encoder.transformers_model, encoder.tokenizer, checkpoint, self.options.max_length
            )
        return encoder


def _check_head(encoder: Any, found: Encoder) -> None:
    """Refuse a checkpoint without a scoring head, such as an embedder: it would get a random one."""
    if encoder[0].transformer_task != "sequence-classification":
        return
    model = encoder.transformers_model
    stored = {tensor.name for file in found.files for tensor in read_tensors(file)}
    body = f"{model.base_model_prefix}."
    for name in model.state_dict():
        if not name.startswith(body) and name not in stored:
            raise EngineError(
                f"{found.checkpoint.label} is not a reranker: it lacks {name}.",
                hint="Name a cross-encoder; an embedder belongs in Index.open(embeddings=…).",
            )
