"""Running the command line in a process of its own, in Spanish and without colours."""

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "lince_rag.cli.app"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "LC_ALL": "es_ES.UTF-8", "NO_COLOR": "1", "COLUMNS": "200", "PYTHONUTF8": "1", **more}


def run(
    *arguments: str, status: int = 0, cwd: Path | None = None, given: str = "", **more: str
) -> tuple[str, str]:
    """Run a command with a text as its standard input; return what it wrote to its output and its errors."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True, text=True, cwd=cwd, env=environment(**more), timeout=120, input=given,
    )  # fmt: skip
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr or "--debug" in arguments
    return done.stdout, done.stderr
