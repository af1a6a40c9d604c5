"""HTTP/1.1 details over a raw socket: HTTP/2 upgrade offers, chunks, Expect, compression."""

import gzip
import json
import re
import socket

import pytest
import requests

from tests.support.server import Server

pytestmark = pytest.mark.both_modes

BODY = json.dumps({"input": "a text", "encoding_format": "base64"}).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
# The first request of the JDK's HttpClient on http://.
OFFER = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
)


def request(*headers: bytes, body: bytes = BODY) -> bytes:
    """Return a raw request without a Content-Type header."""
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: test\r\n" + b"".join(headers) + b"\r\n" + body


def exchange(server: Server, *pieces: bytes, answers: int = 1) -> str:
    """Send pieces over one connection and return the data received until `answers` responses are complete."""
    host, port = server.url.removeprefix("http://").split(":")
    received = ""
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        while len(re.findall('"total_tokens":4}}', received)) < answers:
            data = connection.recv(65536)
            assert data, received
            received += data.decode("latin-1")
    return received


@pytest.mark.parametrize("cut", [len(request()), 40, -len(BODY), -3])
def test_an_http2_upgrade_offer_keeps_the_body(server: Server, cut: int) -> None:
    message = request(OFFER, LENGTH)

    answer = exchange(server, message[:cut], message[cut:])

    assert answer.startswith("HTTP/1.1 200")


def test_an_http2_upgrade_offer_keeps_the_chunks(server: Server) -> None:
    """Spring's client sends its bodies like this."""
    chunks = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (5, BODY[:5], len(BODY) - 5, BODY[5:])

    answer = exchange(server, request(OFFER, b"Transfer-Encoding: chunked\r\n", body=chunks))

    assert answer.startswith("HTTP/1.1 200")


def test_a_connection_is_kept_alive(server: Server) -> None:
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    packed = gzip.compress(BODY)

    answer = exchange(
        server,
        request(OFFER, LENGTH),
        request(LENGTH),
        request(b"Transfer-Encoding: chunked\r\n", body=chunks),
        request(b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % len(packed), body=packed),
        answers=4,
    )

    assert answer.count("HTTP/1.1 200") == 4


def test_expect_100_continue_is_answered(server: Server) -> None:
    """For large bodies, curl sends this header."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request(b"Expect: 100-continue\r\n", LENGTH, body=b""))
        assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        connection.sendall(BODY)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_options_lists_the_allowed_methods(server: Server) -> None:
    """Without CORS origins there are no preflight requests to answer."""
    answer = requests.options(f"{server.url}/v1/embeddings", timeout=30)

    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


def test_head_is_get_without_a_body(server: Server) -> None:
    """Probes and load balancers send HEAD. The embeddings route has no GET."""
    probe = requests.head(f"{server.url}/health", timeout=30)
    route = requests.head(f"{server.url}/v1/embeddings", timeout=30)

    assert (probe.status_code, probe.content) == (200, b"")
    assert (route.status_code, route.headers["allow"], route.content) == (405, "POST", b"")
