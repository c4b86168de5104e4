"""Which passages are quoted, and how sure the choice is."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lince_rag.text.choice import ANSWER_CHARACTERS
from lince_rag.text.evidence import Evidence
from lince_rag.text.language import LANGUAGES, Language, load_table
from lince_rag.text.passages import LIST_CHARACTERS, WINDOW_CHARACTERS, Reading

BOILER = "La caldera debe revisarse cada año. La presión en frío es de 1,5 bar. El agua sale a 60 grados."

texts = st.text(max_size=200) | st.lists(
    st.sampled_from(
        [
            "La casa",
            "es",
            "azul.",
            "¿Dónde está?",
            "\n",
            "\n\n",
            "- uno",
            "## T",
            "12",
            "a | b",
            "São Paulo:",
            "1. x",
        ]
    ),
    max_size=30,
).map(" ".join)


def quoted(question: str, *contents: str, language: Language = "es", **metadata: Any) -> list[str]:
    documents = [{"text": text, "language": language, **metadata} for text in contents]
    spans = Evidence(question, language, documents).passages()
    return [contents[span.document][span.start : span.end] for span in spans]


def test_lines_that_only_lead_to_others_are_no_candidates() -> None:
    text = (
        "Renta y fianza\n\n# Pagos\n\n¿Cuánto se paga?\n\nSe paga la renta de cada mes.\n\n"
        "Capítulo 3 ........ 17\n\n- luz\n\n***\n\nSe necesita:\n\nnombre | precio\n\nsin punto final"
    )
    reading = Reading.of({"text": text, "language": "es", "heading": "Contrato › Renta y fianza"})
    assert list(reading.kinds) == [
        "heading", "heading", "question", "sentence", "contents", "item", "mark", "lead", "row", "line",
    ]  # fmt: skip
    assert [reading.sentences[each].text for each in reading.candidates()][:2] == [
        "Se paga la renta de cada mes.",
        "- luz",
    ]
    assert reading.introductions(3) == [2, 1, 0]


def test_numbered_titles_are_headings_and_numbered_clauses_are_not() -> None:
    text = (
        "CONDICIONES\n\n1. Capitales\n1.1. Contenido: 18.000 euros.\n2.1 Instalación 17\n\n3. Exclusiones\n"
        "3.2. No se cubren los bienes del trastero.\n\n4. Ascensor.\nSe aprueba.\n\nCláusula 5.ª\n(Caução)\n"
        "Son dos rentas.\n\nTOTAL A PAGAR  45,73 €\n\nPasos:\n1. Abra\n2. Cierre\n\nArt. 8.º Sin obras.\n\n"
        "5.1 Se paga la luz\n5.2 Se paga el agua\n\n1. Abra la tapa.\nSale agua.\n\n"
        "Artigo 3.º  Franquia\nSegunda planta"
    )
    reading = Reading.of({"text": text, "language": "es"})
    assert list(zip(reading.kinds, [each.text for each in reading.sentences], strict=True)) == [
        ("heading", "CONDICIONES"),
        ("heading", "1. Capitales"),
        ("sentence", "1.1. Contenido: 18.000 euros."),
        ("contents", "2.1 Instalación 17"),
        ("heading", "3. Exclusiones"),
        ("sentence", "3.2. No se cubren los bienes del trastero."),
        ("heading", "4. Ascensor."),
        ("sentence", "Se aprueba."),
        ("heading", "Cláusula 5.ª\n(Caução)"),
        ("sentence", "Son dos rentas."),
        ("sentence", "TOTAL A PAGAR  45,73 €"),
        ("lead", "Pasos:"),
        ("item", "1. Abra"),
        ("item", "2. Cierre"),
        ("sentence", "Art. 8.º Sin obras."),
        ("item", "5.1 Se paga la luz"),
        ("item", "5.2 Se paga el agua"),
        ("item", "1. Abra la tapa."),
        ("sentence", "Sale agua."),
        ("heading", "Artigo 3.º  Franquia"),
        ("line", "Segunda planta"),
    ]


@pytest.mark.parametrize(
    "said",
    [
        "<Multimedia omitido>", "<Mídia oculta>", "<Arquivo de mídia oculto>", "<Ficheiro não revelado>",
        "<Media omitted>", "imagen omitida", "áudio ocultado", "IMG-20250107-WA0003.jpg (archivo adjunto)",
        "<adjunto: 00000004-PHOTO-2025-01-07.jpg>", "Se eliminó este mensaje.", "Mensagem apagada", "🙂🙂", "",
        "Los mensajes y las llamadas están cifrados de extremo a extremo. Nadie fuera de este chat puede leerlos.",
        "As mensagens e as chamadas são protegidas com a criptografia de ponta a ponta e ficam somente entre si.",
        "Messages and calls are end-to-end encrypted. No one outside of this chat can read them.",
    ],
)  # fmt: skip
def test_messages_that_say_nothing_are_no_answers(said: str) -> None:
    text = f"7/1/25, 9:05 - {said}\n" * ("crypt" in said or "cifrad" in said) + f"7/1/25, 9:06 - Olga: {said}"
    assert set(Reading.of({"text": text, "language": "es"}).kinds) == {"mark"}


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("La foto omitida era la del tejado", "sentence"),
        ("Contrato firmado.pdf (archivo adjunto)", "sentence"),
        ("Cuánto era?", "question"),
        ("Son 38 €. Venís?", "sentence"),
        ("Hola Iker, vienes?", "question"),
    ],
)
def test_messages_that_say_something(said: str, kind: str) -> None:
    reading = Reading.of({"text": f"7/1/25, 9:06 - Olga: {said}", "language": "es"})
    assert list(reading.kinds) == [kind]


def test_a_message_is_quoted_whole() -> None:
    text = (
        "7/1/25, 9:05 - Olga: Quién arregló la persiana?\n7/1/25, 9:08 - Iker: Arreglada la persiana. Son 38 €\n"
        "7/1/25, 9:10 - Olga: <Multimedia omitido>"
    )
    (passage,) = quoted("¿Qué costó arreglar la persiana?", text)
    assert "Arreglada la persiana. Son 38 €" in passage
    assert "Multimedia" not in passage


def test_a_row_that_names_its_values_has_no_header() -> None:
    named = "Producto: Pan | Precio: 1\nProducto: Sal | Precio: 2\nProducto: Vino | Hora: 12:30"
    plain = "Producto | Precio\nPan | 1\nSal | 12:30"
    for text, headers in ((named, [None, None, None]), (plain, [None, 0, 0])):
        reading = Reading.of({"text": text, "language": "es"})
        assert list(reading.kinds) == ["row"] * 3
        assert [reading.header(position) for position in range(3)] == headers


def test_a_table_begins_after_a_blank_line() -> None:
    reading = Reading.of({"text": "Zona | Norte\nAlta | Mayo\n\nPlanta | Precio\nTomillo | 3", "language": "es"})
    assert [reading.header(position) for position in range(4)] == [None, 0, None, 2]


@settings(max_examples=200, deadline=None)
@given(texts, st.lists(texts, max_size=4), st.sampled_from(LANGUAGES))
def test_passages_are_disjoint_spans_that_are_no_headings_alone(
    question: str, contents: list[str], language: Language
) -> None:
    evidence = Evidence(question, language, [{"text": text} for text in contents])
    spans = sorted(evidence.passages(), key=lambda span: (span.document, span.start))
    for span in spans:
        text = contents[span.document][span.start : span.end]
        assert text == text.strip() != ""
        assert len(text) <= max(ANSWER_CHARACTERS, LIST_CHARACTERS) or len(spans) == 1 or "\n" not in text
    for one, other in pairwise(spans):
        assert one.document != other.document or one.end <= other.start
    assert bool(spans) == bool(evidence.candidates)
    assert sum(evidence.chances) == pytest.approx(1.0 if evidence.candidates else 0.0)
    assert 0.0 <= evidence.confidence <= 1.0


@settings(deadline=None)
@given(texts, texts)
def test_windows_begin_with_a_candidate_and_are_short(question: str, text: str) -> None:
    evidence = Evidence(question, "es", [{"text": text, "language": "es"}])
    starts = {each.sentence.start: each.sentence.end for each in evidence.candidates}
    for window in evidence.windows(5):
        assert window.end <= max(starts[window.start], window.start + WINDOW_CHARACTERS)
    assert len(evidence.windows(5)) == min(5, len(evidence.candidates))


def test_the_sentence_that_says_it_comes_first() -> None:
    documents = [{"text": BOILER, "language": "es"}]
    for question, said in (
        ("¿Qué presión tiene la caldera en frío?", "La presión en frío es de 1,5 bar."),
        ("¿A cuántos grados sale el agua?", "El agua sale a 60 grados."),
        ("¿Qué debe revisarse cada año?", "La caldera debe revisarse cada año."),
    ):
        evidence = Evidence(question, "es", documents)
        assert evidence.candidates[evidence.chosen[0]].sentence.text == said


def test_a_list_is_quoted_whole_with_what_announces_it() -> None:
    text = (
        "Es gratis. Para el alta se piden estos documentos:\n\n- el DNI\n- una foto\n- el padrón\n\nAbre pronto."
    )
    (answer, *_) = quoted("¿Qué documentos piden para el alta?", text)
    assert "estos documentos:\n\n- el DNI\n- una foto\n- el padrón" in answer
    steps = "Para reiniciar:\n\n1. Pulse Menú.\n2. Elija Sistema.\n3. Pulse Reiniciar."
    assert quoted("¿Cómo se reinicia el sistema?", steps) == [steps]


def test_steps_of_several_sentences_are_one_list() -> None:
    steps = (
        "Para cambiar el filtro del aire:",
        "1. Apague el aparato. La luz tarda un minuto en apagarse.",
        "2. Abra la tapa. Se sueltan dos muelles.",
        "3. Saque el filtro del aire y ponga el nuevo.",
        "4. Cierre la tapa.",
    )
    text = "El aparato limpia el aire.\n\n" + "\n".join(steps) + "\n\nEl filtro cuesta 12 euros."
    assert quoted("¿Cómo cambio el filtro del aire?", text) == ["\n".join(steps)]


def test_a_list_that_is_announced_is_not_quoted_in_part() -> None:
    text = "Para o passeio cada aluno deve levar:\n\n- almoço\n- boné\n- água\n\nO regresso é às 18h30."
    assert quoted("O que leva o aluno para o passeio?", text, language="pt")[0].endswith(
        "- almoço\n- boné\n- água"
    )


def test_a_lead_in_is_not_quoted_alone() -> None:
    text = "El horario de la piscina municipal en verano es este:\n\nDe diez a ocho.\n\nHay bar."
    assert quoted("¿Qué horario tiene la piscina municipal en verano?", text)[0].endswith("De diez a ocho.")


def test_a_sentence_that_depends_on_the_one_before_brings_it() -> None:
    text = f"Amalia Ortuño fundó el museo. {'Todo lo demás cambió mucho desde entonces en la villa. ' * 12}"
    text += "El archivo guarda cartas. Estas cartas se leen los lunes con cita previa."
    answers = quoted("¿Cuándo se leen las cartas con cita previa?", text)
    assert "El archivo guarda cartas. Estas cartas se leen" in answers[0]


def test_a_passage_that_is_near_the_question_wins() -> None:
    """Another language has no words in common: only the vectors say which passage it is."""
    texts_ = ["The museum opens at nine. It is closed on Mondays.", "The harbour has two piers. They are old."]
    documents: list[dict[str, Any]] = [{"text": text, "language": "en"} for text in texts_]
    passages = [[[0, 25, 55.0], [26, 50, 55.0]], [[0, 26, 55.0], [27, 40, 55.0]]]
    for document, near in ((1, 0), (1, 1), (0, 0), (0, 1)):
        given_ = [[list(each) for each in row] for row in passages]
        given_[document][near][2] = 60.0
        measured = [each | {"passages": row} for each, row in zip(documents, given_, strict=True)]
        evidence = Evidence("¿Qué hay?", "es", measured)
        first = evidence.candidates[evidence.chosen[0]]
        assert (first.document, first.position) == (document, near)


def test_more_similarity_is_never_less_confidence() -> None:
    def confidence(similarity: float) -> float:
        document = {"text": BOILER, "language": "es", "relevance": 0.3, "similarity": similarity * 0.015}
        return Evidence(
            "¿Qué presión tiene?", "es", [document | {"passages": [[0, 35, similarity]]}], 0.015
        ).confidence

    found = [confidence(similarity) for similarity in (50.0, 53.0, 56.0, 59.0)]
    assert found == sorted(found)
    assert found[0] < found[-1]


@pytest.mark.parametrize("read", [0, 1])
def test_a_better_read_passage_is_more_confidence(read: int) -> None:
    def confidence(score: float) -> float:
        passages = [[0, 35, 50.0], [36, len(BOILER), 50.0]]
        passages[read].append(score)
        document = {"text": BOILER, "language": "es", "relevance": 0.3, "passages": passages}
        return Evidence("¿Qué presión tiene?", "es", [document]).confidence

    found = [confidence(score) for score in (-6.0, -2.0, 2.0, 6.0)]
    assert found == sorted(found)
    assert found[0] < found[-1] - 0.1


def test_the_best_read_passage_is_chosen_and_what_was_compared_is_not_chosen_anew() -> None:
    text = "El gato pesa 3 kilos. El perro pesa 9 kilos."
    for best in (0, 1):
        passages = [[0, 21, 50.0, -6.0], [22, len(text), 50.0, -6.0]]
        passages[best][3] = 6.0
        evidence = Evidence("¿Cuánto pesa?", "es", [{"text": text, "language": "es", "passages": passages}])
        unread = evidence.likeliest_compared(2)
        assert evidence.candidates[evidence.chosen[0]].position == best
        assert evidence.likeliest_compared(2) == unread == [(0, 0), (0, 1)]


@pytest.mark.parametrize(
    ("question", "both"),
    [
        ("¿Cuál de los dos lavavajillas hace menos ruido?", True),
        ("¿Qué lavavajillas es mejor, el Uno o el Dos?", True),
        ("¿Cuánto ruido hace el lavavajillas?", False),
    ],
)
def test_a_comparison_quotes_what_another_document_says_of_the_same(question: str, both: bool) -> None:
    one = "El lavavajillas es blanco. Ruido: 46 decibelios, consumo: 9 litros."
    two = "Se vende en gris. Ruido: 42 decibelios, consumo: 8 litros. Gracias por su compra. Guarde la factura."
    passages = [[0, 26, 40.0, -6.0], [27, len(one), 60.0, 9.0]]
    documents = [
        {"text": one, "language": "es", "source": "uno", "passages": passages},
        {"text": two, "language": "es", "source": "dos", "passages": []},
    ]
    evidence = Evidence(question, "es", documents)
    quoted = [documents[span.document]["text"][span.start : span.end] for span in evidence.passages()]
    assert any("46 decibelios" in text for text in quoted)
    assert any("42 decibelios" in text for text in quoted) is both


def test_the_likeliest_compared_passages_are_read() -> None:
    text = "El gato duerme. La presión es de 1,5 bar. El perro ladra."
    passages = [[0, 15, 50.0], [16, 41, 50.0], [42, 57, 50.0], [3, 9, 50.0]]
    evidence = Evidence("¿Qué presión tiene?", "es", [{"text": text, "language": "es", "passages": passages}])
    assert evidence.likeliest_compared(1) == [(0, 1)]
    # One that begins with no sentence comes last.
    assert evidence.likeliest_compared(9)[-1] == (0, 3)
    assert Evidence("¿Qué presión tiene?", "es", [{"text": text}]).likeliest_compared(9) == []


def test_coverage_is_the_share_of_the_words_that_are_there() -> None:
    def coverage(question: str, language: Language = "es") -> float:
        return Evidence(question, language, [{"text": BOILER, "language": "es"}]).coverage

    assert coverage("¿Qué presión tiene la caldera en frío?") > 0.6
    assert coverage("¿Quién pintó la Gioconda?") < 0.2
    assert 0.5 * coverage("¿Qué presión tiene la caldera?") < coverage("Que pressão tem a caldeira?", "pt")
    assert Evidence("¿Qué presión?", "es", []).coverage == 0.0


def test_every_feature_has_a_weight_and_every_weight_a_feature() -> None:
    evidence = Evidence("¿Qué presión tiene?", "es", [{"text": BOILER, "passages": [[0, 35, 50.0]]}])
    candidate = evidence.candidates[0]
    table = load_table("evidence")
    assert table["choice_words"].keys() == candidate.features.keys()
    assert table["choice_vectors"].keys() == (candidate.features | evidence.similarities(candidate)).keys()
    assert table["confidence_vectors"].keys() == evidence.confidence_features().keys()
    read = Evidence("¿Qué presión tiene?", "es", [{"text": BOILER, "passages": [[0, 35, 50.0, 1.0]]}])
    assert table["choice_reader"].keys() == read.choice_rows[0].keys()
    assert table["confidence_reader"].keys() == read.confidence_features().keys()
    words_only = Evidence("¿Qué presión tiene?", "es", [{"text": BOILER}])
    assert table["confidence_words"].keys() == words_only.confidence_features().keys()
