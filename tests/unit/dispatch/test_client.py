import asyncio
import gc
import random
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from itertools import accumulate, count
from operator import sub
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app.dispatch.client import ClientSettings, ModelClient
from serve_app.errors import InferenceError, OverloadedError, UnavailableError
from serve_app.messages import (
    EmbedChunk,
    EmbedResult,
    ReplicaRejected,
    ReplicaState,
    TokenizedInputs,
)
from serve_app.observability.metrics import Metrics
from tests.support.fakes import (
    IDLE_REPLICA,
    LATE,
    Answer,
    FakeHandle,
    State,
    counted,
    result_of,
    tokenized,
    vectors_of,
)

pytestmark = pytest.mark.anyio

REPLACED = UnavailableError("The model's replica is being replaced.", "model_unavailable")


def client_of(
    handle: FakeHandle, *, metrics: Metrics | None = None, **settings: Any
) -> ModelClient:
    """Make a client with small limits."""
    defaults = {
        "model": "m",
        "chunk_tokens": 10,
        "max_queued_tokens": 100,
        "replica_wait_timeout_s": 60,
        "retry_after_s": 7,
        "bulk_share": 0.25,
        "retry_pause_s": 0,
    }
    return ModelClient(
        handle, ClientSettings(**{**defaults, **settings}), metrics=metrics or Metrics()
    )


async def answer(chunk: EmbedChunk) -> EmbedResult:
    """Answer a chunk without failures."""
    return result_of(chunk)


async def never(chunk: EmbedChunk) -> EmbedResult:
    """Never answer."""
    await asyncio.Event().wait()
    return result_of(chunk)


def raising(*errors: Exception) -> Answer:
    """Raise the errors one after the other, then answer."""
    remaining = list(errors)

    async def answer(chunk: EmbedChunk) -> EmbedResult:
        if remaining:
            raise remaining.pop(0)
        return result_of(chunk)

    return answer


# Splitting and joining.


async def test_a_small_request_is_sent_as_one_call() -> None:
    handle = FakeHandle(answer)
    inputs = tokenized([1, 2], [3], prompt_length=1)

    result = await client_of(handle).embed(inputs, request_id="an-id")

    assert [chunk.inputs for chunk in handle.chunks] == [inputs]
    assert [chunk.request_id for chunk in handle.chunks] == ["an-id"]
    assert np.array_equal(result.vectors, vectors_of(inputs))


@given(st.lists(st.lists(st.integers(0, 99), max_size=12), min_size=1, max_size=40))
def test_a_split_request_returns_each_input_its_own_vector(inputs: list[list[int]]) -> None:
    numbers = count(1)

    async def answer_late(chunk: EmbedChunk) -> EmbedResult:
        for _ in range(7 - next(numbers) % 7):
            await asyncio.sleep(0)
        return result_of(chunk)

    handle = FakeHandle(answer_late)
    packed = tokenized(*inputs, prompt_length=2)

    result = asyncio.run(
        client_of(handle, max_queued_tokens=1000).embed(packed, request_id="an-id")
    )

    assert np.array_equal(result.vectors, vectors_of(packed))
    assert all(chunk.inputs.tokens <= 5 or len(chunk.inputs) == 1 for chunk in handle.chunks)
    assert {chunk.inputs.prompt_length for chunk in handle.chunks} == {2}


async def test_a_large_request_has_at_most_two_calls_in_flight() -> None:
    in_flight: set[int] = set()
    counts = []

    async def watch(chunk: EmbedChunk) -> EmbedResult:
        in_flight.add(id(chunk))
        counts.append(len(in_flight))
        await asyncio.sleep(0)
        in_flight.discard(id(chunk))
        return result_of(chunk)

    inputs = tokenized(*([i] * 10 for i in range(9)))

    await client_of(FakeHandle(watch)).embed(inputs, request_id="an-id")

    assert max(counts) == 2


