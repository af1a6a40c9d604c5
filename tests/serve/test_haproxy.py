"""HAProxy's behavior when no ingress replica can answer: at the start, and when an ingress replica dies."""

import csv
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support.http import post
from tests.support.metrics import total
from tests.support.server import Server, wait_for

INGRESS = "ray::ServeReplica:plumbing:ingress"


@pytest.fixture(autouse=True)
def through_haproxy(server: Server) -> None:
    """Skip these tests if the server does not use HAProxy."""
    if server.mode == "default":
        pytest.skip("this test needs HAProxy")


def test_a_starting_server_answers_503_in_json(server: Server) -> None:
    """The first answer must not be a 404, because clients do not retry one."""
    assert server.early
    assert server.early[0] == (503, "application/json")
    assert set(server.early) <= {(503, "application/json"), (404, "application/json")}


@pytest.mark.slow
def test_haproxy_resends_the_requests_of_a_dead_ingress(server: Server) -> None:
    """Embedding is idempotent, so HAProxy may send a request again."""
    wait_for(lambda: replicas_up() == 2, timeout_s=60, what="two replicas are up in HAProxy")
    with ThreadPoolExecutor(8) as clients:
        answers = [
            # Two requests fill a batch, so all of them together take more than a second.
            clients.submit(post, server.plumbing_url, {"input": "slow " * 30})
            for _ in range(8)
        ]
        wait_for(
            lambda: total(server.plumbing_url, "embeddings_requests_in_flight") >= 6,
            timeout_s=20,
            what="most requests are in flight",
        )
        os.kill(server.processes(INGRESS)[0], signal.SIGKILL)

        assert [answer.result().status_code for answer in answers] == [200] * 8
    wait_for(lambda: len(server.processes(INGRESS)) == 2, timeout_s=60, what="two replicas run")


def replicas_up() -> int:
    """Return the number of the plumbing application's ingress replicas that HAProxy considers up."""
    text = requests.get("http://127.0.0.1:8404/stats;csv", timeout=10).text
    servers = csv.DictReader(text.removeprefix("# ").splitlines())
    up = [
        server
        for server in servers
        if "plumbing" in server["pxname"]
        and server["svname"] not in {"BACKEND", "FRONTEND"}
        and server["bck"] == "0"  # the backup server is Ray's own proxy
        and server["status"].startswith("UP")
    ]
    return len(up)
