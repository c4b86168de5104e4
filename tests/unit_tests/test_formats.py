"""Spreadsheets, presentations, OpenDocument, RTF, JSON and program code."""

import contextlib
import io
import json
import time
import zipfile
from pathlib import Path

import pptx
import pytest
import xlsxwriter
from langchain_core.documents import Document
from pptx.oxml import parse_xml

from lince_rag.documents.files import FORMATS
from lince_rag.documents.readers import tables
from lince_rag.errors import DocumentError
from tests.unit_tests.file_samples import (
    CSV,
    JSON,
    NOTEBOOK,
    RTF,
    TABLE,
    TABLE_ROWS,
    odp_bytes,
    ods_bytes,
    odt_bytes,
    opendocument_bytes,
    pptx_bytes,
    saved,
    xls_bytes,
    xlsx_bytes,
    zip_bytes,
)
from tests.unit_tests.reading import load, reason


def text_of(folder: Path, name: str, content: str | bytes) -> str:
    return load(folder, name, content).page_content


def pages(document: Document) -> list[tuple[int | None, str, str]]:
    """The page, the heading and the text of each section."""
    return [
        (section["page"], section["heading"], document.page_content[section["start"] : section["end"]].rstrip())
        for section in document.metadata["sections"]
    ]


# --- Separated values


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv(tmp_path: Path, encoding: str, delimiter: str) -> None:
    text = "Año,Región,Habitantes\r\n2023,Aragón,1351591\r\n2024,Ñuñoa,250192\r\n".replace(",", delimiter)
    document = load(tmp_path, "a.csv", text.encode(encoding))
    assert document.page_content == (
        "Año: 2023 | Región: Aragón | Habitantes: 1351591\nAño: 2024 | Región: Ñuñoa | Habitantes: 250192"
    )
    assert document.metadata["media_type"] == "text/csv"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CSV, 'Producto: Aceite | Precio: 4,50\nProducto: Pan; "de molde" y bollos | Precio: 1,20\nProducto: Sal'),
        ("sep=;\nuno;dos\n1,5;2,5\n", "uno: 1,5 | dos: 2,5"),
        ("Ventas\n\nPan,Sal\n1,2\n", "Ventas\n\nPan: 1 | Sal: 2"),
        ("1,2\n3,4\n", "1 | 2\n3 | 4"),
        ("Pan,Sal\n", "Pan | Sal"),
        ("Zona,2022,2023\nNorte,3,4\n", "Zona: Norte | 2022: 3 | 2023: 4"),
        ("a:,b\n1,2,3\n,,\n4,\n", "a: 1 | b: 2 | 3\n\n4"),
        ("uno,dos\n1,2\n\ntres,cuatro\n3,4\n", "uno: 1 | dos: 2\n\ntres: 3 | cuatro: 4"),
        # Names with their values, and no header: a value is never given the name of another.
        (
            "Marca,Seat\nMatrícula,4821 KLM\nPróxima ITV,2025-09-14\n",
            "Marca: Seat\nMatrícula: 4821 KLM\nPróxima ITV: 2025-09-14",
        ),
        ("Titular;Begoña Núñez\nCuenta;ES91 2100\n", "Titular: Begoña Núñez\nCuenta: ES91 2100"),
        (
            "Ana Ruiz,Madrid,Pediatra\nLuis Paz,Lugo,Dentista\n",
            "Ana Ruiz | Madrid | Pediatra\nLuis Paz | Lugo | Dentista",
        ),
        ("Nombre,Ciudad\nAna,Madrid\nLuis,Lugo\n", "Nombre: Ana | Ciudad: Madrid\nNombre: Luis | Ciudad: Lugo"),
        (
            "Artículo,Uds,Precio\nPan,2,1.20\n\nPago,Al contado\nIBAN,ES91\n\nSal,1,0.90\nPan,3,3\n",
            "Artículo: Pan | Uds: 2 | Precio: 1.20\n\nPago: Al contado\nIBAN: ES91\n\nSal | 1 | 0.90\nPan | 3 | 3",
        ),
        (
            'Concepto,Importe\n"Luz,30\nAgua,12\nGas,55\n',
            'Concepto: "Luz | Importe: 30\nConcepto: Agua | Importe: 12\nConcepto: Gas | Importe: 55',
        ),
        ("solo\nuna\ncolumna\n", "solo\n\nuna\n\ncolumna"),
        ('a,b\n1,"' + "x y " * 40_000 + "\n", 'a: 1 | b: "' + ("x y " * 40_000).strip()),
    ],
)
def test_csv_rows(tmp_path: Path, text: str, expected: str) -> None:
    assert text_of(tmp_path, "a.csv", text) == expected
    assert text_of(tmp_path, "a.tsv", text) == expected


