"""The API documentation: `/openapi.json`, and a page at `/docs` that renders it without internet access.

The document is generated from the table of operations and its pydantic models. It lists every error and every header
that an operation can return. The page uses Swagger UI 5, whose files are in the package fastapi-offline. The package's
files are served, but its code is never imported. This module does not depend on Ray.
"""

import importlib.util
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import FileResponse, Response

from serve_app import __version__, errors
from serve_app.api.openapi.headers import REQUEST_ID, TIMINGS, failure_headers
from serve_app.api.openapi.request_schema import names, request_schema
from serve_app.api.operations import Operation
from serve_app.api.request import ApiRequest
from serve_app.config.http import HttpConfig
from serve_app.errors import NotFoundError, ServiceError
from serve_app.schemas.errors import ErrorBody, OpenAIErrorBody
from serve_app.service.registry import EmbeddingModel, ModelRegistry

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

Json = dict[str, Any]

# The errors that every operation can return.
_COMMON_ERRORS: tuple[type[ServiceError], ...] = (
    errors.MethodNotAllowedError,
    errors.UriTooLongError,
    errors.HeadersTooLargeError,
    errors.InternalError,
)

# The parameters in an operation's path.
_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")

_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


class Documentation:
    """The handlers of the documentation's routes.

    Args:
        models: the served models, whose names and prompts the document lists.
        settings: the limits that the document states.

    Attributes:
        operations: the operations that the document describes. Set them before the first request.
    """

    def __init__(self, models: ModelRegistry, settings: HttpConfig) -> None:
        self.operations: Sequence[Operation] = ()
        self._models = models.embedding
        self._settings = settings
        self._assets = _assets_directory()

    @cached_property
    def _schema(self) -> Json:
        # Built on first use: it takes 35 ms, which would delay startup.
        return build_schema(self.operations, self._models, self._settings)

    async def schema(self, request: ApiRequest) -> Response:
        """`GET /openapi.json`."""
        # The path at which the operator mounted the application.
        servers = [{"url": request.scope.get("root_path") or "/"}]
        content = orjson.dumps({**self._schema, "servers": servers})
        return Response(content, media_type="application/json")

    async def page(self, request: ApiRequest) -> Response:
        """`GET /docs`."""
        root = request.scope.get("root_path", "")
        return Response(_PAGE.format(root=root), media_type="text/html")

    async def asset(self, request: ApiRequest) -> Response:
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


def build_schema(
    operations: Iterable[Operation], models: Sequence[EmbeddingModel], settings: HttpConfig
) -> Json:
    """Return the OpenAPI 3.1 document of the operations that have a tag."""
    described = [operation for operation in operations if operation.tag]
    responses = {operation.response for operation in described if operation.response}
    described_models: list[type[BaseModel]] = [*responses, ErrorBody, OpenAIErrorBody]
    _, definitions = models_json_schema(
        [(model, "serialization") for model in described_models],
        ref_template="#/components/schemas/{model}",
    )
    request = request_schema(models, most_inputs=settings.max_client_batch_size)
    paths: Json = {}
    for operation in described:
        path = operation.path.replace(":path}", "}")
        paths.setdefault(path, {})[operation.method.lower()] = _describe(
            operation, models, settings
        )
    return {
        "openapi": "3.1.0",
        "info": {"title": "Embeddings API", "version": __version__},
        "tags": [{"name": tag} for tag in dict.fromkeys(row.tag for row in described)],
        "paths": paths,
        "components": {
            "schemas": {**definitions["$defs"], "EmbeddingRequest": request},
            "securitySchemes": _SCHEMES,
        },
    }


def _describe(operation: Operation, models: Sequence[EmbeddingModel], settings: HttpConfig) -> Json:
    content: Json = {"text/plain": {"schema": {"type": "string"}}}
    if operation.response:
        content = _json_content(operation.response.__name__)
    headers = REQUEST_ID | (TIMINGS if operation.request else {})
    description: Json = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": _description(operation, models, settings),
        "parameters": [_name_in_path(name, models) for name in _PARAMETER.findall(operation.path)],
        "responses": {
            "200": {"description": "OK", "headers": headers, "content": content},
            **_failures(operation),
        },
    }
    if operation.request:
        description["requestBody"] = {
            "required": True,
            "content": _json_content(operation.request.__name__),
        }
    if operation.needs_key:  # `{}`: no key is needed, because none is configured
        description["security"] = [{}, *({name: []} for name in _SCHEMES)]
    return description


def _description(
    operation: Operation, models: Sequence[EmbeddingModel], settings: HttpConfig
) -> str:
    sentences = []
    if operation.request:
        sentences += [
            f"Models: {', '.join(model.name for model in models)}.",
            f"At most {settings.max_client_batch_size} inputs, {settings.max_request_tokens} tokens and "
            f"{settings.max_body_bytes} bytes per request.",
        ]
    if operation.aliases:
        aliases = (f"`{alias.replace(':path}', '}')}`" for alias in operation.aliases)
        sentences.append(f"Other paths with the same behavior: {', '.join(aliases)}.")
    return " ".join(sentences)


def _name_in_path(name: str, models: Sequence[EmbeddingModel]) -> Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "examples": names(models)},
        "description": "A model's name or alias. A slash may be sent as is or as %2F.",
    }


def _failures(operation: Operation) -> Json:
    """Describe the responses to errors, by status."""
    auth = (errors.UnauthorizedError,) if operation.needs_key else ()
    by_status: dict[int, list[type[ServiceError]]] = {}
    for failure in (*auth, *operation.errors, *_COMMON_ERRORS):
        by_status.setdefault(failure.status, []).append(failure)
    return {str(status): _failure(kinds) for status, kinds in sorted(by_status.items())}


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
