"""An index that is damaged or cannot be written: messages that are true, and repair from the ledger."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from langchain_core.documents import Document

from lince_rag import Index
from lince_rag.errors import IndexFolderError
from lince_rag.index.sqlite import FolderLedger
from tests.damage import assert_true, make_index, outcomes
from tests.lengths import STEP


@pytest.mark.slow
def test_every_damage_is_noticed_and_repaired(tmp_path: Path) -> None:
    make_index(tmp_path / "index")
    for outcome in outcomes(tmp_path / "index", tmp_path, STEP):
        assert_true(outcome)


# Every test below builds the same small index: two documents, of which one holds the answer.

QUESTION = "¿Cuándo vence el contrato?"
TEXTS = {"contrato": "El contrato vence el 30 de junio de 2027.", "acta": "El ascensor cuesta 1.100 euros."}


def documents() -> list[Document]:
    return [Document(text, metadata={"source": source}) for source, text in TEXTS.items()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Index.open(tmp_path / "index") as index:
        index.ingest(documents())
    return tmp_path / "index"


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder really unwritable: for root by a mount, because permissions do not hold it back."""
    if os.geteuid():
        paths = [folder, *folder.rglob("*")]
        modes = [path.stat().st_mode for path in paths]
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode & ~0o222)
        yield
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)
        return
    for options in (["--bind", folder, folder], ["-o", "remount,ro,bind", folder]):
        if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
            pytest.skip("mounting is not permitted")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_read_only_index_is_asked_and_checked_but_not_changed(folder: Path) -> None:
    with Index.open(folder) as index:
        expected = index.as_retriever().invoke(QUESTION)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with read_only(folder), Index.open(folder, create=False) as index:
        assert index.as_retriever().invoke(QUESTION) == expected
        assert len(index.as_retriever(filter={"source": "acta"}).invoke(QUESTION)) == 1
        assert index.verify().ok
        assert len(index.sources()) == len(TEXTS)
        for write in (
            lambda: index.ingest(Document("Otro.", metadata={"source": "otro"})),
            lambda: index.delete("acta"),
            lambda: index.verify(repair=True),
        ):
            with pytest.raises(IndexFolderError, match="cannot be changed") as caught:
                write()
            assert str(folder) in caught.value.message
            assert "write permission" in caught.value.hint
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with Index.open(folder) as index:
        index.delete("acta")


def test_a_read_only_index_of_a_killed_writer(folder: Path) -> None:
    """What was committed is then in the journal of the ledger, which SQLite cannot bring into the file."""
    code = "import os, sys; from lince_rag import Index; from langchain_core.documents import Document\n"
    code += (
        "index = Index.open(sys.argv[1]); index.ingest(Document('El gato duerme.', metadata={'source': 'gato'}))\n"
    )
    code += "os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=60)
    assert (folder / "ledger.sqlite-wal").stat().st_size
    with read_only(folder), Index.open(folder) as index:
        assert index.as_retriever(k=1).invoke("¿Duerme el gato?")[0].metadata["source"] == "gato"
        assert index.verify().ok


def test_commands_on_a_read_only_index(folder: Path) -> None:
    with read_only(folder):
        assert "30 de junio" in run("ask", QUESTION, "--index", str(folder), status=0)
        assert "en orden" in run("status", "--index", str(folder), status=0)
        for arguments in (["ingest", __file__], ["status", "--repair"], ["chat", "--session", "a"]):
            said = run(*arguments, "--index", str(folder), status=2)
            assert said.count("\n") == 1
            assert "no se puede" in said


