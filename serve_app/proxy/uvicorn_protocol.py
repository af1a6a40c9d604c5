"""uvicorn's HTTP/1.1 protocols with errors in JSON, and with limits on request heads.

In an ingress replica behind HAProxy, `JsonProtocol` changes only uvicorn's own 400. Ray's default proxy talks to
clients itself and uses `BoundedProtocol`:

- Time. A timer runs while a head (the request line and the headers) or the rest of a rejected body is missing. When it
  expires, a 408 is sent if there is no response yet, and the connection is closed. uvicorn itself waits forever.
- Size. h11 reads incomplete heads and trailers of up to 64 KiB. uvicorn's own limit is 16 KiB. The application has a
  lower limit for complete heads (`serve_app.api.middleware`).
- Errors. Malformed data is a 400 in this server's format. So is a request whose client closes its sending side before
  the response, as with HAProxy: most clients that do so have left. Empty lines before a request are ignored.
- A client that reads nothing of its response for a minute is disconnected. Otherwise, it could keep many responses in
  memory.
- Offers to upgrade to HTTP/2 are ignored. This is why the parser is h11: uvicorn's other parser, httptools, loses the
  body of such a request, and the JDK's HTTP client sends one first.

For a short request, h11 takes 0.09 ms of processor time, and httptools 0.03 ms. This module does not depend on the
application.
"""

import asyncio
import os
import socket
import sys
import uuid
from importlib.metadata import version
from typing import Any

import h11
import uvicorn
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve_app.api.error_responses import raw_error_reply
from serve_app.errors import (
    HeadersTooLargeError,
    InvalidRequestError,
    RequestTimeoutError,
    ServiceError,
)
from serve_app.proxy.environment import proxy_error_format

# Time limit for a head, in seconds.
_HEAD_TIMEOUT_S = 30.0
# Time, in seconds, after which a client that reads nothing of its response is disconnected.
_READ_TIMEOUT_S = 60.0
# Limit on the size of an incomplete head.
_MAX_HEAD_BYTES = 65_536

# What these protocols use or override of uvicorn and h11, apart from what asyncio defines.
_USED: dict[object, tuple[str, ...]] = {
    auto: ("AutoHTTPProtocol",),
    HttpToolsProtocol: ("send_400_response",),
    H11Protocol: (
        "handle_events", "send_400_response", "_should_upgrade", "_unsupported_upgrade_warning",
        "_unset_keepalive_if_required",
    ),
    ReceiveBuffer: ("_extract",),
    h11.Connection(h11.SERVER): ("_receive_buffer",),
}  # fmt: skip

_INVALID = InvalidRequestError("The request is not valid HTTP.", "invalid_http")
_HAS_LEFT = InvalidRequestError("The client closed its side of the connection.", "invalid_http")
_TOO_LATE = RequestTimeoutError(
    f"The request head did not arrive within {_HEAD_TIMEOUT_S:g} s.", "request_timeout"
)
_TOO_LARGE = HeadersTooLargeError(
    f"The request head is larger than {_MAX_HEAD_BYTES} bytes.", "headers_too_large"
)


def use(*, behind_haproxy: bool) -> None:
    """Make all uvicorn servers that are started in this process from now on use these protocols.

    Raises:
        RuntimeError: the installed uvicorn or h11 lacks something that these protocols use.
    """
    used = [(source, name) for source, names in _USED.items() for name in names]
    if missing := [name for source, name in used if not hasattr(source, name)]:
        raise RuntimeError(
            f"uvicorn {uvicorn.__version__} with h11 {version('h11')} is not supported: it has no "
            f"{', '.join(missing)}."
        )
    auto.AutoHTTPProtocol = JsonProtocol if behind_haproxy else BoundedProtocol


def _message(error: ServiceError) -> bytes:
    own = [(b"connection", b"close"), (b"x-request-id", uuid.uuid4().hex.encode())]
    return raw_error_reply(error, error_format=proxy_error_format(os.environ), more=own)


class JsonProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools with its own error in JSON."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's signature
        """Send an error for data that httptools rejects, and close the connection."""
        self.transport.write(_message(_INVALID))
        self.transport.close()


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol on h11 with limits. Upgrades to WebSocket are left to uvicorn."""

    _timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = h11.Connection(h11.SERVER, _MAX_HEAD_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's signature
        """Start the timer for the first request."""
        super().connection_made(transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux
            connection = transport.get_extra_info("socket")
            timeout_ms = round(1000 * _READ_TIMEOUT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        super().connection_lost(exc)
        self._update_timer()

    def handle_events(self) -> None:
        """Handle what was read, and start or stop the timer."""
        data = self.conn.trailing_data[0]
        if self.conn.their_state is h11.IDLE and data[:1] in {b"\r", b"\n"}:
            # h11 rejects empty lines before a request. RFC 9112, section 2.2, asks to ignore them.
            self.conn._receive_buffer._extract(len(data) - len(data.lstrip(b"\r\n")))
        super().handle_events()
        self._update_timer()

    def _update_timer(self) -> None:
        """Let the timer run while the client has to send more, unless uvicorn's keep-alive timer runs."""
        if self._has_begun_a_head():
            self._unset_keepalive_if_required()
        is_missing = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
        if is_missing and not (self.timeout_keep_alive_task or self.transport.is_closing()):
            self._timer = self._timer or self.loop.call_later(
                _HEAD_TIMEOUT_S, self._refuse, _TOO_LATE
            )
        elif self._timer:
            self._timer.cancel()
            self._timer = None

    def _has_begun_a_head(self) -> bool:
        return self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])

    def eof_received(self) -> None:
        """Send an error to a client that closes its sending side before the response."""
        if self._has_begun_a_head() or self.conn.their_state is not h11.IDLE:
            self._refuse(_HAS_LEFT)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's signature
        """Send an error for data that h11 rejects. uvicorn calls this while it handles h11's exception."""
        is_too_large = getattr(sys.exception(), "error_status_hint", 400) == 431
        self._refuse(_TOO_LARGE if is_too_large else _INVALID)

    def _refuse(self, error: ServiceError) -> None:
        """Send an error, unless a response has begun, and close the connection."""
        message = _message(error)
        if self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD":
            message = message[: message.index(b"\r\n\r\n") + 4]
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.write(message)
        # The cycle is None before the first request.
        if not getattr(self.cycle, "response_complete", True):
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _should_upgrade(self) -> bool:
        # Only a GET may become a WebSocket. Other methods have a body, which must be read.
        return self.scope["method"] == "GET" and super()._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: a server may ignore an offer."""
