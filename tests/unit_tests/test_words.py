import unicodedata
from itertools import pairwise

import pytest
import sentencex
from hypothesis import example, given
from hypothesis import strategies as st

from lince_rag.text.language import LANGUAGES, fold
from lince_rag.text.sentences import sentence_spans
from lince_rag.text.words import (
    GRAM_LENGTH,
    GRAM_PREFIX,
    cognate,
    differs_in_one_letter,
    grams,
    squeeze,
    terms,
    words,
)

languages = st.sampled_from(LANGUAGES)

# Any text, lone surrogates included, and text that looks like documents: that is where splitters go wrong.
any_text = st.text(st.characters(codec=None), max_size=300)
document_text = st.lists(
    st.sampled_from(
        ["El Sr. Pérez llegó", "¿Qué", "hora", "es?", "a las 12:30 h.", "Não", "art. 3.º", "EE. UU.", "...", "—",
         "«cita»", "\n", "\r\n", "\n\n", "\n- ", "\n# ", "\n| a | b |\n", "1. ",
         "😀", "👩‍👩‍👧", "\ud83d", "\t", "\xa0",
         "\u2028", "\x0b", "\x1c", "!", "?!", ". ", "e\u0301", "\u200b", "\ufeff", "(", ")", "\"", "。", "３"]
    ),
    max_size=40,
).map(" ".join)  # fmt: skip


@given(st.one_of(any_text, document_text), languages)
@example("Hola 😀. ¿Qué tal?\r\n\r\nSí \ud800. Adiós", "es")
@example("\ud83d\ude00", "pt")
@example("   \n\n ", "en")
@example("a\r\nb\rc\x85d\u2029e", "es")
def test_sentence_spans_cover_every_visible_character_once_and_in_order(text, language):
    spans = sentence_spans(text, language)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(one[1] <= two[0] for one, two in pairwise(spans))
    covered = "".join(text[start:end] for start, end in spans)
    assert "".join(covered.split()) == "".join(text.split())
    assert all(text[start:end] == text[start:end].strip() for start, end in spans)


