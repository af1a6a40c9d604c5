import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serve_app.api.auth import VARIABLE, ApiKeys
from serve_app.api.middleware import RequestMiddleware
from serve_app.api.operations import Operation, OperationTable
from serve_app.api.request import ApiRequest
from serve_app.config.http import HttpConfig
from serve_app.observability.metrics import Metrics
from serve_app.service.requests import Requests
from tests.support.fakes import counted

pytestmark = pytest.mark.anyio

MARKER = "xyzzy"
ORIGIN = "https://example.org"

Handler = Callable[[ApiRequest], Awaitable[Response]]


async def answering(_request: ApiRequest) -> Response:
    return Response(b"{}", media_type="application/json")


async def failing(_request: ApiRequest) -> Response:
    raise ZeroDivisionError(MARKER)


class FailingLate(Response):
    """A response that fails after it has started."""

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send only the head."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError


async def failing_late(_request: ApiRequest) -> Response:
    return FailingLate()


async def reading(request: ApiRequest) -> Response:
    return Response(await request.body())


def build(
    handler: Handler,
    metrics: Metrics | None = None,
    *,
    keys: str = "",
    adds_request_id: bool = True,
    **http: Any,
) -> RequestMiddleware:
    """Build the application with one operation that needs a key, and one that does not."""
    settings = HttpConfig.model_validate(http)
    rows = [
        Operation("here", "t", "Answer", "POST", "/here", handler, needs_key=True),
        Operation("open", "t", "Answer", "GET", "/open", handler, aliases=("/free",)),
    ]
    return RequestMiddleware(
        OperationTable(rows),
        Requests(settings, metrics=metrics or Metrics()),
        settings=settings,
        keys=ApiKeys(None, {VARIABLE: keys}),
        adds_request_id=adds_request_id,
    )


async def send(
    app: RequestMiddleware, method: str = "GET", path: str = "/open", **headers: str
) -> httpx.Response:
    """Send a request. Underscores in names of headers stand for hyphens."""
    transport = httpx.ASGITransport(app)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, headers=sent)


# The request id.


async def test_a_valid_request_id_of_the_client_is_kept() -> None:
    response = await send(build(answering), x_request_id="an-id")

    assert response.headers.get_list("x-request-id") == ["an-id"]


@pytest.mark.parametrize("sent", ["", "a b", "a" * 200])
async def test_any_other_request_gets_a_generated_id(sent: str) -> None:
    app = build(answering)

    ids = [(await send(app, x_request_id=sent)).headers["x-request-id"] for _ in range(2)]

    assert ids[0] != ids[1]
    assert all(re.fullmatch("[0-9a-f]{32}", value) for value in ids)


async def test_the_request_id_header_can_be_left_to_ray_serve() -> None:
    """Ray Serve adds the same header, and a response must not have two."""
    response = await send(build(answering, adds_request_id=False))

    assert "x-request-id" not in response.headers


async def test_an_error_response_has_the_request_id() -> None:
    response = await send(build(failing), x_request_id="an-id")

    assert response.status_code == 500
    assert response.headers["x-request-id"] == "an-id"


# The size of the head.


async def test_a_head_within_the_limits_is_accepted() -> None:
    headers = {f"x-{number}": "1" for number in range(480)}

    many = await send(build(answering), **headers)
    large = await send(build(answering), authorization="Bearer " + "a" * 32_000)
    long = await send(build(answering), path="/open?" + "a" * 32_000)

    assert {many.status_code, large.status_code, long.status_code} == {200}


async def test_a_longer_target_is_414() -> None:
    response = await send(build(answering), path="/open?" + "a" * 33_000)

    assert response.status_code == 414
    assert response.json()["code"] == "uri_too_long"


@pytest.mark.parametrize(
    "headers",
    [{"x-large": "a" * 33_000}, {f"x-{number}": "1" for number in range(501)}],
    ids=["large", "many"],
)
async def test_larger_or_more_headers_are_431(headers: dict[str, str]) -> None:
    response = await send(build(answering), x_request_id="an-id", **headers)

    assert response.status_code == 431
    assert response.json()["code"] == "headers_too_large"
    assert response.headers["x-request-id"] == "an-id"


# Operations.


