"""Replicas follow the work: up within the delays, down again, to none, and back with the first request."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.applications import ELASTIC
from tests.support.http import post
from tests.support.metrics import replicas
from tests.support.server import Server, wait_for

pytestmark = pytest.mark.slow

# A batch of one such text takes its replica 0.3 s, and no second one fits beside it.
SLOW = "slow " * 40
MOST = 3


class Load:
    """Clients that each send a text, and the next one as long after it as it should take: so much work a second.

    Args:
        server: where to.
        busy: how many replicas they keep busy, in all.
    """

    def __init__(self, server: Server, busy: float) -> None:
        self._server = server
        self._pause_s = 0.3 / busy
        self._ends = threading.Event()
        self._clients = ThreadPoolExecutor(40)
        self._starter = threading.Thread(target=self._start)
        self.statuses: Counter[int] = Counter()
        self.replicas: list[int] = []

    def _start(self) -> None:
        while not self._ends.wait(self._pause_s):
            self._clients.submit(self._send)

    def _send(self) -> None:
        answer = post(self._server.plumbing_url, {"input": SLOW, "model": ELASTIC})
        self.statuses[answer.status_code] += 1

    def hold(self, seconds: float) -> None:
        """Send for so long, and note how many replicas there are."""
        self._starter.start()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.replicas.append(len(replicas(self._server, ELASTIC)))
            self._ends.wait(0.25)
        self._ends.set()
        self._starter.join()
        self._clients.shutdown()


def test_replicas_follow_the_work(server: Server) -> None:
    """A load of half a replica's work, of four times that, and of half a replica's again; then none."""
    first = post(server.plumbing_url, {"input": "fine", "model": ELASTIC})
    assert first.status_code == 200  # there was no replica, and it waited for one

    little, much, again = Load(server, 0.5), Load(server, 2.0), Load(server, 0.5)
    little.hold(8)
    much.hold(25)
    again.hold(15)

    assert set(little.statuses + much.statuses + again.statuses) == {200}
    assert set(little.replicas) == {1}
    assert much.replicas == sorted(much.replicas)  # none goes while there is work for all
    assert much.replicas[-1] == MOST
    assert again.replicas == sorted(again.replicas, reverse=True)
    assert again.replicas[-1] == 1
    wait_for(lambda: replicas(server, ELASTIC) == set(), timeout_s=30, what="no replica")


def test_one_request_of_many_inputs_is_as_much_work_as_many_requests(server: Server) -> None:
    """It is one call to Ray Serve at a time, and most of it waits in the ingress."""
    with ThreadPoolExecutor(1) as client:
        sent = client.submit(post, server.plumbing_url, {"input": [SLOW] * 120, "model": ELASTIC})
        wait_for(
            lambda: len(replicas(server, ELASTIC)) == MOST, timeout_s=100, what="three replicas"
        )
        was_at_it = not sent.done()

    assert sent.result().status_code == 200
    assert was_at_it
