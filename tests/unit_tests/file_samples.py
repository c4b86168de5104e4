"""Sample files, made when a test asks for them."""

import datetime
import io
import json
import mailbox
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import docx
import fpdf
import pptx
import xlsxwriter
import xlwt
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml import parse_xml
from PIL import Image
from pptx.util import Inches

SENTENCE = "La administración pública publicará la información sobre el año 2023 en el boletín de mañana. "


def new_pdf(title: str = "") -> fpdf.FPDF:
    pdf = fpdf.FPDF()
    pdf.set_font("Helvetica", size=11)
    if title:
        pdf.set_title(title)
    return pdf


def pdf_bytes(pages: Sequence[str], title: str = "", password: str = "") -> bytes:
    """A PDF with one page for each text."""
    pdf = new_pdf(title)
    if password:
        pdf.set_encryption("owner", user_password=password)
    for text in pages:
        pdf.add_page()
        pdf.multi_cell(w=0, text=text)
    return bytes(pdf.output())


def two_column_pdf(left: str, right: str) -> bytes:
    """A page with two columns side by side, the left one first in the file, as typesetting programs write it."""
    pdf = new_pdf()
    pdf.add_page()
    for x, column in ((20, left), (115, right)):
        for row, line in enumerate(column.split("\n")):
            pdf.text(x, 30 + 5 * row, line)
    return bytes(pdf.output())


def hyphenated_pdf() -> bytes:
    """Justified columns, in which soft hyphens become line-end hyphens."""
    pdf = new_pdf()
    pdf.add_page()
    text = "La infor|ma|ción de las admi|nis|tra|cio|nes se publi|ca|rá pronto. ".replace("|", "\u00ad")
    with pdf.text_columns(ncols=2, gutter=10, text_align="J") as columns:
        columns.write(text * 12)
    return bytes(pdf.output())


def scanned_page_pdf(text: str) -> bytes:
    """A page of text and a page that is a picture."""
    pdf = new_pdf()
    pdf.add_page()
    pdf.multi_cell(w=0, text=text)
    pdf.add_page()
    pdf.image(Image.new("L", (40, 40), 128), x=20, y=20, w=100)
    return bytes(pdf.output())


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def docx_with_notes() -> bytes:
    """A heading with a footnote, and a paragraph with a footnote of two paragraphs and an endnote."""
    document = docx.Document()
    notes = {
        "footnote": ["<w:r><w:t>separador</w:t></w:r>", "<w:r><w:t>Véase la ley.</w:t></w:r>",
                     "<w:r><w:t>Informa</w:t></w:r><w:r><w:t>ción</w:t><w:tab/><w:t>oficial.</w:t></w:r>"
                     "</w:p><w:p><w:r><w:t>Dos.</w:t></w:r>"],
        "endnote": ["<w:r><w:t>Al final.</w:t></w:r>"],
    }  # fmt: skip
    for kind, texts in notes.items():
        body = "".join(f'<w:{kind} w:id="{id_}"><w:p>{text}</w:p></w:{kind}>' for id_, text in enumerate(texts))
        media_type = f"application/vnd.openxmlformats-officedocument.wordprocessingml.{kind}s+xml"
        xml = f"<w:{kind}s {W}>{body}</w:{kind}s>".encode()
        part = Part(PackURI(f"/word/{kind}s.xml"), media_type, xml, document.part.package)
        relation = f"http://schemas.openxmlformats.org/officeDocument/2006/relationships/{kind}s"
        document.part.relate_to(part, relation)

    def refer(paragraph: Any, kind: str, id_: int) -> None:
        paragraph._p.append(parse_xml(f'<w:r {W}><w:{kind}Reference w:id="{id_}"/></w:r>'))

    refer(document.add_heading("Precios", level=1), "footnote", 1)
    paragraph = document.add_paragraph("El pan sube")
    refer(paragraph, "footnote", 2)
    paragraph.add_run(" mañana.")
    refer(paragraph, "endnote", 0)
    document.add_paragraph("Fin.")
    return saved(document)