@pytest.mark.parametrize("path", ["/open", "/free", "/open/", "/free//"])
async def test_aliases_and_extra_slashes_count_under_the_operation_s_path(path: str) -> None:
    metrics = Metrics()

    response = await send(build(answering, metrics), path=path)

    labels = {"model": "", "route": "/open", "status": "200", "key": ""}
    assert response.status_code == 200
    assert counted(metrics, "embeddings_requests_total", **labels) == 1


async def test_a_key_is_required_before_the_handler_runs() -> None:
    metrics = Metrics()
    app = build(failing, metrics, keys="me secret")

    without = await send(app, "POST", "/here")
    with_key = await send(app, "POST", "/here", api_key="secret")
    public = await send(app)

    assert [r.status_code for r in (without, with_key, public)] == [401, 500, 500]
    labels = {"model": "", "route": "/here", "status": "500", "key": "me"}
    assert counted(metrics, "embeddings_requests_total", **labels) == 1


# Errors.


async def test_an_unexpected_error_reveals_nothing_to_the_client(
    log: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()

    response = await send(build(failing, metrics))

    assert response.json()["code"] == "internal_error"
    assert MARKER not in response.text
    assert MARKER not in log.text
    assert counted(metrics, "embeddings_errors_total", route="/open", code="internal_error") == 1


async def test_an_error_after_the_response_started_is_raised() -> None:
    """The server then closes the connection, so the client notices."""
    metrics = Metrics()

    with pytest.raises(ZeroDivisionError):
        await send(build(failing_late, metrics))

    assert counted(metrics, "embeddings_requests_in_flight") == 0


async def test_a_client_that_disconnects_is_logged_as_499(log: pytest.LogCaptureFixture) -> None:
    metrics, sent = Metrics(), []

    async def record(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/here", "headers": []}
    await build(reading, metrics)(scope, receive, record)

    labels = {"model": "", "route": "/here", "status": "499", "key": ""}
    assert sent == []
    assert counted(metrics, "embeddings_requests_total", **labels) == 1
    assert counted(metrics, "embeddings_requests_in_flight") == 0
    assert log.records[-1].getMessage().startswith("POST /here 499 ")


# CORS.

PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization",
}


async def test_a_preflight_request_needs_no_key() -> None:
    app = build(answering, keys="secret", cors_origins=[ORIGIN])

    response = await send(app, "OPTIONS", "/here", **PREFLIGHT)

    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-allow-headers"] == "authorization"
    assert "access-control-allow-private-network" not in response.headers


async def test_a_public_page_may_call_a_private_server_if_its_origin_is_configured() -> None:
    """Chrome asks before a page of a public site calls an address in a private network."""
    private = {**PREFLIGHT, "access-control-request-private-network": "true"}
    app = build(answering, cors_origins=[ORIGIN])

    allowed = await send(app, "OPTIONS", "/here", **private)
    refused = await send(app, "OPTIONS", "/here", **private | {"origin": "https://other.org"})
    off = await send(build(answering), "OPTIONS", "/here", **private)

    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-private-network"] == "true"
    assert (refused.status_code, refused.json()["code"]) == (400, "cors_not_allowed")
    assert "access-control-allow-origin" not in refused.headers
    assert off.status_code == 405
    assert not any(name.startswith("access-control") for name in off.headers)


async def test_an_error_has_cors_headers_too() -> None:
    response = await send(build(failing, cors_origins=[ORIGIN]), origin=ORIGIN)

    assert response.status_code == 500
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "retry-after" in response.headers["access-control-expose-headers"]


# Scopes that are not HTTP.


async def exchange(scope_type: str, *received: str) -> list[str]:
    """Return the types of the messages that the application sends."""
    messages, sent = iter(received), []

    async def receive() -> Message:
        return {"type": next(messages)}

    async def record(message: Message) -> None:
        sent.append(message["type"])

    scope = {"type": scope_type, "path": "/", "headers": []}
    await build(answering)(scope, receive, record)
    return sent


async def test_the_lifespan_starts_and_ends() -> None:
    sent = await exchange("lifespan", "lifespan.startup", "lifespan.shutdown")

    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_websocket_is_closed() -> None:
    assert await exchange("websocket", "websocket.connect") == ["websocket.close"]
