"""The metrics of a server, for Prometheus, and its log, a JSON object a line."""

import json
import logging
import os
from typing import Any, Final

# Seconds of an answer: a quotation takes tens of milliseconds, a model on a CPU a minute.
BUCKETS: Final = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0)

METHODS: Final = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS"})

# Where several workers keep their numbers (prometheus_client reads it).
SHARED_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """What is counted: requests, their seconds, and answers by what became of them."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._registry = CollectorRegistry()
        # With several workers, the numbers of all of them are in files.
        own = self._registry
        self.requests = Counter("lince_requests", "Requests.", ["method", "route", "status"], registry=own)
        self.seconds = Histogram(
            "lince_request_seconds", "Duration of requests.", ["route"], buckets=BUCKETS, registry=own
        )
        self.answers = Counter("lince_answers", "Answers.", ["collection", "outcome"], registry=own)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        # Any client can make up a method.
        method = method if method in METHODS else "other"
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format, those of the other workers included."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = self._registry
        if SHARED_FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class JsonFormatter(logging.Formatter):
    """Formats a log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        said: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)