# --- Workbooks


@pytest.mark.parametrize("name", ["a.xlsx", "a.xlsm", "a.ods"])
def test_workbook(tmp_path: Path, name: str) -> None:
    make = ods_bytes if name == "a.ods" else xlsx_bytes
    sheets = {"Ventas": TABLE, "Vacía": [], "Oculta": [["secreto"]], "Notas": [["Uno"], ["Dos"]]}
    document = load(tmp_path, name, make(sheets, "Informe", hidden=["Oculta"]))
    assert pages(document) == [
        (1, "Ventas", f"Ventas\n\nVentas de aceite\n\n{TABLE_ROWS}"),
        (3, "Notas", "Notas\n\nUno\n\nDos"),
    ]
    assert document.metadata["title"] == "Informe"
    assert pages(load(tmp_path, name, make({"Hoja1": TABLE[2:]}))) == [(1, "", TABLE_ROWS)]
    assert load(tmp_path, name, make({"Hoja1": TABLE}, "Libro1")).metadata["title"] == "a"
    assert reason(tmp_path, name, make({"Hoja1": []})) == "no text in it"


def test_old_workbook(tmp_path: Path) -> None:
    sheets = {"Ventas": TABLE, "Oculta": [["secreto"]], "Notas": [["Uno"], ["Dos"]]}
    document = load(tmp_path, "a.xls", xls_bytes(sheets, hidden=["Oculta"]))
    assert pages(document) == [
        (1, "Ventas", f"Ventas\n\nVentas de aceite\n\n{TABLE_ROWS}"),
        (2, "Notas", "Notas\n\nUno\n\nDos"),
    ]


def test_cells_of_excel(tmp_path: Path) -> None:
    path = tmp_path / "b.xlsx"
    workbook = xlsxwriter.Workbook(path)
    sheet = workbook.add_worksheet()
    sheet.write_row(0, 0, ["Clave", "Valor", "Otro"])
    sheet.write_formula(1, 0, "=1/0", None, "#DIV/0!")
    sheet.write_formula(1, 1, "=A1", None, "hola")
    sheet.write_number(1, 2, 0.1 + 0.2)
    sheet.write_number(2, 0, 0.35, workbook.add_format({"num_format": "hh:mm"}))
    sheet.write_number(2, 1, 1.5, workbook.add_format({"num_format": "[h]:mm"}))
    sheet.write_url(2, 2, "https://example.org", string="la web")
    # Formats, but no values, out to the last row.
    for row in range(3, 2**20, 1000):
        sheet.write_blank(row, 3, None, workbook.add_format({"bold": True}))
    workbook.close()
    assert text_of(tmp_path, "a.xlsx", path.read_bytes()) == (
        "Valor: hola | Otro: 0.3\nClave: 08:24 | Valor: 36:00 | Otro: la web"
    )


def test_a_sheet_with_a_cell_in_the_far_corner_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.xlsx"
    workbook = xlsxwriter.Workbook(path)
    sheet = workbook.add_worksheet()
    sheet.write(0, 0, "a")
    sheet.write(2**20 - 1, 2**14 - 1, "b")
    workbook.close()
    expected = f"a sheet of 1048576 rows and 16384 columns, the limit is {tables.MAXIMUM_CELLS} cells"
    assert reason(tmp_path, "a.xlsx", path.read_bytes()) == expected
    unnamed = b'<row r="9"><c t="s"><v>0</v></c><c/><c><v>1</v></c></row>'
    assert tables._excel_area(unnamed) == (9, 2)
    start = time.perf_counter()
    assert tables._excel_area(b'<c r="A1" ' * 200_000) == (0, 0)
    assert list(tables._opendocument_areas(b"<table:table-cell " * 200_000)) == [(0, 0)]
    # Quadratic time takes minutes at these sizes.
    assert time.perf_counter() - start < 10
    assert tables._excel_area(b'<x:c r="AB12" s="1"><x:v>1</x:v></x:c><x:c r="AC99" />') == (12, 28)


