"""Tables, forms and running heads of PDFs."""

import time
from collections import Counter
from collections.abc import Sequence

import fpdf
import pypdfium2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lince_rag.documents.readers.pdf import read_pdf
from lince_rag.documents.readers.pdf_lines import Rules, page_lines
from lince_rag.documents.readers.pdf_tables import mark_tables
from tests.unit_tests.file_samples import SENTENCE, hyphenated_pdf, new_pdf, two_column_pdf

GOODS = [
    ("Artículo", "Unidades", "Importe"),
    ("Manguera de goma de veinte metros con dos racores", "2", "31,40"),
    ("Abono", "10", "12,00"),
    ("Tijera", "1", "9,95"),
]
GOODS_TEXT = [" | ".join(row) for row in GOODS]


def texts(data: bytes, kind: str = "") -> list[str]:
    return [block.text for block in read_pdf(data).blocks if block.kind == kind]


def placed(rows: Sequence[Sequence[tuple[float, str]]], pitch: float = 7.0, font: str = "Helvetica") -> bytes:
    """A page with words at given places, in millimetres, a row at a time."""
    pdf = new_pdf()
    pdf.add_page()
    pdf.set_font(font, size=11)
    for number, row in enumerate(rows):
        for left, text in row:
            pdf.text(left, 40 + pitch * number, text)
    return bytes(pdf.output())


@pytest.mark.parametrize("borders", ["ALL", "NONE", "SINGLE_TOP_LINE"])
def test_rows_of_a_table_are_lines_and_wrapped_cells_stay_in_them(borders: str) -> None:
    pdf = new_pdf()
    pdf.add_page()
    pdf.multi_cell(w=0, text="Pedido de Eva Sanz", new_x="LMARGIN", new_y="NEXT")
    with pdf.table(borders_layout=borders, col_widths=(50, 25, 25), width=120, padding=2, line_height=5) as table:
        for row in GOODS:
            table.row(row)
    pdf.multi_cell(w=0, text="Se paga al recibirlo.")
    blocks = read_pdf(bytes(pdf.output())).blocks
    assert [block.text for block in blocks] == ["Pedido de Eva Sanz", *GOODS_TEXT, "Se paga al recibirlo."]
    assert [block.separator for block in blocks[1:]] == ["\n\n", "\n", "\n", "\n", "\n\n"]


def test_empty_cells_keep_their_columns() -> None:
    rows = [
        [(20, "Fecha"), (60, "Debe"), (100, "Haber"), (140, "Saldo")],
        [(20, "3 de mayo"), (60, "12,00"), (140, "88,00")],
        [(20, "4 de mayo"), (100, "5,00"), (140, "93,00")],
        [(20, "5 de mayo"), (60, "3,00"), (140, "90,00")],
    ]
    assert texts(placed(rows)) == [
        "Fecha | Debe | Haber | Saldo",
        "3 de mayo | 12,00 |  | 88,00",
        "4 de mayo |  | 5,00 | 93,00",
        "5 de mayo | 3,00 |  | 90,00",
    ]


def test_labels_and_values_are_rows() -> None:
    rows = [
        [(20, "Titular:"), (70, "Eva Sanz")],
        [(20, "Alta:"), (70, "3 de mayo")],
        [(20, "Zona:"), (70, "Norte")],
    ]
    assert texts(placed(rows)) == ["Titular: Eva Sanz", "Alta: 3 de mayo", "Zona: Norte"]
    bare = [[(left, text.rstrip(":")) for left, text in row] for row in rows]
    assert texts(placed(bare)) == ["Titular | Eva Sanz", "Alta | 3 de mayo", "Zona | Norte"]


def test_a_second_line_of_a_cell_joins_its_row() -> None:
    # Line by line, as programs with tabs write it: the first cell goes on below the row.
    rows = [
        [(20, "Riego de la huerta"), (90, "40,00"), (130, "8,40")],
        [(20, "y de los frutales")],
        [(20, "Poda"), (90, "15,00"), (130, "3,15")],
        [(20, "Siega"), (90, "22,00"), (130, "4,62")],
    ]
    assert texts(placed(rows, pitch=5)) == [
        "Riego de la huerta y de los frutales | 40,00 | 8,40",
        "Poda | 15,00 | 3,15",
        "Siega | 22,00 | 4,62",
    ]


