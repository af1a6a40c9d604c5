"""Middleware around every request: path, request id, access log, CORS and error responses.

All classes are pure ASGI middleware. This module does not depend on models, Ray or torch.
"""

import re
import uuid
from urllib.parse import unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.error_responses import error_reply, is_sane_request_id
from serve_app.api.openapi.headers import RATE_LIMITS
from serve_app.config.http import ErrorFormat, HttpConfig
from serve_app.errors import InvalidRequestError, ServiceError
from serve_app.observability.access_log import AccessLog, RequestRecord

_SCOPE_KEY = "serve_app.request"
CLIENT_GONE = 499
# The response headers that scripts in a browser may read.
_EXPOSED = (
    *("x-request-id", "retry-after", "retry-after-ms", "x-compute-tokens", "x-truncated-inputs"),
    *RATE_LIMITS,
)


def record_of(scope: Scope) -> RequestRecord:
    """Return the record that `AccessLogMiddleware` stored in the scope."""
    record = scope[_SCOPE_KEY]
    assert isinstance(record, RequestRecord)
    return record


class NormalizePathMiddleware:
    """Removes repeated and trailing slashes from the path, so that it matches a route.

    Clients whose base URL ends in a slash send `//`, and some clients append a slash. A slash sent as `%2F` is part of
    a name and is kept.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application with the normalized path."""
        if scope["type"] == "http":
            raw_path = scope.get("raw_path", b"").decode("latin-1") or scope["path"]
            path = unquote(re.sub("/{2,}", "/", raw_path).rstrip("/"))
            # The root of an application that is mounted below a path keeps its slash.
            scope["path"] = f"{path}/" if path == scope.get("root_path", "") else path
        await self._app(scope, receive, send)


class AccessLogMiddleware:
    """Gives each request an id and a record, and writes its log line and metrics when it ends.

    Args:
        app: the wrapped application.
        log: writes the log line and counts the request.
        adds_request_id: whether to add `x-request-id` to the response; False if Ray Serve adds it.
    """

    def __init__(self, app: ASGIApp, *, log: AccessLog, adds_request_id: bool) -> None:
        self._app = app
        self._log = log
        self._adds_request_id = adds_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, then log and count the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received_id = Headers(scope=scope).get("x-request-id", "")
        request_id = received_id if is_sane_request_id(received_id) else uuid.uuid4().hex
        record = self._log.begin(request_id, method=scope["method"])
        scope[_SCOPE_KEY] = record
        status = CLIENT_GONE

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *record.limits()]
                if self._adds_request_id:
                    MutableHeaders(scope=message)["x-request-id"] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_status)
        finally:
            self._log.end(record, status=status)


class ErrorMiddleware:
    """Turns every exception into an error response. An unexpected exception is logged and becomes a 500."""

    def __init__(self, app: ASGIApp, *, log: AccessLog, error_format: ErrorFormat) -> None:
        self._app = app
        self._log = log
        self._error_format = error_format

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, and send an error response if it raises."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def send_and_note_start(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_start)
        except ClientDisconnect:
            return  # the client has disconnected; the log line says 499
        except Exception as error:
            if has_started:  # the status is sent, so the server can only close the connection
                raise
            await self._reply(self._log.fail(record_of(scope), error), scope, send)

    async def _reply(self, error: ServiceError, scope: Scope, send: Send) -> None:
        status, headers, body = error_reply(
            error, error_format=self._error_format, request_headers=scope["headers"]
        )
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class CrossOriginMiddleware(CORSMiddleware):
    """Adds CORS headers for the configured origins, also to error responses.

    Starlette rejects a preflight request in plain text. This class rejects it in the configured error format.
    """

    def __init__(self, app: ASGIApp, *, settings: HttpConfig) -> None:
        super().__init__(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # every header that the page requests, including `authorization`
            expose_headers=_EXPOSED,
        )
        self._error_format = settings.error_format

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a preflight request."""
        response = super().preflight_response(request_headers)
        if response.status_code == 400:
            message = "The CORS settings do not allow this origin or this method."
            _, headers, response.body = error_reply(
                InvalidRequestError(message, "cors_not_allowed"),
                error_format=self._error_format,
                request_headers=request_headers.raw,
            )
            for name, value in headers:
                if name == b"vary":  # keep `Vary: Origin`
                    response.headers.add_vary_header(value.decode())
                else:
                    response.headers[name.decode()] = value.decode()
        return response
