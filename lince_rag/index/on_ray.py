"""Reading and embedding on a Ray cluster: what became of each item streams to the process that writes."""

import logging
import math
import os
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from langchain_core.embeddings import Embeddings

from lince_rag.documents.prepared import PreparedDocument, searchable_text
from lince_rag.documents.reading import Outcome, Reading, Work
from lince_rag.errors import ConfigurationError, LinceError, require
from lince_rag.index.embeddings import hashes_terms, runs_on_gpu
from lince_rag.index.ingestion import VECTORS_PER_COMMIT, Reads

if TYPE_CHECKING:
    from ray.data import Dataset

EXTRA: Final = "ray"

# Items that one task reads: a task costs some milliseconds, and is done again as a whole if its machine fails.
ITEMS_PER_TASK: Final = 16

# Of few items, at least as many tasks for each processor, so that all have something to do to the end.
_TASKS_PER_CPU: Final = 4

# Tasks that read, and actors that embed, each take this share of a processor, so that a cluster whose last machine
# has one can still do both.
_SHARE: Final = 0.5

# How long a cluster may take to say that it is there; Ray itself would wait for two minutes.
_CONNECT_SECONDS: Final = 15.0

_ADDRESS: Final = re.compile(r"auto|[^\s/:]+:\d+|\[[^\s/]+\]:\d+")

# Nothing is reported to anyone, and what the machinery says of itself stays out of the terminal.
_QUIET: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}

# Tries to reach a cluster; in a process of its own, because it cannot be interrupted.
_PROBE: Final = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"


def choose_reads(
    engine: str, address: str | None, reading: Reading, embedder: Callable[[], Embeddings | None]
) -> Reads | None:
    """Return what reads and embeds items in another place than this machine, if an engine says so.

    ``embedder`` is asked when the reading begins: only then can that of a shared index not change any more.

    Raises:
        ConfigurationError: There is no such engine, or an address is given to one that has none.
        MissingExtraError: Ray or Ray Data is not installed.
    """
    if engine == "local":
        if address:
            raise ConfigurationError(
                f"The address {address!r} is not used by the engine 'local'.", hint="Give the engine 'ray', too."
            )
        return None
    if engine != "ray":
        raise ConfigurationError(
            f"There is no engine {engine!r} to read documents with.", hint="Give 'local' or 'ray'."
        )
    require(EXTRA, "ray", "pyarrow")
    return partial(_outcomes, reading=reading, embedder=embedder, address=address)


def _outcomes(
    works: Sequence[Work], reading: Reading, embedder: Callable[[], Embeddings | None], address: str | None
) -> Generator[Outcome]:
    """Yield what became of items as Ray Data brings it, in their order."""
    if not works:
        return
    # Hashed terms are made where they are written: to send vectors would take longer.
    embeddings = found if (found := embedder()) is not None and not hashes_terms(found) else None
    _check_sendable(reading, embeddings)
    with _connected(address):
        from ray.exceptions import RayError

        try:
            for batch in _dataset(works, reading, embeddings).iter_batches(batch_size=None, batch_format="numpy"):
                for packed in batch["outcome"]:
                    outcome = pickle.loads(packed)
                    if isinstance(outcome, LinceError):
                        raise outcome
                    yield outcome
        except RayError as error:
            raise LinceError(
                f"The Ray cluster cannot go on: {_reason(error)}.",
                hint="What is committed stays; run the same command again to go on.",
            ) from error


def _check_sendable(*settings: object) -> None:
    from ray import cloudpickle

    try:
        cloudpickle.dumps(settings)  # type: ignore[no-untyped-call]
    except Exception as error:
        # Whatever an application's object raises.
        raise ConfigurationError(
            f"The embedder or a loader cannot be sent to other processes: {type(error).__name__}: {error}.",
            hint="Give objects that can be pickled, or read on this machine.",
        ) from error


def _dataset(works: Sequence[Work], reading: Reading, embeddings: Embeddings | None) -> "Dataset":
    import ray
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = max(1, int(resources.get("CPU", 1)))
    tasks = max(math.ceil(len(works) / ITEMS_PER_TASK), min(len(works), _TASKS_PER_CPU * cpus))
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    # Chunks with equal scores keep the order in which documents were written, so that is always the same.
    context.execution_options.preserve_order = True
    with DataContext.current(context):
        items = ray.data.from_items([{"work": pickle.dumps(work)} for work in works], override_num_blocks=tasks)
        outcomes = items.map_batches(
            partial(_read, reading=replace(reading, limits=replace(reading.limits, workers=1))),
            batch_size=None,
            compute=TaskPoolStrategy(reading.limits.workers),
            num_cpus=_SHARE if embeddings else 1,
        )
        if embeddings:
            gpus = int(resources.get("GPU", 0)) if runs_on_gpu(embeddings) else 0
            most = gpus or cpus
            outcomes = outcomes.map_batches(
                _Embedder,
                fn_constructor_args=(embeddings,),
                batch_size=None,
                compute=ActorPoolStrategy(min_size=1, max_size=most, initial_size=min(most, tasks)),
                num_cpus=_SHARE,
                num_gpus=1 if gpus else None,
            )
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return outcomes