@pytest.mark.parametrize(("rows", "refused"), [("<table:table-cell/>", False), ("{}", True)])
def test_repeated_rows_of_an_ods(tmp_path: Path, rows: str, refused: bool) -> None:
    cell = '<table:table-cell office:value-type="string" table:number-columns-repeated="9"><text:p>x</text:p>'
    end = rows.format(cell + "</table:table-cell>")
    data = ods_bytes(
        {"Hoja1": TABLE[2:]}, end=f'<table:table-row table:number-rows-repeated="1048573">{end}</table:table-row>'
    )
    if refused:
        assert reason(tmp_path, "a.ods", data).startswith("a sheet of 1048576 rows and 9 columns")
    else:
        assert text_of(tmp_path, "a.ods", data) == TABLE_ROWS


OLD = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
ENCRYPTED = OLD + bytes(600) + "EncryptedPackage".encode("utf-16-le")

LOCKED_ODS = opendocument_bytes("spreadsheet", "", manifest="<encryption-data/>")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b",,\n;\n", "no text in it"),
        ("a.csv", b"a,\0b", "a binary file, not text"),
        ("a.csv", b"PK\x03\x04", "named .csv, but its content is zip, Office or OpenDocument"),
        ("a.xlsx", ENCRYPTED, "protected with a password"),
        ("a.xls", ENCRYPTED, "protected with a password"),
        ("a.xlsx", b"hola", "named .xlsx, but its content is not Excel"),
        ("a.xlsx", OLD, "named .xlsx, but its content is old Word or Office"),
        ("a.xlsx", zip_bytes({"word/document.xml": b"<a/>"}), "a zip file, but not an Excel document"),
        ("a.xlsx", xlsx_bytes({"a": TABLE})[:3000], "damaged or truncated Excel file"),
        (
            "a.ods",
            opendocument_bytes("spreadsheet", "", manifest="<encryption-data/>"),
            "protected with a password",
        ),
        ("a.ods", zip_bytes({"a.xml": b"<a/>"}), "a zip file, but not an OpenDocument document"),
    ],
)
def test_reasons_for_tables(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    assert reason(tmp_path, name, content) == expected


def test_damaged_workbooks(tmp_path: Path) -> None:
    unclosed = zip_bytes({"content.xml": b"<table:table><table:table-row></table:table-row>"})
    assert reason(tmp_path, "a.ods", unclosed).startswith("damaged workbook: no element found")
    with zipfile.ZipFile(io.BytesIO(xlsx_bytes({"Hoja1": TABLE}))) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["xl/sharedStrings.xml"] = parts["xl/sharedStrings.xml"].replace(
        b'uniqueCount="', b'uniqueCount="99999999'
    )
    assert "more than it holds" in reason(tmp_path, "a.xlsx", zip_bytes(parts))
    assert "damaged" in reason(tmp_path, "a.xls", OLD + bytes(600))
    assert "damaged" in reason(tmp_path, "a.xlsx", zip_bytes({"xl/workbook.xml": b"<a/>"}))


# --- Slides

A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
P = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'


def test_slides(tmp_path: Path) -> None:
    document = load(tmp_path, "a.pptx", pptx_bytes("Riego 2024"))
    assert pages(document) == [
        (1, "Plan de riego", "Plan de riego\n\nCooperativa del Júcar"),
        (2, "Turnos", "Turnos\n\n- lunes\n- miércoles\n\nExplicar el cambio.\n\nPedir votos."),
        (4, "Costes", "Costes\n\nizquierda\n\nderecha\n\nAño: 2024 | Coste: 30 €\n\nabajo"),
        (5, "Sin caja de título", "Sin caja de título\n\nUna frase completa."),
    ]
    assert document.metadata["title"] == "Riego 2024"
    assert load(tmp_path, "b.pptx", pptx_bytes("PowerPoint Presentation")).metadata["title"] == "Plan de riego"


def test_marks_and_footers_of_slides(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    frame = slide.placeholders[1].text_frame
    frame.text = "uno\ndos\ntres"
    frame.paragraphs[1]._p.get_or_add_pPr().append(parse_xml(f"<a:buNone {A}/>"))
    box = slide.shapes.add_textbox(0, 0, 100, 100).text_frame
    box.text = "Se pide:\ncarné"
    box.paragraphs[1]._p.get_or_add_pPr().append(parse_xml(f'<a:buChar {A} char="•"/>'))
    for kind in ("ftr", "dt", "sldNum"):
        shape = slide.shapes.add_textbox(0, 0, 100, 100)
        shape.text_frame.text = "pie"
        shape._element.nvSpPr.nvPr.append(parse_xml(f'<p:ph {P} type="{kind}" idx="9"/>'))
    assert text_of(tmp_path, "a.pptx", saved(deck)) == "Se pide:\n\n- carné\n\n- uno\n\ndos\n\n- tres"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (ENCRYPTED, "protected with a password"),
        (pptx_bytes()[:9000], "damaged or truncated PowerPoint file"),
        (zip_bytes({"xl/a.xml": b"<a/>"}), "a zip file, but not a PowerPoint document"),
        (saved(pptx.Presentation()), "no text in it"),
    ],
)
def test_reasons_for_slides(tmp_path: Path, content: bytes, expected: str) -> None:
    assert reason(tmp_path, "a.pptx", content) == expected


