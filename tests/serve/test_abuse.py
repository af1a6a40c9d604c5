"""Misbehaving clients get an error or are disconnected, use no extra memory and delay nobody else."""

import contextlib
import gzip
import json
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse

import pytest
import requests

from tests.support.http import FLAT_ERROR_KEYS, post
from tests.support.load import sending
from tests.support.metrics import total
from tests.support.server import Server, wait_for

MILLION = 1_000_000


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


@contextmanager
def connections(server: Server, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """Open `count` connections and send the same data on each; close them when the block ends."""
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(server)) for _ in range(count)]
        for connection in opened:
            connection.sendall(data)
        yield opened


def assert_others_are_served(server: Server) -> None:
    """Assert that a normal request succeeds within five seconds."""
    start = time.monotonic()
    assert post(server.url, {"input": "a text"}).status_code == 200
    assert time.monotonic() - start < 5


def is_closed(connection: socket.socket) -> bool:
    """Read all pending data and return whether the server has closed the connection."""
    connection.settimeout(0.0)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: test\r\n"
# Slow requests: the data sent first on a connection, and the data that follows every half second.
SLOW = {
    b"": b"",
    HEAD + b"X-Header: ": b"a",
    HEAD + b"Content-Length: 1000\r\n\r\n{": b" ",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n": b"1\r\n \r\n",
}


@pytest.mark.slow
@pytest.mark.both_modes
def test_slow_connections_block_nobody_and_get_closed(server: Server) -> None:
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    with ExitStack() as stack:
        slow = [
            (connection, drop)
            for first, drop in SLOW.items()
            for connection in stack.enter_context(
                connections(server, 200 if first else 1000, first)
            )
        ]
        assert_others_are_served(server)

        def drip() -> bool:
            still_open = [one for one in slow if not is_closed(one[0])]
            for connection, drop in still_open:
                with contextlib.suppress(OSError):
                    connection.sendall(drop)
            time.sleep(0.5)
            return not still_open

        wait_for(drip, timeout_s=90, what="all slow connections are closed")


