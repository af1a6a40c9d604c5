"""The ASGI application: everything that happens to a request before and after its handler.

It gives each request an id and a record, finds its operation, authenticates it, calls the handler, turns errors into
responses, and adds CORS headers. This module does not depend on models, Ray or torch.
"""

import re
import uuid
from functools import partial
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from serve_app.api.auth import ApiKeys
from serve_app.api.error_responses import error_reply, is_sane_request_id
from serve_app.api.operations import OperationTable
from serve_app.api.request import ApiRequest
from serve_app.config.http import ErrorFormat, HttpConfig
from serve_app.errors import (
    HeadersTooLargeError,
    InvalidRequestError,
    ServiceError,
    UriTooLongError,
)
from serve_app.service.requests import Requests, RequestScope

# Limits on the head of a request. Tokens of Azure AD and Keycloak with many groups come close to the size. Both proxies
# can read larger heads (`serve_app.proxy`).
_MAX_HEAD_BYTES = 32_768
_MAX_HEADERS = 500
# The response headers that scripts in a browser may read.
_EXPOSED = (
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "x-compute-tokens",
    "x-truncated-inputs",
)


class RequestMiddleware:
    """The only layer between Ray Serve's wrappers and the handlers.

    Args:
        table: finds the operation of a request.
        requests: admits, counts and logs all requests.
        settings: CORS origins and the error format.
        keys: the API keys that most operations require.
        adds_request_id: whether to add `x-request-id` to responses; False if Ray Serve adds it.

    Attributes:
        operations: the rows of the table.
        routes: as in `OperationTable`.
    """

    def __init__(
        self,
        table: OperationTable,
        requests: Requests,
        *,
        settings: HttpConfig,
        keys: ApiKeys,
        adds_request_id: bool,
    ) -> None:
        self.operations = table.rows
        self.routes = table.routes
        self._table = table
        self._requests = requests
        self._keys = keys
        self._error_format = settings.error_format
        self._adds_request_id = adds_request_id
        # Answers what is not HTTP: the lifespan of the application, and WebSockets, which it closes.
        self._router = Router()
        self._cross_origin = (
            CrossOrigin(self._router, settings=settings) if settings.cors_origins else None
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sent_id = headers.get("x-request-id", "")
        request_id = sent_id if is_sane_request_id(sent_id) else uuid.uuid4().hex
        with self._requests.begin(request_id, method=scope["method"]) as request:
            try:
                if self._cross_origin is None:
                    response = await self._respond(request, scope, receive)
                elif _is_preflight(scope, headers):
                    response = self._cross_origin.preflight_response(headers)
                else:
                    send = partial(self._cross_origin.send, send=send, request_headers=headers)
                    response = await self._respond(request, scope, receive)
            except ClientDisconnect:
                return  # the log line says 499
            except Exception as error:
                response = _error_response(request.fail(error), self._error_format, headers)
            request.record.status = response.status_code
            if self._adds_request_id:
                response.headers["x-request-id"] = request_id
            await response(scope, receive, send)

    async def _respond(self, request: RequestScope, scope: Scope, receive: Receive) -> Response:
        _check_head(scope)
        _normalize_path(scope)
        operation = self._table.find(scope)
        request.record.route = operation.path
        if operation.needs_key:
            request.record.key = self._keys.authenticate(scope["headers"])
        return await operation.handler(ApiRequest(scope, receive, request))


def _check_head(scope: Scope) -> None:
    """Check the size of the target, and of the target and all headers together.

    Raises:
        UriTooLongError: the target is too long.
        HeadersTooLargeError: there are too many headers, or they are too large.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    size = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
    if size > _MAX_HEAD_BYTES:
        message = f"The target of the request is longer than {_MAX_HEAD_BYTES} bytes."
        raise UriTooLongError(message, "uri_too_long")
    if len(headers) > _MAX_HEADERS:
        message = f"The request has {len(headers)} headers. The maximum is {_MAX_HEADERS}."
        raise HeadersTooLargeError(message, "headers_too_large")
    size += sum(len(name) + len(value) for name, value in headers)
    if size > _MAX_HEAD_BYTES:
        message = f"The head of the request is larger than {_MAX_HEAD_BYTES} bytes."
        raise HeadersTooLargeError(message, "headers_too_large")


def _normalize_path(scope: Scope) -> None:
    """Remove repeated and trailing slashes from the path, so that it matches an operation.

    Clients whose base URL ends in a slash send `//`, and some clients append a slash. A slash sent as `%2F` is part of
    a name and is kept.
    """
    raw_path = scope.get("raw_path", b"").decode("latin-1") or scope["path"]
    path = unquote(re.sub("/{2,}", "/", raw_path).rstrip("/"))
    # The root of an application that is mounted below a path keeps its slash.
    scope["path"] = f"{path}/" if path == scope.get("root_path", "") else path


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    names = ("origin", "access-control-request-method")
    return scope["method"] == "OPTIONS" and all(name in headers for name in names)


def _error_response(error: ServiceError, error_format: ErrorFormat, headers: Headers) -> Response:
    status, error_headers, body = error_reply(
        error, error_format=error_format, request_headers=headers.raw
    )
    response = Response(body, status)
    response.raw_headers = error_headers
    return response


class CrossOrigin(CORSMiddleware):
    """Answers preflight requests, and adds CORS headers for the configured origins to all responses, also to errors.

    Starlette answers a preflight request in plain text. This class answers it without a body, or with an error in the
    configured format.
    """

    def __init__(self, app: Router, *, settings: HttpConfig) -> None:
        super().__init__(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # every header that the page requests, including `authorization`
            # Browsers ask for this before a public page calls a server in a private network.
            allow_private_network=True,
            expose_headers=_EXPOSED,
        )
        self._error_format = settings.error_format

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a preflight request."""
        starlettes = super().preflight_response(request_headers)
        response = Response(status_code=204)
        if starlettes.status_code == 400:
            message = "The CORS settings do not allow this origin or this method."
            error = InvalidRequestError(message, "cors_not_allowed")
            response = _error_response(error, self._error_format, request_headers)
        for name, value in starlettes.headers.items():
            if name == "vary":
                response.headers.add_vary_header(value)
            elif not name.startswith("content-"):
                response.headers[name] = value
        return response
