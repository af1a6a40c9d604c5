import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.dispatch.queue import Answered, CallQueue, ReplicaDiedError, ReplicaRejectedError
from serve_app.messages import EmbedChunk, EmbedResult
from tests.support.fakes import result_of, tokenized

pytestmark = pytest.mark.anyio


class Replicas:
    """Replicas that answer a call when the test ends it, and record the chunks of each call."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self._ends: list[asyncio.Future[None]] = []

    async def call(self, chunks: Sequence[EmbedChunk]) -> Sequence[EmbedResult]:
        """Answer once the test ends the call."""
        end = asyncio.get_running_loop().create_future()
        self.calls.append([number_of(chunk) for chunk in chunks])
        self._ends.append(end)
        await end
        return [result_of(chunk) for chunk in chunks]

    @property
    def in_flight(self) -> list[int]:
        """The numbers of the calls in flight."""
        return [number for number, end in enumerate(self._ends) if not end.done()]

    async def end(self, number: int, error: Exception | None = None) -> None:
        """End one call with its results, or with an error."""
        if error is None:
            self._ends[number].set_result(None)
        else:
            self._ends[number].set_exception(error)
        await settle()


async def no_pause() -> None:
    """Do not wait before sending again."""


def queue_of(
    call: Callable[[Sequence[EmbedChunk]], Awaitable[Sequence[EmbedResult]]], **settings: Any
) -> CallQueue:
    """Make a queue with a budget of ten tokens and one call in flight."""
    defaults = {
        "budget": 10,
        "max_in_flight": 1,
        "bulk_share": 0.25,
        "max_attempts": 3,
        "wait_timeout_s": 60,
        "on_retry": lambda: None,
        "pause": no_pause,
    }
    return CallQueue(call, **{**defaults, **settings})


def chunk(number: int, tokens: int = 2) -> EmbedChunk:
    """Make a chunk of one input whose ids all equal `number`."""
    return EmbedChunk(tokenized([number] * tokens), f"id-{number}")


def number_of(chunk: EmbedChunk) -> int:
    """Return the `number` that the chunk was made with."""
    return int(chunk.inputs.ids[0])


async def settle() -> None:
    """Run the event loop until no task is ready."""
    for _ in range(12):
        await asyncio.sleep(0)


async def send_all(queue: CallQueue, chunks: Sequence[EmbedChunk]) -> list[asyncio.Task[Answered]]:
    """Send chunks one after the other, without waiting for their results."""
    tasks = []
    for each in chunks:
        tasks.append(asyncio.create_task(queue.send(each)))
        await settle()
    return tasks


async def test_a_chunk_is_sent_at_once_if_no_call_is_in_flight() -> None:
    replicas = Replicas()

    await send_all(queue_of(replicas.call), [chunk(1)])

    assert replicas.calls == [[1]]


async def test_waiting_chunks_share_the_next_call_within_its_budget() -> None:
    replicas = Replicas()
    await send_all(queue_of(replicas.call), [chunk(n) for n in range(1, 9)])

    await replicas.end(0)

    assert replicas.calls == [[1], [2, 3, 4, 5, 6]]


async def test_each_chunk_gets_its_own_result() -> None:
    replicas = Replicas()
    tasks = await send_all(queue_of(replicas.call), [chunk(1), chunk(2), chunk(3, tokens=5)])

    await replicas.end(0)
    await replicas.end(1)

    results = [(await task).result for task in tasks]
    assert [result.vectors.tolist() for result in results] == [
        result_of(each).vectors.tolist() for each in (chunk(1), chunk(2), chunk(3, tokens=5))
    ]


async def test_a_cancelled_chunk_is_not_sent() -> None:
    replicas = Replicas()
    tasks = await send_all(queue_of(replicas.call), [chunk(1), chunk(2, tokens=9), chunk(3)])

    tasks[1].cancel()
    await settle()
    await replicas.end(0)

    assert replicas.calls == [[1], [3]]


async def test_a_call_without_waiting_callers_is_cancelled() -> None:
    replicas = Replicas()
    tasks = await send_all(queue_of(replicas.call), [chunk(1), chunk(2)])

    tasks[0].cancel()
    await settle()

    assert replicas.calls == [[1], [2]]


async def test_a_call_goes_on_while_one_caller_waits_for_it() -> None:
    replicas = Replicas()
    tasks = await send_all(queue_of(replicas.call), [chunk(1), chunk(2), chunk(3)])
    await replicas.end(0)

    tasks[1].cancel()
    await settle()
    await replicas.end(1)

    assert (await tasks[2]).result.vectors.tolist() == result_of(chunk(3)).vectors.tolist()


async def test_an_error_reaches_exactly_the_callers_of_its_call() -> None:
    replicas = Replicas()
    tasks = await send_all(
        queue_of(replicas.call), [chunk(1), chunk(2), chunk(3), chunk(4, tokens=9)]
    )
    await replicas.end(0)

    await replicas.end(1, ValueError("an error"))
    await replicas.end(2)

    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Answered, ValueError, ValueError, Answered]


async def test_chunks_whose_replica_died_are_sent_again_alone() -> None:
    replicas = Replicas()
    await send_all(queue_of(replicas.call), [chunk(n) for n in range(1, 4)] + [chunk(4, tokens=8)])
    await replicas.end(0)

    await replicas.end(1, ReplicaDiedError())
    await replicas.end(2)
    await replicas.end(3)

    assert replicas.calls == [[1], [2, 3], [2], [3], [4]]


async def test_a_chunk_fails_after_max_attempts_deaths() -> None:
    retries: list[None] = []
    replicas = Replicas()
    tasks = await send_all(
        queue_of(replicas.call, on_retry=lambda: retries.append(None)), [chunk(1), chunk(2)]
    )

    for number in range(3):
        await replicas.end(number, ReplicaDiedError())

    assert replicas.calls == [[1], [1], [1], [2]]
    assert len(retries) == 2
    with pytest.raises(ReplicaDiedError):
        await tasks[0]


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    max_in_flight=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_all_chunks_are_sent_in_order_and_within_the_budget(
    sizes: list[int], max_in_flight: int, order: Any
) -> None:
    async def run() -> tuple[Replicas, list[Answered]]:
        replicas = Replicas()
        queue = queue_of(replicas.call, max_in_flight=max_in_flight)
        chunks = [chunk(number, tokens=size) for number, size in enumerate(sizes)]
        tasks = [asyncio.create_task(queue.send(each)) for each in chunks]
        await settle()
        while replicas.in_flight:
            assert len(replicas.in_flight) <= max_in_flight
            await replicas.end(order.choice(replicas.in_flight))
        return replicas, await asyncio.gather(*tasks)

    replicas, answers = asyncio.run(run())

    assert [n for call in replicas.calls for n in call] == list(range(len(sizes)))
    assert all(len(call) == 1 or sum(sizes[n] for n in call) <= 10 for call in replicas.calls)
    assert len(answers) == len(sizes)


async def test_interactive_chunks_go_before_bulk() -> None:
    replicas = Replicas()
    queue = queue_of(replicas.call)
    await send_all(queue, [chunk(1)])
    for number in (2, 3, 4):
        asyncio.create_task(queue.send(chunk(number, 4), is_bulk=True))  # noqa: RUF006
    await send_all(queue, [chunk(5), chunk(6)])

    for number in range(3):
        await replicas.end(number)

    assert replicas.calls == [[1], [5, 6, 2], [3, 4]]


async def test_bulk_gets_its_share_of_tokens_while_both_wait() -> None:
    replicas = Replicas()
    queue = queue_of(replicas.call)
    await send_all(queue, [chunk(0)])
    for number in range(1, 5):
        asyncio.create_task(queue.send(chunk(number, 10), is_bulk=True))  # noqa: RUF006
    await send_all(queue, [chunk(number, 10) for number in range(11, 20)])

    for number in range(10):
        await replicas.end(number)

    order = [11, 1, 12, 13, 14, 2, 15, 16, 17, 3]
    assert replicas.calls == [[0], *([number] for number in order)]


async def test_bulk_sent_alone_does_not_count_against_its_share() -> None:
    replicas = Replicas()
    queue = queue_of(replicas.call)
    for number in range(4):
        asyncio.create_task(queue.send(chunk(number, 10), is_bulk=True))  # noqa: RUF006
    await settle()
    await replicas.end(0)
    await replicas.end(1)
    await send_all(queue, [chunk(11, 10), chunk(12, 10)])

    await replicas.end(2)
    await replicas.end(3)

    assert replicas.calls == [[0], [1], [2], [11], [3]]


@pytest.mark.parametrize("bulk_is_light", [False, True])
async def test_a_class_with_little_traffic_builds_up_no_large_claim(
    bulk_is_light: bool,  # noqa: FBT001
) -> None:
    replicas = Replicas()
    queue = queue_of(replicas.call)
    await send_all(queue, [chunk(0)])
    ends = 0
    for _ in range(200):
        for is_bulk in (False, True):
            tokens = 1 if is_bulk is bulk_is_light else 4
            for _ in range(2):
                asyncio.create_task(queue.send(chunk(1, tokens), is_bulk=is_bulk))  # noqa: RUF006
        await settle()
        await replicas.end(ends)
        ends += 1
    for number in range(20):
        asyncio.create_task(queue.send(chunk(100 + number, 10), virtual_start=0.0))  # noqa: RUF006
        asyncio.create_task(queue.send(chunk(200 + number, 10), is_bulk=True, virtual_start=0.0))  # noqa: RUF006
    await settle()
    first = len(replicas.calls)

    for number in range(16):
        await replicas.end(ends + number)

    bulk_calls = [call for call in replicas.calls[first:] if call[0] >= 200]
    assert 3 <= len(bulk_calls) <= 6


async def test_waiting_chunks_are_sorted_by_virtual_start_time() -> None:
    replicas = Replicas()
    queue = queue_of(replicas.call)
    await send_all(queue, [chunk(1)])
    asyncio.create_task(queue.send(chunk(2, 9)))  # noqa: RUF006
    await settle()
    asyncio.create_task(queue.send(chunk(3, 9), virtual_start=0.0))  # noqa: RUF006
    await settle()

    for number in range(2):
        await replicas.end(number)

    assert replicas.calls == [[1], [3], [2]]


async def test_fail_waiting_fails_old_chunks_and_spares_new_ones() -> None:
    replicas = Replicas()
    queue = queue_of(replicas.call)
    early = await send_all(queue, [chunk(1), chunk(2, 9)])
    await asyncio.sleep(0.3)
    await send_all(queue, [chunk(3, 9)])

    queue.fail_waiting(ReplicaRejectedError(), after_s=0.2)
    await settle()

    for task in early:
        with pytest.raises(ReplicaRejectedError):
            await task
    assert replicas.calls == [[1], [3]]


async def test_a_cancelled_bulk_chunk_is_not_sent() -> None:
    replicas = Replicas()
    queue = queue_of(replicas.call)
    await send_all(queue, [chunk(1)])
    cancelled = asyncio.create_task(queue.send(chunk(2), is_bulk=True))
    await send_all(queue, [chunk(3)])
    cancelled.cancel()
    await settle()

    await replicas.end(0)

    assert replicas.calls == [[1], [3]]


async def test_a_rejected_chunk_is_sent_again_until_its_timeout() -> None:
    """The timeout starts when this chunk was first rejected, not when any other chunk was."""
    replicas = Replicas()
    queue = queue_of(replicas.call, wait_timeout_s=0.02)
    early, *_ = await send_all(queue, [chunk(1)])
    await replicas.end(0, ReplicaRejectedError())
    await asyncio.sleep(0.03)
    await replicas.end(1, ReplicaRejectedError())
    late, *_ = await send_all(queue, [chunk(2)])
    await replicas.end(2, ReplicaRejectedError())
    await replicas.end(3)

    with pytest.raises(ReplicaRejectedError):
        await early
    assert (await late).result.batch_inputs == 1
    assert replicas.calls == [[1], [1], [2], [2]]
