"""The API contract's examples and responses, tested against a server that runs as in production."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests
from sentence_transformers import SentenceTransformer

from tests.support.applications import NAME
from tests.support.http import FLAT_ERROR_KEYS, post, vectors

TIMINGS = {"x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"}


def test_the_raw_json_example_works(url: str, reference: SentenceTransformer) -> None:
    body = """
  {
    "encoding_format": "float",
    "input": "string",
    "model": "null",
    "user": "null"
  }
"""

    answer = requests.post(f"{url}/v1/embeddings", data=body, timeout=60)

    np.testing.assert_allclose(vectors(answer), reference.encode(["string"]), atol=1e-5)


@pytest.mark.both_modes
def test_the_curl_example_works(url: str, reference: SentenceTransformer) -> None:
    command = """curl -X POST \\
       -H "Content-Type: application/json"\\
       -d '{"input": "test input"}' \\
       --url http://$ENDPOINT/v1/embeddings """

    done = subprocess.run(
        ["bash", "-c", command],
        env={"ENDPOINT": url.removeprefix("http://"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=60,
        check=True,
    )

    embedding = json.loads(done.stdout)["data"][0]["embedding"]
    np.testing.assert_allclose(embedding, reference.encode("test input"), atol=1e-5)


def test_the_python_example_works(url: str, reference: SentenceTransformer) -> None:
    endpoint = url

    two = requests.post(f"{endpoint}/v1/embeddings", json={
        "input": ["test input", "test input 2"]
    })  # fmt: skip
    one = requests.post(f"{endpoint}/v1/embeddings", json={
        "input": "test single input"
    })  # fmt: skip

    texts = ["test input", "test input 2", "test single input"]
    received = np.concatenate([vectors(two), vectors(one)])
    np.testing.assert_allclose(received, reference.encode(texts), atol=1e-5)


def test_a_response_has_exactly_the_documented_keys(url: str) -> None:
    answer = post(url, {"input": ["test input", "test input 2"], "model": "all-MiniLM-L6-v2"})

    body = answer.json()
    assert set(body) == {"data", "model", "object", "usage"}
    assert [set(item) for item in body["data"]] == [{"embedding", "index", "object"}] * 2
    assert [item["index"] for item in body["data"]] == [0, 1]
    assert {item["object"] for item in body["data"]} == {"embedding"}
    assert (body["model"], body["object"]) == (NAME, "list")
    assert body["usage"] == {"prompt_tokens": 9, "total_tokens": 9}


@pytest.mark.both_modes
def test_a_response_carries_timings_and_the_request_id(url: str) -> None:
    answer = post(url, {"input": "test input"}, headers={"x-request-id": "mine-1"})

    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-compute-tokens"] == "4"
    assert all(float(answer.headers[name]) >= 0 for name in TIMINGS)
    assert "x-truncated-inputs" not in answer.headers


@pytest.mark.parametrize(
    ("body", "status", "error", "error_type", "code", "param"),
    [
        ({"input": ["a"] * 2049}, 413, "Batch size error", "validation", "batch_size_exceeded", "input"),
        ({"input": ["a", "b " * 300]}, 422, "Tokenization error", "validation", "context_length_exceeded", "input[1]"),
        ({"input": ["a", ""]}, 400, "Invalid request", "validation", "empty_input", "input[1]"),
        ({"input": "a", "dimensions": 385}, 400, "Invalid request", "validation", "invalid_dimensions", "dimensions"),
        ({"input": "a", "prompt_name": "x"}, 400, "Invalid request", "validation", "unknown_prompt", "prompt_name"),
        ({"input": "a", "model": "gpt"}, 404, "Model not found", "validation", "model_not_found", "model"),
        ({"input": "a", "input_type": "x"}, 400, "Invalid request", "validation", "invalid_input_type", "input_type"),
    ],
)  # fmt: skip
def test_invalid_input_gets_a_flat_error(
    url: str, body: Any, status: int, error: str, error_type: str, code: str, param: str
) -> None:
    answer = post(url, body)

    response = answer.json()
    assert answer.status_code == status
    assert set(response) == FLAT_ERROR_KEYS
    assert (response["error"], response["error_type"]) == (error, error_type)
    assert (response["code"], response["param"]) == (code, param)


def test_openai_sdks_get_the_openai_error_envelope(url: str) -> None:
    answer = post(url, {"input": ""}, headers={"x-stainless-lang": "python"})

    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["vary"] == "x-stainless-lang"


@pytest.mark.both_modes
@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not_found"), ("PUT", "/v1/embeddings", 405, "method_not_allowed")],
)
def test_a_wrong_path_or_method_gets_a_json_error(
    url: str, method: str, path: str, status: int, code: str
) -> None:
    answer = requests.request(method, url + path, timeout=60)

    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize("fields", [
    {"normalize": False},
    {"dimensions": 100},
    {"dimensions": 7, "normalize": False},
    {"encoding_format": "base64"},
    {"truncate": True},
    {"truncate": True, "truncate_direction": "left"},
])  # fmt: skip
def test_vector_options_match_sentence_transformers(
    url: str, reference: SentenceTransformer, fields: dict[str, Any]
) -> None:
    long = (
        " ".join(f"word{i}" for i in range(300)) if "truncate" in fields else "a longer text " * 12
    )
    texts = ["short", long, "The quick brown fox", "naïve café 東京 🎉", "x"]

    received = vectors(post(url, {"input": texts, **fields}))

    reference.tokenizer.truncation_side = fields.get("truncate_direction", "right")
    pooled = reference[1](reference[0](reference.preprocess(texts)))["sentence_embedding"]
    reference.tokenizer.truncation_side = "right"
    expected = pooled.detach().numpy()[:, : fields.get("dimensions")]
    if fields.get("normalize", True):
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(received, expected, atol=1e-5)


@pytest.mark.both_modes
def test_2048_inputs_come_back_in_order(url: str, reference: SentenceTransformer) -> None:
    """These inputs span more than one chunk."""
    texts = [f"text number {i}" for i in range(2048)]

    received = vectors(post(url, {"input": texts, "encoding_format": "base64"}))

    np.testing.assert_allclose(received, reference.encode(texts, batch_size=128), atol=1e-5)


@pytest.mark.both_modes
def test_concurrent_clients_each_get_their_own_vector(
    url: str, reference: SentenceTransformer
) -> None:
    texts = [f"client {i} says {'many ' * (i % 7)}things" for i in range(200)]

    with ThreadPoolExecutor(64) as clients:
        answers = list(clients.map(lambda text: vectors(post(url, {"input": text})), texts))

    np.testing.assert_allclose(np.concatenate(answers), reference.encode(texts), atol=1e-5)


def test_the_documentation_needs_no_internet(url: str) -> None:
    page = requests.get(f"{url}/docs", timeout=60)
    script = requests.get(f"{url}/docs/swagger-ui-bundle.js", timeout=60)
    schema = requests.get(f"{url}/openapi.json", timeout=60)

    assert "//" not in page.text.replace("<!doctype html>", "")
    assert script.status_code == 200
    assert len(script.content) > 100_000
    assert set(schema.json()["paths"]["/v1/embeddings"]["post"]["responses"]) >= {
        "200", "400", "404", "405", "408", "413", "422", "424", "429", "500", "503", "504",
    }  # fmt: skip
