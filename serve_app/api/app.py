"""Builds the HTTP application from the service.

The application does not depend on Ray or torch, so it runs under any ASGI server and in tests.
"""

from serve_app.api.auth import ApiKeys
from serve_app.api.middleware import RequestMiddleware
from serve_app.api.openapi.document import Documentation
from serve_app.api.operations import OperationTable, operations
from serve_app.api.routes.embeddings import EmbeddingRoutes
from serve_app.api.routes.health import HealthRoutes, Scrape
from serve_app.api.routes.models import ModelRoutes
from serve_app.config.http import HttpConfig
from serve_app.service.embeddings import EmbeddingService
from serve_app.service.requests import Requests


def build_asgi_app(
    service: EmbeddingService,
    requests: Requests,
    *,
    settings: HttpConfig,
    keys: ApiKeys,
    scrape: Scrape,
    adds_request_id: bool = True,
) -> RequestMiddleware:
    """Build the HTTP application.

    Args:
        service: handles the embedding requests.
        requests: admits, counts and logs all requests.
        settings: limits, CORS origins and the error format.
        keys: the API keys that most operations require.
        scrape: gathers the metrics of all replicas as Prometheus text.
        adds_request_id: whether to add the `x-request-id` header to responses; False if Ray Serve adds it.
    """
    documentation = Documentation(service.models, settings)
    table = OperationTable(
        operations(
            EmbeddingRoutes(service, settings=settings),
            ModelRoutes(service.models, settings=settings),
            HealthRoutes(service, settings=settings, scrape=scrape),
            schema=documentation.schema,
            page=documentation.page,
            asset=documentation.asset,
            metrics_need_key=settings.metrics_need_key,
        )
    )
    documentation.operations = table.rows
    return RequestMiddleware(
        table, requests, settings=settings, keys=keys, adds_request_id=adds_request_id
    )
