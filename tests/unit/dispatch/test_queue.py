"""The queue before the calls: what goes together, in which order, and what becomes of those that leave."""

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
    """Replicas that answer a call when a test says so; remembers what each call carried."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self._ends: list[asyncio.Future[None]] = []

    async def call(self, chunks: Sequence[EmbedChunk]) -> Sequence[EmbedResult]:
        """Keep a call until it is told to end."""
        end = asyncio.get_running_loop().create_future()
        self.calls.append([number_of(chunk) for chunk in chunks])
        self._ends.append(end)
        await end
        return [result_of(chunk) for chunk in chunks]

    @property
    def under_way(self) -> list[int]:
        """The numbers of the calls that have not ended."""
        return [number for number, end in enumerate(self._ends) if not end.done()]

    async def end(self, number: int, error: Exception | None = None) -> None:
        """End one call, well or not."""
        if error is None:
            self._ends[number].set_result(None)
        else:
            self._ends[number].set_exception(error)
        await turns()


async def no_pause() -> None:
    """Send again at once."""


def queue_of(
    call: Callable[[Sequence[EmbedChunk]], Awaitable[Sequence[EmbedResult]]], **settings: Any
) -> CallQueue:
    """Make a queue with a budget of ten tokens and one call at once."""
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
    """Make a chunk of one input, all of whose ids are its number."""
    return EmbedChunk(tokenized([number] * tokens), f"id-{number}")


def number_of(chunk: EmbedChunk) -> int:
    """Return the number that `chunk` was given."""
    return int(chunk.inputs.ids[0])


async def turns() -> None:
    """Let the loop turn until nothing that is ready is left to do."""
    for _ in range(12):
        await asyncio.sleep(0)


async def send_all(queue: CallQueue, chunks: Sequence[EmbedChunk]) -> list[asyncio.Task[Answered]]:
    """Send chunks one after the other without waiting for their results."""
    tasks = []
    for each in chunks:
        tasks.append(asyncio.create_task(queue.send(each)))
        await turns()
    return tasks


async def test_a_chunk_goes_at_once_when_nothing_is_under_way() -> None:
    """A single client does not wait for others."""
    replicas = Replicas()

    await send_all(queue_of(replicas.call), [chunk(1)])

    assert replicas.calls == [[1]]


async def test_what_waits_goes_together() -> None:
    """The next call carries all that came meanwhile, oldest first, within its budget."""
    replicas = Replicas()
    await send_all(queue_of(replicas.call), [chunk(n) for n in range(1, 9)])

    await replicas.end(0)

    assert replicas.calls == [[1], [2, 3, 4, 5, 6]]


async def test_each_chunk_gets_its_own_result() -> None:
    """Also from a call that it shared."""
    replicas = Replicas()
    tasks = await send_all(queue_of(replicas.call), [chunk(1), chunk(2), chunk(3, tokens=5)])

    await replicas.end(0)
    await replicas.end(1)

    results = [(await task).result for task in tasks]
    assert [result.vectors.tolist() for result in results] == [
        result_of(each).vectors.tolist() for each in (chunk(1), chunk(2), chunk(3, tokens=5))
    ]


async def test_a_cancelled_caller_leaves_its_place_to_others() -> None:
    """It is not sent, and nobody waits longer for it."""
    replicas = Replicas()
    tasks = await send_all(queue_of(replicas.call), [chunk(1), chunk(2, tokens=9), chunk(3)])

    tasks[1].cancel()
    await turns()
    await replicas.end(0)

    assert replicas.calls == [[1], [3]]


async def test_a_call_that_nobody_waits_for_is_ended() -> None:
    """Its place is free for the next one."""
    replicas = Replicas()
    tasks = await send_all(queue_of(replicas.call), [chunk(1), chunk(2)])

    tasks[0].cancel()
    await turns()

    assert replicas.calls == [[1], [2]]


async def test_a_call_goes_on_while_one_still_waits_for_it() -> None:
    """A caller that leaves does not take the others' results along."""
    replicas = Replicas()
    tasks = await send_all(queue_of(replicas.call), [chunk(1), chunk(2), chunk(3)])
    await replicas.end(0)

    tasks[1].cancel()
    await turns()
    await replicas.end(1)

    assert (await tasks[2]).result.vectors.tolist() == result_of(chunk(3)).vectors.tolist()


async def test_an_error_reaches_all_that_shared_the_call() -> None:
    """And nobody else."""
    replicas = Replicas()
    tasks = await send_all(
        queue_of(replicas.call), [chunk(1), chunk(2), chunk(3), chunk(4, tokens=9)]
    )
    await replicas.end(0)

    await replicas.end(1, ValueError("an error"))
    await replicas.end(2)

    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Answered, ValueError, ValueError, Answered]


async def test_chunks_of_a_lost_call_go_again_alone_and_first() -> None:
    """One of them may be what the replica died of; the others must not share its fate."""
    replicas = Replicas()
    await send_all(queue_of(replicas.call), [chunk(n) for n in range(1, 4)] + [chunk(4, tokens=8)])
    await replicas.end(0)

    await replicas.end(1, ReplicaDiedError())
    await replicas.end(2)
    await replicas.end(3)

    assert replicas.calls == [[1], [2, 3], [2], [3], [4]]


