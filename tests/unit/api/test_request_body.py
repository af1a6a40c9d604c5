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
    return build_application(tokenizer)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    """Yield a body in parts, without a declared length."""
    for part in parts:
        yield part


async def endless(part: bytes) -> AsyncIterator[bytes]:
    """Yield one part of a body that never ends."""
    yield part
    await asyncio.Event().wait()


async def test_a_body_with_too_large_a_content_length_is_not_read(tokenizer: Tokenizer) -> None:
    app = build_application(tokenizer, http={"max_body_bytes": 100, "body_timeout_s": 0.01})
    headers = {"content-length": "101"}

    async with app.client() as client:
        response = await client.post("/v1/embeddings", content=endless(b""), headers=headers)

    assert response.json()["code"] == "payload_too_large"


async def test_a_chunked_body_is_read_no_further_than_the_limit(tokenizer: Tokenizer) -> None:
    app = build_application(tokenizer, http={"max_body_bytes": 10})
    sent = []

    async def parts() -> AsyncIterator[bytes]:
        for part in (b"12345", b"678901", b"2"):
            sent.append(part)
            yield part

    async with app.client() as client:
        response = await client.post("/v1/embeddings", content=parts())

    assert response.status_code == 413
    assert response.json()["error"] == "Payload too large"
    assert sent == [b"12345", b"678901"]


async def test_a_body_of_exactly_the_limit_is_accepted(tokenizer: Tokenizer) -> None:
    app = build_application(tokenizer, http={"max_body_bytes": len(BODY)})

    async with app.client() as client:
        declared = await client.post("/v1/embeddings", content=BODY)
        in_parts = await client.post("/v1/embeddings", content=chunks(BODY[:5], BODY[5:]))

    assert (declared.status_code, in_parts.status_code) == (200, 200)
    assert declared.content == in_parts.content


@pytest.mark.parametrize("length", ["9" * 5000, "²", "-1", "", "1e9"])
async def test_a_malformed_content_length_breaks_nothing(tokenizer: Tokenizer, length: str) -> None:
    app = build_application(tokenizer)

    async with app.client() as client:
        request = client.build_request("POST", "/v1/embeddings", content=BODY)
        request.headers = httpx.Headers([(b"content-length", length.encode("latin-1"))])
        response = await client.send(request)

    assert response.status_code == (413 if length.startswith("99") else 200)


async def test_a_body_that_does_not_arrive_is_408(tokenizer: Tokenizer) -> None:
    """The connection is closed, because the rest may still arrive and must not be parsed as a request."""
    app = build_application(tokenizer, http={"body_timeout_s": 0.01})

    async with app.client() as client:
        response = await client.post("/v1/embeddings", content=endless(BODY[:5]))

    body = response.json()
    assert response.status_code == 408
    assert (body["error"], body["error_type"]) == ("Request timeout", "validation")
    assert (body["type"], body["code"]) == ("invalid_request_error", "request_timeout")
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_unfinished_bodies_count_against_the_body_memory(
    tokenizer: Tokenizer, encoding: str
) -> None:
    """Large bodies are rejected by their decompressed size; small ones are always accepted."""
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


async def test_a_client_that_disconnects_in_its_body_frees_its_slot(app: Application) -> None:
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
    async with app.client(headers={"content-encoding": encoding}) as client:
        response = await client.post("/v1/embeddings", content=compress(BODY))

    assert len(response.json()["data"]) == 2


async def test_a_decompression_bomb_is_413_and_takes_no_memory(tokenizer: Tokenizer) -> None:
    app = build_application(tokenizer, http={"max_body_bytes": 2**20})
    bomb = gzip.compress(bytes(64 * 2**20))
    assert len(bomb) < 2**17

    tracemalloc.start()
    async with app.client(headers={"content-encoding": "gzip"}) as client:
        response = await client.post("/v1/embeddings", content=bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert response.json()["code"] == "payload_too_large"
    assert peak < 4 * 2**20


@pytest.mark.parametrize("value", [b"[1],", b"1,", b'"a",', b"{},"])
async def test_millions_of_values_are_not_parsed(app: Application, value: bytes) -> None:
    """Parsing them would block the event loop for seconds."""
    async with app.client() as client:
        many = await client.post("/v1/embeddings", content=b'{"input":[' + value * 410_000 + b"1]}")
        text = json.dumps({"input": "[,] " * 410_000, "truncate": True})
        brackets = await client.post("/v1/embeddings", content=text)

    assert (many.status_code, many.json()["code"]) == (413, "payload_too_large")
    assert brackets.status_code == 200


@pytest.mark.parametrize("end", [b"", b'"', b'\\"', b"\\"])
def test_delimiters_in_strings_do_not_count_as_values(end: bytes) -> None:
    assert not has_more(b'{"a":["' + b'[\\"' * 1_000_000 + end, 10)
    assert has_more(b'["\\"[",[[[[' + end, 4)


@pytest.mark.parametrize(
    "body", [BODY, gzip.compress(BODY)[:-1], gzip.compress(BODY) + b"more", b""]
)
async def test_a_body_that_does_not_match_its_encoding_is_400(
    app: Application, body: bytes
) -> None:
    async with app.client(headers={"content-encoding": "gzip"}) as client:
        response = await client.post("/v1/embeddings", content=body)

    assert response.status_code == 400
    assert response.json()["code"] == "invalid_content_encoding"


@pytest.mark.parametrize("encodings", [["br"], ["identity", "gzip"]])
async def test_an_unsupported_encoding_is_400(app: Application, encodings: list[str]) -> None:
    headers = [("content-encoding", encoding) for encoding in encodings]
    async with app.client(headers=headers) as client:
        response = await client.post("/v1/embeddings", content=BODY)

    assert response.json()["code"] == "unsupported_content_encoding"
    assert "gzip" in response.json()["message"]


async def test_an_invalid_body_leaves_the_garbage_collector_on(app: Application) -> None:
    async with app.client() as client:
        answer = await client.post("/v1/embeddings", content=b"{")

    assert answer.status_code == 400
    assert gc.isenabled()