@pytest.mark.parametrize("unit", ["这是一个句子。", "```\ncodigo();\n```\n", "palabra ", "Hola. ", "a", "«Sí»… "])
def test_long_texts_reach_the_splitter_in_pieces(unit, monkeypatch):
    # It takes quadratic time: 12 s for 280,000 characters of Chinese.
    lengths = []
    split = sentencex.get_sentence_boundaries

    def recorded(language, text):
        lengths.append(len(text))
        return split(language, text)

    monkeypatch.setattr(sentencex, "get_sentence_boundaries", recorded)
    text = unit * (100_000 // len(unit))
    spans = sentence_spans(text, "es")
    assert max(lengths) <= 8_000
    assert sum(lengths) == len(text)
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "language", "sentences"),
    [
        ("El Sr. Pérez llegó. Se fue.", "es", ["El Sr. Pérez llegó.", "Se fue."]),
        ("¿Qué hora es? Son las 12.30 h.", "es", ["¿Qué hora es?", "Son las 12.30 h."]),
        ("O Dr. Silva chegou. Saiu às 3.", "pt", ["O Dr. Silva chegou.", "Saiu às 3."]),
        ("Uno\n\nDos", "es", ["Uno", "Dos"]),
        (
            "Guarde la copia en datos.BAK o en .BAK. Siga.",
            "es",
            ["Guarde la copia en datos.BAK o en .BAK.", "Siga."],
        ),
        ("14.6.5. Instalar paquetes. Es fácil.", "es", ["14.6.5. Instalar paquetes.", "Es fácil."]),
        ("1. Pulse el botón. Espere.\n2. Siga.", "es", ["1. Pulse el botón.", "Espere.", "2. Siga."]),
        ("Nasceu em 1997. Morreu em 1999.", "pt", ["Nasceu em 1997.", "Morreu em 1999."]),
        ("mv [OPCIÓN]... [FICHERO]...", "es", ["mv [OPCIÓN]... [FICHERO]..."]),
        (
            "Tercera. Renta. Es de 700 euros. CUARTA.- Fianza. Es de 1.900 euros. Se devuelve.",
            "es",
            ["Tercera. Renta. Es de 700 euros.", "CUARTA.- Fianza. Es de 1.900 euros.", "Se devuelve."],
        ),
        (
            "Cláusula Quinta – Do prazo. Vigora por um ano. Art. 7.º O lixo sai. Art. 8. Sem obras.",
            "pt",
            [
                "Cláusula Quinta – Do prazo. Vigora por um ano.",
                "Art. 7.º O lixo sai.",
                "Art. 8. Sem obras.",
            ],
        ),
        ("II.- Duración. Dura dos años. Se prorroga.", "es", ["II.- Duración. Dura dos años.", "Se prorroga."]),
        ("1ª. La casa es azul. 2ª.- El coche es rojo.", "es", ["1ª. La casa es azul.", "2ª.- El coche es rojo."]),
        ("Cláusula 4.ª\n(Caução)\nSão duas rendas.", "pt", ["Cláusula 4.ª\n(Caução)", "São duas rendas."]),
        ("7ª Fianza. Son dos rentas. Se devuelven.", "es", ["7ª Fianza. Son dos rentas.", "Se devuelven."]),
        (
            "Disposición adicional primera. El Gobierno dicta las normas que hacen falta. Está en vigor.",
            "es",
            ["Disposición adicional primera. El Gobierno dicta las normas que hacen falta.", "Está en vigor."],
        ),
        ("Abre à segunda. Fecha à quarta.", "pt", ["Abre à segunda.", "Fecha à quarta."]),
        (
            "Preside D. Félix Arbués. Es el portal B. Sigue Dña. Pilar Oroz.",
            "es",
            ["Preside D. Félix Arbués.", "Es el portal B.", "Sigue Dña. Pilar Oroz."],
        ),
        ("Fica na Av. Paulista, 3. Tel. 976 33 22.", "pt", ["Fica na Av. Paulista, 3.", "Tel. 976 33 22."]),
        (
            "Primeiro Outorgante: Álvaro Seabra Pinto, viúvo, NIF 198 334 021;\nSegunda Outorgante: Joana Frazão.",
            "pt",
            [
                "Primeiro Outorgante: Álvaro Seabra Pinto, viúvo, NIF 198 334 021;",
                "Segunda Outorgante: Joana Frazão.",
            ],
        ),
        ("- leche\n- pan\n- sal", "es", ["- leche", "- pan", "- sal"]),
        ("# Título\nTexto que sigue", "es", ["# Título", "Texto que sigue"]),
        ("| a | b |\n| c | d |", "es", ["| a | b |", "| c | d |"]),
        (
            "una frase que se parte\nen dos líneas. Otra.",
            "es",
            ["una frase que se parte\nen dos líneas.", "Otra."],
        ),
        (
            "7/1/25, 9:05 - Olga creó el grupo. Es de la peña.\n7/1/25, 9:06 - Olga: Ya está. Son 38 €, sí\n"
            "Traed:\n\n- vasos\n- hielo\n7/1/25, 21:40 - +34 600 00 00 00: Vale. Voy",
            "es",
            [
                "7/1/25, 9:05 - Olga creó el grupo. Es de la peña.",
                "7/1/25, 9:06 - Olga: Ya está. Son 38 €, sí\nTraed:\n\n- vasos\n- hielo",
                "7/1/25, 21:40 - +34 600 00 00 00: Vale. Voy",
            ],
        ),
        (
            "[07/01/2025, 9:05:33 p. m.] Olga: Cena el 9. A las 21 h.\n\nOtra cosa. Y otra.",
            "es",
            ["[07/01/2025, 9:05:33 p. m.] Olga: Cena el 9. A las 21 h.", "Otra cosa.", "Y otra."],
        ),
        ("07.01.25 09:05 - Rui: Chego já. Levo pão", "pt", ["07.01.25 09:05 - Rui: Chego já. Levo pão"]),
        (
            "Reunión: 7/1/25, 9:05 - Sala azul. Es corta.",
            "es",
            ["Reunión: 7/1/25, 9:05 - Sala azul.", "Es corta."],
        ),
    ],
)
def test_sentences(text, language, sentences):
    assert [text[start:end] for start, end in sentence_spans(text, language)] == sentences


def test_a_row_is_kept_whole_unless_it_is_long():
    row = "Día: 3 de mayo | Notas: Traen el vino. Nosotros, el pan. | Pagado: no"
    text = f"Cenas. Las de este año.\n{row}\n{row}"
    assert [text[slice(*span)] for span in sentence_spans(text, "es")] == [
        "Cenas.", "Las de este año.", row, row,
    ]  # fmt: skip
    long = f"{row} Se repite. " + "Y sigue. " * 60
    assert len(sentence_spans(long, "es")) > 20


