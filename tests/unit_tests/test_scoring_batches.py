from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lince_rag.engines.server.scoring import batches, is_same_model


@given(st.lists(st.text(max_size=30)), st.integers(1, 9), st.integers(1, 60))
def test_batches_are_within_both_limits_and_lose_nothing(texts, most_texts, most_characters):
    found = list(batches(texts, most_texts, most_characters))
    assert [text for batch in found for text in batch] == texts
    for batch in found:
        assert 1 <= len(batch) <= most_texts
        assert len(batch) == 1 or sum(map(len, batch)) <= most_characters
    # None could have taken the first text of the next one.
    for batch, following in pairwise(found):
        assert len(batch) == most_texts or sum(map(len, batch)) + len(following[0]) > most_characters


def test_names_of_one_model():
    assert is_same_model("intfloat/multilingual-e5-base", "intfloat/multilingual-e5-base")
    assert is_same_model("/data/Multilingual-E5-base", "intfloat/multilingual-e5-base")
    assert is_same_model("/models/bge-m3.gguf", "bge-m3")
    assert is_same_model("bge-m3:latest", "BAAI/bge-m3")
    assert not is_same_model("bge-m3-q8_0.gguf", "BAAI/bge-m3")
    assert not is_same_model("bge-m3:567m", "BAAI/bge-m3")
