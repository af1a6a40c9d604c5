"""The access log: one line and a set of metrics for each request.

HTTP requests and calls from Python are logged in the same format. A line never contains an input, a
vector or a key. An unexpected exception is logged by type and location. Its message and its variables
are left out, because they can contain the text of an input.
"""

import logging
import time
import traceback
from dataclasses import dataclass, field
from pathlib import PurePath

from serve_app.errors import InternalError, ServiceError
from serve_app.observability.metrics import Metrics

# A child of Ray Serve's own logger, so that Serve's handlers, formats and request ids apply.
logger = logging.getLogger("ray.serve.embeddings")


# The status of a request whose client disconnected before the response.
CLIENT_GONE = 499


@dataclass(slots=True)
class RequestRecord:
    """The data collected about one request.

    Attributes:
        request_id: the id in the logs and in `x-request-id`.
        method: the HTTP method, or `CALL` for a call from Python.
        route: the route's path, `embed` for a call from Python, or `other`.
        model: the served model's name; empty until it is known.
        inputs: the number of inputs.
        tokens: the number of tokens embedded.
        code: the error code; empty if the request did not fail.
        key: the name of the API key; empty if the request has none.
        status: the HTTP status of the response.
        started: the start time, from `time.perf_counter`.
    """

    request_id: str
    method: str
    route: str = "other"
    model: str = ""
    inputs: int = 0
    tokens: int = 0
    code: str = ""
    key: str = ""
    status: int = CLIENT_GONE
    started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request started."""
        return time.perf_counter() - self.started


class AccessLog:
    """Logs and counts requests.

    Args:
        metrics: counts the requests.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def begin(self, request_id: str, *, method: str, route: str = "other") -> RequestRecord:
        """Count the start of a request and return its record."""
        self._metrics.request_started()
        return RequestRecord(request_id, method, route)

    def fail(self, record: RequestRecord, error: Exception) -> ServiceError:
        """Count a failed request and return the error to send.

        An exception that is not a `ServiceError` is logged and becomes an `InternalError`.
        """
        if not isinstance(error, ServiceError):
            _log_unexpected(record, error)
            message = "Internal error. The server's log has details under the id in the x-request-id header."
            error = InternalError(message, "internal_error")
        record.code, record.status = error.code, error.status
        self._metrics.request_failed(route=record.route, code=error.code)
        return error

    def end(self, record: RequestRecord) -> None:
        """Count a finished request and write its log line."""
        seconds = record.elapsed_s
        self._metrics.request_finished(
            model=record.model,
            route=record.route,
            status=record.status,
            key=record.key,
            seconds=seconds,
        )
        line = f"{record.method} {record.route} {record.status} {seconds * 1000:.1f}ms"
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
            "status": record.status,
            "seconds": round(seconds, 6),
            "model": record.model,
            "inputs": record.inputs,
            "tokens": record.tokens,
            "code": record.code,
            "key": record.key,
        }
        logger.info(line, extra=fields)


def _log_unexpected(record: RequestRecord, error: Exception) -> None:
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{PurePath(f.filename).name}:{f.lineno}" for f in reversed(frames[-5:]))
    kind = type(error).__name__
    logger.error("internal error: %s at %s", kind, places, extra={"request_id": record.request_id})


class WithoutTracebacks(logging.Filter):
    """Removes the traceback of expected errors from Ray Serve's log lines.

    Ray Serve logs "Request failed." with a traceback for each exception of a handle call. That
    includes our 400 to 504 errors, which the caller receives anyway.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass every record, and strip the traceback of a `ServiceError`."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ServiceError):
            record.msg, record.args = f"{record.getMessage()} {error.status} {error.code}", ()
            record.exc_info, record.levelno, record.levelname = None, logging.INFO, "INFO"
        return True


def hide_expected_tracebacks() -> None:
    """Make Ray Serve's logger in this process log a `ServiceError` without its traceback."""
    logging.getLogger("ray.serve").addFilter(WithoutTracebacks())
