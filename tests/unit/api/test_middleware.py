import re

import httpx
import pytest
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.middleware import AccessLogMiddleware, ErrorMiddleware, record_of
from serve_app.observability.access_log import AccessLog
from serve_app.observability.metrics import Metrics
from tests.support.fakes import counted

pytestmark = pytest.mark.anyio

MARKER = "xyzzy"


async def answering(scope: Scope, _receive: Receive, send: Send) -> None:
    """Respond with 200 and record the route."""
    record_of(scope).route = "/here"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


async def failing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Raise before the response starts."""
    raise ZeroDivisionError(MARKER)


async def failing_late(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Raise after the response started."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ZeroDivisionError


def wrapped(app: ASGIApp, metrics: Metrics, *, adds_request_id: bool = True) -> ASGIApp:
    """Wrap an app in both middlewares, as the server does."""
    log = AccessLog(metrics)
    inner = ErrorMiddleware(app, log=log, error_format="auto")
    return AccessLogMiddleware(inner, log=log, adds_request_id=adds_request_id)


async def get(app: ASGIApp, **headers: str) -> httpx.Response:
    """Send a GET request."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/", headers={k.replace("_", "-"): v for k, v in headers.items()})


async def test_a_valid_request_id_of_the_client_is_kept() -> None:
    response = await get(wrapped(answering, Metrics()), x_request_id="an-id")

    assert response.headers.get_list("x-request-id") == ["an-id"]


@pytest.mark.parametrize("sent", ["", "a b", "a" * 200])
async def test_any_other_request_gets_a_generated_id(sent: str) -> None:
    app = wrapped(answering, Metrics())

    ids = [(await get(app, x_request_id=sent)).headers["x-request-id"] for _ in range(2)]

    assert ids[0] != ids[1]
    assert all(re.fullmatch("[0-9a-f]{32}", value) for value in ids)


async def test_the_request_id_header_can_be_left_to_ray_serve() -> None:
    """Ray Serve adds the same header, and a response must not have two."""
    response = await get(wrapped(answering, Metrics(), adds_request_id=False))

    assert "x-request-id" not in response.headers


async def test_an_error_response_has_the_request_id() -> None:
    response = await get(wrapped(failing, Metrics()), x_request_id="an-id")

    assert response.status_code == 500
    assert response.headers["x-request-id"] == "an-id"


async def test_an_unexpected_error_reveals_nothing_to_the_client(
    log: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()

    response = await get(wrapped(failing, metrics))

    assert response.json()["code"] == "internal_error"
    assert MARKER not in response.text
    assert MARKER not in log.text
    assert counted(metrics, "embeddings_errors_total", route="other", code="internal_error") == 1


async def test_an_error_after_the_response_started_is_raised() -> None:
    """The server then closes the connection, so the client notices."""
    metrics = Metrics()

    with pytest.raises(ZeroDivisionError):
        await get(wrapped(failing_late, metrics))

    assert counted(metrics, "embeddings_requests_in_flight") == 0


async def test_a_client_that_disconnects_is_logged_as_499(log: pytest.LogCaptureFixture) -> None:
    metrics, sent = Metrics(), []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def reading(scope: Scope, receive: Receive, _send: Send) -> None:
        await Request(scope, receive).body()

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await wrapped(reading, metrics)(scope, receive, send)

    labels = {"model": "", "route": "other", "status": "499", "key": ""}
    assert sent == []
    assert counted(metrics, "embeddings_requests_total", **labels) == 1
    assert counted(metrics, "embeddings_requests_in_flight") == 0
    assert log.records[-1].getMessage().startswith("POST other 499 ")


async def test_lifespan_events_pass_through() -> None:
    seen = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        seen.append(message["type"])

    await wrapped(app, Metrics())({"type": "lifespan"}, receive, send)

    assert seen == ["lifespan"]
