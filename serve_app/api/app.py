"""The Starlette application as one table: paths, handlers, middleware.

Knows nothing of Ray or torch, so that it runs in any ASGI server and in tests.
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
    """Build the application; the routes, `ApiKeys` and `AccessLogMiddleware` say what the arguments are."""
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
    async def labelled(request: Request) -> Response:
        record = record_of(request.scope)
        record.route = path
        if keys is not None:
            record.key = keys.authenticate(request.scope["headers"])
        return await handler(request)

    return [Route(name, labelled, methods=[method]) for name in (path, *aliases)]


# What Starlette's router finds before a handler runs, as ours.
async def _not_found(_request: Request, _error: Exception) -> Response:
    raise NotFoundError("There is no such path here; see /docs.", "not_found")


async def _not_allowed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    methods = (error.headers or {}).get("Allow", "").split(", ")
    raise MethodNotAllowedError(", ".join(sorted(methods)))  # from a set, in any order