async def test_calls_in_flight_follow_the_number_of_replicas() -> None:
    in_flight: set[int] = set()
    counts = []

    async def watch(chunk: EmbedChunk) -> EmbedResult:
        in_flight.add(id(chunk))
        counts.append(len(in_flight))
        await settle()
        in_flight.discard(id(chunk))
        return result_of(chunk)

    client = client_of(FakeHandle(watch, states=[IDLE_REPLICA] * 3), max_queued_tokens=1000)
    await client.embed(tokenized([1]), request_id="an-id")

    await client.embed(tokenized(*([i] * 10 for i in range(20))), request_id="an-id")

    assert max(counts) == 6


async def test_calls_in_a_hung_replica_take_no_slot_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hung replica counts as long as it lives, whether or not it answers the poll."""
    monkeypatch.setattr("serve_app.dispatch.replica_monitor._POLL_S", 0.02)
    first_poll_is_over = asyncio.Event()

    class PolledHandle(FakeHandle):
        def broadcast(self, method: str, caller: str, waiting_tokens: int) -> Any:
            if self.polls:
                first_poll_is_over.set()
            return super().broadcast(method, caller, waiting_tokens)

    handle = PolledHandle(never, states=[IDLE_REPLICA, None, LATE, RuntimeError("dying")])
    client = client_of(handle)
    tasks = [
        asyncio.create_task(client.embed(tokenized([n] * 9), request_id="an-id"))
        for n in range(1, 8)
    ]
    await first_poll_is_over.wait()

    tasks.append(asyncio.create_task(client.embed(tokenized([8] * 9), request_id="an-id")))
    await settle()
    for task in tasks:
        task.cancel()
    await settle()

    assert len(handle.calls) == 6


async def test_budget_and_limit_follow_the_replicas_settings() -> None:
    states = [
        replace(IDLE_REPLICA, max_batch_tokens=30, max_queued_tokens=40),
        replace(IDLE_REPLICA, max_batch_tokens=20, max_queued_tokens=50),
    ]
    handle = FakeHandle(answer, states=states)
    client = client_of(handle)
    await client.embed(tokenized([1]), request_id="an-id")
    await settle()

    await client.embed(tokenized(*[[1] * 5] * 5), request_id="an-id")
    large = asyncio.create_task(client.embed(tokenized(*[[1] * 10] * 8), request_id="an-id"))
    await asyncio.sleep(0)

    assert [chunk.inputs.tokens for chunk in handle.chunks] == [1, 10, 10, 5]
    with pytest.raises(OverloadedError):
        await client.embed(tokenized([1] * 11), request_id="an-id")
    await client.embed(tokenized([1] * 10), request_id="an-id")
    await large


async def test_ingress_replicas_share_the_limit() -> None:
    """The highest `others_waiting` counts: a new replica knows fewer ingress replicas."""
    states = [
        replace(IDLE_REPLICA, max_queued_tokens=50, others_waiting=1),
        replace(IDLE_REPLICA, max_queued_tokens=50, others_waiting=0),
    ]
    client = client_of(FakeHandle(never, states=states), max_queued_tokens=1000)
    waiting = asyncio.create_task(client.embed(tokenized([1] * 30), request_id="an-id"))
    await settle()

    with pytest.raises(OverloadedError):
        await client.embed(tokenized([1] * 21), request_id="an-id")
    fitting = asyncio.create_task(client.embed(tokenized([1] * 20), request_id="an-id"))
    await settle()

    assert client.admission.units == 50
    for task in (waiting, fitting):
        task.cancel()


async def test_an_idle_ingress_replica_has_the_whole_limit_again() -> None:
    """Polling stops when it is idle, so a count of others would never be updated."""
    handle = FakeHandle(answer, states=[replace(IDLE_REPLICA, others_waiting=3)])
    client = client_of(handle)

    await client.embed(tokenized([1]), request_id="an-id")
    await asyncio.sleep(1)  # two polls happen within half of it

    assert client.admission.remaining == 100


# Fairness.


class Clockwork(FakeHandle):
    """One replica that computes one call at a time. Its clock counts the tokens computed."""

    def __init__(self, state: ReplicaState = IDLE_REPLICA) -> None:
        super().__init__(answer, states=[state])
        self.now = 0
        self._computing = asyncio.Lock()

    async def _answer_all(self, chunks: Sequence[EmbedChunk]) -> Sequence[EmbedResult]:
        async with self._computing:
            await settle()  # callers whose call has ended send their next chunk first
            tokens = sum(chunk.inputs.tokens for chunk in chunks)
            self.now += tokens
            return [replace(result_of(chunk), inference_s=tokens) for chunk in chunks]


@pytest.mark.parametrize(("inference_s", "is_soon"), [(0.0, True), (60.0, False)])
async def test_later_chunks_are_spaced_by_inference_time(
    inference_s: float,
    is_soon: bool,  # noqa: FBT001
) -> None:
    async def compute(chunk: EmbedChunk) -> EmbedResult:
        await asyncio.sleep(0)
        return replace(result_of(chunk), inference_s=inference_s)

    handle = FakeHandle(compute, states=[IDLE_REPLICA])
    client = client_of(handle)
    large = client.embed(tokenized(*([1] * 10 for _ in range(4))), request_id="large")
    others = [client.embed(tokenized([2] * 10), request_id="other") for _ in range(6)]

    await asyncio.gather(large, *others)

    last = max(number for number, chunk in enumerate(handle.chunks) if chunk.inputs.ids[0] == 1)
    assert (last < 6) is is_soon


async def test_no_request_waits_two_budgets_longer_than_a_later_one() -> None:
    """64 clients send one short or long input at a time, while one request has forty budgets."""
    budget = 64
    handle = Clockwork(replace(IDLE_REPLICA, max_batch_tokens=budget, max_queued_tokens=100_000))
    client = client_of(handle, chunk_tokens=budget, max_queued_tokens=100_000)
    lengths = random.Random(1)
    answered: list[int] = []  # by the replica's clock, in the order in which the requests arrived

    async def send_one_after_the_other() -> None:
        for _ in range(12):
            number = len(answered)
            answered.append(0)
            inputs = tokenized([1] * min(round(lengths.lognormvariate(1.5, 0.8)) + 1, budget))
            await client.embed(inputs, request_id="an-id")
            answered[number] = handle.now

    large = client.embed(tokenized(*([2] * 8 for _ in range(40 * budget // 8))), request_id="an-id")
    await asyncio.gather(large, *(send_one_after_the_other() for _ in range(64)))

    assert handle.now > 40 * budget
    earliest_from_here_on = list(accumulate(reversed(answered), min))[::-1]
    assert max(map(sub, answered, earliest_from_here_on)) <= 2 * budget


# Times.


async def test_times_add_up_the_batches_and_waits_of_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = Clockwork()
    monkeypatch.setattr(time, "perf_counter", lambda: handle.now)
    client = client_of(handle)

    _, answer = await asyncio.gather(
        client.embed(tokenized([1] * 8), request_id="an-id"),
        client.embed(tokenized([2] * 9, [3] * 9, [4] * 7), request_id="an-id"),
    )

    assert (answer.inference_s, answer.queue_s) == (9 + 9 + 7, 8)


# Retries.


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ActorUnavailableError("gone", None),
        REPLACED,
        RayTaskError("embed", "a traceback", REPLACED).as_instanceof_cause(),
        OutOfMemoryError("killed by the memory monitor"),
        AioRpcError(StatusCode.CANCELLED, Metadata(), Metadata()),
    ],
    ids=["died", "unavailable", "replaced", "replaced, wrapped by Ray", "memory", "grpc"],
)
async def test_a_chunk_is_sent_again_after_its_replica_died(error: Exception) -> None:
    metrics = Metrics()
    handle = FakeHandle(raising(error))
    inputs = tokenized([1, 2])

    result = await client_of(handle, metrics=metrics).embed(inputs, request_id="an-id")

    assert np.array_equal(result.vectors, vectors_of(inputs))
    assert counted(metrics, "embeddings_chunk_retries_total", model="m") == 1
    assert counted(metrics, "embeddings_inputs_total", model="m") == 1


@pytest.mark.parametrize(
    ("inputs", "param", "words"),
    [
        (tokenized([1]), "input[0]", "processing input[0]"),
        (tokenized([1], [2]), "input", "inputs 0 to 1"),
    ],
)
async def test_a_chunk_fails_after_two_replica_deaths(
    inputs: TokenizedInputs, param: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    handle = FakeHandle(raising(*[ActorDiedError()] * 9))

    with pytest.raises(InferenceError) as error:
        await client_of(handle).embed(inputs, request_id="an-id")

    assert [chunk.is_retry for chunk in handle.chunks] == [False, True]
    assert (error.value.code, error.value.param) == ("inference_failed", param)
    assert words in error.value.message
    assert [record.__dict__["request_id"] for record in caplog.records] == ["an-id"]


async def test_a_rejected_call_is_repeated_and_is_not_a_retry() -> None:
    answers = iter([ReplicaRejected()] * 5)

    async def later(chunk: EmbedChunk) -> EmbedResult | ReplicaRejected:
        return next(answers, None) or result_of(chunk)

    handle = FakeHandle(later)
    result = await client_of(handle).embed(tokenized([1]), request_id="an-id")

    assert np.array_equal(result.vectors, vectors_of(tokenized([1])))
    assert [chunk.is_retry for chunk in handle.chunks] == [False] * 6


async def test_a_call_that_ray_cancels_is_repeated() -> None:
    cancelled: list[EmbedChunk] = []

    async def cancel_first(chunk: EmbedChunk) -> EmbedResult:
        if not cancelled:
            cancelled.append(chunk)
            raise asyncio.CancelledError
        return result_of(chunk)

    handle = FakeHandle(cancel_first, states=[IDLE_REPLICA])

    answer = await client_of(handle).embed(tokenized([7]), request_id="an-id")

    assert np.array_equal(answer.vectors, vectors_of(tokenized([7])))
    assert len(handle.calls) == 2


async def test_calls_run_in_an_empty_context() -> None:
    """Ray Serve cancels what was started in a request's context when that request ends."""
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    async def read_context(chunk: EmbedChunk) -> EmbedResult:
        seen.append(request.get())
        return result_of(chunk)

    request.set("an-id")
    await client_of(FakeHandle(read_context, states=[IDLE_REPLICA])).embed(
        tokenized([1]), request_id="an-id"
    )

    assert seen == ["none"]


