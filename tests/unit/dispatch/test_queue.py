import asyncio
import random
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.dispatch.admission import Admission
from serve_app.dispatch.chunks import EmbedChunk, split
from serve_app.dispatch.drain_rate import DrainRate
from serve_app.dispatch.queue import CallQueue, ReplicaDiedError, ReplicaRejectedError
from serve_app.errors import InferenceError, UnavailableError
from serve_app.messages import EmbedCall, EmbedResult
from tests.support.fakes import FakeCaller, result_of, tokenized

pytestmark = pytest.mark.anyio

BUDGET = 10
Sending = asyncio.Task[Sequence[EmbedResult]]
UNAVAILABLE = UnavailableError("no replica", "model_unavailable")
# How a request can end in the last test, other than with its result.
EXPECTED = (
    asyncio.CancelledError, InferenceError, ReplicaRejectedError, UnavailableError, ZeroDivisionError
)  # fmt: skip


class Bench:
    """A queue with a budget of ten tokens and one call in flight. The test ends the calls."""

    def __init__(self, *, max_in_flight: int = 1, **settings: Any) -> None:
        self.caller = FakeCaller(self._answer)
        self.admission = Admission(limit=None)
        self.drain_rate = DrainRate(unknown_s=1)
        defaults = {"budget": BUDGET, "bulk_share": 0.25, "wait_timeout_s": 60}
        self.queue = CallQueue(
            self.caller,
            admission=self.admission,
            drain_rate=self.drain_rate,
            **{**defaults, **settings},
        )
        self.queue.max_in_flight = self.queue.eager_calls = max_in_flight
        self.ends: list[asyncio.Future[None]] = []

    async def _answer(self, call: EmbedCall) -> EmbedResult:
        end = asyncio.get_running_loop().create_future()
        self.ends.append(end)
        await end
        return result_of(call)

    @property
    def calls(self) -> list[list[int]]:
        """The first id of each input in each call."""
        starts = [call.lengths.cumsum() - call.lengths for call in self.caller.calls]
        return [
            call.ids[start].tolist() for call, start in zip(self.caller.calls, starts, strict=True)
        ]

    @property
    def in_flight(self) -> list[int]:
        """The numbers of the calls in flight."""
        return [number for number, end in enumerate(self.ends) if not end.done()]

    async def send(self, *numbers: int, tokens: int = 2, is_bulk: bool = False) -> Sending:
        """Send a request with a chunk of one input for each number, whose ids all equal the number."""
        chunks = [EmbedChunk(tokenized([n] * tokens), "an-id", i) for i, n in enumerate(numbers)]
        task = asyncio.create_task(self.queue.send(chunks, is_bulk=is_bulk))
        await settle()
        return task

    async def end(self, number: int, error: Exception | None = None) -> None:
        """End one call with its results, or with an error."""
        if error is None:
            self.ends[number].set_result(None)
        else:
            self.ends[number].set_exception(error)
        await settle()

    async def end_all(self) -> None:
        """End all calls until none is in flight."""
        while self.in_flight:
            await self.end(self.in_flight[0])

    def assert_empty(self) -> None:
        """Check that nothing is left of any request."""
        assert self.in_flight == []
        assert self.admission.units == self.admission._bulk_units == 0
        assert self.drain_rate.pending == 0


async def settle() -> None:
    """Run the event loop until no task is ready."""
    for _ in range(16):
        await asyncio.sleep(0)


# Calls.


async def test_a_chunk_is_sent_at_once_if_no_call_is_in_flight() -> None:
    bench = Bench()

    await bench.send(1)

    assert bench.calls == [[1]]


async def test_waiting_requests_share_the_next_call_within_its_budget() -> None:
    bench = Bench()
    for number in range(1, 9):
        await bench.send(number)

    await bench.end(0)

    assert bench.calls == [[1], [2, 3, 4, 5, 6]]


async def test_a_larger_chunk_is_a_call_of_its_own() -> None:
    bench = Bench()
    await bench.send(1)
    await bench.send(2, tokens=3 * BUDGET)
    await bench.send(3)

    await bench.end_all()

    assert bench.calls == [[1], [2], [3]]


async def test_each_request_gets_its_own_results() -> None:
    bench = Bench()
    sent = [await bench.send(1), await bench.send(2, 3), await bench.send(4, tokens=5)]

    await bench.end_all()

    results = [[result.vectors.tolist() for result in await task] for task in sent]
    assert results == [
        [result_of(tokenized(ids)).vectors.tolist() for ids in request]
        for request in ([[1, 1]], [[2, 2], [3, 3]], [[4] * 5])
    ]
    bench.assert_empty()


