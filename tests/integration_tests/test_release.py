"""What is released: wheel and sdist, in an environment without the checkout, and the script that releases."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Final

import pytest

import lince_rag
from lince_rag.cli.demo import load_questions

pytestmark = pytest.mark.slow

PROJECT: Final = Path(__file__).parents[2]
VERSION: Final = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]

# Where the Makefile puts what a release needs.
RELEASE: Final = Path(sys.prefix) / "release"

# Beside the package, the sdist has what it takes to build the wheel.
SDIST_FILES: Final = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
# Keys as they look: private ones, those of this server, of providers and of clouds.
SECRET: Final = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY|\blince_[A-Za-z0-9_-]{32}|\bsk-[A-Za-z0-9]{20}|\bAKIA[A-Z0-9]{16}"
)


def run(command: list[str | Path], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(each) for each in command],
        cwd=folder, env={**environment, **variables}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip


def copy_project(target: Path) -> Path:
    """Copy what git has, or would have if it were added."""
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], PROJECT).stdout
    for name in filter(None, listed.split("\0")):
        if (PROJECT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, target / name, follow_symlinks=False)
    return target


def build(project: Path, target: Path, *options: str) -> None:
    # The same times in both wheels.
    done = run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, *options, "."],
        project, SOURCE_DATE_EPOCH="1700000000",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def package_files() -> dict[str, bytes]:
    """The files of the package in the checkout; ``lince_rag/prompts`` is a link there."""
    folders = [PROJECT / "lince_rag", PROJECT / "lince_rag" / "prompts"]
    paths = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    return {
        path.relative_to(PROJECT).as_posix(): path.read_bytes()
        for path in paths
        if "__pycache__" not in path.parts
    }


def wheel_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    build(copy_project(tmp_path_factory.mktemp("project")), folder)
    return folder


@pytest.fixture(scope="module")
def wheel(archives: Path) -> Path:
    return archives / f"lince_rag-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, and sees the other packages of this one, but not its .pth
    files, which lead to the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "others.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    done = run([folder / "bin" / "python", "-m", "pip", "install", "--no-deps", "--no-index", "-q", wheel], folder)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def test_the_wheel_is_the_package_and_nothing_else(wheel: Path) -> None:
    found = {name: data for name, data in wheel_files(wheel).items() if ".dist-info/" not in name}
    wanted = package_files()
    assert sorted(found) == sorted(wanted)
    assert found == wanted
    assert "lince_rag/prompts/models.toml" in found
    assert not [name for name, data in found.items() if SECRET.search(data)]


def test_the_sdist_is_the_package_and_what_builds_it(archives: Path) -> None:
    root = f"lince_rag-{VERSION}"
    with tarfile.open(archives / f"{root}.tar.gz") as archive:
        # Its links would lead out of it.
        assert not [each.name for each in archive if each.issym() or each.islnk()]
        files = {each.name.removeprefix(f"{root}/") for each in archive if each.isfile()}
    assert {name for name in files if ".egg-info/" not in name} == package_files().keys() | SDIST_FILES


def test_the_sdist_gives_the_same_wheel_as_the_checkout(wheel: Path, tmp_path: Path) -> None:
    build(copy_project(tmp_path / "project"), tmp_path / "dist", "--wheel")
    assert wheel_files(tmp_path / "dist" / wheel.name) == wheel_files(wheel)


def test_versions_agree(binaries: Path, tmp_path: Path) -> None:
    released = re.findall(r"^## \[(\d\S*)\]", (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[0] == VERSION
    assert lince_rag.__version__ == VERSION
    told = run(
        [binaries / "python", "-c", "import lince_rag; print(lince_rag.__version__, lince_rag.__file__)"], tmp_path
    )
    version, file = told.stdout.split()
    assert version == VERSION
    assert Path(file).is_relative_to(binaries.parent)
    assert run([binaries / "lince-rag", "--version"], tmp_path).stdout == f"lince-rag {VERSION}\n"


def test_the_requirements_are_there(binaries: Path, tmp_path: Path) -> None:
    complaints = run([binaries / "python", "-m", "pip", "check"], tmp_path).stdout.splitlines()
    assert not [line for line in complaints if line.startswith("lince-rag ")]


def test_the_demo(binaries: Path, tmp_path: Path) -> None:
    done = run([binaries / "lince-rag", "demo"], tmp_path, LC_ALL="es_ES.UTF-8", PYTHONUTF8="1", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for question in load_questions():
        assert question["text"] in done.stdout
        assert question.get("source", "") in done.stdout


def test_an_answer_about_an_own_document(binaries: Path, tmp_path: Path) -> None:
    (tmp_path / "aviso.txt").write_text("La piscina abre el 3 de junio a las diez.", encoding="utf-8")
    done = run([binaries / "lince-rag", "ingest", "aviso.txt", "--index", "casa"], tmp_path)
    assert done.returncode == 0, done.stderr
    asked = run([binaries / "lince-rag", "ask", "¿Cuándo abre la piscina?", "--index", "casa", "--json"], tmp_path)
    answer = json.loads(asked.stdout)
    assert answer["short"] == "3 de junio"
    assert [each["quote"] for each in answer["citations"]] == ["La piscina abre el 3 de junio a las diez."]


def test_the_page_is_in_the_wheel(binaries: Path, tmp_path: Path) -> None:
    code = "from importlib.resources import files; print(*files('lince_rag.serve').joinpath('page').iterdir())"
    found = list(map(Path, run([binaries / "python", "-c", code], tmp_path).stdout.split()))
    assert all(each.is_relative_to(binaries.parent) for each in found)
    wanted = {each.name for each in (PROJECT / "lince_rag" / "serve" / "page").iterdir()}
    assert {each.name for each in found} == wanted


# --------------------------------------------------------------------------------------------- the release script

NEXT: Final = "7.0.0"


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of this project whose only commit has passed its tests, as its stamp says."""
    folder = copy_project(tmp_path_factory.mktemp("released"))
    for command in (["init", "-q"], ["add", "-A"], [*identity(), "commit", "-qm", "Everything"]):
        assert run(["git", *command], folder).returncode == 0
    commit = run(["git", "rev-parse", "HEAD"], folder).stdout
    (folder / "build").mkdir()
    (folder / "build" / "green").write_text(commit)
    return folder


