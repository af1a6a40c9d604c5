import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from serve_app.dispatch.replica_monitor import ReplicaMonitor
from serve_app.messages import RunningReplica
from tests.support.clock import Clock
from tests.support.fakes import IDLE_REPLICA

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]

RUNNING = RunningReplica(2, IDLE_REPLICA)
PERIOD_S = 0.25


class Watched:
    """A monitor of replicas that the test sets, and what it reports."""

    def __init__(self) -> None:
        self.replicas: Sequence[RunningReplica] = [RUNNING]
        self.is_needed = True
        self.looks: list[tuple[Sequence[RunningReplica], float]] = []
        self.monitor = ReplicaMonitor(
            lambda: self.replicas,
            is_needed=lambda: self.is_needed,
            on_look=lambda replicas, absent_s: self.looks.append((replicas, absent_s)),
            period_s=PERIOD_S,
        )

    @property
    def absent_s(self) -> list[float]:
        """The seconds without a replica that each look reported."""
        return [absent_s for _, absent_s in self.looks]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the monitor reads, and that its sleeps advance."""
    clock = Clock()
    yield_once = asyncio.sleep

    async def sleep(seconds: float) -> None:
        clock.now += seconds
        await yield_once(0)

    monkeypatch.setattr("serve_app.dispatch.replica_monitor.time.monotonic", clock)
    monkeypatch.setattr("serve_app.dispatch.replica_monitor.asyncio.sleep", sleep)
    return clock


async def turns(count: int) -> None:
    """Let other tasks run this many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_first_look_is_immediate() -> None:
    watched = Watched()

    watched.monitor.start()

    assert watched.looks == [([RUNNING], 0)]


async def test_looks_are_repeated_until_no_work_is_pending() -> None:
    watched = Watched()
    watched.monitor.start()

    while len(watched.looks) < 4:
        await turns(1)
    watched.is_needed = False
    await turns(10)
    seen = len(watched.looks)
    watched.is_needed = True
    await turns(10)
    assert len(watched.looks) == seen

    watched.monitor.start()
    assert len(watched.looks) == seen + 1


async def test_starting_twice_looks_once() -> None:
    watched = Watched()

    watched.monitor.start()
    watched.monitor.start()

    assert len(watched.looks) == 1


async def test_the_time_without_a_replica_counts_from_the_start(clock: Clock) -> None:
    watched = Watched()
    watched.replicas = []
    clock.now = 1000

    watched.monitor.start()
    while len(watched.looks) < 4:
        await turns(1)

    assert watched.absent_s[:4] == sorted(watched.absent_s[:4])
    assert watched.absent_s[0] == 0
    assert watched.absent_s[3] >= 3 * PERIOD_S


async def test_a_replica_ends_the_time_without_one() -> None:
    """A replica that cannot embed counts, because Ray Serve will replace it."""
    watched = Watched()
    watched.replicas = []
    watched.monitor.start()
    while len(watched.looks) < 4:
        await turns(1)

    watched.replicas = [RunningReplica(2, None)]
    seen = len(watched.looks)
    while len(watched.looks) < seen + 2:
        await turns(1)

    assert watched.absent_s[-1] == 0


async def test_looking_runs_in_an_empty_context() -> None:
    """Ray Serve cancels everything that was started in a request's context when that request ends."""
    variable: ContextVar[str] = ContextVar("variable", default="")
    watched, seen = Watched(), []
    watched.monitor = ReplicaMonitor(
        list, is_needed=lambda: True, on_look=lambda *_: seen.append(variable.get())
    )
    variable.set("request")

    watched.monitor.start()
    while len(seen) < 2:
        await turns(1)

    assert seen[:2] == ["request", ""]