def run(*arguments: str, status: int) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lince_rag.cli.app", *arguments],
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False,
        env={**os.environ, "LC_ALL": "es_ES.UTF-8", "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    tmp_path.joinpath("closed").mkdir()
    with read_only(tmp_path / "closed"):
        for path in (tmp_path / "closed", tmp_path / "closed" / "index"):
            with pytest.raises(IndexFolderError, match="cannot be used"):
                Index.open(path)


@pytest.mark.parametrize("left", ["missing", "empty"])
def test_stores_without_a_ledger_are_not_a_new_index(folder: Path, left: str) -> None:
    (folder / "ledger.sqlite").unlink()
    if left == "empty":
        (folder / "ledger.sqlite").touch()
    before = {path: path.stat().st_size for path in folder.rglob("*")}
    for arguments in (["ask", QUESTION], ["status", "--repair"], ["ingest", __file__]):
        said = run(*arguments, "--index", str(folder), status=2)
        assert {"missing": "falta", "empty": "está vacío"}[left] in said
        assert "restáuralo de una copia de seguridad" in said
    assert {path: path.stat().st_size for path in folder.rglob("*")} == before


def test_a_ledger_without_what_its_stores_hold_deletes_nothing(folder: Path) -> None:
    (folder / "ledger.sqlite").unlink()
    FolderLedger(folder / "ledger.sqlite").close()
    with Index.open(folder) as index:
        report = index.verify(repair=True)
        assert (report.ok, report.repaired) == (False, False)
        assert "empty" in report.damaged_ledger
        assert index.stores.lexical.ids()


def test_a_changed_text_in_the_ledger_is_noticed(folder: Path) -> None:
    """SQLite checks the structure of its file, not the values."""
    file = folder / "ledger.sqlite"
    file.write_bytes(file.read_bytes().replace(b"30 de junio", b"31 de junio"))
    with Index.open(folder) as index:
        report = index.verify(repair=True)
    assert not report.ok
    assert "'contrato' differs from its checksum" in report.damaged_ledger
    assert "copia de seguridad" in run("status", "--index", str(folder), status=1)


def test_an_index_of_an_earlier_version_has_fewer_tables(folder: Path) -> None:
    with Index.open(folder) as index:
        expected = index.as_retriever().invoke(QUESTION)
    with sqlite3.connect(folder / "ledger.sqlite") as connection:
        connection.execute("DROP TABLE checksums")
        connection.execute("DROP TABLE fingerprints")
        connection.execute("DROP TABLE term_lines")
    connection.close()
    with read_only(folder), Index.open(folder) as index:
        assert index.verify().ok
        assert index.as_retriever().invoke(QUESTION) == expected
    with Index.open(folder) as index:
        assert index.verify().ok
        assert index.as_retriever().invoke(QUESTION) == expected
        index.delete("acta")
        assert index.verify().ok


FULL = """
import resource, sys
from langchain_core.documents import Document
from lince_rag import Index, LinceError
from lince_rag.text.language import detect_language
detect_language("hola")  # unpacks its model into a file
limit, documents = int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with Index.open(sys.argv[1]) as index:
        index.ingest([
            Document(f"La finca {n} tiene olivos y {n} cabras.", metadata={"source": f"finca-{n}"})
            for n in range(documents)
        ])
except LinceError as error:
    print(error)
"""


# The limits stop the ledger, Chroma's new database, and Chroma's database when it grows.
@pytest.mark.parametrize("limit", [20_000, 100_000, 1_000_000])
def test_a_full_disk(folder: Path, tmp_path: Path, limit: int) -> None:
    path = folder if limit > 500_000 else tmp_path / "new"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(limit), "600"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "could not be written" in done.stdout
    assert "Free space" in done.stdout
    # What the hint says.
    with Index.open(path) as index:
        assert index.verify(repair=True).ok
        index.ingest(documents())
        assert index.verify().ok
        assert {source.source for source in index.sources()} == set(TEXTS)
        assert "contrato" in index.as_retriever(k=1).invoke(QUESTION)[0].metadata["source"]


def test_status_beside_a_writer(folder: Path) -> None:
    with Index.open(folder) as index, index.stores.writing():
        # Written, but not committed.
        index.stores.store(
            [Document("Nuevo.", id="new", metadata={"source": "nuevo", "language": "es"})], uncommitted={"new"}
        )
        assert "en orden" in run("status", "--index", str(folder), status=0)
        assert index.verify().ok
        assert index.ledger.uncommitted() == {"new"}
    with Index.open(folder) as index, index.stores.writing():
        assert index.ledger.uncommitted() == set()
