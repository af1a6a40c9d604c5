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
    """Answer 200, and note the way."""
    record_of(scope).route = "/here"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


async def failing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Fail before anything is sent."""
    raise ZeroDivisionError(MARKER)


async def failing_late(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Fail when a part of the answer is on its way."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ZeroDivisionError


def surrounded(app: ASGIApp, metrics: Metrics, *, adds_request_id: bool = True) -> ASGIApp:
    """Put both around an app, as the server does."""
    log = AccessLog(metrics)
    inner = ErrorMiddleware(app, log=log, error_format="auto")
    return AccessLogMiddleware(inner, log=log, adds_request_id=adds_request_id)


async def get(app: ASGIApp, **headers: str) -> httpx.Response:
    """Send a request."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/", headers={k.replace("_", "-"): v for k, v in headers.items()})


async def test_a_sane_request_id_is_the_client_s_own() -> None:
    """Its log and ours name the request alike."""
    response = await get(surrounded(answering, Metrics()), x_request_id="an-id")

    assert response.headers.get_list("x-request-id") == ["an-id"]


@pytest.mark.parametrize("sent", ["", "a b", "a" * 200])
async def test_any_other_request_gets_an_id_of_ours(sent: str) -> None:
    """Also one whose client sent what must not be written back."""
    app = surrounded(answering, Metrics())

    ids = [(await get(app, x_request_id=sent)).headers["x-request-id"] for _ in range(2)]

    assert ids[0] != ids[1]
    assert all(re.fullmatch("[0-9a-f]{32}", value) for value in ids)


async def test_the_id_is_left_to_who_adds_it() -> None:
    """Ray Serve writes the same header, and two would be one too many."""
    response = await get(surrounded(answering, Metrics(), adds_request_id=False))

    assert "x-request-id" not in response.headers


async def test_an_error_has_the_request_s_id_too() -> None:
    """It is what a user sends to the operator."""
    response = await get(surrounded(failing, Metrics()), x_request_id="an-id")

    assert response.status_code == 500
    assert response.headers["x-request-id"] == "an-id"


async def test_an_unforeseen_error_tells_the_client_nothing(log: pytest.LogCaptureFixture) -> None:
    """Neither the reply nor the log holds the exception's message."""
    metrics = Metrics()

    response = await get(surrounded(failing, metrics))

    assert response.json()["code"] == "internal_error"
    assert MARKER not in response.text
    assert MARKER not in log.text
    assert counted(metrics, "embeddings_errors_total", route="other", code="internal_error") == 1


async def test_an_error_in_the_middle_of_an_answer_breaks_it_off() -> None:
    """A second answer cannot be sent; the server closes the connection, and the client notices."""
    metrics = Metrics()

    with pytest.raises(ZeroDivisionError):
        await get(surrounded(failing_late, metrics))

    assert counted(metrics, "embeddings_requests_in_flight") == 0


async def test_a_client_that_has_gone_is_noted_as_such(log: pytest.LogCaptureFixture) -> None:
    """499 in the log and the metrics, and no answer to nobody."""
    metrics, sent = Metrics(), []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def reading(scope: Scope, receive: Receive, _send: Send) -> None:
        await Request(scope, receive).body()

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await surrounded(reading, metrics)(scope, receive, send)

    labels = {"model": "", "route": "other", "status": "499", "key": ""}
    assert sent == []
    assert counted(metrics, "embeddings_requests_total", **labels) == 1
    assert counted(metrics, "embeddings_requests_in_flight") == 0
    assert log.records[-1].getMessage().startswith("POST other 499 ")


async def test_what_is_no_request_passes_through() -> None:
    """The lifespan belongs to the server and the application."""
    seen = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        seen.append(message["type"])

    await surrounded(app, Metrics())({"type": "lifespan"}, receive, send)

    assert seen == ["lifespan"]
