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
    return build_application(tokenizer)


def test_the_http_api_imports_neither_ray_nor_torch() -> None:
    code = (
        "import sys, serve_app.api.app; "
        "print([name for name in ('ray', 'torch', 'transformers') if name in sys.modules])"
    )

    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert process.stdout.strip() == "[]"


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
async def test_every_embeddings_path_answers_without_a_redirect(
    app: Application, path: str
) -> None:
    """Many clients drop the body when they follow a redirect."""
    async with app.client() as client:
        response = await client.post(path, json={"input": "a"})

    assert response.status_code == 200
    assert len(response.history) == 0
    assert response.json()["model"] == MODEL


async def test_the_model_in_the_path_overrides_the_body(app: Application) -> None:
    """Azure's clients name the deployment in the path, and some send an arbitrary model in the body."""
    async with app.client() as client:
        response = await client.post(
            f"/openai/deployments/{RANKER}/embeddings", json={"input": "a", "model": MODEL}
        )

    assert response.status_code == 424


@pytest.mark.parametrize(
    "path", ["/v1/models", "/models", "/models/", "/openai/v1/models", "/openai/models"]
)
async def test_models_are_listed_at_every_path(app: Application, path: str) -> None:
    async with app.client() as client:
        listed = await client.get(path)
        one = await client.get(f"{path.rstrip('/')}/{MODEL}")

    assert [card["id"] for card in listed.json()["data"]] == [MODEL, ALIAS, RANKER]
    assert one.json()["id"] == MODEL


@pytest.mark.parametrize("path", ["/healthy", "/v1", "/v1/embeddings/more", "/docs/more"])
async def test_an_unknown_path_is_404_and_does_not_redirect(app: Application, path: str) -> None:
    async with app.client() as client:
        response = await client.get(path)

    assert response.status_code == 404
    assert response.json()["code"] == "not_found"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "QUERY"])
async def test_an_unsupported_method_is_405_with_allow(app: Application, method: str) -> None:
    async with app.client() as client:
        response = await client.request(method, "/v1/models")

    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD"
    assert response.json()["code"] == "method_not_allowed"


async def test_head_is_get_without_a_body(app: Application) -> None:
    """Load balancers send HEAD."""
    async with app.client() as client:
        responses = [await client.head(path) for path in ("/health", "/ready", "/v1/models")]

    assert [response.status_code for response in responses] == [200, 200, 200]


# No error and no log line may contain what a client sent.

LEAKS = {
    "too long an input": {"input": f"{MARKER} a a a a a a a a"},
    "an input of the wrong type": {"input": [MARKER, 5]},
    "a field of the wrong type": {"input": "a", "dimensions": MARKER},
    "an encoding format": {"input": "a", "encoding_format": MARKER},
    "a truncation direction": {"input": "a", "truncate_direction": MARKER},
    "a prompt name": {"input": "a", "prompt_name": MARKER},
    "a model name": {"input": "a", "model": MARKER},
    "a user": {"input": [], "user": MARKER},
    "a field name": {MARKER: 1},
    "both input names": {"input": MARKER, "inputs": MARKER + "2"},
    "a valid request": {"input": MARKER, "user": MARKER},
}


@pytest.mark.parametrize("body", LEAKS.values(), ids=LEAKS.keys())
async def test_responses_and_logs_never_contain_request_content(
    app: Application, body: object, log: pytest.LogCaptureFixture
) -> None:
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
async def test_an_unexpected_error_never_leaks_the_input(
    tokenizer: Tokenizer, error: Exception, log: pytest.LogCaptureFixture
) -> None:
    app = build_application(tokenizer, embedder=FakeEmbedder(error=error))

    async with app.client() as client:
        response = await client.post("/v1/embeddings", json={"input": MARKER})

    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert MARKER not in f"{response.text} {response.headers}"
    assert MARKER not in log.text
    assert MARKER not in "".join(str(vars(record)) for record in log.records)
    assert f"internal error: {type(error).__name__} at fakes.py:" in log.text


async def test_the_log_does_not_contain_an_unknown_path(
    app: Application, log: pytest.LogCaptureFixture
) -> None:
    """People put keys into paths."""
    async with app.client() as client:
        response = await client.get(f"/{MARKER}?key={MARKER}")

    assert MARKER not in response.text
    assert MARKER not in "".join(str(vars(record)) for record in log.records)


# API keys.

KEYS = "ada sk-1,sk-2"


@pytest.fixture
def closed(tokenizer: Tokenizer) -> Application:
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
async def test_a_valid_key_is_accepted_in_every_header(
    closed: Application, headers: dict[str, str]
) -> None:
    async with closed.client(headers=headers) as client:
        response = await client.post("/v1/embeddings", json={"input": "a"})

    assert response.status_code == 200


