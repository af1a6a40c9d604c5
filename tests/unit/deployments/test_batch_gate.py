import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.deployments.batch_gate import Gate

pytestmark = pytest.mark.anyio

BUDGET = 10


@dataclass(eq=False)
class Caller:
    """One call that waits at the gate, is inside, or is done."""

    tokens: int
    inside: asyncio.Event = field(default_factory=asyncio.Event)
    may_leave: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def is_inside(self) -> bool:
        """Whether the call was admitted and has not left."""
        return self.inside.is_set() and not self.is_done

    @property
    def is_done(self) -> bool:
        """Whether the call has left or was cancelled."""
        return self.task is not None and self.task.done()


class Harness:
    """A gate and all calls that have arrived at it."""

    def __init__(self, *, budget: int = BUDGET) -> None:
        self.gate = Gate(budget=budget, max_calls=1000)
        self.callers: list[Caller] = []

    def arrive(self, tokens: int) -> Caller:
        """Start a call; its task runs at the next turn of the loop."""
        caller = Caller(tokens)
        caller.task = asyncio.create_task(self._pass(caller))
        self.callers.append(caller)
        return caller

    async def _pass(self, caller: Caller) -> None:
        async with self.gate.enter(caller.tokens):
            caller.inside.set()
            await caller.may_leave.wait()

    def waiting(self) -> list[Caller]:
        """The waiting calls, in order of arrival."""
        return [c for c in self.callers if not c.inside.is_set() and not c.is_done]

    def inside(self) -> list[Caller]:
        """The admitted calls."""
        return [c for c in self.callers if c.is_inside]

    async def drain(self) -> None:
        """Let every call leave, and check that all did so without an error."""
        for caller in self.callers:
            caller.may_leave.set()
        for _ in self.callers:
            await settle()
        tasks = [caller.task for caller in self.callers if caller.task is not None]
        assert [task for task in tasks if not task.done()] == []
        assert [task for task in tasks if not task.cancelled() and task.exception()] == []


async def settle() -> None:
    """Run the event loop until no task is ready."""
    for _ in range(6):
        await asyncio.sleep(0)


async def test_the_first_call_is_admitted_at_once() -> None:
    harness = Harness()

    caller = harness.arrive(1)
    await settle()

    assert caller.is_inside
    await harness.drain()


async def test_late_arrivals_wait_and_are_admitted_together() -> None:
    harness = Harness()
    first = harness.arrive(9)
    late = [harness.arrive(3) for _ in range(3)]
    await settle()
    waited = harness.waiting()

    first.may_leave.set()
    await settle()

    assert waited == late
    assert harness.inside() == late
    await harness.drain()


async def test_only_one_full_batch_is_admitted_ahead() -> None:
    harness = Harness()
    harness.arrive(BUDGET)
    ahead = harness.arrive(BUDGET)
    second = harness.arrive(BUDGET)
    await settle()

    assert ahead.is_inside
    assert harness.waiting() == [second]
    await harness.drain()


async def test_a_call_over_the_budget_is_admitted_alone() -> None:
    harness = Harness()
    harness.arrive(1)
    large, small = harness.arrive(BUDGET + 5), harness.arrive(1)
    await settle()

    assert large.is_inside
    assert harness.waiting() == [small]
    await harness.drain()


async def test_a_cancelled_call_leaves_the_queue_at_once() -> None:
    harness = Harness()
    harness.arrive(1)
    cancelled = harness.arrive(9)
    await settle()

    assert cancelled.task is not None
    cancelled.task.cancel()
    await settle()

    assert (harness.gate.queued_calls, harness.gate.queued_tokens) == (0, 0)
    await harness.drain()


async def test_a_call_cancelled_on_admission_frees_its_admission() -> None:
    harness = Harness()
    first, second = harness.arrive(BUDGET), harness.arrive(3)
    await settle()
    assert second.task is not None
    first.may_leave.set()
    await asyncio.sleep(0)  # the second call is admitted, but its task has not run yet

    second.task.cancel()
    third = harness.arrive(3)
    await settle()

    assert not second.inside.is_set()
    assert third.is_inside
    await harness.drain()


async def test_cancelled_calls_do_not_fill_a_batch_ahead() -> None:
    """Their batch would be closed before late arrivals could join it."""
    harness = Harness()
    harness.arrive(1)
    cancelled, small = harness.arrive(8), harness.arrive(1)
    await settle()
    assert cancelled.task is not None

    late = harness.arrive(2)  # in the same turn of the loop, before the gate sees the cancellation
    cancelled.task.cancel()
    await settle()

    assert harness.waiting() == [small, late]
    await harness.drain()


async def test_a_call_cancelled_as_the_model_frees_is_not_admitted() -> None:
    harness = Harness()
    first, cancelled, next_one = harness.arrive(BUDGET), harness.arrive(3), harness.arrive(3)
    await settle()
    assert cancelled.task is not None

    first.may_leave.set()
    cancelled.task.cancel()
    await settle()

    assert harness.inside() == [next_one]
    await harness.drain()


