"""uvicorn's HTTP/1.1, which loses no body when a client offers to go on in HTTP/2, and bounds a request's head.

The JDK's client puts `Upgrade: h2c` into every first request. A server may ignore that and answer in HTTP/1.1, as here.
httptools leaves such a request's body unread, in case an upgrade follows; so its headers are read again without the
offer. uvicorn waits for ever for a head, the request's line and headers, and takes one of any size: here it has some
seconds and kilobytes. So many seconds has what comes after an answer and begins no request, as the rest of a body that
nobody read; and trailers, which nobody reads either, have the kilobytes and are not kept. What is no request is refused
after the good one before it is answered. Knows nothing of our application.
"""

import asyncio

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

_OFFERS = (b"upgrade", b"http2-settings")
# Seconds from when a connection is there, a head begins, or something else comes after an answer, until a head is
# complete.
_HEAD_S = 30.0
# Bytes of a head that is not complete yet, or of anything else that is no body; a piece more may be with them, as the
# system hands it over.
_HEAD_BYTES = 65_536


def use() -> None:
    """Have uvicorn servers that are started later in this process speak this HTTP/1.1."""
    auto.AutoHTTPProtocol = StayingProtocol


class StayingProtocol(HttpToolsProtocol):
    """A connection; upgrades to WebSocket are left to uvicorn."""

    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    _bytes_beside_body = 0
    _running: RequestResponseCycle | None = None  # whose answer is the next

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for the first request, for a while."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more, and have what runs know."""
        self._stop_waiting()
        if self._running is not None:  # uvicorn tells the request that was read last
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        """Take what has come; where a request offers an upgrade, read it again without."""
        self._unset_keepalive_if_required()
        self._bytes_beside_body += len(data)
        left: bytes | None = data
        try:
            while left is not None:
                left = self._feed(left)
        except httptools.HttpParserError:
            self._refuse()
            return
        if self._bytes_beside_body > _HEAD_BYTES:
            self._give_up(431)
        elif self._timer is None and getattr(self.cycle, "response_complete", False):
            self._wait()  # as uvicorn does no more: something has come

    def _feed(self, data: bytes) -> bytes | None:
        """Read data; return what is to be read again if a request in it offers an upgrade."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            elif self.parser.get_method() == b"CONNECT":  # for a proxy
                self._refuse()
            else:
                again = self._head() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                # As uvicorn has it: a request may stand behind one that asks to close the connection.
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                return again
        return None

    def _should_upgrade(self) -> bool:
        # To WebSocket only by GET, as its RFC has it; another method has a body that is waited for.
        return self.parser.get_method() == b"GET" and bool(super()._should_upgrade())

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(_HEAD_S, self._is_late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _is_late(self) -> None:
        if not getattr(self.cycle, "response_complete", True):  # None before the first request
            self._wait()  # more is not read while a request before it is worked on
        else:
            self._give_up(408)

    def _give_up(self, status: int) -> None:
        """Close the connection; whoever has begun a request is told why."""
        self._stop_waiting()
        if self._in_head:
            self.transport.write(
                STATUS_LINE[status] + b"content-length: 0\r\nconnection: close\r\n\r\n"
            )
        self.transport.close()

    def _refuse(self) -> None:
        message = "Invalid HTTP request received."
        self.logger.warning(message)
        running = self._running
        if running is None or running.response_complete or running.more_body:
            self.send_400_response(message)
        else:  # it was all there, and is answered before the connection is closed
            running.keep_alive = False
            self.pipeline.clear()
            self.flow.pause_reading()

    def _head(self) -> bytes:
        """Return the headers that were read, without an offer to upgrade and what belongs to it."""
        lines = [
            b"%b %b HTTP/%b"
            % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        ]
        for name, value in self.headers:
            if name in _OFFERS:
                continue
            if name == b"connection":
                words = (word.strip() for word in value.split(b","))
                value = b", ".join(w for w in words if w.lower() not in _OFFERS)  # noqa: PLW2901
            lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Wait for the rest of the head, for a while."""
        self._in_head = True
        self._bytes_beside_body = 0
        self._wait()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, and no trailer."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the request, unless it is about to be read again."""
        if not self._is_offer():
            self._in_head = False
            self._bytes_beside_body = 0
            self._stop_waiting()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._bytes_beside_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request, unless it is about to be read again."""
        if not self._is_offer():
            super().on_message_complete()

    def _is_offer(self) -> bool:
        return bool(self.parser.should_upgrade()) and not self._should_upgrade()
