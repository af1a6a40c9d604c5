import asyncio
import base64

import numpy as np
import pytest

from serve_app.api.routes import embeddings
from serve_app.service.postprocess import finish
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import (
    ALIAS,
    MODEL,
    Application,
    FakeEmbedder,
    build_application,
    counted,
    vectors_of,
)

pytestmark = pytest.mark.anyio

BODY = b'{"input": ["a", "b"]}'


@pytest.fixture
def app(tokenizer: Tokenizer) -> Application:
    return build_application(tokenizer)


@pytest.mark.parametrize("dimensions", [None, 3])
@pytest.mark.parametrize("normalize", [True, False])
async def test_floats_and_base64_are_the_same_vectors(
    app: Application,
    dimensions: int | None,
    normalize: bool,  # noqa: FBT001
) -> None:
    body = {"input": ["a", "b"], "dimensions": dimensions, "normalize": normalize}

    async with app.client() as client:
        as_floats = await client.post("/v1/embeddings", json=body)
        as_base64 = await client.post("/v1/embeddings", json={**body, "encoding_format": "base64"})

    expected = finish(vectors_of(app.embedder.seen[0]), dimensions=dimensions, normalize=normalize)
    floats = [entry["embedding"] for entry in as_floats.json()["data"]]
    decoded = [base64.b64decode(entry["embedding"]) for entry in as_base64.json()["data"]]
    assert np.array(floats, np.float32).tobytes() == expected.tobytes()
    assert b"".join(decoded) == expected.astype("<f4").tobytes()


async def test_the_headers_report_tokens_and_stage_times(app: Application) -> None:
    async with app.client() as client:
        response = await client.post("/v1/embeddings", content=BODY)

    names = ["total", "tokenization", "queue", "inference"]
    times = {name: float(response.headers[f"x-{name}-time"]) for name in names}
    assert response.headers["x-compute-tokens"] == "6"
    assert (times["queue"], times["inference"]) == (1, 2)
    assert 0 <= times["tokenization"] <= times["total"]


async def test_requests_above_the_limit_are_429_until_a_slot_is_free(
    tokenizer: Tokenizer,
) -> None:
    app = build_application(
        tokenizer, embedder=FakeEmbedder(waits=True), http={"max_concurrent_requests": 1}
    )
    async with app.client() as client:
        holding = asyncio.create_task(client.post("/v1/embeddings", content=BODY))
        await app.embedder.called.wait()
        refused = await client.post("/v1/embeddings", content=BODY)
        holding.cancel()
        await asyncio.wait([holding])
        app.embedder.waits = False

        accepted = await client.post("/v1/embeddings", content=BODY)

    assert (refused.status_code, accepted.status_code) == (429, 200)
    assert app.embedder.cancelled == 1


async def test_requests_are_counted_by_route_and_model(app: Application) -> None:
    async with app.client() as client:
        await client.post("/embeddings/", json={"input": "a", "model": ALIAS})
        await client.post("/v1/embeddings", json={"input": "a", "model": "nobody"})
        await client.get("/secret/path")
        scrape = (await client.get("/metrics")).text

    by_labels = [
        {"model": MODEL, "route": "/v1/embeddings", "status": "200"},
        {"model": "", "route": "/v1/embeddings", "status": "404"},
        {"model": "", "route": "other", "status": "404"},
    ]
    counts = [
        counted(app.metrics, "embeddings_requests_total", key="", **labels) for labels in by_labels
    ]
    assert counts == [1, 1, 1]
    assert "secret" not in scrape
    assert "nobody" not in scrape


async def test_a_large_response_is_the_same_as_a_small_one(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large response is serialized in a thread."""
    async with app.client() as client:
        small = await client.post("/v1/embeddings", content=BODY)
        monkeypatch.setattr(embeddings, "_INLINE_NUMBERS", 0)
        large = await client.post("/v1/embeddings", content=BODY)

    assert large.content == small.content


@pytest.mark.parametrize(
    ("inputs", "priority", "is_bulk"),
    [
        (["a"], None, False),
        (["a", "b"], None, True),
        (["a", "b"], "Interactive", False),
        (["a"], "bulk", True),
        (["a"], "", False),
    ],
)
async def test_tokens_or_x_priority_decide_if_a_request_is_bulk(
    tokenizer: Tokenizer,
    inputs: list[str],
    priority: str | None,
    is_bulk: bool,  # noqa: FBT001
) -> None:
    app = build_application(tokenizer, model={"interactive_tokens": 3})
    headers = {} if priority is None else {"x-priority": priority}

    async with app.client() as client:
        answer = await client.post("/v1/embeddings", json={"input": inputs}, headers=headers)

    assert answer.status_code == 200
    assert app.embedder.bulk == [is_bulk]


async def test_an_unknown_priority_is_400_and_names_its_header(app: Application) -> None:
    async with app.client() as client:
        answer = await client.post("/v1/embeddings", content=BODY, headers={"x-priority": "urgent"})

    assert answer.status_code == 400
    assert (answer.json()["param"], answer.json()["code"]) == ("x-priority", "invalid_priority")
