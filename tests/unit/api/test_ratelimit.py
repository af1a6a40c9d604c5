import pytest

from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import FakeEmbedder, build_application

pytestmark = pytest.mark.anyio

BODY = b'{"input": ["a", "b"]}'


async def test_every_response_reports_the_remaining_capacity(tokenizer: Tokenizer) -> None:
    """The headers report requests from the start, and tokens as soon as the model is known."""
    embedder = FakeEmbedder()
    embedder.admission.add(300)
    app = build_application(tokenizer, embedder=embedder, max_requests=5)

    async with app.client() as client:
        answered = (await client.post("/v1/embeddings", content=BODY)).headers
        refused = (
            await client.post("/v1/embeddings", json={"input": "a", "dimensions": -1})
        ).headers
        unknown = (
            await client.post("/v1/embeddings", json={"input": "a", "dimensions": 999})
        ).headers
        other = (await client.get("/v1/models")).headers

    for headers in (answered, unknown):
        assert headers["x-ratelimit-limit-tokens"] == "1000"
        assert headers["x-ratelimit-remaining-tokens"] == "700"
        assert headers["x-ratelimit-reset-tokens"] == "1000ms"
    assert {h["x-ratelimit-limit-requests"] for h in (answered, refused, unknown)} == {"5"}
    assert {h["x-ratelimit-remaining-requests"] for h in (answered, refused, unknown)} == {"5"}
    assert "x-ratelimit-limit-tokens" not in refused
    assert not [name for name in other if name.startswith("x-ratelimit")]
