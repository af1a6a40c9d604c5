"""The routes for load balancers and Prometheus: `GET /health`, `GET /ready` and `GET /metrics`."""

from collections.abc import Awaitable, Callable

from starlette.responses import Response

from serve_app.api.request import ApiRequest
from serve_app.api.serialization import json_response
from serve_app.config.http import HttpConfig
from serve_app.errors import UnavailableError
from serve_app.observability.metrics import CONTENT_TYPE
from serve_app.schemas.models import Health
from serve_app.service.embeddings import EmbeddingService

Scrape = Callable[[], Awaitable[bytes]]


class HealthRoutes:
    """The handlers of the routes `/health`, `/ready` and `/metrics`.

    Args:
        service: the service whose readiness `/ready` reports.
        settings: the HTTP settings; a 503 response contains their `retry_after_s`.
        scrape: gathers the metrics of all replicas as Prometheus text.
    """

    def __init__(self, service: EmbeddingService, *, settings: HttpConfig, scrape: Scrape) -> None:
        self._service = service
        self._settings = settings
        self._scrape = scrape

    async def health(self, _request: ApiRequest) -> Response:
        """`GET /health`: this process responds."""
        return json_response(Health())

    async def ready(self, _request: ApiRequest) -> Response:
        """`GET /ready`: every embedding model has a ready replica, or starts one on demand.

        Raises:
            UnavailableError: a model is not ready; the message lists all such models.
        """
        names = self._service.not_ready()
        if names:
            message = f"No replica is ready for: {', '.join(names)}."
            raise UnavailableError(
                message, "model_unavailable", retry_after_s=self._settings.retry_after_s
            )
        return json_response(Health())

    async def metrics(self, _request: ApiRequest) -> Response:
        """`GET /metrics`: the metrics of all replicas, from any ingress replica."""
        return Response(await self._scrape(), media_type=CONTENT_TYPE)
