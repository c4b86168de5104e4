"""Small talk, keywords, summaries and questions for yes or no: what is done instead of searching for a fact."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document

from lince_rag import ChatLince, Index, create_rag_chain
from lince_rag.chain.answer import find_short_answer
from lince_rag.errors import ConfigurationError
from lince_rag.text.language import LANGUAGES, Language, fold, wording
from lince_rag.text.passages import SUMMARY_CHARACTERS, summarize
from lince_rag.text.questions import (
    asks_for,
    counted,
    is_keywords,
    is_small_talk,
    kind_of,
    last_question,
    spell_out,
    summary_words,
)
from tests.unit_tests.chain_samples import Fixed, chain, chunks


@pytest.mark.parametrize(
    "message",
    [
        "hola",
        "¡Buenos días!",
        "muchas gracias, muy útil",
        "ok perfecto",
        "bom dia",
        "valeu, era isso",
        "Thanks a lot!",
    ],
)
def test_small_talk_is_not_searched_for(message: str) -> None:
    answer = chain().invoke(message)
    assert answer.text in {wording("small_talk", language) for language in LANGUAGES}
    assert (answer.standalone, answer.documents, answer.abstained) == ("", [], False)


@pytest.mark.parametrize(
    "message",
    ["hola, ¿cuánto es la fianza?", "¿Y la fianza?", "no", "¿qué?", "todo", "gracias a la fianza", "…", ""],
)
def test_everything_else_is(message: str) -> None:
    assert not is_small_talk(message)


@given(st.text(max_size=60))
def test_any_message_is_small_talk_or_not(message: str) -> None:
    assert is_small_talk(message) in (True, False)


@pytest.mark.parametrize(
    ("question", "language", "keywords"),
    [
        ("fianza contrato piso", "es", True),
        ("medidas arca de noé codos", "es", True),
        ("distância terra sol km", "pt", True),
        ("¿fianza del contrato?", "es", False),
        ("cuánto es la fianza", "es", False),
        ("quiero borrar un fichero", "es", False),
        ("fianza", "es", False),
        ("la fianza del piso", "es", False),
    ],
)
def test_keywords(question: str, language: Language, keywords: bool) -> None:
    assert is_keywords(question, language) is keywords


@pytest.mark.parametrize(
    ("question", "language", "names"),
    [
        ("Resume este documento", "es", []),
        ("¿De qué trata el contrato de alquiler?", "es", ["alquiler"]),
        ("Hazme un resumen del manual de la caldera", "es", ["caldera"]),
        ("Resuma o relatório de 2024", "pt", ["2024"]),
        ("Summarize the minutes of May", "en", ["minutes", "may"]),
    ],
)
def test_a_summary_says_of_which_document(question: str, language: Language, names: list[str]) -> None:
    assert asks_for("summaries", question, language)
    assert summary_words(question, language) == names


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("¿Qué dice el contrato de la fianza?", "es"),
        ("Qual é a vantagem de guardar textos?", "pt"),
        ("What is the deposit in the contract?", "en"),
    ],
)
def test_a_question_about_a_document_is_no_summary(question: str, language: Language) -> None:
    assert not asks_for("summaries", question, language)


MANUAL = (
    "La caldera calienta el agua de la casa. Se compró en Burgos.\n\nLa presión de la caldera se mira cada mes. "
    "Llueve.\n\nEl técnico revisa la caldera una vez al año."
)


def test_a_summary_is_of_central_sentences_in_their_order() -> None:
    documents = [{"text": part, "language": "es"} for part in MANUAL.split("\n\n")]
    spans = summarize(documents)
    said = [documents[number]["text"][start:end] for number, start, end in spans]
    assert spans == sorted(spans)
    assert "La caldera calienta el agua de la casa." in said
    assert "El técnico revisa la caldera una vez al año." in said
    long = [
        {"text": f"La caldera número {number} calienta el agua de la casa.", "language": "es"}
        for number in range(99)
    ]
    assert sum(end - start for _, start, end in summarize(long)) <= SUMMARY_CHARACTERS


@given(st.lists(st.text(max_size=80), max_size=4))
def test_any_texts_can_be_summarized(texts: list[str]) -> None:
    for number, start, end in summarize([{"text": text, "language": "es"} for text in texts]):
        assert texts[number][start:end].strip()


def test_a_summary_is_of_the_one_document_that_is_meant(tmp_path: Any) -> None:
    files = {"caldera.txt": MANUAL, "acta.txt": "La junta se reunió el lunes. Los vecinos eligieron presidente."}
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        index.ingest([Document(text, metadata={"source": name}) for name, text in files.items()])
        asking = create_rag_chain(ChatLince(), index.as_retriever())
        answer = asking.invoke("Resume el manual de la caldera")
        assert "El técnico revisa la caldera" in answer.text
        assert {citation.source for citation in answer.citations} == {"caldera.txt"}
        assert answer.grounded
        # Which one?
        assert asking.invoke("Resume este documento").abstained
        assert asking.invoke("Resume el contrato de alquiler").abstained
        # A summary of something that is said in a document is a question like others.
        other = asking.invoke("Resume cada cuánto se mira la presión de la caldera en el manual")
        assert "La presión de la caldera se mira cada mes." in other.text
        only = create_rag_chain(ChatLince(), index.as_retriever(filter={"source": "acta.txt"}))
        assert "La junta se reunió el lunes." in only.invoke("Resume este documento").text


def test_a_summary_with_a_retriever_that_knows_no_documents() -> None:
    retriever = Fixed(documents=chunks("agenda"))
    assert "Amalia Ortuño" in create_rag_chain(ChatLince(), retriever).invoke("Resume el acta").text


@pytest.mark.parametrize(
    ("question", "answer", "language", "short"),
    [
        ("¿Se puede fumar?", "No, está prohibido.", "es", "No"),
        ("Posso levar o cão?", "Sim, com trela.", "pt", "Sim"),
        ("Can I smoke?", "Yes. On the balcony.", "en", "Yes"),
        ("¿Se puede fumar?", "Está prohibido fumar.", "es", None),
        ("¿Se puede fumar?", "No se puede fumar.", "es", None),
        ("¿Qué es un no?", "No, una palabra.", "es", None),
    ],
)
def test_yes_and_no_only_where_the_text_says_it(
    question: str, answer: str, language: Language, short: str | None
) -> None:
    assert find_short_answer(question, answer, language) == short


def test_an_index_names_its_documents_by_the_end_of_their_path(tmp_path: Any) -> None:
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        texts = {"/a/2023/acta.txt": "Uno.", "/a/2024/acta.txt": "Dos.", "/a/2024/carta.txt": "Tres."}
        index.ingest([Document(text, metadata={"source": name}) for name, text in texts.items()])
        assert index.find_source("carta.txt") == "/a/2024/carta.txt"
        assert index.find_source("2023/acta.txt") == "/a/2023/acta.txt"
        with pytest.raises(ConfigurationError, match=r"may be any of /a/2023/acta\.txt, /a/2024/acta\.txt"):
            index.find_source("acta.txt")
        with pytest.raises(ConfigurationError, match=r"no document 'ata\.txt'"):
            index.find_source("ata.txt")


@pytest.mark.parametrize(
    ("question", "language", "expected"),
    [
        ("¿Xq vence? ke dia", "es", "¿por qué vence? que dia"),
        ("oq é DRM, vc sabe?", "pt", "o que é DRM, você sabe?"),
        ("Q3 y pqr", "es", "Q3 y pqr"),
    ],
)
def test_shorthand_is_spelled_out(question: str, language: Language, expected: str) -> None:
    assert spell_out(question, language) == expected


def test_the_answer_says_what_was_searched_for(tmp_path: Any) -> None:
    text = "El tiempo sidéreo es el tiempo de las estrellas. La velocidad de grabación se elige en Preferencias."
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        index.ingest([Document(text, metadata={"source": "astronomía"})])
        rag = create_rag_chain(ChatLince(), index.as_retriever())
        answer = rag.invoke("ke es el tienpo sidereo")
        assert answer.standalone == "que es el tiempo sidereo"
        assert answer.text.startswith("El tiempo sidéreo es el tiempo de las estrellas.")
        assert rag.invoke("¿Qué es el tiempo sidéreo?").standalone == "¿Qué es el tiempo sidéreo?"


@pytest.mark.parametrize("question", ["¿Quién fue el notario?", "¿Cuándo viene el pintor?"])
def test_another_word_is_no_misspelled_one(tmp_path: Any, question: str) -> None:
    text = "La contraseña está debajo del router. Los bienes del trastero tiene que sacarlos el fontanero."
    with Index.open(tmp_path, embeddings="embedded") as index:
        index.ingest([Document(text, metadata={"source": "notas.md"})])
        answer = create_rag_chain(ChatLince(), index.as_retriever()).invoke(question)
    assert answer.standalone == question


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("¿Cuánto cobra la niñera por hora?", "es"),
        ("cuanto nos costó el barco", "es"),
        ("¿Por cuánto nos dejaría el piso?", "es"),
        ("¿Qué multa me cae si aparco ahí?", "es"),
        ("¿Cuánto me pagan de sueldo?", "es"),
        ("quanto é que o clube cobra por uma festa?", "pt"),
        ("Qual é a caução do apartamento?", "pt"),
        ("quanto sai a segunda via", "pt"),
        ("How much will they charge me for a new key?", "en"),
    ],
)
def test_questions_for_money(question: str, language: Language) -> None:
    kind = kind_of(question, language)
    assert kind is not None
    assert kind.name == "amount"
    assert kind.has_evidence("La copia vale 28 euros.", question)
    assert not kind.has_evidence("Se entregan 3 copias en 2 días.", question)


@pytest.mark.parametrize("question", ["¿Cuánto dura el permiso?", "¿Cuánto mide la mesa?", "¿Cuántas copias hay?"])
def test_questions_for_other_quantities(question: str) -> None:
    kind = kind_of(question, "es")
    assert kind is None or kind.name != "amount"


@pytest.mark.parametrize(
    ("question", "language", "found", "missing"),
    [
        ("¿Cuántos litros gasta?", "es", "Gasta 9,8 l en cada lavado.", "Dura 2 horas y 10 minutos."),
        ("¿Cuántos litros gasta?", "es", "Quince litros por ciclo.", "Pida 2 piezas; los litros se miden aparte."),
        ("cuantos socios hay", "es", "Socios activos: 120", "La cuota es de 120 euros."),
        ("¿Cuántos metros cuadrados tiene?", "es", "De 92 m² útiles.", "Está a 3 calles."),
        ("quantos decibéis faz?", "pt", "Nível de ruído: 44 dB(A)", "Classe 44"),
        ("quantos dias de férias tenho?", "pt", "São vinte e dois dias úteis.", "São 2 turnos."),
        ("quantas vezes por semana?", "pt", "Duas ou três vezes.", "às 14h"),
        ("How many steps are there?", "en", "It has five wide steps.", "It was built in 1905."),
    ],
)
def test_what_is_counted_stands_by_its_number(question: str, language: Language, found: str, missing: str) -> None:
    pattern = counted(question, language)
    assert pattern is not None
    assert pattern.search(fold(found).lower())
    assert not pattern.search(fold(missing).lower())


@pytest.mark.parametrize(
    ("question", "language"), [("¿Cuántos hay?", "es"), ("quanto custa?", "pt"), ("who?", "en")]
)
def test_nothing_is_counted(question: str, language: Language) -> None:
    assert counted(question, language) is None


@given(st.text(max_size=80), st.sampled_from(LANGUAGES))
def test_any_question_counts_something_or_not(question: str, language: Language) -> None:
    pattern = counted(f"cuántos quantos how many {question}", language)
    assert pattern is None or pattern.search("") is None


def test_a_follow_up_asks_what_its_last_question_asks() -> None:
    question = "¿A qué hora sale el barco? ¿Y cuánto cuesta?"
    assert last_question(question, "es") == "¿Y cuánto cuesta?"
    assert last_question("precio del barco", "es") == "precio del barco"
