"""Sequence classifiers: the scores are the model's own, read by its labels, and independent of the batch."""

import json
import logging
import re
import shutil
import sys
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lince_rag.engines.scorers.classifiers import SequenceClassifier
from lince_rag.errors import ConfigurationError, EngineError, MissingExtraError, installation
from tests.integration_tests.classifier_samples import LENGTH, save_tiny_classifier
from tests.integration_tests.embedder_samples import save_tiny_embedder

TEXTS = [
    ("Eres un idiota y un inútil.", 0),
    ("Qué idiota, vete de aquí.", 0),
    ("El contrato vence en mayo, según la cláusula séptima.", 1),
    ("Gracias por la pregunta, es un placer.", 1),
    ("Idiota.", 0),
    ("Es en mayo.", 1),
]
ONLY_TEXTS = [text for text, _ in TEXTS]
PAIRS = [
    (("O que é um átomo?", "A menor parte de um elemento."), 1),
    (("O que é um átomo?", "Sei lá."), 0),
    (("Quando vence o contrato?", "Vence em maio, segundo a cláusula sétima do contrato."), 1),
    (("Quando vence o contrato?", "Sei lá, pergunte a outro."), 0),
]
ONLY_PAIRS = [pair for pair, _ in PAIRS]
KINDS = ["xlm-roberta", "bert"]


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    def save(examples, **options):
        return save_tiny_classifier(tmp_path_factory.mktemp("classifiers") / "tiny", examples, **options)

    return save


@pytest.fixture(scope="module", params=KINDS)
def guardrail(save, request):
    return save(TEXTS, kind=request.param)


@pytest.fixture(scope="module")
def toxic(save):
    """Label 0 is toxic."""
    return save(TEXTS, labels=("toxic", "neutral"))


