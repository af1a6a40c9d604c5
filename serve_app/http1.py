"""uvicorn's HTTP/1.1, which stays with HTTP/1.1 and loses no body when a client offers to go on in HTTP/2.

The JDK's client puts `Upgrade: h2c` into every first request. A server may ignore that and answer in HTTP/1.1, as here.
httptools leaves such a request's body unread, in case an upgrade follows; so its headers are read again without the
offer. Knows nothing of our application.
"""

import httptools
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFERS = (b"upgrade", b"http2-settings")


def use() -> None:
    """Have uvicorn servers that are started later in this process speak this HTTP/1.1."""
    auto.AutoHTTPProtocol = StayingProtocol


class StayingProtocol(HttpToolsProtocol):
    """A connection; upgrades to WebSocket are left to uvicorn."""

    def data_received(self, data: bytes) -> None:
        """Take what has come; where a request offers an upgrade, read it again without."""
        self._unset_keepalive_if_required()
        left: bytes | None = data
        try:
            while left is not None:
                left = self._feed(left)
        except httptools.HttpParserError:
            self._refuse()

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

    def _refuse(self) -> None:
        message = "Invalid HTTP request received."
        self.logger.warning(message)
        self.send_400_response(message)

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

    def on_headers_complete(self) -> None:
        """Begin the request, unless it is about to be read again."""
        if not self._is_offer():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request, unless it is about to be read again."""
        if not self._is_offer():
            super().on_message_complete()

    def _is_offer(self) -> bool:
        return bool(self.parser.should_upgrade()) and not self._should_upgrade()
