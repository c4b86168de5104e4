import contextlib
import io
import lzma
import os
import random
import re
import time
import zipfile
from pathlib import Path

import docx
import fpdf
import pytest
from docx.oxml import parse_xml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from lince_rag.cli.localisation import translate_reason
from lince_rag.documents import files as documents
from lince_rag.documents.files import FORMATS, SAVED_AS, FileLoader, hash_file
from lince_rag.documents.readers import packages, pdf
from lince_rag.documents.readers.blocks import Unreadable
from lince_rag.documents.readers.html import _MANY_ATTRIBUTES, read_html
from lince_rag.documents.readers.text import decode
from lince_rag.documents.selection import FileSelection, find_files
from lince_rag.errors import DocumentError
from tests.unit_tests.file_samples import (
    CSV,
    HTML,
    JSON,
    MARKDOWN,
    MEMBERS,
    NOTEBOOK,
    RTF,
    SENTENCE,
    TABLE,
    W,
    docx_bytes,
    docx_with_notes,
    docx_with_text_box,
    eml_bytes,
    epub_bytes,
    hyphenated_pdf,
    new_pdf,
    odp_bytes,
    ods_bytes,
    odt_bytes,
    pdf_bytes,
    pptx_bytes,
    saved,
    scanned_page_pdf,
    tar_bytes,
    two_column_pdf,
    xlsx_bytes,
    zip_bytes,
)
from tests.unit_tests.reading import check, load, reason


def section_texts(document: Document) -> dict[str, str]:
    return {
        section["heading"]: document.page_content[section["start"] : section["end"]]
        for section in document.metadata["sections"]
    }


# --- Plain text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "latin-1"])
def test_text_encodings(tmp_path: Path, encoding: str) -> None:
    text = "«¿Qué pasó mañana?», preguntó el cigüeño.\r\n\r\nA avó não põe açúcar."
    document = load(tmp_path, "cuento.txt", text.encode(encoding))
    assert document.page_content == text.replace("\r\n", "\n")
    assert document.metadata["title"] == "cuento"
    assert document.metadata["media_type"] == "text/plain"
    assert document.metadata["language"] == "es"
    assert document.metadata["sections"] == [
        {"start": 0, "end": len(document.page_content), "page": None, "heading": ""}
    ]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
@pytest.mark.parametrize(
    "text",
    [
        "Fecha;Concepto;Cargo;Abono;Saldo\n02-09-2025;02-09-2025;;1.950,00;2.310,44\n"
        "05-09-2025;AGUA Y BASURAS Nº 88;41,20;;2.269,24\n09-09-2025;PENSIÓN;;;-\n",
        "1;2;3;4;5\n6;7;8;9;ñ\n",
        "10,5;á\n",
        "--- 1 --- ¡=====! ---\n",
    ],
)
def test_a_table_of_numbers_with_few_letters_is_text(
    tmp_path: Path, text: str, line_end: str, encoding: str
) -> None:
    path = tmp_path / "tabla.csv"
    path.write_bytes(text.replace("\n", line_end).encode(encoding))
    assert decode(path.read_bytes()).replace("\r", "") == text
    assert load(tmp_path, "tabla.csv", path.read_bytes()).page_content


@pytest.mark.parametrize("seed", range(20))
def test_bytes_of_a_program_are_no_text(seed: int) -> None:
    data = random.Random(seed).randbytes(400)
    for binary in (data, data.replace(b"\0", b""), lzma.compress(data).replace(b"\0", b"")):
        with pytest.raises(Unreadable):
            decode(binary)


def test_text_is_normalised(tmp_path: Path) -> None:
    raw = "cafe\u0301 y infor\u00admación\u200b:\u00a01.º y 20 m²   \n\n\n\n  verso\x0botro\x01"
    assert load(tmp_path, "a.txt", raw).page_content == "café y información: 1.º y 20 m²\n\n  verso\notro"


def test_one_bad_byte_in_utf8_is_damage_and_not_another_encoding(tmp_path: Path) -> None:
    raw = ("información y educación " * 20).encode() + b"\xf3n"
    assert load(tmp_path, "a.txt", raw).page_content.startswith("información y educación")


