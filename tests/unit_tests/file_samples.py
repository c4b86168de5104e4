"""Sample files, made when a test asks for them."""

import io
import mailbox
import tarfile
import zipfile
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import docx
import fpdf
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml import parse_xml
from PIL import Image

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
