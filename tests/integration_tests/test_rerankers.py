"""Cross-encoders: LinceReranker scores like sentence-transformers, and the retriever sorts by these scores."""

import json
import logging
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from sentence_transformers import CrossEncoder
from typer.testing import CliRunner

from lince_rag import ChatLince, HybridRetriever, Index, create_rag_chain
from lince_rag.cli.app import app
from lince_rag.engines.scorers.rerankers import LinceReranker
from lince_rag.errors import ConfigurationError, EngineError, MissingExtraError, installation
from tests.integration_tests.classifier_samples import LENGTH, save_tiny_classifier
from tests.integration_tests.embedder_samples import save_tiny_embedder

QUESTION = "¿Cuándo vence el contrato de alquiler?"

# The first ones share the question's words; the reranker is trained to these scores and prefers a month.
WANTED = {
    "El contrato de alquiler vence cuando lo dice el contrato de alquiler.": 0.05,
    "Cuándo vence un contrato de alquiler es cosa del contrato.": 0.3,
    "El contrato de alquiler de la oficina es un contrato.": 0.15,
    "El plazo del piso acaba en mayo, según el contrato.": 0.95,
    "La fianza del alquiler se devuelve en junio.": 0.7,
    "El alquiler del garaje termina en marzo.": 0.85,
}
TEXTS = list(WANTED)
BEST_FIRST = sorted(TEXTS, key=WANTED.get, reverse=True)
PAIRS = [(QUESTION, text) for text in TEXTS]
EXAMPLES = list(zip(PAIRS, WANTED.values(), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("rerankers") / "tiny", EXAMPLES)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    with Index.open(tmp_path_factory.mktemp("index")) as index:
        documents = [
            Document(text, metadata={"source": f"doc-{number}", "month": score > 0.5})
            for number, (text, score) in enumerate(WANTED.items())
        ]
        index.ingest(documents)
        yield index


def expected(folder, pairs=PAIRS):
    return CrossEncoder(folder, device="cpu").predict([list(pair) for pair in pairs]).tolist()


def texts(documents):
    return [document.page_content for document in documents]


class CountingEncoder(BaseCrossEncoder):
    """Another package's cross-encoder, which prefers short passages."""

    def __init__(self):
        self.calls = []

    def score(self, text_pairs):
        self.calls.append(text_pairs)
        return [1.0 / len(passage) for _, passage in text_pairs]


# ------------------------------------------------------------------------------------------------------ the scores


def test_scores_are_those_of_sentence_transformers(folder):
    scores = LinceReranker(folder, device="cpu", batch_size=2).score(PAIRS)
    assert scores == pytest.approx(expected(folder), abs=1e-5)
    assert all(isinstance(score, float) and 0 <= score <= 1 for score in scores)
    assert scores == pytest.approx(list(WANTED.values()), abs=0.1)


def test_no_pairs_load_nothing(tmp_path):
    assert LinceReranker(str(tmp_path / "missing")).score([]) == []


def test_the_models_own_activation_function_is_used(folder, tmp_path):
    plain, configured = LinceReranker(folder).score(PAIRS), tmp_path / "identity"
    model = CrossEncoder(folder, device="cpu", activation_fn=torch.nn.Identity())
    model.save_pretrained(str(configured))
    logits = LinceReranker(str(configured)).score(PAIRS)
    assert min(logits) < 0
    assert torch.sigmoid(torch.tensor(logits)).tolist() == pytest.approx(plain, abs=1e-5)
    assert logits == pytest.approx(expected(str(configured)), abs=1e-5)


@pytest.mark.parametrize("declared", [LENGTH, None])
def test_long_passages_are_cut_and_counted(tmp_path, caplog, declared):
    # Without a declared length the tokenizer would pass on more tokens than there are positions.
    folder = save_tiny_classifier(tmp_path / "long", EXAMPLES, steps=0, max_length=declared)
    long, short = (QUESTION, "el contrato vence en mayo " * 200), (QUESTION, "Es en mayo.")
    with caplog.at_level(logging.DEBUG, "lince_rag"):
        scores = LinceReranker(folder).score([long, short, long])
    assert f"2 of 3 inputs are longer than {LENGTH} tokens" in caplog.text
    assert scores[0] == pytest.approx(scores[2], abs=1e-6)
    assert scores[1] == pytest.approx(LinceReranker(folder).score([short])[0], abs=1e-5)
    # The text after the cut does not count.
    (later,) = LinceReranker(folder).score([(long[0], long[1] + "y otra cosa")])
    assert later == pytest.approx(scores[0], abs=1e-6)


def test_max_length_shortens_and_never_lengthens(folder, caplog):
    long = [(QUESTION, "el contrato vence en mayo " * 200)]
    with caplog.at_level(logging.DEBUG, "lince_rag"):
        shorter = LinceReranker(folder, max_length=20).score(long)
        longest = LinceReranker(folder, max_length=10_000).score(long)
    assert "longer than 20 tokens" in caplog.text
    assert shorter != pytest.approx(longest, abs=1e-6)
    assert longest == pytest.approx(LinceReranker(folder).score(long), abs=1e-6)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"max_length": 0}, {"device": "tpu"}])
