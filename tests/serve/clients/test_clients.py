"""Every client of the README's table, in a process of its own, against a server in each proxy mode."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tests.serve.clients.table import CLIENTS, HERE, Client
from tests.serve.server import Server
from tests.serve.test_http import NAME

TEXTS = ["a text", "another text, with a comma", "日本語のテスト", "x" * 30, "words " * 40]
SCRIPTS = {(client.script, client.lock, client.arguments): client for client in CLIENTS}
# By case of the OpenAI scripts: class, status, code, and how `param` begins.
PYTHON_ERRORS = {
    "empty": ("BadRequestError", 400, "empty_input", "input"),
    "empty item": ("BadRequestError", 400, "empty_input", "input[1]"),
    "dimensions": ("BadRequestError", 400, "invalid_dimensions", "dimensions"),
    "unknown model": ("NotFoundError", 404, "model_not_found", "model"),
    "too many": ("APIStatusError", 413, "batch_size_exceeded", "input"),
    "too long": ("UnprocessableEntityError", 422, "context_length_exceeded", "input[1]"),
    "no embedding model": ("APIStatusError", 424, "not_an_embedding_model", "model"),
}
NODE_ERRORS = {
    "empty": ("BadRequestError", 400, "empty_input", "input"),
    "unknown model": ("NotFoundError", 404, "model_not_found", "model"),
}


def run(client: Client, server: Server) -> dict[str, Any]:
    """Run a client's script and return what it prints."""
    *_, script = client.command
    program = client.command[0]
    is_there = shutil.which(program) is not None
    if client.lock == "node":
        is_there = is_there and (Path(script).parent / "node_modules").exists()
    if not is_there:
        pytest.skip(f"{client.name} is not installed here: `make clients` installs all of them")
    if "ids" in client.arguments and "TIKTOKEN_CACHE_DIR" not in server.environment:
        pytest.skip("TIKTOKEN_CACHE_DIR does not say where the file of cl100k_base is")
    arguments = [server.url, NAME, server.plumbing_url, json.dumps(TEXTS), *client.arguments]
    done = subprocess.run(
        [*client.command, *arguments],
        cwd=HERE,
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "client",
    SCRIPTS.values(),
    ids=lambda c: "-".join([Path(c.script).stem, c.lock, *c.arguments]),
)
def test_a_client_gets_the_model_s_vectors(
    client: Client, server: Server, reference: SentenceTransformer
) -> None:
    """In every way that it has, and errors that its user can read."""
    found = run(client, server)

    expected = reference.encode(TEXTS)
    assert found["vectors"]
    for way, rows in found["vectors"].items():
        wanted = np.resize(expected, (len(rows), expected.shape[1]))
        np.testing.assert_allclose(np.array(rows), wanted, atol=1e-5, err_msg=way)
    known = PYTHON_ERRORS if client.script.endswith("python.py") else NODE_ERRORS
    for case, (kind, status, code, param) in known.items():
        if "errors" in found:
            error = found["errors"][case]
            assert (error["class"], error["status"], error["code"]) == (kind, status, code), case
            assert error["param"] == param
            assert error["says"]
    if "too_long" in found:
        assert found["too_long"] == "ContextWindowExceededError"
    if "ai_sdk_error" in found:
        assert found["ai_sdk_error"] == "Not Found"  # it looks into OpenAI's envelope only