# --- OpenDocument


def test_opendocument_text(tmp_path: Path) -> None:
    document = load(tmp_path, "a.odt", odt_bytes())
    assert pages(document) == [
        (None, "", "Manual de regadío\n\nTurnos 3"),
        (
            None,
            "Capítulo 1 de agua",
            "Capítulo 1 de agua\n\nVéase la ley.\n\nEl agua llega.\nY se va.",
        ),
        (
            None,
            "Capítulo 1 de agua › Turnos",
            "Turnos\n\n- lunes\n- mañana\n- miércoles\n\nDía | Hora\nlunes | 8 h\n\nCuadro.\n\nFin.",
        ),
    ]
    (index,) = document.metadata["kinds"]
    assert document.page_content[index["start"] : index["end"]] == "Turnos 3"
    assert document.metadata["title"] == "Manual de regadío"
    assert load(tmp_path, "b.odt", odt_bytes("Riego")).metadata["title"] == "Riego"


def test_opendocument_slides(tmp_path: Path) -> None:
    document = load(tmp_path, "a.odp", odp_bytes())
    assert pages(document) == [
        (1, "Plan de riego", "Plan de riego\n\nCooperativa\n\nSaludar."),
        (3, "Turnos", "Turnos\n\n- lunes\n- martes\n\nForma."),
    ]
    assert document.metadata["title"] == "Plan de riego"
    assert load(tmp_path, "b.odp", odp_bytes("Riego")).metadata["title"] == "Riego"


def test_entities_of_opendocument_are_not_expanded(tmp_path: Path) -> None:
    path = tmp_path / "secreto.txt"
    path.write_text("secreto")
    with zipfile.ZipFile(io.BytesIO(odt_bytes())) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{path}"><!ENTITY f "bomba">]>'.encode()
    parts["content.xml"] = entity + parts["content.xml"].replace(b"Fin.", b"Fin.&e;&f;")
    text = text_of(tmp_path, "a.odt", zip_bytes(parts))
    assert "Fin." in text
    assert "secreto" not in text
    assert "bomba" not in text


@pytest.mark.parametrize("name", ["a.odt", "a.odp", "a.ods"])
def test_reasons_for_opendocument(tmp_path: Path, name: str) -> None:
    locked = "protected with a password"
    assert reason(tmp_path, name, opendocument_bytes("text", "", manifest="<encryption-data/>")) == locked
    assert reason(tmp_path, name, zip_bytes({"encrypted-package": b"x"})) == locked
    assert reason(tmp_path, name, odt_bytes()[:900]) == "damaged or truncated OpenDocument file"
    assert reason(tmp_path, name, zip_bytes({"content.xml": b"<a"})).startswith("damaged")
    if name != "a.ods":
        assert reason(tmp_path, name, opendocument_bytes("text", "")) == "no text in it"


# --- RTF


