import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lince_rag.errors import IndexFolderError
from lince_rag.index.lexical import LexicalIndex
from lince_rag.text.words import terms

TEXTS = {
    "gato": "El gato negro duerme en el tejado de la casa vieja.",
    "perro": "El perro come en la cocina de la casa nueva.",
    "contrato": "El contrato de alquiler vence el 31 de mayo de 2026.",
    "paella": "La paella valenciana lleva azafrán, pollo y garrofón.",
}


def spanish(text):
    return " ".join(terms(text, "es"))


@pytest.fixture
def lexical(tmp_path):
    index = LexicalIndex(tmp_path / "lexical")
    index.write((chunk_id, spanish(text)) for chunk_id, text in TEXTS.items())
    return index


def ids(hits):
    return [hit.id for hit in hits]


@pytest.mark.parametrize(
    ("question", "first"),
    [
        ("¿Cuándo vencen los contratos?", "contrato"),
        ("gatos", "gato"),
        ("GATO", "gato"),
        ("azafran", "paella"),
        ("garofon", "paella"),
        ("31 de mayo", "contrato"),
    ],
)
def test_the_best_chunk_comes_first(lexical, question, first):
    assert ids(lexical.search(question, "es", 4))[0] == first


def test_hits_are_sorted_and_their_relevance_is_a_share(lexical):
    hits = lexical.search("¿Dónde duerme el gato de la casa?", "es", 4)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(hit.score > 0 and 0 < hit.relevance <= 1 for hit in hits)


def test_relevance_is_higher_for_a_question_about_the_documents(lexical):
    def relevance(question):
        return lexical.search(question, "es", 1)[0].relevance

    assert relevance("¿Cuándo vence el contrato de alquiler?") > relevance("¿Quién ganó el mundial de fútbol?") * 2


def test_words_that_only_ask_do_not_lower_relevance(lexical):
    (asked, *_), (named, *_) = (lexical.search(each, "es", 1) for each in ("¿Cuánto es el alquiler?", "alquiler"))
    assert asked.relevance >= named.relevance


def test_deleted_chunks_leave_relevance_a_share(tmp_path):
    index = LexicalIndex(tmp_path)
    index.write((str(number), spanish(f"El gato número {number} come palabra{number}.")) for number in range(300))
    before = index.search("gato palabra299", "es", 1)[0].relevance
    index.write([], delete=[str(number) for number in range(299)])
    (hit,) = index.search("gato palabra299", "es", 5)
    assert hit.relevance <= 1.0
    assert hit.relevance == pytest.approx(before, abs=0.2)


def test_the_limit_and_an_empty_question(lexical):
    assert len(lexical.search("casa", "es", 1)) == 1
    assert lexical.search("casa", "es", 0) == []
    assert lexical.search("¿?", "es", 5) == []
    assert lexical.search("zzzzzz", "es", 5) == []


def test_search_among_some_chunks_only(lexical):
    everywhere = {hit.id: hit.score for hit in lexical.search("la casa", "es", 9)}
    assert {"gato", "perro"} <= set(everywhere)
    some = lexical.search("la casa", "es", 9, ids=["perro", "unknown"])
    assert ids(some) == ["perro"]
    # The restriction leaves the score as it is.
    assert some[0].score == pytest.approx(everywhere["perro"], rel=1e-5)
    assert lexical.search("la casa", "es", 9, ids=[]) == []


def test_an_added_id_replaces_its_chunk(lexical):
    lexical.write([("gato", spanish("Ahora habla de submarinos."))])
    assert lexical.ids() == set(TEXTS)
    assert ids(lexical.search("submarino", "es", 5)) == ["gato"]
    assert "gato" not in ids(lexical.search("tejado negro", "es", 5))


def test_deleting_and_adding_in_one_commit(lexical):
    lexical.write([("nuevo", spanish("Un submarino."))], delete=["gato", "unknown"])
    assert lexical.ids() == {*TEXTS, "nuevo"} - {"gato"}
    lexical.write([], delete=[])
    assert len(lexical.ids()) == len(TEXTS)


def test_the_same_id_twice_in_one_write_is_one_chunk(tmp_path):
    index = LexicalIndex(tmp_path)
    index.write([("a", spanish("gato")), ("a", spanish("perro"))])
    assert index.ids() == {"a"}
    assert index.search("gato", "es", 5) == []


def test_an_empty_index(tmp_path):
    index = LexicalIndex(tmp_path)
    assert index.ids() == set()
    assert index.search("casa", "es", 5) == []


def test_another_reader_sees_a_commit_after_reload(lexical, tmp_path):
    reader = LexicalIndex(tmp_path / "lexical")
    lexical.write([("nuevo", spanish("Un submarino."))])
    reader.reload()
    assert ids(reader.search("submarino", "es", 5)) == ["nuevo"]


def test_it_is_still_there_when_opened_again(lexical, tmp_path):
    del lexical
    assert LexicalIndex(tmp_path / "lexical").ids() == set(TEXTS)


def test_a_failed_write_leaves_the_last_commit_and_the_lock_free(lexical):
    def broken():
        yield ("nuevo", spanish("Un submarino."))
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        lexical.write(broken(), delete=["gato"])
    assert lexical.ids() == set(TEXTS)
    lexical.write([("otro", spanish("Un avión."))])
    assert lexical.ids() == {*TEXTS, "otro"}


def test_a_damaged_index_is_named_with_a_way_out(lexical, tmp_path):
    del lexical
    (tmp_path / "lexical" / "meta.json").write_text("{")
    with pytest.raises(IndexFolderError, match=r"lexical is damaged: .*meta\.json") as caught:
        LexicalIndex(tmp_path / "lexical").ids()
    assert f"--index {tmp_path} --repair" in caught.value.hint


@settings(max_examples=25)
@given(
    st.lists(st.text(st.characters(codec=None), max_size=80), min_size=1, max_size=6),
    st.text(st.characters(codec=None), max_size=40),
)
def test_any_text_can_be_indexed_and_asked(tmp_path_factory, texts, question):
    index = LexicalIndex(tmp_path_factory.mktemp("lexical"))
    index.write((str(number), spanish(text)) for number, text in enumerate(texts))
    hits = index.search(question, "es", 10)
    assert all(0 < hit.relevance <= 1 for hit in hits)
    assert index.ids() == {str(number) for number in range(len(texts))}


def test_a_text_that_is_asked_for_word_by_word_is_found_in_any_script(tmp_path):
    texts = ["\ufdfa", "\u037a", "Ελλάδα", "日本語", "ﬁn", "x" * 70_000, "٣٤"]
    index = LexicalIndex(tmp_path)
    index.write((str(number), spanish(text)) for number, text in enumerate(texts))
    for number, text in enumerate(texts):
        assert ids(index.search(text, "es", 1)) == [str(number)], text[:10]
