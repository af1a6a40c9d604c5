from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.config.http import HttpConfig

POSITIVE = (
    "max_concurrent_requests",
    "max_client_batch_size",
    "max_request_tokens",
    "max_body_bytes",
    "max_held_body_bytes",
    "body_timeout_s",
    "request_timeout_s",
    "replica_wait_timeout_s",
)


def test_every_setting_has_a_default() -> None:
    http = HttpConfig()

    assert http.max_concurrent_requests == 2000
    assert http.max_client_batch_size == 2048
    assert http.max_request_tokens == 300_000
    assert http.max_body_bytes == 16 * 2**20
    assert http.body_timeout_s == 30
    assert http.request_timeout_s == 120
    assert http.replica_wait_timeout_s == 30
    assert http.retry_after_s == 1
    assert http.error_format == "auto"
    assert (http.api_keys_file, http.cors_origins) == (None, ())


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"error_format": "xml"}, "error_format"),
        ({"retry_after_s": 0}, "retry_after_s"),
        ({"retry_after_s": 61}, "retry_after_s"),
        ({"api_keys_file": "keys"}, "api_keys_file"),
        ({"api_keys_file": ""}, "api_keys_file"),
        ({"max_body_byte": 1}, "max_body_byte"),
        *(({name: 0}, name) for name in POSITIVE),
    ],
)
def test_an_invalid_setting_is_named(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as error:
        HttpConfig.model_validate(settings)

    assert [finding["loc"] for finding in error.value.errors()] == [(key,)]


@pytest.mark.parametrize(
    "settings",
    [
        {"retry_after_s": 60},
        {"max_concurrent_requests": None},
        {"error_format": "flat"},
        {"error_format": "openai"},
        {"api_keys_file": "/run/secrets/keys"},
        {"body_timeout_s": 0.5},
    ],
)
def test_a_valid_setting_is_kept(settings: dict[str, Any]) -> None:
    http = HttpConfig.model_validate(settings)

    assert http.model_dump(exclude_unset=True) == settings


# Origins.


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "https://a.example",
        "http://localhost:3000",
        "http://[::1]:8080",
        "chrome-extension://abcdef",
    ],
)
def test_an_origin_as_browsers_send_it_is_valid(origin: str) -> None:
    http = HttpConfig.model_validate({"cors_origins": ["https://first.example", origin]})

    assert http.cors_origins == ("https://first.example", origin)


@pytest.mark.parametrize(
    "origin",
    [
        "a.example",
        "https://a.example/",
        "https://a.example/path",
        "https://a.example?query",
        "https://a.example#fragment",
        "https://a.example\n",
        "https://A.example",
        "HTTPS://a.example",
        "https://",
        "https://*.example /",
        "",
    ],
)
def test_an_origin_that_would_never_match_is_rejected(origin: str) -> None:
    with pytest.raises(ValidationError, match="an origin must be") as error:
        HttpConfig.model_validate({"cors_origins": ["*", origin]})

    assert [finding["loc"] for finding in error.value.errors()] == [("cors_origins", 1)]


# Former names.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"unavailable_after_s": 1}, "unavailable_after_s is now called replica_wait_timeout_s"),
        ({"error_format": "page"}, "page is now called flat"),
    ],
)
def test_a_former_name_is_an_error_with_the_new_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        HttpConfig.model_validate(settings)

    assert words in str(error.value)


# The memory for request bodies.


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        ({}, 512 * 2**20),
        ({"max_body_bytes": 512 * 2**20 + 1}, 512 * 2**20 + 1),
        ({"max_body_bytes": 10, "max_held_body_bytes": 30}, 30),
        ({"max_body_bytes": 10, "max_held_body_bytes": 10}, 10),
    ],
)
def test_the_memory_for_bodies_holds_at_least_one_body(settings: dict[str, int], held: int) -> None:
    assert HttpConfig.model_validate(settings).body_memory_bytes == held


def test_less_memory_than_one_body_needs_is_rejected() -> None:
    with pytest.raises(ValidationError, match="max_held_body_bytes must be at least"):
        HttpConfig(max_body_bytes=11, max_held_body_bytes=10)
