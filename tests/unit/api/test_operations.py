from typing import Any

import pytest
from starlette.responses import Response

from serve_app.api.operations import Operation, OperationTable
from serve_app.api.request import ApiRequest
from serve_app.errors import MethodNotAllowedError, NotFoundError
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import build_application


async def unused(_request: ApiRequest) -> Response:
    raise AssertionError("the table calls no handler")


TABLE = OperationTable(
    [
        Operation(
            "read", "t", "Read", "GET", "/things/{id:path}", unused, aliases=("/t/{id:path}",)
        ),
        Operation("write", "t", "Write", "POST", "/things/{id:path}", unused),
        Operation("list", "t", "List", "GET", "/things", unused),
    ]
)


def scope(method: str, path: str) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "headers": []}


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/things", "list"),
        ("HEAD", "/things", "list"),
        ("GET", "/things/1", "read"),
        ("GET", "/t/1", "read"),
        ("POST", "/things/1", "write"),
    ],
)
def test_a_request_finds_its_operation_by_method_and_path(
    method: str, path: str, name: str
) -> None:
    assert TABLE.find(scope(method, path)).name == name


def test_the_parameters_of_the_path_are_stored_in_the_scope() -> None:
    found = scope("GET", "/t/acme/tiny")

    TABLE.find(found)

    assert found["path_params"] == {"id": "acme/tiny"}


@pytest.mark.parametrize("path", ["/", "/thing", "/t", "/x/things"])
def test_an_unknown_path_is_not_found(path: str) -> None:
    with pytest.raises(NotFoundError):
        TABLE.find(scope("GET", path))


def test_another_method_is_rejected_with_all_methods_of_the_path() -> None:
    with pytest.raises(MethodNotAllowedError) as error:
        TABLE.find(scope("DELETE", "/things/1"))

    assert error.value.allow == "GET, HEAD, POST"


def test_every_operation_has_a_name_and_paths_of_its_own(tokenizer: Tokenizer) -> None:
    rows = build_application(tokenizer).asgi.operations

    names = [row.name for row in rows]
    paths = [(row.method, path) for row in rows for path in (row.path, *row.aliases)]
    assert len(set(names)) == len(names)
    assert len(set(paths)) == len(paths)


def test_only_health_and_documentation_need_no_key(tokenizer: Tokenizer) -> None:
    rows = build_application(tokenizer, http={"metrics_need_key": True}).asgi.operations

    public = {row.path for row in rows if not row.needs_key}
    assert public == {"/health", "/ready", "/docs", "/docs/{asset}", "/openapi.json"}