@pytest.mark.both_modes
def test_endless_headers_are_refused(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(100):
                connection.sendall(b"X-Header-%d: %b\r\n" % (number, b"a" * 8000))

        wait_for(lambda: is_closed(connection), timeout_s=20, what="the connection is closed")
    assert_others_are_served(server)


KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
# Requests that are odd but are HTTP, each with the status of its response.
ODD = {
    "unknown method": (b"BREW /health HTTP/1.1\r\n", 405),
    "lowercase method": (b"get /health HTTP/1.1\r\n", 405),
    "CONNECT": (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n", 404),
    "long target": (b"GET /health?" + b"a" * 20_000 + b" HTTP/1.1\r\n", 200),
    "too long target": (b"GET /health?" + b"a" * 40_000 + b" HTTP/1.1\r\n", 414),
    "large header": (b"GET /health HTTP/1.1\r\nAuthorization: Bearer " + b"a" * 32_000 + b"\r\n", 200),
    "too large header": (b"GET /health HTTP/1.1\r\nAuthorization: Bearer " + b"a" * 50_000 + b"\r\n", 431),
    "many headers": (b"GET /health HTTP/1.1\r\n" + b"x-a: 1\r\n" * 480, 200),
    "too many headers": (b"GET /health HTTP/1.1\r\n" + b"x-a: 1\r\n" * 600, 431),
    "HTTP/2": (b"GET /health HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n", 200),
    "POST WebSocket": (b"POST /health HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n" + KEY, 405),
}  # fmt: skip


@pytest.mark.both_modes
@pytest.mark.parametrize("name", ODD)
def test_an_odd_request_gets_json(server: Server, name: str) -> None:
    head, status = ODD[name]
    host = b"" if b"Host: " in head else b"Host: test\r\n"
    with connect(server) as connection:
        connection.sendall(head + host + b"X-Request-ID: odd\r\n\r\n")
        response = HTTPResponse(connection)
        response.begin()
        answer = json.loads(response.read())

    assert response.status == status
    assert response.headers["x-request-id"] == "odd"
    assert status == 200 or answer.keys() == FLAT_ERROR_KEYS


@pytest.mark.both_modes
def test_a_client_that_closes_its_sending_side_gets_json(server: Server) -> None:
    """Both proxies treat it as one that has left. Its request may still finish before they notice."""
    body = json.dumps({"input": "slow " * 40}).encode()
    head = b"POST /plumbing/v1/embeddings HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(head % len(body) + body)
        connection.shutdown(socket.SHUT_WR)
        response = HTTPResponse(connection)
        response.begin()
        answer = json.loads(response.read())

    assert response.status == 400
    assert response.headers["x-request-id"]
    assert answer["code"] == "invalid_http"


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"input": ' + b"[" * MILLION, {}, 413),
        (b'{"input": ' + b'{"a":' * MILLION, {}, 413),
        (b'{"input": ' + b"[" * 100_000, {}, 400),
        (b'{"input": ' + b'{"a":' * 100_000, {}, 400),
        (b'{"input": "' + b"a" * 64 * 2**20 + b'"}', {}, 413),
        (gzip.compress(b'{"input": "' + b"a" * 256 * 2**20), {"Content-Encoding": "gzip"}, 413),
        (b'{"input": "a", "dimensions": ' + b"9" * MILLION + b"}", {}, 400),
        (b'{"input": [[' + b"9" * MILLION + b"]]}", {}, 400),
        (b'{"input": "\\ud800"}', {}, 400),
        (b'{"input": "a", "model": "\\u0000"}', {}, 404),
        (b'{"input": ["a", "\xff\xfe"]}', {}, 400),
        (b'{"input": "' + b" " * 15 * MILLION + b'"}', {}, 422),
        (b'{"input": [' + b"[1]," * 3 * MILLION + b"[1]]}", {}, 413),
    ],
    ids=["lists", "objects", "deep lists", "deep objects", "64 MiB", "bomb", "digits", "id",
         "surrogate", "NUL", "no UTF-8", "spaces", "ids"],
)  # fmt: skip
def test_a_hostile_body_gets_an_error(
    server: Server, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = requests.post(f"{server.url}/v1/embeddings", data=body, headers=headers, timeout=60)

    assert answer.status_code == status
    assert json.loads(answer.content)["error_type"]
    assert_others_are_served(server)


def test_a_nul_character_is_valid_input(server: Server) -> None:
    """JSON allows NUL in a string, and tokenizers drop it."""
    assert post(server.url, {"input": "a\0b"}).status_code == 200


@pytest.mark.both_modes
def test_queued_work_of_disconnected_clients_is_dropped(server: Server) -> None:
    text = json.dumps({"input": "slow " * 40}).encode()
    head = b"POST /plumbing/v1/embeddings HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"
    before = total(server.plumbing_url, "embeddings_inputs_total")

    with connections(server, 10, head % len(text) + text):
        wait_for(
            lambda: total(server.plumbing_url, "embeddings_pending_tokens") > 200,
            timeout_s=20,
            what="requests are queued",
        )
    wait_for(
        lambda: not total(server.plumbing_url, "embeddings_pending_tokens"),
        timeout_s=20,
        what="the queue is empty",
    )

    assert total(server.plumbing_url, "embeddings_inputs_total") - before <= 5
    assert post(server.plumbing_url, {"input": "fine"}).status_code == 200


@pytest.mark.both_modes
def test_a_disconnect_fails_no_other_request(server: Server) -> None:
    """A call carries inputs of several requests, and must outlive the request that started it."""
    text = json.dumps({"input": ["slow " * 20] * 8}).encode()
    head = b"POST /plumbing/v1/embeddings HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"

    with sending(server.plumbing_url, {"input": "slow"}, clients=8) as load:
        for _ in range(12):
            with connections(server, 1, head % len(text) + text) as [leaver]:
                leaver.settimeout(0.7)
                with contextlib.suppress(TimeoutError):
                    leaver.recv(1)

    print(load)
    assert set(load.statuses) == {200}
    assert load.seconds(200)[-1] < 10