def test_two_tables_with_frames_of_their_own_are_apart() -> None:
    pdf = new_pdf()
    pdf.add_page()
    for rows in (GOODS, [("Base", "44,09"), ("Total", "53,35")]):
        with pdf.table(col_widths=(60, 20, 20)[: len(rows[0])], width=110, padding=2, align="LEFT") as table:
            for row in rows:
                table.row(row)
        pdf.ln(3)
    blocks = read_pdf(bytes(pdf.output())).blocks
    assert [block.text for block in blocks] == [*GOODS_TEXT, "Base | 44,09", "Total | 53,35"]
    assert blocks[4].separator == "\n\n"


POEM = [
    [(30, "Verde era el agua")],
    [(40, "y verde la orilla")],
    [(30, "donde la garza")],
    [(40, "espera y vigila")],
]
CONTENTS = [
    [(20, "1. El riego"), (60, ". . . . . . . . . . . . ."), (150, "3")],
    [(20, "2. La poda"), (60, ". . . . . . . . . . . . ."), (150, "7")],
    [(20, "3. La siega"), (60, ". . . . . . . . . . . . ."), (150, "12")],
]
BARE_CONTENTS = [[(20, "El riego"), (150, "3")], [(20, "La poda"), (150, "7")], [(20, "La siega"), (150, "12")]]
LIST = [[(20, f"{number}."), (32, text)] for number, text in enumerate(("Abra", "Cierre", "Espere"), start=1)]
EQUATIONS = [[(40, "x = 2 y"), (150, "(1)")], [(40, "y = 3 z"), (150, "(2)")], [(40, "z = 5 x"), (150, "(3)")]]


@pytest.mark.parametrize("rows", [POEM, CONTENTS, BARE_CONTENTS, LIST, EQUATIONS])
def test_what_is_no_table(rows: list[list[tuple[float, str]]]) -> None:
    assert not any(" | " in text for text in texts(placed(rows)))


def test_code_prose_and_newspaper_columns_are_no_tables() -> None:
    code = [[(20, "abrir = valve"), (80, "regar despacio")], [(20, "cerrar = 3"), (80, "esperar mucho")]] * 2
    left = "La columna izquierda\nhabla del agua de la\nacequia y termina."
    right = "La columna derecha\ntrata de los precios\ndel pan y termina."
    narrow = new_pdf()
    narrow.add_page()
    narrow.multi_cell(w=45, text=SENTENCE * 12, align="J")
    # Two columns that a program writes line by line, across the page.
    across = [[(20, "una columna de texto que sigue"), (110, "y otra columna de texto al lado")]] * 6
    pages = [placed(code, font="Courier"), two_column_pdf(left, right), hyphenated_pdf(), bytes(narrow.output())]
    for data in [*pages, placed(across, pitch=5)]:
        assert not any(" | " in text for text in texts(data))


words = st.text("abcdeñ", min_size=1, max_size=9)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(
        st.lists(
            st.tuples(st.sampled_from([20.0, 50.0, 80.0, 110.0, 111.0, 150.0]), words), min_size=1, max_size=5
        ),
        min_size=1,
        max_size=9,
    ),
    pitch=st.sampled_from([4.0, 5.0, 7.0, 12.0]),
)
def test_tables_neither_lose_nor_double_characters(rows: list[list[tuple[float, str]]], pitch: float) -> None:
    data = placed(rows, pitch)
    document = pypdfium2.PdfDocument(data)
    lines = page_lines(document[0].get_textpage())
    before = Counter("".join(line.text for line in lines))
    after = Counter("".join(line.text.replace(" | ", " ") for line in mark_tables(lines, Rules())))
    del before[" "], after[" "]
    assert before == after


# --- Running heads and numbers of pages


def paged(pages: Sequence[Sequence[tuple[float, float, str]]]) -> bytes:
    pdf = new_pdf()
    pdf.set_auto_page_break(False)
    for page in pages:
        pdf.add_page()
        for x, y, text in page:
            pdf.text(x, y, text)
    return bytes(pdf.output())


@pytest.mark.parametrize("number", ["Página 1", "Página 1 de 1", "1 / 1", "- 1 -", "Pág. 1"])
def test_the_number_of_a_page_is_no_text(number: str) -> None:
    data = paged([[(20, 40, "Se ruega silencio."), (20, 280, "Copia para el vecino"), (180, 280, number)]])
    assert texts(data) == ["Se ruega silencio.", "Copia para el vecino"]
    assert texts(data, "repeated") == [number]


