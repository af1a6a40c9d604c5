"""uvicorn's HTTP/1.1 protocol with fixes for upgrade offers, request heads and pipelines.

Upgrade offers. The JDK's HTTP client sends `Upgrade: h2c` with the first request of a connection. A
server may ignore the offer and respond in HTTP/1.1. However, httptools stops reading at the end of
such a head, in case the protocol changes. uvicorn then loses the body. This protocol removes the
offer from the head, and feeds the head and the rest of the data to a new parser.

Limits. uvicorn waits forever for a head (the request line and the headers), and accepts a head of
any size. This protocol limits the time and the size:

- Time. A timer starts when a connection opens, when a head begins, and when data arrives after a
  response. It stops when a head is complete. When the timer expires, the connection is closed. If
  a head is missing or incomplete, a 408 is sent first. If the timer expires while a request is in
  progress, it restarts, because uvicorn does not read any data until the response is finished.
- Size. All bytes since the last complete head or the last part of a body are counted. Above the
  limit, the connection is closed. If a head is incomplete, a 431 is sent first. Trailers are counted
  too, and are then dropped.

Pipelines. If malformed data follows a complete request whose response is not finished, the response
is sent first, and then the connection is closed. In all other cases, malformed data is answered with
a 400.

This module does not depend on the application.
"""

import asyncio
import os
import uuid

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from serve_app.api.error_responses import error_reply
from serve_app.errors import (
    HeadersTooLargeError,
    InvalidRequestError,
    RequestTimeoutError,
    ServiceError,
)
from serve_app.proxy.environment import proxy_error_format

_OFFERS = (b"upgrade", b"http2-settings")
# Time limit for a head, in seconds.
_HEAD_TIMEOUT_S = 30.0
# Limit on the number of bytes outside bodies. The limit is checked after each read, so the data of
# one read can exceed it.
_MAX_HEAD_BYTES = 65_536

_INVALID = InvalidRequestError("The request is not valid HTTP.", "invalid_http")
_TOO_LATE = RequestTimeoutError(
    f"The request head did not arrive within {_HEAD_TIMEOUT_S:g} s.", "request_timeout"
)
_TOO_LARGE = HeadersTooLargeError(
    f"The request head is larger than {_MAX_HEAD_BYTES} bytes.", "headers_too_large"
)


def use() -> None:
    """Make all uvicorn servers that are started in this process from now on use this protocol."""
    auto.AutoHTTPProtocol = StayingProtocol


class StayingProtocol(HttpToolsProtocol):
    """The protocol of one connection. Upgrades to WebSocket are left to uvicorn."""

    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    _bytes_outside_body = 0
    _running: RequestResponseCycle | None = None  # the request whose response is sent next

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's signature
        """Start the timer for the first request."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer, and notify the running request."""
        self._stop_timer()
        if self._running is not None:  # uvicorn only notifies the request that it read last
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        """Parse data. If a request offers an upgrade, parse it again without the offer."""
        self._unset_keepalive_if_required()
        self._bytes_outside_body += len(data)
        rest: bytes | None = data
        try:
            while rest is not None:
                rest = self._feed(rest)
        except httptools.HttpParserError:
            self._reject()
            return
        if self._bytes_outside_body > _MAX_HEAD_BYTES:
            self._abort(_TOO_LARGE)
        elif self._timer is None and getattr(self.cycle, "response_complete", False):
            self._start_timer()  # the data has ended uvicorn's own keep-alive timeout

    def _feed(self, data: bytes) -> bytes | None:
        """Parse data. If a request in it offers an upgrade, return the data to parse again."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            elif self.parser.get_method() == b"CONNECT":  # only proxies accept CONNECT
                self._reject()
            else:
                rest = self._head_without_offer() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                # As in uvicorn: a request may follow one that asks to close the connection.
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                return rest
        return None

    def _should_upgrade(self) -> bool:
        # The WebSocket RFC allows only GET. A request with any other method can have a body, which
        # must be read.
        return self.parser.get_method() == b"GET" and bool(super()._should_upgrade())

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(_HEAD_TIMEOUT_S, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _on_timeout(self) -> None:
        # The cycle is None before the first request.
        if not getattr(self.cycle, "response_complete", True):
            self._start_timer()  # no data is read while a request is in progress
        else:
            self._abort(_TOO_LATE)

    def _abort(self, error: ServiceError) -> None:
        """Close the connection. If a request head is incomplete, send an error first."""
        self._stop_timer()
        if self._in_head:
            self._write(error)
        self.transport.close()

    def _write(self, error: ServiceError) -> None:
        status, headers, body = error_reply(
            error, error_format=proxy_error_format(os.environ), request_headers=()
        )
        headers = [
            *(header for header in headers if header[0] != b"connection"),
            (b"connection", b"close"),
            (b"x-request-id", uuid.uuid4().hex.encode()),
        ]
        head = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], head, body))

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's signature
        """Send an error for malformed data, and close the connection."""
        self._write(_INVALID)
        self.transport.close()

    def _reject(self) -> None:
        message = "Invalid HTTP request received."
        self.logger.warning(message)
        running = self._running
        if running is None or running.response_complete or running.more_body:
            self.send_400_response(message)
        else:  # the running request was complete: send its response, then close the connection
            running.keep_alive = False
            self.pipeline.clear()
            self.flow.pause_reading()

    def _head_without_offer(self) -> bytes:
        """Rebuild the head that was read, without the headers that offer an upgrade."""
        lines = [
            b"%b %b HTTP/%b"
            % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        ]
        for name, value in self.headers:
            if name in _OFFERS:
                continue
            if name == b"connection":
                options = (option.strip() for option in value.split(b","))
                value = b", ".join(o for o in options if o.lower() not in _OFFERS)  # noqa: PLW2901
            lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Start the timer for the rest of the head."""
        self._in_head = True
        self._bytes_outside_body = 0
        self._start_timer()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the field if it is a header, and drop it if it is a trailer."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless its head is about to be parsed again."""
        if not self._is_offer():
            self._in_head = False
            self._bytes_outside_body = 0
            self._stop_timer()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        self._bytes_outside_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request, unless its head is about to be parsed again."""
        if not self._is_offer():
            super().on_message_complete()

    def _is_offer(self) -> bool:
        return bool(self.parser.should_upgrade()) and not self._should_upgrade()
