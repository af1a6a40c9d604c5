"""The embedding service called through a `DeploymentHandle`, without HTTP."""

import json

import numpy as np
import pytest

from tests.support.http import post, vectors
from tests.support.server import Server, wait_for


@pytest.mark.both_modes
def test_a_handle_gives_the_same_vectors_and_errors_as_http(server: Server) -> None:
    result = json.loads(server.run_script("call_from_python.py"))

    over_http = vectors(post(server.url, {"input": ["test input", "test input 2"]}))
    np.testing.assert_allclose(result["embeddings"], over_http, atol=1e-6)
    assert (result["dtype"], result["prompt_tokens"]) == ("float32", 9)
    assert result["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert np.shape(result["short"]) == (1, 8)
    assert not np.isclose(np.linalg.norm(result["raw"]), 1)
    assert [error[:4] for error in result["errors"]] == [
        ["InvalidRequestError", 400, "empty_input", "input[1]"],
        ["TokenizationError", 422, "context_length_exceeded", "input"],
        ["BatchSizeError", 413, "batch_size_exceeded", "input"],
    ]


@pytest.mark.both_modes
def test_caller_errors_leave_no_traceback_in_the_log(server: Server) -> None:
    """By default, Ray Serve logs every exception of a handle call with its traceback."""
    server.run_script("call_from_python.py")

    def log() -> str:
        return server.read_logs("replica_embeddings_ingress*")

    wait_for(
        lambda: "Request failed. 400 empty_input" in log(),
        timeout_s=10,
        what="the error is logged",
    )
    assert "Traceback" not in log()
