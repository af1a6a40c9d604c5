import asyncio
import gc
import random
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from itertools import accumulate
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
    Failure,
    ReplicaRejected,
    ReplicaState,
    TokenizedInputs,
)
from serve_app.observability.metrics import Metrics
from tests.support.fakes import (
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

STATE = ReplicaState(
    "r1",
    queued_chunks=0,
    queued_tokens=0,
    busy_seconds=0,
    memory_bytes=0,
    max_batch_tokens=10,
    max_queued_tokens=100,
    others_waiting=0,
)
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
    """Do what a replica does that meets no difficulty."""
    return result_of(chunk)


async def never(chunk: EmbedChunk) -> EmbedResult:
    """Keep a chunk for ever."""
    await asyncio.Event().wait()
    return result_of(chunk)


def raising(*errors: Exception) -> Answer:
    """Raise one error after the other, then answer."""
    left = list(errors)

    async def answer(chunk: EmbedChunk) -> EmbedResult:
        if left:
            raise left.pop(0)
        return result_of(chunk)

    return answer


# Splitting and joining.


async def test_a_small_request_is_one_call() -> None:
    """Its buffers go as they are."""
    handle = FakeHandle(answer)
    inputs = tokenized([1, 2], [3], prompt_length=1)

    result = await client_of(handle).embed(inputs, request_id="an-id")

    assert [chunk.inputs for chunk in handle.chunks] == [inputs]
    assert [chunk.request_id for chunk in handle.chunks] == ["an-id"]
    assert np.array_equal(result.vectors, vectors_of(inputs))


@given(st.lists(st.lists(st.integers(0, 99), max_size=12), min_size=1, max_size=40))
def test_a_request_in_many_calls_gives_each_input_its_own_vector(inputs: list[list[int]]) -> None:
    """Whatever the lengths, and whichever call is answered first."""
    chunks_left = [0]

    async def answer_late(chunk: EmbedChunk) -> EmbedResult:
        chunks_left[0] += 1
        for _ in range(7 - chunks_left[0] % 7):
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


async def test_failures_are_counted_within_the_request() -> None:
    """The second call's first input is not the request's first."""

    async def fail_first(chunk: EmbedChunk) -> EmbedResult:
        failures = (Failure(0, "inference_failed"),)
        return EmbedResult(vectors_of(chunk.inputs), failures, 0.001, 1, 1)

    inputs = tokenized([1] * 2, [2] * 2, [3] * 2, [4] * 2)

    result = await client_of(FakeHandle(fail_first)).embed(inputs, request_id="an-id")

    assert [failure.index for failure in result.failures] == [0, 2]


async def test_a_large_request_has_two_calls_under_way_at_most() -> None:
    """It neither floods the replicas' queues nor waits for its own chunks one by one."""
    under_way: set[int] = set()
    most = []

    async def watch(chunk: EmbedChunk) -> EmbedResult:
        under_way.add(id(chunk))
        most.append(len(under_way))
        await asyncio.sleep(0)
        under_way.discard(id(chunk))
        return result_of(chunk)

    inputs = tokenized(*([i] * 10 for i in range(9)))

    await client_of(FakeHandle(watch)).embed(inputs, request_id="an-id")

    assert max(most) == 2


async def test_calls_follow_the_number_of_replicas() -> None:
    """Two for each; asked for while there is work."""
    under_way: set[int] = set()
    most = []

    async def watch(chunk: EmbedChunk) -> EmbedResult:
        under_way.add(id(chunk))
        most.append(len(under_way))
        await turns()
        under_way.discard(id(chunk))
        return result_of(chunk)

    client = client_of(FakeHandle(watch, states=[STATE] * 3), max_queued_tokens=1000)
    await client.embed(tokenized([1]), request_id="an-id")

    await client.embed(tokenized(*([i] * 10 for i in range(20))), request_id="an-id")

    assert max(most) == 6


async def test_calls_that_hang_with_their_replica_take_no_place_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It counts as long as it lives, whether it says that it cannot embed or says nothing."""
    monkeypatch.setattr("serve_app.dispatch.replica_monitor._POLL_S", 0.02)
    has_looked = asyncio.Event()

    class LookedAt(FakeHandle):
        def broadcast(self, method: str, caller: str, waiting_tokens: int) -> Any:
            if self.told:  # once, which is over
                has_looked.set()
            return super().broadcast(method, caller, waiting_tokens)

    handle = LookedAt(never, states=[STATE, None, LATE, RuntimeError("dying")])
    client = client_of(handle)
    tasks = [
        asyncio.create_task(client.embed(tokenized([n] * 9), request_id="an-id"))
        for n in range(1, 8)
    ]
    await has_looked.wait()

    tasks.append(asyncio.create_task(client.embed(tokenized([8] * 9), request_id="an-id")))
    await turns()
    for task in tasks:
        task.cancel()
    await turns()

    assert len(handle.calls) == 6


async def test_calls_and_the_queue_follow_what_the_replicas_take() -> None:
    """Their settings change without a restart, and their budget may be the device's."""
    states = [
        replace(STATE, max_batch_tokens=30, max_queued_tokens=40),
        replace(STATE, max_batch_tokens=20, max_queued_tokens=50),
    ]
    handle = FakeHandle(answer, states=states)
    client = client_of(handle)
    await client.embed(tokenized([1]), request_id="an-id")
    await turns()

    await client.embed(tokenized(*[[1] * 5] * 5), request_id="an-id")
    large = asyncio.create_task(client.embed(tokenized(*[[1] * 10] * 8), request_id="an-id"))
    await asyncio.sleep(0)

    assert [chunk.inputs.tokens for chunk in handle.chunks] == [1, 10, 10, 5]
    with pytest.raises(OverloadedError):
        await client.embed(tokenized([1] * 11), request_id="an-id")
    await client.embed(tokenized([1] * 10), request_id="an-id")
    await large


async def test_replicas_are_looked_at_soon_and_often_after_a_pause() -> None:
    """So that ingress replicas hear of each other while a burst lasts."""
    handle = FakeHandle(never, states=[STATE])
    waiting = asyncio.create_task(client_of(handle).embed(tokenized([1]), request_id="an-id"))

    await asyncio.sleep(1)  # half of what is between two looks later on
    waiting.cancel()

    assert len(handle.told) >= 3


async def test_ingress_replicas_share_the_limit() -> None:
    """As the replica says that was told most; it is that of the model, whichever ingress replica is asked."""
    states = [
        replace(STATE, max_queued_tokens=50, others_waiting=1),
        replace(STATE, max_queued_tokens=50, others_waiting=0),
    ]
    client = client_of(FakeHandle(never, states=states), max_queued_tokens=1000)
    waiting = asyncio.create_task(client.embed(tokenized([1] * 30), request_id="an-id"))
    await turns()

    with pytest.raises(OverloadedError):
        await client.embed(tokenized([1] * 21), request_id="an-id")
    fitting = asyncio.create_task(client.embed(tokenized([1] * 20), request_id="an-id"))
    await turns()

    assert client.admission.units == 50
    for task in (waiting, fitting):
        task.cancel()


async def test_who_has_nothing_to_do_has_the_whole_queue_again() -> None:
    """Whatever waited elsewhere at the last look: nobody looks while nothing waits here."""
    handle = FakeHandle(answer, states=[replace(STATE, others_waiting=3)])
    client = client_of(handle)

    await client.embed(tokenized([1]), request_id="an-id")
    await asyncio.sleep(1)  # two looks come within half of it

    assert client.admission.remaining == 100


# Fairness.


class Clockwork(FakeHandle):
    """One replica that computes one call after the other; its clock counts the tokens that it has read."""

    def __init__(self, state: ReplicaState = STATE) -> None:
        super().__init__(answer, states=[state])
        self.now = 0
        self._computing = asyncio.Lock()

    async def _answer_all(self, chunks: Sequence[EmbedChunk]) -> Sequence[EmbedResult]:
        async with self._computing:
            await turns()  # those whose call has ended come back first
            tokens = sum(chunk.inputs.tokens for chunk in chunks)
            self.now += tokens
            return [replace(result_of(chunk), inference_s=tokens) for chunk in chunks]


@pytest.mark.parametrize(("inference_s", "is_soon"), [(0.0, True), (60.0, False)])
async def test_the_later_chunks_of_a_request_have_the_place_that_it_could_have_come_to_alone(
    inference_s: float,
    is_soon: bool,  # noqa: FBT001
) -> None:
    """Else each would wait behind all that came since; and if all came with the first, others behind all of it."""

    async def compute(chunk: EmbedChunk) -> EmbedResult:
        await asyncio.sleep(0)
        return replace(result_of(chunk), inference_s=inference_s)

    handle = FakeHandle(compute, states=[STATE])
    client = client_of(handle)
    large = client.embed(tokenized(*([1] * 10 for _ in range(4))), request_id="large")
    others = [client.embed(tokenized([2] * 10), request_id="other") for _ in range(6)]

    await asyncio.gather(large, *others)

    last = max(number for number, chunk in enumerate(handle.chunks) if chunk.inputs.ids[0] == 1)
    assert (last < 6) is is_soon


async def test_nobody_is_answered_two_budgets_after_one_that_came_later() -> None:
    """Of 64 clients with one short or long input each, while one more sends forty budgets in a request.

    So nobody waits longer than that on account of those who came later.
    """
    budget = 64
    handle = Clockwork(replace(STATE, max_batch_tokens=budget, max_queued_tokens=100_000))
    client = client_of(handle, chunk_tokens=budget, max_queued_tokens=100_000)
    lengths = random.Random(1)
    answered: list[int] = []  # by the replica's clock, in the order in which the requests came

    async def send_one_after_the_other() -> None:
        for _ in range(12):
            place = len(answered)
            answered.append(0)
            inputs = tokenized([1] * min(round(lengths.lognormvariate(1.5, 0.8)) + 1, budget))
            await client.embed(inputs, request_id="an-id")
            answered[place] = handle.now

    large = client.embed(tokenized(*([2] * 8 for _ in range(40 * budget // 8))), request_id="an-id")
    await asyncio.gather(large, *(send_one_after_the_other() for _ in range(64)))

    assert handle.now > 40 * budget
    first_later = list(accumulate(reversed(answered), min))[::-1]
    assert max(map(sub, answered, first_later)) <= 2 * budget


# Times.


async def test_a_requests_times_are_those_of_its_batches_and_of_its_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Computing one call after the other adds up, and so does waiting for somebody else's."""
    handle = Clockwork()
    monkeypatch.setattr(time, "perf_counter", lambda: handle.now)
    client = client_of(handle)

    _, answer = await asyncio.gather(
        client.embed(tokenized([1] * 8), request_id="an-id"),
        client.embed(tokenized([2] * 9, [3] * 9, [4] * 7), request_id="an-id"),
    )

    assert (answer.inference_s, answer.queue_s) == (9 + 9 + 7, 8)


async def test_a_batch_that_held_several_chunks_of_a_request_counts_once() -> None:
    """On a GPU many chunks make one batch, and come back together."""

    async def take(chunk: EmbedChunk) -> EmbedResult:
        return replace(result_of(chunk), inference_s=1000)

    inputs = tokenized(*([i] * 9 for i in range(6)))

    answer = await client_of(FakeHandle(take)).embed(inputs, request_id="an-id")

    assert answer.inference_s == pytest.approx(1000, abs=10)
    assert answer.queue_s == 0


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
    ids=["died", "unavailable", "replaced", "replaced, in Ray's wrapping", "memory", "grpc"],
)
async def test_a_chunk_whose_replica_dies_goes_to_another(error: Exception) -> None:
    """Embedding twice does no harm; the request's sender sees nothing."""
    metrics = Metrics()
    handle = FakeHandle(raising(error))
    inputs = tokenized([1, 2])

    result = await client_of(handle, metrics=metrics).embed(inputs, request_id="an-id")

    assert np.array_equal(result.vectors, vectors_of(inputs))
    assert counted(metrics, "embeddings_chunk_retries_total", model="m") == 1
    assert counted(metrics, "embeddings_inputs_total", model="m") == 1


@pytest.mark.parametrize(
    ("inputs", "param", "words"),
    [(tokenized([1]), "input[0]", "had input[0]"), (tokenized([1], [2]), "input", "inputs 0 to 1")],
)
async def test_a_chunk_that_is_there_at_two_deaths_is_their_cause(
    inputs: TokenizedInputs, param: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not sent a third time, and the log says whose it was."""
    handle = FakeHandle(raising(*[ActorDiedError()] * 9))

    with pytest.raises(InferenceError) as error:
        await client_of(handle).embed(inputs, request_id="an-id")

    assert [chunk.is_retry for chunk in handle.chunks] == [False, True]
    assert (error.value.code, error.value.param) == ("inference_failed", param)
    assert words in error.value.message
    assert [record.__dict__["request_id"] for record in caplog.records] == ["an-id"]


async def test_a_call_that_is_not_taken_now_goes_again() -> None:
    """As often as it takes; that says nothing about the chunk."""
    answers = iter([ReplicaRejected()] * 5)

    async def later(chunk: EmbedChunk) -> EmbedResult | ReplicaRejected:
        return next(answers, None) or result_of(chunk)

    handle = FakeHandle(later)
    result = await client_of(handle).embed(tokenized([1]), request_id="an-id")

    assert np.array_equal(result.vectors, vectors_of(tokenized([1])))
    assert [chunk.is_retry for chunk in handle.chunks] == [False] * 6


async def test_a_call_that_somebody_else_cancels_goes_again() -> None:
    """Those whose inputs it carried still wait."""
    cancelled: list[EmbedChunk] = []

    async def cancel_first(chunk: EmbedChunk) -> EmbedResult:
        if not cancelled:
            cancelled.append(chunk)
            raise asyncio.CancelledError
        return result_of(chunk)

    handle = FakeHandle(cancel_first, states=[STATE])

    answer = await client_of(handle).embed(tokenized([7]), request_id="an-id")

    assert np.array_equal(answer.vectors, vectors_of(tokenized([7])))
    assert len(handle.calls) == 2


async def test_calls_run_in_no_requests_context() -> None:
    """Ray Serve ends what began in a request's context when its client leaves; a call has others' inputs, too."""
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    async def look(chunk: EmbedChunk) -> EmbedResult:
        seen.append(request.get())
        return result_of(chunk)

    request.set("an-id")
    await client_of(FakeHandle(look, states=[STATE])).embed(tokenized([1]), request_id="an-id")

    assert seen == ["none"]


async def test_calls_that_are_never_taken_end_as_unavailable() -> None:
    """After as long as a call waits for there to be a replica."""

    async def never_now(_chunk: EmbedChunk) -> ReplicaRejected:
        return ReplicaRejected()

    with pytest.raises(UnavailableError, match="do not take it"):
        await client_of(FakeHandle(never_now, states=[STATE]), replica_wait_timeout_s=0.01).embed(
            tokenized([1]), request_id="an-id"
        )


# Refusals.


async def test_back_pressure_is_overload() -> None:
    """Ray Serve's limit, in our words."""
    metrics = Metrics()
    handle = FakeHandle(raising(BackPressureError(num_queued_requests=9, max_queued_requests=8)))

    with pytest.raises(OverloadedError) as error:
        await client_of(handle, metrics=metrics).embed(tokenized([1]), request_id="an-id")

    assert error.value.code == "overloaded"
    assert error.value.retry_after_s == pytest.approx(7, rel=0.25)
    assert counted(metrics, "embeddings_overload_refusals_total", reason="serve_queue") == 1
    assert len(handle.chunks) == 1


async def test_tokens_that_are_not_answered_yet_are_bounded() -> None:
    """Beyond the limit nothing is sent; with the answers comes room."""
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
    """A quarter of the queue is kept for what somebody waits for."""
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


async def test_bulk_that_is_done_or_left_gives_its_room_back() -> None:
    """Counted as bulk when it comes and when it goes, else others would find more room than there is."""
    client = client_of(FakeHandle(answer), max_queued_tokens=100)
    left = client_of(FakeHandle(never), max_queued_tokens=100)

    await client.embed(tokenized([1] * 70), request_id="an-id", is_bulk=True)
    waiting = asyncio.create_task(left.embed(tokenized([1] * 70), request_id="x", is_bulk=True))
    await turns()
    waiting.cancel()
    await turns()

    assert (client.admission.remaining, left.admission.remaining) == (100, 100)


async def test_one_request_always_fits() -> None:
    """A limit below the largest request would refuse it for ever."""
    client = client_of(FakeHandle(answer), max_queued_tokens=5)

    result = await client.embed(tokenized([1] * 9), request_id="an-id")

    assert len(result.vectors) == 1


# No replica.


async def test_without_any_replica_a_call_is_given_up() -> None:
    """A handle would wait for ever."""
    handle = FakeHandle(never, states=[])

    with pytest.raises(UnavailableError) as error:
        await client_of(handle, replica_wait_timeout_s=0.01).embed(
            tokenized([1]), request_id="an-id"
        )

    await turns()

    assert error.value.retry_after_s == pytest.approx(7, rel=0.25)
    assert [call.is_cancelled for call in handle.calls] == [True]


async def test_all_that_wait_without_a_replica_are_told_in_time() -> None:
    """And not only those that the first calls carry."""
    client = client_of(FakeHandle(never, states=[]), replica_wait_timeout_s=0.01)
    embeddings = [client.embed(tokenized([n] * 9), request_id="an-id") for n in range(1, 9)]

    outcomes = await asyncio.wait_for(asyncio.gather(*embeddings, return_exceptions=True), 5)

    assert {type(outcome) for outcome in outcomes} == {UnavailableError}
    assert client.admission.units == 0


async def test_each_that_comes_without_a_replica_is_told() -> None:
    """Also one that comes just after another was."""
    client = client_of(FakeHandle(never, states=[]), replica_wait_timeout_s=0.05)

    for _ in range(3):
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(client.embed(tokenized([1]), request_id="an-id"), 2)


async def test_while_there_is_a_replica_a_call_waits() -> None:
    """Long work is no absence."""
    may_answer = asyncio.Event()

    class Patient(FakeHandle):
        looks = 0

        def broadcast(self, method: str, caller: str, waiting_tokens: int) -> Any:
            self.looks += 1
            if self.looks == 3:
                may_answer.set()
            return super().broadcast(method, caller, waiting_tokens)

    async def wait(chunk: EmbedChunk) -> EmbedResult:
        await may_answer.wait()
        return result_of(chunk)

    handle = Patient(wait, states=[STATE])

    result = await client_of(handle, replica_wait_timeout_s=0.01).embed(
        tokenized([1]), request_id="an-id"
    )

    assert handle.looks == 3
    assert len(result.vectors) == 1


async def test_an_answer_that_comes_while_one_looks_for_replicas_counts() -> None:
    """The replica that gave it may have been scaled away meanwhile."""
    may_answer = asyncio.Event()

    class Leaving(FakeHandle):
        def broadcast(self, method: str, caller: str, waiting_tokens: int) -> Any:
            may_answer.set()
            return super().broadcast(method, caller, waiting_tokens)

    async def wait(chunk: EmbedChunk) -> EmbedResult:
        await may_answer.wait()
        return result_of(chunk)

    result = await client_of(Leaving(wait)).embed(tokenized([1]), request_id="an-id")

    assert len(result.vectors) == 1


async def test_a_deployment_that_failed_is_unavailable() -> None:
    """Its constructor raised too often, and Serve has given up."""
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
        ([None, RuntimeError("dying"), LATE, STATE], True),
    ],
)
async def test_a_model_is_ready_when_one_replica_is_well(
    states: list[State],
    is_ready: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the others say, or if they say nothing for too long."""
    monkeypatch.setattr("serve_app.dispatch.replica_monitor._POLL_S", 0.02)
    client = client_of(FakeHandle(answer, states=states))

    assert await client.is_ready() is is_ready


async def test_replicas_are_told_what_waits_while_something_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Again and again, for how many there should be depends on it; at the end that nothing does."""
    monkeypatch.setattr("serve_app.dispatch.replica_monitor._POLL_S", 0.001)
    may_answer, nothing_waits = asyncio.Event(), asyncio.Event()

    class Listening(FakeHandle):
        def broadcast(self, method: str, caller: str, waiting_tokens: int) -> Any:
            if len(self.told) == 3:
                may_answer.set()
            if not waiting_tokens:
                nothing_waits.set()
            return super().broadcast(method, caller, waiting_tokens)

    async def wait(chunk: EmbedChunk) -> EmbedResult:
        await may_answer.wait()
        return result_of(chunk)

    handle = Listening(wait, states=[STATE])
    await client_of(handle).embed(tokenized([1, 2, 3]), request_id="an-id")
    await nothing_waits.wait()

    assert {tokens for _, tokens in handle.told} == {3, 0}
    assert len({caller for caller, _ in handle.told}) == 1


async def test_a_model_that_may_rest_is_ready_without_a_replica() -> None:
    """Whoever keeps requests away while `/ready` is 503 would never let the one through that wakes it."""
    client = client_of(FakeHandle(answer, states=[]), scales_to_zero=True)

    assert await client.is_ready()


@pytest.mark.parametrize(
    "error", [TimeoutError(), ActorDiedError(), DeploymentUnavailableError(None)]
)
async def test_a_model_that_cannot_be_asked_is_not_ready(error: Exception) -> None:
    """The scrape and `/ready` go on without it."""
    handle = FakeHandle(answer)
    handle.broadcast_error = error

    assert await client_of(handle).states() == []


# Going away.


async def test_a_client_that_leaves_cancels_its_calls() -> None:
    """All of them, also in Ray Serve."""
    metrics, handle = Metrics(), FakeHandle(never, states=[STATE])
    client = client_of(handle, metrics=metrics)
    inputs = tokenized([1] * 9, [2] * 9, [3] * 9)
    task = asyncio.create_task(client.embed(inputs, request_id="an-id"))
    await turns()

    task.cancel()
    await asyncio.wait([task])
    await turns()

    assert task.cancelled()
    assert [call.is_cancelled for call in handle.calls] == [True] * 2
    assert counted(metrics, "embeddings_pending_tokens", model="m") == 0


async def test_the_first_failure_ends_the_other_calls() -> None:
    """The request has failed; nobody needs their vectors, and those not sent stay at home."""

    async def fail_second(chunk: EmbedChunk) -> EmbedResult:
        if chunk.inputs.ids[0] == 2:
            raise BackPressureError(num_queued_requests=9, max_queued_requests=8)
        return await never(chunk)

    handle = FakeHandle(fail_second, states=[STATE])
    inputs = tokenized(*([i] * 9 for i in range(1, 8)))

    with pytest.raises(OverloadedError):
        await client_of(handle).embed(inputs, request_id="an-id")
    await turns()

    cancelled = {int(chunk.inputs.ids[0]): call.is_cancelled
                 for chunk, call in zip(handle.chunks, handle.calls, strict=True)}  # fmt: skip
    assert cancelled == {1: True, 2: False}


async def test_a_call_that_is_given_up_and_fails_is_not_written_about() -> None:
    """Errors that nobody looked at are logged by asyncio, with messages that can hold anything."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))

    async def fail_when_cancelled(chunk: EmbedChunk) -> EmbedResult:
        try:
            return await never(chunk)
        except asyncio.CancelledError:
            raise RuntimeError("as Ray does") from None

    client = client_of(FakeHandle(fail_when_cancelled, states=[]), replica_wait_timeout_s=0.01)
    with pytest.raises(UnavailableError):
        await client.embed(tokenized([1]), request_id="an-id")
    await turns()
    gc.collect()

    assert complaints == []


async def turns() -> None:
    """Let the loop turn until nothing that is ready is left to do."""
    for _ in range(10):
        await asyncio.sleep(0)
