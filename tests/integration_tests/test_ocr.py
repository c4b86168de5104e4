"""Scanned pages and pictures are read with Tesseract, if asked for; PDFs are opened with their password."""

import io
import shutil
from pathlib import Path

import pypdfium2
import pytest
from PIL import Image

from lince_rag import Index
from lince_rag.documents.files import FileLoader
from lince_rag.documents.readers import ocr
from lince_rag.errors import ConfigurationError, DocumentError, MissingExtraError
from tests.unit_tests.file_samples import new_pdf, pdf_bytes, zip_bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tesseract") is None, reason="the program Tesseract is not installed"),
]

SCANNED = "La fianza del piso es de 815 euros.\nSe devuelve al final del contra-\nto, en treinta días."
READ = "La fianza del piso es de 815 euros. Se devuelve al final del contrato, en treinta días."


def picture(text: str = SCANNED) -> Image.Image:
    """A page as a scanner makes it at 150 dots an inch."""
    document = pypdfium2.PdfDocument(pdf_bytes([text]))
    image: Image.Image = document[0].render(scale=150 / 72).to_pil()
    document.close()
    return image


def image_bytes(kind: str, *frames: Image.Image) -> bytes:
    out = io.BytesIO()
    more = {"save_all": True, "append_images": frames[1:]} if len(frames) > 1 else {}
    frames[0].save(out, kind, **more)
    return out.getvalue()


def scanned_pdf() -> bytes:
    pdf = new_pdf()
    pdf.add_page()
    pdf.multi_cell(w=0, text="Contrato de alquiler de la casa de la playa.")
    pdf.add_page()
    pdf.image(picture(), x=0, y=0, w=210)
    return bytes(pdf.output())


def test_a_scanned_page_among_others(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(scanned_pdf())
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        assert index.ingest(tmp_path / "a.pdf").pages_without_text == {str(tmp_path / "a.pdf"): [2]}
        assert READ not in index.text(str(tmp_path / "a.pdf"))
        # What was read without its pictures is read again with them, and then only once.
        report = index.ingest(tmp_path / "a.pdf", ocr=True)
        assert (report.changed, report.pages_without_text) == ([str(tmp_path / "a.pdf")], {})
        assert index.ingest(tmp_path / "a.pdf", ocr=True).unchanged
        # A run without it changes nothing, either.
        assert index.ingest(tmp_path / "a.pdf").unchanged
        assert index.ingest(tmp_path / "a.pdf", ocr=True).unchanged
        (chunk, *_) = index.as_retriever().invoke("¿De cuánto es la fianza?")
        assert READ in chunk.page_content
        pages = dict([(chunk.metadata["start"], chunk.metadata["page"]), *chunk.metadata.get("page_starts", [])])
        at = index.text(str(tmp_path / "a.pdf")).index("815")
        assert pages[max(start for start in pages if start <= at)] == 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"])
def test_pictures(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(image_bytes(kind, picture()))
    (document,) = FileLoader(path, ocr=True).load()
    assert document.page_content == READ
    with pytest.raises(DocumentError, match="not supported without --ocr"):
        FileLoader(path).load()


def test_the_frames_of_a_tiff_are_pages(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(image_bytes("TIFF", picture(), picture("El segundo folio.")))
    (document,) = FileLoader(tmp_path / "a.tif", ocr=True).load()
    assert [section["page"] for section in document.metadata["sections"]] == [1, 2]


def test_pictures_of_a_folder_only_if_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(image_bytes("PNG", picture()))
    (folder / "roto.png").write_bytes(b"\x89PNG roto")
    (folder / "vacia.png").write_bytes(image_bytes("PNG", Image.new("RGB", (300, 300), "white")))
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        assert len(index.ingest(folder).skipped["unsupported"]) == 3
        report = index.ingest(folder, ocr=True)
        assert report.added == [str(folder / "a.png")]
        reasons = {Path(error.source).name: error.reason for error in report.failed}
        assert reasons["vacia.png"] == "no text in it"
        assert "picture" in reasons["roto.png"]


def test_inside_an_archive(tmp_path: Path) -> None:
    files = {
        "nota.txt": b"La fianza se paga en mayo.",
        "foto.png": image_bytes("PNG", picture()),
        "clave.pdf": pdf_bytes(["El gas se cierra en el pasillo."], password="secreto"),
        "escaneado.pdf": scanned_pdf(),
    }
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes(files))
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        report = index.ingest(path)
        assert report.left_out == {
            str(path): [
                "clave.pdf: protected with a password (give it with --password)",
                "escaneado.pdf: pages without text (scanned?): 2",
            ]
        }
        report = index.ingest(path, ocr=True, password="secreto")
        assert (report.changed, report.left_out) == ([str(path)], {})
        assert index.text(str(path)).count("815 euros") == 2
        assert "El gas se cierra" in index.text(str(path))
        assert index.ingest(path, ocr=True, password="secreto").unchanged == [str(path)]
        # A rebuilt index remembers how its files were read.
        folder = index.folder
    Index.rebuild(folder)
    with Index.open(folder) as index:
        assert index.ingest(path, ocr=True, password="secreto").unchanged == [str(path)]


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pytesseract

    (tmp_path / "a.txt").write_text("Hola a todos.")
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        monkeypatch.setattr(ocr, "LANGUAGES", ("spa", "xyz"))
        with pytest.raises(ConfigurationError, match=r"cannot read xyz.*apt install"):
            index.ingest(tmp_path / "a.txt", ocr=True)
        monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", "no-such-program")
        with pytest.raises(ConfigurationError, match=r"not installed.*apt install tesseract-ocr"):
            index.ingest(tmp_path / "a.txt", ocr=True)
        monkeypatch.setattr("lince_rag.errors.find_spec", lambda package: None)
        with pytest.raises(MissingExtraError, match="ocr"):
            index.ingest(tmp_path / "a.txt", ocr=True)


def test_a_password(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf_bytes(["La fianza es de 815 euros."], password="secreto"))
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        asked = "protected with a password (give it with --password)"
        for password, reason in ((None, asked), ("otro", "protected with another password")):
            (error,) = index.ingest(tmp_path / "a.pdf", password=password).failed
            assert error.reason == reason
        assert index.ingest(tmp_path / "a.pdf", password="secreto").added
        assert "815 euros" in index.text(str(tmp_path / "a.pdf"))
    assert "secreto" not in (tmp_path / "index" / "ledger.sqlite").read_bytes().decode("latin-1")
