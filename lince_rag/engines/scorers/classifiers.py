"""Sequence classifiers as scorers: reward models over (instruction, answer) pairs, guardrails over texts."""

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from lince_rag.engines.base import check_torch
from lince_rag.engines.checkpoints.configuration import engine_errors, load_configuration, read_tokenizer
from lince_rag.engines.checkpoints.loading import load_weights
from lince_rag.engines.scorers.encoders import (
    DEFAULT_BATCH,
    ScorerOptions,
    Texts,
    columns,
    find_encoder,
    log_truncation,
    longest_input,
)
from lince_rag.errors import ConfigurationError, require

# The scores at which the verdict changes, for a probability and for a logit.
_EVEN_PROBABILITY: Final = 0.5
_EVEN_LOGIT: Final = 0.0


@dataclass(frozen=True)
class _Loaded:
    """A classifier that is ready to score, and its tokenizer, which pads on the right."""

    model: Any
    tokenizer: Any
    # The most tokens of an input.
    length: int
    # The output that is read.
    column: int


class SequenceClassifier:
    """Scores texts or pairs of texts with a sequence classifier, loaded when it is first needed.

    What the score is depends on the model's labels:

    - one label: the logit as it is, any number. Examples are reward models (higher is a better answer), and
      guardrails whose negative logits mean toxic.
    - several labels that exclude each other: the probability of ``label``, by softmax.
    - several labels that do not (``problem_type`` is ``"multi_label_classification"``): the probability of
      ``label``, by sigmoid.

    The tokenizer cuts an input that is longer than the model reads, the longer text of a pair first; the number of
    these inputs is logged at debug level.

    Args:
        model: A folder or a hub id.
        label: The label whose probability is the score, as spelled in the configuration's ``id2label`` (upper or
            lower case); a classifier with one logit needs none.
        inverted: Whether the label is undesired, such as ``"toxic"`` of a guardrail: the score is then one minus
            the probability, or minus the logit.
        segments: Whether the model gets segment ids (``token_type_ids``), if it knows them, that mark the second
            text of a pair. Set it to ``False`` for a model that was trained without: the cards of Aira's reward
            models say ``return_token_type_ids=False``.
        revision: Branch, tag or commit of a hub id.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` …
        batch_size: Inputs of a forward pass.
        max_length: The most tokens of an input; ``None``, or more than the model can read, takes all that it can
            read.

    Raises:
        ConfigurationError: A value is out of range, or the device name is not known.

    Example:
        >>> rewards = SequenceClassifier("nicholasKluge/RewardModelPT", segments=False)
        >>> rewards.score([("O que é um átomo?", "A menor parte de um elemento."), ("Quem és?", "Sei lá.")])
        >>> guardrail = SequenceClassifier("unitary/toxic-bert", label="toxic", inverted=True)
    """

    def __init__(
        self,
        model: str,
        *,
        label: str | None = None,
        inverted: bool = False,
        segments: bool = True,
        revision: str | None = None,
        device: str = "auto",
        batch_size: int = DEFAULT_BATCH,
        max_length: int | None = None,
    ) -> None:
        self.options = ScorerOptions(str(model), revision, device, batch_size, max_length)
        self.label = label
        self.inverted = inverted
        self.segments = segments
        # A tokenizer keeps its truncation settings as state, which two threads must not change at once.
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"SequenceClassifier({self.options.model!r}, label={self.label!r}, inverted={self.inverted})"

    @property
    def boundary(self) -> float:
        """The score at which the verdict changes: 0 for a logit, 0.5 for a probability."""
        with self._lock:
            return _EVEN_LOGIT if self._loaded.model.config.num_labels == 1 else _EVEN_PROBABILITY

    def score(self, inputs: Texts, /) -> list[float]:
        """Score texts, or pairs of texts.

        Args:
            inputs: Texts, or pairs of texts; not both in one call.

        Returns:
            One score per input, in order: a logit or a probability, as the class describes.

        Raises:
            ConfigurationError: The model lacks the label, no label was named although it has several, or texts and
                pairs are mixed.
            MissingExtraError: torch or transformers is not installed.
            EngineError: The model is missing, damaged, unsafe or not a classifier, it does not fit in memory, or
                this machine lacks the device.
        """
        parts = columns(inputs)
        check_torch()
        with self._lock:
            loaded = self._loaded
            log_truncation(self.options.model, loaded.tokenizer, inputs, loaded.length)
            # Inputs of similar length share a batch, so that it has little padding.
            order = sorted(range(len(inputs)), key=lambda at: sum(len(part[at]) for part in parts))
            scores = [0.0] * len(inputs)
            for first in range(0, len(order), self.options.batch_size):
                batch = order[first : first + self.options.batch_size]
                found = self._score_batch(loaded, [[part[at] for at in batch] for part in parts])
                for at, score in zip(batch, found, strict=True):
                    scores[at] = score
        return scores

    def _score_batch(self, loaded: _Loaded, parts: list[list[str]]) -> list[float]:
        import torch

        config = loaded.model.config
        # Some tokenizers number the segments although the model knows only one, and the second is an index error.
        segments = self.segments and getattr(config, "type_vocab_size", 0) > 1
        batch = loaded.tokenizer(
            *parts,
            padding=True,
            truncation=True,
            max_length=loaded.length,
            return_token_type_ids=segments,
            return_tensors="pt",
        )
        with torch.inference_mode():
            logits = loaded.model(**batch.to(loaded.model.device)).logits.float()
        if config.num_labels == 1:
            scores = -logits[:, 0] if self.inverted else logits[:, 0]
        else:
            several = config.problem_type == "multi_label_classification"
            chances = logits.sigmoid() if several else logits.softmax(dim=-1)
            scores = 1.0 - chances[:, loaded.column] if self.inverted else chances[:, loaded.column]
        values: list[float] = scores.tolist()
        return values

    @cached_property
    def _loaded(self) -> _Loaded:
        require("models", "torch", "transformers")
        from transformers import AutoModelForSequenceClassification

        found = find_encoder(self.options)
        checkpoint = found.checkpoint
        with engine_errors(checkpoint.label):
            configuration = load_configuration(checkpoint)
            model = load_weights(
                AutoModelForSequenceClassification,
                checkpoint,
                configuration,
                hint="Name a model that was trained to classify, or copy its files again.",
                dtype=found.dtype,
            )
            # Not earlier: the configuration of a model that is not a classifier has two labels without meaning.
            column = _find_label(checkpoint.label, configuration, self.label)
            model = model.to(found.device).eval()
        tokenizer = read_tokenizer(checkpoint)
        # Padding on the left would move the positions of an encoder's tokens.
        tokenizer.padding_side = "right"
        if model.config.pad_token_id is None:
            # A decoder needs it to find the last token that is not padding.
            model.config.pad_token_id = tokenizer.pad_token_id
        length = longest_input(model, tokenizer, checkpoint, self.options.max_length)
        return _Loaded(model, tokenizer, length, column)


def _find_label(name: str, configuration: Any, label: str | None) -> int:
    labels: dict[int, str] = configuration.id2label
    if label is None:
        if len(labels) == 1:
            return next(iter(labels))
        raise ConfigurationError(
            f"{name} has {len(labels)} labels and none was named.", hint=f"Give label= one of: {_listed(labels)}."
        )
    for number, known in labels.items():
        if known.casefold() == label.casefold():
            return int(number)
    raise ConfigurationError(f"{name} has no label {label!r}.", hint=f"It has: {_listed(labels)}.")


def _listed(labels: dict[int, str]) -> str:
    return ", ".join(map(str, labels.values()))
