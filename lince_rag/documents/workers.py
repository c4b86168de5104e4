"""Worker processes that read files: a file that crashes its reader, hangs or fills the memory costs only itself.

A worker reads one file at a time (JSON lines over its standard input and output) and is used again for the next.
It watches itself, and ends when it exceeds a limit, when nothing was asked of it for a while, and when its parent
is gone. ``subprocess`` rather than ``multiprocessing``, which would run the user's script again in each worker.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

from lince_rag.documents.chunking import ChunkingSettings
from lince_rag.documents.files import FileLoader
from lince_rag.documents.prepared import PreparedDocument, prepare
from lince_rag.documents.readers.blocks import MAXIMUM_PAGES, ReadingOptions
from lince_rag.errors import ConfigurationError, DocumentError, LinceError

# More workers than this only wait for the one process that writes.
MAXIMUM_WORKERS: Final = 8

# Python, the parsers and the language model take up to 200 MiB (measured).
MINIMUM_MEMORY: Final = 256

# Files that are read ahead of the one being written, for each worker.
_AHEAD: Final = 4

# A worker may wait for a slow disk or a busy machine, so its time on the clock is limited less strictly.
_CLOCK_FACTOR: Final = 10.0

# Without work for this long, a worker ends.
_IDLE_SECONDS: Final = 20.0

# Address space that Python and its libraries reserve without using it (measured: 560 MB at most).
_RESERVED_BYTES: Final = 2**30

_POLL_SECONDS: Final = 0.05

# Exit statuses of a worker that exceeded a limit.
_OUT_OF_MEMORY: Final = 101
_OUT_OF_TIME: Final = 102


@dataclass(frozen=True)
class ReadingLimits:
    """What reading one file may take; a file that takes more is reported and left out.

    Args:
        seconds: Processor time of one file.
        memory_mib: Memory of a worker process, in MiB (Linux and macOS).
        pages: Pages of a PDF.
        workers: Number of worker processes; ``None`` takes one per processor core, at most 8.

    Raises:
        ConfigurationError: A limit is not positive, or the memory is less than a worker itself takes.
    """

    seconds: float = 60.0
    memory_mib: int = 512
    pages: int = MAXIMUM_PAGES
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise ConfigurationError(f"{name}={value!r} is not valid.", hint="Give a number above 0.")
        if self.memory_mib < MINIMUM_MEMORY:
            raise ConfigurationError(
                f"memory_mib={self.memory_mib!r} is not valid.",
                hint=f"Give {MINIMUM_MEMORY} or more: a worker itself takes up to 200.",
            )

    @property
    def processes(self) -> int:
        """The number of worker processes."""
        return self.workers or min(_usable_cores(), MAXIMUM_WORKERS)


DEFAULT_LIMITS: Final = ReadingLimits()


def _usable_cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


class ReadingPool:
    """Reads files in worker processes; a context manager, whose end stops what is still being read."""

    def __init__(
        self,
        settings: ChunkingSettings,
        limits: ReadingLimits = DEFAULT_LIMITS,
        *,
        password: str | None = None,
        ocr: bool = False,
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._options = ReadingOptions(limits.pages, password, ocr)
        self._busy: set[_Worker] = set()
        self._stopped = False

    def __enter__(self) -> "ReadingPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        for worker in tuple(self._busy):
            worker.kill()

    def read(self, path: Path, source: str) -> PreparedDocument:
        """Read and cut a file in a worker process; any thread may call it.

        Raises:
            DocumentError: The file cannot be read, crashes its reader, or takes more than the limits.
        """
        request = {
            "path": str(path),
            "source": source,
            "chunking": asdict(self._settings),
            "options": asdict(self._options),
        }
        reply: dict[str, Any] = {}
        # Whatever else killed a worker (the system, a person) may not do so again.
        for _ in range(2):
            idle = _idle(self._limits)
            worker = idle.pop() if idle else _Worker(self._limits)
            self._busy.add(worker)
            try:
                reply = worker.ask(request)
            finally:
                self._busy.discard(worker)
            if reply.get("last"):
                worker.kill()
            elif "crash" not in reply:
                idle.append(worker)
            if reply.get("crash") != "unknown" or self._stopped:
                break
        if "document" in reply:
            return PreparedDocument.from_json(reply["document"])
        raise DocumentError(source, reply["reason"])

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Apply a function that calls ``read`` to items in threads; yield its results in order.

        Only a few items are ahead of the result that is taken, so that memory stays bounded.
        """
        pending: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(self._limits.processes) as executor:
            try:
                for item in items:
                    pending.append(executor.submit(function, item))
                    if len(pending) > _AHEAD * self._limits.processes:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                if pending:
                    self.__exit__()
                    executor.shutdown(wait=False, cancel_futures=True)


# Workers without work, by their limits; they are kept for the next ingestion, because starting one takes half a
# second.
_idle_workers: dict[tuple[int, ReadingLimits], list["_Worker"]] = {}


@atexit.register
def _end_idle_workers() -> None:
    for (process, _), workers in _idle_workers.items():
        for worker in workers if process == os.getpid() else ():
            worker.kill()


def _idle(limits: ReadingLimits) -> list["_Worker"]:
    # By process, because a fork of this one must not talk to its workers.
    return _idle_workers.setdefault((os.getpid(), limits), [])


