import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.dispatch.client import ClientSettings, ModelClient
from serve_app.dispatch.drain_rate import DrainRate
from serve_app.dispatch.queue import ReplicaRejectedError, TooManyCallsError
from serve_app.dispatch.refusals import Refusals
from serve_app.errors import OverloadedError, UnavailableError
from serve_app.messages import EmbedCall, EmbedResult, RunningReplica
from serve_app.observability.metrics import Metrics
from tests.support.fakes import (
    IDLE_REPLICA,
    MODEL,
    FakeCaller,
    counted,
    result_of,
    tokenized,
    vectors_of,
)

pytestmark = pytest.mark.anyio

# A budget of ten tokens, and at most 100 waiting tokens.
READY = RunningReplica(2, IDLE_REPLICA)


class Bench:
    """A client, the replicas that it sees, and the calls that it makes. The test ends the calls."""

    def __init__(self, *replicas: RunningReplica, **settings: Any) -> None:
        self.replicas: Sequence[RunningReplica] = replicas
        self.is_seen = asyncio.Event()
        self.metrics = Metrics()
        self.drain_rate = DrainRate(unknown_s=1)
        self.caller = FakeCaller(self._answer)
        self.ends: list[asyncio.Future[None]] = []
        self.answers_at_once = False
        defaults = ClientSettings(
            chunk_tokens=10, max_queued_tokens=100, replica_wait_timeout_s=30, bulk_share=0.25
        )
        self.client = ModelClient(
            self.caller,
            replace(defaults, **settings),
            replicas=self._look,
            drain_rate=self.drain_rate,
            refusals=Refusals(
                MODEL, drain_rate=self.drain_rate, retry_after_s=7, metrics=self.metrics
            ),
        )

    def _look(self) -> Sequence[RunningReplica]:
        self.is_seen.set()
        return self.replicas

    async def look(self) -> None:
        """Wait until the client has looked at the replicas again."""
        self.is_seen.clear()
        await self.is_seen.wait()

    @property
    def in_flight(self) -> list[asyncio.Future[None]]:
        """The calls in flight."""
        return [end for end in self.ends if not end.done()]

    async def end(self) -> None:
        """End the oldest call."""
        self.in_flight[0].set_result(None)
        await settle()

    async def _answer(self, call: EmbedCall) -> EmbedResult:
        end = asyncio.get_running_loop().create_future()
        self.ends.append(end)
        if not self.answers_at_once:
            await end
        return result_of(call)

    async def send(self, *lengths: int, is_bulk: bool = False) -> asyncio.Task[EmbedResult]:
        """Send a request of inputs with these numbers of tokens."""
        inputs = tokenized(*([7] * length for length in lengths))
        task = asyncio.create_task(self.client.embed(inputs, request_id="an-id", is_bulk=is_bulk))
        await settle()
        return task

    async def accepted(self, tokens: int) -> int:
        """Send requests of this many tokens until one is refused, and return how many were accepted."""
        for number in range(1000):
            task = await self.send(tokens)
            if task.done():
                assert isinstance(task.exception(), OverloadedError)
                return number
        raise AssertionError("no request was refused")


async def settle() -> None:
    """Run the event loop until no task is ready."""
    for _ in range(16):
        await asyncio.sleep(0)


async def test_a_small_request_is_one_call() -> None:
    bench = Bench(READY)
    bench.answers_at_once = True

    result = await bench.client.embed(tokenized([1, 2], [3]), request_id="an-id")

    (call,) = bench.caller.calls
    assert call.request_id == "an-id"
    assert np.array_equal(result.vectors, vectors_of(call))


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=12), min_size=1, max_size=30))
def test_a_split_request_returns_each_input_its_own_vector(inputs: list[list[int]]) -> None:
    async def embed() -> EmbedResult:
        bench = Bench(READY)
        bench.answers_at_once = True
        result = await bench.client.embed(tokenized(*inputs), request_id="an-id")
        assert max(call.tokens for call in bench.caller.calls) <= 10 or max(map(len, inputs)) > 10
        return result

    result = asyncio.run(embed())

    assert np.array_equal(result.vectors, vectors_of(tokenized(*inputs)))


# Back-pressure.


@pytest.mark.parametrize("max_ongoing_requests", [1, 2, 3, 8])
async def test_calls_in_flight_are_those_that_ray_serve_lets_the_replicas_hold(
    max_ongoing_requests: int,
) -> None:
    bench = Bench(replace(READY, max_ongoing_requests=max_ongoing_requests), READY)

    for _ in range(20):
        await bench.send(10)

    assert len(bench.caller.calls) == max_ongoing_requests + 2


async def test_calls_that_are_not_full_are_limited_to_two_for_each_replica() -> None:
    """More calls at once would only be smaller ones."""
    bench = Bench(replace(READY, max_ongoing_requests=8), replace(READY, max_ongoing_requests=8))

    for _ in range(8):
        await bench.send(1)
    few = len(bench.caller.calls)
    await bench.send(9)

    assert few == 4
    assert [call.tokens for call in bench.caller.calls[few:]] == [4]


async def test_fewer_ongoing_requests_bring_the_429_earlier() -> None:
    """Only what waits counts against `max_queued_tokens`: ten calls of ten tokens."""
    accepted = {}
    for limit in (1, 2, 4):
        bench = Bench(replace(READY, max_ongoing_requests=limit))
        accepted[limit] = await bench.accepted(10)
        assert len(bench.caller.calls) == limit

    assert accepted == {1: 11, 2: 12, 4: 14}