def test_rtf(tmp_path: Path) -> None:
    document = load(tmp_path, "a.rtf", RTF)
    assert document.page_content == (
        "Título\n\nEl agua llega mañana, aquí.\n\n- uno\n- dos 😀\n\nDía | Hora\nlunes | 8 h\n\nFin…"
    )
    assert document.metadata["title"] == "Acta núm. 3 —"
    assert document.metadata["media_type"] == "application/rtf"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"{\\rtf1 a\\'f1o \xf1u}", "año ñu"),
        ("{\\rtf1 año}".encode(), "año"),
        (b"{\\rtf1\\ansicpg1250 \\'b3\\'9c}", "łś"),
        (b"{\\rtf1\\ansicpg99999 casa \\'f1}", "casa \ufffd"),
        (b"{\\rtf1 sin cerrar", "sin cerrar"),
        (b"{\\rtf1 uno\\line dos\\page tres}", "uno\n\ndos\n\ntres"),
    ],
)
def test_encodings_of_rtf(tmp_path: Path, source: bytes, expected: str) -> None:
    assert text_of(tmp_path, "a.rtf", source) == expected


@pytest.mark.parametrize("piece", ["{\\field{\\*\\fldinst{HYPERLINK", "\\f0", "\\f0 \\fcharset0", "{", "}", "0a "])
def test_strange_rtf_takes_no_quadratic_time(tmp_path: Path, piece: str) -> None:
    start = time.perf_counter()
    load(tmp_path, "a.rtf", "{\\rtf1 hola {\\fonttbl " + piece * (300_000 // len(piece)))
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"hola", "named .rtf, but its content is not RTF"),
        (b"{\\rtf1 }", "no text in it"),
        (b"{\\rtf1 \\u99999999? x}", "damaged file"),
        (b"{\\rtf1 \\uc x}", "damaged file"),
    ],
)
def test_reasons_for_rtf(tmp_path: Path, content: bytes, expected: str) -> None:
    assert reason(tmp_path, "a.rtf", content).startswith(expected)


# --- JSON and notebooks


def test_json(tmp_path: Path) -> None:
    document = load(tmp_path, "a.json", JSON)
    assert pages(document) == [
        (None, "", "title: Catálogo\nprecio: 1.50\nactivo: true"),
        (
            None,
            "contacto",
            "contacto\n\ncorreo: a@b.es\ndirección › calle: Mayor\ndirección › número: 3\ndías: lunes, martes",
        ),
        (
            None,
            "productos",
            "productos\n\nnombre: Pan | precio: 1.20 | medidas › alto: 3\nnombre: Sal | tipos: fina, gorda\n\n"
            "texto: La sal se extrae.\nDel mar.",
        ),
    ]
    assert document.metadata["title"] == "Catálogo"


LONG = "palabra " * 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"a": 1, "b": "x"}, {"a": 2}]', "a: 1 | b: x\na: 2"),
        ('["uno", "dos"]', "uno, dos"),
        (f'["uno", "{LONG}"]', f"- uno\n\n{LONG.strip()}"),
        ('"hola"', "hola"),
        ("12345678901234567890.10", "12345678901234567890.10"),
        ('[[{"a": 1}], [2, 3]]', "a: 1\n\n2, 3"),
        ('{"x": {"y": [{"a": 1, "b": null}, {"a": [{"c": 2}]}]}}', "x\n\ny:\n\na: 1\na › 1 › c: 2"),
        (f'[{{"a": "{LONG}", "b": 1}}]', f"b: 1\n\na: {LONG.strip()}"),
        ('{"": {"a": "l\\u00ednea\\ud800"}}', "a: línea\ufffd"),
    ],
)
def test_json_values(tmp_path: Path, text: str, expected: str) -> None:
    assert text_of(tmp_path, "a.json", text) == expected


