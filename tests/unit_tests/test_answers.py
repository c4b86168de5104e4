"""How answers look on a terminal: wrapped words, Markdown, numbered passages, places, links."""

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from lince_rag.chain.answer import Answer, Citation
from lince_rag.cli import answers
from lince_rag.cli.answers import Place, Places, TextPrinter, _line, print_answer

MARKED = re.compile(r"\x1b\[[\d;]*m|\x1b\]8;[^\x1b]*\x1b\\")


def printed(pieces: list[str], width: int | None = 30, *, colours: bool = False, **options: int) -> str:
    """What a terminal of a width shows of a text that comes in pieces; without a width, what a file gets."""
    file = io.StringIO()
    system = "standard" if colours else None
    console = Console(file=file, force_terminal=width is not None, width=width or 80, color_system=system)
    printer = TextPrinter(console, **options)
    for piece in pieces:
        printer.add(piece)
    printer.end()
    return file.getvalue()


words = st.text(
    st.characters(codec="utf-8", exclude_categories=["Z", "C"], exclude_characters="*_`#[]()|~-:!\\"), min_size=1
)
texts = st.lists(words, max_size=40).map(" ".join)
signs = st.text("ab 1.-*_`#[]()|:\n", max_size=120)


@given(texts, st.integers(8, 40))
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(text: str, width: int) -> None:
    lines = printed([text], width).split("\n")
    assert " ".join(lines).split() == text.split()
    assert all(cell_len(line.rstrip()) <= width or " " not in line.strip() for line in lines)


@given(signs, st.data())
def test_pieces_show_what_the_whole_shows(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert printed(pieces) == printed([text])


@given(texts)
def test_a_file_gets_the_text_in_one_line(text: str) -> None:
    assert printed([text], None) == text.strip()


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("El plazo es de **dos meses**.", "El plazo es de dos meses."),
        ("# Plazos\n\nSon *dos* meses.", "Plazos\n\nSon dos meses."),
        ("Véase `config.toml` y [la guía](https://a.es/g).", "Véase config.toml y la guía (https://a.es/g)."),
        ("- __uno__ no\n- dos_tres_cuatro, 2 * 3 * 4 y 2*3", "- __uno__ no\n- dos_tres_cuatro, 2 * 3 * 4 y 2*3"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "| a | b |\n| 1 | 2 |"),
        ("Así:\n```sh\nls | wc\n```\nFin.", "Así:\nls | wc\nFin."),
        ("la cita [1] y el resto", "la cita [1] y el resto"),
    ],
)
def test_markdown_is_left_out(written: str, shown: str) -> None:
    assert printed([written], None) == shown
    assert printed(list(written), None) == shown


def test_markdown_is_bold_on_a_terminal() -> None:
    shown = printed(["El plazo es de **dos ", "meses**, y nada más."], 80, colours=True)
    assert MARKED.sub("", shown) == "El plazo es de dos meses, y nada más."
    assert re.findall(r"\x1b\[1m([^\x1b]*)", shown) == ["dos", " ", "meses"]


def test_words_come_as_soon_as_they_are_complete() -> None:
    file = io.StringIO()
    printer = TextPrinter(Console(file=file))
    printer.add("El contrato vence el 30 de ju")
    assert file.getvalue() == "El contrato vence el 30 de"


def test_items_hang_below_their_text() -> None:
    text = "Hace falta:\n- un gato que levante el coche\n1. y una llave de cruz"
    assert printed([text], 20) == "Hace falta:\n- un gato que\n  levante el coche\n1. y una llave de\n   cruz"
    assert printed(["uno dos tres"], 10, margin=4) == "    uno\n    dos\n    tres"


def test_control_characters_are_shown_as_escapes() -> None:
    assert printed(["rojo: \x1b[31m"], None) == "rojo: \\x1b[31m"


def citation(text: str, quote: str, source: str, **more: object) -> Citation:
    start = text.index(quote)
    return Citation(source=source, start=0, end=len(quote), quote=quote, answer_start=start,
                    answer_end=start + len(quote), **more)  # type: ignore[arg-type]  # fmt: skip


