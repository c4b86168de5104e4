import math
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.documents import Document

from lince_rag.index.lexical import LexicalHit
from lince_rag.index.ranking import add_origins, compare_questions, distinct, fuse, lift_nearest

ids = st.sampled_from("abcdefgh")
# Steps of a quarter: two scores that differ by a rounding error are equal.
numbers = st.integers(-400, 400).map(lambda number: number / 4)
scores = st.dictionaries(ids, numbers, max_size=8)
weights = st.floats(0, 1)
spreads = st.none() | st.floats(0.001, 1)
waiting_ids = st.frozensets(ids)


def order(fused):
    return sorted(fused, key=lambda chunk_id: (-fused[chunk_id], chunk_id))


@given(scores, scores, weights, spreads, waiting_ids)
def test_the_result_is_the_union_with_finite_scores(lexical, vectors, weight, spread, waiting):
    fused = fuse(lexical, vectors, weight, spread, waiting)
    assert set(fused) == set(lexical) | set(vectors)
    assert all(map(math.isfinite, fused.values()))


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8), weights, spreads)
def test_a_chunk_that_is_no_worse_on_either_side_is_not_ranked_lower(pairs, weight, spread):
    fused = fuse(
        {n: pair[0] for n, pair in enumerate(pairs)}, {n: pair[1] for n, pair in enumerate(pairs)}, weight, spread
    )
    for one, (lexical, vector) in enumerate(pairs):
        for other, (other_lexical, other_vector) in enumerate(pairs):
            if lexical >= other_lexical and vector >= other_vector:
                assert fused[one] >= fused[other] - 1e-9 * max(1.0, abs(fused[one]))


@given(st.lists(numbers, min_size=1, max_size=8), scores)
def test_one_side_alone_keeps_its_order(values, vectors):
    lexical = dict(zip("abcdefgh", values, strict=False))
    fused = fuse(lexical, vectors, 1.0)
    for one, other in pairwise(sorted(lexical, key=lexical.__getitem__)):
        assert fused[one] <= fused[other]
    # Chunks that only the weightless side has come last: it adds candidates and no score.
    assert all(fused[extra] == min(fused.values()) for extra in set(vectors) - set(lexical))


@given(st.dictionaries(ids, st.tuples(numbers, numbers)), scores)
def test_scores_of_a_weightless_side_do_not_matter(pairs, scored):
    one, other = ({chunk_id: pair[side] for chunk_id, pair in pairs.items()} for side in (0, 1))
    assert fuse(scored, one, 1.0) == fuse(scored, other, 1.0)
    assert fuse(one, scored, 0.0) == fuse(other, scored, 0.0)


@given(scores.filter(bool), scores.filter(bool), st.integers(1, 6))
@example({"a": 0.0}, {"b": 0.0, "c": 0.0}, 2)
def test_the_nearest_vector_gets_a_place_and_the_others_keep_their_order(lexical, vectors, place):
    fused = fuse(lexical, vectors, 0.5)
    before = order(fused)
    nearest = max(vectors, key=lambda each: vectors[each])
    unlifted = dict(fused)
    lift_nearest(fused, vectors, place)
    after = order(fused)
    # It passes those with the same score as the holder of the place, and nothing above them.
    wanted = min(before.index(nearest), place - 1)
    assert after.index(nearest) <= wanted
    assert len({*unlifted.values()}) < len(unlifted) or after.index(nearest) == wanted
    assert [each for each in after if each != nearest] == [each for each in before if each != nearest]


@given(scores.filter(bool), st.data())
def test_a_chunk_gains_from_its_document_and_from_another_language(before, data):
    origins = {each: data.draw(st.tuples(st.sampled_from("xy"), st.sampled_from(["es", "en"]))) for each in before}
    after = dict(before)
    add_origins(after, origins, "es")
    for one, other in pairwise(sorted(before, key=before.__getitem__)):
        (source, language), (other_source, other_language) = origins[one], origins[other]
        if source == other_source and (language == other_language or other_language == "en"):
            assert after[one] <= after[other]