def test_a_running_head_of_two_pages() -> None:
    pages = [
        [(20, 15, "Regadora Tajo"), (20, 60, text), (20, 270, f"Hoja técnica | {number}")]
        for number, text in enumerate(("Abra el grifo.", "Cierre el grifo."), start=1)
    ]
    data = paged(pages)
    assert texts(data) == ["Regadora Tajo", "Abra el grifo.", "Hoja técnica | 1", "Cierre el grifo."]
    assert texts(data, "repeated") == ["Regadora Tajo", "Hoja técnica | 2"]


def test_titles_of_two_pages_that_count_are_text() -> None:
    data = paged([[(20, 15, f"Anexo {number}"), (20, 60, text)] for number, text in ((1, "Riego."), (2, "Poda."))])
    assert texts(data) == ["Anexo 1", "Riego.", "Anexo 2", "Poda."]


def test_the_lines_of_a_copy_are_text() -> None:
    page = [(20, 15, "Recibo de Eva Sanz"), (20, 60, "Por la poda"), (20, 100, "Soria, mayo")]
    assert texts(paged([page, page])) == [text for _, _, text in page] * 2


# --- Forms


def form_pdf() -> bytes:
    """A form as other programs write it: labels in the page, fields as annotations."""
    labels = [
        (50, 700, "Nombre:"), (50, 670, "Municipio"), (50, 640, "Horario:"), (80, 610, "Acepto las normas"),
        (80, 580, "Quiero publicidad"), (50, 550, "Observaciones:"),
    ]  # fmt: skip
    fields = [
        ("/FT /Tx /T (a) /V (Eva Sanz)", (200, 695, 400, 712)),
        ("/FT /Tx /T (b) /V (Soria)", (200, 665, 400, 682)),
        ("/FT /Ch /Ff 131072 /T (c) /Opt [(manana) (tarde)] /V (tarde)", (200, 635, 400, 652)),
        ("/FT /Btn /T (d) /V /Si /AS /Si /AP <</N <</Si 5 0 R>>>>", (60, 608, 72, 620)),
        ("/FT /Btn /T (e) /V /Off /AS /Off /AP <</N <</Si 5 0 R>>>>", (60, 578, 72, 590)),
        ("/FT /Tx /T (f) /V ()", (200, 545, 400, 562)),
        ("/FT /Tx /TU (Referencia) /T (g) /V (A-17)", (50, 300, 200, 317)),
        ("/FT /Tx /Ff 8192 /T (clave) /V (secreto)", (50, 200, 200, 217)),
    ]
    content = "".join(f"BT /F1 11 Tf {x} {y} Td ({text}) Tj ET\n" for x, y, text in labels)
    first = 6
    widgets = [
        f"<</Type /Annot /Subtype /Widget {entry} /F 4 /P 3 0 R /Rect [{' '.join(map(str, box))}]>>"
        for entry, box in fields
    ]
    references = " ".join(f"{first + number} 0 R" for number in range(len(fields)))
    objects = [
        f"<</Type /Catalog /Pages 2 0 R /AcroForm <</Fields [{references}]>>>>",
        "<</Type /Pages /Kids [3 0 R] /Count 1>>",
        f"<</Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Annots [{references}]"
        " /Resources <</Font <</F1 <</Type /Font /Subtype /Type1 /BaseFont /Helvetica>>>>>>>>",
        f"<</Length {len(content)}>>\nstream\n{content}endstream",
        "<</Type /XObject /Subtype /Form /BBox [0 0 9 9] /Length 0>>\nstream\n\nendstream",
        *widgets,
    ]
    body = "".join(f"{number} 0 obj\n{entry}\nendobj\n" for number, entry in enumerate(objects, start=1))
    return f"%PDF-1.7\n{body}trailer <</Root 1 0 R /Size {len(objects) + 1}>>\n%%EOF".encode("latin-1")


def test_values_of_a_form_stand_behind_their_labels() -> None:
    assert texts(form_pdf()) == [
        "Nombre: Eva Sanz",
        "Municipio: Soria",
        "Horario: tarde",
        "[x] Acepto las normas",
        "Quiero publicidad",
        "Observaciones:",
        "Referencia: A-17",
    ]


def test_a_crowded_page_takes_linear_time() -> None:
    # The cells of a row are compared with one another, up to a number.
    pdf = fpdf.FPDF(unit="pt", format=(60_000, 400))
    pdf.add_page()
    pdf.set_font("Helvetica", size=10)
    for line in range(2):
        for cell in range(1_500):
            pdf.text(20 + 39 * cell, 100 + 20 * line, "uno")
    started = time.process_time()
    assert sum(text.count("uno") for text in texts(bytes(pdf.output()))) == 3_000
    assert time.process_time() - started < 10