def logits_of(folder: str, entry: Any, **options: Any) -> torch.Tensor:
    """Compute the logits of one input with the plain model, without a batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    parts = [entry] if isinstance(entry, str) else entry
    known = {"return_token_type_ids": model.config.type_vocab_size > 1, "max_length": LENGTH, **options}
    with torch.inference_mode():
        return model(**tokenizer(*parts, truncation=True, return_tensors="pt", **known)).logits[0]


def test_one_logit_is_the_score(guardrail):
    classifier = SequenceClassifier(guardrail, device="cpu", batch_size=2)
    scores = classifier.score(ONLY_TEXTS)
    assert scores == pytest.approx([logits_of(guardrail, text).item() for text in ONLY_TEXTS], abs=1e-4)
    assert [score > 0 for score in scores] == [bool(label) for _, label in TEXTS]
    assert classifier.boundary == 0.0
    inverted = SequenceClassifier(guardrail, inverted=True).score(ONLY_TEXTS)
    assert inverted == pytest.approx([-score for score in scores], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_read_as_pairs(save, kind):
    folder = save(PAIRS, kind=kind)
    scores = SequenceClassifier(folder, batch_size=3).score(ONLY_PAIRS)
    assert scores == pytest.approx([logits_of(folder, pair).item() for pair in ONLY_PAIRS], abs=1e-4)
    assert SequenceClassifier(folder).score([]) == []


def test_segment_ids_can_be_left_out(save):
    folder = save(PAIRS, kind="bert")
    scores = SequenceClassifier(folder, segments=False).score(ONLY_PAIRS)
    plain = [logits_of(folder, pair, return_token_type_ids=False).item() for pair in ONLY_PAIRS]
    assert scores == pytest.approx(plain, abs=1e-4)
    assert scores != pytest.approx(SequenceClassifier(folder).score(ONLY_PAIRS), abs=1e-4)
    assert [score > 0 for score in scores] == [bool(label) for _, label in PAIRS]


def test_the_probability_of_a_label(toxic):
    neutral = SequenceClassifier(toxic, label="Neutral")
    expected = [logits_of(toxic, text).softmax(0)[1].item() for text in ONLY_TEXTS]
    assert neutral.score(ONLY_TEXTS) == pytest.approx(expected, abs=1e-5)
    assert neutral.boundary == 0.5
    assert [score > 0.5 for score in expected] == [bool(label) for _, label in TEXTS]
    inverted = SequenceClassifier(toxic, label="toxic", inverted=True)
    assert inverted.score(ONLY_TEXTS) == pytest.approx(expected, abs=1e-5)


def test_labels_that_do_not_exclude_each_other(save):
    folder = save(TEXTS, labels=("toxic", "threat", "neutral"), several=True, steps=20)
    for number, label in enumerate(("toxic", "threat", "neutral")):
        expected = [logits_of(folder, text).sigmoid()[number].item() for text in ONLY_TEXTS]
        assert SequenceClassifier(folder, label=label).score(ONLY_TEXTS) == pytest.approx(expected, abs=1e-5)


def test_an_unknown_label_is_named_with_the_known_ones(toxic, guardrail):
    with pytest.raises(ConfigurationError, match=r"no label 'hate'.*toxic, neutral"):
        SequenceClassifier(toxic, label="hate").score(["x"])
    with pytest.raises(ConfigurationError, match=r"2 labels and none was named.*toxic, neutral"):
        SequenceClassifier(toxic).score(["x"])
    with pytest.raises(ConfigurationError, match=r"no label 'hate'.*LABEL_0"):
        SequenceClassifier(guardrail, label="hate").score(["x"])


def test_a_score_does_not_depend_on_the_batch(guardrail):
    texts = [*ONLY_TEXTS, "", "mayo " * 30]
    scores = SequenceClassifier(guardrail).score(texts)
    assert scores == pytest.approx(SequenceClassifier(guardrail, batch_size=1).score(texts), abs=1e-4)
    assert scores[::-1] == pytest.approx(SequenceClassifier(guardrail, batch_size=3).score(texts[::-1]), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("declared", [LENGTH, None])
def test_long_texts_are_cut_and_counted(save, kind, declared, caplog):
    folder = save(TEXTS, kind=kind, steps=0, max_length=declared)
    long = "vence en mayo " * 200
    with caplog.at_level(logging.DEBUG, "lince_rag"):
        scores = SequenceClassifier(folder).score([long, "Idiota.", long + "idiota"])
    assert f"2 of 3 inputs are longer than {LENGTH} tokens" in caplog.text
    assert scores[0] == pytest.approx(scores[2], abs=1e-5)
    assert scores[0] == pytest.approx(logits_of(folder, long).item(), abs=1e-4)
    shorter = SequenceClassifier(folder, max_length=8).score([long])
    assert shorter == pytest.approx([logits_of(folder, long, max_length=8).item()], abs=1e-4)


@pytest.mark.parametrize("wrong", ["un texto", ["a", ("b", "c")], [("a",)], [("a", "b", "c")]])
def test_what_is_neither_texts_nor_pairs_is_refused(guardrail, wrong):
    with pytest.raises(ConfigurationError, match="list of pairs"):
        SequenceClassifier(guardrail).score(wrong)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"max_length": 0}, {"device": "tpu"}])
def test_wrong_values_are_named_at_once(wrong):
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=name):
        SequenceClassifier("owner/name", **wrong)


def test_a_decoder_classifies_its_last_token(tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from tests.checkpoints import shared_checkpoint

    # A Llama tokenizer has no padding token, and padding must not be mistaken for the last token.
    tokenizer = AutoTokenizer.from_pretrained(shared_checkpoint("llama-2-7b-spanish").path)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, num_labels=1, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForSequenceClassification(config).save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    folder = str(tmp_path / "decoder")
    scores = SequenceClassifier(folder).score(ONLY_TEXTS)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for text, score in zip(ONLY_TEXTS, scores, strict=True):
        with torch.inference_mode():
            batch = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
            assert score == pytest.approx(model(**batch).logits.item(), abs=1e-4)


# ----------------------------------------------------------------------------------------------------- the loading


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(EngineError, match="no-such-model"):
        SequenceClassifier(str(tmp_path / "no-such-model")).score(["x"])


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="has an accelerator")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_the_machine_lacks_is_named(guardrail, device):
    with pytest.raises(EngineError, match=f"no device '{device}'.* It has: cpu"):
        SequenceClassifier(guardrail, device=device).score(["x"])


def test_missing_packages_name_the_extra(guardrail, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=re.escape(installation("models"))):
        SequenceClassifier(guardrail).score(["x"])


def test_a_model_without_a_head_is_refused(tmp_path):
    save_tiny_embedder(tmp_path / "embedder")
    with pytest.raises(
        EngineError, match=r"lacks 2 of the weights of BertForSequenceClassification, for example classifier\."
    ):
        SequenceClassifier(str(tmp_path / "embedder-transformer")).score(["x"])


def test_pickled_weights_adapters_and_damage_are_refused(toxic, tmp_path):
    for name in ("pickled", "adapter", "damaged"):
        shutil.copytree(toxic, tmp_path / name)
    weights = tmp_path / "pickled" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    content = (tmp_path / "damaged" / "model.safetensors").read_bytes()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(content[: len(content) // 2])
    for name, reason in (("pickled", "only safetensors"), ("adapter", "is an adapter"), ("damaged", "damaged")):
        with pytest.raises(EngineError, match=reason):
            SequenceClassifier(str(tmp_path / name), label="toxic").score(["x"])


def test_a_model_larger_than_the_memory_is_refused(toxic, monkeypatch):
    monkeypatch.setattr("lince_rag.engines.checkpoints.memory.available_bytes", lambda device: 1000)
    with pytest.raises(EngineError, match="are free on cpu"):
        SequenceClassifier(toxic, label="toxic", device="cpu").score(["x"])
