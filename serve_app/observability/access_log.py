"""What the operator reads of a request: one line in the log, and the numbers that go with it.

HTTP requests and calls from Python are written alike. Never an input, a vector or a key; of an unforeseen exception its
kind and place, but neither its message nor its values, for both can hold an input's text.
"""

import logging
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePath

from serve_app.errors import InternalError, ServiceError
from serve_app.observability.metrics import Metrics

# A child of Ray Serve's own logger, so that Serve's handlers, formats and request ids apply.
logger = logging.getLogger("ray.serve.embeddings")


@dataclass(slots=True)
class RequestRecord:
    """What is known of a request while it is worked on.

    `limits` gives the headers of its answer that tell of the server's state at that moment.
    """

    request_id: str
    method: str
    route: str = "other"
    model: str = ""
    inputs: int = 0
    tokens: int = 0
    code: str = ""
    key: str = ""
    limits: Callable[[], Iterable[tuple[bytes, bytes]]] = tuple
    started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.started


class AccessLog:
    """Counts requests and writes their lines.

    Args:
        metrics: where they are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def begin(self, request_id: str, *, method: str, route: str = "other") -> RequestRecord:
        """A request has come."""
        self._metrics.request_started()
        return RequestRecord(request_id, method, route)

    def fail(self, record: RequestRecord, error: Exception) -> ServiceError:
        """A request failed; return the error that its sender gets, one of ours whatever it was."""
        if not isinstance(error, ServiceError):
            _write_unforeseen(record, error)
            message = "The server made an error; its log has this request's id."
            error = InternalError(message, "internal_error")
        record.code = error.code
        self._metrics.request_failed(route=record.route, code=error.code)
        return error

    def end(self, record: RequestRecord, *, status: int) -> None:
        """A request has its answer."""
        seconds = record.elapsed_s
        self._metrics.request_finished(
            model=record.model,
            route=record.route,
            status=status,
            key=record.key,
            seconds=seconds,
        )
        line = f"{record.method} {record.route} {status} {seconds * 1000:.1f}ms"
        if record.inputs:
            line += f" inputs={record.inputs} tokens={record.tokens}"
        if record.key:
            line += f" key={record.key}"
        if record.code:
            line += f" code={record.code}"
        fields = {
            "request_id": record.request_id,
            "method": record.method,
            "endpoint": record.route,  # Ray Serve writes its own prefix into "route"
            "status": status,
            "seconds": round(seconds, 6),
            "model": record.model,
            "inputs": record.inputs,
            "tokens": record.tokens,
            "code": record.code,
            "key": record.key,
        }
        logger.info(line, extra=fields)


def _write_unforeseen(record: RequestRecord, error: Exception) -> None:
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{PurePath(f.filename).name}:{f.lineno}" for f in reversed(frames[-5:]))
    kind = type(error).__name__
    logger.error("internal error: %s at %s", kind, places, extra={"request_id": record.request_id})


class WithoutTracebacks(logging.Filter):
    """Takes the traceback from what Ray Serve logs of an error that a caller from Python gets anyway.

    Serve writes "Request failed." with a traceback for each exception of a handle call, our 400 to 504 among them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, without the traceback of one of ours."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ServiceError):
            record.msg, record.args = f"{record.getMessage()} {error.status} {error.code}", ()
            record.exc_info, record.levelno, record.levelname = None, logging.INFO, "INFO"
        return True


def hide_expected_tracebacks() -> None:
    """Let Ray Serve's logger in this process write our own errors without tracebacks."""
    logging.getLogger("ray.serve").addFilter(WithoutTracebacks())
