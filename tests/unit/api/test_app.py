import subprocess
import sys

import httpx
import pytest

from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import ALIAS, MODEL, RANKER, Application, FakeEmbedder, build_application

pytestmark = pytest.mark.anyio

MARKER = "xyzzy"


@pytest.fixture
def app(tokenizer: Tokenizer) -> Application:
    """The application with its defaults."""
    return build_application(tokenizer)


def test_the_http_side_loads_neither_ray_nor_torch() -> None:
    """It starts fast, and runs in tests and under any ASGI server."""
    code = (
        "import sys, serve_app.api.app; "
        "print([name for name in ('ray', 'torch', 'transformers') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


PATHS = [
    "/v1/embeddings",
    "/v1/embeddings/",
    "/v1//embeddings",
    "//v1/embeddings",
    "/embeddings",
    "/embeddings/",
    "/openai/v1/embeddings",
    "/openai/embeddings?api-version=2024-10-21",
    f"/openai/deployments/{MODEL}/embeddings?api-version=2024-10-21",
    f"/openai/deployments/{MODEL.replace('/', '%2F')}/embeddings?api-version=2024-10-21",
    f"/openai/deployments/{ALIAS}/embeddings",
    f"/v1/engines/{MODEL}/embeddings",
    f"/v1/engines/{ALIAS}:query/embeddings",
]


@pytest.mark.parametrize("path", PATHS)
async def test_every_path_of_the_route_answers_and_none_redirects(
    app: Application, path: str
) -> None:
    """Many clients drop the body on the way."""
    async with app.client() as client:
        response = await client.post(path, json={"input": "a"})

    assert response.status_code == 200
    assert len(response.history) == 0
    assert response.json()["model"] == MODEL


async def test_the_model_in_the_path_is_meant(app: Application) -> None:
    """Azure's clients name the deployment there, and some anything in the body."""
    async with app.client() as client:
        response = await client.post(
            f"/openai/deployments/{RANKER}/embeddings", json={"input": "a", "model": MODEL}
        )

    assert response.status_code == 424


@pytest.mark.parametrize(
    "path", ["/v1/models", "/models", "/models/", "/openai/v1/models", "/openai/models"]
)
async def test_models_are_listed_at_every_path(app: Application, path: str) -> None:
    """With and without a version."""
    async with app.client() as client:
        listed = await client.get(path)
        one = await client.get(f"{path.rstrip('/')}/{MODEL}")

    assert [card["id"] for card in listed.json()["data"]] == [MODEL, ALIAS, RANKER]
    assert one.json()["id"] == MODEL


@pytest.mark.parametrize("path", ["/healthy", "/v1", "/v1/embeddings/more", "/docs/more"])
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


# ApiKeys.

KEYS = "ada sk-1,sk-2"
CARRIERS = ("authorization", "api-key", "x-api-key")


@pytest.fixture
def closed(tokenizer: Tokenizer) -> Application:
    """The application with two keys."""
    return build_application(tokenizer, keys=KEYS)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-1"},
        {"authorization": "bearer sk-2"},
        {"authorization": "BEARER  sk-2 "},
        {"api-key": "sk-1"},
        {"x-api-key": "sk-2"},
        {"authorization": "Bearer another", "api-key": "sk-1"},
    ],
)
async def test_a_key_opens_the_route(closed: Application, headers: dict[str, str]) -> None:
    """In any of the headers that clients put it into."""
    async with closed.client(headers=headers) as client:
        response = await client.post("/v1/embeddings", json={"input": "a"})

    assert response.status_code == 200


CLOSED = [
    *(("POST", path) for path in (*PATHS, "/embed", "/")),
    *(("GET", path) for path in ("/v1/models", f"/v1/models/{MODEL}", "/info")),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
async def test_without_a_key_nothing_is_told(closed: Application, method: str, path: str) -> None:
    """The body is not even read."""
    async with closed.client() as client:
        response = await client.request(method, path, content=b"{" if method == "POST" else None)

    assert response.status_code == 401
    assert response.json()["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert closed.embedder.seen == []


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": ""},
        {"authorization": "Bearer "},
        {"authorization": "Bearer sk"},
        {"authorization": "Bearer sk-11"},
        {"authorization": "Basic sk-1"},
        {"authorization": "sk-1"},
        {"api-key": "ada"},
    ],
)
async def test_what_is_no_key_opens_nothing(closed: Application, headers: dict[str, str]) -> None:
    async with closed.client(headers=headers) as client:
        response = await client.post("/v1/embeddings", json={"input": "a"})

    assert response.status_code == 401
    assert closed.embedder.seen == []


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json", "/metrics"])
async def test_what_says_nothing_of_anyone_needs_no_key(closed: Application, path: str) -> None:
    """Load balancers and scrapers have none."""
    async with closed.client() as client:
        assert (await client.get(path)).status_code == 200


