"""PostgreSQL and Chroma servers for the tests of shared indexes."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.servers import free_port

# How long a server may take to start on a busy machine.
START_SECONDS = 120


def postgresql_programs() -> Path | None:
    """The folder of PostgreSQL's server programs, which Debian does not put on the path."""
    found = shutil.which("pg_ctl")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return Path(found).parent if found else next((each for each in folders if (each / "initdb").exists()), None)


@dataclass(frozen=True)
class Servers:
    """A running PostgreSQL and a running Chroma server."""

    database: str
    chroma: str

    def index(self, collection: str, replica: Path) -> str:
        """The address of an index on them."""
        return f"lince+{self.database}?chroma={self.chroma}&collection={collection}&replica={replica}"


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a PostgreSQL server; its address."""
    programs = postgresql_programs()
    assert programs, "PostgreSQL is not installed"
    port = free_port()
    # PostgreSQL refuses to run as root. Its user may not look into the folders that pytest makes.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    settings = f"-p {port} -k '' -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=60"

    def run(program: str, *options: str) -> None:
        command = [*user, str(programs / program), "-D", f"{folder}/data", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", timeout=START_SECONDS)

    with tempfile.TemporaryDirectory(prefix="lince-postgresql-") as folder:
        if user:
            shutil.chown(folder, "postgres")
        run("initdb", "-U", "lince", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8")
        run("pg_ctl", "-l", f"{folder}/log", "-o", settings, "-w", "-t", str(START_SECONDS), "start")
        try:
            yield f"postgresql://lince@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-m", "immediate", "stop")


@contextmanager
def chroma(folder: Path) -> Iterator[str]:
    """Run a Chroma server with its data in a folder; its address."""
    port = free_port()
    program = Path(sys.executable).with_name("chroma")
    command = [str(program), "run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(10 * START_SECONDS):
            assert process.poll() is None, "the Chroma server has ended"
            try:
                httpx.get(f"{address}/api/v2/heartbeat").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        else:
            raise AssertionError("the Chroma server does not answer")
        yield address
    finally:
        process.kill()
        process.wait()


@contextmanager
def database_servers(folder: Path) -> Iterator[Servers]:
    """Run both servers; the folder is for Chroma's data."""
    with postgresql() as database, chroma(folder) as address:
        yield Servers(database, address)
