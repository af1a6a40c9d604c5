"""What runs before our application, in the process that speaks HTTP: Ray Serve's proxy, or an ingress replica itself.

Removes the headers with which a client could steer Ray Serve, and gives the plain-text errors that Ray Serve writes
itself the contract's shape. Ray Serve loads `middlewares` where the environment says so, as throughput.env does:
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.proxy.middleware:middlewares`. Knows nothing of models, nor of an
application's settings: `EMBEDDINGS_ERROR_FORMAT` names the shape.
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

# Ray Serve's own (ray/serve/_private/constants.py): timeouts, disconnects, multiplexing, stickiness.
_STEERING = {
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "serve-multiplexed-model-id",
    "x-session-id",
}
# Serve's own, which its controller and load balancers ask.
_SERVES_ROUTES = ("/-/healthz", "/-/routes")
# What Serve's own reply says better: it knows the request's id and the configured wait.
_KEPT = ("x-request-id", "retry-after")
_ERRORS: dict[int, ServiceError] = {
    404: NotFoundError("There is no such path here.", "not_found"),
    408: DeadlineError("The request was not done in time.", "deadline_exceeded"),
    429: OverloadedError(
        "The server has more work than it can queue.", "overloaded", retry_after_s=1
    ),
    # Our own 500s are JSON. One of Serve's is a replica that died with the request: another may answer.
    500: UnavailableError("The replica died.", "model_unavailable", retry_after_s=1),
    503: UnavailableError("No replica answers.", "model_unavailable", retry_after_s=1),
}


def middlewares() -> list[Middleware]:
    """Return what Ray Serve puts around the HTTP server that it starts, which speaks `uvicorn_protocol`."""
    uvicorn_protocol.use()
    return [Middleware(ProxyMiddleware, error_format=proxy_error_format(os.environ))]


class ProxyMiddleware:
    """Cleans what comes in and what Ray Serve itself sends out.

    Args:
        app: what it surrounds.
        error_format: the shape of errors.
    """

    def __init__(self, app: ASGIApp, *, error_format: ErrorFormat = "auto") -> None:
        self._app = app
        self._error_format = error_format

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; Serve's own health routes stay as they are."""
        if scope["type"] != "http" or scope["path"] in _SERVES_ROUTES:
            await self._app(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if _may_pass(name, value)]
        rewriter = _Rewriter(headers, send, self._error_format)
        try:
            await self._app({**scope, "headers": headers}, receive, rewriter)
        except Exception:
            if rewriter.has_started:
                raise
        if not rewriter.has_started:
            # An ingress replica died with the request, and the HTTP server would write a 500 of its own.
            await rewriter.reply(_ERRORS[500])


def _may_pass(name: bytes, value: bytes) -> bool:
    header = name.decode("latin-1").lower().replace("_", "-")
    if header == "x-request-id":
        return is_sane_request_id(value.decode("latin-1"))
    return header not in _STEERING


class _Rewriter:
    """A `send` that replaces Serve's plain-text errors and lets all else through."""

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
        """Send an error of ours, with what is kept of the headers of the answer that it replaces."""
        headers = headers or {"x-request-id": self._request_id()}
        status, ours, body = error_reply(
            error, error_format=self._error_format, request_headers=self._request_headers
        )
        replaced = dict(ours)
        for name in _KEPT:
            if name in headers:
                replaced[name.encode()] = headers[name].encode()
        start = {"type": "http.response.start", "status": status, "headers": [*replaced.items()]}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})

    def _request_id(self) -> str:
        sent = (value for name, value in self._request_headers if name.lower() == b"x-request-id")
        return next(sent, b"").decode() or uuid.uuid4().hex
