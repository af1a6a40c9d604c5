"""Back-pressure between the ingress and a model's replicas is Ray Serve's own, and a 429 tells the client."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import requests

from tests.support.applications import BOUNDED, CROWDED, STRICT, WIDE
from tests.support.http import FLAT_ERROR_KEYS, post
from tests.support.metrics import samples, total
from tests.support.server import Server, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.both_modes]

# A replica needs 0.3 s for this text, which fills a batch by itself.
SLOW = "slow " * 60


@dataclass
class Crowd:
    """The outcome of many requests at once.

    Attributes:
        answers: all responses.
        held: the largest number of calls in the replica at the same time.
        looks: the number of times that the replica's state was in the metrics.
    """

    answers: list[requests.Response] = field(default_factory=list)
    held: int = 0
    looks: int = 0

    def count(self, status: int) -> int:
        """Return the number of responses with this status."""
        return len([answer for answer in self.answers if answer.status_code == status])


def start(server: Server, model: str) -> None:
    """Start the model's replica, which the first request does."""
    assert post(server.plumbing_url, {"input": "fine", "model": model}).status_code == 200
    wait_for(lambda: bool(states(server, model)), timeout_s=30, what="the replica has a state")


def states(server: Server, model: str) -> list[float]:
    """Return the number of calls in each of the model's replicas."""
    name = "embeddings_replica_ongoing_calls"
    return [sample.value for sample in samples(server.plumbing_url, name, model=model)]


def crowd(server: Server, model: str, text: str, clients: int) -> Crowd:
    """Send a text from many clients at once, and look at the replica until all are answered."""
    seen = Crowd()
    with ThreadPoolExecutor(clients) as senders:
        body = {"input": text, "model": model}
        sent = [senders.submit(post, server.plumbing_url, body) for _ in range(clients)]
        while not all(map(Future.done, sent)):
            ongoing = states(server, model)
            seen.looks += bool(ongoing)
            seen.held = max([seen.held, *map(int, ongoing)])
            time.sleep(0.2)
        seen.answers = [answer.result() for answer in sent]
    return seen


def test_fewer_ongoing_requests_mean_less_in_flight_and_an_earlier_429(server: Server) -> None:
    """The models differ only in `max_ongoing_requests`. Each of 60 texts fills a call."""
    outcome = {}
    for model in (STRICT, WIDE):
        start(server, model)
        outcome[model] = crowd(server, model, SLOW, 60)

    strict, wide = outcome[STRICT], outcome[WIDE]
    print(f"{server.mode}: accepted {strict.count(200)} and {wide.count(200)}, held {wide.held}")
    assert strict.count(200) + strict.count(429) == wide.count(200) + wide.count(429) == 60
    assert strict.count(200) < wide.count(200) < 60
    assert strict.held == 1
    assert 2 <= wide.held <= 8
    assert strict.looks > 5  # a full replica reports its state too


def test_a_server_whose_replicas_are_full_is_ready(server: Server) -> None:
    start(server, STRICT)
    with ThreadPoolExecutor(8) as senders:
        body = {"input": SLOW, "model": STRICT}
        sent = [senders.submit(post, server.plumbing_url, body) for _ in range(8)]
        wait_for(
            lambda: total(server.plumbing_url, "embeddings_queued_tokens", model=STRICT) > 0,
            timeout_s=10,
            what="requests wait",
        )
        ready = requests.get(f"{server.plumbing_url}/ready", timeout=60)

    assert ready.status_code == 200
    assert {answer.result().status_code for answer in sent} == {200}


def test_a_refusal_of_ray_serve_is_the_same_429(server: Server) -> None:
    """Another handle keeps the replica full, so that Ray Serve queues one call of each ingress replica."""
    start(server, BOUNDED)
    before = refusals(server, "serve_queue")

    with ThreadPoolExecutor(1) as other:
        occupied = other.submit(server.run_script, "occupy.py", "plumbing", BOUNDED, "15")
        wait_for(
            lambda: max(states(server, BOUNDED), default=0) > 8 or occupied.done(),
            timeout_s=60,
            what="the replica is full",
        )
        outcome = crowd(server, BOUNDED, "slow", 40)
        occupied.result()

    assert outcome.count(200) + outcome.count(429) == 40
    assert refusals(server, "serve_queue") - before == outcome.count(429) > 0
    refused = [answer for answer in outcome.answers if answer.status_code == 429]
    for answer in refused:
        assert answer.json().keys() == FLAT_ERROR_KEYS
        assert answer.json()["code"] == "overloaded"
        assert 1 <= int(answer.headers["retry-after"]) <= 60


def refusals(server: Server, reason: str) -> float:
    """Return the number of rejected requests with this reason."""
    return total(server.plumbing_url, "embeddings_overload_refusals_total", reason=reason)


def test_replicas_are_added_while_requests_are_refused_and_then_none_is(server: Server) -> None:
    """The load needs two replicas. One replica's queue is full after four seconds."""
    start(server, CROWDED)
    statuses: list[tuple[float, int]] = []

    def send() -> None:
        answer = post(server.plumbing_url, {"input": SLOW, "model": CROWDED})
        statuses.append((time.monotonic(), answer.status_code))

    with ThreadPoolExecutor(60) as senders:
        send_steadily(lambda: senders.submit(send), per_s=6.0, until=lambda: is_calm(statuses))

    assert {status for _, status in statuses} == {200, 429}
    assert len(states(server, CROWDED)) > 1


def send_steadily(send: Callable[[], object], *, per_s: float, until: Callable[[], bool]) -> None:
    """Call `send` at a constant rate until the condition is true, for at most 100 seconds."""
    begin = time.monotonic()
    number = 0
    while not until():
        assert time.monotonic() < begin + 100, "requests are still refused"
        send()
        number += 1
        time.sleep(max(begin + number / per_s - time.monotonic(), 0))


def is_calm(statuses: list[tuple[float, int]]) -> bool:
    """Return whether requests were refused, and none in the last eight seconds."""
    refused = [at for at, status in statuses if status == 429]
    return bool(refused) and time.monotonic() - refused[-1] > 8