async def test_metrics_may_need_a_key(tokenizer: Tokenizer) -> None:
    """If the operator says so."""
    app = build_application(tokenizer, keys=KEYS, http={"metrics_need_key": True})

    async with app.client() as client:
        without = await client.get("/metrics")
        with_key = await client.get("/metrics", headers={"api-key": "sk-1"})

    assert (without.status_code, with_key.status_code) == (401, 200)


async def test_the_key_s_name_is_told_and_never_the_key(
    closed: Application, log: pytest.LogCaptureFixture
) -> None:
    """In the log line and in the metrics."""
    async with closed.client(headers={"authorization": "Bearer sk-1"}) as client:
        await client.post("/v1/embeddings", json={"input": "a"})
        metrics = (await client.get("/metrics")).text

    assert " key=ada" in log.text
    assert 'key="ada"' in metrics
    assert "sk-1" not in metrics + "".join(str(vars(record)) for record in log.records)


# Pages in browsers.

ORIGIN = "https://example.org"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


@pytest.mark.parametrize("origins", [[ORIGIN], ["*"]])
async def test_a_page_of_a_configured_origin_may_call(
    tokenizer: Tokenizer, origins: list[str]
) -> None:
    """The preflight needs no key; errors can be read as well."""
    app = build_application(tokenizer, keys=KEYS, http={"cors_origins": origins})

    async with app.client() as client:
        before = await client.options("/v1/embeddings", headers=PREFLIGHT)
        refused = await client.post(
            "/v1/embeddings", json={"input": "a"}, headers={"origin": ORIGIN}
        )

    assert before.status_code == 200
    assert "authorization" in before.headers["access-control-allow-headers"]
    assert refused.status_code == 401
    for response in (before, refused):
        assert response.headers["access-control-allow-origin"] in (ORIGIN, "*")
        assert "x-request-id" in response.headers
    assert "retry-after" in refused.headers["access-control-expose-headers"]


async def test_other_pages_may_not_call(app: Application, tokenizer: Tokenizer) -> None:
    """Nor may any without the setting."""
    narrow = build_application(tokenizer, http={"cors_origins": ["https://other.example"]})

    for one in (app, narrow):
        async with one.client() as client:
            response = await client.options("/v1/embeddings", headers=PREFLIGHT)
        assert "access-control-allow-origin" not in response.headers
        assert response.status_code == (405 if one is app else 400)
        assert response.json()["code"] == (
            "method_not_allowed" if one is app else "cors_not_allowed"
        )
        assert int(response.headers["content-length"]) == len(response.content)


# Text-embeddings-inference's own routes.


@pytest.mark.parametrize("path", ["/embed", "/"])
@pytest.mark.parametrize("inputs", ["a", ["a"], ["a", "b"]])
async def test_embed_gives_nothing_but_vectors(
    app: Application, path: str, inputs: str | list[str]
) -> None:
    """Always a list of lists: the vectors of the other route."""
    async with app.client() as client:
        bare = await client.post(path, json={"inputs": inputs})
        whole = await client.post("/v1/embeddings", json={"input": inputs})

    assert bare.json() == [entry["embedding"] for entry in whole.json()["data"]]


async def test_embed_knows_the_fields_of_its_clients(app: Application) -> None:
    """Their names, and their spelling of sides."""
    fields = {
        "normalize": False,
        "truncate": True,
        "truncation_direction": "Left",
        "prompt_name": "query",
        "dimensions": 3,
    }

    async with app.client() as client:
        bare = await client.post("/embed", json={"inputs": "a b a b a b a b a b", **fields})
        whole = await client.post("/v1/embeddings", json={"input": "a b a b a b a b a b", **fields})
        as_base64 = await client.post("/embed", json={"inputs": "a", "encoding_format": "base64"})

    assert bare.json() == [whole.json()["data"][0]["embedding"]]
    assert len(bare.json()[0]) == 3
    assert isinstance(as_base64.json()[0], str)


async def test_info_tells_what_clients_plan_by(app: Application) -> None:
    """The default model and the limits."""
    async with app.client() as client:
        info = (await client.get("/info")).json()

    assert info["model_id"] == MODEL
    assert info["max_client_batch_size"] == 2048
    assert info["max_input_length"] == 8
    assert info["auto_truncate"] is False


@pytest.mark.parametrize("root", ["", "/below"])
@pytest.mark.parametrize("path", ["", "/", "//", "/embed", "//embed/"])
async def test_paths_with_slashes_too_many_or_too_few_are_found(
    app: Application, root: str, path: str
) -> None:
    """Also where the application lies below a path, whose root some clients write without a slash."""
    transport = httpx.ASGITransport(app.asgi, root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post(f"http://test{root}{path}", json={"inputs": "a"})

    assert answer.status_code == 200


async def test_a_slash_that_was_sent_as_a_part_of_a_name_is_no_path(app: Application) -> None:
    """`/v1/models/%2F` asks for a model, and there is none of that name."""
    async with app.client() as client:
        answer = await client.get("/v1/models/%2F")

    assert answer.status_code == 404
    assert answer.json()["code"] == "model_not_found"
