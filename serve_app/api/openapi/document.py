"""The API documentation: `/openapi.json`, and a page at `/docs` that renders it without internet access.

The document is generated from the pydantic models. It lists every error and every header that a route can return. The
page uses Swagger UI 5, whose files are in the package fastapi-offline. The package's files are served, but its code is
never imported. This module does not depend on Ray.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from serve_app import __version__, errors
from serve_app.api.openapi.headers import RATE_LIMITS, REQUEST_ID, TIMINGS, failure_headers
from serve_app.api.openapi.request_schema import names, request_schema
from serve_app.config.http import HttpConfig
from serve_app.errors import NotFoundError, ServiceError
from serve_app.schemas.embeddings import EmbeddingResponse
from serve_app.schemas.errors import ErrorBody, OpenAIErrorBody
from serve_app.schemas.models import Health, ModelCard, ModelList, TeiInfo
from serve_app.service.registry import ServedModel

ASSETS: Final = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Embeddings API</title>
<link rel="stylesheet" href="{root}/docs/swagger-ui.css">
</head>
<body>
<div id="api"></div>
<script src="{root}/docs/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({{url: "{root}/openapi.json", dom_id: "#api", validatorUrl: null}})</script>
</body>
</html>
"""

_RESPONSE_MODELS = (
    EmbeddingResponse,
    ModelCard,
    ModelList,
    Health,
    TeiInfo,
    ErrorBody,
    OpenAIErrorBody,
)

Json = dict[str, Any]

_PATHS = ("/v1/embeddings", "/embeddings", "/openai/v1/embeddings", "/openai/embeddings")
_MODEL_PATHS = ("/openai/deployments/{model}/embeddings", "/v1/engines/{model}/embeddings")
_LISTS = ("/v1/models", "/models", "/openai/v1/models", "/openai/models")

# The errors that every route can return, and the additional errors of the embedding routes.
_COMMON_ERRORS: tuple[type[ServiceError], ...] = (
    errors.MethodNotAllowedError,
    errors.InternalError,
)
_EMBEDDING_ERRORS: tuple[type[ServiceError], ...] = (
    errors.UnauthorizedError,
    errors.InvalidRequestError,
    errors.ModelNotFoundError,
    errors.RequestTimeoutError,
    errors.BatchSizeError,
    errors.PayloadTooLargeError,
    errors.TokenizationError,
    errors.InferenceError,
    errors.NotAnEmbeddingModelError,
    errors.OverloadedError,
    errors.UnavailableError,
    errors.DeadlineError,
)


_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_VECTORS: Json = {
    "type": "array",
    "items": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]},
}


