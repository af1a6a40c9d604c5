"""Overload is answered with 429 and a flat error, whichever limit is reached."""

import asyncio
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import openai
import pytest
import requests

from tests.support.http import FLAT_ERROR_KEYS, post
from tests.support.load import send_at
from tests.support.server import Server


def burst(server: Server, text: str, clients: int, **options: Any) -> list[requests.Response]:
    """Send a text from `clients` clients at once."""
    with ThreadPoolExecutor(clients) as senders:
        answers = [
            senders.submit(post, server.plumbing_url, {"input": text}, **options)
            for _ in range(clients)
        ]
        return [answer.result() for answer in answers]


def assert_only_answers_and_refusals(answers: list[requests.Response]) -> None:
    """Assert that all answers are 200 or a valid 429, and that there are some of both."""
    assert set(Counter(answer.status_code for answer in answers)) == {200, 429}
    for refusal in (answer for answer in answers if answer.status_code == 429):
        assert set(refusal.json()) == FLAT_ERROR_KEYS
        assert refusal.json()["error"] == "Model is overloaded"
        assert refusal.json()["error_type"] == "overloaded"
        assert 1 <= int(refusal.headers["retry-after"]) <= 60


@pytest.mark.both_modes
def test_too_many_concurrent_requests_are_429(server: Server) -> None:
    """Two ingress replicas accept 40 requests each; short inputs stay below the token limits."""
    # The model computes 40 of these texts per second: all must arrive within four seconds to overload it.
    answers = burst(server, "slow a a", 240)

    assert_only_answers_and_refusals(answers)


def test_too_many_queued_tokens_are_429(server: Server) -> None:
    """At most 512 tokens may wait, a limit that a few long requests reach first."""
    answers = burst(server, "slow " * 60, 30)

    assert_only_answers_and_refusals(answers)


def test_openai_sdks_get_the_429_in_their_own_envelope(server: Server) -> None:
    answers = burst(server, "slow " * 60, 60, headers={"x-stainless-lang": "python"})

    refusals = [answer for answer in answers if answer.status_code == 429]
    assert refusals
    assert {answer.json()["error"]["code"] for answer in refusals} == {"overloaded"}
    assert {answer.json()["error"]["type"] for answer in refusals} == {"rate_limit_error"}


def test_the_server_recovers_after_an_overload(server: Server) -> None:
    burst(server, "slow", 120)

    answer = post(server.plumbing_url, {"input": "fine"})

    assert answer.status_code == 200


@pytest.mark.both_modes
def test_a_burst_within_the_limits_is_queued(server: Server) -> None:
    with ThreadPoolExecutor(200) as senders:
        answers = [senders.submit(post, server.url, {"input": "a short text"}) for _ in range(200)]

        assert Counter(answer.result().status_code for answer in answers) == {200: 200}


@pytest.mark.slow
@pytest.mark.both_modes
@pytest.mark.anyio
async def test_tenfold_overload_is_answered_in_time_or_refused(server: Server) -> None:
    """The model computes three such texts per second, and four seconds of work may wait."""
    body = {"input": "slow " * 40}  # 42 tokens, a batch of 0.3 s
    queued_s = 512 / 42 * 0.3

    warm_up = await send_at(server.plumbing_url, body, per_s=33, seconds=10)
    before = server.memory()
    load = await send_at(server.plumbing_url, body, per_s=33, seconds=50)
    grown = {pid: (used - before.get(pid, used)) / 1e6 for pid, used in server.memory().items()}

    print(
        f"{server.mode}: {load}; the memory of a process grew by at most {max(grown.values()):.1f} MB"
    )
    assert set(warm_up.statuses + load.statuses) == {200, 429}
    assert load.seconds(200)[-1] < queued_s + 3
    assert load.seconds(429)[len(load.seconds(429)) * 9 // 10] < 0.1
    for refusal in load.bodies(429):
        assert set(json.loads(refusal)) == FLAT_ERROR_KEYS
    assert max(grown.values()) < 30


@dataclass
class Tries:
    """The status and the time of each try of one SDK call."""

    statuses: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    async def record(self, answer: Any) -> None:
        """Record a response; an event hook for httpx."""
        self.statuses.append(answer.status_code)
        self.times.append(time.monotonic())


@pytest.mark.slow
@pytest.mark.both_modes
@pytest.mark.anyio
async def test_a_refused_sdk_honors_retry_after_and_succeeds(server: Server) -> None:
    async def call() -> Tries:
        tries = Tries()
        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [tries.record]})
        async with openai.AsyncOpenAI(
            base_url=f"{server.plumbing_url}/v1", api_key="sk-any", max_retries=8, http_client=http
        ) as client:
            await client.embeddings.create(model="obedient", input="slow")
        return tries

    calls = await asyncio.gather(*(call() for _ in range(120)))

    refused = [tries for tries in calls if len(tries.statuses) > 1]
    assert refused
    for tries in refused:
        assert set(tries.statuses[:-1]) == {429}
        pauses = [later - earlier for earlier, later in pairwise(tries.times)]
        # Retry-After asks for one second. Without it, an SDK first waits half a second.
        assert min(pauses) > 0.9
    assert {tries.statuses[-1] for tries in calls} == {200}


@pytest.mark.slow
@pytest.mark.both_modes
@pytest.mark.anyio
async def test_most_sdk_calls_succeed_at_twice_the_capacity(server: Server) -> None:
    """160 clients use the SDK's default of two retries, and the server accepts 80 requests."""
    outcomes: Counter[str] = Counter()
    start = time.monotonic()

    async def call_repeatedly() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{server.plumbing_url}/v1", api_key="sk-any"
        ) as client:
            for _ in range(5):
                try:
                    await client.embeddings.create(model="obedient", input="slow")
                except openai.RateLimitError:
                    outcomes["refused three times"] += 1
                else:
                    outcomes["answered"] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(160):
            group.create_task(call_repeatedly())

    print(f"{server.mode}: {outcomes} in {time.monotonic() - start:.1f} s")
    assert outcomes.total() == 800
    assert outcomes["answered"] > 800 * 0.8
