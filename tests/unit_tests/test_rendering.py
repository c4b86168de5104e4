"""Pages of PDFs as pictures: the passage is found by its letters, and a bad file costs only its own process."""

import io
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lince_rag.documents.files import FileLoader
from lince_rag.documents.rendering import TINT, find_spans
from lince_rag.serve import pictures
from lince_rag.serve.guard import RefusedError
from lince_rag.serve.pictures import Picture, draw
from lince_rag.text.language import fold
from tests.hostile_files import inflating_pdf, recursive_pdf
from tests.unit_tests.file_samples import hyphenated_pdf, new_pdf, pdf_bytes

WORDS = ["canción", "presión", "del", "agua", "às", "férias", "ﬁnal", "m²", "1.º", "año", "2026", "niño", "a"]

# Letters with accents, and with the accent before the letter, as old fonts have them.
SPELLINGS = [str, fold, lambda word: re.sub("ó", "´o", re.sub("í", "´ı", word)), str.upper]


def only_letters(text: str) -> str:
    folded = fold(text).casefold().replace("ı", "i")
    return "".join(filter(str.isalnum, folded))


def asked(path: Path, page: int, quote: str, before: str = "", after: str = "") -> dict[str, Any]:
    return {"path": str(path), "page": page, "quote": quote, "before": before, "after": after}


def tinted_rows(picture: Picture) -> list[tuple[int, int]]:
    """The rows of pixels that have the tint, as runs."""
    image = Image.open(io.BytesIO(picture.png))
    pixels = image.load()
    assert pixels is not None
    found = [y for y in range(image.height) if any(pixels[x, y] == TINT for x in range(0, image.width, 2))]
    runs: list[tuple[int, int]] = []
    for row in found:
        runs = [*runs[:-1], (runs[-1][0], row)] if runs and row - runs[-1][1] < 3 else [*runs, (row, row)]
    return runs


@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=30), data=st.data())
def test_a_passage_is_found_however_the_page_is_spelled(words: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start + 1, len(words)))
    chance = random.Random(data.draw(st.integers(0, 1_000)))
    page = ""
    for word in words:
        cut = chance.randrange(len(word) + 1)
        spelled = chance.choice(SPELLINGS)(word)
        page += chance.choice([spelled, f"{spelled[:cut]}-\r\n{spelled[cut:]}", f"{spelled}\u00ad"]) + " "
    quote = " ".join(words[start:end])
    spans = find_spans(page, quote, " ".join(words[:start]), " ".join(words[end:]))
    assert [only_letters(page[one:two]) for one, two in spans] == [only_letters(quote)]


@given(count=st.integers(2, 6), data=st.data())
def test_the_text_around_tells_which_of_equal_passages_is_meant(count: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, count - 1))
    lines = [f"Artículo {each}. Se paga una cuota." for each in range(count)]
    page = "\r\n".join(lines)
    ((start, _),) = find_spans(page, "Se paga una cuota.", f"Artículo {number}. ")
    assert page[:start].count("\r\n") == number


def test_of_a_passage_over_a_page_break_each_page_has_its_part() -> None:
    first, second = "La presión de la caldera no debe pasar", "de tres bares cuando la instalación está fría."
    ((start, end),) = find_spans(f"Otro texto. {first}\r\n12", f"{first} {second}")
    assert only_letters(f"Otro texto. {first}\r\n12"[start:end]) == only_letters(first)
    ((start, end),) = find_spans(f"{second} Y otro.", f"{first} {second}")
    assert only_letters(f"{second} Y otro."[start:end]) == only_letters(second)


def test_words_that_another_page_shares_are_not_the_passage() -> None:
    assert find_spans("Manual de la lavadora Aurora.", "El filtro de la lavadora se limpia.") == []


@given(page=st.text(max_size=200), quote=st.text(max_size=50))
def test_spans_are_of_the_page(page: str, quote: str) -> None:
    assert all(0 <= start < end <= len(page) for start, end in find_spans(page, quote))


def test_the_lines_of_a_passage_are_boxed(tmp_path: Path) -> None:
    path = tmp_path / "columnas.pdf"
    path.write_bytes(hyphenated_pdf())
    text = FileLoader(path).load()[0].page_content
    quote = text[100:300]
    picture = draw(asked(path, 1, quote, text[40:100], text[300:360]))
    assert picture.pages == 1
    assert picture.boxes >= 3
    assert len(tinted_rows(picture)) == picture.boxes
    plain = draw(asked(path, 1, ""))
    assert (plain.boxes, tinted_rows(plain)) == (0, [])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_boxes_follow_a_turned_page(degrees: int, tmp_path: Path) -> None:
    import pypdfium2

    pdf = pypdfium2.PdfDocument(pdf_bytes(["Arriba está el título.\n\n\nAquí, la multa es de 40 euros."]))
    pdf[0].set_rotation(degrees)
    path = tmp_path / "girada.pdf"
    pdf.save(path)
    picture = draw(asked(path, 1, "la multa es de 40 euros"))
    image = Image.open(io.BytesIO(picture.png)).rotate(degrees, expand=True)
    pixels = image.load()
    assert pixels is not None
    tinted = [(x, y) for x in range(image.width) for y in range(image.height) if pixels[x, y] == TINT]
    # Turned back, the box is where it is on the upright page: in its upper quarter, wider than high.
    across, down = [x for x, _ in tinted], [y for _, y in tinted]
    assert picture.boxes == 1
    assert max(down) < image.height / 4
    assert max(across) - min(across) > 4 * (max(down) - min(down))


def test_a_page_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "una.pdf"
    path.write_bytes(pdf_bytes(["Una página."]))
    with pytest.raises(RefusedError) as refused:
        draw(asked(path, 2, ""))
    assert refused.value.status == 404


def test_a_huge_page_gives_a_small_picture(tmp_path: Path) -> None:
    pdf = new_pdf()
    pdf.add_page(format=(4_000, 5_000))
    path = tmp_path / "plano.pdf"
    path.write_bytes(bytes(pdf.output()))
    assert max(Image.open(io.BytesIO(draw(asked(path, 1, "")).png)).size) <= 1_800


@pytest.mark.parametrize(
    "data", [b"%PDF-1.7\nno", pdf_bytes(["Secreto."], password="clave")], ids=["damaged", "protected"]
)
def test_a_file_that_cannot_be_drawn_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "malo.pdf"
    path.write_bytes(data)
    with pytest.raises(RefusedError) as refused:
        draw(asked(path, 1, ""))
    assert refused.value.status == 422


@pytest.mark.slow
@pytest.mark.parametrize("make", [recursive_pdf, inflating_pdf])
def test_a_hostile_file_costs_only_its_own_process(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "SECONDS", 2.0)
    path = tmp_path / "hostil.pdf"
    path.write_bytes(make())
    with pytest.raises(RefusedError) as refused:
        draw(asked(path, 1, "a passage that is not there"))
    assert refused.value.status == 422
