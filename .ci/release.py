"""Makes a release: `make release VERSION=0.2.0`, or `make rehearsal VERSION=0.2.0` to look at one first.

It asks for a clean working tree whose commit has passed `.ci/run`, gives what is under "Unreleased" the version
and the date, writes the version into pyproject.toml, builds, and leaves in dist/VERSION what is published: sdist
and wheel, a list of what the package depends on (CycloneDX), their licences, known vulnerabilities, the release
notes, and checksums. Then it commits and tags. Nothing is pushed or uploaded. A rehearsal (``--dry-run``) does
all this in a clone that it deletes.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from licences import dependencies, report, user_extras
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

# `.ci/run` writes the commit here whose tests have passed.
STAMP: Final = Path("build") / "green"
CHANGELOG: Final = "CHANGELOG.md"
PYPROJECT: Final = "pyproject.toml"
UNRELEASED: Final = "## [Unreleased]\n"

# Files that have no place in an archive: tests, and what may hold a key.
FORBIDDEN: Final = re.compile(
    r"(^|/)(tests?|notebooks|\.[^/]+|[^/]*\.(pem|key|env|sqlite)|[^/]*(secret|credential)[^/]*)(/|$)"
)

# A question to the vulnerability service may not keep a release waiting.
AUDIT_SECONDS: Final = 300


class ReleaseError(Exception):
    """Why there is no release."""


def git(*arguments: str, folder: Path) -> str:
    """Run git and return what it prints."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def current_version(folder: Path) -> str:
    """Return the version in pyproject.toml, its only place."""
    found = re.search(r'^version = "(.+)"$', (folder / PYPROJECT).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found, "pyproject.toml has no version"
    return found[1]


def check(folder: Path, version: str) -> None:
    """Refuse what cannot be released: a wrong version, uncommitted changes, a commit that was not tested."""
    try:
        wanted = Version(version)
    except InvalidVersion:
        raise ReleaseError(f"{version!r} is no version: give one as 1.2.3 or 1.2.3rc1.") from None
    before = current_version(folder)
    if str(wanted) != version or wanted <= Version(before):
        raise ReleaseError(f"{version!r} does not follow {before}: give a higher version, in its shortest form.")
    if git("tag", "--list", f"v{version}", folder=folder):
        raise ReleaseError(f"The tag v{version} is there already.")
    if changed := git("status", "--porcelain", folder=folder):
        raise ReleaseError(f"There are uncommitted changes:\n{changed}")
    stamp = folder / STAMP
    if not stamp.is_file() or stamp.read_text().strip() != git("rev-parse", "HEAD", folder=folder):
        raise ReleaseError("The tests of this commit have not passed: run .ci/run.")
    if not notes(folder):
        raise ReleaseError(f'Nothing has changed: there is nothing under "Unreleased" in {CHANGELOG}.')


def notes(folder: Path) -> str:
    """Return what the changelog says under "Unreleased"."""
    text = (folder / CHANGELOG).read_text(encoding="utf-8").split(UNRELEASED, 1)[1]
    return re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0].strip()


def bump(folder: Path, version: str, day: str) -> None:
    """Write the version into pyproject.toml, and version and day over the changes."""
    path = folder / PYPROJECT
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace(f'version = "{current_version(folder)}"', f'version = "{version}"', 1), encoding="utf-8"
    )
    path = folder / CHANGELOG
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(UNRELEASED, f"{UNRELEASED}\n## [{version}] - {day}\n", 1), encoding="utf-8")


