"""Who may come in: API keys and pages of other origins, as the `guarded` application is set up."""

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
def test_a_key_lets_in(guarded_url: str, headers: dict[str, str]) -> None:
    """In each of the headers in which clients send one."""
    answer = post(guarded_url, {"input": "a"}, headers=headers)

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}, {"api-key": f"{KEY}x"}],
    ids=str,
)
def test_without_a_key_there_is_nothing(guarded_url: str, headers: dict[str, str]) -> None:
    """In OpenAI's envelope, as this application is set to, and before anything is read."""
    answer = post(guarded_url, {"input": ""}, headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json"])
def test_what_is_open_is_open(guarded_url: str, path: str) -> None:
    """A probe and a reader of the documentation have no key."""
    assert requests.get(f"{guarded_url}{path}", timeout=30).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/info", "/metrics"])
def test_what_is_closed_is_closed(guarded_url: str, path: str) -> None:
    """`/metrics` too, as this application is set to."""
    url = f"{guarded_url}{path}"

    assert requests.get(url, timeout=30).status_code == 401
    assert requests.get(url, headers={"api-key": KEY}, timeout=30).status_code == 200


def test_keys_come_and_go_without_a_restart(guarded_url: str, keys_file: Path) -> None:
    """The file is looked at again."""
    new = f"sk-{uuid.uuid4().hex}"
    before = keys_file.read_text()

    def status() -> int:
        return post(guarded_url, {"input": "a"}, headers={"api-key": new}).status_code

    assert status() == 401
    keys_file.write_text(f"{before}guest {new}\n")
    wait_for(lambda: status() == 200, timeout_s=10, what="the new key")
    keys_file.write_text(before)
    wait_for(lambda: status() == 401, timeout_s=10, what="its end")


def test_the_name_of_a_key_is_noted_and_the_key_is_not(server: Server, guarded_url: str) -> None:
    """In the log and in the metrics."""
    request_id = f"id-{uuid.uuid4().hex}"
    headers = {"api-key": KEY, "x-request-id": request_id}

    post(guarded_url, {"input": "a"}, headers=headers)

    # Both are written after the answer was sent.
    wait_for(lambda: request_id in server.read_logs("replica_guarded*"), timeout_s=10, what="it")
    logs = server.read_logs()
    metrics = requests.get(f"{guarded_url}/metrics", headers=headers, timeout=30).text
    lines = [line for line in logs.splitlines() if request_id in line and "/v1/embeddings" in line]
    assert any("tests" in line for line in lines)
    assert 'key="tests"' in metrics
    assert KEY not in metrics + logs


@pytest.mark.both_modes
def test_a_page_of_a_known_origin_may_call(guarded_url: str) -> None:
    """Its browser asks first, without a key, and lets it read what a client needs."""
    asked = requests.options(
        f"{guarded_url}/v1/embeddings",
        headers={
            "origin": ORIGIN,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        },
        timeout=30,
    )
    refused = post(guarded_url, {"input": "a"}, headers={"origin": ORIGIN})

    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert refused.status_code == 401  # and the page can read why
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in refused.headers["access-control-expose-headers"]


def test_a_page_of_another_origin_may_not(server: Server, guarded_url: str) -> None:
    """Nor does an application allow any that was not told of origins."""
    headers = {"origin": "https://evil.example", "api-key": KEY}

    for url in (guarded_url, server.url):
        answer = post(url, {"input": "a"}, headers=headers)
        assert "access-control-allow-origin" not in answer.headers
