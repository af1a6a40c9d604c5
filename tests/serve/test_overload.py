"""Overload is the page's 429, whichever limit is met and whoever would have refused."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import requests

from tests.serve.server import Server
from tests.serve.test_http import PAGE_KEYS, post


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


def test_more_requests_than_the_ingress_takes_are_429(server: Server) -> None:
    """Two ingress replicas take 40 requests each; short inputs leave the token limits alone."""
    answers = burst(server, "slow", 120)

    assert_only_answers_and_refusals(answers)


def test_more_tokens_than_may_wait_are_429(server: Server) -> None:
    """A replica queues 512 tokens; few requests of many tokens meet that limit first."""
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