async def test_a_call_that_is_always_rejected_fails_as_unavailable() -> None:
    async def reject(_chunk: EmbedChunk) -> ReplicaRejected:
        return ReplicaRejected()

    with pytest.raises(UnavailableError, match="reject"):
        await client_of(
            FakeHandle(reject, states=[IDLE_REPLICA]), replica_wait_timeout_s=0.01
        ).embed(tokenized([1]), request_id="an-id")


# Refusals.


async def test_back_pressure_becomes_an_overloaded_error() -> None:
    metrics = Metrics()
    handle = FakeHandle(raising(BackPressureError(num_queued_requests=9, max_queued_requests=8)))

    with pytest.raises(OverloadedError) as error:
        await client_of(handle, metrics=metrics).embed(tokenized([1]), request_id="an-id")

    assert error.value.code == "overloaded"
    assert error.value.retry_after_s == pytest.approx(7, rel=0.25)
    assert counted(metrics, "embeddings_overload_refusals_total", reason="serve_queue") == 1
    assert len(handle.chunks) == 1


async def test_pending_tokens_are_bounded() -> None:
    metrics, may_answer = Metrics(), asyncio.Event()

    async def wait(chunk: EmbedChunk) -> EmbedResult:
        await may_answer.wait()
        return result_of(chunk)

    handle = FakeHandle(wait)
    client = client_of(handle, metrics=metrics, max_queued_tokens=8)
    first = asyncio.create_task(client.embed(tokenized([1] * 6), request_id="first"))
    await asyncio.sleep(0)

    with pytest.raises(OverloadedError):
        await client.embed(tokenized([2] * 3), request_id="second")
    fitting = asyncio.create_task(client.embed(tokenized([2] * 2), request_id="third"))
    await asyncio.sleep(0)
    pending = counted(metrics, "embeddings_pending_tokens", model="m")
    may_answer.set()
    await asyncio.gather(first, fitting)

    assert [chunk.request_id for chunk in handle.chunks] == ["first", "third"]
    assert pending == 8
    assert counted(metrics, "embeddings_pending_tokens", model="m") == 0
    assert counted(metrics, "embeddings_overload_refusals_total", reason="pending_tokens") == 1


