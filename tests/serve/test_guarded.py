"""API keys and CORS, tested on the `guarded` application."""

import uuid
from pathlib import Path

import pytest
import requests

from tests.support.applications import KEY, ORIGIN
from tests.support.http import post
from tests.support.server import Server, wait_for

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bEARER  {KEY} "},
        {"api-key": KEY},
        {"x-api-key": KEY},
        {"authorization": "Bearer sk-other", "api-key": KEY},
    ],
    ids=str,
)
def test_a_valid_key_is_accepted_in_every_header(guarded_url: str, headers: dict[str, str]) -> None:
    answer = post(guarded_url, {"input": "a"}, headers=headers)

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}, {"api-key": f"{KEY}x"}],
    ids=str,
)
def test_a_request_without_a_valid_key_is_401(guarded_url: str, headers: dict[str, str]) -> None:
    # An empty input would be a 400 if the body were checked before the key.
    answer = post(guarded_url, {"input": ""}, headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json"])
def test_public_paths_need_no_key(guarded_url: str, path: str) -> None:
    assert requests.get(f"{guarded_url}{path}", timeout=30).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/info", "/metrics"])
def test_protected_paths_need_a_key(guarded_url: str, path: str) -> None:
    url = f"{guarded_url}{path}"

    assert requests.get(url, timeout=30).status_code == 401
    assert requests.get(url, headers={"api-key": KEY}, timeout=30).status_code == 200


def test_keys_are_added_and_removed_without_a_restart(guarded_url: str, keys_file: Path) -> None:
    new = f"sk-{uuid.uuid4().hex}"
    before = keys_file.read_text()

    def status() -> int:
        return post(guarded_url, {"input": "a"}, headers={"api-key": new}).status_code

    assert status() == 401
    keys_file.write_text(f"{before}guest {new}\n")
    wait_for(lambda: status() == 200, timeout_s=10, what="the new key is accepted")
    keys_file.write_text(before)
    wait_for(lambda: status() == 401, timeout_s=10, what="the removed key is rejected")


def test_logs_and_metrics_show_the_key_name_but_not_the_key(
    server: Server, guarded_url: str
) -> None:
    request_id = f"id-{uuid.uuid4().hex}"
    headers = {"api-key": KEY, "x-request-id": request_id}

    post(guarded_url, {"input": "a"}, headers=headers)

    # The log line and the metrics are written after the response is sent.
    wait_for(
        lambda: request_id in server.read_logs("replica_guarded*"),
        timeout_s=10,
        what="the request is logged",
    )
    logs = server.read_logs()
    metrics = requests.get(f"{guarded_url}/metrics", headers=headers, timeout=30).text
    lines = [line for line in logs.splitlines() if request_id in line and "/v1/embeddings" in line]
    assert any("tests" in line for line in lines)
    assert 'key="tests"' in metrics
    assert KEY not in metrics + logs


@pytest.mark.both_modes
def test_a_page_of_an_allowed_origin_may_call(guarded_url: str) -> None:
    preflight = requests.options(
        f"{guarded_url}/v1/embeddings",
        headers={
            "origin": ORIGIN,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        },
        timeout=30,
    )
    refused = post(guarded_url, {"input": "a"}, headers={"origin": ORIGIN})

    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert refused.status_code == 401
    # The page must be able to read the error.
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in refused.headers["access-control-expose-headers"]


def test_a_page_of_another_origin_may_not_call(server: Server, guarded_url: str) -> None:
    headers = {"origin": "https://evil.example", "api-key": KEY}

    for url in (guarded_url, server.url):
        answer = post(url, {"input": "a"}, headers=headers)
        assert "access-control-allow-origin" not in answer.headers
