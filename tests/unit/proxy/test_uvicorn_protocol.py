import asyncio
import contextlib
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

from serve_app.proxy.uvicorn_protocol import StayingProtocol

BODY = b'{"input": "a text"}'
OFFER = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
)


async def echo(_scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body that came and the headers that came with it."""
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
    """Answer as the echo does, after a while."""
    await asyncio.sleep(0.4)
    await echo(scope, receive, send)


async def early(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer without a look at the body."""
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body"})


@pytest.fixture(scope="module")
def early_port() -> Iterator[int]:
    """Serve the one that answers early."""
    with serving(early) as number:
        yield number


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Serve the echo by uvicorn with our HTTP/1.1."""
    with serving(echo) as number:
        yield number


@pytest.fixture(scope="module")
def slow_port() -> Iterator[int]:
    """Serve the slow one."""
    with serving(slow_echo) as number:
        yield number


@contextlib.contextmanager
def serving(app: Any) -> Iterator[int]:
    """Run an application until the block ends, on the loop that Ray Serve's replicas have."""
    listener = socket.create_server(("127.0.0.1", 0))
    config: Any = uvicorn.Config(app, http=StayingProtocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=lambda: uvloop.run(server.serve(sockets=[listener])), daemon=True
    )
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(timeout=10)


def exchange(port: int, *pieces: bytes, answers: int = 1) -> bytes:
    """Send pieces over one connection and return what comes back, up to so many echoed bodies."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        with contextlib.suppress(TimeoutError):
            while received.count(BODY) < answers and (some := connection.recv(65536)):
                received += some
    return received


def request(*headers: bytes, body: bytes = BODY) -> bytes:
    """Return a request of the JDK's client."""
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: test\r\n" + b"".join(headers) + b"\r\n" + body


LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    ("headers", "body"), [(LENGTH, BODY), (CHUNKED, IN_CHUNKS)], ids=["length", "chunked"]
)
@pytest.mark.parametrize("cut", [None, 5, 30, 120, -len(BODY), -3])
def test_a_body_is_not_lost_to_an_offer_to_upgrade(
    port: int, headers: bytes, body: bytes, cut: int | None
) -> None:
    """However it is framed, and wherever the segments end."""
    message = request(OFFER, headers, body=body)
    pieces = [message] if cut is None else [message[:cut], message[cut:]]

    answer = exchange(port, *pieces)

    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(BODY)
    assert b"x-saw: host,connection,content-length" in answer or b"transfer-encoding" in answer
    assert b"upgrade" not in answer.split(b"x-saw")[1]


def test_a_connection_goes_on_after_an_offer(port: int) -> None:
    """With requests that repeat the offer, and with one that is sent before the first is answered."""
    message = request(OFFER, LENGTH)

    answer = exchange(port, message + request(LENGTH) + message, answers=3)

    assert answer.count(b"HTTP/1.1 200") == 3


def test_a_request_without_a_body_is_answered_too(port: int) -> None:
    """The JDK offers with every method."""
    answer = exchange(port, b"GET / HTTP/1.1\r\nHost: test\r\n" + OFFER + b"\r\n" + request(LENGTH))

    assert answer.count(b"HTTP/1.1 200") == 2
    assert b"x-method: GET" in answer


def test_other_requests_are_read_as_ever(port: int) -> None:
    """With `Expect: 100-continue`, in chunks, one after the other."""
    plain = request(LENGTH)
    expecting = request(b"Expect: 100-continue\r\n", LENGTH)
    in_chunks = request(CHUNKED, body=IN_CHUNKS)

    answer = exchange(port, plain + expecting + in_chunks, answers=3)

    assert answer.count(b"HTTP/1.1 200") == 3
    assert b"HTTP/1.1 100" in answer


@pytest.mark.parametrize(
    "message",
    [
        b"\x16\x03\x01 nonsense\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n" + OFFER + b"\r\n",
    ],
)
def test_what_is_no_http_for_a_server_is_400(port: int, message: bytes) -> None:
    """And ends the connection."""
    assert exchange(port, message).startswith(b"HTTP/1.1 400")


def test_many_offers_in_one_piece_are_answered(port: int) -> None:
    """However many: each is read again, one after the other."""
    one = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: h\r\n\r\n"

    answer = exchange(port, one * 1500 + request(LENGTH))

    assert answer.count(b"HTTP/1.1 200") == 1501


def test_a_post_is_no_websocket(port: int) -> None:
    """Whatever it says of itself; its body is read."""
    offer = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"

    assert exchange(port, request(offer, LENGTH)).endswith(BODY)


def test_what_follows_an_offer_that_closes_does_no_harm(port: int) -> None:
    """The first is answered, as without the offer."""
    closing = b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n"

    answer = exchange(port, request(closing, LENGTH) + request(LENGTH))

    assert answer.startswith(b"HTTP/1.1 200")