async def test_a_call_reports_the_tokens_that_wait_behind_it() -> None:
    bench = Bench()
    await bench.send(1)
    await bench.send(2, tokens=9)
    await bench.send(3, tokens=4)

    await bench.end(0)

    assert [call.waiting_tokens for call in bench.caller.calls] == [0, 4]
    assert {call.caller for call in bench.caller.calls} == {bench.queue.name}
    assert bench.admission.units == 4
    assert bench.drain_rate.pending == 9 + 4


async def test_calls_run_in_an_empty_context() -> None:
    """Ray Serve cancels everything that was started in a request's context when that request ends."""
    variable: ContextVar[str] = ContextVar("variable", default="")
    seen = []

    async def answer(call: EmbedCall) -> EmbedResult:
        seen.append(variable.get())
        return result_of(call)

    bench = Bench()
    bench.caller._answer = answer
    variable.set("request")

    await bench.send(1)

    assert seen == [""]


@given(st.lists(st.integers(1, 15), min_size=1, max_size=30), st.integers(1, 4))
def test_all_requests_are_sent_in_order_and_within_the_budget(
    lengths: list[int], max_in_flight: int
) -> None:
    async def run() -> Bench:
        bench = Bench(max_in_flight=max_in_flight)
        for number, tokens in enumerate(lengths, 1):
            await bench.send(number, tokens=tokens)
        assert len(bench.in_flight) == min(max_in_flight, len(lengths))
        await bench.end_all()
        return bench

    bench = asyncio.run(run())

    assert [n for call in bench.calls for n in call] == list(range(1, len(lengths) + 1))
    assert all(call.tokens <= BUDGET or len(call) == 1 for call in bench.caller.calls)
    bench.assert_empty()


# Fair queueing.


