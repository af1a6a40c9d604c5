import asyncio
import gc
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from starlette.types import Message

from serve_app.api.request_body import has_more
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import Application, build_application, counted

pytestmark = pytest.mark.anyio

BODY = b'{"input": ["a", "b"]}'


@pytest.fixture
def app(tokenizer: Tokenizer) -> Application:
    """The application with its defaults."""
    return build_application(tokenizer)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    """Send a body in parts, without saying how long it is."""
    for part in parts:
        yield part


async def endless(part: bytes) -> AsyncIterator[bytes]:
    """Send a part, and then nothing for ever."""
    yield part
    await asyncio.Event().wait()


async def test_a_body_that_says_it_is_too_long_is_not_read(tokenizer: Tokenizer) -> None:
    """Its length is in the headers, so nothing of it need come."""
    app = build_application(tokenizer, http={"max_body_bytes": 100, "body_timeout_s": 0.01})
    headers = {"content-length": "101"}

    async with app.client() as client:
        response = await client.post("/v1/embeddings", content=endless(b""), headers=headers)

    assert response.json()["code"] == "payload_too_large"


async def test_a_body_in_parts_is_read_no_further_than_the_limit(tokenizer: Tokenizer) -> None:
    """It does not say how long it is, so it is counted; what follows is never asked for."""
    app = build_application(tokenizer, http={"max_body_bytes": 10})
    asked = []

    async def parts() -> AsyncIterator[bytes]:
        for part in (b"12345", b"678901", b"2"):
            asked.append(part)
            yield part

    async with app.client() as client:
        response = await client.post("/v1/embeddings", content=parts())

    assert response.status_code == 413
    assert response.json()["error"] == "Payload too large"
    assert asked == [b"12345", b"678901"]


async def test_a_body_as_long_as_the_limit_is_taken(tokenizer: Tokenizer) -> None:
    """Declared or in parts."""
    app = build_application(tokenizer, http={"max_body_bytes": len(BODY)})

    async with app.client() as client:
        declared = await client.post("/v1/embeddings", content=BODY)
        in_parts = await client.post("/v1/embeddings", content=chunks(BODY[:5], BODY[5:]))

    assert (declared.status_code, in_parts.status_code) == (200, 200)
    assert declared.content == in_parts.content


@pytest.mark.parametrize("length", ["9" * 5000, "²", "-1", "", "1e9"])
async def test_an_odd_content_length_breaks_nothing(tokenizer: Tokenizer, length: str) -> None:
    """A number without end is too long; what is no number is left to the count."""
    app = build_application(tokenizer)

    async with app.client() as client:
        request = client.build_request("POST", "/v1/embeddings", content=BODY)
        request.headers = httpx.Headers([(b"content-length", length.encode("latin-1"))])
        response = await client.send(request)

    assert response.status_code == (413 if length.startswith("99") else 200)


async def test_a_body_that_does_not_come_is_408(tokenizer: Tokenizer) -> None:
    """The connection is closed after it: the rest may still come, and is no request."""
    app = build_application(tokenizer, http={"body_timeout_s": 0.01})

    async with app.client() as client:
        response = await client.post("/v1/embeddings", content=endless(BODY[:5]))

    body = response.json()
    assert response.status_code == 408
    assert (body["error"], body["error_type"]) == ("Request timeout", "validation")
    assert (body["type"], body["code"]) == ("invalid_request_error", "request_timeout")
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_bodies_that_do_not_end_leave_little_memory_to_others(
    tokenizer: Tokenizer, encoding: str
) -> None:
    """Large ones are told to come again, by what they hold decompressed; small ones are served."""
    limits = {"max_body_bytes": 100_000, "max_held_body_bytes": 100_000, "body_timeout_s": 1.5}
    app = build_application(tokenizer, http=limits)
    large = b" " * 99_000 + BODY
    content = gzip.compress(large) if encoding == "gzip" else large
    headers = {"content-encoding": encoding}
    is_held = asyncio.Event()

    async def slow_body() -> AsyncIterator[bytes]:
        yield b" " * 60_000
        is_held.set()
        await asyncio.Event().wait()

    async with app.client() as client:
        slow = asyncio.create_task(client.post("/v1/embeddings", content=slow_body()))
        await is_held.wait()
        refused = await client.post("/v1/embeddings", content=content, headers=headers)
        small = await client.post("/v1/embeddings", content=BODY)
        late = await slow
        served = await client.post("/v1/embeddings", content=content, headers=headers)

    statuses = [answer.status_code for answer in (refused, small, late, served)]
    assert statuses == [429, 200, 408, 200]


