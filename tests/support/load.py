"""Clients that keep sending while something happens to the server, and what they were answered."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx

# What a client sees as an answer that never came.
LOST = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request.

    Attributes:
        status: LOST if the connection broke.
        seconds: from the request to the whole answer.
        body: of an answer that is no 200.
        at: when it came.
    """

    status: int
    seconds: float
    body: str = ""
    at: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Load:
    """What a load was answered; filled while it goes on.

    Attributes:
        answers: in the order in which they came.
    """

    answers: list[Answer] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        """How many there were of each."""
        return Counter(answer.status for answer in self.answers)

    def __str__(self) -> str:
        """Return it in a line, for whoever reads the output of a test."""
        parts = []
        for status, count in sorted(self.statuses.items()):
            seconds = self.seconds(status)
            middle, late = seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]
            parts.append(
                f"{status or 'lost'}: {count}, p50 {middle:.3f} s, p99 {late:.3f} s, most {seconds[-1]:.3f} s"
            )
        return "; ".join(parts)

    def seconds(self, status: int) -> list[float]:
        """Return how long the answers of one status took, shortest first."""
        return sorted(answer.seconds for answer in self.answers if answer.status == status)

    @property
    def longest_gap_s(self) -> float:
        """The longest time in which nobody was answered with 200."""
        times = [answer.at for answer in self.answers if answer.status == 200]
        return max(later - sooner for sooner, later in pairwise(times))

    def bodies(self, status: int) -> set[str]:
        """Return the bodies of the answers of one status."""
        return {answer.body for answer in self.answers if answer.status == status}


async def _send(client: httpx.AsyncClient, url: str, body: Any, load: Load) -> None:
    started = time.monotonic()
    try:
        answer = await client.post(f"{url}/v1/embeddings", json=body)
    except httpx.TransportError as error:
        load.answers.append(Answer(LOST, time.monotonic() - started, repr(error)))
        await asyncio.sleep(0.05)
        return
    text = "" if answer.status_code == 200 else answer.text
    load.answers.append(Answer(answer.status_code, time.monotonic() - started, text))


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=170, limits=httpx.Limits(max_connections=None))


async def send_at(url: str, body: Any, *, per_s: float, seconds: float) -> Load:
    """Send a body so many times a second for some seconds, whatever comes back, and wait for all answers."""
    load = Load()
    async with _client() as client, asyncio.TaskGroup() as group:
        begun = time.monotonic()
        for number in range(round(per_s * seconds)):
            await asyncio.sleep(max(begun + number / per_s - time.monotonic(), 0))
            group.create_task(_send(client, url, body, load))
    return load


@contextmanager
def sending(url: str, body: Any, *, clients: int) -> Iterator[Load]:
    """Have clients send a body, each again as soon as it is answered, until the block ends and all are answered."""
    load, ends = Load(), threading.Event()

    async def client_loop(client: httpx.AsyncClient) -> None:
        while not ends.is_set():
            await _send(client, url, body, load)

    async def run() -> None:
        async with _client() as client, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client_loop(client))

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield load
    finally:
        ends.set()
        thread.join()
