import pytest

from serve_app.config.http import HttpConfig
from serve_app.errors import InvalidRequestError, OverloadedError
from serve_app.observability.metrics import Metrics
from serve_app.service.requests import Requests, RequestScope
from tests.support.fakes import counted

LIMIT, MEMORY = 2, 200_000


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def requests(metrics: Metrics) -> Requests:
    settings = HttpConfig(
        max_concurrent_requests=LIMIT,
        max_body_bytes=100_000,
        max_held_body_bytes=MEMORY,
        retry_after_s=5,
    )
    return Requests(settings, metrics=metrics)


def begin(requests: Requests) -> RequestScope:
    return requests.begin("an-id", method="POST", route="/here")


def admit(requests: Requests) -> RequestScope:
    """Begin a request, and take a slot for it."""
    scope = begin(requests)
    scope.admit()
    return scope


def test_requests_above_the_limit_are_rejected_until_a_slot_is_free(
    requests: Requests, metrics: Metrics
) -> None:
    with (
        admit(requests),
        admit(requests),
        begin(requests) as third,
        pytest.raises(OverloadedError) as error,
    ):
        third.admit()
    with admit(requests):
        pass

    assert error.value.retry_after_s == pytest.approx(5, rel=0.25)
    assert counted(metrics, "embeddings_overload_refusals_total", reason="ingress_requests") == 1
    assert requests.admission.units == requests.drain_rate.pending == 0


def test_a_request_frees_its_slot_and_memory_on_every_way_out(
    requests: Requests, metrics: Metrics
) -> None:
    with admit(requests) as answered:
        answered.reserve_bytes(50)
        answered.record.status = 200
    with admit(requests) as failed:
        failed.reserve_bytes(50)
        failed.fail(InvalidRequestError("a message", "a_code"))
    with pytest.raises(ZeroDivisionError), admit(requests):
        _ = 1 / 0
    with begin(requests):
        pass  # a client that disconnects before its request is admitted

    statuses = ("200", "400", "499")
    labels = {"model": "", "route": "/here", "key": ""}
    assert [
        counted(metrics, "embeddings_requests_total", status=status, **labels)
        for status in statuses
    ] == [1, 1, 2]
    assert requests.admission.units == requests.drain_rate.pending == requests.body_bytes == 0
    assert counted(metrics, "embeddings_requests_in_flight") == 0


def test_large_bodies_are_rejected_when_memory_is_full(
    requests: Requests, metrics: Metrics
) -> None:
    first, second, third = begin(requests), begin(requests), begin(requests)

    first.reserve_bytes(100_000)
    second.reserve_bytes(100_000)
    third.reserve_bytes(60_000)  # small bodies are always accepted
    with pytest.raises(OverloadedError):
        third.reserve_bytes(10_000)
    first.reserve_bytes(-70_000)
    third.reserve_bytes(10_000)

    assert requests.body_bytes == MEMORY
    assert counted(metrics, "embeddings_overload_refusals_total", reason="body_bytes") == 1


def test_without_a_limit_every_request_is_admitted(metrics: Metrics) -> None:
    requests = Requests(HttpConfig(max_concurrent_requests=None), metrics=metrics)

    for _ in range(10_000):
        admit(requests)

    assert requests.admission.units == 10_000


def test_an_unexpected_error_becomes_an_internal_error(requests: Requests) -> None:
    with begin(requests) as scope:
        error = scope.fail(ZeroDivisionError("a text"))

    assert (error.status, error.code) == (500, "internal_error")
    assert "a text" not in error.message
    assert (scope.record.status, scope.record.code) == (500, "internal_error")
