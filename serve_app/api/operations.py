"""The table of operations: every path, with its method, handler, key requirement, schemas and errors.

The application routes requests by this table, and the OpenAPI document describes it. To add a route, write its handler
and add one row.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from serve_app import errors
from serve_app.api.request import ApiRequest
from serve_app.api.routes.embeddings import EmbeddingRoutes
from serve_app.api.routes.health import HealthRoutes
from serve_app.api.routes.models import ModelRoutes
from serve_app.errors import MethodNotAllowedError, NotFoundError, ServiceError
from serve_app.schemas.embeddings import EmbeddingRequest, EmbeddingResponse
from serve_app.schemas.models import Health, ModelCard, ModelList, TeiEmbeddings, TeiInfo

Handler = Callable[[ApiRequest], Awaitable[Response]]
Errors = tuple[type[ServiceError], ...]

_EMBEDDING_ERRORS: Errors = (
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


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table.

    Attributes:
        name: the operation's id in the OpenAPI document.
        tag: the group of operations that it belongs to; empty for an operation that the document leaves out.
        summary: what it does, in a few words.
        method: the HTTP method. A GET operation also answers HEAD.
        path: its path, which is also its route in logs and metrics.
        aliases: other paths with the same behavior.
        handler: answers a request.
        needs_key: whether it requires an API key, if keys are configured.
        request: the JSON of the request's body; None if the operation reads no body.
        response: the JSON of a 200 response; None for plain text.
        errors: the errors specific to it. Those that every operation can return are not repeated here.
    """

    name: str
    tag: str
    summary: str
    method: str
    path: str
    handler: Handler
    aliases: tuple[str, ...] = ()
    needs_key: bool = False
    request: type[BaseModel] | None = None
    response: type[BaseModel] | None = None
    errors: Errors = ()


def operations(
    embeddings: EmbeddingRoutes,
    models: ModelRoutes,
    health: HealthRoutes,
    *,
    schema: Handler,
    page: Handler,
    asset: Handler,
    metrics_need_key: bool,
) -> tuple[Operation, ...]:
    """Return the table.

    Args:
        embeddings: the handlers of the embedding routes.
        models: the handlers of the model routes.
        health: the handlers of the health routes.
        schema: answers with the OpenAPI document.
        page: answers with the page that renders the document.
        asset: answers with the page's script and stylesheet.
        metrics_need_key: whether `/metrics` requires an API key.
    """
    # fmt: off
    return (
        Operation("embeddings", "embeddings", "Embed one or more inputs",
                  "POST", "/v1/embeddings", embeddings.embeddings, needs_key=True,
                  request=EmbeddingRequest, response=EmbeddingResponse, errors=_EMBEDDING_ERRORS,
                  aliases=("/embeddings", "/openai/v1/embeddings", "/openai/embeddings",
                           "/openai/deployments/{model:path}/embeddings", "/v1/engines/{model:path}/embeddings")),
        Operation("embed", "embeddings", "Embed inputs, in the format of text-embeddings-inference",
                  "POST", "/embed", embeddings.embed, needs_key=True,
                  request=EmbeddingRequest, response=TeiEmbeddings, errors=_EMBEDDING_ERRORS,
                  aliases=("/",)),
        Operation("models", "models", "List the models",
                  "GET", "/v1/models", models.models, needs_key=True, response=ModelList,
                  aliases=("/models", "/openai/v1/models", "/openai/models")),
        Operation("model", "models", "Describe a model",
                  "GET", "/v1/models/{id:path}", models.model, needs_key=True,
                  response=ModelCard, errors=(errors.ModelNotFoundError,),
                  aliases=("/models/{id:path}", "/openai/v1/models/{id:path}", "/openai/models/{id:path}")),
        Operation("info", "models", "Describe the default model, in the format of text-embeddings-inference",
                  "GET", "/info", models.info, needs_key=True, response=TeiInfo),
        Operation("health", "operation", "Check that this process responds",
                  "GET", "/health", health.health, response=Health),
        Operation("ready", "operation", "Check that every model can embed",
                  "GET", "/ready", health.ready, response=Health, errors=(errors.UnavailableError,)),
        Operation("metrics", "operation", "Return the metrics of all replicas, in Prometheus format",
                  "GET", "/metrics", health.metrics, needs_key=metrics_need_key),
        Operation("docs", "", "Browse this documentation", "GET", "/docs", page),
        Operation("docs_asset", "", "Load a file of that page", "GET", "/docs/{asset}", asset),
        Operation("openapi", "", "Return this document", "GET", "/openapi.json", schema),
    )
    # fmt: on


class OperationTable:
    """Finds the operation for a request.

    Args:
        rows: the operations, in the order in which their paths are tried.

    Attributes:
        routes: Starlette's routes, one for each path. Ray Serve reads them for its metrics.
    """

    def __init__(self, rows: Sequence[Operation]) -> None:
        self.rows = rows
        self._by_route = [
            (Route(path, row.handler, methods=[row.method]), row)
            for row in rows
            for path in (row.path, *row.aliases)
        ]
        self.routes = [route for route, _ in self._by_route]

    def find(self, scope: Scope) -> Operation:
        """Return the operation for a request, and store the parameters of its path in the scope.

        Raises:
            NotFoundError: no operation has this path.
            MethodNotAllowedError: the operations with this path have other methods.
        """
        allowed: set[str] = set()
        for route, operation in self._by_route:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                return operation
            if match is Match.PARTIAL:
                allowed |= route.methods or set()
        if allowed:
            raise MethodNotAllowedError(", ".join(sorted(allowed)))
        raise NotFoundError("Path not found. See /docs for the API.", "not_found")
