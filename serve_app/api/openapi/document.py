"""The documentation that the server carries: `/openapi.json` and a page to browse it that works without internet.

The document is generated from the pydantic models, with every error and header that a route can answer. The page's
assets, Swagger UI 5, come from the package fastapi-offline, which is read and not imported. Knows nothing of Ray.
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

_ANSWERS = (
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

# What any route can answer, and what the embeddings route can besides.
_ANYWHERE: tuple[type[ServiceError], ...] = (errors.MethodNotAllowedError, errors.InternalError)
_EMBEDDING: tuple[type[ServiceError], ...] = (
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
    """Handlers of the documentation's routes.

    Args:
        models: what is served, for the names and prompts that the document lists.
        settings: the limits that the document states.
    """

    def __init__(self, models: Iterable[ServedModel], settings: HttpConfig) -> None:
        self._models = [*models]
        self._settings = settings
        self._assets = _assets_directory()

    @cached_property
    def _schema(self) -> Json:
        # Built when it is first asked for: it takes 35 ms, which no start should wait for.
        return build_schema(self._models, self._settings)

    async def schema(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        # Where the application lies, as the operator set it.
        servers = [{"url": request.scope.get("root_path") or "/"}]
        content = orjson.dumps({**self._schema, "servers": servers})
        return Response(content, media_type="application/json")

    async def page(self, request: Request) -> Response:
        """`GET /docs`."""
        root = request.scope.get("root_path", "")
        return Response(_PAGE.format(root=root), media_type="text/html")

    async def asset(self, request: Request) -> Response:
        """`GET /docs/{asset}`: the page's script and style."""
        name = request.path_params["asset"]
        if name not in ASSETS:
            raise NotFoundError("There is no such path here; see /docs.", "not_found")
        return FileResponse(self._assets / name, media_type=ASSETS[name])


def _assets_directory() -> Path:
    spec = importlib.util.find_spec("fastapi_offline")
    assert spec is not None  # a dependency of this project
    assert spec.origin is not None
    return Path(spec.origin).parent / "static"


def build_schema(models: Sequence[ServedModel], settings: HttpConfig) -> Json:
    """Return the OpenAPI 3.1 document of all routes."""
    _, definitions = models_json_schema(
        [(answer, "serialization") for answer in _ANSWERS],
        ref_template="#/components/schemas/{model}",
    )
    request = request_schema(models, most_inputs=settings.max_client_batch_size)
    embeddings = _operation(
        "embeddings",
        "Embed one or many inputs",
        EmbeddingResponse,
        _EMBEDDING,
        headers=TIMINGS | RATE_LIMITS,
    )
    embeddings["description"] = _limits(models, settings)
    embeddings["requestBody"] = {"required": True, "content": _json_content("EmbeddingRequest")}
    embed = _operation(
        "embed",
        "Embed, as text-embeddings-inference does",
        None,
        _EMBEDDING,
        headers=TIMINGS | RATE_LIMITS,
    )
    embed["requestBody"] = embeddings["requestBody"]
    embed["responses"]["200"]["content"] = {"application/json": {"schema": _VECTORS}}
    closed = [errors.UnauthorizedError]
    model = _operation("model", "One model", ModelCard, [*closed, errors.ModelNotFoundError])
    model["parameters"] = [_name_in_path("id", models)]
    listing = _operation("models", "All models", ModelList, closed)
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
            **_paths("get", model, *(f"{path}/{{id}}" for path in _LISTS)),
            "/info": {"get": _operation("info", "The default model", TeiInfo, closed)},
            "/health": {"get": _operation("health", "This process can answer", Health)},
            "/ready": {
                "get": _operation(
                    "ready", "Every model can embed", Health, [errors.UnavailableError]
                )
            },
            "/metrics": {
                "get": _operation(
                    "metrics",
                    "Prometheus text of all replicas",
                    None,
                    closed if settings.metrics_need_key else [],
                )
            },
        },
        "components": {"schemas": schemas, "securitySchemes": _SCHEMES},
        "security": [{}, *({name: []} for name in _SCHEMES)],  # `{}`: where no keys are configured
    }


def _paths(method: str, operation: Json, path: str, *aliases: str) -> Json:
    """Describe an operation at several paths; the name of one is its own."""
    others = {
        alias: {method: {**operation, "operationId": f"{operation['operationId']}_{number}"}}
        for number, alias in enumerate(aliases, 2)
    }
    return {path: {method: operation}, **others}


def _name_in_path(name: str, models: Sequence[ServedModel]) -> Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "examples": names(models)},
        "description": "A served name or alias; slashes may be sent raw or as %2F.",
    }


def _limits(models: Sequence[ServedModel], settings: HttpConfig) -> str:
    return (
        f"Models: {', '.join(model.name for model in models)}. At most {settings.max_client_batch_size} inputs, "
        f"{settings.max_request_tokens} tokens and {settings.max_body_bytes} bytes in a request."
    )


def _operation(
    name: str,
    summary: str,
    answer: type | None,
    failures: Sequence[type[ServiceError]] = (),
    *,
    headers: Json | None = None,
) -> Json:
    content = (
        _json_content(answer.__name__) if answer else {"text/plain": {"schema": {"type": "string"}}}
    )
    ok = {
        "description": "OK",
        "headers": REQUEST_ID | (headers or {}),
        "content": content,
    }
    by_status: dict[int, list[type[ServiceError]]] = {}
    for failure in (*failures, *_ANYWHERE):
        by_status.setdefault(failure.status, []).append(failure)
    answers = {str(status): _failure(found) for status, found in sorted(by_status.items())}
    return {"operationId": name, "summary": summary, "responses": {"200": ok, **answers}}


def _failure(failures: Sequence[type[ServiceError]]) -> Json:
    """Describe what one status means; two errors can share it."""
    schemas = [{"$ref": f"#/components/schemas/{m.__name__}"} for m in (ErrorBody, OpenAIErrorBody)]
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
