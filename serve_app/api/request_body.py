"""The body of a request: read and decompressed within limits of size, time and structure, parsed at one go.

Knows Starlette's request and that a body is JSON, but nothing of what it says.
"""

import asyncio
import gc
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import Request

from serve_app.errors import InvalidRequestError, PayloadTooLargeError, RequestTimeoutError

# How bodies may be compressed, all of which zlib reads.
_ENCODINGS = ("gzip", "x-gzip", "deflate")
# Values in a body besides its inputs. To make millions of them takes a parser seconds, in which no other request goes
# on, and many times the memory of the body.
_SPARE_VALUES = 100_000
# A string of JSON, or what has the beginning of one; it never goes back, so that no body takes long.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


async def read_body(
    request: Request,
    *,
    reserve_bytes: Callable[[int], None],
    max_bytes: int,
    max_values: int,
    timeout_s: float,
) -> bytes:
    """Read a body that has a limit in size and time.

    Args:
        request: whose body it is.
        reserve_bytes: called with the number of bytes by which what is kept of it grows; may raise.
        max_bytes: of the body, also when it is decompressed.
        max_values: JSON values that inputs are made of.
        timeout_s: seconds in which it has to be here.

    Raises:
        PayloadTooLargeError: it is longer, by its own word or by count; no more of it is read. Or it is made of more
            values than any request.
        RequestTimeoutError: it was not all here in time.
    """
    declared = request.headers.get("content-length", "")
    # Eighteen digits say enough, and int() takes no number that is thousands of digits long.
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
        message = f"The body was not complete after {timeout_s:g} s."
        raise RequestTimeoutError(message, "request_timeout") from None
    body = b"".join(chunks)
    encoding = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("", "identity", *_ENCODINGS):
        message = (
            f"The body's Content-Encoding is not known here; there are {', '.join(_ENCODINGS)}."
        )
        raise InvalidRequestError(message, "unsupported_content_encoding")
    if encoding in _ENCODINGS:
        plain = await asyncio.to_thread(inflate, body, max_bytes=max_bytes)
        reserve_bytes(len(plain) - len(body))
        body = plain
    most = _SPARE_VALUES + max_values
    # In texts there may be more commas and brackets; a body of fewer bytes need not be looked at.
    is_retry = len(body) > most and _beginnings(body, 0, len(body)) > most
    if is_retry and await asyncio.to_thread(has_more, body, most):
        message = f"The body holds more than {most} JSON values. Send fewer inputs in a request."
        raise PayloadTooLargeError(message, "payload_too_large")
    return body


def has_more(body: bytes, most: int) -> bool:
    """Return whether JSON holds more values than that, by what begins one; what stands in strings does not count."""
    found = start = 0
    for string in _STRING.finditer(body):
        found += _beginnings(body, start, string.start())
        if found > most:
            return True
        start = string.end()
    return found + _beginnings(body, start, len(body)) > most


def _beginnings(body: bytes, start: int, stop: int) -> int:
    return sum(body.count(sign, start, stop) for sign in (b"[", b"{", b","))


def inflate(body: bytes, *, max_bytes: int) -> bytes:
    """Decompress a body, and no more of it than is allowed.

    Raises:
        InvalidRequestError: it is not what its header says, or not all there.
        PayloadTooLargeError: it is longer.
    """
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip's header or zlib's
    try:
        plain = stream.decompress(body, max_bytes + 1)
    except zlib.error:
        plain = b""
    if len(plain) > max_bytes:
        raise _too_large(max_bytes)
    if not stream.eof or stream.unused_data:
        message = "The body is not what its Content-Encoding says, or ends too early."
        raise InvalidRequestError(message, "invalid_content_encoding")
    return plain


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the garbage collector from looking at what is being parsed, again and again while it grows.

    For a body of a million lists that was two thirds of the time in which no other request goes on.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _too_large(max_bytes: int) -> PayloadTooLargeError:
    message = f"The body is longer than {max_bytes} bytes. Send fewer inputs in a request."
    return PayloadTooLargeError(message, "payload_too_large")
