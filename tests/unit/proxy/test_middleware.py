from collections.abc import Sequence

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.proxy.middleware import ProxyMiddleware, middlewares

pytestmark = pytest.mark.anyio

Headers = Sequence[tuple[bytes, bytes]]


def serving(
    status: int,
    body: bytes,
    headers: Headers,
    seen: list[Scope] | None = None,
    *,
    with_middleware: bool = True,
) -> ASGIApp:
    """Return an application that answers in place of Ray Serve."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        if seen is not None:
            seen.append(scope)
        await send({"type": "http.response.start", "status": status, "headers": [*headers]})
        await send({"type": "http.response.body", "body": body[:3], "more_body": True})
        await send({"type": "http.response.body", "body": body[3:]})

    return ProxyMiddleware(app) if with_middleware else app


async def get(app: ASGIApp, path: str = "/v1/embeddings", **headers: str) -> httpx.Response:
    """Send a request. Underscores in header names become dashes."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path, headers=sent)


@pytest.mark.parametrize(
    ("sent", "status", "error"),
    [
        (404, 404, "Not found"),
        (408, 504, "Deadline exceeded"),
        (429, 429, "Model is overloaded"),
        (500, 503, "Model is unavailable"),
        (503, 503, "Model is unavailable"),
    ],
)
async def test_plain_text_errors_of_ray_serve_become_json(
    sent: int, status: int, error: str
) -> None:
    """Ray Serve's 408 means that the server's deadline has passed, so it becomes 504."""
    app = serving(sent, b"an error of Ray Serve", [(b"content-type", b"text/plain")])

    response = await get(app)

    assert response.status_code == status
    assert response.json()["error"] == error
    assert int(response.headers["content-length"]) == len(response.content)


async def test_openai_sdks_get_the_openai_envelope() -> None:
    app = serving(503, b"no replica", [(b"content-type", b"text/plain; charset=utf-8")])

    response = await get(app, x_stainless_lang="python")

    assert response.json()["error"]["code"] == "model_unavailable"
    assert response.headers["vary"] == "x-stainless-lang"


async def test_request_id_and_retry_after_of_ray_serve_stay() -> None:
    plain = (b"content-type", b"text/plain")
    complete = serving(429, b"no", [plain, (b"retry-after", b"9"), (b"x-request-id", b"an-id")])
    plain_only = serving(429, b"no", [plain])

    with_wait, without = await get(complete), await get(plain_only)

    assert with_wait.headers.get_list("retry-after") == ["9"]
    assert "retry-after-ms" not in with_wait.headers  # it would have to be the same wait
    assert with_wait.headers.get_list("x-request-id") == ["an-id"]
    assert without.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("status", "content_type"),
    [(200, b"text/plain"), (429, b"application/json"), (404, b"text/html"), (418, b"text/plain")],
)
async def test_other_responses_pass_through(status: int, content_type: bytes) -> None:
    app = serving(status, b"some words", [(b"content-type", content_type), (b"x-a", b"b")])

    response = await get(app)

    assert (response.status_code, response.content) == (status, b"some words")
    assert response.headers["x-a"] == "b"


async def test_health_routes_of_ray_serve_pass_through() -> None:
    app = serving(503, b"draining", [(b"content-type", b"text/plain")])

    response = await get(app, "/-/healthz")

    assert response.content == b"draining"


async def test_other_paths_with_the_same_prefix_are_handled() -> None:
    app = serving(404, b"no", [(b"content-type", b"text/plain")])

    assert (await get(app, "/-/v1/embeddings")).json()["error"] == "Not found"


async def test_control_headers_are_removed() -> None:
    seen: list[Scope] = []
    app = serving(200, b"done", [], seen)
    headers = {
        "X-Request-Timeout-Seconds": "0.001",
        "x_request_disconnect_disabled": "?1",
        "serve-multiplexed-model-id": "a",
        "x-session-id": "b",
        "x-other": "c",
    }
    transport = httpx.ASGITransport(app)

    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.get("/", headers=headers)

    names = {name for name, _ in seen[0]["headers"]}
    assert b"x-other" in names
    assert not names & {name.lower().encode() for name in headers if name != "x-other"}


@pytest.mark.parametrize(("sent", "passes"), [("an-id", True), ("a b", False), ("a" * 200, False)])
async def test_only_a_sane_request_id_passes(sent: str, passes: bool) -> None:  # noqa: FBT001
    seen: list[Scope] = []

    await get(serving(200, b"done", [], seen), x_request_id=sent)

    assert ((b"x-request-id", sent.encode()) in seen[0]["headers"]) is passes


async def test_lifespan_messages_pass_through() -> None:
    seen = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope)

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        seen.append(message)

    await ProxyMiddleware(app)({"type": "lifespan"}, receive, send)

    assert seen == [{"type": "lifespan"}]


async def test_ray_serve_gets_the_middleware() -> None:
    (middleware,) = middlewares()

    plain = serving(404, b"no", [(b"content-type", b"text/plain")], with_middleware=False)
    app = middleware.cls(plain, *middleware.args, **middleware.kwargs)

    assert (await get(app)).json()["code"] == "not_found"


async def test_a_dead_replica_is_503_with_the_request_id() -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError("the actor died")

    response = await get(ProxyMiddleware(app), x_request_id="mine")

    assert response.status_code == 503
    assert response.json()["code"] == "model_unavailable"
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["retry-after"] == "1"
    assert "x-should-retry" not in response.headers


async def test_an_application_without_a_response_is_503() -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        return

    response = await get(ProxyMiddleware(app))

    assert response.status_code == 503
    assert response.json()["code"] == "model_unavailable"


async def test_a_started_response_is_not_replaced() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("too late")

    with pytest.raises(RuntimeError, match="too late"):
        await get(ProxyMiddleware(app))


async def test_the_environment_sets_the_error_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behind = serving(503, b"no replica", [(b"content-type", b"text/plain")], with_middleware=False)
    bodies = []
    for shape in ("openai", "xml", "page"):
        monkeypatch.setenv("EMBEDDINGS_ERROR_FORMAT", shape)
        made = middlewares()[0]
        app = made.cls(behind, *made.args, **made.kwargs)
        bodies.append((await get(app)).json())

    assert bodies[0]["error"]["code"] == "model_unavailable"
    assert bodies[1]["error"] == "Model is unavailable"
    assert bodies[2] == bodies[1]
