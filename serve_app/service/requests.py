"""One request from its start to its log line, for HTTP and `DeploymentHandle` callers alike.

A request begins, is admitted, and ends. In between, a service does the request's work. This module does not depend on
that work, on Starlette or on Ray.
"""

from types import TracebackType
from typing import Self

from serve_app.config.http import HttpConfig
from serve_app.dispatch.admission import Admission
from serve_app.dispatch.drain_rate import DrainRate
from serve_app.errors import OverloadedError, ServiceError
from serve_app.observability.access_log import AccessLog, RequestRecord
from serve_app.observability.metrics import Metrics, Reason

# Bodies up to this size are always accepted, so that a few large bodies cannot lock out all other clients.
_SMALL_BODY_BYTES = 65_536


class Requests:
    """The requests in progress in one ingress replica.

    Args:
        limits: the limits on a request.
        metrics: counts requests and rejections.
    """

    def __init__(self, limits: HttpConfig, *, metrics: Metrics) -> None:
        self.log = AccessLog(metrics)
        self.admission = Admission(limit=limits.max_concurrent_requests)
        self.drain_rate = DrainRate(unknown_s=limits.retry_after_s)
        self.body_bytes = 0
        self.max_body_bytes = limits.body_memory_bytes
        self._metrics = metrics

    def begin(self, request_id: str, *, method: str, route: str = "other") -> "RequestScope":
        """Begin a request. Use the result in a `with` statement, which ends the request.

        Args:
            request_id: identifies the request in logs.
            method: the HTTP method, or `CALL` for a call from Python.
            route: the request's route in logs and metrics.
        """
        return RequestScope(self, self.log.begin(request_id, method=method, route=route))

    def overloaded(self, reason: Reason) -> OverloadedError:
        """Count a rejection and return its error."""
        self._metrics.overloaded(reason=reason)
        message = (
            "Too many concurrent requests. Retry after the delay given in the Retry-After header."
        )
        return OverloadedError(message, "overloaded", retry_after_s=self.drain_rate.retry_after_s)


class RequestScope:
    """One request.

    Attributes:
        record: the data that is collected for the log line and the metrics.
    """

    __slots__ = ("_body_bytes", "_is_admitted", "_requests", "record")

    def __init__(self, requests: Requests, record: RequestRecord) -> None:
        self.record = record
        self._requests = requests
        self._is_admitted = False
        self._body_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the request: free its slot and memory, and write its log line."""
        requests = self._requests
        if self._is_admitted:
            requests.admission.remove(1)
            settle = (
                requests.drain_rate.finish if self.record.status < 400 else requests.drain_rate.drop
            )
            settle(1)
        requests.body_bytes -= self._body_bytes
        requests.log.end(self.record)

    def admit(self) -> None:
        """Take a slot for the request. Call this before reading the request's body.

        Raises:
            OverloadedError: all slots are in use.
        """
        requests = self._requests
        if not requests.admission.has_room(1):
            raise requests.overloaded("ingress_requests")
        requests.admission.add(1)
        requests.drain_rate.start(1)
        self._is_admitted = True

    def reserve_bytes(self, size: int) -> None:
        """Reserve memory for a part of the request's body.

        Args:
            size: the number of bytes; negative to release memory.

        Raises:
            OverloadedError: all request bodies together would exceed the memory limit, and this body is larger than
                64 KiB.
        """
        requests = self._requests
        is_small = self._body_bytes + size <= _SMALL_BODY_BYTES
        if not is_small and requests.body_bytes + size > requests.max_body_bytes:
            raise requests.overloaded("body_bytes")
        self._body_bytes += size
        requests.body_bytes += size

    def fail(self, error: Exception) -> ServiceError:
        """Count a failed request and return the error to send. An unexpected error becomes an `InternalError`."""
        return self._requests.log.fail(self.record, error)
