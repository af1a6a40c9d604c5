import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve_app.proxy.uvicorn_protocol import BoundedProtocol, JsonProtocol, use
from tests.support.http import FLAT_ERROR_KEYS
from tests.support.server import wait_for

BODY = b'{"input": "a text"}'
OFFER = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
)


async def echo(_scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the request's body, and with its header names and method as headers."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    names = b",".join(name for name, _ in _scope["headers"])
    length = str(len(body)).encode()
    headers = [
        (b"content-length", length),
        (b"x-saw", names),
        (b"x-method", _scope["method"].encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def slow_echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer like `echo`, after 0.4 seconds."""
    await asyncio.sleep(0.4)
    await echo(scope, receive, send)


async def early(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer without reading the body."""
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body"})


@pytest.fixture(scope="module")
def early_port() -> Iterator[int]:
    """Serve `early`."""
    with serving(early) as number:
        yield number


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Serve `echo`."""
    with serving(echo) as number:
        yield number


@pytest.fixture(scope="module")
def slow_port() -> Iterator[int]:
    """Serve `slow_echo`."""
    with serving(slow_echo) as number:
        yield number


@contextlib.contextmanager
def serving(app: Any, protocol: type = BoundedProtocol) -> Iterator[int]:
    """Run an application with a protocol on uvloop, like Ray Serve's replicas."""
    listener = socket.create_server(("127.0.0.1", 0))
    config: Any = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=lambda: uvloop.run(server.serve(sockets=[listener])), daemon=True
    )
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(timeout=10)


def exchange(port: int, *pieces: bytes, responses: int = 1, timeout_s: float = 10) -> bytes:
    """Send pieces over one connection, and return the data received up to a number of echoed bodies."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        with contextlib.suppress(TimeoutError):
            while received.count(BODY) < responses and (some := connection.recv(65536)):
                received += some
    return received


def request(*headers: bytes, body: bytes = BODY) -> bytes:
    """Return a POST request with the given header lines."""
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: test\r\n" + b"".join(headers) + b"\r\n" + body


LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    ("headers", "body"), [(LENGTH, BODY), (CHUNKED, IN_CHUNKS)], ids=["length", "chunked"]
)
@pytest.mark.parametrize("cut", [None, 5, 30, 120, -len(BODY), -3])
def test_a_body_survives_an_upgrade_offer(
    port: int, headers: bytes, body: bytes, cut: int | None
) -> None:
    message = request(OFFER, headers, body=body)
    pieces = [message] if cut is None else [message[:cut], message[cut:]]

    response = exchange(port, *pieces)

    assert response.startswith(b"HTTP/1.1 200")
    assert response.endswith(BODY)


def test_a_connection_stays_usable_after_an_offer(port: int) -> None:
    message = request(OFFER, LENGTH)

    response = exchange(port, message + request(LENGTH) + message, responses=3)

    assert response.count(b"HTTP/1.1 200") == 3


def test_a_get_with_an_offer_gets_a_response(port: int) -> None:
    response = exchange(
        port, b"GET / HTTP/1.1\r\nHost: test\r\n" + OFFER + b"\r\n" + request(LENGTH)
    )

    assert response.count(b"HTTP/1.1 200") == 2
    assert b"x-method: GET" in response


def test_requests_without_an_offer_still_work(port: int) -> None:
    plain = request(LENGTH)
    expecting = request(b"Expect: 100-continue\r\n", LENGTH)
    in_chunks = request(CHUNKED, body=IN_CHUNKS)

    response = exchange(port, plain + expecting + in_chunks, responses=3)

    assert response.count(b"HTTP/1.1 200") == 3
    assert b"HTTP/1.1 100" in response


@pytest.mark.parametrize(
    "message",
    [
        b"\x16\x03\x01 nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        request(b"Content-Length: 1\r\n", b"Content-Length: 2\r\n"),
        request(CHUNKED, body=b"zz\r\n"),
    ],
    ids=["TLS", "no colon", "no host", "two lengths", "no chunk"],
)
def test_malformed_requests_are_400(port: int, message: bytes) -> None:
    response = exchange(port, message)

    assert response.startswith(b"HTTP/1.1 400 Bad Request")
    assert code_of(response) == "invalid_http"


@pytest.mark.parametrize("method", ["BREW", "post", "CONNECT"])
def test_the_application_decides_on_every_method(port: int, method: str) -> None:
    """It answers a 405 in JSON."""
    message = b"%b /path HTTP/1.1\r\nHost: test\r\n" % method.encode() + OFFER + b"\r\n"

    response = exchange(port, message + request(LENGTH))

    assert f"x-method: {method}".encode() in response


@pytest.mark.parametrize(
    "message",
    [request(LENGTH), request(b"Content-Length: 1000\r\n"), b"GET / HTTP/1.1\r\nHo"],
    ids=["request", "body", "head"],
)
def test_a_client_that_closes_its_sending_side_gets_an_error(
    slow_port: int, message: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", slow_port), timeout=10) as connection:
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        response = connection.recv(65536)

    assert response.startswith(b"HTTP/1.1 400")
    assert code_of(response) == "invalid_http"


@pytest.mark.parametrize(
    ("message", "closes"),
    [
        (b"HEAD / HTTP/1.1\r\nHost: test\r\n\r\n", True),
        (b"HEAD / HTTP/1.1\r\nHost: test\r\n" + CHUNKED + b"\r\nzz\r\n", False),
    ],
    ids=["half-closed", "malformed"],
)
def test_an_error_for_a_head_request_has_no_body(
    slow_port: int, message: bytes, *, closes: bool
) -> None:
    with socket.create_connection(("127.0.0.1", slow_port), timeout=10) as connection:
        connection.sendall(message)
        if closes:
            connection.shutdown(socket.SHUT_WR)
        response = connection.recv(65536)

    assert response.startswith(b"HTTP/1.1 400")
    assert response.endswith(b"\r\n\r\n")


def test_empty_lines_between_requests_are_ignored(port: int) -> None:
    response = exchange(port, b"\r\n" + request(LENGTH) + b"\r\n\n" + request(LENGTH), responses=2)

    assert response.count(b"HTTP/1.1") == response.count(b"HTTP/1.1 200") == 2


def test_an_empty_line_after_a_request_gets_no_response(slow_port: int) -> None:
    response = exchange(slow_port, request(LENGTH) + b"\r\n", responses=2, timeout_s=1)

    assert response.count(b"HTTP/1.1") == 1


def test_a_client_that_closes_an_idle_connection_gets_nothing(slow_port: int) -> None:
    with socket.create_connection(("127.0.0.1", slow_port), timeout=10) as connection:
        connection.shutdown(socket.SHUT_WR)

        assert connection.recv(65536) == b""


def code_of(response: bytes) -> str:
    """Return the code of an error in the flat format that is the end of a response with a request id."""
    head, _, body = response.rpartition(b"\r\n\r\n")
    error = json.loads(body)
    assert error.keys() == FLAT_ERROR_KEYS
    assert b"x-request-id: " in head
    assert b"content-type: application/json" in head
    return str(error["code"])


def test_many_pipelined_offers_get_responses(port: int) -> None:
    one = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: h\r\n\r\n"

    response = exchange(port, one * 1500 + request(LENGTH))

    assert response.count(b"HTTP/1.1 200") == 1501


def test_a_post_does_not_upgrade_to_websocket(port: int) -> None:
    offer = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"

    assert exchange(port, request(offer, LENGTH)).endswith(BODY)


def test_data_after_a_closing_offer_is_harmless(port: int) -> None:
    closing = b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n"

    response = exchange(port, request(closing, LENGTH) + request(LENGTH))

    assert response.startswith(b"HTTP/1.1 200")


def until_closed(port: int, *pieces: bytes) -> bytes:
    """Send pieces, and return the data received until the server closes the connection."""
    received = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        contextlib.suppress(ConnectionError),
    ):
        for piece in pieces:
            connection.sendall(piece)
        while some := connection.recv(65536):
            received += some
    return received


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (b"POST /v1/embeddings HT",),
        (b"GET / HTTP/1.1\r\nHost: test\r\n", b"X-Slow: a"),
        (request(LENGTH), b"GET / HTTP/1.1\r\n"),
    ],
    ids=["nothing", "line", "header", "second"],
)
def test_an_incomplete_head_times_out_with_408(
    port: int, pieces: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.proxy.uvicorn_protocol._HEAD_TIMEOUT_S", 0.2)

    response = until_closed(port, *pieces)

    assert b"HTTP/1.1 408 Request Timeout" in response
    assert code_of(response) == "request_timeout"
    assert response.count(b"HTTP/1.1 200") == int(request(LENGTH) in pieces)


@pytest.mark.parametrize(
    ("message", "drop"),
    [
        (request(LENGTH), b"\r\n"),
        (request(b"Content-Length: 1000\r\n", body=b"a"), b"a"),
        (request(CHUNKED, body=b"1\r\na\r\n0\r\n"), b"x: a\r\n"),
    ],
    ids=["empty line", "body", "trailers"],
)
def test_slow_data_after_a_response_closes_the_connection(
    early_port: int, message: bytes, drop: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.proxy.uvicorn_protocol._HEAD_TIMEOUT_S", 0.5)

    with socket.create_connection(("127.0.0.1", early_port), timeout=4) as connection:
        connection.sendall(message)
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")
        connection.sendall(drop)
        connection.settimeout(0.2)
        for _ in range(20):
            try:
                assert not connection.recv(65536).startswith(b"HTTP/1.1 200")
                break
            except TimeoutError:
                connection.sendall(drop)
            except ConnectionError:
                break
        else:
            pytest.fail("the connection stayed open")


def test_a_body_after_its_response_keeps_the_connection(early_port: int) -> None:
    """Some clients send the whole body before they read the response."""
    body = b"a" * 1000
    with socket.create_connection(("127.0.0.1", early_port), timeout=4) as connection:
        for _ in range(3):
            connection.sendall(request(b"Content-Length: 1000\r\n", body=b""))
            assert connection.recv(65536).startswith(b"HTTP/1.1 404")
            connection.sendall(body)


def test_trailers_are_dropped(port: int) -> None:
    body = b"%x\r\n%b\r\n0\r\nX-Late: a\r\n\r\n" % (len(BODY), BODY)

    response = exchange(port, request(CHUNKED, body=body))

    assert response.endswith(BODY)
    assert b"x-late" not in response


@pytest.mark.parametrize("piece", [b"X-More: a\r\n", b"a"], ids=["headers", "header"])
def test_an_oversized_head_is_rejected(port: int, piece: bytes) -> None:
    response = until_closed(port, b"GET / HTTP/1.1\r\nHost: test\r\nX-Long: ", piece * 1_000_000)

    if response:  # the rest of the data can make the system drop it
        assert response.startswith(b"HTTP/1.1 431")
        assert code_of(response) == "headers_too_large"


def test_oversized_trailers_are_rejected(port: int) -> None:
    body = b"1\r\na\r\n0\r\nX-Long: "

    response = until_closed(port, request(CHUNKED, body=body), b"a" * 1_000_000)

    assert b"HTTP/1.1 200" not in response


def test_no_timeout_while_a_request_is_in_progress(
    slow_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.proxy.uvicorn_protocol._HEAD_TIMEOUT_S", 0.1)
    message = request(LENGTH)

    response = exchange(slow_port, message + message + message[:30], message[30:], responses=3)

    assert response.count(b"HTTP/1.1 200") == 3


def test_the_head_limit_does_not_apply_to_bodies(port: int) -> None:
    body = b"a" * 1_000_000 + BODY

    response = exchange(port, request(b"Content-Length: %d\r\n" % len(body), body=body))

    assert response.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("bad", [b"JUNK JUNK\r\n\r\n", request(CHUNKED, body=b"zz\r\n")])
def test_malformed_data_does_not_drop_the_previous_response(slow_port: int, bad: bytes) -> None:
    received = exchange(slow_port, request(LENGTH) + bad, responses=2)

    assert received.startswith(b"HTTP/1.1 200 ")
    assert BODY in received
    assert code_of(received) == "invalid_http"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs Linux")
def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.proxy.uvicorn_protocol._READ_TIMEOUT_S", 0.5)
    protocols: list[BoundedProtocol] = []

    class Recorded(BoundedProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            protocols.append(self)

    body = b"a" * 20_000_000
    with serving(echo, Recorded) as port, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(request(b"Content-Length: %d\r\n" % len(body), body=body))
        wait_for(
            lambda: protocols[0] not in protocols[0].connections,
            timeout_s=20,
            what="the connection is closed",
        )


def test_another_uvicorn_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(H11Protocol, "handle_events")

    with pytest.raises(RuntimeError, match=r"uvicorn [\d.]+ .* it has no handle_events\."):
        use(behind_haproxy=True)


@pytest.mark.parametrize(
    ("behind_haproxy", "protocol"), [(False, BoundedProtocol), (True, JsonProtocol)]
)
def test_uvicorn_uses_the_protocol(
    monkeypatch: pytest.MonkeyPatch, *, behind_haproxy: bool, protocol: type
) -> None:
    monkeypatch.setattr(auto, "AutoHTTPProtocol", H11Protocol)

    use(behind_haproxy=behind_haproxy)

    assert auto.AutoHTTPProtocol is protocol


def test_behind_haproxy_malformed_data_gets_json() -> None:
    """HAProxy forwards control characters in headers."""
    with serving(echo, JsonProtocol) as port:
        response = exchange(port, b"GET / HTTP/1.1\r\nHost: test\r\nX-A: a\x01b\r\n\r\n")

    assert response.startswith(b"HTTP/1.1 400 Bad Request")
    assert code_of(response) == "invalid_http"


def test_no_writes_after_a_client_has_disconnected(
    slow_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", slow_port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(request(LENGTH) * 20)
        time.sleep(0.1)
    answered = exchange(slow_port, request(LENGTH))  # handled after the aborted requests

    assert answered.startswith(b"HTTP/1.1 200 ")
    assert not caplog.records