def until_closed(port: int, *pieces: bytes) -> bytes:
    """Send pieces, and return what comes until the server closes the connection."""
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
def test_a_head_that_does_not_end_is_not_waited_for(
    port: int, pieces: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a connection on which nothing comes; after a request there is uvicorn's own limit."""
    monkeypatch.setattr("serve_app.proxy.uvicorn_protocol._HEAD_S", 0.2)

    answer = until_closed(port, *pieces)

    assert b"HTTP/1.1 408 Request Timeout" in answer
    assert answer.count(b"HTTP/1.1 200") == int(request(LENGTH) in pieces)


@pytest.mark.parametrize(
    ("message", "drop"),
    [
        (request(LENGTH), b"\r\n"),
        (request(b"Content-Length: 1000\r\n", body=b"a"), b"a"),
        (request(CHUNKED, body=b"1\r\na\r\n0\r\n"), b"x: a\r\n"),
    ],
    ids=["empty line", "body", "trailers"],
)
def test_what_drips_after_an_answer_is_not_waited_for(
    early_port: int, message: bytes, drop: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins no request, and would hold its connection for ever."""
    monkeypatch.setattr("serve_app.proxy.uvicorn_protocol._HEAD_S", 0.5)

    with socket.create_connection(("127.0.0.1", early_port), timeout=4) as connection:
        connection.sendall(message)
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")
        connection.sendall(drop)
        connection.settimeout(0.2)
        for _ in range(20):
            try:
                assert connection.recv(65536) == b""
                break
            except TimeoutError:
                connection.sendall(drop)
            except ConnectionError:
                break
        else:
            pytest.fail("it was waited for")


def test_a_connection_is_kept_whose_body_came_after_its_answer(early_port: int) -> None:
    """As clients send it that do not look before they have sent all."""
    body = b"a" * 1000
    with socket.create_connection(("127.0.0.1", early_port), timeout=4) as connection:
        for _ in range(3):
            connection.sendall(request(b"Content-Length: 1000\r\n", body=b""))
            assert connection.recv(65536).startswith(b"HTTP/1.1 404")
            connection.sendall(body)


def test_trailers_are_no_headers(port: int) -> None:
    """They come when the headers were read, and there may be any number of them."""
    body = b"%x\r\n%b\r\n0\r\nX-Late: a\r\n\r\n" % (len(BODY), BODY)

    answer = exchange(port, request(CHUNKED, body=body))

    assert answer.endswith(BODY)
    assert b"x-late" not in answer


@pytest.mark.parametrize("piece", [b"X-More: a\r\n", b"a"], ids=["headers", "header"])
def test_a_head_of_any_size_is_not_taken(port: int, piece: bytes) -> None:
    """It would stay in memory."""
    answer = until_closed(port, b"GET / HTTP/1.1\r\nHost: test\r\nX-Long: ", piece * 1_000_000)

    assert answer.startswith(b"HTTP/1.1 431") or not answer


def test_trailers_of_any_size_are_not_taken(port: int) -> None:
    """The parser would gather one that does not end."""
    body = b"1\r\na\r\n0\r\nX-Long: "

    assert until_closed(port, request(CHUNKED, body=body), b"a" * 1_000_000) == b""


def test_a_head_waits_while_a_request_before_it_is_worked_on(
    slow_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is not read meanwhile, so it cannot be late."""
    monkeypatch.setattr("serve_app.proxy.uvicorn_protocol._HEAD_S", 0.1)
    message = request(LENGTH)

    answer = exchange(slow_port, message + message + message[:30], message[30:], answers=3)

    assert answer.count(b"HTTP/1.1 200") == 3


def test_a_large_body_is_no_head(port: int) -> None:
    """Only what comes before a head is complete is counted."""
    body = b"a" * 1_000_000 + BODY

    answer = exchange(port, request(b"Content-Length: %d\r\n" % len(body), body=body))

    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("bad", [b"JUNK JUNK\r\n\r\n", request(CHUNKED, body=b"zz\r\n")])
def test_what_is_no_request_takes_no_answer_from_the_one_before_it(
    slow_port: int, bad: bytes
) -> None:
    """That one is answered, and then the connection is closed."""
    received = exchange(slow_port, request(LENGTH) + bad, answers=2)

    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.1") == 1
    assert received.endswith(BODY)


def test_who_leaves_after_many_requests_at_once_is_written_to_no_more(
    slow_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is being answered, not the last one read."""
    with socket.create_connection(("127.0.0.1", slow_port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(request(LENGTH) * 20)
        time.sleep(0.1)
    answered = exchange(slow_port, request(LENGTH))  # later than what was left

    assert answered.startswith(b"HTTP/1.1 200 ")
    assert not caplog.records
