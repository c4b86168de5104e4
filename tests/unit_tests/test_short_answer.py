import pytest
from hypothesis import given
from hypothesis import strategies as st

from lince_rag.chain.answer import find_short_answer
from lince_rag.text.language import LANGUAGES, Language

TERM = "El contrato comienza el 1 de julio de 2023 y termina el 30 de junio de 2028."


@pytest.mark.parametrize(
    ("question", "answer", "language", "short"),
    [
        ("¿Cuándo empezó el contrato?", "Empezó el 1 de octubre de 2024 en Burgos.", "es", "1 de octubre de 2024"),
        ("¿En qué año se fundó?", "La fundaron tres socios en 1987, en Vigo.", "es", "1987"),
        ("Quando foi a reunião?", "Foi na terça-feira, 12 de maio de 26.", "pt", "terça-feira, 12 de maio"),
        ("¿En qué siglo se construyó?", "Se construyó en el siglo XVI.", "es", "siglo XVI"),
        ("¿Cuánto es la fianza?", "La fianza, de 1.630 euros, se deposita en la Cámara.", "es", "1.630 euros"),
        ("¿Cuántos euros son?", "La fianza es de 1.630 euros.", "es", "1.630"),
        ("Quanto custa o elevador?", "O elevador custa R$ 46.900,50 com impostos.", "pt", "R$ 46.900,50"),
        ("¿Cuánto tiempo se hornea?", "Con 80 g de mantequilla, hornéalo 55 minutos.", "es", "55 minutos"),
        ("¿Qué presión debe tener?", "Debe estar entre 1,2 y 1,5 bar en frío.", "es", "entre 1,2 y 1,5 bar"),
        ("¿Qué porcentaje aprobó?", "Aprobó el 40 % de los 120 alumnos.", "es", "40 %"),
        ("¿Quién preside el comité?", "Lo preside Amalia Ortuño de la Vega.", "es", "Amalia Ortuño de la Vega"),
        ("Quem preside o comité?", "Desde maio, o comité é presidido por Rui Bastos.", "pt", "Rui Bastos"),
        ("¿Dónde está la sede?", "La sede está en Valladolid, no en Burgos.", "es", "Valladolid"),
        ("¿Cuánto vale el café?", "Artículo: Té | Precio: 4,10\nArtículo: Café | Precio: 3,20", "es", "3,20"),
        ("¿Cuándo es la próxima ITV?", "Próxima ITV: 2025-09-14", "es", "2025-09-14"),
        ("¿Cuánto es el alquiler?", "Fecha: 03/04/2024 | Concepto: Alquiler | Importe: 740", "es", "740"),
        ("¿Cuándo vence el contrato?", f"{TERM} Se firma el 3 de mayo de 2023.", "es", "30 de junio de 2028"),
        ("¿Cuándo empieza el contrato?", TERM, "es", "1 de julio de 2023"),
        ("Quando termina?", "Vigora de 1º de março a 28 de fevereiro de 2026.", "pt", "28 de fevereiro de 2026"),
        ("¿Hasta cuándo vale?", "Desde el 01/09/2023 hasta las 0 horas del 01/09/2024.", "es", "01/09/2024"),
        ("a que horas voltam", "É a 23 de maio. Parte às 8h15 e volta às 18h30; voltam juntos.", "pt", "18h30"),
        ("¿A qué hora abren?", "El lunes 3 de mayo abren a las nueve y media.", "es", "nueve y media"),
        ("Where is the office?", "The office is in Porto Alegre.", "en", "Porto Alegre"),
    ],
)  # fmt: skip
def test_the_span_that_answers(question: str, answer: str, language: Language, short: str) -> None:
    assert find_short_answer(question, answer, language) == short


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("¿Qué es una caldera?", "Una caldera es un recipiente."),
        ("¿Cuánto cuesta el plato de ducha?", "Artículo: Plato de ducha | Uds: 2\nEl alquiler es de 740 euros."),
        ("¿Quién decide?", "Además, nadie decide nada."),
        ("¿Cuándo vence?", "Vence pronto."),
        ("¿Quién es Amalia Ortuño?", "Es ella, Amalia Ortuño."),
        ("¿Qué se hace cuando llueve en 1999?", "Se cierra en 2001."),
    ],
)
def test_no_span_is_better_than_a_wrong_one(question: str, answer: str) -> None:
    assert find_short_answer(question, answer, "es") is None


pieces = st.sampled_from(
    ["¿Cuándo", "Quem", "How many", "en 1999", "el 3 de mayo", "Ana", "da Silva", "10.000", "km", "?", "."]
)


@given(st.lists(pieces, max_size=8), st.lists(pieces, max_size=12), st.sampled_from(LANGUAGES))
def test_it_is_always_a_span_of_the_answer(question: list[str], answer: list[str], language: Language) -> None:
    text = " ".join(answer)
    short = find_short_answer(" ".join(question), text, language)
    assert short is None or (short and short in text)