def docx_with_text_box() -> bytes:
    """A text box anchored in a heading, as Word writes it: with a copy for old readers."""
    document = docx.Document()
    heading = document.add_heading("Precios", level=1)
    box = "<w:txbxContent><w:p><w:r><w:t>Oferta: uno.</w:t></w:r></w:p><w:p><w:r><w:t>Dos.</w:t></w:r></w:p>"
    heading._p.append(
        parse_xml(
            f'<w:r {W} xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
            ' xmlns:wps="http://schemas.microsoft.com/office/word/2010/wordprocessingShape"'
            ' xmlns:v="urn:schemas-microsoft-com:vml"><mc:AlternateContent>'
            f'<mc:Choice Requires="wps"><w:drawing><wps:wsp><wps:txbx>{box}</w:txbxContent></wps:txbx></wps:wsp>'
            f"</w:drawing></mc:Choice><mc:Fallback><w:pict><v:textbox>{box}</w:txbxContent></v:textbox></w:pict>"
            "</mc:Fallback></mc:AlternateContent></w:r>"
        )
    )
    heading.add_run(" de hoy")
    document.add_paragraph("El pan sube.")
    return saved(document)


def docx_bytes(title: str = "") -> bytes:
    """A Word document with headings, a list, a table and accents."""
    document = docx.Document()
    document.core_properties.title = title
    document.add_paragraph("Manual de regadío", style="Title")
    document.add_heading("Capítulo 1", level=1)
    document.add_paragraph("El agua llega por la acequia. Se reparte cada mañana.")
    document.add_heading("Turnos", level=2)
    document.add_paragraph("lunes", style="List Bullet")
    document.add_paragraph("miércoles", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(table._cells, ["Día", "Hora", "lunes", "8 h"], strict=True):
        cell.text = text
    document.add_heading("Capítulo 2", level=1)
    document.add_paragraph("Las multas son de 30 €.")
    return saved(document)


def saved(document: object) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)  # type: ignore[attr-defined]
    return buffer.getvalue()


