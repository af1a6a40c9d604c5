"""Autoscaling follows the load: up and down within the delays, down to zero, and up with the first request."""

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

# A replica needs 0.3 s for this text, which fills a batch by itself.
SLOW = "slow " * 40
MOST = 3


class Load:
    """Sends a text at a constant rate, without waiting for the answers.

    Args:
        server: the server to send to.
        busy: the number of replicas that the load keeps busy.
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

    def hold(self, seconds: float, *, until: int | None = None) -> None:
        """Send for some seconds, or until there is this number of replicas, and record their number over time."""
        self._starter.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.replicas[-1:] != [until]:
            self.replicas.append(len(replicas(self._server, ELASTIC)))
            self._ends.wait(0.25)
        self._ends.set()
        self._starter.join()
        self._clients.shutdown()


def test_replicas_follow_the_load(server: Server) -> None:
    first = post(server.plumbing_url, {"input": "fine", "model": ELASTIC})
    assert first.status_code == 200  # the request waited for the first replica to start
    wait_for(lambda: len(replicas(server, ELASTIC)) == 1, timeout_s=10, what="its state arrives")

    low, high, low_again = Load(server, 0.5), Load(server, 2.0), Load(server, 0.5)
    low.hold(8)
    high.hold(90, until=MOST)
    low_again.hold(60, until=1)

    assert set(low.statuses + high.statuses + low_again.statuses) == {200}
    assert set(low.replicas) == {1}
    assert high.replicas == sorted(high.replicas)  # no replica stops under high load
    assert high.replicas[-1] == MOST
    assert low_again.replicas == sorted(low_again.replicas, reverse=True)
    assert low_again.replicas[-1] == 1
    wait_for(lambda: replicas(server, ELASTIC) == set(), timeout_s=30, what="all replicas stopped")


def test_one_large_request_scales_up_like_many_small_ones(server: Server) -> None:
    """Ray Serve sees one call at a time of it, and most of its work waits in the ingress."""
    with ThreadPoolExecutor(1) as client:
        sent = client.submit(post, server.plumbing_url, {"input": [SLOW] * 120, "model": ELASTIC})
        wait_for(
            lambda: len(replicas(server, ELASTIC)) == MOST, timeout_s=100, what="three replicas run"
        )
        was_in_flight = not sent.done()

    assert sent.result().status_code == 200
    assert was_in_flight
