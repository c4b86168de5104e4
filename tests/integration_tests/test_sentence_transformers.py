import math
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from lince_rag import Index, LinceEmbeddings
from lince_rag.errors import ConfigurationError, EmbeddingsMismatchError, MissingExtraError, installation
from tests.integration_tests.embedder_samples import DIMENSION, save_tiny_embedder

QUESTION, PASSAGE = "¿Cuándo vence el contrato?", "El contrato de alquiler vence en mayo."


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """Make a model folder of a name, with prompts in its configuration or without."""

    def save(name="tiny", prompts=None, default_prompt_name=None):
        return save_tiny_embedder(tmp_path_factory.mktemp("models") / name, prompts, default_prompt_name)

    return save


@pytest.fixture(scope="module")
def plain(save):
    return save()


@cache
def load(folder):
    model = SentenceTransformer(folder, device="cpu")
    model.default_prompt_name = None
    return model


def encode(folder, text):
    """What the model itself makes of a text, without any prompt handling."""
    return load(folder).encode([text], prompt="", normalize_embeddings=True).tolist()[0]


def assert_prompts_reach(embeddings, query, passage):
    folder = embeddings.model
    plain_question, plain_passage = encode(folder, QUESTION), encode(folder, PASSAGE)
    found_question, (found_passage,) = embeddings.embed_query(QUESTION), embeddings.embed_documents([PASSAGE])
    assert found_question == pytest.approx(encode(folder, query + QUESTION), abs=1e-5)
    assert found_passage == pytest.approx(encode(folder, passage + PASSAGE), abs=1e-5)
    assert (found_question == pytest.approx(plain_question, abs=1e-5)) == (not query)
    assert (found_passage == pytest.approx(plain_passage, abs=1e-5)) == (not passage)


@pytest.mark.parametrize(
    ("prompts", "query", "passage"),
    [
        ({"query": "pregunta: ", "document": "pasaje: "}, "pregunta: ", "pasaje: "),
        ({"query": "consulta: ", "passage": "title: "}, "consulta: ", "title: "),
        ({"query": "consulta: "}, "consulta: ", ""),
        ({"query": "", "document": "", "corpus": "text: "}, "", "text: "),
    ],
)
def test_the_models_own_prompts(save, prompts, query, passage):
    # The name is one that the data table knows: the model's own configuration goes first.
    assert_prompts_reach(LinceEmbeddings(save("multilingual-e5-small", prompts)), query, passage)


def test_a_default_prompt_of_the_model_is_not_put_before_passages(save):
    folder = save(prompts={"query": "pregunta: "}, default_prompt_name="query")
    assert_prompts_reach(LinceEmbeddings(folder), "pregunta: ", "")


def test_the_data_tables_prompts(save):
    assert_prompts_reach(LinceEmbeddings(save("multilingual-e5-small")), "query: ", "passage: ")
    embeddings = LinceEmbeddings(save("embeddinggemma-300m"))
    assert_prompts_reach(embeddings, "task: search result | query: ", "title: none | text: ")


def test_an_unknown_model_has_no_prompts(plain):
    assert_prompts_reach(LinceEmbeddings(plain), "", "")


def test_the_callers_prompts_go_first(save):
    folder = save("multilingual-e5-small", {"query": "pregunta: ", "document": "pasaje: "})
    embeddings = LinceEmbeddings(folder, query_prompt="foo bar: ", passage_prompt="baz: ")
    assert_prompts_reach(embeddings, "foo bar: ", "baz: ")
    assert_prompts_reach(LinceEmbeddings(folder, query_prompt="", passage_prompt=""), "", "")
    assert_prompts_reach(LinceEmbeddings(folder, query_prompt="foo bar: "), "foo bar: ", "pasaje: ")


def test_vectors_have_length_one_and_keep_the_order(plain):
    embeddings = LinceEmbeddings(plain, batch_size=2, device="cpu")
    texts = [PASSAGE, "foo", "", "El contrato " * 200, "bar"]
    vectors = embeddings.embed_documents(texts)
    assert all(len(vector) == DIMENSION and isinstance(vector[0], float) for vector in vectors)
    assert all(math.hypot(*vector) == pytest.approx(1.0, abs=1e-4) for vector in vectors)
    for text, vector in zip(texts, vectors, strict=True):
        assert vector == pytest.approx(embeddings.embed_documents([text])[0], abs=1e-4)
    assert embeddings.embed_documents([]) == []


def test_a_missing_folder_is_named(tmp_path):
    folder = str(tmp_path / "no-such-model")
    with pytest.raises(ConfigurationError, match="no-such-model"):
        LinceEmbeddings(folder).embed_query("x")


@pytest.mark.parametrize("damage", ["empty", "weights", "config", "tokenizer"])
def test_a_damaged_folder_is_named(plain, tmp_path, damage):
    folder = tmp_path / "damaged"
    if damage == "empty":
        folder.mkdir()
    else:
        shutil.copytree(plain, folder)
        file = {"weights": "model.safetensors", "config": "config.json", "tokenizer": "tokenizer.json"}[damage]
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigurationError, match="damaged"):
        LinceEmbeddings(str(folder)).embed_query("x")


def test_a_missing_sentence_transformers_names_the_extra(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    embeddings = LinceEmbeddings(plain)
    with pytest.raises(MissingExtraError, match=re.escape(installation("models"))):
        embeddings.embed_query("x")
    assert LinceEmbeddings().embed_query("hola")


def test_an_index_remembers_its_model_and_prompts(save, tmp_path):
    folder = save("multilingual-e5-small")
    (tmp_path / "a.txt").write_text(PASSAGE)
    embeddings = LinceEmbeddings(folder, query_prompt="consulta: ", passage_prompt="baz: ")
    with Index.open(tmp_path / "index", embeddings=embeddings) as index:
        index.ingest(tmp_path / "a.txt")
    with Index.open(tmp_path / "index") as index:
        assert index.embeddings.model == folder
        assert_prompts_reach(index.embeddings, "consulta: ", "baz: ")
        (hit,) = index.as_retriever(lexical_weight=0.0).invoke(QUESTION)
        assert hit.page_content == PASSAGE
        (found,) = index.stores.search_vectors(QUESTION, 1)
        expected = sum(
            one * two
            for one, two in zip(
                encode(folder, "consulta: " + QUESTION), encode(folder, "baz: " + PASSAGE), strict=True
            )
        )
        assert found.similarity == found.score == pytest.approx(expected, abs=1e-4)
    # Chunks behind one prompt and chunks behind another do not belong in one index.
    with pytest.raises(EmbeddingsMismatchError, match="baz: "):
        Index.open(tmp_path / "index", embeddings=LinceEmbeddings(folder))


def test_a_relative_folder_is_found_from_another_one(save, tmp_path, monkeypatch):
    folder = Path(save())
    monkeypatch.chdir(folder.parent)
    (tmp_path / "a.txt").write_text(PASSAGE)
    with Index.open(tmp_path / "index", embeddings=LinceEmbeddings("./tiny")) as index:
        index.ingest(tmp_path / "a.txt")
    monkeypatch.chdir(tmp_path)
    with Index.open(tmp_path / "index") as index:
        assert index.as_retriever(lexical_weight=0.0).invoke(QUESTION)
    with Index.open(tmp_path / "index", embeddings=str(folder)) as index:
        assert index.stores.search_vectors(QUESTION, 1)