def test_the_answer_can_be_in_another_chunk_than_the_name_of_its_document():
    fused = {"name": 2.0, "answer": -1.0, "elsewhere": 0.5}
    origins = {"name": ("Olmo 14", "es"), "answer": ("Olmo 14", "es"), "elsewhere": ("Olmo 12", "es")}
    add_origins(fused, origins, "es")
    assert order(fused) == ["name", "answer", "elsewhere"]


def test_a_chunk_in_another_language_passes_one_that_is_a_little_better():
    fused = {"own": 0.2, "other": 0.0, "worse": -0.1}
    add_origins(fused, {"own": ("a", "es"), "other": ("b", "en"), "worse": ("c", "en")}, "es")
    assert order(fused) == ["other", "own", "worse"]


@given(scores, scores, weights)
def test_the_two_sides_are_treated_alike(lexical, vectors, weight):
    one, other = fuse(lexical, vectors, weight), fuse(vectors, lexical, 1 - weight)
    assert one == pytest.approx(other, abs=1e-6)


@given(st.dictionaries(ids, st.integers(-50, 50), min_size=1), scores, st.integers(1, 9), st.integers(-9, 9))
def test_the_scale_of_a_side_does_not_matter(lexical, vectors, factor, shift):
    scaled = {chunk_id: score * factor + shift for chunk_id, score in lexical.items()}
    assert fuse(scaled, vectors, 0.5) == pytest.approx(fuse(lexical, vectors, 0.5), abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_empty_and_constant_sides(weight):
    assert fuse({}, {}, weight) == {}
    assert fuse({"a": 3.0}, {}, weight) == {"a": 0.0}
    assert fuse({"a": 3.0, "b": 3.0}, {"a": 1.0, "b": 1.0}, weight) == {"a": 0.0, "b": 0.0}
    assert order(fuse({"a": 1.0, "b": 2.0}, {"a": 7.0, "b": 7.0}, 0.5)) == ["b", "a"]


def test_a_chunk_of_one_side_gets_the_other_sides_lowest_score():
    fused = fuse({"a": 2.0, "b": 1.0}, {"a": 0.5, "b": 0.1, "c": 0.9}, 0.5)
    assert fused == fuse({"a": 2.0, "b": 1.0, "c": 1.0}, {"a": 0.5, "b": 0.1, "c": 0.9}, 0.5)


def test_the_size_of_a_lead_counts():
    lexical = {"a": 10.0, "b": 1.0, "c": 0.9, "d": 0.8}
    vectors = {"b": 0.52, "a": 0.51, "c": 0.5, "d": 0.49}
    assert order(fuse(lexical, vectors, 0.5))[0] == "a"


def test_chance_among_nearly_equal_vectors_does_not_outweigh_the_words() -> None:
    """Texts that differ in a number: the words know which, the vectors do not."""
    lexical = {"right": 2.1, "a": 2.0, "b": 2.0, "c": 2.0}
    vectors = {"a": 0.4912, "right": 0.4850, "b": 0.4849, "c": 0.4849}
    fused = fuse(lexical, vectors, 0.4)
    assert max(fused, key=lambda chunk_id: fused[chunk_id]) == "right"


WORDS_FIRST = ({"words": 1.9, "other": 0.9}, {"meaning": 0.87, "other": 0.84, "words": 0.83})
MEANING_FIRST = ({"words": 0.4, "other": 0.3}, {"meaning": 0.87, "other": 0.80, "words": 0.79})


@pytest.mark.parametrize(("sides", "first"), [(WORDS_FIRST, "words"), (MEANING_FIRST, "meaning")])
def test_with_a_known_spread_the_side_that_is_sure_decides(sides, first):
    """A question in the language of the texts finds its words; one in another language finds a name or nothing."""
    assert order(fuse(*sides, 0.5, similarity_spread=0.015))[0] == first


@given(scores, scores, weights, st.sampled_from(["lexical", "vectors"]), st.integers(-9, 9))
def test_with_a_known_spread_only_differences_count(lexical, vectors, weight, side, shift):
    sides = {"lexical": lexical, "vectors": vectors}
    moved = sides | {side: {chunk_id: score + shift for chunk_id, score in sides[side].items()}}
    one, other = (fuse(each["lexical"], each["vectors"], weight, 0.02) for each in (sides, moved))
    assert one == pytest.approx(other, abs=1e-6)


@given(st.dictionaries(ids, numbers, min_size=1), spreads)
def test_a_question_without_known_words_is_ranked_by_its_vectors(vectors, spread):
    fused = fuse({}, vectors, 0.5, spread)
    assert all(vectors[one] >= vectors[other] for one, other in pairwise(order(fused)))


@given(st.dictionaries(ids, numbers, min_size=1), spreads)
def test_before_the_first_vector_the_words_decide(lexical, spread):
    fused = fuse(lexical, {}, 0.5, spread, waiting=frozenset(lexical))
    assert all(lexical[one] >= lexical[other] for one, other in pairwise(order(fused)))


@given(scores, st.dictionaries(ids, numbers, min_size=1), weights, st.floats(0.001, 1), ids)
def test_a_chunk_whose_vector_is_still_to_come_is_not_punished_for_it(lexical, vectors, weight, spread, one):
    """It is ranked as if it were nearer than the mean, not as one that is known not to be among the nearest."""
    lexical, vectors = lexical | {one: 1.0}, {key: value for key, value in vectors.items() if key != one}
    searched, waiting = (fuse(lexical, vectors, weight, spread, each) for each in (frozenset(), {one}))

    def lead(fused, other):
        return fused[one] - fused[other]

    assert all(lead(waiting, other) >= lead(searched, other) - 1e-6 for other in vectors)


def test_a_chunk_without_a_vector_yet_is_halfway_between_the_mean_and_the_best():
    lexical, vectors = {"new": 1.0, "a": 1.0, "b": 0.5}, {"a": 0.9, "b": 0.7, "c": 0.8}
    assert fuse(lexical, vectors, 0.5, 0.015, frozenset({"new"})) == pytest.approx(
        fuse(lexical, vectors | {"new": 0.85}, 0.5, 0.015)
    )


hits_drawn = st.lists(st.floats(0.01, 50), min_size=1, max_size=8).map(lambda found: sorted(found, reverse=True))


@given(hits_drawn, st.floats(0.01, 1), st.lists(st.floats(0, 1.7), min_size=8, max_size=8))
def test_comparable_scores_have_the_relevance_in_the_place_of_the_relative_score(bm25, best, shares):
    hits = [LexicalHit(str(n), score, best * score / bm25[0]) for n, score in enumerate(bm25)]
    scored = {hit.id: hit.score / bm25[0] + shares[n] for n, hit in enumerate(hits)}
    found = compare_questions(scored, hits)
    assert found == pytest.approx({hit.id: hit.relevance + shares[n] for n, hit in enumerate(hits)})
    assert compare_questions({}, hits) == compare_questions({}, []) == {}


parts = st.lists(
    st.sampled_from(["Uno.", "Dos son.", "Renta: 815 €.", "Renta: 915 €.", "Fin"]), min_size=1, max_size=4
)


def passages(texts):
    return [
        Document("\n".join(text), metadata={"source": f"{number % 3}.txt"}) for number, text in enumerate(texts)
    ]


@given(st.lists(parts, max_size=8), st.integers(1, 8))
def test_a_passage_is_left_out_only_if_a_better_one_holds_all_of_it(texts, count):
    found = distinct(passages(texts), count)
    best = [texts[0]] if texts else []
    for text in texts[1:]:
        if not any(set(text) <= set(kept) for kept in best):
            best.append(text)
    assert [document.page_content for document in found] == ["\n".join(text) for text in best[:count]]


def test_a_copy_names_its_source_once():
    found = distinct(passages([["Uno.", "Fin"], ["Fin"], ["UNO.", "¡Fin!"], ["Uno."], ["Uno."], ["Dos son."]]), 5)
    assert [document.metadata.get("also_in") for document in found] == [["1.txt", "2.txt"], None]


def test_passages_without_words_are_no_copies():
    assert len(distinct(passages([["…"], ["?"]]), 5)) == 2