async def test_a_limit_that_is_lowered_takes_effect_as_calls_end() -> None:
    bench = Bench(replace(READY, max_ongoing_requests=4))
    for _ in range(8):
        await bench.send(10)
    bench.replicas = [replace(READY, max_ongoing_requests=1)]
    await bench.look()

    in_flight = []
    for _ in range(4):
        in_flight.append(len(bench.in_flight))
        await bench.end()

    assert in_flight == [4, 3, 2, 1]
    assert len(bench.in_flight) == 1


async def test_a_new_replica_gets_calls_at_once() -> None:
    """The calls in flight may take long, and no other request may arrive."""
    bench = Bench(READY)
    for _ in range(8):
        await bench.send(10)
    before = len(bench.in_flight)

    bench.replicas = [READY, READY]
    await bench.look()
    await settle()

    assert (before, len(bench.in_flight)) == (2, 4)


async def test_each_request_that_ray_serve_refuses_is_counted() -> None:
    bench = Bench(READY)
    for _ in range(2):
        await bench.send(10)
    refused = [await bench.send(2), await bench.send(2)]
    await bench.end()

    bench.ends[2].set_exception(TooManyCallsError())

    for task in refused:
        with pytest.raises(OverloadedError):
            await task
    assert len(bench.caller.calls) == 3
    assert counted(bench.metrics, "embeddings_overload_refusals_total", reason="serve_queue") == 2


async def test_a_refused_request_is_counted_and_told_when_to_retry() -> None:
    bench = Bench(READY)
    await bench.accepted(10)

    with pytest.raises(OverloadedError) as error:
        await bench.client.embed(tokenized([1] * 10), request_id="an-id")

    assert error.value.retry_after_s is not None
    assert counted(bench.metrics, "embeddings_overload_refusals_total", reason="queued_tokens") == 2


async def test_bulk_is_refused_first() -> None:
    bench = Bench(READY)
    for _ in range(2):
        await bench.send(10)
    await bench.send(*[10] * 7)

    bulk, interactive = await bench.send(10, is_bulk=True), await bench.send(10)

    assert isinstance(bulk.exception(), OverloadedError)
    assert not interactive.done()


async def test_a_single_request_above_the_limit_is_accepted() -> None:
    bench = Bench(READY)

    task = await bench.send(*[10] * 50)

    assert not task.done()


async def test_budget_and_limit_follow_the_settings_that_the_replicas_report() -> None:
    small = replace(IDLE_REPLICA, max_batch_tokens=4, max_queued_tokens=20)
    bench = Bench(RunningReplica(1, small), RunningReplica(1, IDLE_REPLICA))

    await bench.send(*[2] * 8)

    assert [call.tokens for call in bench.caller.calls] == [2, 2]
    assert bench.client._admission.limit == 120


async def test_ingress_replicas_share_calls_and_limit() -> None:
    shared = replace(IDLE_REPLICA, callers=("another",))
    bench = Bench(RunningReplica(4, shared))

    accepted = await bench.accepted(10)

    assert len(bench.caller.calls) == 4 // 2
    assert accepted == 4 // 2 + 100 // 2 // 10


async def test_an_ingress_replica_does_not_count_itself_twice() -> None:
    bench = Bench(READY)
    own = replace(IDLE_REPLICA, callers=(bench.client._queue.name,))
    bench.replicas = [RunningReplica(2, own)]

    await bench.send(*[5] * 8)

    assert len(bench.caller.calls) == 2


async def test_a_replica_that_cannot_embed_does_not_change_the_settings() -> None:
    bench = Bench(RunningReplica(2, None))

    assert await bench.accepted(10) == 2 + 10


# Readiness and absence.


@pytest.mark.parametrize(
    ("replicas", "is_ready"),
    [([], False), ([RunningReplica(2, None)], False), ([RunningReplica(2, None), READY], True)],
)
async def test_a_model_is_ready_if_one_replica_can_embed(
    replicas: list[RunningReplica],
    is_ready: bool,  # noqa: FBT001
) -> None:
    client = Bench(*replicas).client

    assert client.is_ready == is_ready
    assert len(client.states()) == is_ready


def test_a_model_that_scales_to_zero_is_ready_without_replicas() -> None:
    assert Bench(scales_to_zero=True).client.is_ready


async def test_requests_fail_if_no_replica_runs_for_too_long() -> None:
    bench = Bench(replica_wait_timeout_s=0.3)
    in_flight, waiting = await bench.send(1), await bench.send(*[10] * 3)

    for task in (in_flight, waiting):
        with pytest.raises(UnavailableError) as error:
            await task
        assert error.value.message == f"{MODEL} is unavailable: no replica is ready."
        assert error.value.retry_after_s == 7
    assert bench.drain_rate.pending == bench.client.queued_tokens == 0


async def test_a_call_waits_while_a_replica_runs() -> None:
    bench = Bench(RunningReplica(2, None), replica_wait_timeout_s=0.01)
    task = await bench.send(1)

    for _ in range(2):
        await bench.look()
    await settle()

    assert not task.done()
    bench.ends[0].set_result(None)
    assert len((await task).vectors) == 1


async def test_a_call_that_is_always_rejected_is_unavailable() -> None:
    bench = Bench(READY, replica_wait_timeout_s=-1)
    task = await bench.send(1)

    bench.ends[0].set_exception(ReplicaRejectedError())

    with pytest.raises(UnavailableError) as error:
        await task
    assert error.value.message == f"{MODEL} is unavailable: its replicas reject the call."


async def test_a_cancelled_request_leaves_nothing_behind() -> None:
    bench = Bench(READY)
    task = await bench.send(*[5] * 8)

    task.cancel()
    await asyncio.wait([task])
    await bench.send(1)

    assert bench.client.queued_tokens == 0
    assert bench.drain_rate.pending == 1