def zip_bytes(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# A title, and a table with a number, a date, a time, a truth value and an empty cell.
TABLE: list[list[Any]] = [
    ["Ventas de aceite"],
    [],
    ["Producto", "Precio", "Desde", "Visita", "¿Hay?"],
    ["Aceite\nvirgen", 4.5, datetime.date(2024, 3, 5), datetime.datetime(2024, 3, 5, 8, 30), True],
    ["Vinagre", 3.0, None, None, False],
]
TABLE_ROWS = (
    "Producto: Aceite virgen | Precio: 4.5 | Desde: 2024-03-05 | Visita: 2024-03-05 08:30 | ¿Hay?: true\n"
    "Producto: Vinagre | Precio: 3 | ¿Hay?: false"
)
CSV = 'Producto;Precio\nAceite;4,50\n"Pan; ""de molde""\ny bollos";1,20\nSal;\n'


def xlsx_bytes(
    sheets: Mapping[str, Sequence[Sequence[Any]]], title: str = "", hidden: Sequence[str] = ()
) -> bytes:
    """An Excel workbook with the given rows in its sheets."""
    buffer = io.BytesIO()
    workbook = xlsxwriter.Workbook(buffer, {"in_memory": True})
    workbook.set_properties({"title": title})
    day = workbook.add_format({"num_format": "dd/mm/yyyy"})
    time = workbook.add_format({"num_format": "dd/mm/yyyy hh:mm"})
    for name, rows in sheets.items():
        sheet = workbook.add_worksheet(name)
        if name in hidden:
            sheet.hide()
        for number, row in enumerate(rows):
            for column, value in enumerate(row):
                if isinstance(value, datetime.date):
                    sheet.write_datetime(number, column, value, time if hasattr(value, "hour") else day)
                else:
                    sheet.write(number, column, value)
    workbook.close()
    return buffer.getvalue()


def xls_bytes(sheets: Mapping[str, Sequence[Sequence[Any]]], hidden: Sequence[str] = ()) -> bytes:
    """A workbook of Excel 97 to 2003 with the given rows in its sheets."""
    workbook = xlwt.Workbook()
    day, time = xlwt.easyxf(num_format_str="dd/mm/yyyy"), xlwt.easyxf(num_format_str="dd/mm/yyyy hh:mm")
    for name, rows in sheets.items():
        sheet = workbook.add_sheet(name)
        sheet.visibility = int(name in hidden)
        for number, row in enumerate(rows):
            for column, value in enumerate(row):
                dated = [time if hasattr(value, "hour") else day] if isinstance(value, datetime.date) else []
                sheet.write(number, column, value, *dated)
    buffer = io.BytesIO()
    workbook.save(buffer)
    return buffer.getvalue()


_OPEN_NAMES = (
    " ".join(
        f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for name in ("office", "table", "text", "style", "meta", "presentation")
    )
    + ' xmlns:draw="urn:oasis:names:tc:opendocument:xmlns:drawing:1.0" xmlns:dc="http://purl.org/dc/elements/1.1/"'
)


def opendocument_bytes(kind: str, body: str, styles: str = "", title: str = "", manifest: str = "") -> bytes:
    """An OpenDocument file: kind "text", "spreadsheet" or "presentation", with the XML of its body."""
    content = (
        f"<office:document-content {_OPEN_NAMES}><office:automatic-styles>{styles}</office:automatic-styles>"
        f"<office:body><office:{kind}>{body}</office:{kind}></office:body></office:document-content>"
    )
    meta = f"<office:document-meta {_OPEN_NAMES}><office:meta><dc:title>{title}</dc:title></office:meta>"
    return zip_bytes(
        {
            "mimetype": f"application/vnd.oasis.opendocument.{kind}".encode(),
            "content.xml": content.encode(),
            "meta.xml": (meta + "</office:document-meta>").encode(),
            "META-INF/manifest.xml": f"<manifest>{manifest}</manifest>".encode(),
        }
    )


def ods_bytes(
    sheets: Mapping[str, Sequence[Sequence[Any]]],
    title: str = "",
    hidden: Sequence[str] = (),
    end: str = "",
) -> bytes:
    """An OpenDocument spreadsheet with the given rows in its sheets, and XML after the rows of each."""
    tables = []
    for name, rows in sheets.items():
        xml = "".join(f"<table:table-row>{''.join(map(_ods_cell, row))}</table:table-row>" for row in rows)
        style = "hidden" if name in hidden else "shown"
        tables.append(f'<table:table table:name="{name}" table:style-name="{style}">{xml}{end}</table:table>')
    styles = "".join(
        f'<style:style style:name="{name}" style:family="table"><style:table-properties table:display="{shown}"/>'
        "</style:style>"
        for name, shown in (("shown", "true"), ("hidden", "false"))
    )
    return opendocument_bytes("spreadsheet", "".join(tables), styles, title)


def _ods_cell(value: Any) -> str:
    if value is None:
        return "<table:table-cell/>"
    kind, attribute = "string", ""
    if isinstance(value, bool):
        kind, attribute = "boolean", f'office:boolean-value="{str(value).lower()}"'
    elif isinstance(value, float):
        kind, attribute = "float", f'office:value="{value}"'
    elif isinstance(value, datetime.date):
        kind, attribute = "date", f'office:date-value="{value.isoformat()}"'
    text = escape(str(value)).replace("\n", "</text:p><text:p>")
    return f'<table:table-cell office:value-type="{kind}" {attribute}><text:p>{text}</text:p></table:table-cell>'


def pptx_bytes(title: str = "") -> bytes:
    """Slides with a title and a subtitle, a list with notes, boxes with a group and a table, and a hidden one."""
    deck = pptx.Presentation()
    deck.core_properties.title = title
    layouts = deck.slide_layouts

    def add(layout: int, *texts: str) -> Any:
        slide = deck.slides.add_slide(layouts[layout])
        for placeholder, text in zip(slide.placeholders, texts, strict=False):
            placeholder.text_frame.text = text
        return slide

    def box(shapes: Any, left: float, top: float, text: str) -> None:
        shapes.add_textbox(Inches(left), Inches(top), Inches(2), Inches(1)).text_frame.text = text

    add(0, "Plan de\vriego", "Cooperativa del Júcar")
    listed = add(1, "Turnos", "lunes\nmiércoles")
    listed.notes_slide.notes_text_frame.text = "Explicar el cambio.\nPedir votos."
    add(1, "Borrador", "secreto")._element.set("show", "0")
    boxes = add(5, "Costes")
    box(boxes.shapes, 4, 2.05, "derecha")
    box(boxes.shapes, 1, 5, "abajo")
    group = boxes.shapes.add_group_shape()
    box(group.shapes, 1, 2, "izquierda")
    table = boxes.shapes.add_table(2, 2, Inches(1), Inches(3), Inches(4), Inches(1)).table
    for (row, column), text in {(0, 0): "Año", (0, 1): "Coste", (1, 0): "2024", (1, 1): "30 €"}.items():
        table.cell(row, column).text = text
    bare = add(6)
    box(bare.shapes, 1, 1, "Sin caja de título")
    box(bare.shapes, 1, 2, "Una frase completa.")
    return saved(deck)


_ODT_STYLES = '<style:style style:name="P1" style:family="paragraph" style:parent-style-name="Title"/>'
ODT_BODY = """<text:tracked-changes><text:changed-region><text:deletion><text:p>borrado</text:p></text:deletion>
</text:changed-region></text:tracked-changes>
<text:p text:style-name="P1">Manual de<text:s text:c="2"/>regadío</text:p>
<text:table-of-content><text:index-body><text:p>Turnos<text:tab/>3</text:p></text:index-body>
</text:table-of-content>
<text:h text:outline-level="1">Capítulo 1<text:note text:note-class="footnote">
<text:note-citation>1</text:note-citation>
<text:note-body><text:p>Véase la <text:span>ley</text:span>.</text:p></text:note-body></text:note> de agua</text:h>
<text:p>El agua<office:annotation>
<text:p>comentario</text:p></office:annotation> llega.<text:line-break/>Y
se va.</text:p>
<text:h text:outline-level="2">Turnos</text:h>
<text:list><text:list-item><text:p>lunes</text:p><text:list><text:list-item><text:p>mañana</text:p></text:list-item>
</text:list></text:list-item><text:list-item><text:p>miércoles</text:p></text:list-item></text:list>
<table:table><table:table-row><table:table-cell><text:p>Día</text:p></table:table-cell><table:table-cell>
<text:p>Hora</text:p></table:table-cell></table:table-row><table:table-row><table:table-cell><text:p>lunes</text:p>
</table:table-cell><table:table-cell><text:p>8</text:p><text:p>h</text:p></table:table-cell></table:table-row>
</table:table><text:p><draw:frame><draw:text-box><text:p>Cuadro.</text:p></draw:text-box></draw:frame>Fin.</text:p>"""
_ODP_STYLES = (
    '<style:style style:name="dp2" style:family="drawing-page">'
    '<style:drawing-page-properties presentation:visibility="hidden"/></style:style>'
)
ODP_BODY = """<draw:page draw:style-name="dp1"><draw:frame presentation:class="subtitle"><draw:text-box>
<text:p>Cooperativa</text:p></draw:text-box></draw:frame><draw:frame presentation:class="title"><draw:text-box>
<text:p>Plan de</text:p><text:p>riego</text:p></draw:text-box></draw:frame><draw:frame presentation:class="footer">
<draw:text-box><text:p>pie</text:p></draw:text-box></draw:frame><presentation:notes><draw:frame
 presentation:class="notes"><draw:text-box><text:p>Saludar.</text:p></draw:text-box></draw:frame>
</presentation:notes></draw:page><draw:page draw:style-name="dp2"><draw:frame><draw:text-box>
<text:p>secreto</text:p></draw:text-box></draw:frame></draw:page><draw:page draw:style-name="dp1"><draw:frame
 presentation:class="title">
<draw:text-box><text:p>Turnos</text:p></draw:text-box></draw:frame><draw:frame presentation:class="outline">
<draw:text-box><text:list><text:list-item><text:p>lunes</text:p></text:list-item><text:list-item>
<text:p>martes</text:p></text:list-item></text:list></draw:text-box></draw:frame><draw:custom-shape><text:p>Forma.</text:p>
</draw:custom-shape></draw:page>"""


def odt_bytes(title: str = "") -> bytes:
    """A text with a title, headings, a note, a comment, nested lists, a table and deleted text."""
    return opendocument_bytes("text", ODT_BODY, _ODT_STYLES, title)


def odp_bytes(title: str = "") -> bytes:
    """Two slides with titles and notes, and a hidden one between them."""
    return opendocument_bytes("presentation", ODP_BODY, _ODP_STYLES, title)


RTF = r"""{\rtf1\ansi\ansicpg1252\deff0{\fonttbl{\f0\fswiss\fcharset0 Arial;}{\f1\fnil\fcharset2 Symbol;}}
{\colortbl;\red0\green0\blue0;}{\info{\title Acta n\'fam. 3 \u8212?}{\author Ana}}{\pict\pngblip PICTURE}
\viewkind4\uc1\pard\b T\'edtulo\b0\par
El agua llega ma\'f1ana, {\field{\*\fldinst{HYPERLINK "http://x.y"}}{\fldrslt{aqu\'ed}}}.\par\par
{\listtext\f1\'B7\tab}uno\par
{\listtext\f1\'B7\tab}dos \u55357?\u56832?\par
\trowd\cellx1\cellx2 D\'eda\intbl\cell Hora\cell\row
\trowd lunes\intbl\cell 8 h\cell\row
\pard Fin\'85\par}""".replace("PICTURE", "0a1b2c3d\n" * 200)


JSON = """{"title": "Catálogo", "precio": 1.50, "activo": true, "nada": null, "vacío": {},
"contacto": {"correo": "a@b.es", "dirección": {"calle": "Mayor", "número": 3}, "días": ["lunes", "martes"]},
"productos": [{"nombre": "Pan", "precio": 1.20, "medidas": {"alto": 3}}, {"nombre": "Sal",
"tipos": ["fina", "gorda"], "texto": "La sal se extrae.\\nDel mar."}]}"""

NOTEBOOK = json.dumps(
    {
        "cells": [
            {"cell_type": "markdown", "source": ["# Análisis de **riego**\n", "\n", "Los datos son de mayo."]},
            {
                "cell_type": "code",
                "source": "# no es un título\nprint(1)  ",
                "outputs": [
                    {"output_type": "stream", "text": ["\x1b[31muno\x1b[0m\n", "dos\n"]},
                    {"output_type": "display_data", "data": {"image/png": "AAAA"}},
                    {"output_type": "execute_result", "data": {"text/plain": "\n".join(map(str, range(99)))}},
                ],
            },
            {"cell_type": "markdown", "source": "## Resultado\nEs bueno."},
        ],
        "nbformat": 4,
    }
)


HTML = """<!DOCTYPE html>
<html lang="pt"><head><title>Guia do &aacute;lcool</title><style>p { color: red }</style></head><body>
<nav><a href="/">Menu</a></nav><script>var oculto = "<p>não</p>";</script><noscript>Ative</noscript>
<h1>Capítulo 1</h1><p>A informação está na p&aacute;gina&nbsp;2. Veja <b>já</b>.</p>
<template><p>modelo</p></template>
<h2>Preços</h2><ul><li>um</li><li><p>dois</p></li></ul>
<table><tr><th>Produto</th><th>Preço</th></tr><tr><td>Pão</td><td>1,20 €</td></tr></table>
<h1>Capítulo 2</h1><div>Fim<br>mesmo</div><pre>
  x = 1
</pre></body></html>"""

MARKDOWN = """---
title: "Guía de riego"
tags: [agua]
---
Introducción sin título.

# Capítulo **uno**

El agua llega por la acequia.

```bash
# esto no es un título
```

Turnos
------

- lunes
- martes

## Precios #

| Día | Precio |
| --- | --- |
| lunes | 3 € |

Capítulo dos
============

Fin.
"""


# --- Files that hold other files: books, messages, archives

OPF_START = '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata>'
DC_TITLE = '<dc:title xmlns:dc="http://purl.org/dc/elements/1.1/">'
XHTML_START = (
    '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml" '
    'xmlns:epub="http://www.idpf.org/2007/ops"><head><title/><script src="x.js"/></head><body>'
)
CHAPTERS = {
    "portada.xhtml": "<p>Huerta y <a id='x'/>acequia</p>",
    "capítulo 1.xhtml": "<p>El agua llega por la acequia.</p><p>Se reparte cada ma&ntilde;ana.</p>",
    "2.xhtml": "<h1>Los turnos</h1><p>Cada regante tiene uno.</p><h2>De noche</h2><p>Nadie riega.</p>",
    "3.xhtml": "<p class='titulo'>LAS MULTAS</p><p>Son de 30 €.</p>",
}
NAVIGATION = (
    "<nav epub:type='landmarks'><ol><li><a href='3.xhtml'>Otra</a></li></ol></nav>"
    "<nav epub:type='toc'><h1>Índice</h1><ol><li><a href='cap%C3%ADtulo%201.xhtml#a'>El <b>reparto</b></a>"
    "<ol><li><a href='2.xhtml'>No se usa</a></li><li><a href='3.xhtml'>Las multas</a></li></ol></li></ol></nav>"
)
NCX = (
    '<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap><navPoint><navLabel><text>Uno</text></navLabel>'
    '<content src="cap%C3%ADtulo%201.xhtml"/><navPoint><navLabel><text>Dos</text></navLabel>'
    '<content src="3.xhtml#x"/></navPoint></navPoint></navMap></ncx>'
)


def epub_parts(contents: str = "nav", title: str = "La huerta") -> dict[str, bytes]:
    """The files of a book of four chapters; its table of contents is a navigation document or an ncx."""
    pages = {name: XHTML_START + body + "</body></html>" for name, body in CHAPTERS.items()}
    items = "".join(
        f'<item id="c{number}" href="{name.replace(" ", "%20")}" media-type="application/xhtml+xml"/>'
        for number, name in enumerate(pages)
    )
    spine = "".join(f'<itemref idref="c{number}"/>' for number in range(len(pages)))
    if contents == "nav":
        pages["nav.xhtml"] = XHTML_START + NAVIGATION + "</body></html>"
        items += '<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
    else:
        pages["toc.ncx"] = NCX
        items += '<item id="n" href="toc.ncx" media-type="application/x-dtbncx+xml"/>'
    opf = (
        f"{OPF_START}{DC_TITLE}{title}</dc:title></metadata><manifest>{items}</manifest>"
        f'<spine><itemref idref="n"/>{spine}<itemref idref="no"/></spine></package>'
    )
    container = '<container><rootfiles><rootfile full-path="OEBPS/libro.opf"/></rootfiles></container>'
    parts = {"mimetype": "application/epub+zip", "META-INF/container.xml": container, "OEBPS/libro.opf": opf}
    parts |= {f"OEBPS/{name}": page for name, page in pages.items()}
    return {name: text.encode() for name, text in parts.items()}


def epub_bytes(contents: str = "nav", title: str = "La huerta") -> bytes:
    return zip_bytes(epub_parts(contents, title))


BODY = "Nos vemos mañana a las 8.\n> De acuerdo.\n"


def message(subject: str = "Reunión de regantes", body: str = BODY) -> EmailMessage:
    made = EmailMessage()
    if subject:
        made["Subject"] = subject
    made["From"] = "Ana Ruiz Ibáñez <ana@example.org>"
    made["To"] = "João <joao@example.org>, luis@example.org"
    made["Date"] = "Tue, 05 Mar 2024 10:30:00 +0100"
    made.set_content(body)
    return made


def eml_bytes() -> bytes:
    """A message in plain text and HTML, with a Word file, a text, a picture and a forwarded message attached."""
    made = message()
    made["Cc"] = "Núria <nuria@example.org>"
    made.add_alternative("<h1>No</h1><p>se lee</p>", subtype="html")
    word = "vnd.openxmlformats-officedocument.wordprocessingml.document"
    made.add_attachment(docx_bytes(), maintype="application", subtype=word, filename="manual de riego.docx")
    made.add_attachment("El año pasado.", filename="informacio\u0301n.txt")
    made.add_attachment(b"\x89PNG" + bytes(3000), maintype="image", subtype="png", filename="mapa.png")
    made.add_attachment(message("Acta", "Se aprueba."))
    return made.as_bytes()


def mbox_bytes(folder: Path, messages: Sequence[EmailMessage]) -> bytes:
    path = folder / "made.mbox"
    box = mailbox.mbox(path)
    for item in messages:
        box.add(item)
    box.close()
    return path.read_bytes()


MEMBERS = {
    "notas/b.md": b"# Riego\n\nPor la noche.\n\n## Turnos\n\nUno cada semana.",
    "notas/año.txt": "El año pasado llovió.".encode(),
    "a.pdf": pdf_bytes(["Primera página.", "Segunda página."]),
    "vacío.txt": b"  ",
    "foto.png": b"\x89PNG",
    ".oculto.txt": b"No.",
    "notas/.git/x.txt": b"No.",
    "__MACOSX/x.txt": b"No.",
    "../fuera.txt": b"No.",
    "/raíz.txt": b"No.",
}


def tar_bytes(entries: dict[str, bytes], compression: str = "") -> bytes:
    """A tar archive, with links and a device besides the entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            entry = tarfile.TarInfo(f"otro{kind.decode()}.txt")
            entry.type, entry.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else "notas/b.md"
            archive.addfile(entry)
    return buffer.getvalue()
