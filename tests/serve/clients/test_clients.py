"""Every client of the compatibility table, each in its own process, in both proxy modes and with an API key."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tests.serve.clients.table import CLIENTS, Client
from tests.support.applications import ABSENT, NAME
from tests.support.server import Server

pytestmark = pytest.mark.clients

TEXTS = ["a text", "another text, with a comma", "日本語のテスト", "x" * 30, "words " * 40]
SCRIPTS = {(client.script, client.lock, client.arguments): client for client in CLIENTS}
# For each case: exception class of OpenAI's SDKs, status, code, `param`, and part of the message.
ERRORS = {
    "empty": ("BadRequestError", 400, "empty_input", "input", "send at least one text"),
    "empty item": ("BadRequestError", 400, "empty_input", "input[1]", "input[1] is empty"),
    "dimensions": ("BadRequestError", 400, "invalid_dimensions", "dimensions", "from 1 to 384"),
    "unknown model": ("NotFoundError", 404, "model_not_found", "model", "does not exist"),
    "too many": ("APIStatusError", 413, "batch_size_exceeded", "input", "at most 2048"),
    "too long": (
        "UnprocessableEntityError",
        422,
        "context_length_exceeded",
        "input[1]",
        "maximum context length is 256",
    ),
    "no embedding model": (
        "APIStatusError",
        424,
        "not_an_embedding_model",
        "model",
        "is not an embedding model",
    ),
}
GUARDED_ERRORS = {
    "wrong key": ("AuthenticationError", 401, "invalid_api_key", None, "A valid API key"),
    "no replica": ("InternalServerError", 503, "model_unavailable", None, "no replica"),
}
# What each client raises for an input that is too long: the class, and the start of the message.
TOO_LONG = {
    "langchain_nvidia.py": "Exception: [422] ",
    "litellm.py": "ContextWindowExceededError: ",
    "llama_index_nvidia.py": "UnprocessableEntityError: Error code: 422 ",
}
# Classes that have a different name in openai-node.
NODE_CLASSES = {"APIStatusError": "APIError"}


def run(client: Client, server: Server, url: str) -> dict[str, Any]:
    """Run a client's script and return what it prints."""
    *_, script = client.command
    program = client.command[0]
    is_installed = shutil.which(program) is not None
    if client.lock == "node":
        is_installed = is_installed and (Path(script).parent / "node_modules").exists()
    if not is_installed:
        pytest.skip(f"{client.name} is not installed; run `make clients`")
    if "ids" in client.arguments and "TIKTOKEN_CACHE_DIR" not in server.environment:
        pytest.skip("TIKTOKEN_CACHE_DIR is not set, so the cl100k_base encoding is not available")
    arguments = [url, NAME, ABSENT, json.dumps(TEXTS), *client.arguments]
    printed = server.run([*client.command, *arguments])
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


EACH_CLIENT = pytest.mark.parametrize(
    "client",
    SCRIPTS.values(),
    ids=lambda c: "-".join([Path(c.script).stem, c.lock, *c.arguments]),
)


@pytest.mark.both_modes
@EACH_CLIENT
def test_a_client_gets_correct_vectors_and_errors(
    client: Client, server: Server, reference: SentenceTransformer
) -> None:
    check(run(client, server, server.url), client, reference, is_guarded=False)


@EACH_CLIENT
def test_a_client_with_a_key_gets_correct_vectors_and_errors(
    client: Client, server: Server, guarded_url: str, reference: SentenceTransformer
) -> None:
    check(run(client, server, guarded_url), client, reference, is_guarded=True)


def check(
    result: dict[str, Any], client: Client, reference: SentenceTransformer, *, is_guarded: bool
) -> None:
    """Check the vectors and errors that a client's script printed."""
    expected = reference.encode(TEXTS)
    assert result["vectors"]
    for way, rows in result["vectors"].items():
        wanted = np.resize(expected, (len(rows), expected.shape[1]))
        np.testing.assert_allclose(np.array(rows), wanted, atol=1e-5, err_msg=way)
    if "errors" in result:
        check_errors(result["errors"], client, is_guarded=is_guarded)
    if "too_long" in result:
        assert result["too_long"].startswith(TOO_LONG[client.script])
        assert "maximum context length is 256" in result["too_long"]
    if "truncated" in result:  # an input of both halves, cut at the end and at the start
        halves = reference.encode(["first " * 300, "last " * 300])
        np.testing.assert_allclose(np.array(result["truncated"]), halves, atol=1e-5)
    if "ai_sdk_error" in result:  # the AI SDK only reads messages from OpenAI's envelope
        words = "does not exist" if is_guarded else "Not Found"
        assert words in result["ai_sdk_error"]


def check_errors(errors: dict[str, Any], client: Client, *, is_guarded: bool) -> None:
    """Check the exceptions that an SDK raises, and that it retries only 503."""
    expected = ERRORS | GUARDED_ERRORS if is_guarded else ERRORS
    for case, (kind, status, code, param, words) in expected.items():
        error = errors[case]
        name = NODE_CLASSES.get(kind, kind) if client.lock == "node" else kind
        assert (error["class"], error["status"], error["code"]) == (name, status, code), case
        assert error["param"] == param
        assert words in error["says"]
        assert error["tries"] == [status] * (3 if status == 503 else 1)
    if not is_guarded:
        assert errors["wrong key"] == {}  # the server requires no key
