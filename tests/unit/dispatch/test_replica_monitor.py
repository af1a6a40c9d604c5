import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from itertools import pairwise
from types import SimpleNamespace

import pytest

from serve_app.dispatch.replica_monitor import ReplicaMonitor
from serve_app.messages import ReplicaState
from tests.support.clock import Clock
from tests.support.fakes import IDLE_REPLICA, LATE, FakeHandle, result_of

pytestmark = pytest.mark.anyio

MODULE = "serve_app.dispatch.replica_monitor"


class ObservedHandle(FakeHandle):
    """A handle that calls a function before each broadcast."""

    def __init__(self, on_broadcast: Callable[[FakeHandle], None]) -> None:
        super().__init__(lambda chunk: asyncio.sleep(0, result_of(chunk)), states=[IDLE_REPLICA])
        self._on_broadcast = on_broadcast

    def broadcast(self, method: str, caller: str, waiting_tokens: int) -> SimpleNamespace:
        """Call the function, then record the call."""
        self._on_broadcast(self)
        return super().broadcast(method, caller, waiting_tokens)


class World:
    """A model with pending tokens, whose replicas are polled while a clock jumps ahead.

    Args:
        clock: the clock that the monitor reads.
        pause_s: the monitor's `pause_s`.
        on_broadcast: called with the handle before each poll.

    Attributes:
        waiting_tokens: the number of pending tokens.
        polled_at: the time of each poll.
        seen: what each poll reported: the states, and the seconds without a ready replica.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        pause_s: float = 60,
        on_broadcast: Callable[[FakeHandle], None] = lambda _: None,
    ) -> None:
        self.waiting_tokens = 3
        self.polled_at: list[float] = []
        self.seen: list[tuple[Sequence[ReplicaState | None], float]] = []
        self.handle = ObservedHandle(on_broadcast)
        self._clock = clock
        self._is_over = asyncio.Event()
        self._remaining, self._finish = 0, True
        self.monitor = ReplicaMonitor(
            self.handle,
            waiting_tokens=lambda: self.waiting_tokens,
            on_poll=self._on_poll,
            pause_s=pause_s,
        )

    async def poll(self, polls: int, *, finish: bool = True) -> None:
        """Poll this many times, and finish all pending tokens during the last poll, or none."""
        self._remaining, self._finish = polls, finish
        self.waiting_tokens = 3
        self._is_over.clear()
        self.monitor.start()
        await self._is_over.wait()

    @property
    def pauses(self) -> list[float]:
        """The seconds between the polls."""
        return [round(later - earlier, 6) for earlier, later in pairwise(self.polled_at)]

    def _on_poll(self, states: Sequence[ReplicaState | None], absent_s: float) -> None:
        self.polled_at.append(self._clock())
        self.seen.append((states, round(absent_s, 6)))
        self._remaining -= 1
        if self._remaining == 0:
            self.waiting_tokens = 0 if self._finish else self.waiting_tokens
            self._is_over.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that jumps ahead whenever the monitor sleeps."""
    clock = Clock()

    async def sleep(seconds: float) -> None:
        clock.now += seconds
        await asyncio.sleep(0)

    monkeypatch.setattr(f"{MODULE}.time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(
        f"{MODULE}.asyncio", SimpleNamespace(sleep=sleep, create_task=asyncio.create_task)
    )
    return clock


# What a poll exchanges.


async def test_asking_returns_the_state_of_every_live_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{MODULE}._POLL_S", 0.02)
    world = World(Clock())
    world.handle.states = [IDLE_REPLICA, None, LATE, RuntimeError("dying")]

    assert await world.monitor.ask() == [IDLE_REPLICA, None, None]


async def test_polls_report_pending_tokens_until_none_are_left(clock: Clock) -> None:
    world = World(clock)
    await world.poll(3, finish=False)

    world.waiting_tokens = 0
    await settle()

    assert [tokens for _, tokens in world.handle.polls] == [3, 3, 3, 0]
    assert len({caller for caller, _ in world.handle.polls}) == 1


async def test_polling_stops_when_no_tokens_are_pending(clock: Clock) -> None:
    world = World(clock)

    await world.poll(2)
    await settle()

    assert len(world.handle.polls) == 2


async def test_each_monitor_has_a_name_of_its_own() -> None:
    worlds = [World(Clock()), World(Clock())]

    for world in worlds:
        await world.monitor.ask()

    assert len({caller for world in worlds for caller, _ in world.handle.polls}) == 2