def test_wrong_values_are_named_at_once(wrong):
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=name):
        LinceReranker("owner/name", **wrong)


# ----------------------------------------------------------------------------------------------------- the loading


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="has an accelerator")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_the_machine_lacks_is_named(folder, device):
    with pytest.raises(EngineError, match=f"no device '{device}'.* It has: cpu"):
        LinceReranker(folder, device=device).score(PAIRS)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(EngineError, match="no-such-model"):
        LinceReranker(str(tmp_path / "no-such-model")).score(PAIRS)


def test_a_model_that_is_not_here_is_named():
    with pytest.raises(EngineError, match="nobody/no-such-reranker@main is not on this machine"):
        LinceReranker("nobody/no-such-reranker").score(PAIRS)


def test_a_relative_folder_is_found_from_another_one(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(folder).parent)
    reranker = LinceReranker("./tiny")
    monkeypatch.chdir(tmp_path)
    assert reranker.score(PAIRS[:1]) == pytest.approx(expected(folder)[:1], abs=1e-5)


def test_a_missing_sentence_transformers_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match="'sentence_transformers'.*" + re.escape(installation("models"))):
        LinceReranker(folder).score(PAIRS)


def test_pickled_weights_are_refused(folder, tmp_path):
    copy = tmp_path / "pickled"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").unlink()
    torch.save(CrossEncoder(folder, device="cpu").model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(EngineError, match="only safetensors"):
        LinceReranker(str(copy)).score(PAIRS)


def test_code_of_a_checkpoint_is_not_run(folder, tmp_path):
    copy = tmp_path / "code"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.C", "AutoModelForSequenceClassification": "mine.M"},
    }
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(EngineError, match="never run here"):
        LinceReranker(str(copy)).score(PAIRS)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_folder_is_named(folder, tmp_path, file):
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(EngineError, match="damaged"):
        LinceReranker(str(copy)).score(PAIRS)


def test_an_embedder_is_not_a_reranker(tmp_path):
    embedder = save_tiny_embedder(tmp_path / "embedder")
    with pytest.raises(EngineError, match=r"not a reranker: it lacks classifier\."):
        LinceReranker(str(tmp_path / "embedder-transformer")).score(PAIRS)
    with pytest.raises(EngineError):
        LinceReranker(embedder).score(PAIRS)


def test_a_classifier_of_several_labels_is_not_a_reranker(tmp_path):
    labels = ("contradiction", "entailment")
    folder = save_tiny_classifier(tmp_path / "nli", EXAMPLES, labels=labels, steps=0)
    with pytest.raises(ConfigurationError, match="2 labels"):
        LinceReranker(folder).score(PAIRS)


# --------------------------------------------------------------------------------------------------- the retriever


