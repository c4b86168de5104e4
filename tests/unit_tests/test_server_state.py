"""What a server keeps beside its indexes, and what clients are told of documents."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lince_rag.errors import ConfigurationError
from lince_rag.index.locations import data_folder
from lince_rag.serve.collections import collection_indexes, document_id, public_names
from lince_rag.serve.jobs import NAME_BYTES, safe_name
from lince_rag.serve.state import ServerState

UPLOADS = Path("/srv/uploads/papeles")


@pytest.fixture
def state(tmp_path: Path) -> ServerState:
    return ServerState(tmp_path / "data")


def test_a_key_gives_its_rights_and_no_others(state: ServerState) -> None:
    key = state.find_key(state.add_key("ana", {"a": "read", "b": "write"}))
    assert key
    rights = [(right, name) for name in "abc" for right in ("read", "write") if key.may(right, name)]  # type: ignore[arg-type]
    assert rights == [("read", "a"), ("read", "b"), ("write", "b")]
    every = state.find_key(state.add_key("todo", {"*": "read"}))
    assert every
    assert every.may("read", "anything")
    assert not every.may("write", "anything")


def test_a_key_is_found_only_as_it_was_given(state: ServerState) -> None:
    token = state.add_key("ana", {"*": "read"})
    prefix, identity, secret = token.split("_", 2)
    other = state.add_key("eva", {"*": "write"}).split("_", 2)[2]
    wrong = ["", "_", "__", token[:-1], token + "x", token.upper(), f"{prefix}_{identity}_", f"{prefix}__{secret}"]
    wrong += [f"{prefix}_{identity}_{other}", f"x_{identity}_{secret}", f"{identity}_{secret}", "é_ñ_\ud800"]
    assert [state.find_key(each) for each in wrong] == [None] * len(wrong)
    assert state.find_key(token)
    state.remove_key("ana")
    assert state.find_key(token) is None
    assert [key.name for key in state.list_keys()] == ["eva"]


def test_keys_and_files_are_private(state: ServerState) -> None:
    token = state.add_key("ana", {"*": "read"})
    assert stat.S_IMODE(state.folder.stat().st_mode) == 0o700
    for file in state.folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert token.rpartition("_")[2].encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("name", "rights"), [("", {"a": "read"}), ("ana", {}), ("ana", {"a": "admin"}), ("twice", {"a": "read"})]
)
def test_a_key_that_cannot_be_made(state: ServerState, name: str, rights: dict[str, str]) -> None:
    state.add_key("twice", {"*": "read"})
    with pytest.raises(ConfigurationError):
        state.add_key(name, rights)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="--data"):
        ServerState(tmp_path / "file")
    with pytest.raises(ConfigurationError, match="no key named 'ana'"):
        ServerState(tmp_path / "data").remove_key("ana")


def test_each_job_is_taken_once_and_in_order(state: ServerState) -> None:
    first, second = state.add_job("a", ["/x"]), state.add_job("b", ["/y", "/z"])
    others = ServerState(state.folder)
    assert [job.id for job in (state.take_job(), others.take_job()) if job] == [first.id, second.id]
    assert state.take_job() is None
    state.progress(second.id, 1, 2)
    found = others.job(second.id)
    assert found
    assert (found.status, found.done, found.total) == ("running", 1, 2)
    others.finish_job(second.id, report={"added": ["y"]})
    others.finish_job(first.id, error="no")
    assert [(job.status, job.error) for job in state.jobs("a", 9)] == [("failed", "no")]
    assert state.jobs("b", 9)[0].report == {"added": ["y"]}


def test_one_purge_waits_at_most(state: ServerState) -> None:
    assert state.add_job("a", []).id == state.add_job("a", []).id
    assert state.add_job("b", []).id != state.add_job("a", []).id
    assert state.take_job()
    state.add_job("a", [])
    assert [job.status for job in state.jobs("a", 9)] == ["queued", "running"]


def test_jobs_of_a_worker_that_died_are_taken_again(state: ServerState) -> None:
    job = state.add_job("a", ["/x"])
    script = "import sys; from pathlib import Path; from lince_rag.serve.state import ServerState; "
    script += "print(ServerState(Path(sys.argv[1])).take_job().id)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(state.folder)], capture_output=True, check=True, text=True
    )
    assert done.stdout.strip() == job.id
    assert state.take_job() is None
    state.release_jobs()
    taken = state.take_job()
    assert taken
    assert taken.id == job.id
    # A running worker keeps what it has taken; one that ends gives it back.
    state.release_jobs()
    assert state.take_job() is None
    state.release_jobs(own=True)
    assert state.take_job()


def test_votes_are_kept(state: ServerState) -> None:
    state.vote("a", "¿Cuánto?", {"answer": "815", "quote": "«815»"}, 1)
    state.vote("b", "x", {}, -1)
    assert state.votes("a") == [{"question": "¿Cuánto?", "vote": 1, "answer": {"answer": "815", "quote": "«815»"}}]


@given(st.text() | st.none())
def test_a_file_name_stays_in_its_folder(name: str | None) -> None:
    safe = safe_name(name)
    assert safe == os.path.basename(safe)
    assert 0 < len(safe.encode("utf-8")) <= NAME_BYTES
    assert not safe.startswith(".")
    assert all(each.isprintable() for each in safe)
    assert safe_name(safe) == safe


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ("../../etc/passwd.txt", "passwd.txt"),
        (r"C:\Users\ana\acta.pdf", "acta.pdf"),
        ("acta\r\nSet-Cookie: x.txt", "actaSet-Cookie: x.txt"),
        ("", "document"),
        ("....pdf", "pdf"),
        ("x" * 500 + ".pdf", "x" * 196 + ".pdf"),
        ("ata da reunia\u0303o.txt", "ata da reunião.txt"),
    ],
)
def test_file_names(given_name: str, kept: str) -> None:
    assert safe_name(given_name) == kept


def test_names_tell_nothing_of_the_machine() -> None:
    sources = ["/home/ana/docs/a.txt", "/home/ana/docs/2024/b.pdf", "acta de mayo", f"{UPLOADS}/c.md"]
    assert public_names(sources, UPLOADS) == ["a.txt", "2024/b.pdf", "acta de mayo", "c.md"]
    assert public_names([], UPLOADS) == []


PART = st.text("abñ .", min_size=1, max_size=5).filter(lambda part: part.strip(".") != "")


@given(st.lists(st.lists(PART, min_size=1, max_size=4).map("/".join), min_size=1, max_size=5, unique=True))
def test_names_are_different_and_relative(paths: list[str]) -> None:
    folder = "/home/ana"
    names = public_names([f"{folder}/{path}" for path in paths], UPLOADS)
    assert len(set(names)) == len(paths)
    assert not any(name.startswith("/") or ".." in name.split("/") or "ana" in name.split("/") for name in names)
    assert len({document_id(path) for path in paths}) == len(paths)


def test_collections_are_named_by_their_indexes_or_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = "lince+postgresql://ana:secreto@h/d?chroma=http://h:8000&collection=actas"
    Path("obra.toml").write_text('ledger = "postgresql://h/d"\nchroma = "http://h:8000"\ncollection = "planos"\n')
    found = collection_indexes(["uno", f"otra={tmp_path / 'dos'}", address, f"mías={address}", "obra.toml"])
    assert found == {
        "uno": str(tmp_path / "uno"),
        "otra": str(tmp_path / "dos"),
        "actas": address,
        "mías": address,
        "planos": str(tmp_path / "obra.toml"),
    }
    with pytest.raises(ConfigurationError, match="'uno'"):
        collection_indexes([str(tmp_path / "uno"), f"uno={tmp_path / 'dos'}"])
    # Keys and uploads are beside the index, or where this machine keeps data; not in a cache.
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert data_folder("uno") == tmp_path / "uno.serve"
    assert data_folder(Path("obra.toml")) == tmp_path / "obra.toml.serve"
    # As the command line gives it: one slash is lost.
    assert data_folder(Path(address)) == data_folder(address.replace(":secreto", ""))
    assert data_folder(address).is_relative_to(tmp_path / "data" / "lince_rag")
    assert "secreto" not in str(data_folder(address))