async def test_bulk_is_refused_first() -> None:
    client = client_of(FakeHandle(never), max_queued_tokens=100)
    waiting = asyncio.create_task(client.embed(tokenized([1] * 70), request_id="first"))
    await asyncio.sleep(0)

    with pytest.raises(OverloadedError):
        await client.embed(tokenized([2] * 6), request_id="second", is_bulk=True)
    fitting = asyncio.create_task(client.embed(tokenized([2] * 6), request_id="third"))
    await asyncio.sleep(0)

    assert client.admission.units == 76
    for task in (waiting, fitting):
        task.cancel()


async def test_bulk_returns_its_room_when_finished_or_cancelled() -> None:
    client = client_of(FakeHandle(answer), max_queued_tokens=100)
    hanging = client_of(FakeHandle(never), max_queued_tokens=100)

    await client.embed(tokenized([1] * 70), request_id="an-id", is_bulk=True)
    waiting = asyncio.create_task(hanging.embed(tokenized([1] * 70), request_id="x", is_bulk=True))
    await settle()
    waiting.cancel()
    await settle()

    assert (client.admission.remaining, hanging.admission.remaining) == (100, 100)


async def test_a_single_request_above_the_limit_is_admitted() -> None:
    client = client_of(FakeHandle(answer), max_queued_tokens=5)

    result = await client.embed(tokenized([1] * 9), request_id="an-id")

    assert len(result.vectors) == 1


