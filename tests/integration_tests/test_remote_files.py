"""Folders of other file systems (``s3://``): chosen, read, recognised and removed as those of this machine."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lince_rag import Index
from lince_rag.documents import remote
from lince_rag.documents.remote import address_name, is_remote
from lince_rag.errors import ConfigurationError, MissingExtraError, installation
from tests.integration_tests.commands import run
from tests.s3_server import BUCKET, Bucket, serve_bucket

pytest.importorskip("pyarrow", reason="needs the extra ray")

FILES = {
    "c/año 2024/contrato.txt": "La renta mensual es de 815 euros.",
    "c/ata.md": "# Ata\n\nO elevador custa 1.100 euros.",
    "c/viejo/contrato.txt": "La renta mensual era de 700 euros.",
    "c/malo.pdf": "nada",
    "c/.oculto/a.txt": "Oculto.",
    "c/foto.xyz": "Otra cosa.",
    "otro.txt": "Otro texto.",
}
READABLE = {"c/año 2024/contrato.txt", "c/ata.md", "c/viejo/contrato.txt"}


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with serve_bucket() as bucket:
        for key, text in FILES.items():
            bucket.put(key, text.encode())
        yield bucket


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "index") as index:
        yield index


def named(*keys: str) -> list[str]:
    return sorted(f"s3://{BUCKET}/{key}" for key in keys)


def test_a_folder_is_chosen_and_kept_in_step_as_a_local_one(bucket: Bucket, index: Index) -> None:
    report = index.ingest(bucket.address("c"))
    assert sorted(report.added) == named(*READABLE)
    assert [error.source for error in report.failed] == named("c/malo.pdf")
    assert report.skipped == {"hidden": named("c/.oculto/"), "unsupported": named("c/foto.xyz")}
    found = index.as_retriever(k=1).invoke("¿Cuánto es la renta mensual de 815 euros?")
    assert found[0].metadata["source"] == f"s3://{BUCKET}/c/año 2024/contrato.txt"
    # What is known by its size and time is not fetched again.
    bucket.read.clear()
    report = index.ingest(bucket.address("c/"))
    assert sorted(report.unchanged) == named(*READABLE)
    assert bucket.read == ["c/malo.pdf"]
    # The same contents at another time are fetched, and recognised.
    bucket.put("c/ata.md", FILES["c/ata.md"].encode())
    assert sorted(index.ingest(bucket.address("c")).unchanged) == named(*READABLE)
    bucket.put("c/ata.md", b"# Ata\n\nO elevador custa 1.200 euros.")
    bucket.put("c/.linceignore", b"viejo/\n")
    del bucket.objects["c/año 2024/contrato.txt"]
    report = index.ingest(bucket.address("c"))
    assert report.changed == named("c/ata.md")
    assert sorted(report.removed) == named("c/año 2024/contrato.txt", "c/viejo/contrato.txt")
    assert [source.source for source in index.sources()] == named("c/ata.md")
    assert index.verify().ok


def test_what_other_addresses_hold_stays(bucket: Bucket, index: Index, tmp_path: Path) -> None:
    (tmp_path / "local.txt").write_text("Un texto de esta máquina.")
    index.ingest([bucket.address("c"), bucket.address("otro.txt"), str(tmp_path / "local.txt")])
    assert len(index.sources()) == 5
    report = index.ingest([bucket.address("c"), tmp_path / "local.txt"], include=["*.md"])
    # Left out of this run is not gone.
    assert not report.removed
    assert len(index.sources()) == 5
    # A folder without any file is no folder there: perhaps a typing error.
    bucket.objects.clear()
    report = index.ingest([bucket.address("c"), bucket.address("otro.txt")])
    assert [error.reason for error in report.failed] == ["no such file"] * 2
    assert len(index.sources()) == 5


def test_secrets_of_an_address_are_shown_nowhere(bucket: Bucket, index: Index, tmp_path: Path) -> None:
    index.ingest(bucket.address("c", secret="geheim"))
    bucket.objects.clear()
    report = index.ingest(bucket.address("c/x.txt", secret="geheim"))
    assert "geheim" not in str(report)
    with pytest.raises(ConfigurationError, match=r"s3://nada/a cannot be opened: .*connect") as unreachable:
        index.ingest("s3://a:geheim@nada/a?endpoint_override=127.0.0.1%3A9&scheme=http&region=us-east-1")
    with pytest.raises(ConfigurationError, match="nada://b/c cannot be opened: Unrecognized") as unknown:
        index.ingest("nada://a:geheim@b/c")
    assert "geheim" not in f"{unreachable.value} {unknown.value}"
    assert not [
        path for path in (tmp_path / "index").rglob("*") if path.is_file() and b"geheim" in path.read_bytes()
    ]


def test_names_of_addresses() -> None:
    assert address_name("s3://key:secret@bucket/a%C3%B1o/b?region=x") == "s3://bucket/año/b"
    assert address_name("abfs://container@account.example/a b/") == "abfs://container@account.example/a b"
    assert is_remote("gs://bucket/a")
    assert is_remote("S3://bucket")
    assert not any(map(is_remote, ["file:///a", "https://example.org/a", "a/b", "C:/a", Path("s3://b/a")]))


def test_a_file_that_is_too_large_is_not_fetched(
    bucket: Bucket, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAXIMUM_BINARY_BYTES", 30)
    report = index.ingest(bucket.address("c/ata.md"))
    assert report.failed[0].reason.startswith("too large")
    assert not bucket.read


def test_the_command_line(bucket: Bucket, tmp_path: Path) -> None:
    _, err = run("ingest", bucket.address("c"), "--index", "i", cwd=tmp_path, status=1)
    assert "malo.pdf" in err
    assert "clave" not in err
    out, _ = run("ask", "Quanto custa o elevador?", "--index", "i", cwd=tmp_path)
    assert "1.100 euros" in out
    _, err = run("ingest", bucket.address("c"), "--index", "i", "--watch", cwd=tmp_path, status=2)
    assert f"No se puede vigilar s3://{BUCKET}/c," in err


def test_without_pyarrow(bucket: Bucket, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lince_rag.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="'pyarrow'.*" + re.escape(installation("ray"))):
        index.ingest(bucket.address("c"))
