"""Clients that misbehave: each gets an error or is left, nothing grows, and nobody else waits for it."""

import contextlib
import gzip
import json
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import requests

from tests.support.http import post
from tests.support.load import sending
from tests.support.metrics import total
from tests.support.server import Server, wait_for

MILLION = 1_000_000


def connect(server: Server) -> socket.socket:
    """Open a connection."""
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


@contextmanager
def connections(server: Server, count: int, begun: bytes = b"") -> Iterator[list[socket.socket]]:
    """Hold connections, on each of which something was begun."""
    with ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(count)]
        for connection in held:
            connection.sendall(begun)
        yield held


def assert_others_are_served(server: Server) -> None:
    """Assert that an ordinary request is answered as ever."""
    started = time.monotonic()
    assert post(server.url, {"input": "a text"}).status_code == 200
    assert time.monotonic() - started < 5


def is_closed(connection: socket.socket) -> bool:
    """Return whether the server has given a connection up; what it said before is read."""
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
# What is begun on a connection, and what comes of it each half second.
SLOW = {
    b"": b"",
    HEAD + b"X-Header: ": b"a",
    HEAD + b"Content-Length: 1000\r\n\r\n{": b" ",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n": b"1\r\n \r\n",
}


@pytest.mark.slow
@pytest.mark.both_modes
def test_connections_that_are_slow_hold_up_nobody_and_are_given_up(server: Server) -> None:
    """A thousand on which nothing comes, and hundreds of headers, bodies and chunks that come by the byte."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    with ExitStack() as stack:
        slow = [
            (connection, drop)
            for begun, drop in SLOW.items()
            for connection in stack.enter_context(
                connections(server, 200 if begun else 1000, begun)
            )
        ]
        assert_others_are_served(server)

        def drip() -> bool:
            open_ones = [one for one in slow if not is_closed(one[0])]
            for connection, drop in open_ones:
                with contextlib.suppress(OSError):
                    connection.sendall(drop)
            time.sleep(0.5)
            return not open_ones

        wait_for(drip, timeout_s=90, what="connections closed")


@pytest.mark.both_modes
def test_headers_without_end_are_refused(server: Server) -> None:
    """They are not kept in memory."""
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(100):
                connection.sendall(b"X-Header-%d: %b\r\n" % (number, b"a" * 8000))

        wait_for(lambda: is_closed(connection), timeout_s=20, what="the connection closed")
    assert_others_are_served(server)


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
def test_a_body_that_is_meant_to_hurt_is_an_error(
    server: Server, body: bytes, headers: dict[str, str], status: int
) -> None:
    """In the contract's shape."""
    answer = requests.post(f"{server.url}/v1/embeddings", data=body, headers=headers, timeout=60)

    assert answer.status_code == status
    assert json.loads(answer.content)["error_type"]
    assert_others_are_served(server)


def test_a_zero_byte_in_a_text_is_a_character(server: Server) -> None:
    """JSON has it, and tokenizers leave it out."""
    assert post(server.url, {"input": "a\0b"}).status_code == 200


@pytest.mark.both_modes
def test_work_of_clients_that_leave_is_not_done(server: Server) -> None:
    """What waits for the model is dropped before the model sees it."""
    text = json.dumps({"input": "slow " * 40}).encode()
    head = b"POST /plumbing/v1/embeddings HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"
    before = total(server.plumbing_url, "embeddings_inputs_total")

    with connections(server, 10, head % len(text) + text):
        wait_for(
            lambda: total(server.plumbing_url, "embeddings_pending_tokens") > 200,
            timeout_s=20,
            what="a queue",
        )
    wait_for(
        lambda: not total(server.plumbing_url, "embeddings_pending_tokens"),
        timeout_s=20,
        what="no queue",
    )

    assert total(server.plumbing_url, "embeddings_inputs_total") - before <= 5
    assert post(server.plumbing_url, {"input": "fine"}).status_code == 200


def test_clients_that_leave_take_no_others_work_along(server: Server) -> None:
    """Calls carry inputs of several requests; they go on when that one ends with which they began."""
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