def test_metadata_hash_and_given_source(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Hola.")
    (document,) = FileLoader(path, source="carpeta/a.txt").load()
    assert document.metadata["source"] == "carpeta/a.txt"
    assert document.metadata["content_hash"] == hash_file(path)
    assert len(hash_file(path)) == 32


# --- Markdown


def test_markdown_sections(tmp_path: Path) -> None:
    document = load(tmp_path, "riego.md", MARKDOWN)
    assert document.metadata["title"] == "Guía de riego"
    assert document.metadata["media_type"] == "text/markdown"
    text = MARKDOWN.partition("---\nIn")[1][4:] + MARKDOWN.partition("---\nIn")[2].strip()
    assert document.page_content == text.replace("**", "")
    texts = section_texts(document)
    assert list(texts) == [
        "",
        "Capítulo uno",
        "Capítulo uno › Turnos",
        "Capítulo uno › Precios",
        "Capítulo dos",
    ]
    assert "# esto no es un título" in texts["Capítulo uno"]
    assert texts["Capítulo uno › Turnos"].startswith("Turnos\n------\n")


def test_markdown_marks_of_bold_and_code_are_left_out(tmp_path: Path) -> None:
    """An answer quotes the words, without marks inside them; what is no mark stays."""
    text = "Pulse **Mayús** y `Supr`.\n\nEs **una\nlínea**, 2 ** 3 y `a\nb`.\n\n```\nx = `**y**`\n```\n\n**sin fin"
    document = load(tmp_path, "teclas.md", text)
    expected = "Pulse Mayús y Supr.\n\nEs una\nlínea, 2 ** 3 y `a\nb`.\n\n```\nx = `**y**`\n```\n\n**sin fin"
    assert document.page_content == expected


def test_markdown_title_is_the_first_heading_of_level_one(tmp_path: Path) -> None:
    assert load(tmp_path, "a.md", "## Antes\n\nx\n\n# El [título](http://x) `final`\n\ny").metadata["title"] == (
        "El título final"
    )
    assert load(tmp_path, "b.markdown", "## Antes\n\nx").metadata["title"] == "b"


def test_a_heading_alone_shares_the_section_of_the_deeper_one(tmp_path: Path) -> None:
    document = load(tmp_path, "a.md", "# Uno\n\n## Dos\n\ntexto\n\n## Tres\n\nmás")
    assert section_texts(document) == {
        "Uno › Dos": "# Uno\n\n## Dos\n\ntexto\n\n",
        "Uno › Tres": "## Tres\n\nmás",
    }


@pytest.mark.parametrize(
    "text",
    [
        "- punto\n---\nx",
        "> cita\n---\nx",
        "| a | b |\n---\nx",
        "una línea\notra línea\n---\nx",
        "---\nx: y",
        "#sin",
    ],
)
def test_what_is_not_a_markdown_heading(tmp_path: Path, text: str) -> None:
    assert [section["heading"] for section in load(tmp_path, "a.md", text).metadata["sections"]] == [""]


@pytest.mark.parametrize(
    "text",
    [
        "# " + "[" * 100_000 + "x",
        "a" + " " * 100_000 + "a",
        "#" + " " * 100_000 + "a",
        "# a" + " #" * 50_000,
        "---\n" + "-a: b\n" * 50_000,
        "---\n" * 50_000 + "a",
        "# a\n" * 50_000,
        "`" * 100_000 + "a",
        "_" * 100_000 + "a",
    ],
)
@pytest.mark.parametrize("name", ["a.md", "a.txt", "a.html"])
def test_time_grows_with_the_size_of_a_strange_text_only(tmp_path: Path, name: str, text: str) -> None:
    start = time.perf_counter()
    load(tmp_path, name, text)
    # Quadratic time takes minutes at these sizes; the machine that runs this may be busy.
    assert time.perf_counter() - start < 10


# --- HTML


def test_html(tmp_path: Path) -> None:
    document = load(tmp_path, "guia.html", HTML)
    assert document.metadata["title"] == "Guia do álcool"
    assert document.metadata["language"] == "pt"
    assert document.page_content == (
        "Capítulo 1\n\nA informação está na página 2. Veja já.\n\nPreços\n\n- um\n- dois\n\n"
        "Produto | Preço\nPão | 1,20 €\n\nCapítulo 2\n\nFim\nmesmo\n\n  x = 1"
    )
    assert list(section_texts(document)) == ["Capítulo 1", "Capítulo 1 › Preços", "Capítulo 2"]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (
            "<span>Editar</span><span>Preferencias</span><span>Herramientas</span>",
            "Editar Preferencias Herramientas",
        ),
        ("Pulse <b>Command</b><kbd>Ctrl</kbd>+<kbd>Enter</kbd>", "Pulse Command Ctrl+Enter"),
        ("<kbd>Ctrl</kbd><kbd>q</kbd>", "Ctrl q"),
        ("la tecla<code>Backspace</code>", "la tecla Backspace"),
        ("<b>W</b>ord y <b>c</b>asa<i>s</i>, PDF<i>s</i>", "Word y casas, PDFs"),
        ("H<sub>2</sub>O, L<sup>A</sup>T<sub>E</sub>X, un<sup>Nota</sup>", "H2O, LATEX, unNota"),
        ("<code>get<span>Name</span><span>Of</span></code>", "getNameOf"),
        ("<i>i</i>Phone", "iPhone"),
        ("fin<br>Otra<img src=a>", "fin\nOtra"),
    ],
)
def test_html_elements_inside_a_word_and_beside_one(tmp_path: Path, page: str, expected: str) -> None:
    assert load(tmp_path, "a.html", f"<html><p>{page}").page_content == expected