# What runs in Ray's processes.


def _read(batch: Any, *, reading: Reading) -> Iterator[dict[str, list[bytes]]]:
    """Read the items of a task; each file in a process of its own, as everywhere."""
    try:
        for outcome in reading.outcomes([pickle.loads(packed) for packed in batch["work"]]):
            yield _packed(outcome)
    except LinceError as error:
        yield _packed(error)


class _Embedder:
    """An actor that embeds the chunks of documents, with an embedder that it loads once."""

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        outcomes = [pickle.loads(packed) for packed in batch["outcome"]]
        documents = [
            each.result for each in outcomes if isinstance(getattr(each, "result", None), PreparedDocument)
        ]
        try:
            vectors = iter(self._embed([chunk for document in documents for chunk in document.chunks]))
        except LinceError as error:
            yield _packed(error)
            return
        for outcome in outcomes:
            if isinstance(getattr(outcome, "result", None), PreparedDocument):
                own = {str(chunk.id): next(vectors) for chunk in outcome.result.chunks}
                outcome = replace(outcome, result=replace(outcome.result, vectors=own))
            yield _packed(outcome)

    def _embed(self, chunks: Sequence[Any]) -> list[Any]:
        import numpy as np

        vectors: list[Any] = []
        for first in range(0, len(chunks), VECTORS_PER_COMMIT):
            texts = [searchable_text(chunk) for chunk in chunks[first : first + VECTORS_PER_COMMIT]]
            vectors += list(np.asarray(self._embeddings.embed_documents(texts), dtype=np.float32))
        return vectors


def _packed(outcome: Outcome | LinceError) -> dict[str, list[bytes]]:
    if isinstance(outcome, LinceError):
        # Not all of its subclasses can be pickled.
        outcome = LinceError(outcome.message, hint=outcome.hint)
    return {"outcome": [pickle.dumps(outcome)]}


# The connection.


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start Ray on this machine, and end what was begun.

    An application that uses Ray already keeps its connection.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    wanted = address or os.environ.get("RAY_ADDRESS")
    with ExitStack() as ended:
        options: dict[str, Any] = {"address": wanted}
        if not wanted:
            # Ray's folder may hold documents that did not fit into memory, so it must not stay. Its name must be
            # short, because sockets are in it.
            short = "/tmp" if os.path.isdir("/tmp") else None
            folder = TemporaryDirectory(prefix="lince-ray-", dir=short, ignore_cleanup_errors=True)
            options = {"address": "local", "include_dashboard": False, "_temp_dir": ended.enter_context(folder)}
        ended.callback(ray.shutdown)
        _connect(wanted, options)
        yield


def _connect(address: str | None, options: dict[str, Any]) -> None:
    import ray

    if address:
        _check_reachable(address)
    try:
        with _silent():
            ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:
        # Ray raises no kind of its own when its processes take too long to start.
        if address:
            raise _unreachable(address, _reason(error)) from error
        raise LinceError(
            f"Ray does not start on this machine: {_reason(error)}.", hint="Give the address of a Ray cluster."
        ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Drop what is written to the standard error: Ray's own code announces there what _QUIET sets."""
    before = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _check_reachable(address: str) -> None:
    """Raise a ``ConfigurationError`` if there is no cluster at an address."""
    if not _ADDRESS.fullmatch(address):
        raise ConfigurationError(
            f"{address!r} is not the address of a Ray cluster.",
            hint="Give host:port, as in 10.0.0.5:6379, or auto.",
        )
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        subprocess.run(
            [sys.executable, "-c", _PROBE, address], check=True, capture_output=True, timeout=_CONNECT_SECONDS
        )
    except (OSError, OverflowError) as error:
        raise _unreachable(address, _reason(error)) from error
    except subprocess.SubprocessError:
        raise _unreachable(address, "what answers there is no Ray cluster of this version") from None


def _unreachable(address: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"There is no Ray cluster at {address}: {reason}.",
        hint="`ray start --head` prints the address of a new cluster; its port is mostly 6379.",
    )


def _reason(error: BaseException) -> str:
    """Say in one line what an error says, or what its cause in another process said."""
    cause = getattr(error, "cause", None) or error
    line = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    return f"{type(cause).__name__}: {line}".rstrip(": .") if cause is not error else line.rstrip(".")
