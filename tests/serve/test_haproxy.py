"""What HAProxy does and says where no application of ours can: at the start, and when an ingress replica dies."""

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
    """Only where there is an HAProxy."""
    if server.mode == "default":
        pytest.skip("Ray's default proxy asks nobody how it should answer")


def test_a_server_that_is_starting_says_so(server: Server) -> None:
    """Not 404, after which nobody would come again, until one application is there; and never in plain text."""
    assert server.early
    assert server.early[0] == (503, "application/json")
    assert set(server.early) <= {(503, "application/json"), (404, "application/json")}


@pytest.mark.slow
def test_requests_in_an_ingress_replica_that_dies_are_answered_by_another(server: Server) -> None:
    """HAProxy sends again what was not answered; embedding can be repeated."""
    wait_for(lambda: replicas_up() == 2, timeout_s=60, what="two replicas that HAProxy sends to")
    with ThreadPoolExecutor(8) as clients:
        answers = [
            # Two fill a batch, so that all of them take more than a second.
            clients.submit(post, server.plumbing_url, {"input": "slow " * 30})
            for _ in range(8)
        ]
        wait_for(
            lambda: total(server.plumbing_url, "embeddings_requests_in_flight") >= 6,
            timeout_s=20,
            what="most of the requests",
        )
        os.kill(server.processes(INGRESS)[0], signal.SIGKILL)

        assert [answer.result().status_code for answer in answers] == [200] * 8
    wait_for(lambda: len(server.processes(INGRESS)) == 2, timeout_s=60, what="two replicas")


def replicas_up() -> int:
    """Return how many ingress replicas of the plumbing application HAProxy takes for well."""
    text = requests.get("http://127.0.0.1:8404/stats;csv", timeout=10).text
    servers = csv.DictReader(text.removeprefix("# ").splitlines())
    return sum(
        "plumbing" in server["pxname"]
        and server["svname"] not in {"BACKEND", "FRONTEND"}
        and server["bck"] == "0"  # the backup is Ray's own proxy
        and server["status"].startswith("UP")
        for server in servers
    )
