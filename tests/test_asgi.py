import subprocess
import sys

import pytest

from serve_app.tokenizer import Tokenizer
from tests.fakes import Application, FakeEmbedder, build_application

pytestmark = pytest.mark.anyio

MARKER = "xyzzy"


@pytest.fixture
def app(tokenizer: Tokenizer) -> Application:
    """The application with its defaults."""
    return build_application(tokenizer)


def test_the_http_side_loads_neither_ray_nor_torch() -> None:
    """It starts fast, and runs in tests and under any ASGI server."""
    code = (
        "import sys, serve_app.asgi; "
        "print([name for name in ('ray', 'torch', 'transformers') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/v1/embeddings/", "/embeddings", "/embeddings/"]
)
async def test_no_path_of_the_route_redirects(app: Application, path: str) -> None:
    """Many clients drop the body on the way."""
    async with app.client() as client:
        response = await client.post(path, json={"input": "a"})

    assert response.status_code == 200
    assert len(response.history) == 0


@pytest.mark.parametrize("path", ["/health/", "/v1", "/", "/v1/embeddings//", "/docs/"])
async def test_what_is_no_path_is_404_and_no_redirect(app: Application, path: str) -> None:
    """In the shape of all errors."""
    async with app.client() as client:
        response = await client.get(path)

    assert response.status_code == 404
    assert response.json()["code"] == "not_found"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "QUERY"])
async def test_every_other_method_is_405_with_allow(app: Application, method: str) -> None:
    """Also one that nobody has heard of."""
    async with app.client() as client:
        response = await client.request(method, "/v1/models")

    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD"
    assert response.json()["code"] == "method_not_allowed"


async def test_head_is_get_without_a_body(app: Application) -> None:
    """Load balancers ask like this."""
    async with app.client() as client:
        responses = [await client.head(path) for path in ("/health", "/ready", "/v1/models")]

    assert [response.status_code for response in responses] == [200, 200, 200]


# Nothing that a client sends may come back in an error or stay in the log.

LEAKS = {
    "too long": {"input": f"{MARKER} a a a a a a a a"},
    "of the wrong kind": {"input": [MARKER, 5]},
    "in a field of the wrong kind": {"input": "a", "dimensions": MARKER},
    "as a format": {"input": "a", "encoding_format": MARKER},
    "as a side": {"input": "a", "truncate_direction": MARKER},
    "as a prompt": {"input": "a", "prompt_name": MARKER},
    "as a model": {"input": "a", "model": MARKER},
    "as a user": {"input": [], "user": MARKER},
    "as a field": {MARKER: 1},
    "under both names": {"input": MARKER, "inputs": MARKER + "2"},
    "as a request that is answered": {"input": MARKER, "user": MARKER},
}


@pytest.mark.parametrize("body", LEAKS.values(), ids=LEAKS.keys())
async def test_no_input_comes_back_or_stays_in_the_log(
    app: Application, body: object, log: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with the request."""
    async with app.client() as client:
        response = await client.post("/v1/embeddings", json=body)

    assert MARKER not in f"{response.text} {response.headers}"
    assert MARKER not in "".join(str(vars(record)) for record in log.records)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(f"cannot read {MARKER!r}"),
        KeyError(MARKER),
        UnicodeEncodeError("utf-8", MARKER, 0, 1, MARKER),
        ExceptionGroup(MARKER, [ValueError(MARKER)]),
    ],
)
async def test_an_unforeseen_error_that_quotes_the_input_is_not_told(
    tokenizer: Tokenizer, error: Exception, log: pytest.LogCaptureFixture
) -> None:
    """Neither the client nor the log gets its message, its values or its causes."""
    app = build_application(tokenizer, embedder=FakeEmbedder(error=error))

    async with app.client() as client:
        response = await client.post("/v1/embeddings", json={"input": MARKER})

    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert MARKER not in f"{response.text} {response.headers}"
    assert MARKER not in log.text
    assert MARKER not in "".join(str(vars(record)) for record in log.records)
    assert f"internal error: {type(error).__name__} at fakes.py:" in log.text


async def test_an_unknown_path_does_not_stay_in_the_log(
    app: Application, log: pytest.LogCaptureFixture
) -> None:
    """People put keys into paths."""
    async with app.client() as client:
        response = await client.get(f"/{MARKER}?key={MARKER}")

    assert MARKER not in response.text
    assert MARKER not in "".join(str(vars(record)) for record in log.records)