# Missing replicas and readiness.


async def test_a_call_fails_and_is_cancelled_if_no_replica_exists() -> None:
    """A Ray Serve handle would wait forever."""
    handle = FakeHandle(never, states=[])

    with pytest.raises(UnavailableError) as error:
        await client_of(handle, replica_wait_timeout_s=0.01).embed(
            tokenized([1]), request_id="an-id"
        )

    await settle()

    assert error.value.retry_after_s == pytest.approx(7, rel=0.25)
    assert [call.is_cancelled for call in handle.calls] == [True]


async def test_all_waiting_requests_fail_if_no_replica_exists() -> None:
    client = client_of(FakeHandle(never, states=[]), replica_wait_timeout_s=0.01)
    embeddings = [client.embed(tokenized([n] * 9), request_id="an-id") for n in range(1, 9)]

    outcomes = await asyncio.wait_for(asyncio.gather(*embeddings, return_exceptions=True), 5)

    assert {type(outcome) for outcome in outcomes} == {UnavailableError}
    assert client.admission.units == 0


async def test_each_later_request_fails_if_no_replica_exists() -> None:
    client = client_of(FakeHandle(never, states=[]), replica_wait_timeout_s=0.05)

    for _ in range(3):
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(client.embed(tokenized([1]), request_id="an-id"), 2)


async def test_a_call_waits_while_a_replica_is_ready() -> None:
    may_answer = asyncio.Event()

    class PolledHandle(FakeHandle):
        poll_count = 0

        def broadcast(self, method: str, caller: str, waiting_tokens: int) -> Any:
            self.poll_count += 1
            if self.poll_count == 3:
                may_answer.set()
            return super().broadcast(method, caller, waiting_tokens)

    async def wait(chunk: EmbedChunk) -> EmbedResult:
        await may_answer.wait()
        return result_of(chunk)

    handle = PolledHandle(wait, states=[IDLE_REPLICA])

    result = await client_of(handle, replica_wait_timeout_s=0.01).embed(
        tokenized([1]), request_id="an-id"
    )

    assert handle.poll_count == 3
    assert len(result.vectors) == 1