async def test_a_chunk_that_is_lost_too_often_is_given_up() -> None:
    """The third loss is the last."""
    losses: list[None] = []
    replicas = Replicas()
    tasks = await send_all(
        queue_of(replicas.call, on_retry=lambda: losses.append(None)), [chunk(1), chunk(2)]
    )

    for number in range(3):
        await replicas.end(number, ReplicaDiedError())

    assert replicas.calls == [[1], [1], [1], [2]]
    assert len(losses) == 2
    with pytest.raises(ReplicaDiedError):
        await tasks[0]


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    max_in_flight=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_chunks_go_in_order_within_the_budget_and_none_is_lost(
    sizes: list[int], max_in_flight: int, order: Any
) -> None:
    """Whatever the sizes, and whichever call ends first; never more calls than allowed."""

    async def run() -> tuple[Replicas, list[Answered]]:
        replicas = Replicas()
        queue = queue_of(replicas.call, max_in_flight=max_in_flight)
        chunks = [chunk(number, tokens=size) for number, size in enumerate(sizes)]
        tasks = [asyncio.create_task(queue.send(each)) for each in chunks]
        await turns()
        while replicas.under_way:
            assert len(replicas.under_way) <= max_in_flight
            await replicas.end(order.choice(replicas.under_way))
        return replicas, await asyncio.gather(*tasks)

    replicas, answers = asyncio.run(run())

    assert [n for call in replicas.calls for n in call] == list(range(len(sizes)))
    assert all(len(call) == 1 or sum(sizes[n] for n in call) <= 10 for call in replicas.calls)
    assert len(answers) == len(sizes)


async def test_bulk_is_overtaken() -> None:
    """What somebody waits for goes first, and takes bulk along where there is room."""
    replicas = Replicas()
    queue = queue_of(replicas.call)
    await send_all(queue, [chunk(1)])
    for number in (2, 3, 4):
        asyncio.create_task(queue.send(chunk(number, 4), is_bulk=True))  # noqa: RUF006
    await send_all(queue, [chunk(5), chunk(6)])

    for number in range(3):
        await replicas.end(number)

    assert replicas.calls == [[1], [5, 6, 2], [3, 4]]


async def test_bulk_has_a_share_of_what_is_sent_while_both_wait() -> None:
    """By tokens, and not by calls, so that it holds up nobody who asks for little."""
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


async def test_bulk_that_has_nobody_beside_it_owes_nothing() -> None:
    """What was sent while nobody else waited counts for neither."""
    replicas = Replicas()
    queue = queue_of(replicas.call)
    for number in range(4):
        asyncio.create_task(queue.send(chunk(number, 10), is_bulk=True))  # noqa: RUF006
    await turns()
    await replicas.end(0)
    await replicas.end(1)
    await send_all(queue, [chunk(11, 10), chunk(12, 10)])

    await replicas.end(2)
    await replicas.end(3)

    assert replicas.calls == [[0], [1], [2], [11], [3]]


@pytest.mark.parametrize("bulk_is_light", [False, True])
async def test_a_lane_that_asked_for_little_is_not_owed_much(
    bulk_is_light: bool,  # noqa: FBT001
) -> None:
    """However long it went on: when both want all there is, each gets its share at once."""
    replicas = Replicas()
    queue = queue_of(replicas.call)
    await send_all(queue, [chunk(0)])
    ends = 0
    for _ in range(200):
        for is_bulk in (False, True):
            tokens = 1 if is_bulk is bulk_is_light else 4
            for _ in range(2):
                asyncio.create_task(queue.send(chunk(1, tokens), is_bulk=is_bulk))  # noqa: RUF006
        await turns()
        await replicas.end(ends)
        ends += 1
    for number in range(20):
        asyncio.create_task(queue.send(chunk(100 + number, 10), virtual_start=0.0))  # noqa: RUF006
        asyncio.create_task(queue.send(chunk(200 + number, 10), is_bulk=True, virtual_start=0.0))  # noqa: RUF006
    await turns()
    first = len(replicas.calls)

    for number in range(16):
        await replicas.end(ends + number)

    bulk = sum(call[0] >= 200 for call in replicas.calls[first:])
    assert 3 <= bulk <= 6


async def test_a_chunk_has_the_turn_that_it_is_given() -> None:
    """The later chunks of a request need not wait behind all that came since the request did."""
    replicas = Replicas()
    queue = queue_of(replicas.call)
    await send_all(queue, [chunk(1)])
    asyncio.create_task(queue.send(chunk(2, 9)))  # noqa: RUF006
    await turns()
    asyncio.create_task(queue.send(chunk(3, 9), virtual_start=0.0))  # noqa: RUF006
    await turns()

    for number in range(2):
        await replicas.end(number)

    assert replicas.calls == [[1], [3], [2]]


async def test_giving_up_fails_what_has_waited_so_long() -> None:
    """In a call, whose place is free then, and before one; what came later waits on."""
    replicas = Replicas()
    queue = queue_of(replicas.call)
    early = await send_all(queue, [chunk(1), chunk(2, 9)])
    await asyncio.sleep(0.3)
    await send_all(queue, [chunk(3, 9)])

    queue.fail_waiting(ReplicaRejectedError(), after_s=0.2)
    await turns()

    for task in early:
        with pytest.raises(ReplicaRejectedError):
            await task
    assert replicas.calls == [[1], [3]]


async def test_bulk_that_is_given_up_leaves_its_lane() -> None:
    """As what is not bulk does."""
    replicas = Replicas()
    queue = queue_of(replicas.call)
    await send_all(queue, [chunk(1)])
    left = asyncio.create_task(queue.send(chunk(2), is_bulk=True))
    await send_all(queue, [chunk(3)])
    left.cancel()
    await turns()

    await replicas.end(0)

    assert replicas.calls == [[1], [3]]


async def test_a_chunk_that_is_put_off_goes_again_for_a_while() -> None:
    """Counted from when that chunk was first put off, and not from when any other was."""
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
