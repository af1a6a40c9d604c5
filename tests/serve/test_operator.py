"""What the operator reads: metrics of all replicas at every scrape, one line a request, and nothing that leaks."""

import uuid

import pytest

from tests.support.http import post
from tests.support.metrics import samples, total
from tests.support.server import Server, wait_for


@pytest.mark.both_modes
def test_every_scrape_has_the_series_of_both_ingress_replicas(server: Server) -> None:
    """Whichever replica answers, both are in it."""

    def ingress_replicas() -> set[str]:
        found = samples(server.plumbing_url, "embeddings_requests_in_flight")
        return {sample.labels["replica"] for sample in found}

    wait_for(lambda: len(ingress_replicas()) == 2, timeout_s=30, what="two replicas in a scrape")

    scrapes = [ingress_replicas() for _ in range(10)]

    assert all(len(found) == 2 for found in scrapes)
    assert len(set.union(*scrapes)) == 2


def test_requests_are_counted_once(server: Server) -> None:
    """The sum over the replicas grows by what was sent."""

    def inputs() -> float:
        return total(server.plumbing_url, "embeddings_inputs_total")

    before = inputs()
    for _ in range(5):
        post(server.plumbing_url, {"input": ["fine", "fine"]})

    # Counted after the answer was sent.
    wait_for(lambda: inputs() >= before + 10, timeout_s=10, what="all inputs counted")
    assert inputs() == before + 10


@pytest.mark.both_modes
def test_a_request_is_one_line_with_its_id(server: Server) -> None:
    """The access line carries the client's request id, the route, the status and the counts."""
    request_id = f"id-{uuid.uuid4().hex}"

    post(server.url, {"input": ["a", "b"]}, headers={"x-request-id": request_id})

    wait_for(lambda: request_id in server.read_logs("replica_*"), timeout_s=10, what="the line")
    # Ray's default proxy writes a line of its own, into a file of its own.
    log = server.read_logs("replica_embeddings_ingress*")
    lines = [line for line in log.splitlines() if request_id in line]
    assert len(lines) == 1
    assert "POST /v1/embeddings 200" in lines[0]
    assert "inputs=2" in lines[0]


@pytest.mark.both_modes
def test_no_input_reaches_a_log_or_an_error(server: Server) -> None:
    """Neither an answered nor a refused nor a failed input is written anywhere."""
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
def test_clients_cannot_steer_ray_serve(server: Server) -> None:
    """A client's own timeout for Ray Serve would end its request in Serve's words."""
    answer = post(
        server.plumbing_url, {"input": "slow"}, headers={"x-request-timeout-seconds": "0.05"}
    )

    assert answer.status_code == 200
