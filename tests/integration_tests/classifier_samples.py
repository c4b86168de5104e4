"""Tiny sequence classifiers, trained when a test needs them, so that their scores are known.

Their architectures and tokenizers are those of real models: XLM-RoBERTa with a Unigram tokenizer (like BGE's
multilingual reranker), BERT with WordPiece (like Aira's Portuguese reward model).
"""

import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

Example = tuple[str | tuple[str, str], float]

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LENGTH = 64


def save_tiny_classifier(
    folder: Path,
    examples: Sequence[Example],
    *,
    labels: Sequence[str] = ("LABEL_0",),
    kind: str = "xlm-roberta",
    several: bool = False,
    steps: int = 200,
    max_length: int | None = LENGTH,
) -> str:
    """Train a classifier on examples and save it; the result is the same every time.

    Args:
        folder: Where to save it.
        examples: Texts or pairs, each with the number of its label; if there is only one label, with the desired
            sigmoid of its logit.
        labels: The names of the labels.
        kind: ``"xlm-roberta"`` or ``"bert"``.
        several: Whether the labels do not exclude each other.
        steps: Training steps; 0 leaves the weights random.
        max_length: The ``model_max_length`` of the tokenizer.

    Returns:
        The folder.
    """
    torch.set_num_threads(1)
    tokenizer = _tokenizer(kind, [text for entry, _ in examples for text in _texts(entry)], max_length)
    shared = {
        **SIZES,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "initializer_range": 0.2,
        "problem_type": "multi_label_classification" if several else None,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        if kind == "bert":
            config = BertConfig(**shared, max_position_embeddings=LENGTH, type_vocab_size=2)
            model: Any = BertForSequenceClassification(config)
        else:
            # As in the real model, positions begin after the padding's, so two rows of the table are never used.
            config = XLMRobertaConfig(**shared, max_position_embeddings=LENGTH + 2, type_vocab_size=1)
            model = XLMRobertaForSequenceClassification(config)
        _train(model, tokenizer, examples, steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _texts(entry: str | tuple[str, str]) -> list[str]:
    return [entry] if isinstance(entry, str) else list(entry)


def _tokenizer(kind: str, texts: list[str], max_length: int | None) -> PreTrainedTokenizerFast:
    """Make a tokenizer of the texts' words and letters; a trained one would have another vocabulary every time."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})
    letters = sorted({*"".join(words), *string.ascii_letters})
    names = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "cls": "<s>", "sep": "</s>"}
    inputs = ["input_ids", "attention_mask"]
    if kind == "bert":
        names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
        inputs.insert(1, "token_type_ids")
        lower = sorted({word.lower() for word in words})
        pieces = [*names.values(), *lower, *(mark + letter for mark in ("", "##") for letter in letters)]
        vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    else:
        pieces = ["▁", *(mark + word for word in words for mark in ("▁", ""))]
        scores = dict.fromkeys(("<s>", "<pad>", "</s>", "<unk>"), 0.0) | dict.fromkeys(pieces, -2.0)
        scores |= {letter: -9.0 for letter in letters if letter not in scores}
        tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=3))
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        # The model has no segment 1, so its segment ids must not be used.
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    fields: dict[str, Any] = {f"{name}_token": token for name, token in names.items()}
    if max_length:
        fields["model_max_length"] = max_length
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **fields)


def _train(model: Any, tokenizer: Any, examples: Sequence[Example], steps: int) -> None:
    entries = [_texts(entry) for entry, _ in examples]
    batch = tokenizer(
        *map(list, zip(*entries, strict=True)),
        padding=True,
        truncation=True,
        max_length=LENGTH,
        return_tensors="pt",
        return_token_type_ids=False,
    )
    targets = torch.tensor([float(label) for _, label in examples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    outputs = model.config.num_labels
    for _ in range(steps):
        logits = model(**batch).logits
        if outputs == 1:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets)
        elif model.config.problem_type == "multi_label_classification":
            wanted = torch.nn.functional.one_hot(targets.long(), outputs).float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        else:
            loss = torch.nn.functional.cross_entropy(logits, targets.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
