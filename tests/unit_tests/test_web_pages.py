"""What of a page saved from the web is its content, and what is not searched."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lince_rag.documents.readers.html import read_html

ARTICLE = (
    "<h1>Biblioteca de verano</h1><p>La biblioteca de la plaza abre de lunes a jueves, y el viernes cierra."
    "</p><p>Cada socio puede llevarse tres libros durante quince días, y renovarlos una vez por teléfono.</p>"
)


def searched(page: str) -> list[str]:
    return [block.text for block in read_html(page.encode()).blocks if block.kind != "contents"]


def added(part: str) -> list[str]:
    """What of a part of a page, before and after an article, is searched."""
    article = searched(ARTICLE)
    before, after = searched(part + ARTICLE), searched(f"<body><div>{ARTICLE}</div>{part}</body>")
    assert [text for text in before if text in article] == article
    assert [text for text in after if text in article] == article
    assert [text for text in before if text not in article] == [text for text in after if text not in article]
    return [text for text in before if text not in article]


COOKIES = "<p>Usamos cookies para mejorar la web.</p><button>Aceptar</button> <button>Solo las necesarias</button>"
LINKS = '<a href="https://b.example/a">Fondo local</a> <a href="https://b.example/b">Clubes de lectura</a>'


@pytest.mark.parametrize(
    "part",
    [
        f'<div id="cookie-notice">{COOKIES}</div>',
        f'<div class="site-cookies-bar">{COOKIES}</div>',
        f'<section role="dialog" aria-label="Privacidad">{COOKIES}</section>',
        f'<div aria-modal="true">{COOKIES}</div>',
        f"<dialog open>{COOKIES}</dialog>",
        '<div id="onetrust-consent-sdk"><h2>Centro de preferencias</h2><p>Siempre activas</p></div>',
        '<div id="CybotCookiebotDialog"><h2>Esta página</h2><p>Necesarias Estadística</p></div>',
        "<div><button>Imprimir</button> <button>Descargar</button></div>",
        '<a class="skip-link" href="#contenido">Saltar al contenido principal</a>',
        '<p><a href="#main">Ir para o conteúdo</a></p>',
        f'<ul class="menu-principal">{LINKS}</ul>',
        f'<div role="menubar">{LINKS}</div>',
        f"<header><div>{LINKS}</div></header>",
        f"<footer><p>{LINKS}</p></footer>",
        f'<div role="banner"><p>{LINKS}</p></div>',
        f'<div class="share-buttons"><span>Compartir en</span> {LINKS}</div>',
        f"<aside><h3>Lo más leído</h3>{LINKS}</aside>",
        f'<div class="noticias-relacionadas"><h3>Te interesa</h3>{LINKS}</div>',
        "<p hidden>Enlace copiado</p>",
        '<div aria-hidden="true">Cargando</div>',
        '<div style="color: red; display:none">Formulario enviado</div>',
        "<select><option>Castellano</option><option>Galego</option></select>",
    ],
)
def test_what_is_not_content_is_not_searched(part: str) -> None:
    assert added(part) == []


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        # What names or places resemble, but say something.
        ('<div class="menu-del-dia"><p>Lentejas y merluza, 11 euros</p></div>', "Lentejas y merluza, 11 euros"),
        (
            '<div id="seguridad-social"><p>Se cotiza desde el primer día.</p></div>',
            "Se cotiza desde el primer día.",
        ),
        (
            '<div id="consentimiento"><p>El paciente firma antes de entrar.</p></div>',
            "El paciente firma antes de entrar.",
        ),
        (
            '<div class="cookies"><p>Galletas: <a href="/h">harina</a> y azúcar.</p></div>',
            "Galletas: harina y azúcar.",
        ),
        ("<aside><p>Nota: el ascensor no llega al sótano.</p></aside>", "Nota: el ascensor no llega al sótano."),
        ('<div class="widget"><p>Horario: de 9 a 14 h</p></div>', "Horario: de 9 a 14 h"),
        ("<footer><p>Calle del Pozo, 4. Tel. 900 000 000</p></footer>", "Calle del Pozo, 4. Tel. 900 000 000"),
        ('<footer><p><a href="tel:900000000">900 000 000</a></p></footer>', "900 000 000"),
        ('<footer><p><a href="mailto:a@b.example">Escríbanos</a></p></footer>', "Escríbanos"),
        ('<footer><p><a href="https://mapa.example">Plaza Nueva, 2</a></p></footer>', "Plaza Nueva, 2"),
        ("<p>Pulse <button>Guardar</button> para acabar.</p>", "Pulse Guardar para acabar."),
        ('<button class="accordion">Cómo me hago socio</button>', "Cómo me hago socio"),
        ("<h2><button>Cuotas del año</button></h2>", "Cuotas del año"),
        ('<h2 class="menu">Menú Archivo</h2>', "Menú Archivo"),
        ('<div role="tabpanel" hidden>Los sábados hay cuentos.</div>', "Los sábados hay cuentos."),
        (
            f'<div aria-hidden="true">{"Los sábados hay cuentos. " * 12}</div>',
            ("Los sábados hay cuentos. " * 12).strip(),
        ),
        ('<p>Cuesta 3 €<span aria-hidden="true"> →</span>.</p>', "Cuesta 3 €."),
        ('<p><a href="https://b.example/carnet">Pedir el carné</a></p>', "Pedir el carné"),
        ("<table><tr><td>Sala</td><td><select><option>A</option></select>12</td></tr></table>", "Sala | 12"),
    ],
)
def test_what_only_resembles_it_is(part: str, expected: str) -> None:
    assert added(part) == [expected]


@pytest.mark.parametrize(
    "path", ["Inicio > Servicios > Salas", "Home » Avisos", "Está en: Portada / Agenda", "Início › Escolas"]
)
def test_the_path_above_the_title_is_not_searched(path: str) -> None:
    assert searched(f"<p>{path}</p>{ARTICLE}") == searched(ARTICLE)
    assert searched(f"{ARTICLE}<p>{path}</p>")[-1] == path


@pytest.mark.parametrize(
    "page",
    [
        f'<div class="cookie-page">{ARTICLE}<p>Las cookies <a href="/x">propias</a>.</p></div>',
        '<body class="cookies-on"><div id="cookie-wrap"><p>Se usan cookies para medir las visitas, un año.</p>'
        '<p><a href="/medir">Cómo se miden</a></p></div></body>',
        '<div role="dialog"><p>El taller de encuadernación dura seis tardes.</p></div>',
        '<div style="display: none"><p>El taller de encuadernación dura seis tardes.</p></div>',
    ],
)
def test_a_page_is_never_left_empty(page: str) -> None:
    assert len("".join(searched(page))) > 40


@pytest.mark.parametrize("names", ['class="menu"', 'id="cookie"', 'aria-hidden="true"', 'role="dialog"'])
def test_time_grows_with_the_size_of_nested_parts_only(names: str) -> None:
    page = f"<div {names}>" * 200 + "<a href='/x'>cookie</a>" * 2_000 + "</div>" * 200
    start = time.process_time()
    read_html((page * 4).encode())
    assert time.process_time() - start < 5


@given(
    st.lists(
        st.sampled_from(
            ["<div class=menu>", "<aside>", "<dialog>", "</div>", "</dialog>", "</aside>", "<td>", "<table>",
             "<h1>", "</table>", "<select>", "<option>", "<button>", "</button>", "<p hidden>", "<a>", "a "]
        ),
        max_size=40,
    )
)  # fmt: skip
def test_parts_in_any_order(tags: list[str]) -> None:
    blocks = read_html("".join(["<p>inicio</p>", *tags]).encode()).blocks
    assert all(block.kind in {"", "contents"} for block in blocks)
    assert blocks[0].text.startswith("inicio")
