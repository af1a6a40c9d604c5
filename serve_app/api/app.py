"""Builds the Starlette application: paths, handlers and middleware in one table.

The application does not depend on Ray or torch, so it runs under any ASGI server and in tests.
"""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from serve_app.api.auth import ApiKeys
from serve_app.api.middleware import (
    AccessLogMiddleware,
    CrossOriginMiddleware,
    ErrorMiddleware,
    NormalizePathMiddleware,
    record_of,
)
from serve_app.api.openapi.document import Documentation
from serve_app.api.routes.embeddings import EmbeddingRoutes
from serve_app.api.routes.health import HealthRoutes, Scrape
from serve_app.api.routes.models import ModelRoutes
from serve_app.config.http import HttpConfig
from serve_app.errors import MethodNotAllowedError, NotFoundError
from serve_app.observability.access_log import AccessLog
from serve_app.service.embeddings import Service

Handler = Callable[[Request], Awaitable[Response]]


def build_asgi_app(
    service: Service,
    *,
    settings: HttpConfig,
    keys: ApiKeys,
    log: AccessLog,
    scrape: Scrape,
    adds_request_id: bool = True,
) -> Starlette:
    """Build the HTTP application.

    Args:
        service: handles the embedding requests.
        settings: limits, CORS origins and the error format.
        keys: the API keys that most routes require.
        log: writes the access log and counts requests.
        scrape: gathers the metrics of all replicas as Prometheus text.
        adds_request_id: whether to add the `x-request-id` header to responses; False if Ray Serve adds it.
    """
    embeddings = EmbeddingRoutes(service, settings=settings)
    models = ModelRoutes(service, settings=settings)
    health = HealthRoutes(service, settings=settings, scrape=scrape)
    documentation = Documentation(service.models, settings)
    metrics_keys = keys if settings.metrics_need_key else None
    cross_origin = [Middleware(CrossOriginMiddleware, settings=settings)]
    app = Starlette(
        routes=[
            *_routes(
                "POST",
                "/v1/embeddings",
                embeddings.embeddings,
                "/embeddings",
                "/openai/v1/embeddings",
                "/openai/embeddings",
                "/openai/deployments/{model:path}/embeddings",
                "/v1/engines/{model:path}/embeddings",
                keys=keys,
            ),
            *_routes(
                "GET",
                "/v1/models",
                models.models,
                "/models",
                "/openai/v1/models",
                "/openai/models",
                keys=keys,
            ),
            *_routes(
                "GET",
                "/v1/models/{id:path}",
                models.model,
                "/models/{id:path}",
                "/openai/v1/models/{id:path}",
                "/openai/models/{id:path}",
                keys=keys,
            ),
            *_routes("POST", "/embed", embeddings.embed, "/", keys=keys),
            *_routes("GET", "/info", models.info, keys=keys),
            *_routes("GET", "/health", health.health),
            *_routes("GET", "/ready", health.ready),
            *_routes("GET", "/metrics", health.metrics, keys=metrics_keys),
            *_routes("GET", "/openapi.json", documentation.schema),
            *_routes("GET", "/docs", documentation.page),
            *_routes("GET", "/docs/{asset}", documentation.asset),
        ],
        middleware=[
            Middleware(AccessLogMiddleware, log=log, adds_request_id=adds_request_id),
            *(cross_origin if settings.cors_origins else []),
            Middleware(ErrorMiddleware, log=log, error_format=settings.error_format),
            Middleware(NormalizePathMiddleware),
        ],
        exception_handlers={404: _not_found, 405: _not_allowed},
    )
    app.router.redirect_slashes = False
    return app


def _routes(
    method: str, path: str, handler: Handler, *aliases: str, keys: ApiKeys | None = None
) -> list[BaseRoute]:
    async def handle(request: Request) -> Response:
        record = record_of(request.scope)
        record.route = path
        if keys is not None:
            record.key = keys.authenticate(request.scope["headers"])
        return await handler(request)

    return [Route(name, handle, methods=[method]) for name in (path, *aliases)]


# Starlette's router raises a 404 or a 405 before a handler runs. These functions raise this project's error instead.
async def _not_found(_request: Request, _error: Exception) -> Response:
    raise NotFoundError("Path not found. See /docs for the API.", "not_found")


async def _not_allowed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    methods = (error.headers or {}).get("Allow", "").split(", ")
    # Starlette joins a set of methods, so their order varies.
    raise MethodNotAllowedError(", ".join(sorted(methods)))
