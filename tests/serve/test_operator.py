"""Metrics and logs: every scrape covers all replicas, each request logs one line, and no input text leaks."""

import uuid

import pytest

from tests.support.http import post
from tests.support.metrics import samples, total
from tests.support.server import Server, wait_for


@pytest.mark.both_modes
def test_every_scrape_covers_both_ingress_replicas(server: Server) -> None:
    def ingress_replicas() -> set[str]:
        in_flight = samples(server.plumbing_url, "embeddings_requests_in_flight")
        return {sample.labels["replica"] for sample in in_flight}

    wait_for(
        lambda: len(ingress_replicas()) == 2, timeout_s=30, what="a scrape covers two replicas"
    )

    scrapes = [ingress_replicas() for _ in range(10)]

    assert all(len(scrape) == 2 for scrape in scrapes)
    assert len(set.union(*scrapes)) == 2


def test_each_input_is_counted_once(server: Server) -> None:
    def inputs() -> float:
        return total(server.plumbing_url, "embeddings_inputs_total")

    before = inputs()
    for _ in range(5):
        post(server.plumbing_url, {"input": ["fine", "fine"]})

    # Inputs are counted after the response is sent.
    wait_for(lambda: inputs() >= before + 10, timeout_s=10, what="all inputs are counted")
    assert inputs() == before + 10


@pytest.mark.both_modes
def test_a_request_logs_one_line_with_its_id(server: Server) -> None:
    request_id = f"id-{uuid.uuid4().hex}"

    post(server.url, {"input": ["a", "b"]}, headers={"x-request-id": request_id})

    wait_for(
        lambda: request_id in server.read_logs("replica_*"),
        timeout_s=10,
        what="the request is logged",
    )
    # Ray's default proxy logs the request too, but in its own file.
    log = server.read_logs("replica_embeddings_ingress*")
    lines = [line for line in log.splitlines() if request_id in line]
    assert len(lines) == 1
    assert "POST /v1/embeddings 200" in lines[0]
    assert "inputs=2" in lines[0]


@pytest.mark.both_modes
def test_no_input_reaches_a_log_or_an_error(server: Server) -> None:
    secret = f"confidential{uuid.uuid4().hex}"
    bodies = [
        {"input": secret},
        {"input": [secret, 1]},
        {"input": f"{secret} " * 300},
        {"input": "a", "model": secret},
        {"input": "a", "prompt_name": secret},
        {"input": "a", "dimensions": secret},
        {"input": f"poison {secret}"},
    ]

    answers = [post(server.plumbing_url, body) for body in bodies]

    assert [answer.status_code for answer in answers] == [200, 400, 422, 404, 400, 400, 424]
    assert all(secret not in answer.text for answer in answers[1:])
    assert secret not in server.read_logs()


@pytest.mark.both_modes
def test_clients_cannot_set_ray_serve_s_timeout(server: Server) -> None:
    """Ray Serve would end the request with an error in its own format."""
    answer = post(
        server.plumbing_url, {"input": "slow"}, headers={"x-request-timeout-seconds": "0.05"}
    )

    assert answer.status_code == 200
