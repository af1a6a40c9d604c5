"""Clients that send requests continuously while a test disturbs the server, and a record of the answers."""

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

# The status of a request whose connection broke.
LOST = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one request.

    Attributes:
        status: the HTTP status, or LOST if the connection broke.
        seconds: the latency until the complete response.
        body: the response body, or the error if the connection broke; empty for a 200.
        at: the time of the response, by `time.monotonic`.
    """

    status: int
    seconds: float
    body: str = ""
    at: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Load:
    """The answers to a load. The record grows while the load runs.

    Attributes:
        answers: the answers in order of arrival.
    """

    answers: list[Answer] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        """The number of answers by status."""
        return Counter(answer.status for answer in self.answers)

    def __str__(self) -> str:
        """Summarize the load in one line, for the output of a test."""
        parts = []
        for status, count in sorted(self.statuses.items()):
            seconds = self.seconds(status)
            p50, p99 = seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]
            parts.append(
                f"{status or 'lost'}: {count}, p50 {p50:.3f} s, p99 {p99:.3f} s, max {seconds[-1]:.3f} s"
            )
        return "; ".join(parts)

    def seconds(self, status: int) -> list[float]:
        """Return the latencies of the answers with a status, in ascending order."""
        return sorted(answer.seconds for answer in self.answers if answer.status == status)

    @property
    def longest_gap_s(self) -> float:
        """The longest time between two consecutive 200 responses."""
        times = [answer.at for answer in self.answers if answer.status == 200]
        return max(later - earlier for earlier, later in pairwise(times))

    def bodies(self, status: int) -> set[str]:
        """Return the distinct bodies of the answers with a status."""
        return {answer.body for answer in self.answers if answer.status == status}


async def _send(client: httpx.AsyncClient, url: str, body: Any, load: Load) -> None:
    start = time.monotonic()
    try:
        answer = await client.post(f"{url}/v1/embeddings", json=body)
    except httpx.TransportError as error:
        load.answers.append(Answer(LOST, time.monotonic() - start, repr(error)))
        await asyncio.sleep(0.05)
        return
    text = "" if answer.status_code == 200 else answer.text
    load.answers.append(Answer(answer.status_code, time.monotonic() - start, text))


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=170, limits=httpx.Limits(max_connections=None))


async def send_at(url: str, body: Any, *, per_s: float, seconds: float) -> Load:
    """Send a body at a constant rate, regardless of the responses, and wait for all answers."""
    load = Load()
    async with _client() as client, asyncio.TaskGroup() as group:
        start = time.monotonic()
        for number in range(round(per_s * seconds)):
            await asyncio.sleep(max(start + number / per_s - time.monotonic(), 0))
            group.create_task(_send(client, url, body, load))
    return load


@contextmanager
def sending(url: str, body: Any, *, clients: int) -> Iterator[Load]:
    """Run clients that each send a body repeatedly until the block ends, then wait for the last answers."""
    load, stop = Load(), threading.Event()

    async def client_loop(client: httpx.AsyncClient) -> None:
        while not stop.is_set():
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
        stop.set()
        thread.join()