class _Worker:
    """The parent's side of one worker process, which starts with the first request."""

    def __init__(self, limits: ReadingLimits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request; return the reply, or else ``{"reason", "crash": "limit" | "unknown"}``."""
        process = self._running()
        if process is None:
            return {"reason": "the reading process was ended from outside, twice", "crash": "unknown"}
        assert process.stdin
        assert process.stdout
        overdue = threading.Event()

        def stop() -> None:
            overdue.set()
            process.kill()

        timer = threading.Timer(_CLOCK_FACTOR * self._limits.seconds, stop)
        timer.start()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            reply: dict[str, Any] = json.loads(line)
            return reply
        status = process.wait()
        self.kill()
        if status == _OUT_OF_MEMORY:
            return {
                "reason": f"reading it takes more than {self._limits.memory_mib} MiB of memory",
                "crash": "limit",
            }
        if status == _OUT_OF_TIME or overdue.is_set():
            return {"reason": f"reading it takes more than {self._limits.seconds:g} s", "crash": "limit"}
        return {"reason": f"reading it ended the reading process ({_status_name(status)})", "crash": "unknown"}

    def _running(self) -> "subprocess.Popen[bytes] | None":
        """The process, started if need be; ``None`` if a signal ended it meanwhile."""
        if self._process is None or self._process.poll() is not None:
            self.kill()
            # A pipe could fill up unread.
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
            self._process = self._start(self._errors)
            assert self._process.stdout
            if not self._process.stdout.readline():
                status = self._process.wait()
                self._errors.seek(0)
                lines = self._errors.read().decode(errors="replace").split("\n")
                self.kill()
                if status < 0:
                    return None
                raise LinceError(
                    f"The process that reads files ({sys.executable} -m {__name__}) does not start: "
                    f"{' '.join(lines[-3:]).strip() or _status_name(status)}.",
                    hint="Check that this Python can start new processes and import lince_rag.",
                )
        return self._process

    def _start(self, errors: IO[bytes]) -> "subprocess.Popen[bytes]":
        try:
            return subprocess.Popen(
                # -P: the working folder may hold anything; the worker imports from where this process does.
                [sys.executable, "-P", "-m", __name__, json.dumps(asdict(self._limits))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
            )
        except OSError as error:
            raise LinceError(
                f"The process that reads files ({sys.executable}) does not start: {error}.",
                hint="Close other programs, or give fewer --workers.",
            ) from error

    def kill(self) -> None:
        """End the process, if it runs, and release its pipes."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, self._errors):
                if stream:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        continue


def _status_name(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


# What follows runs in the worker.


class _Watchdog(threading.Thread):
    """Ends this process when reading exceeds a limit, when there is no work, or when the parent is gone."""

    def __init__(self, limits: ReadingLimits) -> None:
        super().__init__(daemon=True)
        self._limits = limits
        self._parent = os.getppid()
        self.begun: float | None = None
        self.idle_since = time.monotonic()

    def run(self) -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            begun = self.begun
            if os.getppid() != self._parent:
                os._exit(0)
            if begun is None:
                if time.monotonic() - self.idle_since > _IDLE_SECONDS:
                    os._exit(0)
            elif time.process_time() - begun > self._limits.seconds:
                os._exit(_OUT_OF_TIME)
            elif _memory_bytes() > self._limits.memory_mib * 2**20:
                os._exit(_OUT_OF_MEMORY)


def _memory_bytes() -> int:
    """The largest resident memory of this process so far; 0 where the system does not say."""
    if sys.platform == "linux":
        # Not getrusage: there, a new process begins with the memory of the one that started it.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next((int(line.split()[1]) * 1024 for line in status.split("\n") if line.startswith("VmHWM:")), 0)
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 0


def _limit_memory(limits: ReadingLimits) -> None:
    """Refuse memory far above the limit at once, for allocations that are faster than the watchdog."""
    try:
        import resource
    except ImportError:
        return
    size = limits.memory_mib * 2**20 + _RESERVED_BYTES
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or hard > size:
        resource.setrlimit(resource.RLIMIT_AS, (size, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    loader = FileLoader(request["path"], source=request["source"], **request["options"])
    try:
        prepared = prepare(loader.load()[0], ChunkingSettings(**request["chunking"]))
    except DocumentError as error:
        return {"reason": error.reason}
    return {"document": prepared.to_json()}


def main() -> None:
    """Read files until standard input ends."""
    # Ctrl-C reaches every process of the terminal; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a parser prints must not come between the replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    limits = ReadingLimits(**json.loads(sys.argv[1]))
    _limit_memory(limits)
    watchdog = _Watchdog(limits)
    watchdog.start()
    replies.write(b"ready\n")
    replies.flush()
    for line in sys.stdin.buffer:
        watchdog.begun = time.process_time()
        try:
            reply = _reply(json.loads(line))
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        # Python rarely gives memory back; the next file gets a new process.
        reply["last"] = _memory_bytes() > limits.memory_mib * 2**19
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()
        watchdog.idle_since, watchdog.begun = time.monotonic(), None
        if reply["last"]:
            return


if __name__ == "__main__":
    main()