@pytest.mark.parametrize(("size", "sentences"), [(10, 1), (40, 41)])
def test_a_long_message_is_cut(size, sentences):
    text = "7/1/25, 9:05 - Olga: Hoy. " + "Llegamos tarde. " * size + "\n7/1/25, 9:06 - Iñaki: Bien. Vale."
    found = [text[start:end] for start, end in sentence_spans(text, "es")]
    assert found[-1] == "7/1/25, 9:06 - Iñaki: Bien. Vale."
    assert found[0].startswith("7/1/25, 9:05 - Olga: Hoy.")
    assert len(found) == sentences + 1


@given(st.lists(st.tuples(st.sampled_from(["Ana", "tía Pili", "+34 600 11 22 33"]), document_text), min_size=1))
def test_messages_are_never_cut_unless_they_are_long(messages):
    lines = [
        f"[3/{day % 12 + 1}/25, 18:{day % 60:02}:07] {name}: {said}" for day, (name, said) in enumerate(messages)
    ]
    text = "\n".join(lines) + "\n[31/12/25, 0:00:00] Ana: fin"
    starts = {start for start, _ in sentence_spans(text, "es")}
    place = 0
    for line in lines:
        assert place in starts
        if len(line) < 400 and "\n[" not in line:
            assert starts.isdisjoint(range(place + 1, place + len(line)))
        place += len(line) + 1


@given(any_text, st.one_of(st.none(), languages))
@example("\ufdfa", "es")
@example("\u037a", "pt")
def test_terms_never_raise_and_hold_no_white_space(text, language):
    for term in terms(text, language):
        assert term
        assert not any(character.isspace() for character in term)
        term.encode()


@given(any_text)
@example("a\xad\u200b\r\n b\u2028c\ud800")
def test_squeeze_gives_one_normalised_line(text):
    line = squeeze(text)
    assert line == " ".join(line.split())
    assert unicodedata.is_normalized("NFC", line)
    assert squeeze(line) == line
    line.encode()


@given(any_text)
def test_fold_leaves_no_marks_and_is_stable(text):
    folded = fold(text)
    assert not any(unicodedata.combining(character) for character in folded)
    assert fold(folded) == folded


@given(any_text, languages)
def test_words_are_where_their_offsets_say(text, language):
    end = 0
    for word in words(text, language):
        assert end <= word.start < word.end <= len(text)
        assert text[word.start : word.end].lower() == word.text
        end = word.end


@given(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=30))
def test_grams_of_a_word_have_the_same_length_and_overlap(word):
    found = [gram.removeprefix(GRAM_PREFIX) for gram in grams(word)]
    assert all(len(gram) == min(GRAM_LENGTH, len(cognate(word)) + 2) for gram in found)
    assert found[0] + "".join(gram[-1] for gram in found[1:]) == f"_{cognate(word)}_"


@pytest.mark.parametrize(
    ("one", "other", "language"),
    [("canciones", "canción", "es"), ("informações", "informação", "pt"), ("CASAS", "casa", "es"),
     ("naciones", "nacion", "es")],
)  # fmt: skip
def test_inflections_share_a_stem(one, other, language):
    assert next(words(one, language)).stem == next(words(other, language)).stem


def test_accents_are_folded_after_stemming():
    # Folded first, "canción" would lose the ending that the Spanish stemmer looks for.
    assert next(words("canción", "es")).stem == "cancion"
    assert "#_can" in terms("Canción", "es")


@pytest.mark.parametrize("number", ["3.500,50", "12:30", "01/02/2024", "2023"])
def test_a_number_with_separators_is_one_word(number):
    assert [word.text for word in words(f"Son {number}.", "es")] == ["son", number]


def test_a_stem_and_a_gram_of_the_same_letters_are_different_terms():
    assert terms("_sol_", "es").count("sol") == 1
    assert all(term == "sol" or term.startswith(GRAM_PREFIX) for term in terms("sol", "es"))


@given(st.text(alphabet="abcd", min_size=1, max_size=8), st.integers(0, 7), st.sampled_from("xyz"))
def test_one_letter_makes_the_difference(word: str, place: int, letter: str) -> None:
    place = min(place, len(word) - 1)
    other, longer = word[:place] + letter + word[place + 1 :], word[:place] + letter + word[place:]
    for changed in (other, longer, word[:place] + word[place + 1 :]):
        assert differs_in_one_letter(word, changed)
        assert differs_in_one_letter(changed, word)
    assert not differs_in_one_letter(word, word)
    assert not differs_in_one_letter(word, letter * 2 + word)
    swapped = word[:place] + word[place : place + 2][::-1] + word[place + 2 :]
    assert differs_in_one_letter(word, swapped) is (word != swapped)
    assert not differs_in_one_letter(word + "ab", word + "cd")