@pytest.fixture
def repository(tested: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tested, tmp_path / "repository", symlinks=True))


def identity() -> list[str]:
    return ["-c", "user.name=Prueba", "-c", "user.email=prueba@example.org"]


def release(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, ".ci/release.py", *arguments, "--no-audit", "--no-validation"]
    # cyclonedx-bom is beside the environment.
    paths = os.pathsep.join([str(RELEASE), *(path for path in sys.path if path and Path(path) != PROJECT)])
    author = {f"GIT_{who}_{what}": "prueba" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return run([*script], repository, PYTHONPATH=paths, **author)


def state(repository: Path) -> list[str]:
    """The commit, the tags, what is changed and what is in dist."""
    told = [run(["git", *each], repository).stdout for each in (["rev-parse", "HEAD"], ["tag"], ["status", "-s"])]
    return [*told, *sorted(path.name for path in repository.glob("dist/*"))]


def unstamp(repository: Path) -> None:
    (repository / "build" / "green").write_text("0" * 40)


def change(repository: Path) -> None:
    (repository / "README.md").write_text("changed")


def tag(repository: Path) -> None:
    run(["git", "tag", f"v{NEXT}"], repository)


@pytest.mark.parametrize(
    ("version", "prepare", "said"),
    [
        ("seven", None, "is no version"),
        ("07.0.0", None, "in its shortest form"),
        (VERSION, None, f"does not follow {VERSION}"),
        ("0.0.9", None, f"does not follow {VERSION}"),
        (NEXT, tag, "is there already"),
        (NEXT, change, "uncommitted changes"),
        (NEXT, unstamp, "run .ci/run"),
    ],
)
def test_what_is_not_released(repository: Path, version: str, prepare: object, said: str) -> None:
    if callable(prepare):
        prepare(repository)
    before = state(repository)
    done = release(repository, version)
    assert done.returncode == 1
    assert said in done.stderr
    assert state(repository) == before


def test_nothing_is_released_where_nothing_has_changed(repository: Path) -> None:
    path = repository / "CHANGELOG.md"
    head, rest = path.read_text(encoding="utf-8").split("## [Unreleased]\n")
    path.write_text(f"{head}## [Unreleased]\n\n## [" + rest.split("\n## [", 1)[1], encoding="utf-8")
    run(["git", *identity(), "commit", "-qam", "Nothing"], repository)
    (repository / "build" / "green").write_text(run(["git", "rev-parse", "HEAD"], repository).stdout)
    assert "Nothing has changed" in release(repository, NEXT).stderr


def test_a_failed_build_leaves_the_repository_as_it_was(repository: Path) -> None:
    path = repository / "pyproject.toml"
    path.write_text(
        path.read_text().replace('build-backend = "setuptools.build_meta"', 'build-backend = "nothing"')
    )
    run(["git", *identity(), "commit", "-qam", "Break"], repository)
    (repository / "build" / "green").write_text(run(["git", "rev-parse", "HEAD"], repository).stdout)
    before = state(repository)
    done = release(repository, NEXT)
    assert done.returncode == 1
    assert "The build failed" in done.stderr
    assert state(repository) == before


def test_a_rehearsal_and_a_release(repository: Path) -> None:
    if not RELEASE.is_dir():
        pytest.skip("`make test` installs what a release needs, beside the environment.")
    before = state(repository)
    rehearsed = release(repository, NEXT, "--dry-run")
    assert rehearsed.returncode == 0, rehearsed.stderr
    assert f"lince_rag-{NEXT}-py3-none-any.whl" in rehearsed.stdout
    assert state(repository) == before

    unreleased = (repository / "CHANGELOG.md").read_text(encoding="utf-8").split("## [Unreleased]\n")[1]
    unreleased = unreleased.split("\n## [")[0].strip()
    done = release(repository, NEXT)
    assert done.returncode == 0, done.stderr
    assert run(["git", "tag", "--points-at", "HEAD"], repository).stdout == f"v{NEXT}\n"
    assert not run(["git", "status", "--short"], repository).stdout
    assert run(["git", "show", "--stat", "--format=%s"], repository).stdout.startswith(f"Release {NEXT}\n")
    changelog = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[Unreleased\]\n\n## \[{NEXT}\] - \d{{4}}-\d\d-\d\d\n\n### ", changelog, re.MULTILINE)
    check_files(repository / "dist" / NEXT, unreleased)
    # And not twice.
    assert "does not follow" in release(repository, NEXT).stderr


def check_files(folder: Path, unreleased: str) -> None:
    archives = {f"lince_rag-{NEXT}.tar.gz", f"lince_rag-{NEXT}-py3-none-any.whl"}
    lists = {"SHA256SUMS", "licences.md", "notes.md", "sbom.cdx.json"}
    assert {path.name for path in folder.iterdir()} == archives | lists
    assert (folder / "notes.md").read_text(encoding="utf-8").strip() == unreleased
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "SHA256SUMS"
    }
    metadata = wheel_files(folder / f"lince_rag-{NEXT}-py3-none-any.whl")[f"lince_rag-{NEXT}.dist-info/METADATA"]
    assert f"\nVersion: {NEXT}\n".encode() in metadata
    bill = json.loads((folder / "sbom.cdx.json").read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["metadata"]["component"]["version"]) == ("CycloneDX", NEXT)
    named = {each["name"].lower() for each in bill["components"]}
    # Dependencies of the base install and of extras, and not of those who work on the package.
    assert {"chromadb", "tantivy", "torch", "fastapi"} <= named
    assert not {"pytest", "ruff", "lince-rag"} & named
    licences = (folder / "licences.md").read_text(encoding="utf-8")
    assert "| chromadb | " in licences
    assert "| pytest | " not in licences