def build(folder: Path, target: Path, moment: int) -> None:
    """Build the sdist, and the wheel from it, with the times of the files set to a moment (seconds since 1970)."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), "."]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "SOURCE_DATE_EPOCH": str(moment)}
    )
    if done.returncode:
        raise ReleaseError(f"The build failed:\n{done.stdout}{done.stderr}")
    for path in target.iterdir():
        if found := sorted(filter(FORBIDDEN.search, names(path))):
            raise ReleaseError(f"{path.name} contains what it should not: {', '.join(found)}")


def names(archive: Path) -> list[str]:
    """Return the names of the files of a wheel or sdist."""
    if archive.suffix == ".whl":
        return zipfile.ZipFile(archive).namelist()
    with tarfile.open(archive) as opened:
        return opened.getnames()


def bill_of_materials(folder: Path, version: str, *, validate: bool) -> str:
    """Return what the package depends on, with its extras for users, as CycloneDX JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch, "environment.json")
        subprocess.run(
            [
                *(sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", PYPROJECT),
                *("--mc-type", "library", "--output-reproducible", "--no-validate", "-o", str(whole)),
                sys.executable,
            ],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        bill: dict[str, Any] = json.loads(whole.read_text(encoding="utf-8"))
    # The environment also has what only those need who work on the package.
    wanted = set(dependencies(user_extras()))
    bill["components"] = [each for each in bill["components"] if canonicalize_name(each["name"]) in wanted]
    known = {each["bom-ref"] for each in bill["components"]}
    root = bill["metadata"]["component"]
    root["version"] = version
    bill["dependencies"] = [
        each | {"dependsOn": [ref for ref in each.get("dependsOn", ()) if ref in known]}
        for each in bill["dependencies"]
        if each["ref"] in known | {root["bom-ref"]}
    ]
    text = json.dumps(bill, indent=2, ensure_ascii=False) + "\n"
    if validate:
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator

        if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
            raise ReleaseError(f"The list of dependencies is not valid CycloneDX: {error}")
    return text


def vulnerabilities(folder: Path, *options: str) -> tuple[str, bool]:
    """Ask the vulnerability service about the versions of constraints.txt.

    Args:
        folder: The repository.
        *options: More options of pip-audit.

    Returns:
        What was found, as Markdown, and whether that allows a release. So does a service that does not answer: the
        text says that nobody was asked.
    """
    command = [
        *(sys.executable, "-m", "pip_audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip"),
        *("--format", "markdown", "--progress-spinner", "off", *options),
    ]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=AUDIT_SECONDS)
    except subprocess.TimeoutExpired:
        return "Not checked: the vulnerability service did not answer in time.\n", True
    if done.returncode == 0:
        return "No known vulnerabilities.\n", True
    if "|" in done.stdout:
        return done.stdout, False
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"Not checked: pip-audit could not ask the vulnerability service ({last}).\n", True


def write_files(folder: Path, version: str, options: argparse.Namespace) -> list[Path]:
    """Build, and write everything that is published into dist/VERSION."""
    target = folder / "dist" / version
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    build(folder, target, int(git("log", "-1", "--format=%ct", folder=folder)))
    written = {
        "sbom.cdx.json": bill_of_materials(folder, version, validate=options.validation),
        "licences.md": report(),
        "notes.md": notes_of(folder, version),
    }
    if options.audit:
        written["vulnerabilities.md"], fine = vulnerabilities(folder)
        print(written["vulnerabilities.md"], end="")
        if not fine and not options.accept_vulnerabilities:
            raise ReleaseError("Update what has known vulnerabilities, or say --accept-vulnerabilities.")
    for name, text in written.items():
        (target / name).write_text(text, encoding="utf-8")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in sorted(target.iterdir())]
    (target / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")
    return sorted(target.iterdir())


def notes_of(folder: Path, version: str) -> str:
    """Return what the changelog says of a version."""
    text = (folder / CHANGELOG).read_text(encoding="utf-8").split(f"\n## [{version}]", 1)[1].split("\n", 1)[1]
    return re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0].strip() + "\n"


def release(folder: Path, options: argparse.Namespace) -> None:
    """Make the release in a repository; an error leaves it as it was."""
    version = options.version
    check(folder, version)
    try:
        bump(folder, version, datetime.now(tz=UTC).date().isoformat())
        for path in write_files(folder, version, options):
            print(f"{path.relative_to(folder)}: {path.stat().st_size / 1000:.0f} kB")
    except BaseException:
        git("checkout", "--quiet", "--", PYPROJECT, CHANGELOG, folder=folder)
        shutil.rmtree(folder / "dist" / version, ignore_errors=True)
        raise
    git("commit", "--quiet", "--message", f"Release {version}", "--", PYPROJECT, CHANGELOG, folder=folder)
    git("tag", "--annotate", f"v{version}", "--message", f"lince_rag {version}", folder=folder)


def rehearse(folder: Path, options: argparse.Namespace) -> None:
    """Make the release in a clone, which is then deleted."""
    if changed := git("status", "--porcelain", folder=folder):
        raise ReleaseError(f"There are uncommitted changes:\n{changed}")
    with tempfile.TemporaryDirectory(prefix="lince-release-") as scratch:
        clone = Path(scratch, "clone")
        git("clone", "--quiet", str(folder), str(clone), folder=folder)
        for key in ("user.name", "user.email"):
            git("config", key, git("config", "--default", "lince-rag", key, folder=folder), folder=clone)
        if (folder / STAMP).is_file():
            (clone / STAMP).parent.mkdir()
            shutil.copy(folder / STAMP, clone / STAMP)
        release(clone, options)
    print("This was a dry run: nothing has changed.")


def main() -> None:
    """Read the options and make the release."""
    parser = argparse.ArgumentParser(description="Make a release: build, list what is in it, commit and tag.")
    parser.add_argument("version", help="The new version, as 0.2.0.")
    parser.add_argument("--dry-run", action="store_true", help="Do it in a clone that is deleted.")
    parser.add_argument("--accept-vulnerabilities", action="store_true", help="Release in spite of known ones.")
    parser.add_argument("--no-audit", dest="audit", action="store_false", help="Ask for no vulnerabilities.")
    parser.add_argument(
        "--no-validation", dest="validation", action="store_false", help="Do not check the SBOM (half a minute)."
    )
    options = parser.parse_args()
    folder = Path(__file__).parents[1]
    try:
        (rehearse if options.dry_run else release)(folder, options)
    except ReleaseError as error:
        sys.exit(str(error))
    if not options.dry_run:
        print(f"Released v{options.version}. To publish it: git push --follow-tags")


if __name__ == "__main__":
    main()
