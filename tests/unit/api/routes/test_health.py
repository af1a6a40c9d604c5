from collections.abc import Callable
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Receive

from serve_app.api.request import ApiRequest
from serve_app.api.routes.health import HealthRoutes
from serve_app.config.http import HttpConfig
from serve_app.errors import UnavailableError
from serve_app.observability.metrics import Metrics
from serve_app.service.embeddings import EmbeddingService
from serve_app.service.requests import Requests
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import MODEL, FakeEmbedder, build_application, served_models

pytestmark = pytest.mark.anyio

REQUEST = ApiRequest(
    {"type": "http"},
    receive=cast("Receive", None),
    in_progress=Requests(HttpConfig(), metrics=Metrics()).begin("an-id", method="GET"),
)
OTHER, LAST = "acme/other", "acme/last"


class FakeMetrics:
    """A fake of the scrape, which numbers its answers."""

    scrapes = 0

    async def __call__(self) -> bytes:
        """Return the text of the next scrape."""
        self.scrapes += 1
        return b"scrape_total %d\n" % self.scrapes


@pytest.fixture
def scrape() -> FakeMetrics:
    return FakeMetrics()


@pytest.fixture
def build(tokenizer: Tokenizer, scrape: FakeMetrics) -> Callable[..., HealthRoutes]:
    """A function that builds the routes. Each embedder serves one model, beside a model that does not embed."""

    def build(*embedders: FakeEmbedder, **settings: Any) -> HealthRoutes:
        models = served_models(tokenizer, FakeEmbedder())[1:]
        for name, embedder in zip((MODEL, OTHER, LAST), embedders, strict=False):
            models += served_models(tokenizer, embedder, {"name": name, "aliases": []})[:1]
        limits = HttpConfig(**settings)
        service = EmbeddingService(models, limits=limits, metrics=Metrics())
        return HealthRoutes(service, settings=limits, scrape=scrape)

    return build


Build = Callable[..., HealthRoutes]


async def test_health_does_not_depend_on_the_models(build: Build, scrape: FakeMetrics) -> None:
    """A load balancer would restart an ingress whose models are still loading."""
    routes = build(FakeEmbedder(is_ready=False))

    response = await routes.health(REQUEST)

    assert (response.status_code, response.body) == (200, b'{"status":"ok"}')
    assert scrape.scrapes == 0


async def test_ready_lists_every_model_without_a_replica(build: Build) -> None:
    routes = build(FakeEmbedder(is_ready=False), FakeEmbedder(), FakeEmbedder(is_ready=False))

    with pytest.raises(UnavailableError) as raised:
        await routes.ready(REQUEST)

    assert raised.value.message == f"No replica is ready for: {MODEL}, {LAST}."
    assert raised.value.code == "model_unavailable"


async def test_ready_follows_the_replicas(build: Build) -> None:
    embedder = FakeEmbedder(is_ready=False)
    routes = build(embedder, FakeEmbedder())
    with pytest.raises(UnavailableError):
        await routes.ready(REQUEST)

    embedder.is_ready = True
    response = await routes.ready(REQUEST)

    assert (response.status_code, response.body) == (200, b'{"status":"ok"}')


async def test_a_model_that_never_embeds_does_not_delay_ready(build: Build) -> None:
    response = await build().ready(REQUEST)

    assert response.status_code == 200


async def test_an_unready_server_says_when_to_retry(build: Build) -> None:
    routes = build(FakeEmbedder(is_ready=False), retry_after_s=9)

    with pytest.raises(UnavailableError) as raised:
        await routes.ready(REQUEST)

    assert raised.value.retry_after_s == 9


async def test_every_scrape_is_gathered_again(build: Build) -> None:
    routes = build(FakeEmbedder())

    responses = [await routes.metrics(REQUEST) for _ in range(2)]

    assert [response.body for response in responses] == [b"scrape_total 1\n", b"scrape_total 2\n"]


async def test_metrics_are_in_the_text_format_of_prometheus(tokenizer: Tokenizer) -> None:
    async with build_application(tokenizer).client() as client:
        await client.get("/health")
        response = await client.get("/metrics")

    families = text_string_to_metric_families(response.text)
    health = [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "embeddings_requests_total" and sample.labels["route"] == "/health"
    ]
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert health == [1]


async def test_metrics_can_require_a_key(tokenizer: Tokenizer) -> None:
    app = build_application(tokenizer, keys="ada sk-1,sk-2", http={"metrics_need_key": True})

    async with app.client() as client:
        without = await client.get("/metrics")
        with_key = await client.get("/metrics", headers={"api-key": "sk-1"})

    assert (without.status_code, with_key.status_code) == (401, 200)
