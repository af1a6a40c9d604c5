"""Reads request bodies: collects and decompresses them within limits on size, time and structure.

This module depends on Starlette's request. It assumes that a body is JSON, but does not depend on the JSON's meaning.
"""

import asyncio
import gc
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import Request

from serve_app.errors import InvalidRequestError, PayloadTooLargeError, RequestTimeoutError

# The supported encodings; zlib decompresses all of them.
_ENCODINGS = ("gzip", "x-gzip", "deflate")
# Number of JSON values that a body may contain in addition to its inputs. Parsing millions of values blocks the event
# loop for seconds and takes many times the body's memory.
_SPARE_VALUES = 100_000
# A JSON string, or the start of an unterminated one. The possessive quantifiers prevent backtracking, so matching takes
# linear time on any body.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


async def read_body(
    request: Request,
    *,
    reserve_bytes: Callable[[int], None],
    max_bytes: int,
    max_values: int,
    timeout_s: float,
) -> bytes:
    """Read a request's body and decompress it.

    Args:
        request: the request to read from.
        reserve_bytes: called with the change of the body's size in bytes (negative when memory is released). It may
            raise.
        max_bytes: maximum size of the body in bytes, both as sent and decompressed.
        max_values: maximum number of JSON values in the inputs of a valid request.
        timeout_s: seconds in which the whole body must arrive.

    Raises:
        PayloadTooLargeError: the Content-Length exceeds `max_bytes`. Or the body exceeds it while it is read, in which
            case reading stops. Or the body contains more JSON values than a valid request can have.
        RequestTimeoutError: the body did not arrive in time.
        InvalidRequestError: the Content-Encoding is unsupported, or the body does not match it.
    """
    declared = request.headers.get("content-length", "")
    # Eighteen digits are enough for the comparison. int() raises an exception for a number with thousands of digits.
    if declared.isdecimal() and int(declared[:18]) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                reserve_bytes(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        message = f"The body did not arrive within {timeout_s:g} s."
        raise RequestTimeoutError(message, "request_timeout") from None
    body = b"".join(chunks)
    encoding = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("", "identity", *_ENCODINGS):
        message = f"Unsupported Content-Encoding. Supported: {', '.join(_ENCODINGS)}."
        raise InvalidRequestError(message, "unsupported_content_encoding")
    if encoding in _ENCODINGS:
        plain = await asyncio.to_thread(inflate, body, max_bytes=max_bytes)
        reserve_bytes(len(plain) - len(body))
        body = plain
    most = _SPARE_VALUES + max_values
    # The first count is cheap, but includes commas and brackets inside strings. Count exactly only if it is too high.
    needs_exact_count = len(body) > most and _count_delimiters(body, 0, len(body)) > most
    if needs_exact_count and await asyncio.to_thread(has_more, body, most):
        message = f"The body contains more than {most} JSON values. Send fewer inputs per request."
        raise PayloadTooLargeError(message, "payload_too_large")
    return body


def has_more(body: bytes, most: int) -> bool:
    """Return whether a JSON body contains more than `most` values.

    The function counts opening brackets and commas outside strings. It does not parse the body.
    """
    count = start = 0
    for string in _STRING.finditer(body):
        count += _count_delimiters(body, start, string.start())
        if count > most:
            return True
        start = string.end()
    return count + _count_delimiters(body, start, len(body)) > most


def _count_delimiters(body: bytes, start: int, stop: int) -> int:
    return sum(body.count(sign, start, stop) for sign in (b"[", b"{", b","))


def inflate(body: bytes, *, max_bytes: int) -> bytes:
    """Decompress a gzip or zlib body.

    Raises:
        InvalidRequestError: the body is not compressed, is truncated, or continues after the end of the stream.
        PayloadTooLargeError: the decompressed body exceeds `max_bytes`. Decompression stops at that size.
    """
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # detects gzip and zlib
    try:
        plain = stream.decompress(body, max_bytes + 1)
    except zlib.error:
        plain = b""
    if len(plain) > max_bytes:
        raise _too_large(max_bytes)
    if not stream.eof or stream.unused_data:
        message = "The body does not match its Content-Encoding, or is truncated."
        raise InvalidRequestError(message, "invalid_content_encoding")
    return plain


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector while a body is parsed.

    While the number of parsed objects grows, the collector scans them again and again. For a body of a million lists,
    these scans took two thirds of the time for which parsing blocked the event loop.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _too_large(max_bytes: int) -> PayloadTooLargeError:
    message = f"The body is larger than {max_bytes} bytes. Send fewer inputs per request."
    return PayloadTooLargeError(message, "payload_too_large")
