"""Turns errors into HTTP responses, and validates the request ids that responses carry.

Only this module writes the body and the headers of an error. There are two error formats. The flat format is one JSON
object with the fields `error`, `error_type`, `message`, `type`, `param` and `code`. OpenAI's format nests `message`,
`type`, `param` and `code` in an object under the key `error`. The setting `error_format` selects one format for all
clients. With `auto`, OpenAI's SDKs receive OpenAI's format, and all other clients receive the flat format.

The functions work on plain bytes and header pairs, because they also run in Ray Serve's proxy process, outside of the
application.
"""

import math
import re
from collections.abc import Iterable
from http import HTTPStatus

from pydantic import BaseModel

from serve_app.config.http import ErrorFormat
from serve_app.errors import (
    MethodNotAllowedError,
    RequestTimeoutError,
    ServiceError,
    UnauthorizedError,
)
from serve_app.schemas.errors import ErrorBody, OpenAIErrorBody

Headers = Iterable[tuple[bytes, bytes]]

# OpenAI's generated SDKs (Python, Node, Java, ...) send their language in this header. Other clients do not send it.
SDK_HEADER = b"x-stainless-lang"

SANE_REQUEST_ID = "[A-Za-z0-9._:/=+-]{1,128}"


def is_sane_request_id(value: str) -> bool:
    """Return whether a client's request id can be echoed and logged safely."""
    return re.fullmatch(SANE_REQUEST_ID, value) is not None


def error_reply(
    error: ServiceError, *, error_format: ErrorFormat, request_headers: Headers
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return the status, headers and JSON body of an error response.

    Args:
        error: the error to report.
        error_format: `flat`, `openai`, or `auto`, which selects `openai` for requests with the header `SDK_HEADER` and
            `flat` for all other requests.
        request_headers: the raw headers of the request.
    """
    body = _body(error, is_openai=_wants_openai(error_format, request_headers))
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
        # The rest of the body may still arrive, and must not be parsed as the next request.
        headers.append((b"connection", b"close"))
    if not error.may_retry:
        headers.append((b"x-should-retry", b"false"))
    return error.status, headers, body


def raw_error_reply(error: ServiceError, *, error_format: ErrorFormat, more: Headers = ()) -> bytes:
    """Return an error as a whole HTTP/1.1 response. `auto` means `flat`.

    Args:
        error: the error to report.
        error_format: as in `error_reply`.
        more: further headers.
    """
    status, headers, body = error_reply(error, error_format=error_format, request_headers=())
    head = b"".join(b"%b: %b\r\n" % header for header in (dict(headers) | dict(more)).items())
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, HTTPStatus(status).phrase.encode(), head, body)


def _wants_openai(error_format: ErrorFormat, request_headers: Headers) -> bool:
    if error_format == "auto":
        return any(name.lower() == SDK_HEADER for name, _ in request_headers)
    return error_format == "openai"


def _body(error: ServiceError, *, is_openai: bool) -> bytes:
    fields: dict[str, object] = {
        "message": error.message,
        "type": error.openai_type,
        "param": error.param,
        "code": error.code,
    }
    model: BaseModel
    if is_openai:
        model = OpenAIErrorBody.model_validate({"error": fields})
    else:
        fields |= {"error": error.error, "error_type": error.error_type}
        model = ErrorBody.model_validate(fields)
    return model.model_dump_json().encode()