async def test_replicas_that_are_not_ready_are_reported_as_none(clock: Clock) -> None:
    world = World(clock)
    world.handle.states = [None, IDLE_REPLICA, RuntimeError("dying")]

    await world.poll(1)

    assert world.seen == [([None, IDLE_REPLICA], 0)]


async def test_polling_runs_in_an_empty_context(clock: Clock) -> None:
    """Ray Serve cancels what was started in a request's context when that request ends."""
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    world = World(clock, on_broadcast=lambda _: seen.append(request.get()))

    request.set("an-id")
    await world.poll(1)

    assert seen == ["none"]


# When polls happen.


async def test_polling_is_fast_after_an_idle_time(clock: Clock) -> None:
    """Ingress replicas have to learn of each other while a burst lasts."""
    world = World(clock)
    started = clock.now

    await world.poll(10)

    within_a_second = [now for now in world.polled_at if now < started + 1]
    assert len(within_a_second) >= 3
    assert within_a_second[0] == started


async def test_pauses_double_up_to_two_seconds(clock: Clock) -> None:
    world = World(clock)

    await world.poll(10)

    assert world.pauses[0] <= 0.2
    assert world.pauses[-1] == 2
    assert all(later == min(2 * earlier, 2) for earlier, later in pairwise(world.pauses))


@pytest.mark.parametrize("pause_s", [0.5, 0.01])
async def test_pauses_are_at_most_pause_s(clock: Clock, pause_s: float) -> None:
    world = World(clock, pause_s=pause_s)

    await world.poll(10)

    assert max(world.pauses) == world.pauses[-1] == pause_s


async def test_a_short_idle_time_does_not_make_polling_fast(clock: Clock) -> None:
    world = World(clock)
    await world.poll(10)

    clock.now += 0.5
    await world.poll(3)

    assert world.pauses[-3:] == [2, 2, 2]


async def test_a_long_idle_time_makes_polling_fast_again(clock: Clock) -> None:
    world = World(clock)
    await world.poll(10)

    clock.now += 4.1
    await world.poll(3)

    assert world.pauses[-3] == 4.1
    assert world.pauses[-2:] == world.pauses[:2]


async def test_starting_twice_polls_once(clock: Clock) -> None:
    world = World(clock)

    world.monitor.start()
    world.monitor.start()
    await world.poll(4)
    await settle()

    assert len(world.handle.polls) == 4


async def test_polling_can_start_again_after_a_poll_has_failed(clock: Clock) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # nobody awaits the failure
    world = World(clock)
    world.handle.broadcast_error = AttributeError("an unexpected error")
    world.monitor.start()
    await settle()
    assert len(world.handle.polls) == 1

    world.handle.broadcast_error = None
    await asyncio.wait_for(world.poll(2), 5)

    assert len(world.seen) == 2


# How long no replica was ready.


async def test_the_time_without_a_ready_replica_starts_at_the_start(clock: Clock) -> None:
    world = World(clock)
    world.handle.states = [None]
    started = clock.now

    await world.poll(4)

    assert [absent_s for _, absent_s in world.seen] == [
        round(now - started, 6) for now in world.polled_at
    ]
    assert world.seen[-1][1] > 1


async def test_idle_time_is_no_time_without_a_ready_replica(clock: Clock) -> None:
    world = World(clock)
    await world.poll(1)
    world.handle.states = []

    clock.now += 3600
    await world.poll(1)

    assert [absent_s for _, absent_s in world.seen] == [0, 0]


async def test_a_ready_replica_ends_the_time_without_one(clock: Clock) -> None:
    states: list[list[ReplicaState | None]] = [
        [],
        [None],
        [None, IDLE_REPLICA],
        [],
        [None],
        [IDLE_REPLICA],
    ]

    def change(handle: FakeHandle) -> None:
        handle.states = states[len(handle.polls)]

    world = World(clock, on_broadcast=change)

    await world.poll(6)

    at, absent_s = world.polled_at, [seconds for _, seconds in world.seen]
    expected = [0, at[1] - at[0], 0, at[3] - at[2], at[4] - at[2], 0]
    assert absent_s == pytest.approx(expected)


async def settle() -> None:
    """Run the event loop until no task is ready."""
    for _ in range(20):
        await asyncio.sleep(0)