def test_passages_are_numbered_and_so_are_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    text = "La renta es de 815 euros.\n\nA renda é de 900 euros."
    cited = [citation(text, "La renta es de 815 euros.", "a.pdf", page=3, heading="Pagos"),
             citation(text, "A renda é de 900 euros.", "b.pdf", page=1)]  # fmt: skip
    answer = Answer(text=text, language="es", citations=cited, grounded=True)
    print_answer([text, answer], whole=True)
    assert capsys.readouterr().out == (
        "[1] La renta es de 815 euros.\n\n[2] A renda é de 900 euros.\n"
        "  Fuentes:\n    [1] a.pdf, pág. 3 (Pagos)\n    [2] b.pdf, pág. 1\n"
    )
    print_answer([text, answer])
    assert "[1]" not in capsys.readouterr().out


def test_paragraphs_of_one_passage_are_not_numbered(capsys: pytest.CaptureFixture[str]) -> None:
    text = "La renta.\n\nSon 815 euros."
    first = citation(text, "La renta.", "a.pdf", page=3)
    second = citation(text, "Son 815 euros.", "a.pdf", page=4).model_copy(update={"start": 11, "end": 25})
    print_answer([text, Answer(text=text, language="pt", citations=[first, second], grounded=True)], whole=True)
    assert capsys.readouterr().out == f"{text}\n  Fontes: a.pdf, pág. 3\n"


def terminal(monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    monkeypatch.setattr(
        answers, "output", lambda: Console(force_terminal=True, color_system="standard", **options)
    )  # type: ignore[arg-type]


def links(monkeypatch: pytest.MonkeyPatch, places: list[Place], **options: object) -> list[str | None]:
    terminal(monkeypatch, **options)
    written = Places().write(places, "es")
    return [span.style.link for span in written.spans if getattr(span.style, "link", None)]  # type: ignore[union-attr]


def test_sources_are_links_where_a_terminal_can_show_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "actas de mayo.txt"
    path.write_text("Hola.")
    uri = path.as_uri()
    assert "%20" in uri
    assert links(monkeypatch, [Place(str(path), page=7)]) == [f"{uri}#page=7"] * 2
    assert links(monkeypatch, [Place(str(path), line=2), Place(str(path), line=9)]) == [
        f"{uri}#2", f"{uri}#2", f"{uri}#9"
    ]  # fmt: skip
    assert links(monkeypatch, [Place(str(path))]) == [uri]
    assert links(monkeypatch, [Place(str(path), page=7)], no_color=True) == []
    assert links(monkeypatch, [Place("actas de mayo.txt", page=7), Place(str(tmp_path / "otra"))]) == []
    monkeypatch.setenv("TERM", "dumb")
    assert links(monkeypatch, [Place(str(path), page=7)]) == []


def test_several_lines_of_a_document_are_one_source(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [Place("a.txt", "Pagos", line=9), Place("a.txt", "Pagos", line=2), Place("a.txt", "Pagos", line=9)]
    assert Places().write(places, "es").plain == "a.txt, líneas 2, 9 (Pagos)"
    assert Places().write([Place("a.pdf", page=2), Place("a.pdf", page=3)], "en").plain == "a.pdf, pp. 2, 3"
    assert len(Places().write([Place("a.pdf", "Larga " * 40)], "en").plain) < 80


@pytest.mark.parametrize(
    ("name", "written", "quote", "start", "line"),
    [
        ("a.txt", "Uno.\n\n\n\n\nDos tres.\nCuatro.", "Dos tres.\nCuatro.", 6, 6),
        ("a.txt", "\ufeffUno.\n", "Uno.", 0, 1),
        # The second of two that are alike, as in the text of the index.
        ("a.md", "Igual.\n\n\nIgual.\n", "Igual.", 8, 4),
        ("a.txt", "La renta ya no está aquí.", "La renta es de 815 euros.", 0, None),
        ("a.html", "<p>Uno.</p>", "Uno.", 0, None),
        ("a.txt", "Uno\0.", "Uno", 0, None),
    ],
)
def test_lines_are_those_of_the_file(
    tmp_path: Path, name: str, written: str, quote: str, start: int, line: int | None
) -> None:
    path = tmp_path / name
    path.write_text(written, encoding="utf-8")
    text = re.sub(r"\n{3,}", "\n\n", written.lstrip("\ufeff"))
    assert _line(text, str(path), start, quote) == line
    # Without the text of the index, only what the file has once has a line.
    assert _line(None, str(path), start, quote) == (None if written.count("Igual") > 1 else line)


def test_a_file_that_is_gone_has_no_lines(tmp_path: Path) -> None:
    assert _line("Uno.", str(tmp_path / "no.txt"), 0, "Uno.") is None
    assert _line("Uno.", "notas", 0, "Uno.") is None