async def test_an_answer_during_a_poll_without_replicas_counts() -> None:
    """The replica that sent it may have been scaled down meanwhile."""
    may_answer = asyncio.Event()

    class ScaledDownHandle(FakeHandle):
        def broadcast(self, method: str, caller: str, waiting_tokens: int) -> Any:
            may_answer.set()
            return super().broadcast(method, caller, waiting_tokens)

    async def wait(chunk: EmbedChunk) -> EmbedResult:
        await may_answer.wait()
        return result_of(chunk)

    result = await client_of(ScaledDownHandle(wait)).embed(tokenized([1]), request_id="an-id")

    assert len(result.vectors) == 1


async def test_a_failed_deployment_is_unavailable() -> None:
    handle = FakeHandle(raising(DeploymentUnavailableError(None)))

    with pytest.raises(UnavailableError, match="failed to start"):
        await client_of(handle).embed(tokenized([1]), request_id="an-id")


@pytest.mark.parametrize(
    ("states", "is_ready"),
    [
        ([], False),
        ([None], False),
        ([RuntimeError("dying")], False),
        ([LATE], False),
        ([None, RuntimeError("dying"), LATE, IDLE_REPLICA], True),
    ],
)
async def test_a_model_is_ready_if_one_replica_is_ready(
    states: list[State],
    is_ready: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve_app.dispatch.replica_monitor._POLL_S", 0.02)
    client = client_of(FakeHandle(answer, states=states))

    assert await client.is_ready() is is_ready


async def test_a_model_that_scales_to_zero_is_ready_without_replicas() -> None:
    """A load balancer that reads `/ready` must let the request through that starts a replica."""
    client = client_of(FakeHandle(answer, states=[]), scales_to_zero=True)

    assert await client.is_ready()


# Cancellation.


async def test_a_cancelled_request_cancels_its_calls() -> None:
    metrics, handle = Metrics(), FakeHandle(never, states=[IDLE_REPLICA])
    client = client_of(handle, metrics=metrics)
    inputs = tokenized([1] * 9, [2] * 9, [3] * 9)
    task = asyncio.create_task(client.embed(inputs, request_id="an-id"))
    await settle()

    task.cancel()
    await asyncio.wait([task])
    await settle()

    assert task.cancelled()
    assert [call.is_cancelled for call in handle.calls] == [True] * 2
    assert counted(metrics, "embeddings_pending_tokens", model="m") == 0


async def test_the_first_failure_cancels_the_other_calls() -> None:
    async def fail_second(chunk: EmbedChunk) -> EmbedResult:
        if chunk.inputs.ids[0] == 2:
            raise BackPressureError(num_queued_requests=9, max_queued_requests=8)
        return await never(chunk)

    handle = FakeHandle(fail_second, states=[IDLE_REPLICA])
    inputs = tokenized(*([i] * 9 for i in range(1, 8)))

    with pytest.raises(OverloadedError):
        await client_of(handle).embed(inputs, request_id="an-id")
    await settle()

    cancelled = {int(chunk.inputs.ids[0]): call.is_cancelled
                 for chunk, call in zip(handle.chunks, handle.calls, strict=True)}  # fmt: skip
    assert cancelled == {1: True, 2: False}


async def test_the_error_of_an_abandoned_call_is_not_logged() -> None:
    """An exception that is never retrieved is logged, and its message can hold an input."""
    logged: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))

    async def fail_when_cancelled(chunk: EmbedChunk) -> EmbedResult:
        try:
            return await never(chunk)
        except asyncio.CancelledError:
            raise RuntimeError("as Ray does") from None

    client = client_of(FakeHandle(fail_when_cancelled, states=[]), replica_wait_timeout_s=0.01)
    with pytest.raises(UnavailableError):
        await client.embed(tokenized([1]), request_id="an-id")
    await settle()
    gc.collect()

    assert logged == []


async def settle() -> None:
    """Run the event loop until no task is ready."""
    for _ in range(10):
        await asyncio.sleep(0)