def test_json_objects_with_many_values_are_lines(tmp_path: Path) -> None:
    records = [{f"k{number}": number for number in range(50)}] * 2
    paragraphs = text_of(tmp_path, "a.json", json.dumps(records)).split("\n\n")
    assert [len(paragraph.split("\n")) for paragraph in paragraphs] == [1, 49, 1, 49]
    assert "k7: 7" in paragraphs[1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    text = '{"pregunta": "¿Sí?"}\r\n\r\n{"pregunta": "¿No?", "n": 2}\n'
    assert text_of(tmp_path, name, text) == "pregunta: ¿Sí?\npregunta: ¿No? | n: 2"


def test_damaged_json_lines_are_left_out(tmp_path: Path) -> None:
    document = load(tmp_path, "a.jsonl", '{"a": "uno"}\n{"a": "do\n{"a": "tres"}\n')
    assert document.page_content == "a: uno\na: tres"
    (left_out,) = document.metadata["left_out"]
    assert left_out.startswith("invalid JSON in line 2: ")


def test_notebook(tmp_path: Path) -> None:
    document = load(tmp_path, "a.ipynb", NOTEBOOK)
    numbers = "\n".join(map(str, range(20)))
    code = ["# no es un título\nprint(1)", "uno\ndos", numbers]
    assert pages(document) == [
        (
            None,
            "Análisis de riego",
            "\n\n".join(["# Análisis de riego", "Los datos son de mayo.", *code]),
        ),
        (None, "Análisis de riego › Resultado", "## Resultado\nEs bueno."),
    ]
    spans = document.metadata["kinds"]
    assert [document.page_content[item["start"] : item["end"]] for item in spans] == code
    assert {item["kind"] for item in spans} == {"code"}
    assert document.metadata["title"] == "Análisis de riego"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '{"a": 1,\n}', "invalid JSON in line 2: "),
        ("a.json", "{'a': 1}", "invalid JSON in line 1: Expecting property name enclosed in double quotes"),
        ("a.jsonl", '{"a"\n\n{"b"', "invalid JSON in line 1: Expecting ':' delimiter"),
        ("a.ipynb", "[]", "not a notebook"),
        ("a.ipynb", '{"cells": [1, {"source": {}}]}', "no text in it"),
        ("a.json", "[" * 100_000, "its values are nested too deeply"),
        ("a.json", "[" * 900 + "1" + "]" * 900, ""),
        ("a.json", "{}", "no text in it"),
        ("a.json", "[null, [], {}]", "no text in it"),
    ],
)
def test_reasons_for_json(tmp_path: Path, name: str, content: str, expected: str) -> None:
    if expected:
        assert reason(tmp_path, name, content).startswith(expected[:30])
    else:
        only_document_errors(tmp_path, name, content)


def only_document_errors(folder: Path, name: str, content: str) -> None:
    with contextlib.suppress(DocumentError):
        load(folder, name, content)


# --- Code and other text


@pytest.mark.parametrize("name", ["a.py", "a.sql", "a.YAML", "a.R", "a.xml"])
def test_code(tmp_path: Path, name: str) -> None:
    document = load(tmp_path, name, "\ufeff\r\n# uno\r\n\r\n\r\nif x:  \r\n    print('año')\r\n")
    assert document.page_content == "# uno\n\n\nif x:\n    print('año')"
    assert document.metadata["kinds"] == [{"start": 0, "end": len(document.page_content), "kind": "code"}]
    assert document.metadata["media_type"] == "text/plain"
    assert document.metadata["title"] == "a"


def test_code_may_begin_as_a_page(tmp_path: Path) -> None:
    assert text_of(tmp_path, "a.php", "<html><?php echo 1 ?>") == "<html><?php echo 1 ?>"


def test_minified_code(tmp_path: Path) -> None:
    assert reason(tmp_path, "a.js", "function(e,t){return e}" * 5_000) == "minified code"
    assert text_of(tmp_path, "a.js", "var uno = 1; " * 10_000).startswith("var uno")


@pytest.mark.parametrize("suffix", [".rst", ".tex", ".org", ".adoc", ".log", ".srt", ".vtt"])
def test_other_text(tmp_path: Path, suffix: str) -> None:
    document = load(tmp_path, f"a{suffix}", "Título\n======\n\nUno.")
    assert document.page_content == "Título\n======\n\nUno."
    assert document.metadata["kinds"] == []
    assert document.metadata["media_type"] == "text/plain"


def test_reasons_for_code(tmp_path: Path) -> None:
    assert reason(tmp_path, "a.py", b"\x89PNG\r\n\x1a\n123") == "named .py, but its content is PNG image"
    assert reason(tmp_path, "a.ts", bytes([0x47, 0, 1])) == "a binary file, not text"
    assert reason(tmp_path, "a.cfg", "\n") == "the file is empty"


def test_every_format_has_a_suffix_in_lower_case() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in FORMATS)