class Documentation:
    """The handlers of the documentation's routes.

    Args:
        models: the served models, whose names and prompts the document lists.
        settings: the limits that the document states.
    """

    def __init__(self, models: Iterable[ServedModel], settings: HttpConfig) -> None:
        self._models = [*models]
        self._settings = settings
        self._assets = _assets_directory()

    @cached_property
    def _schema(self) -> Json:
        # Built on first use: it takes 35 ms, which would delay startup.
        return build_schema(self._models, self._settings)

    async def schema(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        # The path at which the operator mounted the application.
        servers = [{"url": request.scope.get("root_path") or "/"}]
        content = orjson.dumps({**self._schema, "servers": servers})
        return Response(content, media_type="application/json")

    async def page(self, request: Request) -> Response:
        """`GET /docs`."""
        root = request.scope.get("root_path", "")
        return Response(_PAGE.format(root=root), media_type="text/html")

    async def asset(self, request: Request) -> Response:
        """`GET /docs/{asset}`: the page's script and stylesheet."""
        name = request.path_params["asset"]
        if name not in ASSETS:
            raise NotFoundError("Path not found. See /docs for the API.", "not_found")
        return FileResponse(self._assets / name, media_type=ASSETS[name])


def _assets_directory() -> Path:
    spec = importlib.util.find_spec("fastapi_offline")
    assert spec is not None  # a dependency of this project
    assert spec.origin is not None
    return Path(spec.origin).parent / "static"


def build_schema(models: Sequence[ServedModel], settings: HttpConfig) -> Json:
    """Return the OpenAPI 3.1 document of all routes."""
    _, definitions = models_json_schema(
        [(model, "serialization") for model in _RESPONSE_MODELS],
        ref_template="#/components/schemas/{model}",
    )
    request = request_schema(models, most_inputs=settings.max_client_batch_size)
    embeddings = _operation(
        "embeddings",
        "Embed one or more inputs",
        EmbeddingResponse,
        _EMBEDDING_ERRORS,
        headers=TIMINGS | RATE_LIMITS,
    )
    embeddings["description"] = _limits(models, settings)
    embeddings["requestBody"] = {"required": True, "content": _json_content("EmbeddingRequest")}
    embed = _operation(
        "embed",
        "Embed inputs, in the format of text-embeddings-inference",
        None,
        _EMBEDDING_ERRORS,
        headers=TIMINGS | RATE_LIMITS,
    )
    embed["requestBody"] = embeddings["requestBody"]
    embed["responses"]["200"]["content"] = {"application/json": {"schema": _VECTORS}}
    auth_errors = [errors.UnauthorizedError]
    card = _operation(
        "model", "Describe a model", ModelCard, [*auth_errors, errors.ModelNotFoundError]
    )
    card["parameters"] = [_name_in_path("id", models)]
    listing = _operation("models", "List the models", ModelList, auth_errors)
    of_model = {
        **embeddings,
        "operationId": "embeddings_of_model",
        "parameters": [_name_in_path("model", models)],
    }
    schemas = {**definitions["$defs"], "EmbeddingRequest": request}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Embeddings API", "version": __version__},
        "paths": {
            **_paths("post", embeddings, *_PATHS),
            **_paths("post", of_model, *_MODEL_PATHS),
            **_paths("post", embed, "/embed", "/"),
            **_paths("get", listing, *_LISTS),
            **_paths("get", card, *(f"{path}/{{id}}" for path in _LISTS)),
            "/info": {
                "get": _operation("info", "Describe the default model", TeiInfo, auth_errors)
            },
            "/health": {"get": _operation("health", "Check that this process responds", Health)},
            "/ready": {
                "get": _operation(
                    "ready", "Check that every model can embed", Health, [errors.UnavailableError]
                )
            },
            "/metrics": {
                "get": _operation(
                    "metrics",
                    "Return the metrics of all replicas, in Prometheus format",
                    None,
                    auth_errors if settings.metrics_need_key else [],
                )
            },
        },
        "components": {"schemas": schemas, "securitySchemes": _SCHEMES},
        "security": [{}, *({name: []} for name in _SCHEMES)],  # `{}`: no API key is needed
    }


def _paths(method: str, operation: Json, path: str, *aliases: str) -> Json:
    """Describe an operation at several paths, each with an operation id of its own."""
    aliased = {
        alias: {method: {**operation, "operationId": f"{operation['operationId']}_{number}"}}
        for number, alias in enumerate(aliases, 2)
    }
    return {path: {method: operation}, **aliased}


def _name_in_path(name: str, models: Sequence[ServedModel]) -> Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "examples": names(models)},
        "description": "A model's name or alias. A slash may be sent as is or as %2F.",
    }


def _limits(models: Sequence[ServedModel], settings: HttpConfig) -> str:
    return (
        f"Models: {', '.join(model.name for model in models)}. At most {settings.max_client_batch_size} inputs, "
        f"{settings.max_request_tokens} tokens and {settings.max_body_bytes} bytes per request."
    )


def _operation(
    name: str,
    summary: str,
    response_model: type | None,
    failures: Sequence[type[ServiceError]] = (),
    *,
    headers: Json | None = None,
) -> Json:
    content: Json = {"text/plain": {"schema": {"type": "string"}}}
    if response_model:
        content = _json_content(response_model.__name__)
    ok = {
        "description": "OK",
        "headers": REQUEST_ID | (headers or {}),
        "content": content,
    }
    by_status: dict[int, list[type[ServiceError]]] = {}
    for failure in (*failures, *_COMMON_ERRORS):
        by_status.setdefault(failure.status, []).append(failure)
    errors_by_status = {str(status): _failure(kinds) for status, kinds in sorted(by_status.items())}
    return {"operationId": name, "summary": summary, "responses": {"200": ok, **errors_by_status}}


def _failure(failures: Sequence[type[ServiceError]]) -> Json:
    """Describe the response with one status. Several errors can share a status."""
    schemas = [
        {"$ref": f"#/components/schemas/{model.__name__}"} for model in (ErrorBody, OpenAIErrorBody)
    ]
    return {
        "description": "; ".join(failure.error for failure in failures),
        "headers": failure_headers(failures),
        "content": {
            "application/json": {"schema": {"oneOf": schemas}, "examples": _examples(failures)}
        },
    }


def _examples(failures: Sequence[type[ServiceError]]) -> Json:
    return {
        failure.__name__: {"value": {"error": failure.error, "error_type": failure.error_type,
                                     "message": "...", "type": failure.openai_type, "param": None, "code": "..."}}
        for failure in failures
    }  # fmt: skip


def _json_content(name: str) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