CLOSED = [
    *(("POST", path) for path in (*PATHS, "/embed", "/")),
    *(("GET", path) for path in ("/v1/models", f"/v1/models/{MODEL}", "/info")),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
async def test_a_request_without_a_key_is_401_on_protected_routes(
    closed: Application, method: str, path: str
) -> None:
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
async def test_an_invalid_key_is_401(closed: Application, headers: dict[str, str]) -> None:
    async with closed.client(headers=headers) as client:
        response = await client.post("/v1/embeddings", json={"input": "a"})

    assert response.status_code == 401
    assert response.json()["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert closed.embedder.seen == []


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json", "/metrics"])
async def test_health_docs_and_metrics_need_no_key(closed: Application, path: str) -> None:
    """Load balancers and scrapers have no key."""
    async with closed.client() as client:
        assert (await client.get(path)).status_code == 200


async def test_logs_and_metrics_name_the_key_and_never_reveal_it(
    closed: Application, log: pytest.LogCaptureFixture
) -> None:
    async with closed.client(headers={"authorization": "Bearer sk-1"}) as client:
        await client.post("/v1/embeddings", json={"input": "a"})
        metrics = (await client.get("/metrics")).text

    assert " key=ada" in log.text
    assert 'key="ada"' in metrics
    assert "sk-1" not in metrics + "".join(str(vars(record)) for record in log.records)


# CORS.

ORIGIN = "https://example.org"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


@pytest.mark.parametrize("origins", [[ORIGIN], ["*"]])
async def test_a_configured_origin_may_call(tokenizer: Tokenizer, origins: list[str]) -> None:
    app = build_application(tokenizer, keys=KEYS, http={"cors_origins": origins})

    async with app.client() as client:
        preflight = await client.options("/v1/embeddings", headers=PREFLIGHT)
        refused = await client.post(
            "/v1/embeddings", json={"input": "a"}, headers={"origin": ORIGIN}
        )

    assert preflight.status_code == 204
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert refused.status_code == 401
    for response in (preflight, refused):
        assert response.headers["access-control-allow-origin"] in (ORIGIN, "*")
        assert "x-request-id" in response.headers
    assert "retry-after" in refused.headers["access-control-expose-headers"]


async def test_other_origins_may_not_call(app: Application, tokenizer: Tokenizer) -> None:
    other = build_application(tokenizer, http={"cors_origins": ["https://other.example"]})

    for application in (app, other):
        async with application.client() as client:
            response = await client.options("/v1/embeddings", headers=PREFLIGHT)
        assert "access-control-allow-origin" not in response.headers
        assert response.status_code == (405 if application is app else 400)
        assert response.json()["code"] == (
            "method_not_allowed" if application is app else "cors_not_allowed"
        )
        assert int(response.headers["content-length"]) == len(response.content)


# The routes of text-embeddings-inference.


@pytest.mark.parametrize("path", ["/embed", "/"])
@pytest.mark.parametrize("inputs", ["a", ["a"], ["a", "b"]])
async def test_embed_returns_only_vectors(
    app: Application, path: str, inputs: str | list[str]
) -> None:
    async with app.client() as client:
        bare = await client.post(path, json={"inputs": inputs})
        whole = await client.post("/v1/embeddings", json={"input": inputs})

    assert bare.json() == [entry["embedding"] for entry in whole.json()["data"]]


async def test_embed_accepts_the_fields_of_tei_clients(app: Application) -> None:
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


async def test_info_reports_the_default_model_and_the_limits(app: Application) -> None:
    async with app.client() as client:
        info = (await client.get("/info")).json()

    assert info["model_id"] == MODEL
    assert info["max_client_batch_size"] == 2048
    assert info["max_input_length"] == 8
    assert info["auto_truncate"] is False


@pytest.mark.parametrize("root", ["", "/below"])
@pytest.mark.parametrize("path", ["", "/", "//", "/embed", "//embed/"])
async def test_extra_and_missing_slashes_are_tolerated(
    app: Application, root: str, path: str
) -> None:
    """Some clients write the root of a mounted application without a slash."""
    transport = httpx.ASGITransport(app.asgi, root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post(f"http://test{root}{path}", json={"inputs": "a"})

    assert answer.status_code == 200


async def test_an_encoded_slash_is_part_of_the_model_name(app: Application) -> None:
    async with app.client() as client:
        answer = await client.get("/v1/models/%2F")

    assert answer.status_code == 404
    assert answer.json()["code"] == "model_not_found"
