"""Sequence classifiers as scorers: reward models over (instruction, answer) pairs, guardrails over texts."""

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from lince_rag.engines.checkpoints.configuration import explained, load_configuration, read_tokenizer
from lince_rag.engines.checkpoints.files import require
from lince_rag.engines.scorers.encoders import (
    DEFAULT_BATCH,
    Encoder,
    ScorerOptions,
    Texts,
    columns,
    find_encoder,
    longest_input,
    report_truncation,
)
from lince_rag.errors import ConfigurationError, EngineError

# Where a verdict turns, between 0 and 1 and for a logit.
_EVEN_PROBABILITY: Final = 0.5
_EVEN_LOGIT: Final = 0.0


@dataclass(frozen=True)
class _Loaded:
    """A classifier that is ready to score.

    Attributes:
        model: The transformers model.
        tokenizer: Its tokenizer, which pads on the right.
        length: Tokens of an input at most.
        column: Which output is read.
    """

    model: Any
    tokenizer: Any
    length: int
    column: int


class SequenceClassifier:
    """Scores texts or pairs of texts with a sequence classifier, loaded when it is first needed.

    How its output is read depends on its labels:

    - one label: the logit as it is, any number. So are reward models (higher is a better answer), and guardrails
      whose negative logits mean toxic.
    - several that exclude each other: the probability of ``label``, by softmax.
    - several that do not (``problem_type`` is ``"multi_label_classification"``): that of ``label``, by sigmoid.

    What is longer than the model reads is cut by the tokenizer, of a pair the longer text first; how many were is
    logged at debug level.

    Args:
        model: A folder or a hub id.
        label: The label whose probability counts, as the configuration's ``id2label`` spells it (capitals do
            not matter); a classifier of one logit needs none.
        inverted: Whether less of the label is better: the score is then one minus the probability, or minus the
            logit. For a guardrail whose label is ``"toxic"``.
        segments: Whether the model is told which tokens are of a pair's second text, where it can be. Not so for
            one that was trained on both as one stretch: the cards of Aira's reward models say
            ``return_token_type_ids=False``.
        revision: Branch, tag or commit of a hub id.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` …
        batch_size: Inputs of a forward pass.
        max_length: Tokens of an input at most; ``None`` takes all that the model can read, which is also the most.

    Raises:
        ConfigurationError: A value is out of range.

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
        # Tokenizers keep their truncation as state, which two threads must not set at once.
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"SequenceClassifier({self.options.model!r}, label={self.label!r}, inverted={self.inverted})"

    @property
    def boundary(self) -> float:
        """The score at which the verdict turns: 0 for a logit, 0.5 for a probability."""
        with self._lock:
            return _EVEN_LOGIT if self._loaded.model.config.num_labels == 1 else _EVEN_PROBABILITY

    def score(self, inputs: Texts, /) -> list[float]:
        """Score texts, or pairs of texts.

        Args:
            inputs: The texts, or the pairs.

        Returns:
            One score each, in order: a logit or a probability, as the class says.

        Raises:
            ConfigurationError: The model has no such label, several and none was named, or the inputs are mixed.
            MissingExtraError: torch or transformers is not installed.
            EngineError: The model is missing, damaged, unsafe, or no classifier.
        """
        parts = columns(inputs)
        with self._lock:
            loaded = self._loaded
            report_truncation(self.options.model, loaded.tokenizer, inputs, loaded.length)
            # Inputs of like length share a batch, so that little of it is padding.
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
        # Some tokenizers number the segments of models that know one segment only, where 2 is an index error.
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
        require("torch", "transformers")
        found = find_encoder(self.options)
        checkpoint = found.checkpoint
        with explained(checkpoint.label):
            configuration = load_configuration(checkpoint)
            model = _load_weights(found, configuration)
            # Only now: a model that is no classifier has two labels of no meaning in its configuration.
            column = _find_label(checkpoint.label, configuration, self.label)
        tokenizer = read_tokenizer(checkpoint)
        # Padding on the left would move the positions of an encoder's tokens.
        tokenizer.padding_side = "right"
        if model.config.pad_token_id is None:
            # A decoder finds by it which token is the last.
            model.config.pad_token_id = tokenizer.pad_token_id
        length = longest_input(model, tokenizer, checkpoint, self.options.max_length)
        return _Loaded(model, tokenizer, length, column)


def _find_label(name: str, configuration: Any, label: str | None) -> int:
    """Find the output to read."""
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


def _load_weights(found: Encoder, configuration: Any) -> Any:
    """Load the model itself, and refuse a checkpoint that lacks some of its weights."""
    from transformers import AutoModelForSequenceClassification

    auto: Any = AutoModelForSequenceClassification
    model, report = auto.from_pretrained(
        str(found.checkpoint.folder),
        config=configuration,
        dtype=found.dtype,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    # Without this check what is missing would be random numbers.
    if missing := sorted(report["missing_keys"]):
        raise EngineError(
            f"{found.checkpoint.label} is no whole classifier: it lacks {missing[0]}.",
            hint="Name a model that was trained to classify, or copy its files again.",
        )
    return model.to(found.device).eval()