def test_the_retrievers_order_is_the_rerankers(index, folder):
    fused = index.as_retriever(k=6).invoke(QUESTION)
    found = index.as_retriever(k=6, reranker=folder).invoke(QUESTION)
    scores = dict(zip(TEXTS, expected(folder), strict=True))
    assert texts(found) == sorted(scores, key=scores.get, reverse=True) == BEST_FIRST != texts(fused)
    before = {document.page_content: document.metadata for document in fused}
    for document in found:
        metadata = dict(document.metadata)
        assert metadata.pop("rerank_score") == pytest.approx(scores[document.page_content], abs=1e-5)
        assert metadata == before[document.page_content]
    assert {"score", "relevance"} <= before[TEXTS[0]].keys()


def test_only_the_best_candidates_are_read(index):
    fused = texts(index.as_retriever(k=6).invoke(QUESTION))
    encoder = CountingEncoder()
    found = index.as_retriever(k=6, reranker=encoder, rerank_k=3).invoke(QUESTION)
    assert [[passage for _, passage in call] for call in encoder.calls] == [fused[:3]]
    assert texts(found) == [*sorted(fused[:3], key=len), *fused[3:]]
    assert ["rerank_score" in document.metadata for document in found] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("k", [1, 2, 6])
def test_k_cuts_after_the_reranking(index, k):
    found = index.as_retriever(reranker=CountingEncoder()).invoke(QUESTION, k=k)
    assert texts(found) == sorted(TEXTS, key=len)[:k]


def test_candidates_are_fetched_even_if_fetch_k_is_less(index):
    retriever = index.as_retriever(k=1, fetch_k=1, reranker=CountingEncoder(), lexical_weight=1.0)
    assert texts(retriever.invoke(QUESTION)) == [min(TEXTS, key=len)]


def test_a_filter_goes_first(index):
    encoder = CountingEncoder()
    found = index.as_retriever(k=6, reranker=encoder).invoke(QUESTION, filter={"month": False})
    assert texts(found) == sorted(TEXTS[:3], key=len)
    assert {passage for _, passage in encoder.calls[0]} == set(TEXTS[:3])


def test_nothing_is_read_if_nothing_is_found(index):
    encoder = CountingEncoder()
    assert index.as_retriever(reranker=encoder).invoke(QUESTION, filter={"month": "never"}) == []
    assert encoder.calls in ([], [[]])


def test_the_name_becomes_a_reranker_and_loads_later(index):
    retriever = index.as_retriever(reranker="nobody/no-such-reranker")
    assert isinstance(retriever, HybridRetriever)
    assert isinstance(retriever.reranker, LinceReranker)
    with pytest.raises(EngineError, match="no-such-reranker"):
        retriever.invoke(QUESTION)


def test_what_is_not_a_reranker_is_refused(index):
    with pytest.raises(ValueError, match="reranker"):
        index.as_retriever(reranker=7)
    with pytest.raises(ValueError, match="rerank_k"):
        index.as_retriever(reranker="a/b", rerank_k=0)


async def test_async_gives_the_same(index, folder):
    retriever = index.as_retriever(k=4, reranker=folder)
    assert await retriever.ainvoke(QUESTION) == retriever.invoke(QUESTION)
    batches = await retriever.abatch([QUESTION] * 4)
    assert all(texts(found) == texts(batches[0]) for found in batches)


def test_threads_share_a_reranker(index, folder):
    retriever = index.as_retriever(k=4, reranker=folder)
    found = retriever.batch([QUESTION, "¿Qué fianza hay?"] * 8, {"max_concurrency": 8})
    assert {tuple(texts(one)) for one in found} == {tuple(texts(one)) for one in found[:2]}


def test_a_chain_reads_the_reranked_passages(index, folder):
    answer = create_rag_chain(ChatLince(), index.as_retriever(k=6, reranker=folder)).invoke(QUESTION)
    assert texts(answer.documents) == BEST_FIRST


def test_the_command_line_takes_a_reranker(index, folder):
    def documents(*options):
        done = CliRunner().invoke(
            app, ["ask", QUESTION, "--index", str(index.folder), "--json", "-k", "6", *options]
        )
        assert done.exit_code == 0, done.output
        return [document["page_content"] for document in json.loads(done.stdout)["documents"]]

    assert documents("--reranker", folder) == BEST_FIRST != documents()
