"""ASGI middleware around Ray Serve's HTTP server, in its proxy or in an ingress replica.

It removes the request headers that control Ray Serve, and replaces Ray Serve's plain-text errors
with this server's JSON errors. Ray Serve loads `middlewares` if the environment names it, as
throughput.env does:
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.proxy.middleware:middlewares`. The middleware
has no access to the application's settings. The environment variable `EMBEDDINGS_ERROR_FORMAT` sets
its error format.
"""

import os
import uuid
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.error_responses import Headers, error_reply, is_sane_request_id
from serve_app.config.http import ErrorFormat
from serve_app.errors import (
    DeadlineError,
    NotFoundError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from serve_app.proxy import uvicorn_protocol
from serve_app.proxy.environment import proxy_error_format

# Headers that control Ray Serve (ray/serve/_private/constants.py): timeouts, disconnects,
# multiplexing, stickiness.
_CONTROL_HEADERS = {
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "serve-multiplexed-model-id",
    "x-session-id",
}
# Ray Serve's own routes, for its controller and for load balancers.
_SERVE_ROUTES = ("/-/healthz", "/-/routes")
# Headers that are kept when a response of Ray Serve is replaced. Ray Serve sets them to the request's
# ID and to the configured delay.
_KEPT_HEADERS = ("x-request-id", "retry-after")
_ERRORS: dict[int, ServiceError] = {
    404: NotFoundError("Path not found.", "not_found"),
    408: DeadlineError("The request did not finish in time.", "deadline_exceeded"),
    429: OverloadedError(
        "The request queue is full. Retry after the delay given in the Retry-After header.",
        "overloaded",
        retry_after_s=1,
    ),
    # This server's own 500 responses are JSON. A plain-text 500 comes from Ray Serve and means that
    # the replica died, so a retry can succeed.
    500: UnavailableError("The replica died. Try again.", "model_unavailable", retry_after_s=1),
    503: UnavailableError("No replica is available.", "model_unavailable", retry_after_s=1),
}


def middlewares() -> list[Middleware]:
    """Return the middleware for Ray Serve, and make its HTTP server use `uvicorn_protocol`."""
    uvicorn_protocol.use(behind_haproxy=os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1")
    return [Middleware(ProxyMiddleware, error_format=proxy_error_format(os.environ))]


class ProxyMiddleware:
    """Removes Ray Serve's control headers from requests, and replaces its plain-text errors.

    Args:
        app: The wrapped application.
        error_format: The error format.
    """

    def __init__(self, app: ASGIApp, *, error_format: ErrorFormat = "auto") -> None:
        self._app = app
        self._error_format = error_format

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. Requests to Ray Serve's own health routes pass through unchanged."""
        if scope["type"] != "http" or scope["path"] in _SERVE_ROUTES:
            await self._app(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if _is_allowed(name, value)]
        rewriter = _Rewriter(headers, send, self._error_format)
        try:
            await self._app({**scope, "headers": headers}, receive, rewriter)
        except Exception:
            if rewriter.has_started:
                raise
        if not rewriter.has_started:
            # The ingress replica died. Without a response, the HTTP server would send its own
            # plain-text 500.
            await rewriter.reply(_ERRORS[500])


def _is_allowed(name: bytes, value: bytes) -> bool:
    header = name.decode("latin-1").lower().replace("_", "-")
    if header == "x-request-id":
        return is_sane_request_id(value.decode("latin-1"))
    return header not in _CONTROL_HEADERS


class _Rewriter:
    """An ASGI `send` that replaces Ray Serve's plain-text errors and passes on all other messages."""

    def __init__(self, request_headers: Headers, send: Send, error_format: ErrorFormat) -> None:
        self._request_headers = request_headers
        self._send = send
        self._error_format = error_format
        self._replaced = False
        self.has_started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            error = _ERRORS.get(message["status"])
            headers = MutableHeaders(raw=list(message["headers"]))
            self._replaced = error is not None and headers.get("content-type", "").startswith(
                "text/plain"
            )
            if error is not None and self._replaced:
                await self.reply(error, headers)
                return
        if not self._replaced:
            await self._send(message)

    async def reply(self, error: ServiceError, headers: Mapping[str, str] | None = None) -> None:
        """Send an error. Its response keeps `_KEPT_HEADERS` of the response that it replaces."""
        headers = headers or {"x-request-id": self._request_id()}
        status, error_headers, body = error_reply(
            error, error_format=self._error_format, request_headers=self._request_headers
        )
        merged = dict(error_headers)
        for name in _KEPT_HEADERS:
            if name in headers:
                merged[name.encode()] = headers[name].encode()
        if "retry-after" in headers:  # the error's own delay differs
            merged.pop(b"retry-after-ms", None)
        start = {"type": "http.response.start", "status": status, "headers": [*merged.items()]}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})

    def _request_id(self) -> str:
        ids = (value for name, value in self._request_headers if name.lower() == b"x-request-id")
        return next(ids, b"").decode() or uuid.uuid4().hex
