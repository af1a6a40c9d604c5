"""What surrounds every request: its id, its record, who may read it in a browser, and errors turned into replies.

Pure ASGI. Knows nothing of models, of Ray or of torch.
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
# What a page in a browser may read of an answer, beside its body.
_EXPOSED = (
    *("x-request-id", "retry-after", "retry-after-ms", "x-compute-tokens", "x-truncated-inputs"),
    *RATE_LIMITS,
)


def record_of(scope: Scope) -> RequestRecord:
    """Return the record that `AccessLogMiddleware` has put into the scope."""
    record = scope[_SCOPE_KEY]
    assert isinstance(record, RequestRecord)
    return record


class NormalizePathMiddleware:
    """Gives a path the form that routes have; clients whose base URL ends in a slash send two, and some end in one.

    A slash that was sent as %2F is part of a name and stays.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            sent = scope.get("raw_path", b"").decode("latin-1") or scope["path"]
            path = unquote(re.sub("/{2,}", "/", sent).rstrip("/"))
            # Of an application that lies below a path of its own, this is the root.
            scope["path"] = f"{path}/" if path == scope.get("root_path", "") else path
        await self._app(scope, receive, send)


class AccessLogMiddleware:
    """Gives each request its id and its record, and writes its log line and metrics when it ends.

    Args:
        app: what it surrounds.
        log: where the request is written and counted.
        adds_request_id: whether the response's `x-request-id` is ours to add; Ray Serve adds it itself.
    """

    def __init__(self, app: ASGIApp, *, log: AccessLog, adds_request_id: bool) -> None:
        self._app = app
        self._log = log
        self._adds_request_id = adds_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent_id = Headers(scope=scope).get("x-request-id", "")
        request_id = sent_id if is_sane_request_id(sent_id) else uuid.uuid4().hex
        record = self._log.begin(request_id, method=scope["method"])
        scope[_SCOPE_KEY] = record
        status = CLIENT_GONE

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *record.limits()]
                if self._adds_request_id:
                    MutableHeaders(scope=message)["x-request-id"] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            self._log.end(record, status=status)


class ErrorMiddleware:
    """Answers every error in the contract's shape; what is not one of ours is a 500 and a line in the log."""

    def __init__(self, app: ASGIApp, *, log: AccessLog, error_format: ErrorFormat) -> None:
        self._app = app
        self._log = log
        self._error_format = error_format

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def send_noting_start(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting_start)
        except ClientDisconnect:
            return  # nobody is left to answer; the log line says 499
        except Exception as error:
            if has_started:
                raise
            await self._reply(self._log.fail(record_of(scope), error), scope, send)

    async def _reply(self, error: ServiceError, scope: Scope, send: Send) -> None:
        status, headers, body = error_reply(
            error, error_format=self._error_format, request_headers=scope["headers"]
        )
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class CrossOriginMiddleware(CORSMiddleware):
    """Answers the preflights of pages of the configured origins, and lets them read what they get, errors included.

    Starlette refuses a preflight in plain text; here it is refused in the contract's shape.
    """

    def __init__(self, app: ASGIApp, *, settings: HttpConfig) -> None:
        super().__init__(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # whatever a page asks for, `authorization` too
            expose_headers=_EXPOSED,
        )
        self._error_format = settings.error_format

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight."""
        response = super().preflight_response(request_headers)
        if response.status_code == 400:
            message = "A page of this origin may not send such a request."
            _, headers, response.body = error_reply(
                InvalidRequestError(message, "cors_not_allowed"),
                error_format=self._error_format,
                request_headers=request_headers.raw,
            )
            for name, value in headers:
                if name == b"vary":  # beside the origin
                    response.headers.add_vary_header(value.decode())
                else:
                    response.headers[name.decode()] = value.decode()
        return response