def contents(document: Document) -> list[str]:
    text = document.page_content
    return [text[item["start"] : item["end"]] for item in document.metadata["kinds"] if item["kind"] == "contents"]


def test_html_navigation_is_marked(tmp_path: Path) -> None:
    def items(site: str) -> str:
        return "".join(f"<li><a href='{site}{name}.html'>Capítulo {name}</a><ul></ul></li>" for name in "abc")

    page = (
        "<html><table><tr><td><a href=a>Anterior</a><td><a href=b>Siguiente</a></table>"
        "<h1><a href='#t'>Título</a></h1><p>Texto con un <a href=c>enlace</a> y <a href=d>otro</a>.</p>"
        f"<ul>{items('')}</ul><p>Otros:</p><ul>{items('https://example.org/')}</ul><p><a href=e>Sigue</a></p>"
        "<p>Y más.</p><div class='x navfooter'><h2>Menú</h2><p>Subir un nivel</p></div><p>Fin.</p>"
    )
    document = load(tmp_path, "a.html", page)
    capitulos = ["- Capítulo a", "- Capítulo b", "- Capítulo c"]
    assert contents(document) == ["Anterior | Siguiente", *capitulos, "Menú", "Subir un nivel"]
    assert list(section_texts(document)) == ["", "Título"]


def test_html_declared_charset(tmp_path: Path) -> None:
    page = '<html><meta charset="iso-8859-15"><p>Cuesta 5 € según información</p>'
    assert "5 € según" in load(tmp_path, "a.htm", page.encode("iso-8859-15")).page_content
    page = page.replace("-15", "-1")
    assert "5 € según" in load(tmp_path, "b.htm", page.encode("cp1252")).page_content
    assert "5 € según" in load(tmp_path, "c.htm", page.encode("utf-8")).page_content


def test_html_layout_table_keeps_its_paragraphs(tmp_path: Path) -> None:
    page = "<table><tr><td>menú<td><p>uno<p>dos<p>tres<h2>T</h2><table><tr><td>a<td>b</table>fin</table>"
    assert load(tmp_path, "a.html", page).page_content == "menú\n\nuno\n\ndos\n\ntres\n\nT\n\na | b\nfin"


def test_html_nested_deeper_than_the_parser_reads_is_an_error(tmp_path: Path) -> None:
    assert "nested" in reason(tmp_path, "a.html", "<p>antes</p>" + "<div>" * 50_000 + "dentro")
    assert load(tmp_path, "b.html", "<div>" * 1_000 + "dentro").page_content == "dentro"


# --- PDF


def test_pdf_pages_accents_and_title(tmp_path: Path) -> None:
    pages = ["Introducción y año.", "Segunda página, con 20 m² y 1.º de ESO."]
    document = load(tmp_path, "informe.pdf", pdf_bytes(pages, title="Informe anual"))
    assert document.page_content == "\n\n".join(pages)
    assert document.metadata["title"] == "Informe anual"
    assert document.metadata["media_type"] == "application/pdf"
    assert [section["page"] for section in document.metadata["sections"]] == [1, 2]
    assert document.metadata["sections"][1]["start"] == len(pages[0]) + 2