async def test_a_client_that_leaves_in_its_body_gets_no_answer(app: Application) -> None:
    """It is counted as gone, and its place is free again."""
    messages: list[Message] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/embeddings",
        "query_string": b"",
        "headers": [],
    }
    await app.asgi(scope, receive, send)

    labels = {"model": "", "route": "/v1/embeddings", "status": "499", "key": ""}
    assert sent == []
    assert counted(app.metrics, "embeddings_requests_total", **labels) == 1
    assert counted(app.metrics, "embeddings_requests_in_flight") == 0


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("identity", bytes),
    ],
)
async def test_a_compressed_body_is_read(
    app: Application, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    """As its header says."""
    async with app.client(headers={"content-encoding": encoding}) as client:
        response = await client.post("/v1/embeddings", content=compress(BODY))

    assert len(response.json()["data"]) == 2


async def test_a_bomb_is_413_and_takes_no_memory(tokenizer: Tokenizer) -> None:
    app = build_application(tokenizer, http={"max_body_bytes": 2**20})
    bomb = gzip.compress(bytes(64 * 2**20))
    assert len(bomb) < 2**17

    tracemalloc.start()
    async with app.client(headers={"content-encoding": "gzip"}) as client:
        response = await client.post("/v1/embeddings", content=bomb)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert response.json()["code"] == "payload_too_large"
    assert most < 4 * 2**20


@pytest.mark.parametrize("value", [b"[1],", b"1,", b'"a",', b"{},"])
async def test_millions_of_values_are_not_parsed(app: Application, value: bytes) -> None:
    """A parser is seconds at them, and nobody else is answered meanwhile."""
    async with app.client() as client:
        many = await client.post("/v1/embeddings", content=b'{"input":[' + value * 410_000 + b"1]}")
        text = json.dumps({"input": "[,] " * 410_000, "truncate": True})
        brackets = await client.post("/v1/embeddings", content=text)

    assert (many.status_code, many.json()["code"]) == (413, "payload_too_large")
    assert brackets.status_code == 200


@pytest.mark.parametrize("end", [b"", b'"', b'\\"', b"\\"])
def test_what_stands_in_strings_does_not_count_however_these_end(end: bytes) -> None:
    """Each string is looked at once, also one without an end."""
    assert not has_more(b'{"a":["' + b'[\\"' * 1_000_000 + end, 10)
    assert has_more(b'["\\"[",[[[[' + end, 4)


@pytest.mark.parametrize(
    "body", [BODY, gzip.compress(BODY)[:-1], gzip.compress(BODY) + b"more", b""]
)
async def test_a_body_that_is_not_what_its_encoding_says_is_400(
    app: Application, body: bytes
) -> None:
    """Not compressed, cut off, or with something behind it."""
    async with app.client(headers={"content-encoding": "gzip"}) as client:
        response = await client.post("/v1/embeddings", content=body)

    assert response.status_code == 400
    assert response.json()["code"] == "invalid_content_encoding"


@pytest.mark.parametrize("encodings", [["br"], ["identity", "gzip"]])
async def test_an_encoding_that_is_not_known_is_400(app: Application, encodings: list[str]) -> None:
    """It says which are; two of them are none that is known."""
    headers = [("content-encoding", encoding) for encoding in encodings]
    async with app.client(headers=headers) as client:
        response = await client.post("/v1/embeddings", content=BODY)

    assert response.json()["code"] == "unsupported_content_encoding"
    assert "gzip" in response.json()["message"]


async def test_a_body_that_is_wrong_leaves_the_garbage_collector_on(app: Application) -> None:
    """It pauses while a body is parsed."""
    async with app.client() as client:
        answer = await client.post("/v1/embeddings", content=b"{")

    assert answer.status_code == 400
    assert gc.isenabled()
