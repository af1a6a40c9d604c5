import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.api.error_responses import error_reply, is_sane_request_id
from serve_app.config.http import ErrorFormat
from serve_app.errors import (
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    OverloadedError,
    RequestTimeoutError,
    ServiceError,
)

SDK = (b"x-stainless-lang", b"js")


def reply(
    error: ServiceError, *headers: tuple[bytes, bytes], error_format: ErrorFormat = "auto"
) -> tuple[int, dict[bytes, bytes], dict[str, object]]:
    """Return the status, headers and parsed body of an error response."""
    status, sent, body = error_reply(error, error_format=error_format, request_headers=headers)
    assert len(dict(sent)) == len(sent)
    assert dict(sent)[b"content-length"] == str(len(body)).encode()
    return status, dict(sent), json.loads(body)


def test_error_and_error_type_come_first() -> None:
    status, _, body = reply(InvalidRequestError("No.", "a_code", "input[3]"))

    assert status == 400
    assert list(body.items()) == [
        ("error", "Invalid request"),
        ("error_type", "validation"),
        ("message", "No."),
        ("type", "invalid_request_error"),
        ("param", "input[3]"),
        ("code", "a_code"),
    ]


@pytest.mark.parametrize("name", [b"x-stainless-lang", b"X-Stainless-Lang"])
def test_an_openai_sdk_gets_the_openai_envelope(name: bytes) -> None:
    _, headers, body = reply(InvalidRequestError("No.", "a_code"), (name, b"python"))

    expected = {"message": "No.", "type": "invalid_request_error", "param": None, "code": "a_code"}
    assert body == {"error": expected}
    assert headers[b"vary"] == b"x-stainless-lang"


@pytest.mark.parametrize("error_format", ["flat", "openai"])
def test_a_fixed_error_format_applies_to_every_client(
    error_format: Literal["flat", "openai"],
) -> None:
    error = InvalidRequestError("No.", "a_code")

    _, headers, from_sdk = reply(error, SDK, error_format=error_format)
    _, _, from_others = reply(error, error_format=error_format)

    assert from_sdk == from_others
    assert isinstance(from_sdk["error"], dict) == (error_format == "openai")
    assert b"vary" not in headers


def test_headers_say_how_a_client_can_proceed() -> None:
    overloaded = reply(OverloadedError("No.", "overloaded", retry_after_s=7))[1]
    bug = reply(InternalError("No.", "internal_error"))[1]
    method = reply(MethodNotAllowedError("GET, HEAD"))[1]
    late = reply(RequestTimeoutError("No.", "request_timeout"))[1]

    optional = {b"retry-after", b"x-should-retry", b"allow", b"connection"}
    sent = [
        {k: v for k, v in headers.items() if k in optional}
        for headers in (overloaded, bug, method, late)
    ]
    assert sent == [
        {b"retry-after": b"7"},
        {b"x-should-retry": b"false"},
        {b"allow": b"GET, HEAD"},
        {b"connection": b"close"},
    ]


@given(st.text(st.sampled_from("azAZ09._:/=+-"), min_size=1, max_size=128))
def test_common_request_ids_are_valid(value: str) -> None:
    assert is_sane_request_id(value)


@pytest.mark.parametrize(
    "value", ["", "a b", "a\nb", "a\n", "é", "a" * 129, '"', "<b>", "a,b", "%0a"]
)
def test_an_unsafe_request_id_is_invalid(value: str) -> None:
    assert not is_sane_request_id(value)