async def test_a_large_request_sends_one_chunk_in_a_call() -> None:
    """A call of half a budget ends sooner, so a request that arrives later waits less."""
    bench = Bench(max_in_flight=2)

    await bench.send(1, 2, 3, tokens=BUDGET // 2)

    assert bench.calls == [[1], [2]]


async def test_a_later_request_goes_before_the_next_chunks_of_a_large_one() -> None:
    bench = Bench()
    await bench.send(*range(10, 16), tokens=5)
    await bench.end(0)
    await bench.send(1, tokens=5)

    await bench.end(1)

    assert bench.calls == [[10], [11], [1, 12]]


@pytest.mark.parametrize(("arriving", "share"), [(1, 1 / 2), (2, 1 / 3)])
async def test_a_large_request_shares_with_those_that_keep_arriving(
    arriving: int, share: float
) -> None:
    """A call has room for two chunks, so two arrivals a call would fill all calls."""
    bench = Bench()
    await bench.send(*[100] * 60, tokens=5)
    for number in range(40):
        for _ in range(arriving):
            await bench.send(number, tokens=5)
        await bench.end(number)

    sent = [n for call in bench.calls for n in call]
    assert sent.count(100) == pytest.approx(len(sent) * share, abs=3)


async def test_a_steady_stream_of_requests_does_not_starve_a_large_one() -> None:
    bench = Bench()
    large = await bench.send(*[100] * 10, tokens=5)

    number = 0
    while not large.done():
        await bench.send(number % 50, tokens=5)
        await bench.send(number % 50, tokens=5)
        await bench.end(number)
        number += 1
        assert number < 60


# Classes.


async def test_interactive_chunks_go_before_bulk() -> None:
    bench = Bench()
    await bench.send(1)
    await bench.send(2, is_bulk=True)
    await bench.send(3)

    await bench.end(0)

    assert bench.calls == [[1], [3]]


async def test_a_call_carries_chunks_of_one_class() -> None:
    """A bulk chunk would make interactive ones wait."""
    bench = Bench()
    await bench.send(1)
    for number in (2, 3):
        await bench.send(number)
        await bench.send(10 * number, is_bulk=True)

    await bench.end_all()

    assert bench.calls == [[1], [2, 3], [20, 30]]


async def test_bulk_gets_its_share_of_tokens_while_both_wait() -> None:
    bench = Bench(bulk_share=0.25)
    for _ in range(60):
        await bench.send(1, tokens=10)
        await bench.send(2, tokens=10, is_bulk=True)

    for number in range(40):
        await bench.end(number)

    assert [n for call in bench.calls[:40] for n in call].count(2) == pytest.approx(10, abs=1)


@pytest.mark.parametrize("has_bulk_share", [True, False])
async def test_a_class_with_little_traffic_builds_up_no_large_claim(has_bulk_share: bool) -> None:  # noqa: FBT001
    """After many calls of one class, the other class is owed at most one call."""
    bench = Bench(bulk_share=0.5 if has_bulk_share else 0.0)
    await bench.send(2, tokens=10, is_bulk=True)
    for _ in range(30):
        await bench.send(1, tokens=10)
    await bench.send(2, tokens=10, is_bulk=True)
    for number in range(3):
        await bench.end(number)

    assert [n for call in bench.calls for n in call].count(2) <= 2


async def test_without_a_share_bulk_waits_for_all_interactive_chunks() -> None:
    bench = Bench(bulk_share=0.0)
    await bench.send(1)
    await bench.send(2, is_bulk=True)
    for _ in range(3):
        await bench.send(3, tokens=10)

    await bench.end_all()

    assert bench.calls == [[1], [3], [3], [3], [2]]


# Endings.


async def test_a_cancelled_request_leaves_the_queue_at_once() -> None:
    bench = Bench()
    await bench.send(1)
    waiting = await bench.send(2, 3, is_bulk=True)

    waiting.cancel()
    await settle()

    assert bench.admission.units == 0
    assert bench.drain_rate.pending == 2
    await bench.end_all()
    assert bench.calls == [[1]]
    bench.assert_empty()


async def test_a_call_is_cancelled_once_nobody_waits_for_it() -> None:
    bench = Bench()
    await bench.send(1)
    first, second = await bench.send(2), await bench.send(3)
    await bench.end(0)

    first.cancel()
    await settle()
    assert bench.in_flight == [1]
    second.cancel()
    await settle()

    assert bench.ends[1].cancelled()
    bench.assert_empty()


async def test_a_call_has_a_limited_number_of_inputs() -> None:
    """Their vectors have to fit one message."""
    bench = Bench(budget=10_000)
    blocking = await bench.send(1)
    inputs = tokenized(*[[1]] * 1500)
    large = [asyncio.create_task(bench.queue.send([EmbedChunk(inputs, "an-id")])) for _ in range(2)]
    await settle()

    await bench.end_all()
    await asyncio.gather(blocking, *large)

    assert [len(call) for call in bench.caller.calls] == [1, 1500, 1500]


async def test_an_error_reaches_exactly_the_requests_of_its_call() -> None:
    bench = Bench(max_in_flight=2)
    failed, answered = await bench.send(1), await bench.send(2)

    await bench.end(0, ZeroDivisionError())
    await bench.end(1)

    with pytest.raises(ZeroDivisionError):
        await failed
    assert len(await answered) == 1
    bench.assert_empty()


async def test_a_result_that_cannot_be_read_fails_its_requests() -> None:
    """Otherwise they would wait forever. A replica of another version may return such a result."""

    async def answer(_call: EmbedCall) -> Any:
        return "a result of another version"

    bench = Bench()
    bench.caller._answer = answer

    task = await bench.send(1)

    with pytest.raises(AttributeError):
        await task
    bench.assert_empty()


async def test_the_first_failure_ends_a_request() -> None:
    bench = Bench(max_in_flight=2)
    large = await bench.send(1, 2, 3, 4)

    await bench.end(0, ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        await large
    assert [4] not in bench.calls
    bench.assert_empty()


async def test_fail_waiting_fails_old_chunks_and_spares_new_ones() -> None:
    bench = Bench()
    in_flight, waiting = await bench.send(1), await bench.send(2, 3)

    bench.queue.fail_waiting(UNAVAILABLE, after_s=1000)
    await settle()
    assert not waiting.done()
    bench.queue.fail_waiting(UNAVAILABLE, after_s=0)
    await settle()

    for task in (in_flight, waiting):
        with pytest.raises(UnavailableError):
            await task
    bench.assert_empty()


# Deaths and rejections.


async def test_chunks_whose_replica_died_are_sent_again_alone() -> None:
    bench = Bench()
    await bench.send(9)
    sent = [await bench.send(1), await bench.send(2)]
    await bench.end(0)

    await bench.end(1, ReplicaDiedError())
    await bench.send(3)
    await bench.end_all()

    assert bench.calls == [[9], [1, 2], [1], [2], [3]]
    assert [call.is_retry for call in bench.caller.calls] == [False, False, True, True, False]
    assert bench.caller.retries == [2]
    assert all(task.done() for task in sent)
    bench.assert_empty()


async def test_a_chunk_that_two_replicas_held_when_they_died_is_the_cause() -> None:
    bench = Bench()
    poison = await bench.send(1)

    await bench.end(0, ReplicaDiedError())
    await bench.end(1, ReplicaDiedError())

    with pytest.raises(InferenceError) as error:
        await poison
    assert error.value.param == "input[0]"
    assert bench.caller.retries == [1]
    bench.assert_empty()


async def test_a_rejected_chunk_is_sent_again_until_its_timeout() -> None:
    bench = Bench(wait_timeout_s=60)
    patient = await bench.send(1)
    await bench.end(0, ReplicaRejectedError())
    assert bench.calls == [[1], [1]]
    assert not bench.caller.calls[1].is_retry
    await bench.end(1)
    assert len(await patient) == 1

    impatient = Bench(wait_timeout_s=-1)
    task = await impatient.send(1)
    await impatient.end(0, ReplicaRejectedError())
    with pytest.raises(ReplicaRejectedError):
        await task
    assert impatient.caller.retries == []
    impatient.assert_empty()


async def test_a_request_that_is_cancelled_while_its_retry_pauses_is_not_sent_again() -> None:
    bench = Bench()
    pausing = asyncio.Event()

    async def pause(*, retries: int) -> None:
        assert retries == 1
        pausing.set()
        await asyncio.Event().wait()

    bench.caller.pause = pause  # type: ignore[method-assign]
    task = await bench.send(1)
    await bench.end(0, ReplicaDiedError())
    await pausing.wait()

    task.cancel()
    await settle()

    assert bench.calls == [[1]]
    bench.assert_empty()


# Everything together.


class Chaos:
    """Random events on a queue, at random turns of the event loop."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.bench = Bench(wait_timeout_s=self.chance.choice([60, -1]))
        self.bench.caller.pause = self.pause  # type: ignore[method-assign]
        self.sent: list[tuple[Sending, list[list[int]]]] = []

    async def turns(self, most: int) -> None:
        """Run the event loop for up to this many turns."""
        for _ in range(self.chance.randint(0, most)):
            await asyncio.sleep(0)

    async def pause(self, *, retries: int) -> None:  # noqa: ARG002
        """Pause before a retry, often longer than other events take."""
        await self.turns(12)

    def happen(self) -> None:
        """Cause one event."""
        events = [self.send, self.end, self.cancel, self.change_limits, self.fail_waiting]
        self.chance.choices(events, weights=[40, 40, 15, 3, 2])[0]()

    def send(self) -> None:
        """Send a request, rarely a large one."""
        count = self.chance.choice([1, 1, 1, 2, 20])
        inputs = [[self.chance.randint(1, 99)] * self.chance.randint(1, 6) for _ in range(count)]
        chunks = split(tokenized(*inputs), chunk_tokens=BUDGET // 2, request_id="an-id")
        sending = self.bench.queue.send(chunks, is_bulk=self.chance.random() < 0.4)
        self.sent.append((asyncio.create_task(sending), inputs))

    def end(self) -> None:
        """End one call, mostly with its results."""
        errors = [ReplicaDiedError(), ReplicaRejectedError(), ZeroDivisionError()]
        in_flight = self.bench.in_flight
        if not in_flight:
            return
        end = self.bench.ends[self.chance.choice(in_flight)]
        if self.chance.random() < 0.3:
            end.set_exception(self.chance.choice(errors))
        else:
            end.set_result(None)

    def cancel(self) -> None:
        """Cancel one of the last requests."""
        if self.sent:
            self.chance.choice(self.sent[-12:])[0].cancel()

    def change_limits(self) -> None:
        """Change the limits as the replicas do."""
        self.bench.queue.max_in_flight = self.chance.randint(1, 4)
        self.bench.queue.eager_calls = self.chance.randint(1, 4)
        self.bench.queue.budget = self.chance.choice([4, BUDGET, 30])
        self.bench.queue.start_calls()

    def fail_waiting(self) -> None:
        """Fail all chunks."""
        self.bench.queue.fail_waiting(UNAVAILABLE, after_s=0)


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_and_nothing_is_left(seed: int) -> None:
    """Each request gets its result or one of the expected errors."""
    chaos = Chaos(seed)
    for _ in range(300):
        chaos.happen()
        await chaos.turns(3)
    await settle()
    while chaos.bench.in_flight:
        await chaos.bench.end_all()
        await settle()

    chaos.bench.assert_empty()
    tasks = [task for task, _ in chaos.sent]
    assert all(task.done() for task in tasks)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome, (_, inputs) in zip(outcomes, chaos.sent, strict=True):
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, EXPECTED)
        else:
            rows = [row for result in outcome for row in result.vectors.tolist()]
            assert rows == result_of(tokenized(*inputs)).vectors.tolist()
