"""The headers of answers, as `/openapi.json` describes them."""

from collections.abc import Sequence
from typing import Any

from serve_app import errors
from serve_app.errors import ServiceError

Json = dict[str, Any]


def _header(text: str, **schema: Any) -> Json:
    return {"description": text, "schema": schema}


REQUEST_ID = {
    "x-request-id": _header("The client's own if it sent a sane one.", type="string"),
}
TIMINGS = {
    "x-compute-tokens": _header("Tokens that the model read.", type="integer"),
    "x-total-time": _header("Milliseconds in all.", type="number"),
    "x-tokenization-time": _header("Milliseconds spent on tokenizing.", type="number"),
    "x-queue-time": _header("Milliseconds spent on waiting for the model.", type="number"),
    "x-inference-time": _header("Milliseconds spent in the model.", type="number"),
    "x-truncated-inputs": _header("Inputs that were cut; absent if none.", type="integer"),
}
_VARY = {
    "vary": _header("The request header that decides the error's shape.", type="string"),
}
_RETRY_AFTER = {
    "retry-after": _header("Seconds to wait.", type="integer", minimum=1, maximum=60),
    "retry-after-ms": _header("The same in milliseconds.", type="integer", minimum=1000),
}
RATE_LIMITS = {
    f"x-ratelimit-{what}-{unit}": _header(f"{words} {unit}.", type=kind)
    for unit in ("requests", "tokens")
    for what, words, kind in (
        ("limit", "Most waiting", "integer"),
        ("remaining", "Room for so many more", "integer"),
        ("reset", "Milliseconds, as `120ms`, until nothing is left of the waiting", "string"),
    )
}
_SHOULD_RETRY = {
    "x-should-retry": _header("It would fail again.", type="string", enum=["false"]),
}
_AUTHENTICATE = {"www-authenticate": _header("How a key is sent.", type="string")}
_ALLOW = {"allow": _header("The methods of this path.", type="string")}


def failure_headers(failures: Sequence[type[ServiceError]]) -> Json:
    """Return the headers of an answer that can be any of some errors."""
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