@pytest.mark.parametrize("title", ["Microsoft Word - acta.doc", "Untitled", "acta_v2.indd", "12", "Documento1"])
def test_titles_that_programs_write_are_not_titles(tmp_path: Path, title: str) -> None:
    assert load(tmp_path, "acta.pdf", pdf_bytes(["Hola."], title=title)).metadata["title"] == "acta"


def test_pdf_lines_become_paragraphs(tmp_path: Path) -> None:
    paragraph = (SENTENCE * 4).strip()
    pdf = new_pdf()
    pdf.add_page()
    pdf.set_font("Helvetica", "B", size=16)
    pdf.multi_cell(w=0, text="Un título grande", new_x="LMARGIN", new_y="NEXT")
    pdf.set_font("Helvetica", size=11)
    for _ in range(2):
        pdf.multi_cell(w=0, text=paragraph, align="L", new_x="LMARGIN", new_y="NEXT")
    pdf.ln(6)
    pdf.multi_cell(w=0, text=paragraph + "\n- uno\n- dos")
    document = load(tmp_path, "a.pdf", bytes(pdf.output()))
    assert document.page_content.split("\n\n") == ["Un título grande", *[paragraph] * 3, "- uno\n- dos"]


def test_pdf_hyphenated_words_are_joined(tmp_path: Path) -> None:
    document = load(tmp_path, "a.pdf", hyphenated_pdf())
    expected = "La información de las administraciones se publicará pronto. " * 12
    assert document.page_content == expected.strip()


def test_pdf_columns_are_read_one_after_the_other(tmp_path: Path) -> None:
    left = "La columna izquierda\nhabla del agua de la\nacequia y termina."
    right = "La columna derecha\ntrata de los precios\ndel pan y termina."
    document = load(tmp_path, "a.pdf", two_column_pdf(left, right))
    expected = [left.replace("\n", " "), right.replace("\n", " ")]
    assert document.page_content.split("\n\n") == expected


def test_pdf_paragraph_and_word_over_a_page_break(tmp_path: Path) -> None:
    document = load(tmp_path, "a.pdf", pdf_bytes(["Se publica la comuni-", "cación oficial de\n\nhoy sin"]))
    assert document.page_content.startswith("Se publica la comunicación oficial")
    second = document.metadata["sections"][1]
    assert second["page"] == 2
    assert document.page_content[second["start"] :].startswith("oficial")
    document = load(tmp_path, "b.pdf", pdf_bytes(["El párrafo sigue", "en la otra página."]))
    assert document.page_content == "El párrafo sigue en la otra página."


def test_pdf_headers_and_footers_stand_at_the_end(tmp_path: Path) -> None:
    pdf = new_pdf()
    pdf.set_auto_page_break(False)
    halves = ["La fianza se devuelve", "al cabo de un mes, y la renta", "vence el día 31 de mayo."]
    for number, half in enumerate(halves, start=1):
        pdf.add_page()
        pdf.text(20, 15, "Contrato de Ana Ruiz")
        pdf.text(20, 60, "Tema 7" if number == 2 else f"Apartado {number * number}.")
        pdf.text(20, 120, half)
        pdf.text(20, 280, f"Página {number} de 3")
    document = load(tmp_path, "a.pdf", bytes(pdf.output()))
    text = document.page_content
    repeated = [text[item["start"] : item["end"]] for item in document.metadata["kinds"]]
    later = ["Contrato de Ana Ruiz", "Página 2 de 3", "Contrato de Ana Ruiz", "Página 3 de 3"]
    assert repeated == ["Página 1 de 3", *later]
    assert text.endswith("\n".join(repeated))
    # The first of each is text: nothing else may name the author. The number of a page never is.
    assert text.count("Contrato de Ana Ruiz") == 3
    assert text.index("Contrato") < text.index("Tema 7") < document.metadata["kinds"][0]["start"]


def test_pdf_rows_at_the_edge_of_pages_are_no_headers(tmp_path: Path) -> None:
    names = ["Ana 12", "Luis 15", "Eva 12", "Juan 31"]
    document = load(
        tmp_path, "a.pdf", pdf_bytes([f"{name}\nTexto {number * 7}" for number, name in enumerate(names)])
    )
    assert document.metadata["kinds"] == []


