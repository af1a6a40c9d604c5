"""Errors as HTTP replies: the one place where an error gets its bytes and headers; and which request ids go into them.

The page's shape goes to everyone, OpenAI's envelope to OpenAI's own SDKs or to all, as `error_format` says. Plain
bytes and pairs, so that it serves in our app as well as in Ray Serve's proxy process, where no app of ours runs.
"""

import math
import re
from collections.abc import Iterable

import orjson

from serve_app.config.http import ErrorFormat
from serve_app.errors import (
    MethodNotAllowedError,
    RequestTimeoutError,
    ServiceError,
    UnauthorizedError,
)

Headers = Iterable[tuple[bytes, bytes]]

# OpenAI's generated SDKs (Python, Node, Java, ...) say their language in this header; nobody else sends it.
SDK_HEADER = b"x-stainless-lang"

SANE_REQUEST_ID = "[A-Za-z0-9._:/=+-]{1,128}"


def is_sane_request_id(value: str) -> bool:
    """Return whether a client's request id may be echoed and logged."""
    return re.fullmatch(SANE_REQUEST_ID, value) is not None


def error_reply(
    error: ServiceError, *, error_format: ErrorFormat, request_headers: Headers
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return the status, headers and body that a client gets for an error."""
    body = orjson.dumps(
        _openai(error) if _wants_openai(error_format, request_headers) else _flat(error)
    )
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error_format == "auto":
        headers.append((b"vary", SDK_HEADER))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
        headers.append((b"retry-after-ms", str(round(1000 * error.retry_after_s)).encode()))
    if isinstance(error, UnauthorizedError):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowedError):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, RequestTimeoutError):
        headers.append(
            (b"connection", b"close")
        )  # the rest of the body may still come, and is no request
    if not error.may_retry:
        headers.append((b"x-should-retry", b"false"))
    return error.status, headers, body


def _wants_openai(error_format: ErrorFormat, request_headers: Headers) -> bool:
    if error_format == "auto":
        return any(name.lower() == SDK_HEADER for name, _ in request_headers)
    return error_format == "openai"


def _openai(error: ServiceError) -> dict[str, object]:
    return {"error": _fields(error)}


def _flat(error: ServiceError) -> dict[str, object]:
    return {"error": error.error, "error_type": error.error_type, **_fields(error)}


def _fields(error: ServiceError) -> dict[str, object]:
    return {
        "message": error.message,
        "type": error.openai_type,
        "param": error.param,
        "code": error.code,
    }
