import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from serve_app.api.openapi.document import ASSETS, build_schema
from serve_app.config.http import HttpConfig
from serve_app.errors import NotFoundError
from serve_app.schemas.embeddings import EmbeddingRequest
from serve_app.service.registry import ModelRegistry
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import (
    MODEL,
    Application,
    FakeEmbedder,
    build_application,
    error_kinds,
    served_models,
)

pytestmark = pytest.mark.anyio

Json = dict[str, Any]


def build(tokenizer: Tokenizer, **http: Any) -> Json:
    """Build the document with these settings under `http:`."""
    settings = HttpConfig.model_validate(http)
    app = build_application(tokenizer, http=http)
    models = ModelRegistry(served_models(tokenizer, FakeEmbedder())).embedding
    return build_schema(app.asgi.operations, models, settings)


@pytest.fixture
def app(tokenizer: Tokenizer) -> Application:
    return build_application(tokenizer)


@pytest.fixture
def schema(tokenizer: Tokenizer) -> Json:
    return build(tokenizer)


def operations(schema: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield the path, method and object of every operation."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def nodes(value: Any) -> Iterator[Json]:
    """Yield every object in the document."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def documented_errors() -> set[tuple[int, str]]:
    """Return the status and name of every error except `NotFoundError`, which occurs only on unknown paths."""
    return {(k.status, k.error) for k in error_kinds() if k is not NotFoundError}


def test_the_document_is_well_formed(schema: Json) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(schema)]

    assert schema["openapi"].startswith("3.1.")
    assert schema["info"].keys() >= {"title", "version"}
    assert len(set(ids)) == len(ids)
    for path, _, operation in operations(schema):
        assert set(re.findall(r"{(\w+)}", path)) == {
            p["name"] for p in operation.get("parameters", []) if p["in"] == "path"
        }
        for status, answer in operation["responses"].items():
            assert re.fullmatch("[1-5][0-9][0-9]", status)
            assert answer["description"]
            assert all("schema" in content for content in answer["content"].values())


def test_metrics_document_401_only_if_they_require_a_key(tokenizer: Tokenizer) -> None:
    answers = {
        needs_key: build(tokenizer, metrics_need_key=needs_key)["paths"]["/metrics"]["get"][
            "responses"
        ]
        for needs_key in (True, False)
    }

    assert "401" in answers[True]
    assert "401" not in answers[False]


def test_every_reference_resolves_to_a_schema(schema: Json) -> None:
    references = {node["$ref"] for node in nodes(schema) if "$ref" in node}

    names = {reference.removeprefix("#/components/schemas/") for reference in references}
    assert names
    assert names <= schema["components"]["schemas"].keys()


def test_every_operation_is_documented_once_with_its_aliases(
    app: Application, schema: Json
) -> None:
    rows = {row.name: row for row in app.asgi.operations if row.tag}

    described = {o["operationId"]: (path, method, o) for path, method, o in operations(schema)}

    assert described.keys() == rows.keys()
    for name, (path, method, operation) in described.items():
        row = rows[name]
        assert (path, method.upper()) == (row.path.replace(":path", ""), row.method)
        assert all(alias.replace(":path", "") in operation["description"] for alias in row.aliases)
        assert ("security" in operation, "401" in operation["responses"]) == (row.needs_key,) * 2


def test_operations_are_grouped_by_tags(schema: Json) -> None:
    used = [tag for _, _, operation in operations(schema) for tag in operation["tags"]]

    assert [tag["name"] for tag in schema["tags"]] == list(dict.fromkeys(used))
    assert len(set(used)) > 1


def test_the_embeddings_route_documents_every_error(schema: Json) -> None:
    responses = schema["paths"]["/v1/embeddings"]["post"]["responses"]

    described = {
        (int(status), words)
        for status, answer in responses.items()
        if status != "200"
        for words in answer["description"].split("; ")
    }
    assert described == documented_errors()


def test_headers_are_documented_for_the_right_statuses(schema: Json) -> None:
    responses = schema["paths"]["/v1/embeddings"]["post"]["responses"]

    headers = {status: set(answer["headers"]) for status, answer in responses.items()}
    assert all("x-request-id" in names for names in headers.values())
    assert headers["200"] >= {"x-compute-tokens", "x-total-time", "x-truncated-inputs"}
    assert {s for s, names in headers.items() if "retry-after" in names} == {"429", "503"}
    assert {s for s, names in headers.items() if "x-should-retry" in names} == {"500"}
    assert {s for s, names in headers.items() if "allow" in names} == {"405"}


def test_every_request_field_is_documented(schema: Json) -> None:
    request = schema["components"]["schemas"]["EmbeddingRequest"]["properties"]

    assert request.keys() == EmbeddingRequest.model_fields.keys()
    assert all(field["description"] for field in request.values())


def test_the_document_lists_the_models_and_the_set_limits(tokenizer: Tokenizer) -> None:
    schema = build(tokenizer, max_client_batch_size=7)

    description = schema["paths"]["/v1/embeddings"]["post"]["description"]

    assert f"Models: {MODEL}." in description
    assert "At most 7 inputs" in description


async def test_responses_have_the_documented_keys(app: Application, schema: Json) -> None:
    async with app.client() as client:
        answer = (await client.post("/v1/embeddings", json={"input": "a"})).json()
        card = (await client.get(f"/v1/models/{MODEL}")).json()
        error = (await client.get(f"/v1/models/{MODEL}x")).json()
        served = (await client.get("/openapi.json")).json()

    schemas = served["components"]["schemas"]
    assert served["paths"].keys() == schema["paths"].keys()
    for name, sent in {"EmbeddingResponse": answer, "ModelCard": card, "ErrorBody": error}.items():
        assert sent.keys() == schemas[name]["properties"].keys() == set(schemas[name]["required"])


@pytest.mark.parametrize(("root", "url"), [("", "/"), ("/below", "/below")])
async def test_the_document_states_the_root_path(app: Application, root: str, url: str) -> None:
    transport = httpx.ASGITransport(app.asgi, root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        served = (await client.get(f"{root}/openapi.json")).json()

    assert served["servers"] == [{"url": url}]


class References(HTMLParser):
    """Collects the addresses that a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the addresses of scripts, stylesheets and images."""
        assert tag != "base"
        self.addresses += [value for name, value in attrs if name in {"src", "href"} and value]


async def test_the_page_loads_nothing_from_other_hosts(app: Application) -> None:
    async with app.client() as client:
        page = (await client.get("/docs")).text
    references = References()
    references.feed(page)

    assert references.addresses == ["/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js"]
    assert "//" not in page
    assert 'url: "/openapi.json"' in page
    assert "validatorUrl: null" in page


@pytest.mark.parametrize(("name", "content_type"), ASSETS.items())
async def test_the_assets_of_the_page_are_served(
    app: Application, name: str, content_type: str
) -> None:
    async with app.client() as client:
        response = await client.get(f"/docs/{name}")

    assert response.status_code == 200
    assert response.headers["content-type"] == f"{content_type}; charset=utf-8"
    assert int(response.headers["content-length"]) == len(response.content) > 100_000


async def test_the_stylesheet_loads_nothing_from_other_hosts(app: Application) -> None:
    async with app.client() as client:
        style = (await client.get("/docs/swagger-ui.css")).text

    loaded = re.findall(r"url\(([^)]{0,20})|@import", style)
    assert all(address.strip("\"'").startswith("data:") for address in loaded)


@pytest.mark.parametrize("path", ["/docs/favicon.png", "/docs/..%2Fsetup.py", "/docs/%2E%2E"])
async def test_no_other_file_is_served(app: Application, path: str) -> None:
    async with app.client() as client:
        response = await client.get(path)

    assert response.status_code == 404
