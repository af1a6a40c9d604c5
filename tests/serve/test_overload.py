"""Overload is the page's 429, whichever limit is met and whoever would have refused."""

import asyncio
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
import requests

from tests.support.http import PAGE_KEYS, post
from tests.support.load import send_at
from tests.support.server import Server


def burst(server: Server, text: str, clients: int) -> list[requests.Response]:
    """Send a text from many clients at once."""
    with ThreadPoolExecutor(clients) as senders:
        return list(
            senders.map(lambda _: post(server.plumbing_url, {"input": text}), range(clients))
        )


def assert_only_answers_and_refusals(answers: list[requests.Response]) -> None:
    """Assert that there is nothing but 200 and well-made 429, and some of both."""
    assert set(Counter(answer.status_code for answer in answers)) == {200, 429}
    for refusal in (answer for answer in answers if answer.status_code == 429):
        assert set(refusal.json()) == PAGE_KEYS
        assert refusal.json()["error"] == "Model is overloaded"
        assert refusal.json()["error_type"] == "overloaded"
        assert 1 <= int(refusal.headers["retry-after"]) <= 60


@pytest.mark.both_modes
def test_more_requests_than_the_ingress_takes_are_429(server: Server) -> None:
    """Two ingress replicas take 40 requests each; short inputs leave the token limits alone."""
    answers = burst(server, "slow", 120)

    assert_only_answers_and_refusals(answers)


def test_more_tokens_than_may_wait_are_429(server: Server) -> None:
    """512 tokens may wait; few requests of many tokens meet that limit first."""
    answers = burst(server, "slow " * 60, 30)

    assert_only_answers_and_refusals(answers)


def test_a_refusal_comes_in_openais_envelope_to_its_sdks(server: Server) -> None:
    """A retrying SDK needs the status, the header and the code."""
    with ThreadPoolExecutor(120) as senders:
        answers = list(
            senders.map(
                lambda _: post(
                    server.plumbing_url, {"input": "slow"}, headers={"x-stainless-lang": "python"}
                ),
                range(120),
            )
        )

    refusals = [answer for answer in answers if answer.status_code == 429]
    assert refusals
    assert {answer.json()["error"]["code"] for answer in refusals} == {"overloaded"}
    assert {answer.json()["error"]["type"] for answer in refusals} == {"rate_limit_error"}


def test_the_server_answers_normally_after_an_overload(server: Server) -> None:
    """Nothing is left behind by refusals."""
    burst(server, "slow", 120)

    answer = post(server.plumbing_url, {"input": "fine"})

    assert answer.status_code == 200


@pytest.mark.both_modes
def test_a_burst_that_fits_is_queued(server: Server) -> None:
    """Two hundred at once, on a server that has nothing to do."""
    with ThreadPoolExecutor(200) as senders:
        answers = [senders.submit(post, server.url, {"input": "a short text"}) for _ in range(200)]

        assert Counter(answer.result().status_code for answer in answers) == {200: 200}


@pytest.mark.slow
@pytest.mark.both_modes
@pytest.mark.anyio
async def test_ten_times_what_it_can_do_is_answered_in_time_or_refused(server: Server) -> None:
    """For a minute: the model does three such texts a second, and four seconds of work may wait in all."""
    body = {"input": "slow " * 40}  # 42 tokens, a batch of 0.3 s
    queued_s = 512 / 42 * 0.3

    begun = await send_at(server.plumbing_url, body, per_s=33, seconds=10)
    before = server.memory()
    load = await send_at(server.plumbing_url, body, per_s=33, seconds=50)
    grown = {pid: (used - before.get(pid, used)) / 1e6 for pid, used in server.memory().items()}

    print(
        f"{server.mode}: {load}; memory of a process grew by at most {max(grown.values()):.1f} MB"
    )
    assert set(begun.statuses + load.statuses) == {200, 429}
    assert load.seconds(200)[-1] < queued_s + 3
    assert load.seconds(429)[len(load.seconds(429)) * 9 // 10] < 0.1
    for refusal in load.bodies(429):
        assert set(json.loads(refusal)) == PAGE_KEYS
    assert max(grown.values()) < 30


@dataclass
class Tries:
    """What was answered to one call of an SDK, try by try: the status, and when."""

    statuses: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    async def note(self, answer: Any) -> None:
        """Be told of an answer."""
        self.statuses.append(answer.status_code)
        self.times.append(time.monotonic())


@pytest.mark.slow
@pytest.mark.anyio
async def test_an_sdk_that_is_refused_waits_as_it_is_told_and_gets_through(server: Server) -> None:
    """Three times as many as are taken at once come together."""

    async def call() -> Tries:
        tries = Tries()
        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [tries.note]})
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
        pauses = [
            later - sooner for sooner, later in zip(tries.times, tries.times[1:], strict=False)
        ]
        assert (
            min(pauses) > 0.9
        )  # of the second that Retry-After says; an SDK's own first pause is half of one
    assert {tries.statuses[-1] for tries in calls} == {200}


@pytest.mark.slow
@pytest.mark.anyio
async def test_clients_that_obey_get_through_at_twice_what_is_taken(server: Server) -> None:
    """OpenAI's SDK with its own two retries: 160 clients, each with one call after the other, where 80 find room."""
    outcomes: Counter[str] = Counter()
    begun = time.monotonic()

    async def call_often() -> None:
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
            group.create_task(call_often())

    print(f"{server.mode}: {outcomes} in {time.monotonic() - begun:.1f} s")
    assert outcomes.total() == 800
    assert outcomes["answered"] > 800 * 0.8
