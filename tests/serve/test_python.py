"""The same service without HTTP, through a `DeploymentHandle`."""

import json

import numpy as np

from tests.support.http import post, vectors
from tests.support.server import Server, wait_for


def test_a_handle_gives_the_vectors_and_errors_of_http(server: Server) -> None:
    """A script on the cluster gets arrays and this project's own exceptions."""
    got = json.loads(server.run_script("call_from_python.py"))

    over_http = vectors(post(server.url, {"input": ["test input", "test input 2"]}))
    np.testing.assert_allclose(got["embeddings"], over_http, atol=1e-6)
    assert (got["dtype"], got["prompt_tokens"]) == ("float32", 9)
    assert got["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert np.shape(got["short"]) == (1, 8)
    assert not np.isclose(np.linalg.norm(got["raw"]), 1)
    assert [error[:4] for error in got["errors"]] == [
        ["InvalidRequestError", 400, "empty_input", "input[1]"],
        ["TokenizationError", 422, "context_length_exceeded", "input"],
        ["BatchSizeError", 413, "batch_size_exceeded", "input"],
    ]


def test_errors_of_callers_leave_no_traceback_in_the_log(server: Server) -> None:
    """Ray Serve logs every exception of a handle call; ours are answers, not accidents."""
    server.run_script("call_from_python.py")

    def log() -> str:
        return server.read_logs("replica_embeddings_ingress*")

    wait_for(lambda: "Request failed. 400 empty_input" in log(), timeout_s=10, what="the line")
    assert "Traceback" not in log()