async def test_an_error_inside_ends_the_admission() -> None:
    gate = Gate(budget=BUDGET, max_calls=1000)
    with pytest.raises(ZeroDivisionError):
        async with gate.enter(1):
            raise ZeroDivisionError

    async with asyncio.timeout(5), gate.enter(1):
        entered = True

    assert entered


async def test_a_smaller_budget_admits_a_batch_that_is_now_full() -> None:
    harness = Harness()
    harness.arrive(1)
    waiting = harness.arrive(5)
    await settle()
    assert harness.waiting() == [waiting]

    harness.gate.budget = 5
    harness.gate.open()
    await settle()

    assert waiting.is_inside
    await harness.drain()


# Properties: any order of arrivals, departures and cancellations.

verbs = st.sampled_from(["arrive", "arrive", "leave", "cancel", "turn"])
steps = st.lists(st.tuples(verbs, st.integers(0, 2 * BUDGET)), min_size=10, max_size=60)
Check = Callable[[Harness], None]


def walk(steps: list[tuple[str, int]], *, is_calm: bool, check: Check) -> None:
    """Run steps on a new event loop, with checks in between.

    Args:
        steps: a verb and a number, which is a token count or selects a call.
        is_calm: whether the loop settles after each step, or only at a `turn` step.
        check: raises if the harness is in a wrong state.
    """

    async def run() -> None:
        harness = Harness()
        for verb, number in steps:
            take_step(harness, verb, number)
            if is_calm or verb == "turn":
                await settle()
                check(harness)
        await harness.drain()
        assert (harness.gate.queued_calls, harness.gate.queued_tokens) == (0, 0)

    asyncio.run(run())


def take_step(harness: Harness, verb: str, number: int) -> None:
    """Start, finish or cancel a call."""
    if verb == "arrive":
        harness.arrive(number)
        return
    pool = harness.inside() if verb == "leave" else [c for c in harness.callers if not c.is_done]
    if not pool or verb == "turn":
        return
    caller = pool[number % len(pool)]
    assert caller.task is not None
    if verb == "leave":
        caller.may_leave.set()
    else:
        caller.task.cancel()


class Reference:
    """A reference model of the gate in plain lists, for a loop that settles after each step."""

    def __init__(self) -> None:
        self.waiting: list[Caller] = []
        self.batches: list[list[Caller]] = []
        self._seen = 0

    def follow(self, harness: Harness) -> None:
        """Follow the arrivals and departures, and admit by the rules."""
        self.waiting += harness.callers[self._seen :]
        self._seen = len(harness.callers)
        self.waiting = [c for c in self.waiting if not c.is_done]
        self.batches = [[c for c in batch if not c.is_done] for batch in self.batches]
        self.batches = [batch for batch in self.batches if batch]
        while self.waiting and (not self.batches or self._may_admit_ahead()):
            self.batches.append(self._take())

    def _may_admit_ahead(self) -> bool:
        return len(self.batches) == 1 and sum(c.tokens for c in self.waiting) >= BUDGET

    def _take(self) -> list[Caller]:
        batch = [self.waiting.pop(0)]
        while self.waiting and sum(c.tokens for c in [*batch, self.waiting[0]]) <= BUDGET:
            batch.append(self.waiting.pop(0))
        return batch


@given(steps)
def test_the_gate_agrees_with_a_reference_model(steps: list[tuple[str, int]]) -> None:
    reference = Reference()

    def check(harness: Harness) -> None:
        reference.follow(harness)
        assert harness.waiting() == reference.waiting
        assert set(harness.inside()) == {c for batch in reference.batches for c in batch}

    walk(steps, is_calm=True, check=check)


@given(steps)
def test_invariants_hold_for_events_in_the_same_loop_turn(steps: list[tuple[str, int]]) -> None:
    def check(harness: Harness) -> None:
        waiting, inside = harness.waiting(), harness.inside()
        younger = harness.callers[harness.callers.index(waiting[0]) :] if waiting else []
        assert not any(caller.inside.is_set() for caller in younger)
        assert sum(c.tokens for c in inside) <= 2 * max([BUDGET, *(c.tokens for c in inside)])
        assert inside or not waiting
        assert harness.gate.queued_calls == len(waiting)
        assert harness.gate.queued_tokens == sum(c.tokens for c in waiting)

    walk(steps, is_calm=False, check=check)


async def test_an_admission_has_at_most_max_calls() -> None:
    """`@serve.batch` would cut a larger admission into several batches."""
    harness = Harness()
    harness.gate.max_calls = 2
    first = harness.arrive(BUDGET)
    await settle()
    others = [harness.arrive(1) for _ in range(5)]
    await settle()

    first.may_leave.set()
    await settle()

    assert harness.inside() == others[:2]
    await harness.drain()