def test_pdf_characters() -> None:
    assert pdf._restore_characters("o\ufb01cina \ufb02or, 20 m², 1.º, ½") == "oficina flor, 20 m², 1.º, ½"
    assert pdf._restore_characters("informaci´on, pa´ıs, Espa˜na, ling¨u´ıstica") == (
        "información, país, España, lingüística"
    )


def test_pdf_without_text(tmp_path: Path) -> None:
    pdf = new_pdf()
    pdf.add_page()
    pdf.rect(10, 10, 50, 50)
    assert reason(tmp_path, "a.pdf", bytes(pdf.output())) == "no text in it (scanned images? --ocr reads them)"


def test_a_page_of_thousands_of_lines_is_cut_into_paragraphs(tmp_path: Path) -> None:
    # Joining a line copies the paragraph so far: one paragraph of 10,000 lines took 24 s.
    page = fpdf.FPDF(unit="pt", format=(400, 40_000))
    page.set_auto_page_break(False)
    page.add_page()
    page.set_font("Helvetica", size=10)
    for line in range(3_000):
        page.text(20, 20 + 13 * line, f"línea {line} de una página larga que no termina")
    text = load(tmp_path, "a.pdf", bytes(page.output())).page_content
    assert max(map(len, text.split("\n\n"))) < 21_000
    assert [int(word) for word in re.findall(r"línea (\d+)", text)] == list(range(3_000))


def test_the_attributes_of_a_crowded_element_are_left_out() -> None:
    # libxml2 compares each with all others: 40,000 took 2 s.
    attributes = "".join(f' a{number}="1 > 0"' for number in range(40_000))
    page = f"<html><body><p{attributes}>Hola</p><p class='x' title=\"a > b\">mundo</p></body></html>"
    assert "a39999" not in _MANY_ATTRIBUTES.sub(r"<\1>", page)
    assert "title" in _MANY_ATTRIBUTES.sub(r"<\1>", page)
    assert [block.text for block in read_html(page.encode()).blocks] == ["Hola", "mundo"]


def test_pdf_pages_without_text_among_others_are_reported(tmp_path: Path) -> None:
    document = load(tmp_path, "a.pdf", scanned_page_pdf("Hola, año."))
    assert document.page_content == "Hola, año."
    assert document.metadata["pages_without_text"] == [2]
    assert "pages_without_text" not in load(tmp_path, "b.pdf", pdf_bytes(["Hola.", ""])).metadata


# --- Word


def test_docx(tmp_path: Path) -> None:
    document = load(tmp_path, "manual.docx", docx_bytes())
    assert document.metadata["title"] == "Manual de regadío"
    assert document.page_content == (
        "Manual de regadío\n\nCapítulo 1\n\nEl agua llega por la acequia. Se reparte cada mañana.\n\n"
        "Turnos\n\n- lunes\n- miércoles\n\nDía | Hora\nlunes | 8 h\n\nCapítulo 2\n\nLas multas son de 30 €."
    )
    assert list(section_texts(document)) == ["", "Capítulo 1", "Capítulo 1 › Turnos", "Capítulo 2"]
    assert load(tmp_path, "b.docx", docx_bytes("Riego")).metadata["title"] == "Riego"
    # python-docx's own template carries this title.
    assert load(tmp_path, "c.docx", docx_bytes("Word Document")).metadata["title"] == "Capítulo 1"


def test_docx_table_of_contents_is_marked(tmp_path: Path) -> None:
    word = docx.Document()
    word.styles.add_style("toc 1", 1)
    for entry in ("Plazos\t3", "Multas\t9"):
        word.add_paragraph(entry, style="toc 1")
    word.add_paragraph("Texto.")
    document = load(tmp_path, "a.docx", saved(word))
    assert contents(document) == ["Plazos 3", "Multas 9"]
    assert document.page_content == "Plazos 3\nMultas 9\n\nTexto."


