"""The response headers, as `/openapi.json` describes them."""

from collections.abc import Sequence
from typing import Any

from serve_app import errors
from serve_app.errors import ServiceError

Json = dict[str, Any]


def _header(text: str, **schema: Any) -> Json:
    return {"description": text, "schema": schema}


REQUEST_ID = {
    "x-request-id": _header(
        "The request id: the client's own id if it is valid, and a generated id otherwise.",
        type="string",
    ),
}
TIMINGS = {
    "x-compute-tokens": _header(
        "Number of tokens that the model processed, without padding.", type="integer"
    ),
    "x-total-time": _header("Total time of the request, in milliseconds.", type="number"),
    "x-tokenization-time": _header("Time spent on tokenization, in milliseconds.", type="number"),
    "x-queue-time": _header(
        "Milliseconds during which no part of the request was being computed: time in the queue, and transfer to and "
        "from the replica.",
        type="number",
    ),
    "x-inference-time": _header(
        "Milliseconds during which at least one part of the request was being computed.",
        type="number",
    ),
    "x-truncated-inputs": _header(
        "Number of truncated inputs. Absent if no input was truncated.", type="integer"
    ),
}
_VARY = {
    "vary": _header("The request header that selects the error format.", type="string"),
}
_RETRY_AFTER = {
    "retry-after": _header(
        "Seconds to wait before a retry.", type="integer", minimum=1, maximum=60
    ),
    "retry-after-ms": _header("Milliseconds to wait before a retry.", type="integer", minimum=1000),
}
_SHOULD_RETRY = {
    "x-should-retry": _header(
        "`false` if a retry would fail again.", type="string", enum=["false"]
    ),
}
_AUTHENTICATE = {"www-authenticate": _header("The authentication scheme.", type="string")}
_ALLOW = {"allow": _header("The methods that this path accepts.", type="string")}


def failure_headers(failures: Sequence[type[ServiceError]]) -> Json:
    """Return the headers of a response that reports any one of `failures`."""
    headers = REQUEST_ID | _VARY
    for failure in failures:
        if issubclass(failure, errors.OverloadedError | errors.UnavailableError):
            headers = headers | _RETRY_AFTER
        if failure is errors.UnauthorizedError:
            headers = headers | _AUTHENTICATE
        if failure is errors.MethodNotAllowedError:
            headers = headers | _ALLOW
        if not failure.may_retry:
            headers = headers | _SHOULD_RETRY
    return headers