def test_docx_content_controls_breaks_and_deleted_text(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_paragraph("Antes")
    document.element.body.insert(
        1,
        parse_xml(
            f"<w:sdt {W}><w:sdtContent><w:p><w:pPr><w:tabs><w:tab w:val='left'/></w:tabs></w:pPr>"
            "<w:r><w:t>infor</w:t><w:softHyphen/><w:t>mación</w:t><w:tab/><w:t>aquí</w:t><w:br/><w:t>x</w:t></w:r>"
            "<w:del><w:r><w:delText>borrado</w:delText></w:r></w:del></w:p></w:sdtContent></w:sdt>"
        ),
    )
    assert load(tmp_path, "a.docx", saved(document)).page_content == "Antes\n\ninformación aquí\nx"


def test_docx_notes_stand_after_the_paragraph_that_refers_to_them(tmp_path: Path) -> None:
    document = load(tmp_path, "a.docx", docx_with_notes())
    assert document.page_content == (
        "Precios\n\nVéase la ley.\n\nEl pan sube mañana.\n\nInformación oficial. Dos.\n\nAl final.\n\nFin."
    )
    assert list(section_texts(document)) == ["Precios"]


def test_docx_text_box_stands_once_before_the_paragraph_it_is_anchored_to(tmp_path: Path) -> None:
    document = load(tmp_path, "a.docx", docx_with_text_box())
    assert section_texts(document) == {
        "": "Oferta: uno.\n\nDos.\n\n",
        "Precios de hoy": "Precios de hoy\n\nEl pan sube.",
    }


def test_docx_headings_of_styles_based_on_headings(tmp_path: Path) -> None:
    document = docx.Document()
    style = document.styles.add_style("Título de la casa", 1)
    style.base_style = document.styles["Heading 2"]
    document.add_paragraph("Precios", style=style)
    document.add_paragraph("Texto.")
    assert list(section_texts(load(tmp_path, "a.docx", saved(document)))) == ["Precios"]


def test_docx_bomb_is_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zip_bytes({"word/document.xml": b"<a>" + b" " * 2**20})
    monkeypatch.setattr(packages, "MAXIMUM_XML_BYTES", 2**19)
    assert reason(tmp_path, "a.docx", bomb) == "too large once unpacked"


# --- What is wrong with a file


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.md", b" \n\t", "the file is empty"),
        ("a.html", b"<html><script>x</script>", "no text in it"),
        ("a.md", b"***\n", "no text in it"),
        ("a.txt", b"abc\0def", "a binary file, not text"),
        ("a.txt", bytes(range(1, 32)) * 9, "a binary file, or text in an unknown encoding"),
        ("a.txt", bytes(range(128, 256)) * 9, "a binary file, or text in an unknown encoding"),
        ("a.txt", b"%PDF-1.7 ...", "named .txt, but its content is PDF"),
        ("a.md", b"\x89PNG\r\n\x1a\n123", "named .md, but its content is PNG image"),
        ("a.txt", b"<!DOCTYPE html><p>x", "named .txt, but its content is HTML"),
        ("a.docx", b"<!doctype html ><p>x", "named .docx, but its content is HTML"),
        ("a.docx", b"{\\rtf1 hola}", "named .docx, but its content is RTF"),
        ("a.docx", b"hola", "named .docx, but its content is not Word"),
        ("a.pdf", b"hola", "named .pdf, but its content is not PDF"),
        ("a.html", b"PK\x03\x04", "named .html, but its content is zip, Office or OpenDocument"),
        ("a.pdf", b"%PDF-1.7\n1 0 obj", "damaged or truncated PDF"),
        ("a.pdf", pdf_bytes(["x"], password="secreto"), "protected with a password (give it with --password)"),
        ("a.pdf", pdf_bytes(["Hola. " * 500])[:700], "damaged or truncated PDF"),
        ("a.docx", docx_bytes()[:5000], "damaged or truncated Word file"),
        ("a.docx", zip_bytes({"xl/workbook.xml": b"<a/>"}), "a zip file, but not a Word document"),
        (
            "a.docx",
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"),
            "protected with a password",
        ),
    ],
)
def test_reasons(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    assert reason(tmp_path, name, content) == expected


def test_old_word_and_unsupported_files(tmp_path: Path) -> None:
    assert "old Word" in reason(tmp_path, "a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    unsupported = reason(tmp_path, "a.exe", b"x")
    assert unsupported.startswith("files named .exe are not supported; PDF, Office")
    assert len(unsupported) < 130
    assert translate_reason(unsupported, "es").startswith("no se leen archivos .exe; sí PDF, Office")
    assert translate_reason(unsupported, "pt").startswith("não se leem arquivos .exe; sim PDF, Office")
    for suffix, other in SAVED_AS.items():
        assert suffix not in FORMATS
        assert other in FORMATS
        assert reason(tmp_path, f"a{suffix}", b"x").endswith(f"save it as {other} or PDF")
    assert "without a suffix" in reason(tmp_path, "README", b"x")


def test_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(documents.MAXIMUM_TEXT_BYTES + 1)
    with pytest.raises(DocumentError, match="too large: 16 MiB, the limit is 16 MiB"):
        FileLoader(path).load()


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "carpeta.txt").mkdir()
    os.mkfifo(tmp_path / "tubo.txt")
    (tmp_path / "roto.txt").symlink_to("nada")
    for name, expected in [
        ("no_hay.txt", "no such file"),
        ("roto.txt", "no such file"),
        ("carpeta.txt", "a folder, not a file"),
        ("tubo.txt", "not a regular file"),
        ("nulo\0.txt", "null"),
        ("x" * 300 + ".txt", "name too long"),
    ]:
        for read in (lambda path: FileLoader(path).load(), hash_file):
            with pytest.raises(DocumentError) as caught:
                read(tmp_path / name)
            assert expected in caught.value.reason.lower()


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("Hola.")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Not chmod: a test run by root may read everything.
    monkeypatch.setattr(documents, "_check_regular", refuse)
    with pytest.raises(DocumentError, match="no permission to read it"):
        FileLoader(tmp_path / "a.txt").load()


def test_a_file_name_in_an_old_encoding(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/informaci\xf3n.txt"
    Path(os.fsdecode(path)).write_text("Hola.")
    (found,) = find_files(tmp_path).files
    (document,) = FileLoader(found).load()
    assert document.metadata["source"].endswith("/información.txt")
    assert document.metadata["title"] == "información"


SAMPLES = {
    "a.txt": SENTENCE.encode(),
    "a.md": MARKDOWN.encode(),
    "a.html": HTML.encode(),
    "a.pdf": pdf_bytes(["Hola, año.", "Adiós."], title="T"),
    "a.docx": docx_bytes("T"),
    "a.epub": epub_bytes(),
    "a.eml": eml_bytes(),
    "a.mbox": b"From a@example.org Tue Mar  5 10:30:00 2024\n" + eml_bytes(),
    "a.zip": zip_bytes(MEMBERS),
    "a.tar": tar_bytes(MEMBERS),
    "a.tar.gz": tar_bytes(MEMBERS, "gz"),
    "a.md.xz": lzma.compress(MARKDOWN.encode()),
    "a.csv": CSV.encode(),
    "a.xlsx": xlsx_bytes({"Ventas": TABLE, "Notas": [["Hola"]]}, title="T"),
    "a.pptx": pptx_bytes("T"),
    "a.odt": odt_bytes("T"),
    "a.odp": odp_bytes("T"),
    "a.rtf": RTF.encode(),
    "a.json": JSON.encode(),
    "a.jsonl": JSON.replace("\n", "").encode(),
    "a.ipynb": NOTEBOOK.encode(),
    "a.py": b"def f():\n    return 1\n",
    "a.ods": ods_bytes({"Ventas": TABLE}),
}
with zipfile.ZipFile(io.BytesIO(SAMPLES["a.docx"])) as archive:
    PARTS = {name: archive.read(name) for name in archive.namelist()}


def only_document_errors(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with contextlib.suppress(DocumentError):
        check(FileLoader(path).load()[0])


quick = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quick
@given(
    name=st.sampled_from(sorted(SAMPLES)),
    start=st.sampled_from([b"", b"%PDF-1.7\n", b"PK\x03\x04", b"<html>", b"\xff\xfe", b"---\n", b"\xef\xbb\xbf"]),
    data=st.binary(max_size=300),
)
def test_any_bytes(tmp_path: Path, name: str, start: bytes, data: bytes) -> None:
    only_document_errors(tmp_path / name, start + data)


@quick
@given(name=st.sampled_from([".txt", ".md", ".html", ".csv", ".rtf", ".jsonl"]), text=st.text(max_size=300))
def test_any_text(tmp_path: Path, name: str, text: str) -> None:
    only_document_errors(tmp_path / f"a{name}", text.encode("utf-8", "surrogatepass"))


TAGS = (
    *(
        "<p>",
        "</p>",
        "<table>",
        "</table>",
        "<tr>",
        "<td>",
        "</td>",
        "<h1>",
        "</h1>",
        "<h3>",
        "<li>",
        "<ul>",
        "</ul>",
    ),
    *(
        "<br>",
        "<pre>",
        "</pre>",
        "<nav>",
        "</nav>",
        "texto",
        "<!--",
        "-->",
        "&aacute;",
        "<title>",
        "<body>",
        "<head>",
    ),
    *("</div>", "<script>", "</script>"),
)


@quick
@given(
    tags=st.lists(st.sampled_from(TAGS), max_size=40),
)
def test_any_html(tmp_path: Path, tags: list[str]) -> None:
    only_document_errors(tmp_path / "a.html", "a ".join(tags).encode())


@quick
@given(
    name=st.sampled_from(sorted(SAMPLES)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=12),
    keep=st.floats(0.2, 1),
)
def test_mutated_files(tmp_path: Path, name: str, changes: list[tuple[float, bytes]], keep: float) -> None:
    data = bytearray(SAMPLES[name])
    for place, new in changes:
        start = int(place * len(data))
        data[start : start + len(new)] = new
    only_document_errors(tmp_path / name, bytes(data[: int(keep * len(data)) or 1] if keep < 0.6 else data))


@quick
@given(
    part=st.sampled_from(
        ["word/document.xml", "word/styles.xml", "[Content_Types].xml", "_rels/.rels", "docProps/core.xml"]
    ),
    place=st.floats(0, 1),
    new=st.one_of(
        st.binary(max_size=8), st.sampled_from([b"<w:p>", b"</w:p>", b"<w:tc/>", b"<w:tr>", b"-1", b"&x;"])
    ),
    cut=st.integers(0, 30),
)
def test_mutated_parts_of_a_docx(tmp_path: Path, part: str, place: float, new: bytes, cut: int) -> None:
    content = PARTS[part]
    start = int(place * len(content))
    parts = PARTS | {part: content[:start] + new + content[start + cut :]}
    only_document_errors(tmp_path / "a.docx", zip_bytes(parts))


# --- Finding files


def test_find_files(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    for path in (
        "b.txt",
        "a.PDF",
        "sub/c.md",
        ".git/d.txt",
        "sub/.e.txt",
        "f.exe",
        "sub/g.docx",
        "../outside/h.md",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("x")
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "link.txt").symlink_to("b.txt")
    (folder / "secret.txt").symlink_to(outside / "h.md")
    (folder / "sub" / "out").symlink_to(outside)
    found = find_files(folder)
    names = [str(path.relative_to(folder)) for path in found.files]
    assert names == ["a.PDF", "b.txt", "link.txt", "sub/c.md", "sub/g.docx"]
    skipped = {
        reason: {str(Path(path).relative_to(folder)) for path in paths} for reason, paths in found.skipped.items()
    }
    assert skipped == {
        "unsupported": {"f.exe"},
        "hidden": {".git", "sub/.e.txt"},
        "link": {"secret.txt", "sub/loop", "sub/out"},
    }
    followed = {
        str(path.relative_to(folder)) for path in find_files(folder, FileSelection(follow_links=True)).files
    }
    assert followed == {*names, "secret.txt", "sub/out/h.md"}
    assert find_files([str(folder), folder / "b.txt"]) == found
    explicit = [folder / "f.exe", folder / "no.txt", folder / ".git", folder / "secret.txt"]
    assert find_files(explicit).files == [*explicit[:2], folder / ".git" / "d.txt", folder / "secret.txt"]
    assert find_files([]).files == []


def test_files_of_the_kernel_are_not_documents(tmp_path: Path) -> None:
    (tmp_path / "status.txt").symlink_to("/proc/self/status")
    with pytest.raises(DocumentError, match="not a regular file"):
        FileLoader(tmp_path / "status.txt").load()
    assert find_files(Path("/proc/self")).files == []


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cerrada").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("cerrada"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_files(tmp_path).files == [tmp_path / "cerrada"]
